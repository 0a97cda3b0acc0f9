package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/config"
)

// imageDirVar names the folder of the image for a server that lives for one
// command, where no configuration file says what there is.
const imageDirVar = "GPUSERVER_IMAGE_DIR"

func init() { startTemporary = temporaryServer }

// temporaryServer serves one "run": with the clouds, flavors and images of this
// machine's configuration file, or with the image that the environment names,
// on a data folder and a network of its own.
func temporaryServer(ctx context.Context, w io.Writer) (c *api.Client, stop func() error, err error) {
	dir, cfg, err := temporaryConfig()
	if err != nil {
		return nil, nil, err
	}
	cleanUp := func() { _ = os.RemoveAll(dir) }
	_, _ = fmt.Fprintln(w, "gpuserver: no server runs; starting one for this command")
	r, err := startServer(ctx, cfg, w)
	if err != nil {
		cleanUp()
		return nil, nil, err
	}
	stop = func() error {
		ctx := context.WithoutCancel(ctx)
		left := r.awaitNoVMs(ctx)
		err := errors.Join(left, r.end(), r.removeNetworks(ctx))
		if left != nil { // its database is what knows the VMs that are left
			return errors.Join(err, fmt.Errorf("VMs may be left (virsh -c qemu:///system list); what knows them is kept in %s", dir))
		}
		cleanUp()
		return err
	}
	if c, err = api.NewClient(string(cfg.Server.Listen.Socket), ""); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return c, stop, nil
}

// temporaryConfig gives the configuration and the folder that goes with it.
func temporaryConfig() (dir string, cfg *config.Config, err error) {
	name := "gsr" + strings.ToLower(rand.Text()[:4])
	if os.Getuid() != 0 {
		return "", nil, gpuserver.Errorf(gpuserver.KindRefused, "no server can be reached, and starting one for this command needs root")
	}
	cfg, err = config.Load(defaultConfig)
	if gpuserver.KindOf(err) == gpuserver.KindNotFound {
		imageDir := os.Getenv(imageDirVar)
		if imageDir == "" {
			return "", nil, gpuserver.Errorf(gpuserver.KindInvalid, "no server runs, and there is neither %s nor an image for a server of its own: set %s to a folder as scripts/demo-image makes it", defaultConfig, imageDirVar)
		}
		m, err := newMachine(name, imageDir)
		if err != nil {
			return "", nil, err
		}
		cfg, err = m.config()
		if err != nil {
			m.remove()
		}
		return m.dir, cfg, err
	}
	if err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp("/var/tmp", name+"-"); err != nil {
		return "", nil, err
	}
	if err = os.Chmod(dir, 0o711); err == nil { // QEMU's user passes through to its disks
		err = setApart(cfg, name, dir)
	}
	if err != nil {
		_ = os.RemoveAll(dir)
	}
	return dir, cfg, err
}

// setApart changes a configuration so that its service shares nothing with the
// one that it is for: names, folders, networks and listeners.
func setApart(cfg *config.Config, name, dir string) error {
	cfg.Forges, cfg.Runners, cfg.Access, cfg.API.Tokens = nil, nil, nil, nil
	cfg.Server.Name, cfg.Server.DataDir, cfg.Server.PublicURL, cfg.Server.AgentURL = name, config.Path(filepath.Join(dir, "data")), "", ""
	cfg.Server.Log = config.Log{Level: "warn", Format: "text"}
	cfg.Server.Listen = config.Listen{API: "", Socket: config.Path(filepath.Join(dir, "api.sock")), Agent: "127.0.0.1:0"}
	for i := range cfg.Clouds {
		l := cfg.Clouds[i].Libvirt
		if l == nil {
			continue
		}
		n, err := freeNetwork()
		if err != nil {
			return err
		}
		l.Dir = config.Path(filepath.Join(dir, cfg.Clouds[i].Name))
		l.Network.Name, l.Network.Bridge, l.Network.CIDR = fmt.Sprintf("%s%d", name, i), fmt.Sprintf("%sbr%d", name, i), n
		l.Network.CIDR6 = netip.Prefix{} // there is no second range to take
		cfg.Server.Listen.Agent = config.Address(n.Addr().Next().String() + ":8441")
		cfg.Clouds = cfg.Clouds[i : i+1] // one is enough, and two would want the same range
		return nil
	}
	return nil
}
