package cloud

import (
	"fmt"

	"gpuserver"
)

// The limits of a Spec. They are the narrowest of the clouds that we know:
// user data and metadata as in OpenStack's API (65,535 bytes of base64, and 255
// bytes a value), names short enough for volume and port names made from them.
const (
	MaxName     = 60
	MaxUserData = 48 << 10
	MaxMetadata = 255
)

// Validate says with a KindInvalid error what is wrong with a spec, whatever
// the cloud. Every driver's Create begins with it.
func (s Spec) Validate() error {
	if !validName(s.Name) {
		return s.invalid("its name must be 1 to %d letters, digits and '-'", MaxName)
	}
	if s.Owner == "" {
		return s.invalid("it has no owner tag, so nobody would find it again; set Owner")
	}
	if s.Image == "" {
		return s.invalid("it names no image; set Image")
	}
	if f := s.Flavor; f.VCPUs < 1 || f.MemoryMiB < 1 || f.DiskGiB < 0 {
		return s.invalid("flavor %q needs at least 1 vCPU and 1 MiB of memory, and no negative disk", f.Name)
	}
	if len(s.UserData) > MaxUserData {
		return s.invalid("its user data has %d bytes, %d are allowed", len(s.UserData), MaxUserData)
	}
	for k, v := range s.Metadata {
		if k == "" || len(k) > MaxMetadata || len(v) > MaxMetadata {
			return s.invalid("metadata key %q: keys and values may have %d bytes", k, MaxMetadata)
		}
	}
	return nil
}

func (s Spec) invalid(format string, args ...any) error {
	return gpuserver.Errorf(gpuserver.KindInvalid, "VM %q cannot be created: %s", s.Name, fmt.Sprintf(format, args...))
}

func validName(name string) bool {
	if name == "" || len(name) > MaxName {
		return false
	}
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}
