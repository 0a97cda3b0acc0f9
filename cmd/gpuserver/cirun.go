package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"gpuserver/internal/cirun"
	"gpuserver/internal/config"
)

func newCirunCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "cirun",
		Short: "Check files in Cirun's form",
		Long: `Runners and access are described in the form of the hosted service Cirun:
.cirun.yml in a repository, .cirun.global.yml and .access.yml in the .cirun
repository of an organisation. The service reads such files leniently: what it
does not understand disables only the entry that it stands in. "cirun lint" says
what that is before a job waits for it.`,
		Example: `  gpuserver cirun lint .
  gpuserver cirun lint --config gpuserver.yaml ../.cirun`,
	})
	cmd.AddCommand(newCirunLintCommand())
	return cmd
}

func newCirunLintCommand() *cobra.Command {
	var configPath string
	var rules bool
	cmd := &cobra.Command{
		Use:   "lint DIR",
		Short: "Find what is wrong in .cirun.yml, .cirun.global.yml and .access.yml",
		Long: `Reads the files .cirun.global.yml, .access.yml and .cirun.yml in DIR, with or
without the leading dot, and prints what is wrong or doubtful in them, one a line:

  FILE:LINE: RULE: text

FILE is relative to DIR; --rules lists the rules. With --config the names in the
files are compared with what that configuration maps: clouds and regions,
instance types and machine images. Nothing is changed and nobody is asked.

Exit status: 0 nothing found, 1 something found, 2 DIR holds no such file, or one
cannot be read as YAML.`,
		Example: `  gpuserver cirun lint .
  gpuserver cirun lint --config gpuserver.yaml ../.cirun
  gpuserver cirun lint --rules`,
		Args: checkedArgs(func(cmd *cobra.Command, args []string) error {
			if rules {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			if rules {
				return printRules(cmd.OutOrStdout())
			}
			return lintCirun(cmd.OutOrStdout(), args[0], configPath)
		},
	}
	cmd.Flags().StringVarP(&configPath, "config", "c", "", "compare with this configuration file (default: compare with none)")
	cmd.Flags().BoolVar(&rules, "rules", false, "print the rules and what each finds, and do nothing else")
	if err := cmd.MarkFlagFilename("config", "yaml", "yml"); err != nil {
		panic(err) // the flag was added two lines before
	}
	return cmd
}

func printRules(w io.Writer) error {
	for _, r := range cirun.RuleDocs {
		if _, err := fmt.Fprintf(w, "%-17s %s\n", r.Rule, r.Text); err != nil {
			return err
		}
	}
	return nil
}

// lintCirun prints the findings and gives the exit status as an error.
func lintCirun(w io.Writer, dir, configPath string) error {
	var mapping *cirun.Mapping
	if configPath != "" {
		c, err := config.Load(configPath)
		if err != nil {
			return &exitError{exitUsage, err}
		}
		m := c.Mapping()
		mapping = &m
	}
	findings, err := lintDir(dir, mapping)
	for _, f := range findings {
		if _, err := fmt.Fprintln(w, f); err != nil {
			return err
		}
	}
	switch {
	case err != nil:
		return &exitError{exitUsage, err}
	case len(findings) > 0:
		return &exitError{code: exitFailed}
	}
	return nil
}

// lintDir lints a folder. With an error there may be findings, too.
func lintDir(dir string, mapping *cirun.Mapping) ([]cirun.Finding, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	in := cirun.LintInput{Mapping: mapping}
	var all []cirun.Finding
	var errs []error
	found := false
	lint := func(name string, parse func(data []byte, path string) ([]cirun.Finding, error)) {
		data, path, err := readDotted(root, name)
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		found = true
		if err == nil {
			var fs []cirun.Finding
			fs, err = parse(data, path)
			all = append(all, fs...)
		}
		errs = append(errs, err)
	}
	lint("cirun.global.yml", func(d []byte, p string) (fs []cirun.Finding, err error) {
		in.Organisation, fs, err = cirun.Parse(d, p)
		return fs, err
	})
	lint("cirun.yml", func(d []byte, p string) (fs []cirun.Finding, err error) {
		in.Repository, fs, err = cirun.Parse(d, p)
		return fs, err
	})
	lint("access.yml", func(d []byte, p string) (fs []cirun.Finding, err error) {
		in.Access, fs, err = cirun.ParseAccess(d, p)
		return fs, err
	})
	if !found {
		return nil, fmt.Errorf("%s holds none of .cirun.global.yml, .access.yml and .cirun.yml", dir)
	}
	return cirun.SortFindings(append(all, cirun.Lint(in)...)), errors.Join(errs...)
}

// readDotted reads a file with a leading dot or, if there is none, without. It
// reads one byte more than is allowed, so that the parser refuses it.
func readDotted(root *os.Root, name string) (data []byte, path string, err error) {
	path = "." + name
	info, err := root.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		path = name
		info, err = root.Stat(path)
	}
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, path, err
	}
	f, err := root.Open(path)
	if err != nil {
		return nil, path, err
	}
	defer f.Close()
	data, err = io.ReadAll(io.LimitReader(f, cirun.MaxFileSize+1))
	return data, path, err
}
