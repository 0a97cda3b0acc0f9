package guest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"

	"gpuserver"
)

func samplePayload() Payload {
	return Payload{
		Protocol: Protocol, VM: "gs-k3-12", Server: "http://192.168.77.1:8441", Token: "secret", JITConfig: "eyJhIjoiYiJ9",
		Repo: "octo-org/hello", RunID: 12, RunAttempt: 2, Env: map[string]string{"A": "b <c> & \"d\""},
		SetupInfo: []gpuserver.SetupInfo{{Group: "g", Detail: "d\ne"}}, MTU: 1450, ReserveMiB: 300, Grace: time.Minute, BeatEvery: time.Second,
	}
}

func TestUserDataRoundTrip(t *testing.T) {
	want := samplePayload()
	b, err := UserData(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseUserData(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestUserDataIsCloudConfig reads it as cloud-init does, as YAML.
func TestUserDataIsCloudConfig(t *testing.T) {
	b, err := UserData(samplePayload())
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		WriteFiles []struct{ Path, Content, Permissions string } `yaml:"write_files"`
		RunCmd     [][]string                                    `yaml:"runcmd"`
	}
	if err := yaml.Unmarshal(b, &config); err != nil {
		t.Fatal(err)
	}
	if len(config.WriteFiles) != 1 || config.WriteFiles[0].Permissions != "0600" ||
		config.WriteFiles[0].Content != "A='b <c> & \"d\"'\nACTIONS_RUNNER_INPUT_JITCONFIG='eyJhIjoiYiJ9'\n" {
		t.Errorf("write_files is %+v", config.WriteFiles)
	}
	for _, c := range config.RunCmd {
		if strings.Contains(strings.Join(c, " "), "eyJhIjoiYiJ9") {
			t.Error("the JIT configuration is on a command line")
		}
	}
	p := samplePayload()
	p.JITConfig, p.Command = "", &gpuserver.Command{Args: []string{"true"}}
	if b, err = UserData(p); err != nil || strings.Contains(string(b), "runcmd") {
		t.Errorf("a command's user data starts a runner (%v): %s", err, b)
	}
}

// stockHouse is what cloud-init leaves behind of p in an image, in a folder, with
// stand-ins for what needs root. The runner writes down what it finds.
func stockHouse(t *testing.T, p Payload) (root string) {
	t.Helper()
	root = t.TempDir()
	data, err := UserData(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range stockFiles(p) {
		stockFile(t, root, f.Path, f.Content)
	}
	for _, name := range []string{
		"var/lib/cloud/instance/user-data.txt", "var/lib/cloud/instance/user-data.txt.i", "var/lib/cloud/instance/cloud-config.txt",
		"var/lib/cloud/instance/obj.pkl", "run/cloud-init/instance-data-sensitive.json", "run/cloud-init/combined-cloud-config.json",
	} {
		stockFile(t, root, name, string(data))
	}
	stockFile(t, root, "sys/class/block/sr0/device/delete", "")
	for name, script := range map[string]string{
		"blkid": `[ "$*" = "-L config-2" ] && echo /dev/sr0`, "id": `[ "$1" != -g ] || echo 77`, "useradd": "exit 1", "chown": "exit 0",
		"getent": "echo runner:x:77:77::/home/of/runner:/bin/bash", "poweroff": `echo off >>ran; touch "$(dirname "$0")/../off"`,
		"setpriv": `echo "$@" >privileges; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"`,
	} {
		stockFile(t, root, "bin/"+name, "#!/bin/sh\n"+script+"\n")
	}
	stockFile(t, root, "opt/runner/run.sh", "#!/bin/sh\nenv -0 >env; cat \""+root+"/sys/class/block/sr0/device/delete\" >ran\n"+
		"grep -rl \"$"+jitEnv+"\" \""+root+"\" --exclude=env >leaks\n")
	return root
}

func stockFile(t *testing.T, root, name, content string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func runStock(t *testing.T, root string, p Payload) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", stockStart(root, p.Gate))
	cmd.Dir = root
	cmd.Env = []string{"PATH=" + filepath.Join(root, "bin") + ":" + os.Getenv("PATH"), "HOME=/root"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestStockImage carries out what cloud-init would in an image without our agent.
func TestStockImage(t *testing.T) {
	p := samplePayload()
	p.Env = map[string]string{"QUOTES": `a'b"c $HOME`, "LINES": "x\ny"}
	root := stockHouse(t, p)
	runStock(t, root, p)
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, "opt/runner", name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	if got := read("ran"); got != "1\noff\n" {
		t.Errorf("the config drive and the machine's end: %q", got)
	}
	if got := read("privileges"); got != "--reuid=runner --regid=77 --init-groups ./run.sh\n" {
		t.Errorf("started with %q", got)
	}
	if got := read("leaks"); got != "" {
		t.Errorf("the secret is in %s", got)
	}
	env := strings.Split(read("env"), "\x00")
	for _, want := range []string{
		jitEnv + "=" + p.JITConfig, `QUOTES=a'b"c $HOME`, "LINES=x\ny", "HOME=/home/of/runner", "USER=runner", "LOGNAME=runner", "SHELL=/bin/bash",
	} {
		if !slices.Contains(env, want) {
			t.Errorf("the runner's environment lacks %q: %q", want, env)
		}
	}
}

// TestStockImageWithAgent: the agent starts the runner and takes the drive; what
// cloud-init stored before it came goes all the same.
func TestStockImageWithAgent(t *testing.T) {
	p := samplePayload()
	root := stockHouse(t, p)
	stockFile(t, root, AgentPath, "")
	runStock(t, root, p)
	if _, err := os.Stat(filepath.Join(root, "opt/runner/env")); err == nil {
		t.Error("the runner was started beside the agent's")
	}
	if out, _ := exec.CommandContext(t.Context(), "grep", "-rl", p.JITConfig, root).Output(); len(out) > 0 { // status 1: none
		t.Errorf("the secret is in %s", out)
	}
	if b, err := os.ReadFile(filepath.Join(root, "sys/class/block/sr0/device/delete")); err != nil || len(b) > 0 {
		t.Errorf("the drive was taken away before the agent read it (%v)", err)
	}
}

func TestUserDataRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Payload){
		"no VM":          func(p *Payload) { p.VM = "" },
		"VM with a dot":  func(p *Payload) { p.VM = "a.b" },
		"no server":      func(p *Payload) { p.Server = "192.168.77.1:8441" },
		"ftp":            func(p *Payload) { p.Server = "ftp://x" },
		"no token":       func(p *Payload) { p.Token = "" },
		"nothing to run": func(p *Payload) { p.JITConfig = "" },
		"both":           func(p *Payload) { p.Command = &gpuserver.Command{Args: []string{"x"}} },
		"no program":     func(p *Payload) { p.JITConfig, p.Command = "", &gpuserver.Command{} },
		"JIT with quote": func(p *Payload) { p.JITConfig = "a'; reboot; '" },
		"MTU":            func(p *Payload) { p.MTU = 100 },
		"grace":          func(p *Payload) { p.Grace = -1 },
		"env name":       func(p *Payload) { p.Env = map[string]string{"A B": "c"} },
		"env digit":      func(p *Payload) { p.Env = map[string]string{"1A": "c"} },
		"env zero":       func(p *Payload) { p.Env = map[string]string{"A": "a\x00b"} },
		"too long":       func(p *Payload) { p.Env = map[string]string{"A": strings.Repeat("x", MaxUserData)} },
	} {
		t.Run(name, func(t *testing.T) {
			p := samplePayload()
			spoil(&p)
			if _, err := UserData(p); gpuserver.KindOf(err) != gpuserver.KindInvalid {
				t.Errorf("the error is %v, expected an invalid payload", err)
			}
		})
	}
}

func TestParseUserDataOfOthers(t *testing.T) {
	newer := "#cloud-config\n" + `{"gpuserver": {"protocol": 9, "vm": "a", "server": "http://h", "token": "t", "jit_config": "aa", "later": 1}, "more": []}`
	if _, err := ParseUserData([]byte(newer)); err != nil {
		t.Errorf("a newer server's data: %v", err)
	}
	for _, bad := range []string{"", "#cloud-config", "#cloud-config\n", "#cloud-configuration\n{}", "#cloud-config\npackages: [x]", "#cloud-config\n{}", "#!/bin/sh\n"} {
		if _, err := ParseUserData([]byte(bad)); gpuserver.KindOf(err) != gpuserver.KindInvalid || gpuserver.PublicText(err) == "" {
			t.Errorf("%q: %v, expected an invalid one", bad, err)
		}
	}
}

func FuzzParseUserData(f *testing.F) {
	good, err := UserData(samplePayload())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("#cloud-config\n{\"gpuserver\":{}}"))
	f.Add([]byte("#cloud-config\r\n{\"gpuserver\":null}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseUserData(b)
		if err != nil {
			return
		}
		if err := p.check(); err != nil {
			t.Errorf("a payload that cannot be used was read: %v", err)
		}
		again, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		q, err := ParseUserData([]byte("#cloud-config\n{\"gpuserver\":" + string(again) + "}"))
		if err != nil && len(again) < MaxUserData/2 {
			t.Fatalf("%s: %v", again, err)
		}
		if diff := cmp.Diff(p, q); err == nil && diff != "" {
			t.Error(diff)
		}
	})
}
