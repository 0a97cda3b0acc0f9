package cloudtest

import (
	"bytes"
	"maps"
	"strings"
	"sync"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/cloud"
)

func nameAndCapabilities(s *suite) {
	if s.d.Name() == "" {
		s.Error("Name is empty")
	}
	a, b := s.d.Capabilities(), s.open(s.T)
	defer b.Close()
	if diff := cmp.Diff(a, b.Capabilities()); diff != "" {
		s.Errorf("two drivers of one cloud differ in capabilities (-first +second):\n%s", diff)
	}
	if !a.Accelerated && a.Note == "" {
		s.Error("not accelerated, and Note does not say why")
	}
}

func createGetListDelete(s *suite) {
	spec := s.spec()
	made, err := s.d.Create(s.ctx(), spec)
	if err != nil {
		s.Fatalf("Create: %v", err)
	}
	if made.Name != spec.Name || made.ID == "" || made.Owner != spec.Owner {
		s.Errorf("Create gave %+v, want name %s, owner %s and an id", made, spec.Name, spec.Owner)
	}
	s.eventually(func() string {
		got := s.get(spec.Name)
		if got.State == cloud.StateBuilding {
			return "the VM is still building"
		}
		if got.State != cloud.StateRunning {
			s.Fatalf("the VM is %s (%s), want running", got.State, got.Fault)
		}
		if got.ID != made.ID || got.Owner != spec.Owner || got.Name != spec.Name {
			s.Errorf("Get gave %+v, Create gave %+v", got, made)
		}
		return ""
	})
	if vm := s.listed(spec.Name); vm == nil {
		s.Error("List lacks the VM")
	} else if vm.ID != made.ID || vm.Owner != spec.Owner {
		s.Errorf("List gave %+v, Create gave %+v", *vm, made)
	}
	s.delete(spec.Name)
	s.gone(spec.Name)
}

func invalidSpec(s *suite) {
	for what, spoil := range map[string]func(*cloud.Spec){
		"empty name":         func(p *cloud.Spec) { p.Name = "" },
		"name with a slash":  func(p *cloud.Spec) { p.Name += "/x" },
		"name with a dot":    func(p *cloud.Spec) { p.Name = ".." },
		"name too long":      func(p *cloud.Spec) { p.Name += strings.Repeat("x", 60) },
		"no owner":           func(p *cloud.Spec) { p.Owner = "" },
		"no vCPU":            func(p *cloud.Spec) { p.Flavor.VCPUs = 0 },
		"too much user data": func(p *cloud.Spec) { p.UserData = make([]byte, 48<<10+1) },
		"long metadata":      func(p *cloud.Spec) { p.Metadata = map[string]string{"k": strings.Repeat("v", 256)} },
	} {
		spec := s.spec()
		spoil(&spec)
		_, err := s.d.Create(s.ctx(), spec)
		s.kind(err, "Create with "+what, gpuserver.KindInvalid)
		if spec.Name != "" && s.listed(spec.Name) != nil {
			s.Errorf("Create with %s left a VM", what)
		}
	}
}

func conflict(s *suite) {
	first := s.create()
	before := s.get(first.Name)
	spec := s.spec()
	spec.Name, spec.UserData = first.Name, []byte("another")
	_, err := s.d.Create(s.ctx(), spec)
	s.kind(err, "second Create", gpuserver.KindConflict)
	after := s.get(first.Name)
	if before.State == cloud.StateBuilding { // that may have gone on by itself
		before.State, after.State = "", ""
	}
	if diff := cmp.Diff(before, after); diff != "" {
		s.Errorf("the second Create changed the first VM (-before +after):\n%s", diff)
	}
	if s.opts.Handed != nil {
		if data, _ := s.opts.Handed(s.T, first.Name); string(data) == "another" {
			s.Error("the second Create changed the first VM's user data")
		}
	}
}

// concurrently runs n calls at once and gives their errors.
func concurrently(n int, call func(i int) error) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = call(i) })
	}
	wg.Wait()
	return errs
}

func concurrentCreates(s *suite) {
	spec, ctx := s.spec(), s.ctx()
	made := 0
	for _, err := range concurrently(8, func(int) error {
		_, err := s.d.Create(ctx, spec)
		return err
	}) {
		if err == nil {
			made++
		} else {
			s.kind(err, "a Create that lost", gpuserver.KindConflict)
		}
	}
	if made != 1 {
		s.Errorf("%d of 8 concurrent creates succeeded, want 1", made)
	}
	if s.listed(spec.Name) == nil {
		s.Error("List lacks the VM")
	}
}

func manyCreates(s *suite) {
	const n = 4
	specs, ctx := make([]cloud.Spec, n), s.ctx()
	for i := range specs {
		specs[i] = s.spec()
	}
	for i, err := range concurrently(n, func(i int) error {
		_, err := s.d.Create(ctx, specs[i])
		return err
	}) {
		if err != nil {
			s.Errorf("Create(%s): %v", specs[i].Name, err)
		}
	}
	for _, spec := range specs {
		if s.listed(spec.Name) == nil {
			s.Errorf("List lacks %s", spec.Name)
		}
	}
}

func deleteNothing(s *suite) {
	s.delete(s.name())
	vm := s.create()
	s.delete(vm.Name)
	s.delete(vm.Name)
	s.gone(vm.Name)
}

func concurrentDeletes(s *suite) {
	vm, ctx := s.create(), s.ctx()
	for _, err := range concurrently(4, func(int) error { return s.d.Delete(ctx, vm.Name) }) {
		if err != nil {
			s.Errorf("Delete: %v", err)
		}
	}
	s.gone(vm.Name)
}

func reuse(s *suite) {
	first := s.create()
	s.delete(first.Name)
	spec := s.spec()
	spec.Name = first.Name
	second, err := s.d.Create(s.ctx(), spec)
	if err != nil {
		s.Fatalf("Create of a name that was deleted: %v", err)
	}
	if second.ID == first.ID {
		s.Errorf("both VMs have the id %s", first.ID)
	}
}

func nothingThere(s *suite) {
	s.gone(s.name())
	if s.d.Capabilities().Keep {
		s.kind(s.d.Keep(s.ctx(), s.name()), "Keep of nothing", gpuserver.KindNotFound)
	}
	if s.d.Capabilities().Console {
		_, err := s.d.Console(s.ctx(), s.name(), 0, 1)
		s.kind(err, "Console of nothing", gpuserver.KindNotFound)
	}
}

func remains(s *suite) {
	s.need(s.opts.LeavePart != nil, "hook LeavePart")
	name := s.name()
	s.opts.LeavePart(s.T, name)
	if vm := s.get(name); vm.State != cloud.StateRemains {
		s.Errorf("Get: state %s, want %s", vm.State, cloud.StateRemains)
	}
	if vm := s.listed(name); vm == nil {
		s.Error("List lacks what is left of the VM")
	} else if vm.State != cloud.StateRemains {
		s.Errorf("List: state %s, want %s", vm.State, cloud.StateRemains)
	}
	spec := s.spec()
	spec.Name = name
	_, err := s.d.Create(s.ctx(), spec)
	s.kind(err, "Create where a part is left", gpuserver.KindConflict)
	if vm := s.get(name); vm.State != cloud.StateRemains {
		s.Errorf("the refused Create changed the state to %s", vm.State)
	}
	s.delete(name)
	s.gone(name)
}

func foreign(s *suite) {
	s.need(s.opts.AddForeign != nil, "hook AddForeign")
	name := s.name()
	s.opts.AddForeign(s.T, name)
	if vm := s.listed(name); vm != nil {
		s.Errorf("List has the foreign VM: %+v", *vm)
	}
	s.kind(s.d.Delete(s.ctx(), name), "Delete of a foreign VM", gpuserver.KindRefused)
	if s.d.Capabilities().Keep {
		s.kind(s.d.Keep(s.ctx(), name), "Keep of a foreign VM", gpuserver.KindRefused)
	}
	spec := s.spec()
	spec.Name = name
	_, err := s.d.Create(s.ctx(), spec)
	s.kind(err, "Create over a foreign VM", gpuserver.KindConflict)
	if vm := s.get(name); vm.State != cloud.StateRunning || vm.Owner == s.opts.Spec.Owner {
		s.Errorf("the foreign VM is %+v, want it running and not ours", vm)
	}
}

func handed(s *suite) {
	s.need(s.opts.Handed != nil, "hook Handed")
	spec := s.spec()
	if spec.UserData == nil {
		spec.UserData = []byte("#cloud-config\n{\"text\": \"ä\\u0000\\n'\\\"$(x)%n\"}\n")
	}
	if spec.Metadata == nil {
		spec.Metadata = map[string]string{}
	}
	maps.Copy(spec.Metadata, map[string]string{"gs-plain": "value", "gs-odd": "ä <&> '\"", "gs-long": strings.Repeat("m", cloud.MaxMetadata)})
	if _, err := s.d.Create(s.ctx(), spec); err != nil {
		s.Fatalf("Create: %v", err)
	}
	data, meta := s.opts.Handed(s.T, spec.Name)
	if !bytes.Equal(data, spec.UserData) {
		s.Errorf("the guest finds other user data (-want +got):\n%s", cmp.Diff(string(spec.UserData), string(data)))
	}
	for k, want := range spec.Metadata {
		if meta[k] != want {
			s.Errorf("the guest finds metadata %s=%q, want %q", k, meta[k], want)
		}
	}
}
