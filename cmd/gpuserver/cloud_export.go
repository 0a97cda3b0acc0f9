package main

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gpuserver/internal/cloud/openstack/provision"
	"gpuserver/internal/config"
)

func newCloudExportCommand() *cobra.Command {
	var f siteFlags
	var project, domain string
	cmd := &cobra.Command{
		Use:   "export CLOUD",
		Short: "Write a declaration of what a project on an OpenStack has",
		Long: `Reads what a project on a cloud of type openstack has and prints it in the form of
the configuration: "declared" for the cloud's options, with quotas, network and
security groups, and "flavors" for the file. The network is the one that the cloud's
options name, or the only one. Users, credentials and key pairs are left out, since
secrets cannot be read. What a declaration cannot say stands there as a comment.

Put it into the configuration, then see what is left: gpuserver cloud plan CLOUD.

Exit status: 0 done, 2 the configuration is wrong, the cloud is away, or it has no
such project.`,
		Example: `  gpuserver cloud export stack
  gpuserver cloud export stack --project ci > declared.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, c, err := f.load(args[0])
			if err != nil {
				return err
			}
			o := c.OpenStack
			if o.Declared != nil {
				project = cmp.Or(project, o.Declared.Project.Name)
			}
			if project == "" {
				return usageError(cmd, errors.New("which project is meant? Give --project"))
			}
			api, err := dialAdmin(cfg, c)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			defer api.Close()
			network := ""
			if len(o.Networks) > 0 {
				network = o.Networks[0]
			}
			d, err := provision.Export(cmd.Context(), api, provision.Principal{Name: project, Domain: domain}, network)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if f.output == outputJSON {
				return printJSON(cmd.OutOrStdout(), d)
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), exported(cfg, c, d))
			return err
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&project, "project", "", "the project's name (default that of the declaration)")
	cmd.Flags().StringVar(&domain, "domain", "Default", "the name of the project's domain")
	return cmd
}

// exported writes a declaration as a piece of the configuration.
func exported(cfg *config.Config, c *config.Cloud, d provision.Declaration) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for _, n := range d.Notes {
		line("# %s", printable(n))
	}
	line("# For openstack of cloud %s:\ndeclared:", c.Name)
	line("  project: {name: %s, domain: %s}", quoted(d.Project.Name), quoted(d.Project.Domain))
	if q := exportedQuotas(d.ComputeQuotas, d.NetworkQuotas, d.VolumeQuotas); q != "" {
		line("  quotas: {%s}", q)
	}
	if q := exportedQuotas(d.DefaultQuotas); q != "" {
		line("  default_quotas: {%s}", q)
	}
	if n := d.Network; n != nil {
		line("  network:\n    name: %s\n    mtu: %d\n    cidr: %s", quoted(n.Name), n.MTU, n.CIDR)
		if len(n.DNS) > 0 {
			line("    dns: %s", strings.ReplaceAll(fmt.Sprint(n.DNS), " ", ", "))
		}
		if n.External != "" {
			line("    external: %s", quoted(n.External))
		}
	}
	if len(d.Groups) > 0 {
		line("  security_groups:")
	}
	for _, g := range d.Groups {
		line("    - name: %s\n      egress:", quoted(g.Name))
		for _, r := range g.Rules {
			line("        - %s", exportedRule(r))
		}
	}
	exportedFlavors(line, cfg, c.OpenStack, d.Flavors)
	return b.String()
}

// exportedQuotas gives those that can be declared: 0 means there that one is left as it
// is, and memory has no "no limit".
func exportedQuotas(sets ...map[string]int64) string {
	var parts []string
	for _, name := range []string{"instances", "cores", "ram", "port", "volumes", "gigabytes"} {
		for _, set := range sets {
			n := set[name]
			switch {
			case n == 0 || name == "ram" && n < 0:
			case name == "ram":
				parts = append(parts, fmt.Sprintf("memory: %dMiB", n))
			case name == "port":
				parts = append(parts, fmt.Sprintf("ports: %d", n))
			default:
				parts = append(parts, fmt.Sprintf("%s: %d", name, n))
			}
		}
	}
	return strings.Join(parts, ", ")
}

func exportedRule(r provision.Rule) string {
	everywhere := "0.0.0.0/0"
	if r.Ethertype == "IPv6" {
		everywhere = `"::/0"`
	}
	text := "cidr: " + cmp.Or(r.CIDR, everywhere)
	if r.CIDR != "" && r.Ethertype == "IPv6" {
		text = "cidr: " + quoted(r.CIDR)
	}
	switch r.Protocol {
	case "":
	case "ipv6-icmp": // the range says that it is that of IPv6
		text += ", protocol: icmp"
	default:
		text += ", protocol: " + r.Protocol
	}
	if r.First > 0 && (r.Protocol == "tcp" || r.Protocol == "udp") {
		text += fmt.Sprintf(`, ports: "%s"`, r.Ports())
	}
	return "{" + text + "}"
}

// unfitRE is what a flavor's name here may not have.
var unfitRE = regexp.MustCompile(`[^a-z0-9._-]+`)

// exportedFlavors writes the flavors, and what they are called there if a name does not
// do here.
func exportedFlavors(line func(string, ...any), cfg *config.Config, o *config.OpenStack, flavors []provision.Flavor) {
	models := map[string]string{}
	for _, g := range o.GPUs {
		model, _ := cfg.ModelFor(g.Model) // known: it was checked
		models[cmp.Or(g.Alias, model)] = model
	}
	names := map[string]string{}
	for _, f := range o.Flavors {
		names[f.Flavor] = f.Name
	}
	line("# For the configuration itself:\nflavors:")
	var renamed []string
	for _, f := range flavors {
		name := cmp.Or(names[f.Name], strings.Trim(unfitRE.ReplaceAllString(strings.ToLower(f.Name), "-"), "-._"))
		if f.Disk == 0 || f.RAM < 128 || name == "" {
			line("  # %s is left out: %d GiB of disk and %d MiB of memory are too little here", printable(f.Name), f.Disk, f.RAM)
			continue
		}
		if name != f.Name {
			renamed = append(renamed, fmt.Sprintf("{name: %s, flavor: %s}", name, quoted(f.Name)))
		}
		gpus := ""
		if alias, count, ok := strings.Cut(f.Alias, ":"); ok {
			gpus = fmt.Sprintf(", gpus: {model: %s, count: %s}", quoted(cmp.Or(models[alias], alias)), count)
		}
		line("  - {name: %s, vcpus: %d, memory: %dMiB, disk: %dGiB%s}", quoted(name), f.VCPUs, f.RAM, f.Disk, gpus)
	}
	if len(renamed) > 0 {
		slices.Sort(renamed)
		line("# For openstack of the cloud, as these are called otherwise there:\n# flavors: [%s]", strings.Join(renamed, ", "))
	}
}

// quoted gives a text as YAML's double-quoted form, which JSON's escapes are part of.
func quoted(s string) string { return strconv.QuoteToASCII(s) }
