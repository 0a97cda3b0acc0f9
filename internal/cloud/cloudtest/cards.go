package cloudtest

import (
	"fmt"

	"gpuserver"
	"gpuserver/internal/cloud"
)

func keep(s *suite) {
	vm := s.create()
	if vm.Kept || s.get(vm.Name).Kept {
		s.Error("a VM is kept before anybody asked for it")
	}
	if !s.d.Capabilities().Keep {
		if err := s.d.Keep(s.ctx(), vm.Name); err == nil {
			s.Error("without the capability, Keep succeeds")
		}
		return
	}
	for range 2 { // the second time it finds what the first one did
		if err := s.d.Keep(s.ctx(), vm.Name); err != nil {
			s.Fatalf("Keep: %v", err)
		}
	}
	s.eventually(func() string {
		if vm := s.get(vm.Name); vm.State != cloud.StateStopped {
			return fmt.Sprintf("a kept VM is %s, want %s", vm.State, cloud.StateStopped)
		}
		return ""
	})
	s.isKept(vm.Name)
	if err := s.d.Close(); err != nil {
		s.Fatalf("Close: %v", err)
	}
	s.d = s.openDriver()
	s.isKept(vm.Name)
	s.delete(vm.Name)
	s.gone(vm.Name)
}

// isKept fails the test unless Get and List say that a VM is kept and off.
func (s *suite) isKept(name string) {
	s.Helper()
	if vm := s.get(name); !vm.Kept || vm.State != cloud.StateStopped {
		s.Errorf("Get gives a kept VM as %+v", vm)
	}
	if vm := s.listed(name); vm == nil {
		s.Error("List lacks the kept VM")
	} else if !vm.Kept || vm.State != cloud.StateStopped {
		s.Errorf("List gives a kept VM as %+v", *vm)
	}
}

// keptDevices: what a VM is kept for is that nobody else gets its cards.
func keptDevices(s *suite) {
	s.need(s.d.Capabilities().Keep, "Keep")
	s.need(s.d.Capabilities().Cards && len(s.opts.Cards) > 0, "cards for VMs")
	spec := s.spec()
	spec.Host, spec.Devices = s.opts.CardHost, s.opts.Cards[:1]
	if _, err := s.d.Create(s.ctx(), spec); err != nil {
		s.Fatalf("Create with %s: %v", spec.Devices[0], err)
	}
	other := s.spec()
	other.Host, other.Devices = spec.Host, spec.Devices
	refused := func(while string) {
		s.Helper()
		_, err := s.d.Create(s.ctx(), other)
		s.kind(err, "Create with a card of another VM "+while, gpuserver.KindCapacity)
		s.gone(other.Name)
	}
	refused("that runs")
	if err := s.d.Keep(s.ctx(), spec.Name); err != nil {
		s.Fatalf("Keep: %v", err)
	}
	refused("that is kept")
	if err := s.d.Close(); err != nil {
		s.Fatalf("Close: %v", err)
	}
	s.d = s.openDriver()
	refused("that is kept, after a restart")
	s.delete(spec.Name)
	s.gone(spec.Name)
	if _, err := s.d.Create(s.ctx(), other); err != nil {
		s.Errorf("Create with a card whose kept VM was deleted: %v", err)
	}
}

// manyCards is more than a cloud has for the suite.
const manyCards = 16

// keptChoice: where the cloud chooses the cards, keeping the VM is all that keeps
// a bad card from the next one.
func keptChoice(s *suite) {
	s.need(s.d.Capabilities().Keep && !s.d.Capabilities().Cards, "cloud that keeps VMs and chooses cards")
	s.need(s.opts.CardFlavor.GPUs.Count == 1, "flavor with one GPU")
	create := func() (string, error) {
		spec := s.spec()
		spec.Flavor = s.opts.CardFlavor
		_, err := s.d.Create(s.ctx(), spec)
		return spec.Name, err
	}
	first, err := create()
	if err != nil {
		s.Fatalf("Create with a GPU: %v", err)
	}
	if err := s.d.Keep(s.ctx(), first); err != nil {
		s.Fatalf("Keep: %v", err)
	}
	for range manyCards {
		if _, err = create(); err != nil {
			break
		}
	}
	s.kind(err, "Create once all cards are given away, one of them to a kept VM", gpuserver.KindCapacity)
	s.delete(first)
	if _, err := create(); err != nil {
		s.Errorf("Create with the card of a kept VM that was deleted: %v", err)
	}
}

// nowhere is an address at which there is no card.
const nowhere = "ffff:ff:1f.7"

func cards(s *suite) {
	if !s.d.Capabilities().Cards {
		_, err := s.d.Cards(s.ctx(), s.opts.CardHost, []string{nowhere})
		s.kind(err, "Cards without the capability", gpuserver.KindInvalid)
		return
	}
	asked := append([]string{nowhere}, s.opts.Cards...)
	readings, err := s.d.Cards(s.ctx(), s.opts.CardHost, asked)
	if err != nil {
		s.Fatalf("Cards: %v", err)
	}
	if len(readings) != len(asked) {
		s.Fatalf("Cards gives %d readings of %d cards", len(readings), len(asked))
	}
	for i, r := range readings {
		if r.Address != asked[i] || r.Present != (i > 0) || r.Dead {
			s.Errorf("Cards gives %+v of %s", r, asked[i])
		}
		if r.Present && (r.VendorID == "" || r.DeviceID == "") {
			s.Errorf("Cards does not say what is at %s: %+v", asked[i], r)
		}
	}
}
