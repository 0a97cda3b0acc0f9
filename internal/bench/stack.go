package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"gpuserver"
	"gpuserver/internal/forge/forgetest"
)

// stackPatience is how long anything is waited for on a real cloud: hundreds of
// servers are made by one processor or two.
const stackPatience = 40 * time.Minute

// stackWorkers is how many creates are under way at once, of the service's (its
// limit for each cloud) and of the bare client's.
const stackWorkers = 64

// stackWorld is a real OpenStack with the proxy before it, beside forge and service.
type stackWorld struct {
	*world
	proxy *process
	addr  string       // the proxy's
	plain *stackClient // past the proxy
	bare  *stackClient // through it
	spec  stackServerSpec

	owners string // begins the names of the service's servers
}

// stack gives a part that measures the driver on the cloud that Options.Clouds
// names: a real one, since servers, quotas and clean-up are real.
func stack(measure func(*stackWorld, *OpenStack) error) func(*bench) error {
	return func(b *bench) error {
		if b.Clouds == "" {
			return gpuserver.Errorf(gpuserver.KindInvalid, "bench: the parts openstack-… need the clouds.yaml of a cloud (--clouds); make bench-openstack starts one")
		}
		w, err := b.newStackWorld()
		if err != nil {
			return err
		}
		defer w.close()
		if err := w.serve(); err != nil {
			return err
		}
		if b.report.OpenStack == nil {
			b.report.OpenStack = &OpenStack{}
		}
		if err := measure(w, b.report.OpenStack); err != nil || b.LeaveServers {
			return err
		}
		w.kill()
		return w.clearAll()
	}
}

// newStackWorld starts the processes and prepares the project: no quotas, no
// servers of an earlier run.
func (b *bench) newStackWorld() (w *stackWorld, err error) {
	w = &stackWorld{owners: "bench-"}
	w.world, err = b.newWorldOn("openstack", forgeArgs{}, func(o *world) (string, error) {
		w.world = o
		return w.prepare(b)
	})
	if err != nil {
		w.proxy.stop(syscall.SIGKILL)
		return nil, err
	}
	return w, nil
}

// prepare gives the configuration's clouds and what belongs to them.
func (w *stackWorld) prepare(b *bench) (conf string, err error) {
	admin, err := stackLogin(b.ctx, b.Clouds, "admin")
	if err != nil {
		return "", err
	}
	if w.plain, err = stackLogin(b.ctx, b.Clouds, "member"); err != nil {
		return "", err
	}
	if err := admin.quotas(b.ctx, w.plain.project); err != nil {
		return "", err
	}
	if err := w.clearAll(); err != nil {
		return "", err
	}
	if w.spec, err = w.plain.spec(b.ctx); err != nil {
		return "", err
	}
	if w.proxy, w.addr, err = b.startRole(filepath.Join(w.dir, "proxy.log"), "proxy", text(proxyArgs{Targets: w.plain.urls})); err != nil {
		return "", err
	}
	w.bare = w.plain.behind(w.addr, "bare")
	at := func(service string) string { return proxyURL(w.addr, "ours", service) }
	return fmt.Sprintf(`clouds:
  - name: stack
    type: openstack
    serves: [{cloud: openstack, region: RegionOne}]
    openstack:
      clouds_file: %s
      cloud: member
      agent_url: http://%s
      endpoints: {identity: %q, compute: %q, image: %q, network: %q, placement: %q}
      networks: [%s]
      flavors: [{name: small, flavor: %s}]
flavors:
  - {name: small, vcpus: 1, memory: 128MiB, disk: 1GiB}
images:
  - {name: debian, openstack: {image: %s}}
jobs: {boot_timeout: 6h}
`, b.Clouds, w.agent, at("keystone"), at("nova"), at("glance"), at("neutron"), at("placement"), stackNetwork, stackFlavor, stackImage), nil
}

// clearAll deletes what a measurement left.
func (w *stackWorld) clearAll() error {
	err := w.b.clear(w.plain, w.owners)
	if err == nil {
		err = w.b.clear(w.plain, "bare-")
	}
	return err
}

func (w *stackWorld) close() {
	w.world.close()
	w.proxy.stop(syscall.SIGKILL)
}

// calls gives the service's calls since a time.
func (w *stackWorld) callsSince(t time.Time) (calls []stackCall, err error) {
	var all []stackCall
	if err := getJSON(w.ctx, "http://"+w.addr+"/_calls", &all); err != nil {
		return nil, err
	}
	for _, c := range all {
		if c.From == "ours" && c.At >= t.UnixNano() {
			calls = append(calls, c)
		}
	}
	return calls, nil
}

// active gives when the servers of somebody were first said to be active to that
// one, by id. The service's lists have those of others, too.
func (w *stackWorld) active(from string) (at map[string]time.Time, failed int, err error) {
	var all []stackServer
	if err := getJSON(w.ctx, "http://"+w.addr+"/_servers", &all); err != nil {
		return nil, 0, err
	}
	at = map[string]time.Time{}
	prefix := map[string]string{"ours": w.owners, "bare": "bare-"}[from]
	for _, s := range all {
		if s.From != from || !strings.HasPrefix(s.Name, prefix) {
			continue
		}
		if s.ActiveAt != 0 {
			at[s.ID] = time.Unix(0, s.ActiveAt)
		}
		if s.Failed {
			failed++
		}
	}
	return at, failed, nil
}

// await waits until so many servers in all were active for the service.
func (w *stackWorld) await(n int) (at map[string]time.Time, failed int, err error) {
	said := time.Now()
	err = untilWithin(w.ctx, stackPatience, 50*time.Millisecond, fmt.Sprintf("%d servers are active", n), func() (string, error) {
		if err := w.server.ended(); err != nil {
			return "", err
		}
		if at, failed, err = w.active("ours"); err != nil || len(at) >= n {
			return "", err
		}
		if time.Since(said) > time.Minute {
			said = time.Now()
			w.b.say("   %d of %d servers", len(at), n)
		}
		return fmt.Sprintf("%d are, %d failed", len(at), failed), nil
	})
	return at, failed, err
}

// pairs measures one job after another, each beside a server of the bare client's,
// now one first and now the other. A first job, which logs in and finds ids, and its
// pair are made before and counted for calls only.
func (w *stackWorld) pairs(r *OpenStack) error {
	n := w.b.Size.StackPairs
	var ours, bare []time.Duration
	var ratios []float64
	for i := range n + 1 {
		var o, p time.Duration
		steps := []func() error{
			func() (err error) { o, err = w.one(); return err },
			func() (err error) { p, err = w.bareOne(fmt.Sprintf("bare-pair-%d", i)); return err },
		}
		if i%2 == 1 {
			slices.Reverse(steps)
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
		if i == 0 {
			continue
		}
		ours, bare, ratios = append(ours, o), append(bare, p), append(ratios, o.Seconds()/p.Seconds())
		w.b.say("   pair %d: %.2f s, bare %.2f s", i, o.Seconds(), p.Seconds())
	}
	calls, err := w.callsSince(time.Time{}) // with the login
	if err != nil {
		return err
	}
	d := &r.Detail
	own := slices.DeleteFunc(slices.Clone(calls), stackCall.shared)
	r.CallsPerVM = perVM(own, n+1)
	d.OwnCalls, d.AllCalls1 = byKind(own, n+1), perVM(calls, n+1)
	r.Overhead1 = round(median(ratios), 3)
	d.WebhookToActive, d.BareToActive = quantiles(ours), quantiles(bare)
	w.b.say("   webhook → ACTIVE p50 %.2f s, bare POST → ACTIVE p50 %.2f s, ratio %.3f", d.WebhookToActive.P50/1000, d.BareToActive.P50/1000, r.Overhead1)
	return nil
}

// one is a job of the service: from the delivery being sent to the answer that says
// that its server is active. The job is then cancelled.
func (w *stackWorld) one() (time.Duration, error) {
	before, _, err := w.active("ours")
	if err != nil {
		return 0, err
	}
	runs, err := w.dispatch(1, sameLabel)
	if err != nil {
		return 0, err
	}
	after, _, err := w.await(len(before) + 1)
	if err != nil {
		return 0, err
	}
	queued, err := w.sent("queued")
	if err != nil {
		return 0, err
	}
	var took time.Duration
	for id, at := range after {
		if _, old := before[id]; !old {
			took = at.Sub(queued[runs[0].Jobs[0].ID])
		}
	}
	if err := w.forge.CancelRun(w.ctx, runs[0].ID); err != nil {
		return 0, err
	}
	return took, w.gone()
}

// gone waits until the service has deleted its servers.
func (w *stackWorld) gone() error {
	return untilWithin(w.ctx, stackPatience, 500*time.Millisecond, "the service's servers are gone", func() (string, error) {
		ids, err := w.plain.servers(w.ctx, w.owners, "")
		if len(ids) > 0 {
			return fmt.Sprintf("%d are there", len(ids)), err
		}
		return "", err
	})
}

// bareOne is a server of the bare client: from before its POST to the answer that
// says that it is active.
func (w *stackWorld) bareOne(name string) (time.Duration, error) {
	began := time.Now()
	id, err := w.bare.create(w.ctx, name, w.spec)
	if err != nil {
		return 0, err
	}
	at, _, err := w.active("bare")
	if err != nil {
		return 0, err
	}
	return at[id].Sub(began), w.b.clear(w.plain, name)
}

// bursts measures many jobs at once beside as many servers of the bare client, with
// as many creates at once.
func (w *stackWorld) bursts(r *OpenStack) error {
	d, n := &r.Detail, w.b.Size.StackBurst
	d.Burst.N, d.Burst.Workers = n, stackWorkers
	for i := range w.b.Size.StackBursts {
		var ours, bare time.Duration
		var failed int
		var calls []stackCall
		steps := []func() error{
			func() (err error) { bare, err = w.bareBurst(fmt.Sprintf("bare-burst-%d-", i), n); return err },
			func() (err error) {
				began := time.Now()
				if ours, failed, err = w.burst(n); err == nil {
					calls, err = w.callsSince(began)
				}
				return err
			},
		}
		if i%2 == 1 { // what the machine does besides may change
			slices.Reverse(steps)
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
		d.Burst.Ours, d.Burst.Bare = append(d.Burst.Ours, round(ours.Seconds(), 1)), append(d.Burst.Bare, round(bare.Seconds(), 1))
		d.Burst.Failed += failed
		d.AllCalls100 = perVM(calls, n)
		w.b.say("   %d VMs: %.1f s, bare %.1f s", n, ours.Seconds(), bare.Seconds())
	}
	var ratios []float64 // of all pairs: --onto adds some to those that are there
	for i, ours := range d.Burst.Ours {
		ratios = append(ratios, ours/d.Burst.Bare[i])
	}
	r.Overhead100 = round(median(ratios), 3)
	return nil
}

// burst is n jobs at once, until all their servers are active, and their end.
func (w *stackWorld) burst(n int) (took time.Duration, failed int, err error) {
	before, wasFailed, err := w.active("ours")
	if err != nil {
		return 0, 0, err
	}
	runs, err := w.dispatch(n, sameLabel)
	if err != nil {
		return 0, 0, err
	}
	after, failed, err := w.await(len(before) + n)
	if err != nil {
		return 0, 0, err
	}
	queued, err := w.sent("queued")
	if err != nil {
		return 0, 0, err
	}
	took = last(after).Sub(queued[firstJob(runs)])
	for _, run := range runs {
		if err := w.forge.CancelRun(w.ctx, run.ID); err != nil {
			return 0, 0, err
		}
	}
	return took, failed - wasFailed, w.gone()
}

func firstJob(runs []forgetest.Run) int64 { return runs[0].Jobs[0].ID }

func last(at map[string]time.Time) (t time.Time) {
	for _, u := range at {
		if u.After(t) {
			t = u
		}
	}
	return t
}

// bareBurst is n servers of the bare client, and their end.
func (w *stackWorld) bareBurst(prefix string, n int) (took time.Duration, err error) {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s%d", prefix, i)
	}
	began := time.Now()
	if err := w.bare.createAll(w.ctx, stackWorkers, names, prefix, w.spec); err != nil {
		return 0, err
	}
	at, _, err := w.active("bare")
	if err != nil {
		return 0, err
	}
	return last(at).Sub(began), w.b.clear(w.plain, prefix)
}

// each calls f for all things, for so many at a time.
func each[T any](workers int, things []T, f func(T) error) error {
	var wg sync.WaitGroup
	next := make(chan T)
	errs := make([]error, workers)
	for i := range workers {
		wg.Go(func() {
			for t := range next {
				if err := f(t); err != nil && errs[i] == nil {
					errs[i] = err
				}
			}
		})
	}
	for _, t := range things {
		next <- t
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

// idles counts calls with no server, with some of ours, and with many in all.
func (w *stackWorld) idles(r *OpenStack) error {
	d, ours, all := &r.Detail, w.b.Size.StackOurs, w.b.Size.StackLive
	d.Idle = nil
	if err := w.idle(d, 0, 0); err != nil {
		return err
	}
	began := time.Now()
	if _, err := w.dispatch(ours, sameLabel); err != nil {
		return err
	}
	if _, _, err := w.await(ours); err != nil {
		return err
	}
	w.b.say("   %d servers of the service took %.0f s", ours, time.Since(began).Seconds())
	if err := w.idle(d, ours, ours); err != nil {
		return err
	}
	began = time.Now()
	if err := w.b.fill(w.plain, w.spec, all-ours); err != nil {
		return err
	}
	w.b.say("   %d more of the bare client took %.0f s", all-ours, time.Since(began).Seconds())
	if err := w.idle(d, all, ours); err != nil {
		return err
	}
	r.IdleCalls = d.Idle[len(d.Idle)-1].PerMinute
	return nil
}

// idle counts the service's calls while nothing happens to n servers.
func (w *stackWorld) idle(d *StackDetail, n, ours int) error {
	wait := func(t time.Duration) error {
		ctx, cancel := context.WithTimeout(w.ctx, t)
		defer cancel()
		<-ctx.Done()
		return w.ctx.Err()
	}
	if err := wait(w.b.Size.StackSettle); err != nil {
		return err
	}
	began := time.Now()
	if err := wait(w.b.Size.StackIdle); err != nil {
		return err
	}
	calls, err := w.callsSince(began)
	if err != nil {
		return err
	}
	per := round(float64(len(calls))/time.Since(began).Minutes(), 1)
	d.Idle = append(d.Idle, StackIdle{VMs: n, Ours: ours, PerMinute: per})
	w.b.say("   %d servers alive: %.1f calls a minute", n, per)
	return nil
}
