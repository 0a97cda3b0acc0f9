package hostprep

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// Settings as people write them, each held against what a shell makes of it.
var grubTexts = []string{
	debianGrub,
	`GRUB_CMDLINE_LINUX="a b=c"`,
	`GRUB_CMDLINE_LINUX='a "b" $c'`,
	`GRUB_CMDLINE_LINUX=a   # b`,
	`GRUB_CMDLINE_LINUX=a#b`,
	`GRUB_CMDLINE_LINUX=""`,
	`GRUB_CMDLINE_LINUX=`,
	`  export GRUB_CMDLINE_LINUX="a"` + "\n",
	"GRUB_CMDLINE_LINUX=a\nGRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX b\"\nGRUB_CMDLINE_LINUX=\"${GRUB_CMDLINE_LINUX} c\"",
	"X=1;GRUB_CMDLINE_LINUX=\"a $X\"; Y=2",
	"GRUB_CMDLINE_LINUX=\"a \\\n b\"\n",
	"GRUB_CMDLINE_LINUX=\"a\nb\"\n#GRUB_CMDLINE_LINUX=c\n",
	`GRUB_CMDLINE_LINUX="a\"b\\c\d\$e"`,
	`GRUB_CMDLINE_LINUX=a\ b`,
	`GRUB_CMDLINE_LINUX=a"b c"'d e'f`,
	"GRUB_CMDLINE_LINUX=\"a $NOTSET b\"",
	"# GRUB_CMDLINE_LINUX=a",
	"\n\n\t GRUB_CMDLINE_LINUX=a;\n",
}

func TestReadGrubAsAShell(t *testing.T) {
	for _, text := range grubTexts {
		file := filepath.Join(t.TempDir(), "grub")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("sh", "-c", `. "$1"; printf %s "$GRUB_CMDLINE_LINUX"`, "sh", file).Output()
		if err != nil {
			t.Fatal(err)
		}
		s := grubSettings{vars: map[string]string{}}
		s.read("/f", text)
		if got := s.vars["GRUB_CMDLINE_LINUX"]; got != string(out) || len(s.odd) > 0 {
			t.Errorf("%q: %q, a shell says %q; odd: %q", text, got, out, s.odd)
		}
	}
}

// What only a shell could work out is told, with its line.
func TestReadGrubOdd(t *testing.T) {
	for _, tt := range []struct{ text, odd, value string }{
		{"X=1\nGRUB_CMDLINE_LINUX=\"$(cat /proc/cmdline)\"\n", "/f:2", ""},
		{"GRUB_CMDLINE_LINUX=\"a `b`\"\n", "/f:1", ""},
		{"GRUB_CMDLINE_LINUX=\"${X:-a}\"\n", "/f:1", ""},
		{"GRUB_CMDLINE_LINUX=a b\n", "/f:1", ""},
		{"GRUB_CMDLINE_LINUX=\"a\nX='\n", "/f:1", ""},
		{"\nif [ -e /x ]; then\n GRUB_CMDLINE_LINUX=a\nfi\n", "/f:2", "a"},
		{"X=\"1\n2\"\n. /etc/other\n", "/f:3", ""},
		{"GRUB_CMDLINE_LINUX=a\nGRUB_CMDLINE_LINUX+=b\n", "", "ab"}, // bash
		{"GRUB_DISTRIBUTOR=`lsb_release`\nGRUB_CMDLINE_LINUX=a\n", "", "a"},
	} {
		s := grubSettings{vars: map[string]string{}}
		s.read("/f", tt.text)
		if odd := strings.Join(s.odd, " "); odd != tt.odd || s.vars["GRUB_CMDLINE_LINUX"] != tt.value {
			t.Errorf("%q: odd %q, want %q; value %q, want %q", tt.text, odd, tt.odd, s.vars["GRUB_CMDLINE_LINUX"], tt.value)
		}
	}
}

func FuzzGrub(f *testing.F) {
	for _, text := range grubTexts {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := grubSettings{vars: map[string]string{}}
		s.read("/f", text)
		total := 0
		for name, value := range s.vars {
			if !strings.Contains(text, name) {
				t.Errorf("the variable %q is not in the text", name)
			}
			total += len(value)
		}
		// What we append can always be read back, whatever stands before it.
		want := []string{"iommu=pt", "vfio-pci.ids=10de:1db4"}
		before := s.vars["GRUB_CMDLINE_LINUX"]
		s.read("/ours", string(grubFile(want).text))
		if got := s.vars["GRUB_CMDLINE_LINUX"]; got != before+" "+strings.Join(want, " ") {
			t.Errorf("%q became %q", before, got)
		}
		_ = grubLines(text)
		_ = grubbyArgs(text)
	})
}

// Files are read in the order of their names, ours not at all.
func TestReadGrubFiles(t *testing.T) {
	root := fstest.MapFS{
		grubDefault:         {Data: []byte("GRUB_CMDLINE_LINUX=a\nGRUB_CMDLINE_LINUX_DEFAULT=quiet\n")},
		grubDir + "/b.cfg":  {Data: []byte("GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX c\"\n")},
		grubDir + "/a.cfg":  {Data: []byte("GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX b\"\n")},
		grubDir + "/a.conf": {Data: []byte("GRUB_CMDLINE_LINUX=no\n")},
		grubOurs:            {Data: []byte("GRUB_CMDLINE_LINUX=no\n")},
	}
	s := readGrub(root)
	if d := cmp.Diff([]string{"a", "b", "c", "quiet"}, s.parameters()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestVerifyGrub(t *testing.T) {
	const entry, recovery, other = "\tlinux\t/vmlinuz-6 root=/dev/sda1 iommu=pt quiet\n", "\tlinux /vmlinuz-6 root=/dev/sda1 single\n", "\tlinux /vmlinuz root=/dev/sdb1\n"
	const begin, end = "### BEGIN /etc/grub.d/10_linux ###\n", "### END /etc/grub.d/10_linux ###\n"
	for _, tt := range []struct {
		text        string
		want, added []string
		say         string
	}{
		{begin + entry + end + other, []string{"iommu=pt"}, []string{"iommu=pt"}, ""},
		{begin + entry + recovery + end, []string{"iommu=pt"}, nil, ""},
		{begin + entry + recovery + end, []string{"iommu=pt"}, []string{"iommu=pt"}, "has an entry without iommu=pt"},
		{begin + recovery + entry + end, []string{"iommu=pt"}, nil, "does not have iommu=pt in its first entry"},
		{entry, []string{"iommu=pt"}, []string{"iommu=pt"}, ""},
		{begin + end + entry, []string{"iommu=pt"}, nil, "has no entry that starts Linux"},
		{"", nil, nil, "has no entry that starts Linux"},
	} {
		if got := verifyGrub(tt.text, tt.want, tt.added); got != tt.say {
			t.Errorf("%q: %q, want %q", tt.text, got, tt.say)
		}
	}
}

func TestMissing(t *testing.T) {
	for _, tt := range []struct{ have, want, add string }{
		{"", "iommu=pt modprobe.blacklist=a", "iommu=pt modprobe.blacklist=a"},
		{"iommu=pt", "iommu=pt", ""},
		{"iommu=soft,pt", "iommu=pt", ""},
		{"iommu=soft", "iommu=pt", "iommu=pt"},
		{"vfio_pci.ids=a,b", "vfio-pci.ids=b", ""},
		{"vfio-pci.ids=a vfio-pci.ids=b", "vfio-pci.ids=a", "vfio-pci.ids=b,a"},
		{"modprobe.blacklist=a modprobe.blacklist=b", "modprobe.blacklist=a,c", "modprobe.blacklist=c"},
	} {
		if got := strings.Join(missing(strings.Fields(tt.have), strings.Fields(tt.want)), " "); got != tt.add {
			t.Errorf("%q of %q: %q, want %q", tt.want, tt.have, got, tt.add)
		}
	}
}

func TestDiff(t *testing.T) {
	for _, tt := range []struct{ before, after, want string }{
		{"a\nb\nc\n", "a\nx\nc\nd\n", "--- /f\n+++ /f\n@@ -1,3 +1,4 @@\n a\n-b\n+x\n c\n+d\n"},
		{"a\n", "", "--- /f\n+++ /f\n@@ -1,1 +0,0 @@\n-a\n"},
		{"", "", "--- /f\n+++ /f\n"},
	} {
		if d := cmp.Diff(tt.want, diff("f", []byte(tt.before), []byte(tt.after))); d != "" {
			t.Errorf("%q to %q (-want +got):\n%s", tt.before, tt.after, d)
		}
	}
	if got := diff("f", nil, []byte("a\n")); !strings.HasPrefix(got, "--- /dev/null\n+++ /f\n@@ -0,0 +1,1 @@\n+a\n") {
		t.Errorf("a new file: %s", got)
	}
}
