package gate

import (
	"context"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLog is how much of the kernel's log is read, in bytes; its ring is smaller.
const maxLog = 16 << 20

// hardware are the Xids that speak of the card, its memory, bus or firmware.
// Others come from programs (13, 31, 43, 45, 68, …) or may have many causes: a
// job can bring them about, so they say nothing about a card.
// Source: NVIDIA, "XID Errors" and its Xid catalog.
var hardware = map[int]string{
	48:  "uncorrectable memory error (double bit)",
	54:  "auxiliary power is not connected",
	58:  "unstable memory interface",
	62:  "its micro-controller halted",
	63:  "a row of memory is to be remapped, or a page retired",
	64:  "a row of memory could not be remapped, or a page retired",
	74:  "NVLink error",
	79:  "fallen off the bus",
	92:  "many corrected memory errors",
	94:  "uncorrectable memory error, contained",
	95:  "uncorrectable memory error, not contained",
	119: "its system processor (GSP) does not answer",
	120: "its system processor (GSP) failed",
	140: "uncorrectable memory error, not recovered",
	143: "it could not be initialised",
	171: "uncorrectable memory error (DRAM)",
	172: "uncorrectable memory error (SRAM)",
}

// xid is one kind of message of NVIDIA's driver about one card.
type xid struct {
	slot   string // the card's address without its function
	number int
}

// xidMessage is how the driver writes it: "NVRM: Xid (PCI:0000:01:00): 79, pid=…",
// older drivers without "PCI:".
var xidMessage = regexp.MustCompile(`^NVRM: Xid \((?:PCI:)?([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2})(?:\.[0-7])?\): ([0-9]{1,4})\b`)

// readLog finds Xids of hardware in the kernel's log.
func (c *check) readLog(ctx context.Context) {
	counts := parseXids(readKernelLog(ctx, filepath.Join("/", c.Root, "dev/kmsg")))
	var all []xid
	for x := range counts {
		if hardware[x.number] != "" {
			all = append(all, x)
		}
	}
	slices.SortFunc(all, func(a, b xid) int {
		if d := strings.Compare(a.slot, b.slot); d != 0 {
			return d
		}
		return a.number - b.number
	})
	for _, x := range all {
		host := ""
		if card := c.card(x.slot); card != nil {
			host = card.Host
		}
		c.found(host, KindXid, "Xid %d of the card at %s, %d times: %s", x.number, x.slot, counts[x], hardware[x.number])
	}
}

// parseXids counts the driver's messages in a log as /dev/kmsg has it: records
// "PRIORITY,SEQUENCE,TIME,FLAGS;MESSAGE", each with lines of details that begin
// with a blank. Only the kernel's own count: what programs write there, root too,
// the kernel marks with another facility.
// Source: Linux Documentation/ABI/testing/dev-kmsg.
func parseXids(log []byte) map[xid]int {
	counts := map[xid]int{}
	for line := range strings.Lines(string(log)) {
		prefix, message, ok := strings.Cut(line, ";")
		priority, _, _ := strings.Cut(prefix, ",")
		n, err := strconv.Atoi(priority)
		if !ok || err != nil || n < 0 || n>>3 != 0 {
			continue
		}
		if m := xidMessage.FindStringSubmatch(message); m != nil {
			number, _ := strconv.Atoi(m[2]) // the pattern has digits only
			counts[xid{guestAddress(m[1]), number}]++
		}
	}
	return counts
}

// readKernelLog reads what the kernel's ring has, without waiting for more. A
// log that cannot be read is empty.
func readKernelLog(ctx context.Context, path string) []byte {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var log []byte
	record := make([]byte, 16<<10) // a record has at most 8 KiB
	for len(log) < maxLog && ctx.Err() == nil {
		n, err := unix.Read(fd, record)
		switch {
		case err == unix.EPIPE || err == unix.EINTR: // overwritten meanwhile: the next one follows
			continue
		case err != nil || n <= 0:
			return log
		}
		log = append(log, record[:n]...)
	}
	return log
}
