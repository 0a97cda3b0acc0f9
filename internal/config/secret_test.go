package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"gpuserver"
)

const hidden = "hunter2-hunter2"

func TestSecretIsRead(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "s"), []byte(hidden+"\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	t.Setenv("GPUSERVER_TEST_SECRET", hidden)
	for _, s := range []Secret{{File: Path(filepath.Join(dir, "s"))}, {Env: "GPUSERVER_TEST_SECRET"}, {Credential: "s"}} {
		got, err := s.Read()
		if err != nil || got.Text() != hidden || string(got.Bytes()) != hidden {
			t.Errorf("%s: %q, %v", s, got.Text(), err)
		}
	}
}

func TestSecretThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": " \n", "large": strings.Repeat("x", maxSecret+1)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	for _, s := range []Secret{
		{},
		{File: Path(filepath.Join(dir, "none"))},
		{File: Path(filepath.Join(dir, "empty"))},
		{File: Path(filepath.Join(dir, "large"))},
		{Env: "GPUSERVER_TEST_NOT_SET"},
		{Credential: "s"},
	} {
		_, err := s.Read()
		if gpuserver.KindOf(err) != gpuserver.KindInvalid || !strings.Contains(gpuserver.PublicText(err), s.String()) {
			t.Errorf("%s: the error does not name the place: %v", s, err)
		}
	}
}

// However a secret that was read is printed, it does not show.
func TestSecretIsNeverPrinted(t *testing.T) {
	r := Revealed{[]byte(hidden)}
	wrapped := struct {
		Key  Revealed
		More *Revealed
	}{r, &r}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o"} {
		fmt.Fprintf(&out, verb+" "+verb+"\n", r, wrapped)
	}
	fmt.Fprintln(&out, &r, r)
	j, err := json.Marshal(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	y, err := yaml.Dump(map[string]any{"a": r})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(j)
	out.Write(y)
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("m", "key", r, "in", wrapped)
	}
	for _, form := range []string{hidden, fmt.Sprintf("%x", hidden), fmt.Sprintf("%X", hidden), fmt.Sprint([]byte(hidden))} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the secret shows as %s in:\n%s", form, out.String())
		}
	}
	if !strings.Contains(out.String(), redacted) {
		t.Error("nothing says that something was hidden")
	}
}

// A secret that was written into the file itself, at any place where one
// belongs, is refused and not repeated in the message.
func TestSecretInTheFileIsNotRepeated(t *testing.T) {
	for _, where := range []string{
		"private_key: " + hidden,
		"private_key: [" + hidden + "]",
		"private_key: {file: k}\n    webhook_secrets: " + hidden,
		"private_key: {file: k}\n    webhook_secrets: [" + hidden + "]",
	} {
		file := with("forges:\n  - name: github\n    type: github\n    app_id: 1\n    " + where + "\n")
		_, err := Parse([]byte(file), "c.yaml")
		if err == nil || strings.Contains(err.Error(), hidden) {
			t.Errorf("%s: %v", where, err)
		}
	}
	_, err := Parse([]byte(with("api: {tokens: [{name: a, role: admin, hash: "+hidden+"}]}\n")), "c.yaml")
	if err == nil || strings.Contains(err.Error(), hidden) {
		t.Errorf("hash: %v", err)
	}
}

func TestCheckSecretsNamesEachPlace(t *testing.T) {
	t.Setenv("GPUSERVER_TEST_SECRET", hidden)
	file := with("forges:\n  - name: github\n    type: github\n    app_id: 1\n    private_key: {file: none}\n" +
		"    webhook_secrets: [{env: GPUSERVER_TEST_SECRET}, {env: GPUSERVER_TEST_NOT_SET}]\n")
	c, err := Parse([]byte(file), "/nowhere/c.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got := lines(t, c.CheckSecrets())
	if len(got) != 2 || !strings.HasPrefix(got[0], "11:18: ") || !strings.HasPrefix(got[1], "12:53: ") {
		t.Errorf("problems: %q", got)
	}
}
