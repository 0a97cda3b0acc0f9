package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// fieldsOf gives a struct's fields by their names in the file.
func fieldsOf(t reflect.Type) map[string]reflect.StructField {
	fields := map[string]reflect.StructField{}
	for f := range t.Fields() {
		if name, ok := keyOf(f); ok {
			fields[name] = f
		}
	}
	return fields
}

// fieldNames gives the names of a struct's fields in the order of the struct.
func fieldNames(t reflect.Type) []string {
	var names []string
	for f := range t.Fields() {
		if name, ok := keyOf(f); ok {
			names = append(names, name)
		}
	}
	return names
}

// keyOf gives a field's name in the file; false if it has none.
func keyOf(f reflect.StructField) (string, bool) {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name, f.IsExported() && name != "" && name != "-"
}

func required(f reflect.StructField) bool {
	return !strings.Contains(f.Tag.Get("json"), ",omit")
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// label names a path in a message.
func label(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

func isText(v reflect.Value) bool {
	return v.CanAddr() && v.Addr().Type().Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// expected says in words what a value of type t looks like in the file.
func expected(t reflect.Type) string {
	if t.Kind() == reflect.Pointer && t.Elem() != sectionType {
		return expected(t.Elem())
	}
	switch t {
	case durationType:
		return "a duration such as 90s, 6h or 3d"
	case secretType:
		return "{file: PATH}, {env: NAME} or {credential: NAME}"
	case reflect.TypeFor[Size]():
		return "a size such as 12GiB"
	case reflect.TypeFor[URL]():
		return "a URL"
	case reflect.TypeFor[Address]():
		return "an address (HOST:PORT)"
	case pathType:
		return "a path"
	}
	switch t.Kind() {
	case reflect.Struct:
		if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
			return "text"
		}
		return "keys and values"
	case reflect.Slice:
		return "a list"
	case reflect.Bool:
		return "true or false"
	case reflect.Float64:
		return "a number"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.String:
		return "text"
	}
	return "a value"
}

// found says in words what stands in the file instead. It never shows the
// value, which may be a secret at the wrong place.
func found(n *yaml.Node, want reflect.Type) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	}
	quotes := ""
	if want.Kind() == reflect.String {
		quotes = "; put it into quotes if it is meant as text"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "a number" + quotes
	case "!!bool":
		return "true or false" + quotes
	case "!!timestamp":
		return "a date" + quotes
	case "!!str":
		return "text"
	}
	return "a value of type " + n.ShortTag()
}

// checkRange checks a number, size or duration against a tag such as "1..64".
func checkRange(v reflect.Value, bounds string) error {
	lo, hi, ok := strings.Cut(bounds, "..")
	if !ok {
		return nil
	}
	x := asFloat(v)
	if lo != "" && x < parseBound(lo, v.Type()) || hi != "" && x > parseBound(hi, v.Type()) {
		switch {
		case hi == "":
			return fmt.Errorf("out of range; it is at least %s", lo)
		case lo == "":
			return fmt.Errorf("out of range; it is at most %s", hi)
		}
		return fmt.Errorf("out of range; it is from %s to %s", lo, hi)
	}
	return nil
}

func asFloat(v reflect.Value) float64 {
	if v.Kind() == reflect.Float64 {
		return v.Float()
	}
	return float64(v.Int())
}

// parseBound reads one end of a range tag. A bad tag is a defect of this
// package, which its tests find.
func parseBound(s string, t reflect.Type) float64 {
	var (
		x   float64
		err error
	)
	switch t {
	case durationType:
		var d time.Duration
		d, err = ParseDuration(s)
		x = float64(d)
	case reflect.TypeFor[Size]():
		var size Size
		size, err = ParseSize(s)
		x = float64(size)
	default:
		x, err = strconv.ParseFloat(s, 64)
	}
	if err != nil {
		panic("config: bad range tag: " + err.Error())
	}
	return x
}
