package main

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"gpuserver/internal/cloud/openstack"
	"gpuserver/internal/cloud/openstack/provision"
	"gpuserver/internal/config"
	"gpuserver/internal/hostprep"
)

func newCloudCheckCommand() *cobra.Command {
	var f siteFlags
	cmd := &cobra.Command{
		Use:   "check CLOUD",
		Short: "Check credentials, roles, flavors, aliases, quotas and network",
		Long: `Logs in to a cloud of type openstack as the service does, and as the administrator
if "openstack.declared.admin" names one, and checks one thing after another that
jobs need there:

  pass  it is as it should be
  warn  it works, but not as well or as safely as it could
  FAIL  jobs would fail because of it, or find no room
  skip  it could not be looked at, or does not matter here; it says why

Nova's API shows neither the scheduler's filters nor PCI aliases: that they are
right shows in a server that has a card, and the usual causes are named where none
has. Nothing is changed.

Exit status: 0 nothing failed, 1 something failed, 2 the configuration is wrong.`,
		Example: `  gpuserver cloud check stack
  gpuserver cloud check stack --output json | jq '.findings[] | select(.level == "fail")'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, c, err := f.load(args[0])
			if err != nil {
				return err
			}
			service, admin, done, err := dialBoth(cfg, c)
			if err != nil {
				return err
			}
			defer done()
			r := &hostprep.Report{Findings: []hostprep.Finding{}}
			for _, n := range provision.Check(cmd.Context(), service, admin, cloudNeeds(cfg, c)) {
				r.Findings = append(r.Findings, hostprep.Finding{Name: n.Name, Level: hostprep.Level(n.Level), Seen: n.Seen, Mend: n.Mend})
			}
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			if f.output == outputJSON {
				err = printJSON(cmd.OutOrStdout(), r)
			} else {
				err = printChecks(cmd.OutOrStdout(), r)
			}
			if err == nil && r.Failed() {
				return &exitError{code: exitFailed} // the findings say why
			}
			return err
		},
	}
	f.add(cmd)
	return cmd
}

// dialBoth logs in as the service and, if there is one, as the administrator.
func dialBoth(cfg *config.Config, c *config.Cloud) (service, admin *openstack.API, done func(), err error) {
	if service, err = dialService(cfg, c); err != nil {
		return nil, nil, nil, &exitError{exitUsage, err}
	}
	if d := c.OpenStack.Declared; d == nil || d.Admin == nil {
		return service, nil, service.Close, nil
	}
	if admin, err = dialAdmin(cfg, c); err != nil {
		service.Close()
		return nil, nil, nil, &exitError{exitUsage, err}
	}
	return service, admin, func() { service.Close(); admin.Close() }, nil
}

// cloudNeeds is what the service needs of a cloud.
func cloudNeeds(cfg *config.Config, c *config.Cloud) provision.Needs {
	o := c.OpenStack
	n := provision.Needs{Networks: o.Networks, Groups: o.SecurityGroups, Now: time.Now()}
	n.Flavors, _ = declaredFlavors(cfg, o)
	n.Images = openStackImages(cfg)
	for _, g := range o.GPUs {
		model, _ := cfg.ModelFor(g.Model) // known: it was checked
		n.GPUs = append(n.GPUs, provision.Cards{Alias: cmp.Or(g.Alias, model), Count: g.Count, Class: g.ResourceClass})
	}
	return n
}

func newCloudShowCommand() *cobra.Command {
	var f siteFlags
	cmd := &cobra.Command{
		Use:   "show CLOUD",
		Short: "Show services, hypervisors, quotas and servers of an OpenStack",
		Long: `Shows a cloud of type openstack as it is now: Nova's services and hypervisors (with
an administrator's credentials), how much of the project's quotas is used, and the
servers in the project: those of this installation, those of another, and those of
strangers, which no gpuserver made.

Exit status: 0 all could be read, 1 something could not, 2 the configuration is
wrong or the cloud is away.`,
		Example: `  gpuserver cloud show stack
  gpuserver cloud show stack --output json | jq '.servers[] | select(.owner == null)'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, c, err := f.load(args[0])
			if err != nil {
				return err
			}
			service, admin, done, err := dialBoth(cfg, c)
			if err != nil {
				return err
			}
			defer done()
			v, err := provision.Show(cmd.Context(), service, admin, cfg.Server.Name)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if f.output == outputJSON {
				err = printJSON(cmd.OutOrStdout(), v)
			} else {
				err = printView(cmd.OutOrStdout(), v)
			}
			if err == nil && len(v.Unknown) > 0 {
				return &exitError{code: exitFailed} // it was said which
			}
			return err
		},
	}
	f.add(cmd)
	return cmd
}

func printView(w io.Writer, v provision.View) error {
	var services, hosts, quotas, servers [][]string
	for _, s := range v.Services {
		services = append(services, []string{s.Binary, s.Host, s.Zone, s.Status, s.State, s.Reason})
	}
	for _, h := range v.Hypervisors {
		hosts = append(hosts, []string{h.Name, h.Type, h.Status, h.State, fmt.Sprintf("%d/%d", h.VCPUsUsed, h.VCPUs), fmt.Sprintf("%d/%d", h.MemoryUse, h.MemoryMiB), fmt.Sprint(h.Servers)})
	}
	for _, q := range v.Quotas {
		quotas = append(quotas, []string{q.Name, q.String()})
	}
	for _, s := range v.Servers {
		whose := "stranger"
		switch {
		case s.Ours:
			whose = "ours"
		case s.Owner != "":
			whose = s.Owner
		}
		servers = append(servers, []string{s.Name, whose, s.Status, s.Flavor, s.Cards, ago(s.Created), s.Fault})
	}
	for _, t := range []struct {
		head []string
		rows [][]string
	}{
		{[]string{"SERVICE", "HOST", "ZONE", "STATUS", "STATE", "WHY"}, services},
		{[]string{"HYPERVISOR", "TYPE", "STATUS", "STATE", "VCPUS", "MEMORY (MiB)", "SERVERS"}, hosts},
		{[]string{"QUOTA", "USE"}, quotas},
		{[]string{"SERVER", "WHOSE", "STATUS", "FLAVOR", "CARDS", "CREATED", "FAULT"}, servers},
	} {
		if len(t.rows) == 0 {
			continue
		}
		if err := printTable(w, t.head, t.rows); err != nil {
			return err
		}
		_, _ = fmt.Fprintln(w)
	}
	if len(v.Servers) == 0 {
		_, _ = fmt.Fprintln(w, "No servers.")
	}
	for _, u := range v.Unknown {
		_, _ = fmt.Fprintf(w, "not looked at: %s: %s\n", u.Kind, printable(u.Why))
	}
	return nil
}
