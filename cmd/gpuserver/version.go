package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// linkedVersion and linkedRevision are set by the linker (make build); else the build's own
// facts say what it is.
var linkedVersion, linkedRevision string

// version is this program's version in one word.
func version() string { return currentVersion().Version }

// versionInfo is what gpuserver version prints.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the source
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func newVersionCommand() *cobra.Command {
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the program's version",
		Long: `Prints the version of this program, the source it was built from, and what it
was built with. Name it when you report a mistake.`,
		Example: `  gpuserver version
  gpuserver version --output json`,
		Args: checkedArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := currentVersion()
			if output == outputJSON {
				return printJSON(cmd.OutOrStdout(), v)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "gpuserver %s (%s, %s, %s)\n", v.Version, cmp.Or(v.Revision, "unknown source"), v.Go, v.Platform)
			return err
		},
	}
	addOutputFlag(cmd, &output)
	return cmd
}

// currentVersion says what this program is.
func currentVersion() versionInfo {
	v := versionInfo{
		Version: cmp.Or(linkedVersion, "devel"), Revision: linkedRevision,
		Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		v.Version = cmp.Or(linkedVersion, info.Main.Version, "devel")
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Revision = cmp.Or(linkedRevision, s.Value)
			}
		}
	}
	return v
}
