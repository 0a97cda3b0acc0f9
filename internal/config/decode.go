package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 4 << 20

// place is a line and column, both from 1.
type place struct{ line, column int }

// decoder fills structs from YAML nodes and collects every mistake on the way,
// instead of stopping at the first.
type decoder struct {
	name     string
	dir      string // where relative paths begin
	data     []byte
	elements map[reflect.Type]any // defaults of list elements and optional blocks
	places   map[string]place     // by path, such as "clouds[0].name"
	problems Problems
	keys     map[string]place     // of the keys, by path
	flow     bool                 // the whole file is one {…}
	nextKey  map[*yaml.Node]place // where the key after a top-level value begins
}

func parse(data []byte, name, dir string) (*Config, error) {
	c, elements := defaults()
	d := &decoder{name: name, dir: dir, data: data, elements: elements, places: map[string]place{}, keys: map[string]place{}}
	if root := d.document(); root != nil {
		d.decode(root, reflect.ValueOf(&c).Elem(), "", "")
		if root.Kind == yaml.MappingNode {
			(&checker{decoder: d, c: &c}).check()
		}
	}
	if err := d.problems.err(name); err != nil {
		return nil, err
	}
	c.Path = name
	return &c, nil
}

// document parses the YAML text and gives the mapping at its top, nil after a
// syntax error.
func (d *decoder) document() *yaml.Node {
	if len(d.data) > maxFile {
		d.add(place{1, 1}, "the file has %d bytes; at most %d are read", len(d.data), maxFile)
		return nil
	}
	if p, ok := badUTF8(d.data); ok {
		d.add(p, "the text is not UTF-8")
		return nil
	}
	var docs []yaml.Node
	if err := yaml.Load(d.data, &docs, yaml.WithAllDocuments()); err != nil {
		d.syntax(err)
		return nil
	}
	if len(docs) > 1 {
		d.add(at(&docs[1]), "a second document begins here; the file must hold one")
		return nil
	}
	if len(docs) == 0 || len(docs[0].Content) != 1 || isNull(docs[0].Content[0]) {
		d.add(place{1, 1}, "the file is empty; gpuserver config sample prints one to start from")
		return nil
	}
	root := docs[0].Content[0]
	d.nextKey = followers(root)
	d.flow = root.Style&yaml.FlowStyle != 0
	return root
}

// syntax turns the YAML parser's error into problems.
func (d *decoder) syntax(err error) {
	if e, ok := errors.AsType[*yaml.LoadError](err); ok && e.Mark.Line > 0 {
		d.add(place{e.Mark.Line, max(1, e.Mark.Column)}, "not valid YAML: %s", e.Message)
		return
	}
	d.add(place{1, 1}, "not valid YAML: %v", err)
}

// badUTF8 finds the first byte that is not UTF-8.
func badUTF8(data []byte) (place, bool) {
	line := 1
	for text := range bytes.Lines(data) {
		for column := 1; len(text) > 0; column++ {
			r, size := utf8.DecodeRune(text)
			if r == utf8.RuneError && size == 1 {
				return place{line, column}, true
			}
			text = text[size:]
		}
		line++
	}
	return place{}, false
}

func (d *decoder) add(p place, format string, args ...any) {
	d.problems = append(d.problems, Problem{File: d.name, Line: p.line, Column: p.column, Text: fmt.Sprintf(format, args...)})
}

func at(n *yaml.Node) place { return place{max(1, n.Line), max(1, n.Column)} }

func (d *decoder) noAlias(n *yaml.Node, path string) {
	d.add(at(n), "%s: anchors and aliases (& and *) are not read here; write the value out", label(path))
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// mayBeEmpty reports whether a key may stand without a value: a section, or a
// list of sections, in which everything is commented out.
func mayBeEmpty(v reflect.Value) bool {
	t := v.Type()
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	return t.Kind() == reflect.Struct && t != secretType && t != sectionType && !isText(reflect.New(t).Elem())
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	sectionType  = reflect.TypeFor[Section]()
	secretType   = reflect.TypeFor[Secret]()
	pathType     = reflect.TypeFor[Path]()
)

// decode fills v from n. The path names v in messages, tag is the struct tag of
// its field.
func (d *decoder) decode(n *yaml.Node, v reflect.Value, path string, tag reflect.StructTag) {
	d.places[path] = at(n)
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.noAlias(n, path)
	case isNull(n) && !mayBeEmpty(v):
		d.add(at(n), "%s has no value; give %s or remove the key", label(path), expected(v.Type()))
	case v.Type() == sectionType:
		v.Set(reflect.ValueOf(d.section(n, path)))
	case v.Kind() == reflect.Pointer:
		d.pointer(n, v, path, tag)
	case v.Type() == secretType && n.Kind == yaml.ScalarNode:
		d.add(at(n), "%s may not be written here; give {file: PATH}, {env: NAME} or {credential: NAME}", label(path))
	case v.Kind() == reflect.Struct && !isText(v):
		d.mapping(n, v, path)
	case v.Kind() == reflect.Slice:
		d.sequence(n, v, path, tag)
	default:
		d.scalar(n, v, path, tag)
	}
}

func (d *decoder) pointer(n *yaml.Node, v reflect.Value, path string, tag reflect.StructTag) {
	p := reflect.New(v.Type().Elem())
	d.setDefault(p.Elem())
	d.decode(n, p.Elem(), path, tag)
	v.Set(p)
}

func (d *decoder) setDefault(v reflect.Value) {
	if def, ok := d.elements[v.Type()]; ok {
		v.Set(reflect.ValueOf(def))
	}
}

// sequence fills a slice; a list that is given replaces the default whole.
func (d *decoder) sequence(n *yaml.Node, v reflect.Value, path string, tag reflect.StructTag) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.wrongType(n, v.Type(), path)
		return
	}
	list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		d.setDefault(list.Index(i))
		d.decode(item, list.Index(i), fmt.Sprintf("%s[%d]", path, i), tag)
	}
	v.Set(list)
}

// mapping fills a struct.
func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode && !isNull(n) {
		d.wrongType(n, v.Type(), path)
		return
	}
	fields := fieldsOf(v.Type())
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if line, twice := seen[key.Value]; twice && key.Kind == yaml.ScalarNode {
			d.add(at(key), "%s is given twice; the first is in line %d", label(join(path, key.Value)), line)
			continue
		}
		seen[key.Value] = key.Line
		f, ok := fields[key.Value]
		if !ok || key.Kind != yaml.ScalarNode {
			// What was meant is not missing as well.
			seen[d.unknown(key, fields, path)] = key.Line
			continue
		}
		d.keys[join(path, key.Value)] = at(key)
		d.decode(value, v.FieldByIndex(f.Index), join(path, key.Value), f.Tag)
	}
	for _, name := range fieldNames(v.Type()) {
		if _, ok := seen[name]; !ok && required(fields[name]) {
			d.add(at(n), "%s is missing: %s", label(join(path, name)), fields[name].Tag.Get("jsonschema"))
		}
	}
}

// unknown refuses a key and gives the one that was probably meant, or "".
func (d *decoder) unknown(key *yaml.Node, fields map[string]reflect.StructField, path string) string {
	where := "at the top of the file"
	if path != "" {
		where = "in " + path
	}
	names := slices.Sorted(maps.Keys(fields))
	near := nearest(key.Value, names)
	if near != "" {
		d.add(at(key), "unknown key %q %s; did you mean %q?", key.Value, where, near)
	} else {
		d.add(at(key), "unknown key %q %s; known are %s", key.Value, where, strings.Join(names, ", "))
	}
	return near
}

// scalar fills a single value.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string, tag reflect.StructTag) {
	if n.Kind != yaml.ScalarNode || !fits(n, v) {
		d.wrongType(n, v.Type(), path)
		return
	}
	if err := d.set(n.Value, v); err != nil {
		d.add(at(n), "%s: %v", label(path), err)
		return
	}
	if enum := tag.Get("enum"); enum != "" && !slices.Contains(strings.Split(enum, ","), n.Value) {
		d.unknownValue(n, strings.Split(enum, ","), path)
	}
	if err := checkRange(v, tag.Get("range")); err != nil {
		d.add(at(n), "%s: %v", label(path), err)
	}
}

func (d *decoder) unknownValue(n *yaml.Node, values []string, path string) {
	if near := nearest(n.Value, values); near != "" {
		d.add(at(n), "%s: unknown value %q; did you mean %q?", label(path), n.Value, near)
		return
	}
	d.add(at(n), "%s: unknown value %q; it is one of %s", label(path), n.Value, strings.Join(values, ", "))
}

// fits reports whether a scalar's own type is one that v may be given. Text
// that looks like a number or a truth value needs quotes, so that no name is
// changed on the way.
func fits(n *yaml.Node, v reflect.Value) bool {
	tag := n.ShortTag()
	switch {
	case isText(v), v.Type() == durationType:
		return tag == "!!str" || tag == "!!int" || tag == "!!float" || tag == "!!timestamp"
	case v.Kind() == reflect.String:
		return tag == "!!str"
	case v.Kind() == reflect.Float64:
		return tag == "!!float" || tag == "!!int"
	case v.Kind() == reflect.Bool:
		return tag == "!!bool"
	}
	return tag == "!!int"
}

func (d *decoder) set(text string, v reflect.Value) error {
	switch {
	case v.Type() == durationType:
		dur, err := ParseDuration(text)
		v.SetInt(int64(dur))
		return err
	case v.Type() == pathType:
		if text != "" && !filepath.IsAbs(text) {
			text = filepath.Join(d.dir, text)
		}
		v.SetString(text)
	case isText(v):
		return v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text))
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(text)
		v.SetBool(b)
		return err
	case v.Kind() == reflect.Float64:
		f, err := strconv.ParseFloat(text, 64)
		v.SetFloat(f)
		return err
	default:
		i, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not a whole decimal number", text)
		}
		v.SetInt(i)
	}
	return nil
}

func (d *decoder) wrongType(n *yaml.Node, t reflect.Type, path string) {
	d.add(at(n), "%s: expected %s, got %s", label(path), expected(t), found(n, t))
}
