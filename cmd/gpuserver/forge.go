package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"gpuserver/internal/cirun"
	"gpuserver/internal/config"
	"gpuserver/internal/forge/github"
)

func newForgeCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "forge",
		Short: "Check what the forges let us do",
		Long: `A forge lets a GitHub App do what was granted to it, and tells it only the events
that it subscribed to. "forge check" compares both with what the configuration
needs, before a job waits for it.`,
		Example: `  gpuserver forge check
  gpuserver forge check github --config gpuserver.yaml`,
	})
	cmd.AddCommand(newForgeCheckCommand())
	return cmd
}

func newForgeCheckCommand() *cobra.Command {
	var path string
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "check [FORGE]",
		Short: "Compare permissions, events, runner groups and clock with what is needed",
		Long: `Asks each forge of the configuration (or only FORGE) what the App was granted on
each installation, which events it subscribes to, whether its runner group may be
used, where its webhook points, and what time it is. Each finding is pass, warn or
fail, says why it is needed, and what mends it. Nothing is changed; it costs a few
calls. The service need not run.

Exit status: 0 nothing failed (warnings do not count), 1 something failed, 2 the
configuration is wrong or has no such forge.`,
		Example: `  gpuserver forge check
  gpuserver forge check github --config gpuserver.yaml --output json`,
		Args: checkedArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			return checkForges(cmd.Context(), cfg, args, output, cmd.OutOrStdout())
		},
	}
	addConfigFlag(cmd, &path)
	addOutputFlag(cmd, &output)
	return cmd
}

// forgeFindings is what was found out about one forge.
type forgeFindings struct {
	Forge    string           `json:"forge"`
	Findings []github.Finding `json:"findings"`
}

func checkForges(ctx context.Context, cfg *config.Config, names []string, output outputFormat, w io.Writer) error {
	var all []forgeFindings
	failed := 0
	for i := range cfg.Forges {
		f := &cfg.Forges[i]
		if len(names) > 0 && f.Name != names[0] {
			continue
		}
		found, err := checkForge(ctx, cfg, f)
		if err != nil {
			return err
		}
		for _, x := range found {
			if x.Level == github.Fail {
				failed++
			}
		}
		all = append(all, forgeFindings{f.Name, found})
	}
	if len(all) == 0 {
		return &exitError{exitUsage, fmt.Errorf("the configuration has no such forge; it has: %s", strings.Join(forgeNames(cfg), ", "))}
	}
	var err error
	if output == outputJSON {
		err = printJSON(w, all)
	} else {
		err = printFindings(w, all)
	}
	if err == nil && failed > 0 {
		return &exitError{code: exitFailed}
	}
	return err
}

func forgeNames(cfg *config.Config) (names []string) {
	for _, f := range cfg.Forges {
		names = append(names, f.Name)
	}
	return names
}

func checkForge(ctx context.Context, cfg *config.Config, f *config.Forge) ([]github.Finding, error) {
	client, err := openForge(ctx, f)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	// Organisations' own access files may name teams, too; which, only each job's
	// decision finds out, so the permission is always asked about.
	return client.Diagnose(ctx, github.DiagnoseOptions{
		Teams: f.Config.AccessFile != "" || namesTeams(cfg.AccessFile()), Pull: f.Mode == "pull", Checks: true, Rerun: cfg.Jobs.RerunOnGPUFailure,
	}), nil
}

func namesTeams(a *cirun.Access) bool {
	return a != nil && slices.ContainsFunc(a.Policies, func(p cirun.Policy) bool { return p.Teams.Given })
}

func printFindings(w io.Writer, all []forgeFindings) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range all {
		for _, x := range f.Findings {
			_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", strings.ToUpper(string(x.Level)), f.Forge, x.Check, x.Text)
			if x.Level != github.Pass && x.Why != "" {
				_, _ = fmt.Fprintf(tw, "\t\t\tneeded because: %s\n", x.Why)
			}
			if x.Level != github.Pass && x.Mend != "" {
				_, _ = fmt.Fprintf(tw, "\t\t\tmend: %s\n", x.Mend)
			}
		}
	}
	return tw.Flush()
}
