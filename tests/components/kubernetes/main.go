// Command manifests makes and checks Kubernetes objects with the packages of Helm, kustomize, Kubernetes and the
// Prometheus operator.
//
//	manifests render RELEASE CHART VALUES...  the objects of a chart, as `helm template`
//	manifests build DIRECTORY                 the objects of a kustomization, as `kustomize build`
//	manifests check FILE                      objects and what they refer to
//	manifests json FILE                       any YAML file as a JSON array of its documents
//	manifests prometheus FILE                 values of kube-prometheus-stack: prometheus.prometheusSpec
//
// FILE may be - for standard input. The status is 1 if something is wrong, with a line for each problem on standard error.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	output, err := run(os.Args[1:])
	fail(err)
	_, err = os.Stdout.Write(output)
	fail(err)
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) ([]byte, error) {
	if len(arguments) >= 3 && arguments[0] == "render" {
		return render(arguments[1], arguments[2], arguments[3:])
	}
	if len(arguments) != 2 {
		return nil, errors.New("usage: manifests render RELEASE CHART VALUES... | build DIRECTORY | check|json|prometheus FILE")
	}
	command, path := arguments[0], arguments[1]
	if command == "build" {
		return build(path)
	}
	text, err := read(path)
	if err != nil {
		return nil, err
	}
	switch command {
	case "check":
		objects, err := decode(text)
		if err != nil {
			return nil, err
		}
		return nil, errors.Join(check(objects)...)
	case "json":
		return toJSON(text)
	case "prometheus":
		return nil, checkPrometheusSpec(text)
	}
	return nil, fmt.Errorf("no command %q", command)
}

func read(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(path)
}

func toJSON(text []byte) ([]byte, error) {
	documents, err := split(text)
	if err != nil {
		return nil, err
	}
	values := []any{}
	for i, document := range documents {
		var value any
		if err := yaml.UnmarshalStrict(document, &value); err != nil {
			return nil, fmt.Errorf("document %d: %w", i+1, err)
		}
		values = append(values, value)
	}
	return json.Marshal(values)
}

func checkPrometheusSpec(text []byte) error {
	var values struct {
		Prometheus struct {
			Spec json.RawMessage `json:"prometheusSpec"`
		} `json:"prometheus"`
	}
	if err := yaml.Unmarshal(text, &values); err != nil {
		return err
	}
	if values.Prometheus.Spec == nil {
		return errors.New("no prometheus.prometheusSpec")
	}
	var spec monitoring.PrometheusSpec
	if err := yaml.UnmarshalStrict(values.Prometheus.Spec, &spec); err != nil {
		return fmt.Errorf("prometheusSpec: %w", err)
	}
	return nil
}
