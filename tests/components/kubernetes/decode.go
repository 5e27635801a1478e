package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
)

// object is one document, in the type that its apiVersion and kind name.
type object struct {
	id    string // kind/name
	kind  string
	meta  metaAccessor
	typed runtime.Object
}

type metaAccessor interface {
	GetName() string
	GetNamespace() string
	GetLabels() map[string]string
}

func split(text []byte) ([][]byte, error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	var documents [][]byte
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return documents, nil
		}
		if err != nil {
			return nil, err
		}
		if !isBlank(document) {
			documents = append(documents, document)
		}
	}
}

// isBlank tells whether a document has only comments.
func isBlank(document []byte) bool {
	for line := range strings.Lines(string(document)) {
		line = strings.TrimSpace(line)
		if line != "" && line != "---" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}

// decode refuses unknown kinds, fields that the type lacks, and keys that repeat.
func decode(text []byte) ([]object, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		apps.AddToScheme, core.AddToScheme, networking.AddToScheme, policy.AddToScheme, monitoring.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	documents, err := split(text)
	if err != nil {
		return nil, err
	}
	var objects []object
	var problems []error
	for i, document := range documents {
		typed, kind, err := decoder.Decode(document, nil, nil)
		if err != nil {
			problems = append(problems, fmt.Errorf("document %d: %w", i+1, err))
			continue
		}
		accessor, err := meta.Accessor(typed)
		if err != nil {
			return nil, err
		}
		id := kind.Kind + "/" + accessor.GetName()
		objects = append(objects, object{id: id, kind: kind.Kind, meta: accessor, typed: typed})
	}
	if len(objects) == 0 && len(problems) == 0 {
		problems = append(problems, errors.New("no objects"))
	}
	return objects, errors.Join(problems...)
}
