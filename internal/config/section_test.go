package config

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"

	"gpuserver"
)

// node is a scalar with its place.
type node struct {
	Value        string
	Line, Column int
}

func scalars(n *yaml.Node) []node {
	if n.Kind == yaml.ScalarNode {
		return []node{{n.Value, n.Line, n.Column}}
	}
	var out []node
	for _, c := range n.Content {
		out = append(out, scalars(c)...)
	}
	return out
}

func load(t *testing.T, data []byte) *yaml.Node {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Load(data, &doc); err != nil {
		t.Fatalf("%v in\n%s", err, data)
	}
	return doc.Content[0]
}

// A section's source says the same at the same lines and columns as the file.
func TestSectionKeepsItsPlace(t *testing.T) {
	c, err := Parse([]byte(Sample()), samplePath)
	if err != nil {
		t.Fatal(err)
	}
	root := load(t, []byte(Sample()))
	for i := 0; i < len(root.Content); i += 2 {
		var want []node
		var section *Section
		switch root.Content[i].Value {
		case "runners":
			want, section = append(scalars(root.Content[i]), scalars(root.Content[i+1])...), c.Runners
		case "access":
			want, section = scalars(root.Content[i+1]), c.Access
		default:
			continue
		}
		if diff := cmp.Diff(want, scalars(load(t, section.Source()))); diff != "" {
			t.Errorf("%s: -file +source\n%s", root.Content[i].Value, diff)
		}
	}
}

func TestSectionForms(t *testing.T) {
	for _, tt := range []struct{ name, file, runners, access string }{
		{"last in the file", "a: ü\nrunners:\n- name: x # y\n", "\nrunners:\n- name: x # y\n", ""},
		{"in one line", "runners: [{name: ü}]\naccess: {version: 1}\nz: 1\n", "runners: [{name: ü}]\n\n\n", "\n {version: 1}\n\n"},
		{"one {…}", "{runners: [{name: x}], access: {version: 1}}\n", "runners: [{name: x}]\n", "{version: 1}\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &decoder{name: "c", data: []byte(tt.file), keys: map[string]place{}, places: map[string]place{}}
			root := d.document()
			got := map[string]string{}
			for i := 0; i < len(root.Content); i += 2 {
				key := root.Content[i].Value
				d.keys[key] = at(root.Content[i])
				if key == "runners" || key == "access" {
					s := d.section(root.Content[i+1], key)
					got[key] = strings.ReplaceAll(string(s.source), "        {", " {")
				}
			}
			if got["runners"] != tt.runners || got["access"] != tt.access {
				t.Errorf("runners %q, access %q", got["runners"], got["access"])
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{Sample(), uncomment(true), small, "{a: [b, *c]}", "server: &a {x: *a}", "<<: {a: 1}", "? [a]\n: b\n", "runners:\n- a\naccess:\n  b: c\n", "\xff", "--- a\n--- b\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data, "c.yaml")
		if err != nil {
			checkProblems(t, err, data)
			return
		}
		again, err := Parse(data, "c.yaml")
		if err != nil || !reflect.DeepEqual(c, again) {
			t.Errorf("the second reading differs: %v", err)
		}
	})
}

func checkProblems(t *testing.T, err error, data []byte) {
	problems, ok := errors.AsType[Problems](err)
	if !ok || len(problems) == 0 || gpuserver.KindOf(err) != gpuserver.KindInvalid {
		t.Fatalf("the error is no list of problems of kind invalid: %v", err)
	}
	// YAML 1.1 knows line breaks beside \n.
	most := 2 + strings.Count(string(data), "\n") + strings.Count(string(data), "\r") +
		strings.Count(string(data), "\u0085") + strings.Count(string(data), "\u2028") + strings.Count(string(data), "\u2029")
	for _, p := range problems {
		if p.Line < 1 || p.Column < 1 || p.Line > most || p.Text == "" || !utf8.ValidString(p.Text) {
			t.Errorf("bad problem %#v", p)
		}
		if strings.ContainsAny(p.Text, "\n\r") {
			t.Errorf("a problem of several lines: %q", p.Text)
		}
	}
}
