package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"gpuserver/internal/config"
)

func newServeCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the service",
		Long: `Takes jobs from the forges of the configuration file, makes a fresh VM for each
one and deletes it when the job ends.

Three listeners: webhooks (deliveries from the forges), agent (for the VMs only)
and api (API, pages and metrics, on loopback; the same on a socket that only root
can open, which the other commands use). The log goes to standard error.

On SIGTERM it takes no new work and ends within 10 seconds. Running jobs go on in
their VMs; the next start takes everything up where it was. After a crash, too:
what it needs is in server.data_dir.`,
		Example: `  gpuserver config sample > /etc/gpuserver/gpuserver.yaml
  gpuserver config check /etc/gpuserver/gpuserver.yaml
  gpuserver serve
  gpuserver serve --config gpuserver.yaml`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			return serve(cmd.Context(), cfg, cmd.ErrOrStderr())
		},
	}
	addConfigFlag(cmd, &path)
	return cmd
}

// serve runs the service until ctx is done.
func serve(ctx context.Context, cfg *config.Config, stderr io.Writer) error {
	log := newLog(cfg.Server.Log, stderr)
	s, err := newServer(ctx, cfg, log)
	if err != nil {
		return fmt.Errorf("the service cannot start: %w", err)
	}
	defer s.Close()
	return s.Run(ctx)
}

// newLog makes the log that the configuration asks for.
func newLog(c config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration { // JSON would have nanoseconds
			a.Value = slog.StringValue(a.Value.Duration().String())
		}
		return a
	}}
	if c.Format == "text" {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}
