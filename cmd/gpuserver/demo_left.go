package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gpuserver/internal/cloud/libvirt"
)

// leftovers counts what a demonstration left behind: from libvirt, the file
// system, /proc, the network links and the stand-in for GitHub, not from what
// the service believes.
type leftovers struct {
	Domains   int `json:"domains"`
	Volumes   int `json:"volumes"`
	Leases    int `json:"leases"`
	Runners   int `json:"runners"`
	Processes int `json:"processes"`
	Links     int `json:"links"`
}

// countLeft counts domains, volumes and leases and takes the network away.
func (d *demonstration) countLeft(ctx context.Context, cfg libvirt.Config, left *leftovers) error {
	domains, err := libvirt.Domains(ctx, cfg)
	for _, name := range domains {
		if strings.HasPrefix(name, d.machine.name+"-") {
			left.Domains++
		}
	}
	left.Volumes = countFiles(filepath.Join(cfg.Dir, "vms"))
	left.Leases = countFiles(filepath.Join(cfg.Dir, "addresses"))
	held, ledgerErr := heldLeases(ctx, filepath.Join(string(d.server.cfg.Server.DataDir), "gpuserver.db"))
	left.Leases += held
	return errors.Join(err, ledgerErr, d.server.removeNetworks(ctx))
}

// heldLeases reads the ledger's file, once the service no longer has it open.
func heldLeases(ctx context.Context, path string) (n int, err error) {
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	if err != nil {
		return 0, err
	}
	defer db.Close()
	return n, db.QueryRowContext(ctx, `SELECT count(*) FROM leases WHERE released_at = 0`).Scan(&n)
}

// countFiles counts the files under a folder, at any depth.
func countFiles(dir string) (n int) {
	_ = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			n++
		}
		return nil
	})
	return n
}

// countProcesses counts processes that work with our files or under our names,
// and the stand-in for GitHub, which listens on an address. Other demonstrations
// may run at the same time.
func countProcesses(dir, name, address string) (n int) {
	ours := []string{dir, name + "-", "/" + name + ".conf", "forgetest\x00--listen\x00" + address}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		program, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		for _, p := range []string{"qemu-system", "dnsmasq", "gpuserver"} {
			if strings.HasPrefix(filepath.Base(program), p) && slices.ContainsFunc(ours, func(o string) bool { return bytes.Contains(cmdline, []byte(o)) }) {
				n++
			}
		}
	}
	return n
}

// countLinks counts network links under our names: the bridge, the link to the
// stand-in, and ports of VMs, which are named after the bridge's driver.
func countLinks(name string) (n int) {
	links, err := net.Interfaces()
	if err != nil {
		return 0
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, name) {
			n++
			continue
		}
		if master, err := os.Readlink(filepath.Join("/sys/class/net", l.Name, "master")); err == nil && strings.HasPrefix(filepath.Base(master), name) {
			n++
		}
	}
	return n
}
