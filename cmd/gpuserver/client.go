package main

import (
	"cmp"
	"context"
	"os"
	"time"

	"github.com/spf13/cobra"

	"gpuserver/internal/api"
)

// defaultSocket is where a server on this machine listens for root.
const defaultSocket = "/run/gpuserver/api.sock"

// The environment says where the server is and what token to send, so that
// neither needs to be typed and the token is in no list of processes.
const (
	envServer = "GPUSERVER_SERVER"
	envToken  = "GPUSERVER_TOKEN"
)

// serverHelp is part of the help of each command that asks a server.
const serverHelp = `
The running server is found by --server, else by $GPUSERVER_SERVER, else at the
socket ` + defaultSocket + `, which only root can open. Over an URL a
token of the configuration's api.tokens is sent from $GPUSERVER_TOKEN.`

// serverFlags say which running server a command asks.
type serverFlags struct{ server string }

// add gives cmd the flag --server.
func (f *serverFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.server, "server", "", "URL or socket of the server (default $GPUSERVER_SERVER, else "+defaultSocket+")")
}

// named reports whether the caller said which server is meant.
func (f *serverFlags) named() bool { return f.server != "" || os.Getenv(envServer) != "" }

func (f *serverFlags) dial() (*api.Client, error) {
	return api.NewClient(cmp.Or(f.server, os.Getenv(envServer), defaultSocket), os.Getenv(envToken))
}

// ask runs fn with a client of the server.
func (f *serverFlags) ask(cmd *cobra.Command, fn func(ctx context.Context, c *api.Client) error) error {
	c, err := f.dial()
	if err != nil {
		return &exitError{exitUsage, err}
	}
	defer c.Close()
	return fn(cmd.Context(), c)
}

// A completion is asked for while somebody types.
const completionLimit = 2 * time.Second

// complete makes a completion of arguments of what the server lists; a server
// that does not answer completes nothing. Only the first argument is completed
// unless many is set.
func (f *serverFlags) complete(many bool, list func(ctx context.Context, c *api.Client) ([]cobra.Completion, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 && !many {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmp.Or(cmd.Context(), context.Background()), completionLimit)
		defer cancel()
		c, err := f.dial()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		found, err := list(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}
