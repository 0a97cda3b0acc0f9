package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"gpuserver"
	"gpuserver/internal/cloud/openstack/provision"
)

func newCloudPlanCommand() *cobra.Command {
	var f siteFlags
	var prune bool
	cmd := &cobra.Command{
		Use:   "plan CLOUD",
		Short: "Show what differs between the declaration and the cloud",
		Long: `Compares what the configuration declares for a cloud of type openstack with what is
there, and prints the difference:

  + is to be made           - is to be deleted (with --prune)
  ~ is to be changed        ! can be done by a person only
  ± is to be deleted and made anew, since it cannot be changed

What the credentials may not see is named, and so are images that are missing or
strange. Nothing is changed: run it from cron to be told when something drifts.

Exit status: 0 no changes, 3 changes, 2 it cannot be told: the cloud is away, the
configuration is wrong, or something could not be looked at and the rest has no
changes.`,
		Example: `  gpuserver cloud plan stack
  gpuserver cloud plan stack --prune
  gpuserver cloud plan stack --output json | jq '.changes[].name'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, c, err := f.declared(args[0])
			if err != nil {
				return err
			}
			site, d, done, err := openSite(cfg, c)
			if err != nil {
				return err
			}
			defer done()
			found, err := site.Look(cmd.Context())
			if err != nil {
				return &exitError{exitUsage, err}
			}
			p := provision.Diff(d, found, prune)
			if f.output == outputJSON {
				err = printJSON(cmd.OutOrStdout(), p)
			} else {
				err = printDifference(cmd.OutOrStdout(), p)
			}
			return errors.Join(err, told(p))
		},
	}
	f.add(cmd)
	addPruneFlag(cmd, &prune)
	return cmd
}

func addPruneFlag(cmd *cobra.Command, prune *bool) {
	cmd.Flags().BoolVar(prune, "prune", false, "delete what gpuserver made there and is not declared any more")
}

// told gives the exit status of a plan as an error.
func told(p provision.Plan) error {
	switch {
	case len(p.Changes) > 0:
		return &exitError{code: exitChanges}
	case len(p.Unknown) > 0:
		return &exitError{code: exitUsage}
	}
	return nil
}

var marks = map[provision.Action]string{
	provision.Create: "+", provision.Update: "~", provision.Replace: "±", provision.Delete: "-", provision.ByHand: "!",
}

// printDifference prints a plan as a diff.
func printDifference(w io.Writer, p provision.Plan) error {
	var b strings.Builder
	for _, c := range p.Changes {
		fmt.Fprintf(&b, "%s %s %s\n", marks[c.Action], c.Kind, printable(c.Name))
		for _, f := range c.Fields {
			fmt.Fprintf(&b, "    %s\n", printable(fieldText(f)))
		}
		if c.Note != "" {
			fmt.Fprintf(&b, "    (%s)\n", printable(c.Note))
		}
	}
	if len(p.Changes) > 0 {
		b.WriteString("\n")
	}
	for _, u := range p.Unknown {
		fmt.Fprintf(&b, "not looked at: %s: %s\n", u.Kind, printable(u.Why))
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "note: %s\n", printable(n))
	}
	switch n := len(p.Changes); {
	case n > 0:
		fmt.Fprintf(&b, "%s.\n", counted(n, "change"))
	case len(p.Unknown) > 0:
		b.WriteString("No changes in what could be looked at.\n")
	default:
		b.WriteString("No changes.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func fieldText(f provision.Field) string {
	switch {
	case f.Old == "":
		return "+ " + f.Name + ": " + f.New
	case f.New == "":
		return "- " + f.Name + ": " + f.Old
	}
	return "~ " + f.Name + ": " + f.Old + " → " + f.New
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// applied is what apply did, for programs.
type applied struct {
	provision.Plan
	Results []appliedChange `json:"results"`
}

// appliedChange is how one change went.
type appliedChange struct {
	Kind  provision.Kind `json:"kind"`
	Name  string         `json:"name"`
	Done  bool           `json:"done"`
	Error string         `json:"error,omitempty"`
	Note  string         `json:"note,omitempty"`
}

func newCloudApplyCommand() *cobra.Command {
	var f siteFlags
	var prune, yes bool
	cmd := &cobra.Command{
		Use:   "apply CLOUD",
		Short: "Make the cloud what the declaration says",
		Long: `Shows the same difference as "cloud plan", asks whether it is to be made so, and
prints a line for each change that is done. It may be run again at any time, and
does nothing if nothing differs. What a change made so far stays if another fails;
the next run goes on from there. Nothing is deleted unless --prune is given, except
that rules of a declared security group are exactly those declared, and that a
flavor whose size differs is deleted and made anew (servers keep theirs).

An application credential belongs to its user: the user is given a password that
nobody learns, and makes it. Its secret is told once only, and goes into the file
that the declaration names, which only its owner can read.

Exit status: 0 everything is as declared; 1 a change failed, was not confirmed, or
something could not be looked at; 2 the cloud is away or the configuration wrong.`,
		Example: `  gpuserver cloud apply stack
  gpuserver cloud apply stack --yes
  gpuserver cloud apply stack --prune`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.output == outputJSON && !yes {
				return usageError(cmd, errors.New("--output json cannot ask; give --yes, too"))
			}
			return applyCloud(cmd, &f, args[0], prune, yes)
		},
	}
	f.add(cmd)
	addPruneFlag(cmd, &prune)
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func applyCloud(cmd *cobra.Command, f *siteFlags, name string, prune, yes bool) error {
	cfg, c, err := f.declared(name)
	if err != nil {
		return err
	}
	site, d, done, err := openSite(cfg, c)
	if err != nil {
		return err
	}
	defer done()
	found, err := site.Look(cmd.Context())
	if err != nil {
		return &exitError{exitUsage, err}
	}
	p := provision.Diff(d, found, prune)
	w, asJSON := cmd.OutOrStdout(), f.output == outputJSON
	if !asJSON {
		if err := printDifference(w, p); err != nil {
			return err
		}
		if len(p.Changes) > 0 && !yes && !confirmed(cmd, fmt.Sprintf("Make %s on cloud %s?", counted(len(p.Changes), "change"), name)) {
			return gpuserver.Errorf(gpuserver.KindRefused, "not confirmed: nothing was changed")
		}
	}
	out := applied{Plan: p, Results: []appliedChange{}}
	failed := 0
	err = site.Apply(cmd.Context(), p, found, func(r provision.Result) {
		one := appliedChange{Kind: r.Kind, Name: r.Name, Done: r.Err == nil, Note: r.Note}
		if r.Err != nil {
			failed++
			one.Error = gpuserver.PublicText(r.Err)
		}
		out.Results = append(out.Results, one)
		if !asJSON {
			_, _ = fmt.Fprintln(w, printable(progress(r)))
		}
	})
	if asJSON {
		err = errors.Join(err, printJSON(w, out))
	}
	switch {
	case err != nil:
		return err
	case failed > 0:
		return fmt.Errorf("%s of %d failed", counted(failed, "change"), len(p.Changes))
	case len(p.Unknown) > 0:
		return fmt.Errorf("%s could not be looked at", counted(len(p.Unknown), "kind"))
	}
	return nil
}

// progress is the line of a change that is over.
func progress(r provision.Result) string {
	done := map[provision.Action]string{
		provision.Create: "made", provision.Update: "changed", provision.Replace: "made anew", provision.Delete: "deleted", provision.ByHand: "",
	}[r.Action]
	line := fmt.Sprintf("%s %s: %s", r.Kind, r.Name, done)
	if r.Err != nil {
		line = fmt.Sprintf("%s %s: FAILED: %s", r.Kind, r.Name, gpuserver.PublicText(r.Err))
	}
	if r.Note != "" {
		line += "; " + r.Note
	}
	return line
}

// confirmed asks a person. An input that ended is no.
func confirmed(cmd *cobra.Command, question string) bool {
	_, _ = fmt.Fprint(cmd.ErrOrStderr(), question+" [y/N] ")
	line, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return true
	}
	return false
}
