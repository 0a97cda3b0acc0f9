package cloud

import (
	"strings"
	"testing"

	"gpuserver"
)

func TestValidate(t *testing.T) {
	good := Spec{Name: "gs-1", Owner: "me", Image: "debian", Flavor: gpuserver.Flavor{Name: "f", VCPUs: 1, MemoryMiB: 1}}
	for name, tt := range map[string]struct {
		change func(*Spec)
		says   string // "": valid
	}{
		"as small as can be":      {func(*Spec) {}, ""},
		"as large as can be":      {func(s *Spec) { s.Name, s.UserData = strings.Repeat("A", MaxName), make([]byte, MaxUserData) }, ""},
		"longest metadata":        {func(s *Spec) { s.Metadata = map[string]string{"k": strings.Repeat("v", MaxMetadata)} }, ""},
		"empty name":              {func(s *Spec) { s.Name = "" }, "name"},
		"name too long":           {func(s *Spec) { s.Name = strings.Repeat("a", MaxName+1) }, "name"},
		"name with an underscore": {func(s *Spec) { s.Name = "a_b" }, "name"},
		"name with an umlaut":     {func(s *Spec) { s.Name = "ä" }, "name"},
		"no owner":                {func(s *Spec) { s.Owner = "" }, "Owner"},
		"no image":                {func(s *Spec) { s.Image = "" }, "Image"},
		"no vCPU":                 {func(s *Spec) { s.Flavor.VCPUs = 0 }, "vCPU"},
		"no memory":               {func(s *Spec) { s.Flavor.MemoryMiB = 0 }, "memory"},
		"negative disk":           {func(s *Spec) { s.Flavor.DiskGiB = -1 }, "disk"},
		"user data too long":      {func(s *Spec) { s.UserData = make([]byte, MaxUserData+1) }, "user data"},
		"metadata without a key":  {func(s *Spec) { s.Metadata = map[string]string{"": "v"} }, "metadata"},
		"metadata too long":       {func(s *Spec) { s.Metadata = map[string]string{"k": strings.Repeat("v", MaxMetadata+1)} }, "metadata"},
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			tt.change(&s)
			err := s.Validate()
			if tt.says == "" {
				if err != nil {
					t.Errorf("Validate: %v, want nil", err)
				}
				return
			}
			if gpuserver.KindOf(err) != gpuserver.KindInvalid || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Validate: %v, want KindInvalid that names %q", err, tt.says)
			}
		})
	}
}
