package cirun

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"gpuserver"
)

// Bounds of what is read. A real organisation's files are about 15 KiB.
const (
	MaxFileSize = 1 << 20 // bytes; larger files are refused
	maxNodes    = 200_000 // YAML nodes once aliases are expanded
	maxDepth    = 40      // nesting once aliases are expanded
	maxRunners  = 2000    // per file; also policies and grants
	maxItems    = 2000    // per list
	maxText     = 4096    // bytes of one name or value
)

// reader reads one file and collects what is wrong in it.
type reader struct {
	path     string
	findings []Finding
}

func (r *reader) find(line int, rule Rule, format string, args ...any) {
	text := strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
	r.findings = append(r.findings, Finding{Path: r.path, Line: max(line, 1), Rule: rule, Text: text})
}

// fail makes the error for a file of which nothing can be used, together with
// its finding.
func (r *reader) fail(line int, text string, cause error) error {
	r.find(line, RuleSyntax, "%s", text)
	return &gpuserver.Error{
		Kind: gpuserver.KindInvalid, Op: "read " + r.path, Err: cause,
		Public: fmt.Sprintf("%s:%d: %s", r.path, max(line, 1), text),
	}
}

// root parses the first document and gives its mapping; nil is an empty file.
func (r *reader) root(data []byte) (*yaml.Node, error) {
	if len(data) > MaxFileSize {
		return nil, r.fail(1, fmt.Sprintf("the file has %d bytes; at most %d are read", len(data), MaxFileSize), nil)
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return nil, r.fail(1, "the file is not YAML: "+err.Error(), err)
	}
	var doc yaml.Node
	if err := loader.Load(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, r.fail(errorLine(err), "the file is not YAML: "+errorText(err), err)
	}
	budget := maxNodes
	if line, ok := measure(&doc, 0, &budget); !ok {
		return nil, r.fail(line, "the file is nested too deeply, or its aliases expand to too much", nil)
	}
	var more yaml.Node
	if err := loader.Load(&more); err == nil {
		r.find(more.Line, RuleDocuments, "a second document starts here; only the first is used")
	} else if !errors.Is(err, io.EOF) {
		return nil, r.fail(errorLine(err), "the file is not YAML: "+errorText(err), err)
	}
	n := &doc
	if n.Kind == yaml.DocumentNode {
		if len(n.Content) == 0 {
			return nil, nil
		}
		n = n.Content[0]
	}
	if n = deref(n); isNull(n) {
		return nil, nil
	}
	if n.Kind != yaml.MappingNode {
		return nil, r.fail(n.Line, "the file has to be a mapping (\"key: value\" lines), not "+kindName(n), nil)
	}
	return n, nil
}

// measure walks n with aliases expanded and reports whether that ends within
// the budget; all later reading is bounded by it. The line is where it did not.
func measure(n *yaml.Node, depth int, budget *int) (int, bool) {
	*budget--
	if *budget < 0 || depth > maxDepth {
		return n.Line, false
	}
	if n.Kind == yaml.AliasNode {
		if n.Alias == nil {
			return n.Line, false
		}
		return measure(n.Alias, depth+1, budget)
	}
	for _, c := range n.Content {
		if line, ok := measure(c, depth+1, budget); !ok {
			return line, false
		}
	}
	return 0, true
}

func errorLine(err error) int {
	if e, ok := errors.AsType[*yaml.LoadError](err); ok {
		return max(e.Mark.Line, 1)
	}
	return 1
}

func errorText(err error) string {
	if e, ok := errors.AsType[*yaml.LoadError](err); ok && e.Message != "" {
		return e.Message
	}
	return err.Error()
}

func deref(n *yaml.Node) *yaml.Node {
	for range maxDepth {
		if n.Kind != yaml.AliasNode || n.Alias == nil {
			return n
		}
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	return n == nil || n.Kind == 0 || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

func kindName(n *yaml.Node) string {
	switch {
	case isNull(n):
		return "nothing"
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	}
	return "the single value " + strconv.Quote(clip(n.Value))
}

// clip bounds a foreign text within a sentence; names of real images have 200
// bytes, and have to be copied from there.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// pair is one key of a mapping.
type pair struct {
	key   string
	line  int
	value *yaml.Node
}

// pairs gives the keys of a mapping with YAML's merge keys ("<<") applied. Of
// a key that stands twice the last one counts; dup reports whether there was
// one.
func (r *reader) pairs(n *yaml.Node) (ps []pair, dup bool) {
	at := map[string]int{}
	merged := map[string]bool{}
	set := func(p pair, fromMerge bool) {
		i, ok := at[p.key]
		switch {
		case !ok:
			at[p.key] = len(ps)
			ps = append(ps, p)
		case !fromMerge:
			if !merged[p.key] {
				dup = true
				r.find(p.line, RuleDuplicateKey, "the key %q stands twice; the first is on line %d", clip(p.key), ps[i].line)
			}
			ps[i] = p
		}
		merged[p.key] = fromMerge && !ok
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], deref(n.Content[i+1])
		if k.Kind == yaml.ScalarNode && k.Value == "<<" {
			for _, m := range mergeSources(v) {
				for j := 0; j+1 < len(m.Content); j += 2 {
					mk := deref(m.Content[j])
					set(pair{mk.Value, mk.Line, deref(m.Content[j+1])}, true)
				}
			}
			continue
		}
		k = deref(k)
		set(pair{k.Value, k.Line, v}, false)
	}
	return ps, dup
}

func mergeSources(v *yaml.Node) []*yaml.Node {
	if v.Kind == yaml.MappingNode {
		return []*yaml.Node{v}
	}
	var out []*yaml.Node
	if v.Kind == yaml.SequenceNode {
		for _, c := range v.Content {
			if c = deref(c); c.Kind == yaml.MappingNode {
				out = append(out, c)
			}
		}
	}
	return out
}

// text reads a single value as text; numbers count as their own spelling.
func (r *reader) text(what string, n *yaml.Node) (string, bool) {
	if n.Kind != yaml.ScalarNode || isNull(n) {
		r.find(n.Line, RuleWrongType, "%s has to be a text, not %s", what, kindName(n))
		return "", false
	}
	if len(n.Value) > maxText {
		r.find(n.Line, RuleWrongType, "%s is longer than %d bytes", what, maxText)
		return "", false
	}
	return strings.TrimSpace(n.Value), true
}

// item is one text of a list, with its line.
type item struct {
	text string
	line int
}

// texts reads a list of texts; a single text is a list of one. Items of another
// type are findings and left out; ok is false then and when n is no list.
func (r *reader) texts(what string, n *yaml.Node) (items []item, ok bool) {
	if n.Kind == yaml.ScalarNode && !isNull(n) {
		s, ok := r.text(what, n)
		return []item{{s, n.Line}}, ok
	}
	nodes, ok := r.list(what, n)
	for _, c := range nodes {
		s, good := r.text("an item of "+what, c)
		if !good {
			ok = false
			continue
		}
		items = append(items, item{s, c.Line})
	}
	return items, ok
}

// list gives the items of a list. Nothing at all (null) is an empty list.
func (r *reader) list(what string, n *yaml.Node) ([]*yaml.Node, bool) {
	if isNull(n) {
		return nil, true
	}
	if n.Kind != yaml.SequenceNode {
		r.find(n.Line, RuleWrongType, "%s has to be a list, not %s", what, kindName(n))
		return nil, false
	}
	if len(n.Content) > maxItems {
		r.find(n.Line, RuleWrongType, "%s has %d items; at most %d are used", what, len(n.Content), maxItems)
		n = &yaml.Node{Kind: n.Kind, Line: n.Line, Content: n.Content[:maxItems]}
	}
	out := make([]*yaml.Node, len(n.Content))
	for i, c := range n.Content {
		out[i] = deref(c)
	}
	return out, true
}

// truth reads a boolean, YAML 1.1's spellings included.
func (r *reader) truth(what string, n *yaml.Node) (value, ok bool) {
	if n.Kind == yaml.ScalarNode {
		switch strings.ToLower(n.Value) {
		case "true", "yes", "on":
			return true, true
		case "false", "no", "off":
			return false, true
		}
	}
	r.find(n.Line, RuleWrongType, "%s has to be true or false, not %s", what, kindName(n))
	return false, false
}

// number reads a whole number from lo to hi.
func (r *reader) number(what string, rule Rule, n *yaml.Node, lo, hi int) (int, bool) {
	if n.Kind == yaml.ScalarNode {
		if v, err := strconv.Atoi(n.Value); err == nil && v >= lo && v <= hi {
			return v, true
		}
	}
	r.find(n.Line, rule, "%s has to be a whole number from %d to %d, not %s", what, lo, hi, kindName(n))
	return 0, false
}

// value turns a node into plain Go values, for what is passed through. The
// budget of measure bounds it.
func value(n *yaml.Node) any {
	n = deref(n)
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for _, p := range first((&reader{}).pairs(n)) {
			m[p.key] = value(p.value)
		}
		return m
	case yaml.SequenceNode:
		l := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			l = append(l, value(c))
		}
		return l
	}
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true")
	case "!!int":
		if v, err := strconv.ParseInt(n.Value, 0, 64); err == nil {
			return v
		}
	case "!!float":
		if v, err := strconv.ParseFloat(n.Value, 64); err == nil {
			return v
		}
	}
	return n.Value
}

func first[A, B any](a A, _ B) A { return a }

// envName is what a POSIX shell takes as a variable's name.
var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
