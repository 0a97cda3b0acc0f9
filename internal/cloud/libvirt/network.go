package libvirt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	lv "github.com/digitalocean/go-libvirt"

	"gpuserver"
)

// network is what we know of the network's state.
type network struct {
	mu         sync.Mutex
	checked    time.Time // when all of it was last seen there
	filter     bool      // the filter was defined by this driver
	generation int       // of the filter
	passed     time.Time // when other firewalls were last looked at
	applied    string    // digest of our tables as nft lists them; "": not applied yet
}

// ensureEvery is how long a look at the network is good for: a burst of creates
// looks once.
const ensureEvery = time.Second

// ensureNetwork makes what is missing of network, filter and rules; called again
// it finds them. Rules come first: a VM never runs on an open network.
func (d *Driver) ensureNetwork(ctx context.Context) error {
	n := &d.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if time.Since(n.checked) < ensureEvery {
		return nil
	}
	if err := d.ensureRules(ctx); err != nil {
		return err
	}
	if err := d.ensureFilter(ctx); err != nil {
		return err
	}
	if err := d.ensureBridge(ctx); err != nil {
		return err
	}
	n.checked = time.Now()
	return nil
}

// ensureRules applies our tables unless they are there as we left them.
func (d *Driver) ensureRules(ctx context.Context) error {
	now, err := d.listRules(ctx)
	if err == nil && d.net.applied != "" && digest(now) == d.net.applied {
		if time.Since(d.net.passed) < time.Minute {
			return nil
		}
		return d.letPass(ctx) // docker may have been started since
	}
	if ctx.Err() != nil {
		return unavailable("list firewall rules", ctx.Err())
	}
	if _, err := command(ctx, []byte(rules(d.pool)), "nft", "-f", "-"); err != nil {
		return noRules(d.cfg, err)
	}
	if now, err = d.listRules(ctx); err != nil {
		return noRules(d.cfg, err)
	}
	if d.net.applied != "" {
		d.log.Warn("the firewall rules of the VMs were changed or gone; they are back", "table", tableName(d.cfg.Network))
		d.net.filter = false // a flush takes libvirt's filters too
		d.net.generation++
	}
	d.net.applied = digest(now)
	return d.letPass(ctx)
}

func noRules(c Config, err error) error {
	return &gpuserver.Error{
		Kind: gpuserver.KindUnavailable, Op: "libvirt: apply firewall rules", Err: err,
		Public: "the firewall rules of cloud " + c.Name + " cannot be applied, so no VM may start; nft and the right to use it (root, or CAP_NET_ADMIN) are needed",
	}
}

func (d *Driver) listRules(ctx context.Context) (string, error) {
	var all bytes.Buffer
	for _, family := range []string{"inet", "bridge"} {
		b, err := command(ctx, nil, "nft", "-s", "list", "table", family, tableName(d.cfg.Network))
		if err != nil {
			return "", err
		}
		all.Write(b)
	}
	return all.String(), nil
}

// letPass adds to firewalls that drop what they do not know (as docker and ufw
// make them) that this bridge is judged by our tables alone. Where there are
// none, nothing is added.
func (d *Driver) letPass(ctx context.Context) error {
	d.net.passed = time.Now()
	for _, p := range passes(d.cfg.Network) {
		listed, err := command(ctx, nil, p.program, "-w", "-S", p.rule[0])
		if err != nil || !strings.HasPrefix(string(listed), "-P "+p.rule[0]+" DROP") {
			continue // no such program, or no need
		}
		if p.there(ctx) {
			continue
		}
		if _, err := command(ctx, nil, p.program, append([]string{"-w", "-I"}, p.rule...)...); err != nil {
			return noRules(d.cfg, err)
		}
	}
	return nil
}

// pass is a rule of ours in a firewall of somebody else's.
type pass struct {
	program string
	rule    []string // its chain first
}

// passes gives the rules that letPass may add.
func passes(n Network) (list []pass) {
	programs := []string{"iptables"}
	if n.CIDR6.IsValid() {
		programs = append(programs, "ip6tables")
	}
	for _, program := range programs {
		for _, at := range [][2]string{{"INPUT", "-i"}, {"FORWARD", "-i"}, {"FORWARD", "-o"}} {
			list = append(list, pass{program, []string{at[0], at[1], n.Bridge, "-m", "comment", "--comment", "gpuserver", "-j", "ACCEPT"}})
		}
	}
	return list
}

func (p pass) there(ctx context.Context) bool {
	_, err := command(ctx, nil, p.program, append([]string{"-w", "-C"}, p.rule...)...)
	return err == nil
}

// ensureFilter defines our filter, once by each driver and again if it is gone.
func (d *Driver) ensureFilter(ctx context.Context) error {
	n := d.cfg.Network
	found, err := ask(ctx, d, "find the filter", func(l *lv.Libvirt) (lv.Nwfilter, error) { return l.NwfilterLookupByName(filterName(n)) })
	if gpuserver.KindOf(err) == gpuserver.KindNotFound {
		found, d.net.filter = lv.Nwfilter{}, false
	} else if err != nil {
		return err
	}
	if d.net.filter {
		return nil
	}
	uuid := ""
	if found.Name != "" {
		uuid = uuidText(found.UUID)
	}
	_, err = ask(ctx, d, "define the filter", func(l *lv.Libvirt) (lv.Nwfilter, error) {
		return l.NwfilterDefineXML(text(describeFilter(n, uuid, d.net.generation%50)))
	})
	d.net.filter = err == nil
	return err
}

// ensureBridge starts the network, as a transient one: after the host's reboot
// nothing of it is left to be wrong.
func (d *Driver) ensureBridge(ctx context.Context) error {
	want := describeNetwork(d.pool, d.cfg.Owner)
	found, err := ask(ctx, d, "find the network", func(l *lv.Libvirt) (lv.Network, error) {
		return l.NetworkLookupByName(want.Name)
	})
	if gpuserver.KindOf(err) == gpuserver.KindNotFound {
		return d.startBridge(ctx, want)
	}
	if err != nil {
		return err
	}
	type state struct {
		tag    tag
		active bool
	}
	is, err := ask(ctx, d, "look at the network", func(l *lv.Libvirt) (state, error) {
		description, err := l.NetworkGetXMLDesc(found, 0)
		if err != nil {
			return state{}, err
		}
		active, err := l.NetworkIsActive(found)
		return state{readTag(description), active == 1}, err
	})
	switch {
	case err != nil:
		return err
	case is.tag.Owner != d.cfg.Owner:
		return gpuserver.Errorf(gpuserver.KindUnavailable, "libvirt has a network %q that is not ours (owner %q); set another libvirt.network.name and bridge, or remove it: virsh net-destroy %s", want.Name, is.tag.Owner, want.Name)
	case !is.active:
		return gpuserver.Errorf(gpuserver.KindUnavailable, "libvirt's network %q was made permanent and is off; remove it: virsh net-undefine %s", want.Name, want.Name)
	case is.tag.Config == want.Tag.Config:
		return nil
	}
	return d.replaceBridge(ctx, found, want)
}

// replaceBridge gives the network its new configuration once no VM is on it.
func (d *Driver) replaceBridge(ctx context.Context, old lv.Network, want networkXML) error {
	u, err := d.used("")
	if err != nil {
		return unavailable("replace the network", err)
	}
	if u.vms > 0 {
		return gpuserver.Errorf(gpuserver.KindUnavailable, "network %q has another configuration, and %d VMs are on it; no new VM starts until they are gone", want.Name, u.vms)
	}
	if err := do(ctx, d, "end the network", func(l *lv.Libvirt) error { return l.NetworkDestroy(old) }); err != nil {
		return err
	}
	return d.startBridge(ctx, want)
}

func (d *Driver) startBridge(ctx context.Context, want networkXML) error {
	_, err := ask(ctx, d, "start the network", func(l *lv.Libvirt) (lv.Network, error) { return l.NetworkCreateXML(text(want)) })
	if err != nil {
		return err
	}
	d.log.Info("network started", "network", want.Name, "bridge", want.Bridge.Name, "cidr", d.cfg.Network.CIDR)
	return d.rejoin(ctx)
}

// rejoin puts the ports of VMs that run on without their bridge back on it.
func (d *Driver) rejoin(ctx context.Context) error {
	domains, err := d.domains(ctx)
	if err != nil {
		return err
	}
	for name := range domains {
		_, port, err := d.pool.held(name)
		if err != nil || port.tap == "" {
			continue
		}
		if _, err := command(ctx, nil, "ip", "link", "set", "dev", port.tap, "master", d.cfg.Network.Bridge); err != nil {
			d.log.Warn("a VM's port cannot join its bridge again", "vm", name, "port", port.tap, "err", err)
			continue
		}
		if _, err := command(ctx, nil, "bridge", "link", "set", "dev", port.tap, "isolated", "on"); err != nil {
			return unavailable(fmt.Sprintf("isolate the port of %s again", name), err)
		}
	}
	return nil
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
