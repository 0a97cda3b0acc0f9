package pci

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuserver"
	"gpuserver/internal/pci/pcitest"
)

// What was captured of a machine reads like the machine, and holds nothing that
// was not read.
func TestCapture(t *testing.T) {
	for name, m := range map[string]pcitest.Machine{
		"seed": pcitest.Seed("nouveau"), "desktop": pcitest.Desktop(), "board": pcitest.Board(),
		"off": pcitest.Off(), "no-IOMMU mode": pcitest.NoIOMMUMode(), "ACS override": pcitest.ACSOverride(),
	} {
		t.Run(name, func(t *testing.T) {
			root := pcitest.Write(t, m)
			device := filepath.Join("bus/pci/devices", m.Devices[len(m.Devices)-1].Address)
			write(t, root, filepath.Join(device, "vpd"), "serial number 1234")
			write(t, root, filepath.Join(device, "config"), string(must(os.ReadFile(filepath.Join(root, device, "config"))))+"capabilities")
			rec := NewRecorder(open(t, root))
			want, err := Read(rec, nil)
			if err != nil {
				t.Fatal(err)
			}
			packed := pack(t, rec)
			if bytes.Contains(packed, []byte("1234")) || bytes.Contains(packed, []byte("capabilities")) {
				t.Error("the capture holds what was not read")
			}
			got, err := Read(open(t, filepath.Join(unpack(t, packed), "sys")), nil)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("the machine and its capture differ (-machine +capture):\n%s", d)
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func pack(t *testing.T, rec *Recorder) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := rec.Pack(w, "sys"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpack(t *testing.T, packed []byte) string {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := Unpack(bytes.NewReader(packed), root); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Archives come from strangers: none may write elsewhere, or fill the disk.
func TestUnpackHostile(t *testing.T) {
	huge := strings.Repeat("x", maxPacked+1)
	for name, headers := range map[string][]tar.Header{
		"a way up":              {{Name: "../out", Typeflag: tar.TypeReg}},
		"an absolute name":      {{Name: "/out", Typeflag: tar.TypeReg}},
		"through a link":        {{Name: "sys", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "sys/out", Typeflag: tar.TypeReg}},
		"a device":              {{Name: "sys/null", Typeflag: tar.TypeChar}},
		"a hard link":           {{Name: "sys/hard", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}},
		"a large file":          {{Name: "sys/huge", Typeflag: tar.TypeReg, Size: int64(len(huge))}},
		"a file twice as a dir": {{Name: "sys", Typeflag: tar.TypeReg}, {Name: "sys/x", Typeflag: tar.TypeReg}},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range headers {
				h.Mode = 0o644
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(w, huge[:h.Size]); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			inside := filepath.Join(dir, "inside")
			if err := os.Mkdir(inside, 0o755); err != nil {
				t.Fatal(err)
			}
			root, err := os.OpenRoot(inside)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			if err := Unpack(&b, root); gpuserver.KindOf(err) != gpuserver.KindInvalid {
				t.Errorf("unpacked: %v", err)
			}
			if _, err := os.Lstat(path.Join(dir, "out")); err == nil {
				t.Error("it wrote beside its folder")
			}
		})
	}
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := Unpack(strings.NewReader("no archive at all"), root); gpuserver.KindOf(err) != gpuserver.KindInvalid {
		t.Errorf("text instead of an archive: %v", err)
	}
}
