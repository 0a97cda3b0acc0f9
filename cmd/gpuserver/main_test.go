package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// run runs the program as main does.
func run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	m := &Main{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs}
	status = m.Run(t.Context())
	return status, out.String(), errs.String()
}

// walk visits each of our commands; completion and help are cobra's own.
func walk(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, c := range cmd.Commands() {
		if c.Name() != "completion" && c.Name() != "help" {
			walk(c, visit)
		}
	}
}

// Help reads like a manual page: what it is for, an example, each flag with
// what it does; and arguments that are not understood are refused.
func TestEveryCommandIsDocumented(t *testing.T) {
	seen := 0
	walk(newRootCommand(), func(cmd *cobra.Command) {
		seen++
		name := cmd.CommandPath()
		if r := []rune(cmd.Short); len(r) < 10 || len(r) > 72 || !unicode.IsUpper(r[0]) || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: Short is to be one line of 10 to 72 characters that begins with a capital and has no full stop: %q", name, cmd.Short)
		}
		if len(cmd.Long) < 80 || cmd.Long == cmd.Short {
			t.Errorf("%s: Long is to say what it is for, what it does and what it prints", name)
		}
		for line := range strings.Lines(cmd.Long) {
			if len([]rune(strings.TrimSpace(line))) > 84 {
				t.Errorf("%s: Long has a line of more than 84 characters: %q", name, line)
			}
		}
		for line := range strings.Lines(cmd.Example) {
			if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: an example is not indented by two spaces: %q", name, line)
			}
		}
		if !regexp.MustCompile(`(^|\n)  .*`+name).MatchString(cmd.Example) && cmd.HasParent() {
			t.Errorf("%s: Example does not show it", name)
		}
		if cmd.Args == nil {
			t.Errorf("%s: Args is to check the arguments", name)
		}
		if cmd.RunE == nil {
			t.Errorf("%s: RunE is to be set, so that errors get an exit status", name)
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && len(f.Usage) < 10 {
				t.Errorf("%s: --%s does not say what it does", name, f.Name)
			}
		})
	})
	if seen < 5 {
		t.Errorf("only %d commands were seen", seen)
	}
}

func TestHelpOfEveryCommand(t *testing.T) {
	walk(newRootCommand(), func(cmd *cobra.Command) {
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		status, out, errs := run(t, args...)
		if status != 0 || errs != "" || !strings.Contains(out, "Usage:") || !strings.Contains(out, "Examples:") {
			t.Errorf("%s --help: status %d, stderr %q, stdout %q", cmd.CommandPath(), status, errs, out)
		}
	})
}

func TestMistakesInArguments(t *testing.T) {
	for _, tt := range []struct {
		args []string
		say  string
	}{
		{[]string{"nonsense"}, `unknown command "nonsense" for "gpuserver"`},
		{[]string{"config", "nonsense"}, `unknown command "nonsense" for "gpuserver config"`},
		{[]string{"--nonsense"}, "unknown flag: --nonsense"},
		{[]string{"config", "check", "a", "b"}, "accepts at most 1 arg(s), received 2"},
		{[]string{"version", "--output", "xml"}, `unknown format "xml"; it is table or json`},
		{[]string{"version", "now"}, `unknown command "now"`},
	} {
		status, out, errs := run(t, tt.args...)
		if status != exitUsage || out != "" || !strings.Contains(errs, tt.say) || !strings.Contains(errs, "--help'") {
			t.Errorf("%q: status %d, stdout %q, stderr %q", tt.args, status, out, errs)
		}
	}
}

func TestCompletion(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"__complete", "con"}, "config\t"},
		{[]string{"__complete", "config", "ch"}, "check\t"},
		{[]string{"__complete", "version", "--output", ""}, "json\n"},
		{[]string{"completion", "bash"}, "__start_gpuserver"},
	} {
		status, out, _ := run(t, tt.args...)
		if status != 0 || !strings.Contains(out, tt.want) {
			t.Errorf("%q: status %d, %q does not contain %q", tt.args, status, out, tt.want)
		}
	}
}

func TestVersion(t *testing.T) {
	status, out, errs := run(t, "version", "--output", "json")
	var v versionInfo
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != 0 || errs != "" || v.Version == "" || v.Go == "" {
		t.Errorf("status %d, %v: %q %q", status, err, out, errs)
	}
	if status, out, _ := run(t, "version"); status != 0 || !strings.HasPrefix(out, "gpuserver "+v.Version) {
		t.Errorf("status %d: %q", status, out)
	}
}

func TestConfigSampleCanBeChecked(t *testing.T) {
	status, sample, errs := run(t, "config", "sample")
	if status != 0 || errs != "" {
		t.Fatalf("sample: status %d, %q", status, errs)
	}
	path := filepath.Join(t.TempDir(), "c.yaml")
	write(t, path, sample)
	status, out, errs := run(t, "config", "check", path)
	if status != 0 || out != "" || !strings.HasPrefix(errs, "note: flavors: ") || strings.Count(errs, "\n") != 1 {
		t.Errorf("status %d, stdout %q, stderr %q", status, out, errs)
	}
	// Its secrets are not there.
	status, out, errs = run(t, "config", "check", "--secrets", path)
	if status != exitUsage || !strings.Contains(out, "github-app.pem") || errs != "" {
		t.Errorf("--secrets: status %d, stdout %q, stderr %q", status, out, errs)
	}
}

func TestConfigCheckPrintsOneMistakeALine(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "c.yaml")
	write(t, path, "sever: {}\nclouds: 3\n")
	status, out, errs := run(t, "config", "check", path)
	form := regexp.MustCompile(`^` + regexp.QuoteMeta(path) + `:[1-9][0-9]*:[1-9][0-9]*: \S`)
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	for _, line := range lines {
		if !form.MatchString(line) {
			t.Errorf("bad line %q", line)
		}
	}
	if status != exitUsage || errs != "" || len(lines) < 2 {
		t.Errorf("status %d, stdout %q, stderr %q", status, out, errs)
	}
	missing := filepath.Join(dir, "none.yaml")
	status, out, _ = run(t, "config", "check", missing)
	if status != exitUsage || !strings.HasPrefix(out, missing+":1:1: cannot be read: ") {
		t.Errorf("no such file: status %d, %q", status, out)
	}
}

func TestConfigSchemaIsOneDocument(t *testing.T) {
	status, out, errs := run(t, "config", "schema")
	var v map[string]any
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != 0 || errs != "" || v["$schema"] == nil {
		t.Errorf("status %d, %v, stderr %q", status, err, errs)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
