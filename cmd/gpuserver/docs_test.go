package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"gpuserver/internal/config"
)

const repository = "../.."

// document is one Markdown file, taken apart as far as these tests need it.
type document struct {
	path  string // from the repository's root
	prose string // without fenced blocks
	code  []string
	spans []string // inline code
}

var (
	spanRE    = regexp.MustCompile("`([^`\n]+(?:\n[^`\n]+)?)`")
	linkRE    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headingRE = regexp.MustCompile(`(?m)^#{1,6} +(.+)$`)
	makeRE    = regexp.MustCompile(`^make ([a-z][a-z-]*)( |$)`)
	targetRE  = regexp.MustCompile(`(?m)^([a-z][a-z-]*):.*## `)
)

// documents gives all Markdown files of the repository.
func documents(t *testing.T) []document {
	t.Helper()
	var out []document
	err := filepath.WalkDir(repository, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && strings.HasPrefix(e.Name(), ".git") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		out = append(out, parseDocument(strings.TrimPrefix(path, repository+"/"), string(data)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func parseDocument(path, text string) document {
	d := document{path: path}
	var prose strings.Builder
	fenced := false
	text = strings.ReplaceAll(text, "\\\n", " ") // a command that goes on in the next line
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
			continue
		}
		if fenced {
			d.code = append(d.code, strings.TrimRight(line, "\n"))
		} else {
			prose.WriteString(line)
		}
	}
	d.prose = prose.String()
	for _, m := range spanRE.FindAllStringSubmatch(d.prose, -1) {
		d.spans = append(d.spans, strings.ReplaceAll(m[1], "\n", " "))
	}
	return d
}

// anchors gives the names under which GitHub reaches a document's headings.
func (d document) anchors() []string {
	var out []string
	for _, m := range headingRE.FindAllStringSubmatch(d.prose, -1) {
		text := strings.ToLower(strings.NewReplacer("`", "", "*", "").Replace(m[1]))
		text = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(text, "")
		out = append(out, strings.ReplaceAll(text, " ", "-"))
	}
	return out
}

// lines gives what a reader would type: code lines and inline code, without
// prompts and what the shell takes for itself.
func (d document) lines() []string {
	var out []string
	for _, l := range slices.Concat(d.code, d.spans) {
		l = strings.TrimPrefix(strings.TrimSpace(l), "$ ")
		for _, prefix := range []string{"sudo ", "/usr/local/bin/", "bin/"} {
			l = strings.TrimPrefix(l, prefix)
		}
		l, _, _ = strings.Cut(l, " #")
		l, _, _ = strings.Cut(l, " | ")
		l, _, _ = strings.Cut(l, " > ")
		out = append(out, strings.TrimSpace(l))
	}
	return out
}

// Links within the repository lead somewhere, to a heading, too.
func TestDocumentsLinkToWhatIsThere(t *testing.T) {
	docs := documents(t)
	byPath := map[string]document{}
	for _, d := range docs {
		byPath[d.path] = d
	}
	links := 0
	for _, d := range docs {
		for _, m := range linkRE.FindAllStringSubmatch(d.prose, -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			links++
			path, anchor, _ := strings.Cut(m[1], "#")
			target := d.path
			if path != "" {
				target = filepath.Join(filepath.Dir(d.path), path)
			}
			if _, err := os.Stat(filepath.Join(repository, target)); err != nil {
				t.Errorf("%s links to %s, which is not there", d.path, m[1])
				continue
			}
			if anchor != "" && !slices.Contains(byPath[target].anchors(), anchor) {
				t.Errorf("%s links to %s: %s has no such heading", d.path, m[1], target)
			}
		}
	}
	if links < 10 {
		t.Errorf("only %d links were found in %d documents", links, len(docs))
	}
}

// What documents tell to type is understood: commands, flags and make's targets.
func TestDocumentsNameWhatThereIs(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(repository, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	targets := []string{"help"}
	for _, m := range targetRE.FindAllStringSubmatch(string(makefile), -1) {
		targets = append(targets, m[1])
	}
	seen := 0
	for _, d := range documents(t) {
		for _, l := range d.lines() {
			if m := makeRE.FindStringSubmatch(l); m != nil {
				seen++
				if !slices.Contains(targets, m[1]) {
					t.Errorf("%s: %q: the Makefile has no target %s", d.path, l, m[1])
				}
			}
			if args, ok := strings.CutPrefix(l, "gpuserver "); ok {
				seen++
				if err := understood(words(args)); err != "" {
					t.Errorf("%s: %q: %s", d.path, l, err)
				}
			}
		}
	}
	if seen < 40 {
		t.Errorf("only %d commands were found", seen)
	}
}

// understood says what of a command line the program does not know, "" if
// nothing. Words in capitals stand for something.
func understood(args []string) string {
	cmd, rest, err := newRootCommand().Find(args)
	if err != nil {
		return err.Error()
	}
	if cmd.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return "there is no sub-command " + rest[0]
	}
	for _, w := range rest {
		if w == "--" {
			break
		}
		if name, ok := strings.CutPrefix(w, "--"); ok {
			name, _, _ = strings.Cut(name, "=")
			if !hasFlag(cmd, name) {
				return cmd.CommandPath() + " has no flag --" + name
			}
		}
	}
	return ""
}

func hasFlag(cmd *cobra.Command, name string) bool {
	return name == "help" || cmd.Flags().Lookup(name) != nil || cmd.InheritedFlags().Lookup(name) != nil
}

// words splits a line at spaces; what is quoted stays together.
func words(line string) []string {
	var out []string
	for _, m := range regexp.MustCompile(`"[^"]*"|'[^']*'|\S+`).FindAllString(line, -1) {
		out = append(out, strings.Trim(m, `"'`))
	}
	return out
}

// The check itself tells apart what there is and what there is not.
func TestDocumentChecksCanFail(t *testing.T) {
	for _, tt := range []struct {
		line string
		good bool
	}{
		{"status", true},
		{"job explain 42", true},
		{"cirun lint --config FILE DIR", true},
		{"run --timeout 5m -- nvidia-smi --query", true},
		{"job explian 42", false},
		{"nonsense", false},
		{"status --nonsense", false},
		{"run --nonsense -- true", false},
	} {
		if got := understood(words(tt.line)); (got == "") != tt.good {
			t.Errorf("%q: %q", tt.line, got)
		}
	}
	d := parseDocument("x.md", "# A `b` c!\n[l](y.md#z)\n```sh\nsudo gpuserver job list | less\n```\nsay `make\nnothing`.\n")
	if got := d.anchors(); !slices.Equal(got, []string{"a-b-c"}) {
		t.Errorf("anchors %q", got)
	}
	if got := d.lines(); !slices.Equal(got, []string{"gpuserver job list", "b", "make nothing"}) {
		t.Errorf("lines %q", got)
	}
}

// TestExampleOfTwoClouds reads the example of a configuration with this machine and an
// OpenStack, as its reader would copy it.
func TestExampleOfTwoClouds(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository, "docs", "openstack.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "## Beside VMs of this machine")
	_, rest, _ = strings.Cut(rest, "```yaml\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("the example is not there")
	}
	cfg, err := config.Parse([]byte(example), "example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Clouds) != 2 || cfg.Clouds[0].Type != "libvirt" || cfg.Clouds[1].Type != "openstack" {
		t.Errorf("its clouds: %+v", cfg.Clouds)
	}
	var got []string
	for _, e := range places(cfg) {
		if e.Flavor == "gpu_large" {
			got = append(got, e.Cloud)
		}
	}
	if !slices.Equal(got, []string{"local", "stack"}) {
		t.Errorf("gpu_large may run on %q", got)
	}
}

// TestChecklistNamesTests compares the checklist of claims with the tests that there are.
func TestChecklistNamesTests(t *testing.T) {
	there := map[string]bool{}
	err := filepath.WalkDir(repository, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(text), -1) {
			there[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(repository, "docs", "checklists", "openstack.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(text), -1)
	if len(names) < 20 {
		t.Errorf("the checklist names %d tests only", len(names))
	}
	for _, m := range names {
		if !there[m[1]] {
			t.Errorf("the checklist names %s, and there is no such test", m[1])
		}
	}
}
