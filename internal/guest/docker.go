package guest

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// dockerSettings is the file of settings of Docker's daemon.
const dockerSettings = "etc/docker/daemon.json"

// shareSlice tells Docker's daemon, if the image has one, to start containers in
// the job's slice: its own choice is system.slice, where no limit of ours holds.
// What the image sets otherwise is kept.
// Source: Docker documentation, dockerd, "Default cgroup parent".
func (a *agent) shareSlice() error {
	found := slices.ContainsFunc([]string{"usr/bin/dockerd", "usr/local/bin/dockerd", "usr/sbin/dockerd"}, func(name string) bool {
		_, err := os.Stat(a.path(name))
		return err == nil
	})
	if !found {
		return nil
	}
	settings := map[string]any{}
	b, err := os.ReadFile(a.path(dockerSettings))
	if err == nil && len(b) > 0 {
		err = json.Unmarshal(b, &settings)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return guestError("read "+dockerSettings, err)
	}
	if _, set := settings["cgroup-parent"]; set {
		return nil
	}
	settings["cgroup-parent"] = "gpuserver-job.slice"
	if strings.Contains(string(b), "native.cgroupdriver=cgroupfs") { // which takes a path
		settings["cgroup-parent"] = "/gpuserver.slice/gpuserver-job.slice"
	}
	if b, err = json.MarshalIndent(settings, "", "  "); err != nil {
		return guestError("write "+dockerSettings, err)
	}
	return a.writeFile(dockerSettings, append(b, '\n'), 0o644)
}
