package config

import (
	"bytes"
	"slices"

	"go.yaml.in/yaml/v4"
)

// Section is a part of the file that is kept in a foreign form: Cirun's.
type Section struct {
	source []byte
}

// Source gives the section as the text of a file of its own, for the parser of
// its form. Lines and columns are those of the configuration file: what stands
// around the section is blank (except in a file that is one {…}). A list keeps its key ("runners: [...]"), as
// .cirun.yml has it; keys and values stand at the top, as in .access.yml.
func (s *Section) Source() []byte {
	if s == nil {
		return nil
	}
	return slices.Clone(s.source)
}

// Given reports whether the file has the section.
func (s *Section) Given() bool { return s != nil }

// followers gives for each value of a mapping where the next key begins.
func followers(root *yaml.Node) map[*yaml.Node]place {
	next := map[*yaml.Node]place{}
	if root.Kind != yaml.MappingNode {
		return next
	}
	for i := 1; i+1 < len(root.Content); i += 2 {
		next[root.Content[i]] = at(root.Content[i+1])
	}
	return next
}

// section cuts a top-level value out of the file.
func (d *decoder) section(n *yaml.Node, path string) Section {
	begin := at(n)
	switch n.Kind {
	case yaml.SequenceNode:
		begin = d.keyPlace(path, begin)
	case yaml.MappingNode:
	default:
		d.wrongType(n, sectionType, path)
	}
	d.refuseAliases(n, path)
	if d.flow {
		return Section{source: rewritten(n, path)}
	}
	end, ok := d.nextKey[n]
	if !ok {
		end = place{1 << 30, 1}
	}
	return Section{source: blankOutside(d.data, begin, end)}
}

// rewritten gives a section of a file whose top is written as {…}, where what
// surrounds it cannot be cut away. Lines are lost.
func rewritten(n *yaml.Node, path string) []byte {
	var v any = n
	if n.Kind == yaml.SequenceNode {
		v = map[string]*yaml.Node{path: n}
	}
	out, err := yaml.Dump(v)
	if err != nil {
		return nil // cannot happen for a node that was just read
	}
	return out
}

// keyPlace finds the key of a top-level value.
func (d *decoder) keyPlace(path string, fallback place) place {
	if p, ok := d.keys[path]; ok {
		return p
	}
	return fallback
}

func (d *decoder) refuseAliases(n *yaml.Node, path string) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.noAlias(n, path)
		return
	}
	for _, c := range n.Content {
		d.refuseAliases(c, path)
	}
}

// blankOutside leaves of everything before begin and from end on only the line
// breaks, and of the line of begin its indentation. Columns count characters.
func blankOutside(data []byte, begin, end place) []byte {
	var out bytes.Buffer
	line, column := 1, 1
	for _, r := range string(data) {
		before := line < begin.line || line == begin.line && column < begin.column
		after := line > end.line || line == end.line && column >= end.column
		switch {
		case r == '\n' || r == '\r':
			out.WriteRune(r)
		case before && line == begin.line:
			out.WriteByte(' ')
		case before:
		case !after:
			out.WriteRune(r)
		}
		column++
		if r == '\n' {
			line, column = line+1, 1
		}
	}
	return out.Bytes()
}
