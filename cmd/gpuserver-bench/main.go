// Command gpuserver-bench measures the service and writes its figures as JSON.
//
//	gpuserver-bench --out FILE [--part NAME]... [--dir DIR] [--server PROGRAM]
//	gpuserver-bench --table FILE [--section figures|week|openstack]
//
// make bench calls it through scripts/bench. What the figures mean is in
// docs/performance.md. The program is also the forge, the cloud and the load,
// which it starts as processes of their own.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"gpuserver/internal/bench"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if is, err := bench.ServeRole(ctx); is {
		return report(err, stderr)
	}
	c, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case c.table != "":
		r, err := bench.ReadReport(c.table)
		for _, section := range c.sections {
			if err == nil {
				err = bench.WriteSection(stdout, r, section)
			}
		}
		return report(err, stderr)
	}
	r, err := bench.Run(ctx, c.options)
	if err != nil {
		return report(err, stderr)
	}
	for _, section := range c.sections {
		if err := bench.WriteSection(stderr, r, section); err != nil {
			return report(err, stderr)
		}
	}
	return report(r.Write(c.out), stderr)
}

func report(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "gpuserver-bench:", err)
	return 1
}

type command struct {
	out, table string
	sections   []string // of the table
	options    bench.Options
}

func parse(args []string, stderr io.Writer) (c command, err error) {
	self, err := os.Executable()
	if err != nil {
		return c, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "."
	}
	c.sections = []string{"figures", "week", "openstack"}
	c.options = bench.Options{Self: self, Size: bench.FullSize(), Progress: stderr}
	f := flag.NewFlagSet("gpuserver-bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&c.out, "out", "-", "`file` for the figures; - is standard output")
	f.StringVar(&c.table, "table", "", "print the Markdown table of a `file` of figures, and measure nothing")
	f.Func("section", "print only this `section` of the table: figures, week or openstack (default all)", func(s string) error {
		c.sections = []string{s}
		return nil
	})
	f.StringVar(&c.options.Server, "server", filepath.Join(filepath.Dir(self), "gpuserver"), "the `program` to measure")
	f.StringVar(&c.options.Dir, "dir", filepath.Join(cache, "gpuserver", "bench"), "`folder` on a real disk for the databases; emptied again")
	f.StringVar(&c.options.Clouds, "clouds", "", "clouds.yaml `file` for the parts openstack-…; entries admin and member")
	atOnce := f.Int("at-once", 0, "VMs at once in part openstack-burst; 0 is the usual `number`, which takes ten minutes and more on two cores")
	alive := f.Int("alive", 0, "VMs alive in part openstack-idle; 0 is the usual `number`")
	f.BoolVar(&c.options.LeaveServers, "leave-servers", false, "the cloud is ended anyway: leave the servers there")
	f.BoolVar(&c.options.Keep, "keep", false, "keep logs and databases in that folder")
	f.Func("part", "measure only this `part`; may be repeated (see below)", func(s string) error {
		c.options.Parts = append(c.options.Parts, strings.Split(s, ",")...)
		return nil
	})
	f.Func("env", "`NAME=VALUE` in the service's environment, such as GODEBUG=gctrace=1", func(s string) error {
		c.options.Environment = append(c.options.Environment, s)
		return nil
	})
	f.Func("onto", "add to a `file` of figures: parts that are not measured now stay", func(s string) (err error) {
		c.options.Onto, err = bench.ReadReport(s)
		return err
	})
	small := f.Bool("small", false, "show in seconds that all parts work; the figures mean nothing")
	f.Usage = func() {
		fmt.Fprintln(stderr, "gpuserver-bench measures the service and writes its figures as JSON.\n\n  gpuserver-bench --out FILE [--part NAME]...\n  gpuserver-bench --table FILE [--section figures|week|openstack]\n\nFlags:")
		f.PrintDefaults()
		fmt.Fprintln(stderr, "\nParts:")
		names, what := bench.Parts()
		for i, n := range names {
			fmt.Fprintf(stderr, "  %-16s %s\n", n, what[i])
		}
	}
	if err := f.Parse(args); err != nil {
		return c, err
	}
	if f.NArg() > 0 {
		err := fmt.Errorf("unexpected argument %q; see --help", f.Arg(0))
		fmt.Fprintln(stderr, "gpuserver-bench:", err)
		return c, err
	}
	if *small {
		c.options.Size = bench.SmallSize()
	}
	c.options.Size.StackBurst = cmp.Or(*atOnce, c.options.Size.StackBurst)
	c.options.Size.StackLive = cmp.Or(*alive, c.options.Size.StackLive)
	return c, nil
}
