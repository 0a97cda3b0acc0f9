package main

import (
	"cmp"
	"context"
	"slices"
	"time"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/config"
	"gpuserver/internal/fleet"
	"gpuserver/internal/health"
)

// actions gives the API what it may do, from the fleet and the configuration.
type actions struct {
	*fleet.Fleet
	s *server
}

var _ api.Actions = actions{}

// places are all flavors with all images on the clouds that have them: where a
// command may run.
func places(cfg *config.Config) (out []gpuserver.Entry) {
	for _, c := range cfg.Clouds {
		for _, im := range cfg.Images {
			if !cfg.HasImage(im.Name, c.Name) {
				continue
			}
			for _, f := range cfg.Flavors {
				out = append(out, gpuserver.Entry{Cloud: c.Name, Flavor: f.Name, Image: im.Name, Runner: "run"})
			}
		}
	}
	return out
}

// StartRun implements api.Actions.
func (a actions) StartRun(ctx context.Context, r api.RunRequest, by string) (gpuserver.JobID, error) {
	// Names that the configuration does not know are told by the fleet.
	if name, ok := a.s.cfg.FlavorFor(r.Flavor); ok {
		r.Flavor = name
	}
	if name, ok := a.s.cfg.ImageFor(r.Image); ok {
		r.Image = name
	}
	run := fleet.Run{Command: gpuserver.Command{Args: r.Args, Env: r.Env, Timeout: r.Timeout()}, Flavor: r.Flavor, Image: r.Image}
	return a.Fleet.StartRun(ctx, run, places(a.s.cfg), by)
}

// Output implements api.Actions.
func (a actions) Output(ctx context.Context, id gpuserver.JobID, stream string, from int64, wait time.Duration) (api.Output, error) {
	data, done, err := a.ReadOutput(ctx, id, stream, from, wait)
	return api.Output{Data: data, Next: from + int64(len(data)), Done: done}, err
}

// Hosts implements api.Actions.
func (a actions) Hosts(context.Context) []gpuserver.Host { return a.Fleet.Hosts() }

// HealthPolicy implements api.Actions.
func (a actions) HealthPolicy(context.Context) health.Policy { return a.Health }

// Flavors implements api.Actions.
func (a actions) Flavors(context.Context) []api.FlavorInfo {
	out := []api.FlavorInfo{}
	flavors := a.s.cfg.FlavorMap()
	for _, f := range a.s.cfg.Flavors {
		out = append(out, api.FlavorInfo{Flavor: flavors[f.Name], Aliases: f.Aliases})
	}
	return out
}

// Images implements api.Actions.
func (a actions) Images(context.Context) []gpuserver.Image {
	out := []gpuserver.Image{}
	for _, m := range a.s.cfg.Images {
		out = append(out, gpuserver.Image{Name: m.Name, Aliases: m.Aliases})
	}
	return out
}

// Clouds implements api.Actions.
func (a actions) Clouds(context.Context) (out []api.CloudStatus) {
	for _, c := range a.s.clouds {
		down, known, since := a.CloudState(c.Name())
		caps := c.Capabilities()
		i := slices.IndexFunc(a.s.cfg.Clouds, func(x config.Cloud) bool { return x.Name == c.Name() })
		out = append(out, api.CloudStatus{
			Name: c.Name(), Type: a.s.cfg.Clouds[i].Type, Up: down.Class == "" && known, Known: known, Since: since, Reason: down.Text,
			Cards: caps.Cards, Accelerated: caps.Accelerated, Note: caps.Note,
		})
	}
	return out
}

// Forges implements api.Actions.
func (a actions) Forges(context.Context) (out []api.ForgeStatus) {
	for _, f := range a.s.cfg.Forges {
		b := a.s.forges[f.Name].Budget()
		st := api.ForgeStatus{Name: f.Name, Type: f.Type, Up: true, Spent: map[string]int64{}}
		if err := a.s.forges[f.Name].Trouble(); err != nil {
			st.Up, st.Reason = false, gpuserver.PublicText(err)
		}
		for _, c := range b.Classes {
			st.Spent[c.Class.String()] = c.Points
		}
		if b.Until.After(time.Now()) {
			st.LimitedUntil = b.Until
			st.Reason = cmp.Or(st.Reason, "its rate limit; it is asked again then")
		}
		for _, p := range b.Primary {
			if p.Limit > 0 && (st.Limit == 0 || int64(p.Remaining) < st.Remaining) {
				st.Limit, st.Remaining, st.ResetAt = int64(p.Limit), int64(p.Remaining), p.Reset
			}
		}
		out = append(out, st)
	}
	return out
}
