package pci

import (
	"bytes"
	"errors"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Trouble is what a line of the kernel's log says of a device.
type Trouble string

// The kinds of trouble.
const (
	TroubleInaccessible Trouble = "inaccessible" // its configuration space does not answer
	TroubleReset        Trouble = "reset"        // a reset failed, or the device did not come back from one
	TroubleSlowReset    Trouble = "slow_reset"   // it took more than a second to come back
	TroubleFatal        Trouble = "aer_fatal"    // a fatal error by Advanced Error Reporting
	TroubleLink         Trouble = "link_down"    // the link of the port above it went down
)

// troubles are the kernel's words, as they are since 5.x; the first that matches
// counts. Sources: Linux drivers/pci/pci.c (pci_dev_wait, pci_power_up and
// pci_raw_set_power_state), drivers/pci/pcie/aer.c, drivers/pci/hotplug/pciehp_ctrl.c,
// drivers/vfio/pci/vfio_pci_core.c.
var troubles = []struct {
	words *regexp.Regexp
	is    Trouble
}{
	{regexp.MustCompile(`(?i)device inaccessible|config space inaccessible`), TroubleInaccessible},
	{regexp.MustCompile(`(?i)not ready \d+ms after .*giving up`), TroubleReset},
	{regexp.MustCompile(`(?i)not ready \d+ms after `), TroubleSlowReset},
	{regexp.MustCompile(`(?i)reset failed|failed to reset`), TroubleReset},
	{regexp.MustCompile(`(?i)uncorrect(ed|able) \(fatal\)`), TroubleFatal},
	{regexp.MustCompile(`(?i)link (is )?down`), TroubleLink},
}

func troubleIn(text string) (Trouble, bool) {
	for _, t := range troubles {
		if t.words.MatchString(text) {
			return t.is, true
		}
	}
	return "", false
}

// Bounds of what is read of the kernel's log.
const (
	maxLog   = 4 << 20 // bytes; the kernel's own buffer is smaller by default
	maxReads = 1 << 16 // calls
	maxText  = 256     // bytes of a line
	maxLines = 32      // kept for each card, the latest
)

// Kmsg is the kernel's log.
type Kmsg struct {
	// File is /dev/kmsg, opened for reading and non-blocking: each opening starts
	// with the oldest line that the kernel has.
	File *os.File
	// Zero is when the clock of its lines was at 0.
	Zero time.Time
}

// foundLine is a line of trouble with the cards that it speaks of.
type foundLine struct {
	LogLine
	cards []int
}

// lines gives the lines that speak of trouble with a device that is watched,
// oldest first. What cannot be read is not known, which is no trouble.
func (k *Kmsg) lines(watched map[string][]int) (found []foundLine) {
	if k == nil || k.File == nil {
		return nil
	}
	for line := range strings.Lines(string(k.read())) {
		at, text, ok := k.parse(line)
		if !ok {
			continue
		}
		trouble, ok := troubleIn(text)
		if !ok {
			continue
		}
		// Told by a port, an error's line ends with the device that it came from.
		all := mentioned.FindAllString(text, -1)
		if len(all) == 0 {
			continue
		}
		if cards := watched[all[len(all)-1]]; len(cards) > 0 {
			found = append(found, foundLine{LogLine{At: at, Trouble: trouble, Text: text[:min(len(text), maxText)]}, cards})
		}
	}
	return found
}

// mentioned finds the addresses in a line.
var mentioned = regexp.MustCompile(`\b[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]\b`)

// parse takes a record "PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,…];TEXT"; lines
// that begin with a space belong to the record before. The priority carries the
// facility: 0 is the kernel itself, others are programs that write to the log.
// Source: Linux Documentation/ABI/testing/dev-kmsg.
func (k *Kmsg) parse(line string) (at time.Time, text string, ok bool) {
	head, text, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ";")
	if !ok || strings.HasPrefix(line, " ") {
		return at, "", false
	}
	fields := strings.Split(head, ",")
	if len(fields) < 3 {
		return at, "", false
	}
	priority, err := strconv.Atoi(fields[0])
	us, err2 := strconv.ParseInt(fields[2], 10, 64)
	if err != nil || err2 != nil || priority > 7 || us < 0 {
		return at, "", false
	}
	return k.Zero.Add(time.Duration(us) * time.Microsecond).UTC(), text, true
}

// read gives what is there now, without waiting for more. A record that was
// overwritten while we read (EPIPE) is passed over.
func (k *Kmsg) read() []byte {
	var all bytes.Buffer
	conn, err := k.File.SyscallConn()
	if err != nil {
		return nil
	}
	buf := make([]byte, 8<<10) // a record has at most this much
	for tries := 0; all.Len() < maxLog && tries < maxReads; tries++ {
		var n int
		var rerr error
		err := conn.Read(func(fd uintptr) bool {
			n, rerr = syscall.Read(int(fd), buf)
			return true // one try: nothing there is the end
		})
		switch {
		case errors.Is(rerr, syscall.EPIPE), errors.Is(rerr, syscall.EINTR):
			continue
		case errors.Join(err, rerr) != nil, n <= 0:
			return all.Bytes()
		}
		all.Write(buf[:n])
	}
	return all.Bytes()
}
