package main

import (
	"fmt"
	"slices"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	admission "k8s.io/pod-security-admission/api"
	podsecurity "k8s.io/pod-security-admission/policy"
	"k8s.io/utils/ptr"
)

// checker has the objects by type, and collects what is wrong with the references among them.
type checker struct {
	objects  []object
	sets     []*apps.StatefulSet
	services []*core.Service
	configs  map[string]*core.ConfigMap
	problems []error
}

// check returns what the types do not refuse: names, references between objects, and the restricted pod security
// standard.
func check(objects []object) []error {
	c := &checker{objects: objects, configs: map[string]*core.ConfigMap{}}
	seen := map[string]bool{}
	for _, object := range objects {
		if seen[object.id] {
			c.report(object, "is there twice")
		}
		seen[object.id] = true
		c.checkMetadata(object)
		switch typed := object.typed.(type) {
		case *apps.StatefulSet:
			c.sets = append(c.sets, typed)
		case *core.Service:
			c.services = append(c.services, typed)
		case *core.ConfigMap:
			c.configs[typed.Name] = typed
		}
	}
	for _, object := range objects {
		switch typed := object.typed.(type) {
		case *apps.StatefulSet:
			c.checkStatefulSet(object, typed)
		case *core.Service:
			c.checkService(object, typed)
		case *networking.NetworkPolicy:
			c.checkNetworkPolicy(object, typed)
		case *policy.PodDisruptionBudget:
			c.pods(object, typed.Spec.Selector)
		case *monitoring.ServiceMonitor:
			c.checkServiceMonitor(object, typed)
		case *core.ConfigMap, *monitoring.PrometheusRule:
		default:
			c.report(object, "no check for this kind")
		}
	}
	return c.problems
}

func (c *checker) report(object object, format string, values ...any) {
	c.problems = append(c.problems, fmt.Errorf("%s: %s", object.id, fmt.Sprintf(format, values...)))
}

func (c *checker) checkMetadata(object object) {
	if object.meta.GetNamespace() != c.objects[0].meta.GetNamespace() {
		c.report(object, "namespace %q, others have %q", object.meta.GetNamespace(), c.objects[0].meta.GetNamespace())
	}
	problems := validation.IsDNS1123Subdomain(object.meta.GetName())
	for key, value := range object.meta.GetLabels() {
		problems = append(problems, validation.IsQualifiedName(key)...)
		problems = append(problems, validation.IsValidLabelValue(value)...)
	}
	for _, problem := range problems {
		c.report(object, "%s", problem)
	}
}

// pods returns the pod templates that a selector of an object matches, and reports an object that matches none.
func (c *checker) pods(object object, selector *meta.LabelSelector) []core.PodTemplateSpec {
	compiled, err := meta.LabelSelectorAsSelector(selector)
	if err != nil {
		c.report(object, "%v", err)
		return nil
	}
	return c.podsOf(object, compiled)
}

func (c *checker) podsOf(object object, selector labels.Selector) []core.PodTemplateSpec {
	var matched []core.PodTemplateSpec
	for _, set := range c.sets {
		if !selector.Empty() && selector.Matches(labels.Set(set.Spec.Template.Labels)) {
			matched = append(matched, set.Spec.Template)
		}
	}
	if len(matched) == 0 {
		c.report(object, "selector %q matches no pod", selector)
	}
	return matched
}

func hasPort(pods []core.PodTemplateSpec, port intstr.IntOrString) bool {
	for _, pod := range pods {
		for _, container := range pod.Spec.Containers {
			for _, declared := range container.Ports {
				if port.String() == declared.Name || port.IntValue() == int(declared.ContainerPort) {
					return true
				}
			}
		}
	}
	return false
}

func (c *checker) checkService(object object, service *core.Service) {
	for _, problem := range validation.IsDNS1035Label(service.Name) {
		c.report(object, "%s", problem)
	}
	pods := c.podsOf(object, labels.SelectorFromSet(service.Spec.Selector))
	for _, port := range service.Spec.Ports {
		if !hasPort(pods, port.TargetPort) {
			c.report(object, "no container has the port %s", port.TargetPort.String())
		}
	}
}

func (c *checker) checkNetworkPolicy(object object, networkPolicy *networking.NetworkPolicy) {
	pods := c.pods(object, &networkPolicy.Spec.PodSelector)
	for _, rule := range networkPolicy.Spec.Ingress {
		for _, port := range rule.Ports {
			if port.Port == nil || !hasPort(pods, *port.Port) {
				c.report(object, "no container has the port %v", port.Port)
			}
		}
	}
}

func (c *checker) checkServiceMonitor(object object, monitor *monitoring.ServiceMonitor) {
	selector, err := meta.LabelSelectorAsSelector(&monitor.Spec.Selector)
	if err != nil {
		c.report(object, "%v", err)
		return
	}
	n := 0
	for _, service := range c.services {
		if !selector.Matches(labels.Set(service.Labels)) {
			continue
		}
		n++
		for _, endpoint := range monitor.Spec.Endpoints {
			named := func(port core.ServicePort) bool { return port.Name == endpoint.Port }
			if !slices.ContainsFunc(service.Spec.Ports, named) {
				c.report(object, "Service/%s has no port %q", service.Name, endpoint.Port)
			}
		}
		if label := monitor.Spec.JobLabel; label != "" && service.Labels[label] == "" {
			c.report(object, "Service/%s has no label %q", service.Name, label)
		}
	}
	if n != 1 {
		c.report(object, "selector %q matches %d services", selector, n)
	}
}

func (c *checker) checkStatefulSet(object object, set *apps.StatefulSet) {
	c.pods(object, set.Spec.Selector)
	governs := func(service *core.Service) bool {
		return service.Name == set.Spec.ServiceName && service.Spec.ClusterIP == core.ClusterIPNone
	}
	if !slices.ContainsFunc(c.services, governs) {
		c.report(object, "no headless Service %q", set.Spec.ServiceName)
	}
	pod := set.Spec.Template
	c.checkVolumes(object, set)
	for _, container := range pod.Spec.Containers {
		for name, probe := range map[string]*core.Probe{
			"startupProbe": container.StartupProbe, "livenessProbe": container.LivenessProbe, "readinessProbe": container.ReadinessProbe,
		} {
			if probe == nil || probe.HTTPGet == nil || !hasPort([]core.PodTemplateSpec{pod}, probe.HTTPGet.Port) {
				c.report(object, "%s: no such port, or no probe", name)
			}
		}
		for name, request := range container.Resources.Requests {
			if limit, ok := container.Resources.Limits[name]; ok && request.Cmp(limit) > 0 {
				c.report(object, "request of %s %s is above its limit %s", name, request.String(), limit.String())
			}
		}
		if context := container.SecurityContext; context == nil || !ptr.Deref(context.ReadOnlyRootFilesystem, false) {
			c.report(object, "the root file system of %s is not read-only", container.Name)
		}
	}
	c.checkPodSecurity(object, &pod)
}

func (c *checker) checkPodSecurity(object object, pod *core.PodTemplateSpec) {
	evaluator, err := podsecurity.NewEvaluator(podsecurity.DefaultChecks(), nil)
	if err != nil {
		c.report(object, "%v", err)
		return
	}
	restricted := admission.LevelVersion{Level: admission.LevelRestricted, Version: admission.LatestVersion()}
	for _, result := range evaluator.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec) {
		if !result.Allowed {
			c.report(object, "%s: %s", result.ForbiddenReason, result.ForbiddenDetail)
		}
	}
}

// checkVolumes compares volumes, claims and mounts, and looks up ConfigMaps. Secrets are the user's.
func (c *checker) checkVolumes(object object, set *apps.StatefulSet) {
	mounted := map[string]bool{}
	for _, container := range set.Spec.Template.Spec.Containers {
		paths := map[string]bool{}
		for _, mount := range container.VolumeMounts {
			mounted[mount.Name] = true
			if paths[mount.MountPath] {
				c.report(object, "two volumes at %s", mount.MountPath)
			}
			paths[mount.MountPath] = true
		}
	}
	declared := map[string]bool{}
	for _, claim := range set.Spec.VolumeClaimTemplates {
		declared[claim.Name] = true
	}
	for _, volume := range set.Spec.Template.Spec.Volumes {
		declared[volume.Name] = true
		if volume.ConfigMap != nil && c.configs[volume.ConfigMap.Name] == nil {
			c.report(object, "volume %s: no ConfigMap %s", volume.Name, volume.ConfigMap.Name)
		}
	}
	for name := range mounted {
		if !declared[name] {
			c.report(object, "no volume %s", name)
		}
	}
	for name := range declared {
		if !mounted[name] {
			c.report(object, "volume %s is not mounted", name)
		}
	}
}
