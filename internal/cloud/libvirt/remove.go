package libvirt

import (
	"context"
	"errors"
	"log/slog"

	lv "github.com/digitalocean/go-libvirt"

	"gpuserver"
	"gpuserver/internal/cloud"
)

// RemoveNetwork takes away what a driver with this configuration makes on its
// host and leaves there when it is closed: the network with its bridge, the
// filter and the firewall rules. What is not there is success. It is for
// somebody who leaves; no driver of the configuration may be open, as it would
// put everything back. KindConflict: VMs are still on the network, whoever made
// them; VMs elsewhere are none of our concern.
func RemoveNetwork(ctx context.Context, cfg Config, log *slog.Logger) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(context.Background())
	d := &Driver{
		cfg: cfg, log: log.With("cloud", cfg.Name), calls: newLink(cfg.Socket), hints: newLink(cfg.Socket),
		pool: newPool(cfg.Network, cfg.addressesDir()), events: make(chan cloud.Event), running: running, stop: stop,
	}
	defer d.Close() // it has nothing to say
	vms, err := d.onNetwork(ctx)
	if err != nil {
		return err
	}
	if vms > 0 {
		return gpuserver.Errorf(gpuserver.KindConflict, "%d VMs are still on network %q; delete them first", vms, cfg.Network.Name)
	}
	err = do(ctx, d, "end the network", func(l *lv.Libvirt) error {
		n, err := l.NetworkLookupByName(cfg.Network.Name)
		if err != nil {
			return err
		}
		return l.NetworkDestroy(n)
	})
	if err != nil && gpuserver.KindOf(err) != gpuserver.KindNotFound {
		return err
	}
	err = do(ctx, d, "remove the filter", func(l *lv.Libvirt) error {
		f, err := l.NwfilterLookupByName(filterName(cfg.Network))
		if err != nil {
			return err
		}
		return l.NwfilterUndefine(f)
	})
	if err != nil && gpuserver.KindOf(err) != gpuserver.KindNotFound {
		return err
	}
	return d.removeRules(ctx)
}

// onNetwork counts the VMs with a card on the network.
func (d *Driver) onNetwork(ctx context.Context) (n int, err error) {
	domains, err := d.domains(ctx)
	if err != nil {
		return 0, err
	}
	for name, dom := range domains {
		description, err := ask(ctx, d, "describe "+name, func(l *lv.Libvirt) (string, error) { return l.DomainGetXMLDesc(dom, 0) })
		switch {
		case gpuserver.KindOf(err) == gpuserver.KindNotFound: // gone meanwhile
		case err != nil:
			return 0, err
		case hasCard(description, d.cfg.Network.Name):
			n++
		}
	}
	return n, nil
}

// removeRules deletes our tables, and what letPass added; making the tables first
// keeps the deletion of what is not there from failing.
func (d *Driver) removeRules(ctx context.Context) error {
	var errs []error
	for _, family := range []string{"inet", "bridge"} {
		table := family + " " + tableName(d.cfg.Network)
		_, err := command(ctx, []byte("table "+table+" {}\ndelete table "+table+"\n"), "nft", "-f", "-")
		errs = append(errs, err)
	}
	for _, p := range passes(d.cfg.Network) {
		if p.there(ctx) {
			_, err := command(ctx, nil, p.program, append([]string{"-w", "-D"}, p.rule...)...)
			errs = append(errs, err)
		}
	}
	return gpuserver.Wrap(gpuserver.KindUnavailable, "libvirt: remove firewall rules", errors.Join(errs...))
}

// Domains gives the names of all running domains that libvirtd knows, whoever
// made them.
func Domains(ctx context.Context, cfg Config) ([]string, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.Background())
	d := &Driver{cfg: cfg, log: slog.New(slog.DiscardHandler), calls: newLink(cfg.Socket), hints: newLink(cfg.Socket), events: make(chan cloud.Event), running: running, stop: stop}
	defer d.Close() // it has nothing to say
	return ask(ctx, d, "list domains", func(l *lv.Libvirt) ([]string, error) {
		found, _, err := l.ConnectListAllDomains(1, 0)
		names := make([]string, len(found))
		for i, f := range found {
			names[i] = f.Name
		}
		return names, err
	})
}
