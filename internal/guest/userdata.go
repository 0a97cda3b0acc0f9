package guest

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strings"

	"gpuserver"
	"gpuserver/internal/gate"
)

// MaxUserData is the size in bytes that user data may have: what is left of
// OpenStack's 64 KiB once it is coded as base64.
const MaxUserData = 48 << 10

// cloudConfigHeader is the first line by which cloud-init tells a cloud-config.
// Source: cloud-init documentation, "User-data formats".
const cloudConfigHeader = "#cloud-config"

// AgentPath is where the agent lies in an image of ours.
const AgentPath = "/usr/lib/gpuserver/gpuserver-guest"

// userData is the cloud-config; JSON is a subset of the YAML that cloud-init
// reads. Our agent reads Payload and nothing else, cloud-init the rest.
type userData struct {
	Payload    *Payload    `json:"gpuserver"`
	WriteFiles []writeFile `json:"write_files,omitempty"`
	RunCmd     [][]string  `json:"runcmd,omitempty"`
}

// writeFile is one entry of cloud-init's write_files.
type writeFile struct {
	Path        string `json:"path"`
	Content     string `json:"content"`
	Permissions string `json:"permissions"`
}

// stockEnv is where cloud-init puts the environment of the runner, the secret
// among it: a folder in memory.
const stockEnv = "/run/gpuserver-runner.env"

// stockStart is the script that starts the runner in an image without our agent;
// with it, it only removes what cloud-init stored, should that have come first.
// Before the runner starts, everything that has the secret goes: our own file,
// cloud-init's copies of the user data, and the config drive. root is put before
// all paths, for tests.
// Source: cloud-init documentation, "Instance data" and "Files and directories".
func stockStart(root string, e *gate.Expectation) string {
	return strings.ReplaceAll(`set -a; . ~`+stockEnv+`; set +a
rm -f ~`+stockEnv+` ~/run/cloud-init/instance-data-sensitive.json ~/run/cloud-init/combined-cloud-config.json
rm -f ~/var/lib/cloud/instance/*.txt ~/var/lib/cloud/instance/*.txt.i ~/var/lib/cloud/instance/obj.pkl
[ -x ~`+AgentPath+` ] && exit 0
`+stockGate(e)+`drive=$(blkid -L `+driveLabel+`) && (echo 1 >~/sys/class/block/"${drive##*/}"/device/delete) 2>/dev/null
id runner >/dev/null 2>&1 || useradd --create-home --shell /bin/bash runner
export HOME="$(getent passwd runner | cut -d: -f6)" USER=runner LOGNAME=runner SHELL=/bin/bash
cd ~/opt/runner && chown -R runner: . && setpriv --reuid=runner --regid="$(id -g runner)" --init-groups ./run.sh
poweroff`, "~", root)
}

// stockFiles are the files that cloud-init writes for the script.
func stockFiles(p Payload) []writeFile {
	env := maps.Clone(p.Env)
	if env == nil {
		env = map[string]string{}
	}
	env[jitEnv] = p.JITConfig
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(env)) {
		b.WriteString(name + "='" + strings.ReplaceAll(env[name], "'", `'\''`) + "'\n")
	}
	return []writeFile{{Path: stockEnv, Content: b.String(), Permissions: "0600"}}
}

// UserData makes the user data of a VM: a cloud-config with p under the key
// "gpuserver", and what a stock image's cloud-init needs to start a runner.
func UserData(p Payload) ([]byte, error) {
	if p.Protocol == 0 {
		p.Protocol = Protocol
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	u := userData{Payload: &p}
	if p.JITConfig != "" {
		u.WriteFiles = stockFiles(p)
		u.RunCmd = [][]string{{"sh", "-c", stockStart("", p.Gate)}}
	}
	var b bytes.Buffer
	b.WriteString(cloudConfigHeader + "\n")
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(u); err != nil {
		return nil, gpuserver.Wrap(gpuserver.KindInternal, "guest: user data", err)
	}
	if b.Len() > MaxUserData {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid,
			"the user data of VM %s has %d bytes, and a cloud takes %d: shorten env, setup_info or the command",
			p.VM, b.Len(), MaxUserData)
	}
	return b.Bytes(), nil
}

// ParseUserData reads the Payload out of what UserData made. Keys that it does
// not know are passed over, so that an old agent reads a newer server's data.
func ParseUserData(b []byte) (Payload, error) {
	if len(b) > MaxUserData {
		return Payload{}, gpuserver.Errorf(gpuserver.KindInvalid, "the user data has %d bytes, more than %d", len(b), MaxUserData)
	}
	rest, ok := bytes.CutPrefix(b, []byte(cloudConfigHeader))
	if !ok || len(rest) == 0 || (rest[0] != '\n' && rest[0] != '\r') {
		return Payload{}, gpuserver.Errorf(gpuserver.KindInvalid, "the user data does not start with the line %q", cloudConfigHeader)
	}
	var u userData
	if err := json.Unmarshal(rest, &u); err != nil {
		return Payload{}, &gpuserver.Error{
			Kind: gpuserver.KindInvalid, Op: "guest: user data",
			Public: "the user data is not the JSON object that gpuserver writes", Err: err,
		}
	}
	if u.Payload == nil {
		return Payload{}, gpuserver.Errorf(gpuserver.KindInvalid, "the user data has no key \"gpuserver\": this VM was not made by gpuserver")
	}
	if err := u.Payload.check(); err != nil {
		return Payload{}, err
	}
	return *u.Payload, nil
}

// check reports what in p the agent could not work with.
func (p *Payload) check() error {
	invalid := func(format string, args ...any) error {
		return gpuserver.Errorf(gpuserver.KindInvalid, "guest payload: "+format, args...)
	}
	server, err := url.Parse(p.Server)
	switch {
	case p.Protocol < 1:
		return invalid("protocol is %d, expected 1 or more", p.Protocol)
	case p.VM == "" || len(p.VM) > 64 || strings.Trim(p.VM, hostnameChars) != "":
		return invalid("vm is %q, expected 1 to 64 letters, digits and '-'", p.VM)
	case err != nil || (server.Scheme != "http" && server.Scheme != "https") || server.Host == "":
		return invalid("server is not an http or https URL")
	case p.Token == "":
		return invalid("token is empty")
	case (p.JITConfig == "") == (p.Command == nil):
		return invalid("exactly one of jit_config and command has to be set")
	case p.JITConfig != "" && strings.Trim(p.JITConfig, base64Chars) != "":
		return invalid("jit_config is not base64")
	case p.Command != nil && (len(p.Command.Args) == 0 || p.Command.Args[0] == ""):
		return invalid("command has no program")
	case p.MTU != 0 && (p.MTU < 576 || p.MTU > 65535):
		return invalid("mtu is %d, expected 576 to 65535, or 0 for the network's own", p.MTU)
	case p.ReserveMiB < 0 || p.Grace < 0 || p.BeatEvery < 0:
		return invalid("reserve_mib, grace and beat_every are not negative")
	}
	if err := p.checkGate(); err != nil {
		return err
	}
	return p.checkEnv()
}

// checkEnv refuses names that a shell could not hold and values that would
// break out of a line of /etc/environment.
func (p *Payload) checkEnv() error {
	envs := []map[string]string{p.Env}
	if p.Command != nil {
		envs = append(envs, p.Command.Env)
	}
	for _, env := range envs {
		for name, value := range env {
			if !validEnvName(name) {
				return gpuserver.Errorf(gpuserver.KindInvalid, "guest payload: env name %q, expected letters, digits and '_'", name)
			}
			if strings.ContainsRune(value, 0) {
				return gpuserver.Errorf(gpuserver.KindInvalid, "guest payload: the value of env %s has a zero byte", name)
			}
		}
	}
	return nil
}

const (
	letters       = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits        = "0123456789"
	hostnameChars = letters + digits + "-"
	base64Chars   = letters + digits + "+/=-_"
)

// validEnvName reports whether name is a name in the sense of POSIX's
// environment variables.
func validEnvName(name string) bool {
	return name != "" && !strings.ContainsAny(name[:1], digits) && strings.Trim(name, letters+digits+"_") == ""
}
