package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/spf13/cobra"

	"gpuserver"
	"gpuserver/internal/api"
)

// gpuVerdict is how the test of a card ended.
type gpuVerdict struct {
	Passed bool                 `json:"passed"`
	Job    gpuserver.JobID      `json:"job"`
	Text   string               `json:"text"` // how the job ended
	GPU    api.GPUInfo          `json:"gpu"`
	Events []gpuserver.GPUEvent `json:"events"` // what the test added to the card's history, newest first
}

func newGPUTestCommand() *cobra.Command {
	var server serverFlags
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "test GPU",
		Short: "Run a job on just this GPU and say whether it is well",
		Long: `Runs a job in a fresh VM with just this GPU, also one that is cordoned or
quarantined, shows what the job prints, and says what the checks before and after
it found. The GPU's state stays as it is: "gpuserver gpu uncordon" puts it back.
Ctrl-C cancels the test and waits until that is done.

Exit status: 0 it passed; 1 it did not, or it could not be tested; 130 interrupted.

` + gpuNames + serverHelp,
		Example: `  gpuserver gpu test 3
  gpuserver gpu test node1/27:00.0 && gpuserver gpu uncordon node1/27:00.0`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return server.ask(cmd, func(ctx context.Context, c *api.Client) error {
				stdout, stderr := cmd.OutOrStdout(), cmd.ErrOrStderr()
				jobOut := stdout
				if output == outputJSON { // one document is printed, and nothing beside it
					stderr = &oneAtATime{w: stderr}
					jobOut = stderr
				}
				v, err := testGPU(ctx, c, args[0], jobOut, stderr)
				if err != nil {
					return err
				}
				if output == outputJSON {
					err = printJSON(stdout, v)
				} else {
					err = printVerdict(stdout, v)
				}
				if err == nil && !v.Passed {
					err = &exitError{code: exitFailed}
				}
				return err
			})
		},
	}
	server.add(cmd)
	addOutputFlag(cmd, &output)
	cmd.ValidArgsFunction = server.complete(false, gpuCompletions)
	return cmd
}

// oneAtATime lets both streams of a job write to one place.
type oneAtATime struct {
	mu sync.Mutex
	w  io.Writer
}

// Write implements io.Writer.
func (o *oneAtATime) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.Write(p)
}

// testGPU starts the test, copies its output and reads what became of the card.
func testGPU(ctx context.Context, c *api.Client, ref string, stdout, stderr io.Writer) (v gpuVerdict, err error) {
	d, err := c.GPU(ctx, ref)
	if err != nil {
		return v, err
	}
	number := fmt.Sprint(d.GPU.ID) // what ref means may change meanwhile
	// As for run: the answer says what to cancel, so Ctrl-C does not cut it off.
	starting, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
	id, err := c.TestGPU(starting, number)
	cancel()
	if err != nil {
		return v, err
	}
	run := &commandRun{client: c, id: id, out: map[string]io.Writer{"stdout": stdout, "stderr": stderr}}
	if isTerminal(stderr) {
		run.progress = stderr
	}
	s, err := run.follow(ctx)
	switch {
	case run.unread.Load():
		return v, &exitError{exitPipe, err}
	case run.interrupted.Load():
		return v, &exitError{exitInterrupted, err}
	case err != nil:
		return v, err
	}
	if d, err = c.GPU(ctx, number); err != nil {
		return v, err
	}
	es, err := c.GPUHistory(ctx, number, 100)
	v = gpuVerdict{Job: id, GPU: d.GPU, Text: s.Sentence, Events: slices.DeleteFunc(es, func(e gpuserver.GPUEvent) bool { return e.Job != id })}
	v.Passed = s.State == gpuserver.JobDone && s.Conclusion == "success" &&
		!slices.ContainsFunc(v.Events, func(e gpuserver.GPUEvent) bool { return e.Kind == "strike" })
	return v, err
}

func printVerdict(w io.Writer, v gpuVerdict) error {
	if len(v.Events) > 0 {
		if err := printGPUHistory(w, v.Events); err != nil {
			return err
		}
		_, _ = fmt.Fprintln(w)
	}
	text := fmt.Sprintf("GPU %d passed the test (job %d).", v.GPU.ID, v.Job)
	if !v.Passed {
		text = fmt.Sprintf("GPU %d did not pass the test (job %d): %s", v.GPU.ID, v.Job, cmp.Or(v.Text, "the job did not run to its end."))
	}
	text += " " + standing(v.GPU)
	if v.GPU.Help != "" && v.GPU.State != gpuserver.GPUInService {
		text += " " + v.GPU.Help
	}
	_, err := fmt.Fprintln(w, printable(text))
	return err
}
