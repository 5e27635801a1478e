package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// render is `helm template RELEASE CHART --values FILE...` by Helm's own packages: it validates the values by the chart's
// schema, and prints the notes, which that command leaves out, as comments.
func render(release, directory string, files []string) ([]byte, error) {
	loaded, err := loader.Load(directory)
	if err != nil {
		return nil, err
	}
	if err := loaded.Validate(); err != nil {
		return nil, err
	}
	values := map[string]any{}
	for _, file := range files {
		more, err := readValues(file)
		if err != nil {
			return nil, err
		}
		values = loader.MergeMaps(values, more)
	}
	texts, err := renderTemplates(release, loaded, values)
	if err != nil {
		return nil, err
	}
	var output strings.Builder
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		text := strings.TrimSpace(texts[name])
		switch {
		case path.Base(name) == "NOTES.txt":
			fmt.Fprintf(&output, "# %s\n", strings.ReplaceAll(text, "\n", "\n# "))
		case text != "":
			fmt.Fprintf(&output, "---\n# Source: %s\n%s\n", name, strings.TrimPrefix(text, "---\n"))
		}
	}
	return []byte(output.String()), nil
}

func readValues(file string) (map[string]any, error) {
	opened, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	values, err := loader.LoadValues(opened)
	return values, errors.Join(err, opened.Close())
}

func renderTemplates(release string, loaded *chart.Chart, values map[string]any) (map[string]string, error) {
	options := common.ReleaseOptions{Name: release, Namespace: "monitoring", Revision: 1, IsInstall: true}
	renderValues, err := util.ToRenderValues(loaded, values, options, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Engine{Strict: true}.Render(loaded, renderValues)
}

func build(directory string) ([]byte, error) {
	kustomizer := krusty.MakeKustomizer(krusty.MakeDefaultOptions())
	resources, err := kustomizer.Run(filesys.MakeFsOnDisk(), directory)
	if err != nil {
		return nil, err
	}
	return resources.AsYaml()
}
