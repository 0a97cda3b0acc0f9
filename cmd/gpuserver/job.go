package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpuserver"
	"gpuserver/internal/api"
)

func newJobCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "job",
		Short: "Look at jobs, explain them, cancel and retry them",
		Long: `Asks a running server about the jobs that it knows: those of its forges and those
of "gpuserver run". A job is named by its number, the first column of the list.
` + serverHelp,
		Example: `  gpuserver job list --state queued
  gpuserver job explain 42`,
	}
	cmd.AddCommand(newJobListCommand(), newJobShowCommand(), newJobExplainCommand(),
		newJobActCommand("cancel", "Cancel jobs", `Ends jobs on our side: a VM that was made for one is taken down. The forge is not
told to cancel: a job that is queued there stays queued until somebody cancels it
or "gpuserver job retry" takes it up again.`, "cancelled", (*api.Client).CancelJob),
		newJobActCommand("retry", "Decide jobs again", `Decides jobs again from the start, at once: for jobs that were refused, failed or
wait, after what kept them was changed. A job that runs, or that the forge says
is completed, cannot be retried: re-run it on the forge.`, "is decided again", (*api.Client).RetryJob))
	return group(cmd)
}

// jobStates are the states in which jobs are listed.
var jobStates = []string{"waiting", "received", "refused", "queued", "starting", "running", "done", "failed"}

// knownStates complains of the first state that is none.
func knownStates(given, known []string) error {
	for _, s := range given {
		if !slices.Contains(known, s) {
			return fmt.Errorf("unknown state %q; it is one of %s", s, strings.Join(known, ", "))
		}
	}
	return nil
}

func newJobListCommand() *cobra.Command {
	var server serverFlags
	var output outputFormat
	var states []string
	var repo string
	var limit int
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List jobs, newest first",
		Long: `Lists jobs, newest first: by default the newest 100 in any state.

States: waiting (held back by the forge), received (being decided), refused,
queued (waits for a VM), starting (its VM is being made), running, done, failed
(no VM could be made).
` + serverHelp,
		Example: `  gpuserver job list
  gpuserver job list --state queued,starting --repo octo-org/hello
  gpuserver job list --limit 1000 --output json`,
		Args: checkedArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := knownStates(states, jobStates); err != nil {
				return usageError(cmd, err)
			}
			if limit < 1 || limit > 1000 {
				return usageError(cmd, fmt.Errorf("--limit %d is not between 1 and 1000", limit))
			}
			return server.ask(cmd, func(ctx context.Context, c *api.Client) error {
				jobs, err := c.Jobs(ctx, states, repo, limit)
				if err != nil {
					return err
				}
				if output == outputJSON {
					return printJSON(cmd.OutOrStdout(), api.JobList{Jobs: jobs})
				}
				return printJobs(cmd.OutOrStdout(), jobs)
			})
		},
	}
	server.add(cmd)
	addOutputFlag(cmd, &output)
	cmd.Flags().StringSliceVar(&states, "state", nil, "only jobs in these states (default any)")
	cmd.Flags().StringVar(&repo, "repo", "", "only jobs of this repository, as OWNER/NAME (default any)")
	cmd.Flags().IntVar(&limit, "limit", 100, "at most so many")
	must(cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(jobStates, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func printJobs(w io.Writer, jobs []gpuserver.Job) error {
	if len(jobs) == 0 {
		_, err := fmt.Fprintln(w, "No jobs.")
		return err
	}
	rows := make([][]string, len(jobs))
	for i, j := range jobs {
		about := j.Conclusion
		if about == "" {
			about = j.Reason.Text
		}
		rows[i] = []string{
			fmt.Sprint(j.ID), string(j.State), j.Repo, j.Name, strings.Join(j.Labels, " "),
			ago(cmp.Or(j.QueuedAt, j.CreatedAt)), lasted(j.StartedAt, j.EndedAt), about,
		}
	}
	return printTable(w, []string{"JOB", "STATE", "REPOSITORY", "NAME", "LABELS", "QUEUED", "RAN", "ABOUT"}, rows)
}

func newJobShowCommand() *cobra.Command {
	return readsJob(&cobra.Command{
		Use:   "show JOB",
		Short: "Show a job with its phases and history",
		Long: `Shows all that is known of one job: where it comes from, the VM that it has or
had, the phases that it passed with the seconds from one to the next, and its
history.
` + serverHelp,
		Example: `  gpuserver job show 42
  gpuserver job show 42 --output json | jq .phases`,
	}, (*api.Client).Job, printJob)
}

// readsJob makes cmd a command that reads one thing of one job and prints it as
// text or JSON.
func readsJob[T any](cmd *cobra.Command, read func(*api.Client, context.Context, gpuserver.JobID) (T, error), print func(io.Writer, T) error) *cobra.Command {
	var server serverFlags
	var output outputFormat
	cmd.Args = exactArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := jobID(cmd, args[0])
		if err != nil {
			return err
		}
		return server.ask(cmd, func(ctx context.Context, c *api.Client) error {
			v, err := read(c, ctx, id)
			if err != nil {
				return err
			}
			if output == outputJSON {
				return printJSON(cmd.OutOrStdout(), v)
			}
			return print(cmd.OutOrStdout(), v)
		})
	}
	server.add(cmd)
	addOutputFlag(cmd, &output)
	cmd.ValidArgsFunction = server.complete(false, jobCompletions)
	return cmd
}

func printJob(w io.Writer, d api.JobDetail) error {
	j, vm := d.Job, ""
	if d.VM != nil {
		vm = fmt.Sprintf("%s (%s) on %s/%s, flavor %s, image %s", d.VM.Name, d.VM.State, d.VM.Cloud, d.VM.Host, d.VM.Flavor, d.VM.Image)
	}
	command := ""
	if j.Command != nil {
		command = strings.Join(j.Command.Args, " ")
	}
	err := fields(w, "job", fmt.Sprint(j.ID), "state", string(j.State), "conclusion", j.Conclusion, "reason", j.Reason.Text, "help", j.Reason.Help,
		"name", j.Name, "workflow", j.Workflow, "repository", j.Repo, "command", command, "branch", j.HeadBranch, "commit", j.HeadSHA, "actor", j.Actor, "labels", strings.Join(j.Labels, " "),
		"url", j.URL, "runner", j.RunnerName, "vm", vm, "queued", ago(j.QueuedAt), "ran", lasted(j.StartedAt, j.EndedAt))
	if err != nil {
		return err
	}
	if err := printCards(w, d.GPUs); err != nil {
		return err
	}
	if len(d.Phases) > 0 {
		rows := make([][]string, len(d.Phases))
		for i, p := range d.Phases {
			rows[i] = []string{p.Name, p.At.Local().Format("15:04:05.000"), strconv.FormatFloat(p.Seconds, 'f', 3, 64)}
		}
		_, _ = fmt.Fprintln(w)
		if err := printTable(w, []string{"PHASE", "AT", "SECONDS"}, rows); err != nil {
			return err
		}
	}
	return printHistory(w, d.Events)
}

func printHistory(w io.Writer, es []gpuserver.Event) error {
	if len(es) == 0 {
		return nil
	}
	rows := make([][]string, len(es))
	for i, e := range es {
		rows[i] = []string{e.At.Local().Format(time.DateTime), e.Kind, e.Text}
	}
	_, _ = fmt.Fprintln(w)
	return printTable(w, []string{"TIME", "EVENT", "WHY"}, rows)
}

func newJobExplainCommand() *cobra.Command {
	return readsJob(&cobra.Command{
		Use:   "explain JOB",
		Short: "Say why a job waits or was refused, and what would change it",
		Long: `Says in a sentence why a job is where it is, its place in the queue, and what
would change that; then what led there.
` + serverHelp,
		Example: `  gpuserver job explain 42`,
	}, (*api.Client).Explain, printExplanation)
}

func printExplanation(w io.Writer, x api.Explanation) error {
	if _, err := fmt.Fprintf(w, "Job %d is %s. %s\n", x.Job, x.State, printable(x.Sentence)); err != nil {
		return err
	}
	place, next := "", ""
	if x.Position > 0 {
		place = fmt.Sprintf("%d of %d", x.Position, x.Waiting)
	}
	if !x.NextTry.IsZero() {
		next = ago(x.NextTry)
	}
	if err := fields(w, "place", place, "class", string(x.Class), "next try", next, "remedy", x.Help); err != nil {
		return err
	}
	if err := printCards(w, x.GPUs); err != nil {
		return err
	}
	return printHistory(w, x.History)
}

// newJobActCommand makes a command that does one thing to each job it is given.
func newJobActCommand(verb, short, long, done string, act func(*api.Client, context.Context, gpuserver.JobID) error) *cobra.Command {
	var server serverFlags
	cmd := &cobra.Command{
		Use:     verb + " JOB...",
		Short:   short,
		Long:    long + "\n" + serverHelp,
		Example: "  gpuserver job " + verb + " 42\n  gpuserver job " + verb + " 42 43 44",
		Args:    checkedArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids := make([]gpuserver.JobID, len(args))
			for i, a := range args {
				var err error
				if ids[i], err = jobID(cmd, a); err != nil {
					return err
				}
			}
			return server.ask(cmd, func(ctx context.Context, c *api.Client) error {
				var errs []error
				for _, id := range ids {
					if err := act(c, ctx, id); err != nil {
						errs = append(errs, fmt.Errorf("job %d: %w", id, err))
						continue
					}
					_, _ = fmt.Fprintf(cmd.OutOrStdout(), "Job %d %s.\n", id, done)
				}
				return errors.Join(errs...)
			})
		},
	}
	server.add(cmd)
	cmd.ValidArgsFunction = server.complete(true, jobCompletions)
	return cmd
}

func jobID(cmd *cobra.Command, s string) (gpuserver.JobID, error) {
	id, err := strconv.ParseInt(s, 10, 64)
	if err != nil || id < 1 {
		return 0, usageError(cmd, fmt.Errorf("%q is not the number of a job; 'gpuserver job list' has them", s))
	}
	return gpuserver.JobID(id), nil
}

func jobCompletions(ctx context.Context, c *api.Client) ([]cobra.Completion, error) {
	jobs, err := c.Jobs(ctx, nil, "", 50)
	cs := make([]cobra.Completion, len(jobs))
	for i, j := range jobs {
		cs[i] = cobra.CompletionWithDesc(fmt.Sprint(j.ID), printable(string(j.State)+" "+j.Repo+" "+j.Name))
	}
	return cs, err
}

// must is for the registration of what was added a line before.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
