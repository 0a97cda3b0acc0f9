package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/jsonschema-go/jsonschema"
	"go.yaml.in/yaml/v4"
)

const samplePath = "/etc/gpuserver/gpuserver.yaml"

// settingRE is a setting that is commented out: nothing between # and key.
// Prose has a space there.
var settingRE = regexp.MustCompile(`^( *)#([^ ].*|  +[^ ].*)$`)

// uncomment gives the sample with its settings turned on: all of them, or only
// those that are said to show a default.
func uncomment(examples bool) string {
	var out []string
	example := false
	for line := range strings.Lines(Sample()) {
		line = strings.TrimSuffix(line, "\n")
		m := settingRE.FindStringSubmatch(line)
		switch text := strings.TrimSpace(line); {
		case m != nil && (examples || !example):
			line = m[1] + m[2]
		case m != nil:
		case strings.HasPrefix(text, "#"):
			example = strings.Contains(prose(out, text), "or example:")
		case text == "":
			example = false
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n") + "\n"
}

// prose gives the comment that ends with a line, with the lines before it.
func prose(before []string, last string) string {
	text := last
	for _, line := range slices.Backward(before) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "# ") {
			break
		}
		text = line + " " + text
	}
	return strings.ReplaceAll(text, "# ", "")
}

var ignoreRead = []cmp.Option{
	cmpopts.IgnoreUnexported(Config{}, Section{}),
	cmp.Comparer(func(a, b fmt.Stringer) bool { return a.String() == b.String() }),
}

func TestSampleIsValid(t *testing.T) {
	for name, text := range map[string]string{
		"as it is": Sample(), "with all defaults": uncomment(false), "with all examples": uncomment(true),
	} {
		if _, err := Parse([]byte(text), samplePath); err != nil {
			t.Errorf("the sample %s has mistakes: %v", name, err)
		}
	}
}

// What the sample shows commented out, outside of examples, is the default.
func TestSampleShowsDefaults(t *testing.T) {
	asItIs, err := Parse([]byte(Sample()), samplePath)
	if err != nil {
		t.Fatal(err)
	}
	on, err := Parse([]byte(uncomment(false)), samplePath)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(asItIs, on, ignoreRead...); diff != "" {
		t.Errorf("-default +what the sample says\n%s", diff)
	}
	if uncomment(false) == Sample() {
		t.Error("no setting of the sample was turned on: the test looks for them in a wrong way")
	}
}

// settings gives the path of every setting that the structs know.
func settings(t reflect.Type, path string) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == secretType || t == sectionType || isText(reflect.New(t).Elem()) {
		return []string{path}
	}
	var out []string
	for _, name := range fieldNames(t) {
		out = append(out, settings(fieldsOf(t)[name].Type, join(path, name))...)
	}
	if len(out) == 0 {
		out = []string{path}
	}
	return out
}

// keysOf gives the path of every key in a YAML file.
func keysOf(n *yaml.Node, path string) []string {
	out := []string{path}
	switch n.Kind {
	case yaml.DocumentNode, yaml.SequenceNode:
		for _, c := range n.Content {
			out = append(out, keysOf(c, path)...)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			out = append(out, keysOf(n.Content[i+1], join(path, n.Content[i].Value))...)
		}
	}
	return out
}

func TestSampleHasEverySetting(t *testing.T) {
	var doc yaml.Node
	if err := yaml.Load([]byte(uncomment(true)), &doc); err != nil {
		t.Fatal(err)
	}
	have := keysOf(&doc, "")
	want := settings(reflect.TypeFor[Config](), "")
	if len(want) < 80 {
		t.Fatalf("only %d settings were found in the structs", len(want))
	}
	for _, path := range want {
		if !slices.Contains(have, path) {
			t.Errorf("the sample does not show %s", path)
		}
	}
}

// Every field says what it is, and its tags can be read.
func TestFieldsAreDescribed(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(t reflect.Type)
	walk = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ.PkgPath() != secretType.PkgPath() || seen[typ] {
			return
		}
		seen[typ] = true
		for name, f := range fieldsOf(typ) {
			if f.Tag.Get("jsonschema") == "" {
				t.Errorf("%s.%s has no description", typ.Name(), name)
			}
			if bounds := f.Tag.Get("range"); bounds != "" {
				lo, hi, ok := strings.Cut(bounds, "..")
				if !ok || lo == "" && hi == "" || lo != "" && hi != "" && parseBound(lo, f.Type) >= parseBound(hi, f.Type) {
					t.Errorf("%s.%s has the range %q", typ.Name(), name, bounds)
				}
			}
			walk(f.Type)
		}
	}
	walk(reflect.TypeFor[Config]())
	if len(seen) < 15 {
		t.Errorf("only %d structs were seen", len(seen))
	}
}

// validate checks a file against the JSON Schema as an editor would.
func validate(t *testing.T, text string) error {
	t.Helper()
	s, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	// Through its text, which is what an editor gets.
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var read jsonschema.Schema
	if err := json.Unmarshal(data, &read); err != nil {
		t.Fatal(err)
	}
	resolved, err := read.Resolve(&jsonschema.ResolveOptions{ValidateDefaults: true})
	if err != nil {
		t.Fatalf("the schema, or a default in it, is not valid: %v", err)
	}
	var v any
	if err := yaml.Load([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return resolved.Validate(v)
}

func TestSampleKeepsTheSchema(t *testing.T) {
	for name, text := range map[string]string{
		"the sample": Sample(), "with all defaults": uncomment(false), "with all examples": uncomment(true), "a small file": small,
	} {
		if err := validate(t, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSchemaRefusesMistakes(t *testing.T) {
	for name, text := range map[string]string{
		"unknown key":    with("retension: {}\n"),
		"wrong type":     with("jobs: {retries: many}\n"),
		"bad unit":       with("jobs: {grace: 30 seconds}\n"),
		"bad size":       strings.Replace(small, "1GiB", "1GB", 1),
		"out of range":   strings.Replace(small, "vcpus: 1", "vcpus: 0", 1),
		"unknown value":  strings.Replace(small, "type: libvirt", "type: libvrt", 1),
		"missing":        strings.Replace(small, "vcpus: 1, ", "", 1),
		"no value":       with("runners:\n"),
		"no list":        with("forges: [{name: a, type: github, app_id: 1, mode: pull, private_key: {env: A}, owners: }]\n"),
		"secret in text": with("forges: [{name: a, type: github, app_id: 1, private_key: abc}]\n"),
	} {
		if err := validate(t, text); err == nil {
			t.Errorf("%s: the schema accepts\n%s", name, text)
		}
		if _, err := Parse([]byte(text), samplePath); err == nil {
			t.Errorf("%s: the program accepts\n%s", name, text)
		}
	}
}
