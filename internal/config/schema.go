package config

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
)

// Schema gives the JSON Schema (draft 2020-12) of the file, made from the
// structs and their tags.
func Schema() (*jsonschema.Schema, error) {
	text := func(pattern string) *jsonschema.Schema {
		return &jsonschema.Schema{Type: "string", Pattern: pattern}
	}
	s, err := jsonschema.For[Config](&jsonschema.ForOptions{TypeSchemas: map[reflect.Type]*jsonschema.Schema{
		durationType:                    text(durationPattern),
		sectionType:                     {Types: []string{"array", "object"}},
		pathType:                        text(""),
		reflect.TypeFor[Size]():         text(sizePattern),
		reflect.TypeFor[URL]():          text(`^https?://`),
		reflect.TypeFor[Address]():      text(`^$|:[0-9]+$`),
		reflect.TypeFor[netip.Prefix](): text(`^[0-9a-fA-F.:]+/[0-9]+$`),
		reflect.TypeFor[netip.Addr]():   text(`^[0-9a-fA-F.:]+$`),
	}})
	if err != nil {
		return nil, err
	}
	s.Schema = "https://json-schema.org/draft/2020-12/schema"
	s.Title = "Configuration of gpuserver"
	whole, elements := defaults()
	return s, annotate(s, reflect.ValueOf(whole), elements)
}

// annotate adds to a struct's schema what jsonschema-go does not read from
// tags: enums, ranges, defaults, and that a section may be empty.
func annotate(s *jsonschema.Schema, v reflect.Value, elements map[reflect.Type]any) error {
	for name, f := range fieldsOf(v.Type()) {
		p := s.Properties[name]
		value := v.FieldByIndex(f.Index)
		annotateTag(p, f)
		if !mayBeEmpty(reflect.New(f.Type).Elem()) {
			refuseNull(p)
		}
		if err := setDefaultValue(p, f, value); err != nil {
			return err
		}
		inner, t := p, f.Type
		if t.Kind() == reflect.Slice {
			inner, t = p.Items, t.Elem()
		}
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || t == sectionType || isText(reflect.New(t).Elem()) {
			continue
		}
		if f.Type.Kind() == reflect.Struct {
			t = value.Type()
		} else {
			value = reflect.New(t).Elem()
			if def, ok := elements[t]; ok {
				value = reflect.ValueOf(def)
			}
		}
		if t != secretType {
			allowNull(p)
		}
		if err := annotate(inner, value, elements); err != nil {
			return err
		}
	}
	return nil
}

// refuseNull undoes what jsonschema-go says of slices and pointers: a key that
// is given has a value.
func refuseNull(s *jsonschema.Schema) {
	s.Types = slices.DeleteFunc(s.Types, func(t string) bool { return t == "null" })
	if len(s.Types) == 1 {
		s.Type, s.Types = s.Types[0], nil
	}
}

// allowNull lets a section stand without a value, with everything in it
// commented out.
func allowNull(s *jsonschema.Schema) {
	if s.Type != "" {
		s.Types, s.Type = []string{s.Type, "null"}, ""
	}
}

func annotateTag(s *jsonschema.Schema, f reflect.StructField) {
	if enum := f.Tag.Get("enum"); enum != "" {
		for v := range strings.SplitSeq(enum, ",") {
			s.Enum = append(s.Enum, v)
		}
	}
	lo, hi, ok := strings.Cut(f.Tag.Get("range"), "..")
	if !ok {
		return
	}
	if s.Type == "string" { // a duration or size: JSON Schema cannot compare them
		s.Description += " From " + lo + " to " + hi + "."
		return
	}
	if lo != "" {
		s.Minimum = new(parseBound(lo, f.Type))
	}
	if hi != "" {
		s.Maximum = new(parseBound(hi, f.Type))
	}
}

// setDefaultValue writes a default into the schema as it would stand in the
// file.
func setDefaultValue(s *jsonschema.Schema, f reflect.StructField, v reflect.Value) error {
	if required(f) || v.IsZero() || v.Kind() == reflect.Pointer {
		return nil
	}
	if v.Kind() == reflect.Struct && !isText(reflect.New(v.Type()).Elem()) {
		return nil
	}
	plain := v.Interface()
	if d, ok := plain.(time.Duration); ok {
		plain = FormatDuration(d)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(plain); err != nil {
		return err
	}
	s.Default = json.RawMessage(bytes.TrimSpace(out.Bytes()))
	return nil
}
