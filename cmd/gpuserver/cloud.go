package main

import (
	"errors"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"gpuserver"
	"gpuserver/internal/cloud/openstack"
	"gpuserver/internal/cloud/openstack/provision"
	"gpuserver/internal/config"
)

func newCloudCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "cloud",
		Aliases: []string{"clouds"},
		Short:   "Declare, compare and check what an OpenStack has to have",
		Long: `A cloud of type openstack has to have a project, flavors, quotas, a network and so
on. "openstack.declared" of the cloud in the configuration says which: "cloud plan"
shows what differs, "cloud apply" makes it so, "cloud check" and "cloud show" look
at the cloud as it is, and "cloud export" writes a declaration of it. Images are the
matter of "gpuserver image".

With "declared.admin" they log in as the administrator that it names, else as the
service does; what the credentials may not see or do is named, and the rest goes
on. The service need not run, but for "cloud resume", which ends the suspension of a
flavor for which the cloud found no host.`,
		Example: `  gpuserver cloud plan stack
  gpuserver cloud apply stack --yes
  gpuserver cloud check stack`,
	})
	cmd.AddCommand(newCloudPlanCommand(), newCloudApplyCommand(), newCloudCheckCommand(), newCloudShowCommand(), newCloudExportCommand(), newCloudResumeCommand())
	return cmd
}

// exitChanges is the exit status of a plan that has changes.
const exitChanges = 3

// siteFlags say which cloud of which configuration is meant.
type siteFlags struct {
	config string
	output outputFormat
}

func (f *siteFlags) add(cmd *cobra.Command) {
	addConfigFlag(cmd, &f.config)
	addOutputFlag(cmd, &f.output)
	cmd.Args = exactArgs(1)
	cmd.ValidArgsFunction = f.complete
}

// complete gives the configuration's clouds of type openstack.
func (f *siteFlags) complete(_ *cobra.Command, args []string, _ string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
	cfg, err := config.Load(f.config)
	if err == nil && len(args) == 0 {
		for _, c := range cfg.Clouds {
			if c.OpenStack != nil {
				names = append(names, c.Name)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// load gives the cloud of a name. An error is the configuration's.
func (f *siteFlags) load(name string) (*config.Config, *config.Cloud, error) {
	cfg, err := config.Load(f.config)
	if err != nil {
		if problems, ok := errors.AsType[config.Problems](err); ok {
			err = problems
		}
		return nil, nil, &exitError{exitUsage, err}
	}
	var names []string
	for i := range cfg.Clouds {
		c := &cfg.Clouds[i]
		switch {
		case c.Name == name && c.OpenStack == nil:
			return nil, nil, &exitError{exitUsage, gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s is of type %s; these commands are for type openstack", name, c.Type)}
		case c.Name == name:
			return cfg, c, nil
		case c.OpenStack != nil:
			names = append(names, c.Name)
		}
	}
	return nil, nil, &exitError{exitUsage, gpuserver.Errorf(gpuserver.KindNotFound, "the configuration %s has no cloud %q of type openstack; it has %s", f.config, name, list(names))}
}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// declared gives the cloud of a name with its declaration.
func (f *siteFlags) declared(name string) (*config.Config, *config.Cloud, error) {
	cfg, c, err := f.load(name)
	if err == nil && c.OpenStack.Declared == nil {
		err = &exitError{exitUsage, gpuserver.Errorf(gpuserver.KindInvalid, "cloud %s declares nothing: give openstack.declared in the configuration (gpuserver config sample shows it, and gpuserver cloud export %s writes one)", name, name)}
	}
	return cfg, c, err
}

// dialService logs in as the service does.
func dialService(cfg *config.Config, c *config.Cloud) (*openstack.API, error) {
	return openstack.Dial(openStackConfig(cfg, c, cfg.Server.Name), slog.New(slog.DiscardHandler))
}

// dialAdmin logs in as the administrator, if the configuration names one.
func dialAdmin(cfg *config.Config, c *config.Cloud) (*openstack.API, error) {
	o := openStackConfig(cfg, c, cfg.Server.Name)
	if d := c.OpenStack.Declared; d != nil && d.Admin != nil {
		o.Credentials.CloudsFile, o.Credentials.Cloud = string(d.Admin.CloudsFile), d.Admin.Cloud
	}
	return openstack.Dial(o, slog.New(slog.DiscardHandler))
}

// openSite gives the cloud as the administrator sees it, with its declaration.
func openSite(cfg *config.Config, c *config.Cloud) (*provision.Site, provision.Declaration, func(), error) {
	d := declaration(cfg, c)
	api, err := dialAdmin(cfg, c)
	if err != nil {
		return nil, d, nil, &exitError{exitUsage, err}
	}
	return provision.New(api, d), d, api.Close, nil
}
