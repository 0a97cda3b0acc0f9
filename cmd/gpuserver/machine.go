package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"gpuserver"
	"gpuserver/internal/cloud/libvirt"
	"gpuserver/internal/config"
	"gpuserver/internal/store"
)

// thisMachine describes a service that lives for one command on this machine's
// libvirt: "demo" and "run" without a server.
type thisMachine struct {
	dir      string // all its files; removed with it
	imageDir string // vmlinuz, initrd.img, root.qcow2 and manifest, as scripts/demo-image makes them
	name     string // of the installation, the network and the bridge
	network  netip.Prefix
	forges   string // more of the configuration, in YAML
	webhooks string // address; "" is none
	debug    bool
}

// newMachine makes the folder and copies the image into it, because QEMU's user
// may not be able to read where it lies.
func newMachine(name, imageDir string) (m *thisMachine, err error) {
	if imageDir == "" {
		return nil, gpuserver.Errorf(gpuserver.KindInvalid, "no image is given: name a folder with vmlinuz, initrd.img and root.qcow2 by --image-dir (scripts/demo-image makes one)")
	}
	m = &thisMachine{imageDir: imageDir, name: name}
	if m.network, err = freeNetwork(); err != nil {
		return nil, err
	}
	if m.dir, err = os.MkdirTemp("/var/tmp", name+"-"); err != nil {
		return nil, err
	}
	err = os.Chmod(m.dir, 0o711) // QEMU's user passes through to its disks
	for _, f := range []string{"vmlinuz", "initrd.img", "root.qcow2"} {
		if err == nil {
			err = linkOrCopy(filepath.Join(imageDir, f), filepath.Join(m.dir, f))
		}
	}
	if err != nil {
		m.remove()
		return nil, err
	}
	return m, nil
}

func (m *thisMachine) remove() { _ = os.RemoveAll(m.dir) }

func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return os.Chmod(to, 0o644)
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	st, err := in.Stat()
	if err != nil {
		return err
	}
	return os.Chtimes(to, st.ModTime(), st.ModTime()) // what is known of the original holds for the copy
}

// freeNetwork gives a private range that no interface of this machine is in,
// and reserves it.
func freeNetwork() (netip.Prefix, error) {
	var ranges []netip.Prefix
	for third := 190; third < 250; third++ {
		ranges = append(ranges, netip.MustParsePrefix(fmt.Sprintf("192.168.%d.0/24", third)))
	}
	p, err := firstFree(ranges)
	if err == nil && !p.IsValid() {
		err = gpuserver.Errorf(gpuserver.KindUnavailable, "no free private network was found for the VMs: 192.168.190.0 to 192.168.249.0 are in use on this machine")
	}
	return p, err
}

// firstFree reserves the first range that no interface of this machine is in;
// none is the zero value.
func firstFree(ranges []netip.Prefix) (netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, p := range ranges {
		taken := slices.ContainsFunc(addrs, func(a net.Addr) bool {
			used, err := netip.ParsePrefix(a.String())
			return err == nil && used.Overlaps(p)
		})
		if !taken && reserve(p) {
			return p, nil
		}
	}
	return netip.Prefix{}, nil
}

// reservations are held until this process ends.
var reservations struct {
	sync.Mutex
	files []*os.File
}

// reservationDir is emptied by a reboot.
const reservationDir = "/run/gpuserver/networks"

// reserve takes a range for this process: two commands that start at the same
// time find it free both, as neither has its interface yet.
func reserve(p netip.Prefix) bool {
	if os.MkdirAll(reservationDir, 0o755) != nil {
		return true // without the right to this, interfaces cannot be made either
	}
	f, err := os.OpenFile(filepath.Join(reservationDir, p.Addr().String()), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return true
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		_ = f.Close()
		return false
	}
	reservations.Lock()
	defer reservations.Unlock()
	reservations.files = append(reservations.files, f)
	return true
}

// cmdline is the image's kernel command line, from its manifest.
func (m *thisMachine) cmdline() string {
	var manifest struct {
		Cmdline string `json:"cmdline"`
	}
	if b, err := os.ReadFile(filepath.Join(m.imageDir, "manifest")); err == nil && json.Unmarshal(b, &manifest) == nil && manifest.Cmdline != "" {
		return manifest.Cmdline
	}
	return "root=/dev/vda console=ttyS0 quiet"
}

func (m *thisMachine) gateway() string { return m.network.Addr().Next().String() }

// config is the configuration of the service.
func (m *thisMachine) config() (*config.Config, error) {
	level := "warn"
	if m.debug {
		level = "debug"
	}
	text := fmt.Sprintf(`
server:
  name: %[1]s
  data_dir: %[2]s/data
  listen: {webhooks: %[3]q, agent: "%[4]s:8441", api: "127.0.0.1:0", socket: %[2]s/api.sock}
  log: {level: %[5]s, format: text}
clouds:
  - name: local
    type: libvirt
    serves: [{cloud: openstack, region: RegionOne}]
    libvirt:
      overcommit: 4
      memory_reserve: 1GiB
      disk_reserve: 1GiB
      network: {name: %[1]s, bridge: %[1]s0, cidr: %[6]s}
flavors:
  - {name: ci_small, aliases: [gpu_large], vcpus: 1, memory: 1GiB, disk: 4GiB, time_limit: 1h}
  - {name: ci_medium, vcpus: 2, memory: 2GiB, disk: 8GiB, time_limit: 1h}
images:
  - name: demo
    aliases: [ubuntu-2404-gpu]
    libvirt: {disk: %[2]s/root.qcow2, kernel: %[2]s/vmlinuz, initrd: %[2]s/initrd.img, cmdline: %[7]q}
%[8]s`, m.name, m.dir, m.webhooks, m.gateway(), level, m.network, m.cmdline(), m.forges)
	path := filepath.Join(m.dir, "gpuserver.yaml")
	if err := os.WriteFile(path, []byte(strings.TrimLeft(text, "\n")), 0o600); err != nil {
		return nil, err
	}
	return config.Load(path)
}

// runningServer is a service that runs beside a command.
type runningServer struct {
	*server
	stop  context.CancelFunc
	ended chan error
}

// startServer starts the service; end ends it.
func startServer(ctx context.Context, cfg *config.Config, stderr io.Writer) (*runningServer, error) {
	s, err := newServer(ctx, cfg, newLog(cfg.Server.Log, stderr))
	if err != nil {
		return nil, errors.Join(err, s.removeNetworks(context.WithoutCancel(ctx)))
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	r := &runningServer{server: s, stop: stop, ended: make(chan error, 1)}
	go func() { r.ended <- s.Run(ctx) }()
	return r, nil
}

// await waits until done says so, looking again after every commit.
func (s *server) await(ctx context.Context, done func(*store.Tx) (bool, error)) error {
	changed := make(chan struct{}, 1)
	s.db.Watch(func([]store.Change) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	for {
		var is bool
		err := s.db.View(ctx, func(tx *store.Tx) (err error) { is, err = done(tx); return err })
		if err != nil || is {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitNoVMs waits until the service has deleted its VMs.
func (s *server) awaitNoVMs(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, goneLimit)
	defer cancel()
	return s.await(ctx, func(tx *store.Tx) (bool, error) {
		alive, err := tx.AliveVMs()
		return len(alive) == 0, err
	})
}

// removeNetworks takes away the networks that the clouds of a closed service
// left behind.
func (s *server) removeNetworks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var errs []error
	for i := range s.clouds {
		if c := &s.cfg.Clouds[i]; c.Libvirt != nil {
			errs = append(errs, libvirt.RemoveNetwork(ctx, libvirtConfig(s.cfg, c, s.id), s.log))
		}
	}
	return errors.Join(errs...)
}

func (r *runningServer) end() error {
	r.stop()
	err := <-r.ended
	r.Close()
	return err
}
