package guest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gpuserver"
)

// setUpEarly does what has to be there before the network and Docker come up.
func (a *agent) setUpEarly(d drive) error {
	if err := a.writeFile("etc/hostname", []byte(d.hostname+"\n"), 0o644); err != nil {
		return err
	}
	if !a.Unprivileged {
		if err := unix.Sethostname([]byte(d.hostname)); err != nil {
			return guestError("set the host name", err)
		}
	}
	hosts, _ := os.ReadFile(a.path("etc/hosts")) // none: a new one
	hosts = append(bytes.TrimRight(hosts, "\n"), fmt.Sprintf("\n127.0.1.1 %s\n", d.hostname)...)
	if err := a.writeFile("etc/hosts", bytes.TrimLeft(hosts, "\n"), 0o644); err != nil {
		return err
	}
	if err := a.shareSlice(); err != nil {
		a.log.Error("containers will not be in the job's slice", "err", err)
	}
	a.servers = d.network.nameServers()
	a.applyStatic(d.network, d.payload.MTU)
	for name, content := range d.network.files(d.payload.MTU) {
		if err := a.writeFile(filepath.Join("run/systemd/network", name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// setUpLate does what only the job needs. What fails here is logged: a job
// without it is better than none.
func (a *agent) setUpLate() {
	steps := []struct {
		name string
		do   func() error
	}{
		{"environment", a.writeEnvironment},
		{"setup_info", a.writeSetupInfo},
		{"hook", a.writeHook},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			a.log.Error("cannot set up", "what", s.name, "err", err)
		}
	}
	if a.Unprivileged {
		return
	}
	if err := a.limitMemory(); err != nil {
		a.log.Error("cannot limit the job's memory", "err", err)
	}
	if err := growRoot(); err != nil {
		a.log.Warn("cannot grow the root file system", "err", err)
	}
}

// writeEnvironment adds the payload's variables to /etc/environment, which
// pam_env gives to every login. It takes no line breaks, so a value with one is
// in the runner's environment only.
func (a *agent) writeEnvironment() error {
	b, _ := os.ReadFile(a.path("etc/environment")) // none: a new one
	if len(b) > 0 && b[len(b)-1] != '\n' {
		b = append(b, '\n')
	}
	for _, name := range slices.Sorted(maps.Keys(a.payload.Env)) {
		value := a.payload.Env[name]
		if strings.ContainsAny(value, "\n\r\"") {
			continue
		}
		b = fmt.Appendf(b, "%s=\"%s\"\n", name, value)
	}
	return a.writeFile("etc/environment", b, 0o644)
}

// writeSetupInfo adds the payload's groups to those of the image; the runner
// shows them in the job's first step.
// Source: actions/runner, JobExtension: an array of group and detail in
// .setup_info of the runner's folder.
func (a *agent) writeSetupInfo() error {
	if len(a.payload.SetupInfo) == 0 {
		return nil
	}
	name := filepath.Join(a.RunnerDir, ".setup_info")
	var all []gpuserver.SetupInfo
	if b, err := os.ReadFile(a.path(name)); err == nil {
		if err := json.Unmarshal(b, &all); err != nil {
			a.log.Warn("the image's .setup_info is not an array; it is replaced", "err", err)
		}
	}
	b, err := json.Marshal(append(all, a.payload.SetupInfo...))
	if err != nil {
		return guestError("write .setup_info", err)
	}
	return a.writeFile(name, b, 0o644)
}

// growRoot enlarges an ext4 root file system to its device, which is the size
// of the VM's flavor while the image's was small.
// Source: Linux Documentation/filesystems/ext4, EXT4_IOC_RESIZE_FS.
func growRoot() error {
	const ioctlResize = 0x40086610 // _IOW('f', 16, __u64)
	root, err := os.Open("/")
	if err != nil {
		return err
	}
	defer root.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return err
	}
	sectors, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/size", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return err
	}
	size, err := strconv.ParseUint(strings.TrimSpace(string(sectors)), 10, 64)
	if err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err != nil {
		return err
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		return nil
	}
	blocks := size * 512 / uint64(fs.Bsize)
	if blocks <= fs.Blocks+fs.Blocks/8 { // what statfs leaves out is overhead
		return nil
	}
	return ioctlPointer(root.Fd(), ioctlResize, &blocks)
}

// setClock corrects the guest's clock by the server's, if they differ by more
// than network and the header's full seconds explain.
func (a *agent) setClock(server time.Time) {
	const tolerated = 5 * time.Second
	if off := time.Until(server); a.Unprivileged || off.Abs() < tolerated {
		return
	}
	tv := unix.NsecToTimeval(server.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		a.log.Warn("cannot set the clock", "err", err)
		return
	}
	a.log.Info("the clock was set by the server's", "to", server.UTC().Format(time.RFC3339))
}

// account is the user that runs the job.
type account struct {
	uid, gid int
	groups   []int
	name     string
	home     string
}

func lookupAccount(name string) (account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return account{}, guestError("find the user "+name, err)
	}
	acc := account{name: name, home: u.HomeDir}
	acc.uid, _ = strconv.Atoi(u.Uid) // numbers on Linux
	acc.gid, _ = strconv.Atoi(u.Gid)
	ids, err := u.GroupIds()
	if err != nil {
		return account{}, guestError("find the groups of "+name, err)
	}
	for _, id := range ids {
		n, _ := strconv.Atoi(id)
		acc.groups = append(acc.groups, n)
	}
	return acc, nil
}
