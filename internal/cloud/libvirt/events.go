package libvirt

import (
	"context"
	"time"

	lv "github.com/digitalocean/go-libvirt"

	"gpuserver/internal/cloud"
)

// watchEvents tells of VMs that stop, over a connection of its own, until Close.
// What happens while libvirtd is away is not told.
func (d *Driver) watchEvents() {
	const first, longest = 250 * time.Millisecond, 5 * time.Second
	pause := first
	for d.running.Err() == nil {
		if d.followEvents() {
			pause = first
		}
		select {
		case <-d.running.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, longest)
	}
}

// followEvents passes events on until the connection ends; it reports whether
// there was one.
func (d *Driver) followEvents() bool {
	s, err := d.hints.get(d.running)
	if err != nil {
		return false
	}
	defer d.hints.lost(s)
	// Ended only once the connection is: the library then calls libvirtd to stop
	// the events, which must fail at once rather than wait.
	ctx, cancel := context.WithCancel(context.WithoutCancel(d.running))
	defer cancel()
	end := func() { s.drop(); cancel() }
	stops, err := s.LifecycleEvents(ctx)
	if err != nil {
		return false
	}
	dogs, err := s.SubscribeEvents(ctx, lv.DomainEventIDWatchdog, nil)
	if err != nil {
		end()
		drain(stops)
		return false
	}
	bitten := map[lv.UUID]bool{} // by the watchdog, and not told of yet
	gone, closing := s.Disconnected(), d.running.Done()
	for stops != nil || dogs != nil {
		select {
		case <-gone:
			gone = nil
			end()
		case <-closing:
			closing = nil
			end()
		case e, ok := <-stops:
			if !ok {
				stops = nil
				end()
				continue
			}
			d.stopped(e, bitten[e.Dom.UUID])
			delete(bitten, e.Dom.UUID)
		case e, ok := <-dogs:
			if !ok {
				dogs = nil
				end()
				continue
			}
			if w, ok := e.(*lv.DomainEventCallbackWatchdogMsg); ok {
				bitten[w.Msg.Dom.UUID] = true
			}
		}
	}
	return true
}

func drain[T any](c <-chan T) {
	for range c {
	}
}

// stopped tells of a VM of ours that stopped by itself.
func (d *Driver) stopped(e lv.DomainEventLifecycleMsg, watchdog bool) {
	if lv.DomainEventType(e.Event) != lv.DomainEventStopped {
		return
	}
	if d.names.Ending(e.Dom.Name) {
		return // our own doing
	}
	rec, found, err := d.cfg.readRecord(e.Dom.Name)
	if err != nil || !found || rec.Owner != d.cfg.Owner || rec.UUID != uuidText(e.Dom.UUID) {
		return
	}
	event := cloud.Event{VM: e.Dom.Name, State: cloud.StateStopped, Reason: stopReason(e.Detail, watchdog)}
	select {
	case d.events <- event:
	default: // nobody reads: events are hints
		d.log.Warn("an event is lost: nobody takes them", "vm", event.VM, "reason", event.Reason)
	}
}

// stopReason names why a domain stopped.
func stopReason(detail int32, watchdog bool) string {
	if watchdog {
		return "watchdog"
	}
	switch lv.DomainEventStoppedDetailType(detail) {
	case lv.DomainEventStoppedShutdown:
		return "shutdown"
	case lv.DomainEventStoppedDestroyed:
		return "destroyed"
	case lv.DomainEventStoppedCrashed:
		return "crashed"
	case lv.DomainEventStoppedFailed:
		return "failed"
	}
	return "stopped"
}
