package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// Path is a path in the file system. In the file it is absolute or relative to
// the file's folder; in a Config it is resolved.
type Path string

// Address is a host and port to listen on, "" for none.
type Address string

// hostRE is an IP address, perhaps with a zone, a name, or nothing (any).
var hostRE = regexp.MustCompile(`^[A-Za-z0-9:._%-]*$`)

// UnmarshalText checks a listener's address.
func (a *Address) UnmarshalText(text []byte) error {
	if len(text) > 0 {
		host, port, err := net.SplitHostPort(string(text))
		if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n > 65535 {
			return fmt.Errorf("bad address %q: give HOST:PORT with a port from 0 to 65535, such as 127.0.0.1:8442", text)
		}
		if !hostRE.MatchString(host) {
			return fmt.Errorf("bad address %q: %q is neither an IP address nor a host's name", text, host)
		}
	}
	*a = Address(text)
	return nil
}

// URL is an absolute http or https URL without a trailing slash.
type URL string

// UnmarshalText checks a URL.
func (u *URL) UnmarshalText(text []byte) error {
	p, err := url.Parse(string(text))
	switch {
	case err != nil, p.Scheme != "http" && p.Scheme != "https", p.Host == "", p.RawQuery != "", p.Fragment != "":
		return errors.New("bad URL: give an absolute http or https one, such as https://ci.example.org")
	case p.User != nil:
		return errors.New("a URL with a user or password in it is refused; secrets are given by file or environment")
	}
	*u = URL(strings.TrimRight(string(text), "/"))
	return nil
}

// Size is a number of bytes.
type Size int64

// Units of Size.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

var sizeUnits = []struct {
	name string
	size Size
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", 1}}

// MiB is the size in whole MiB, rounded down.
func (s Size) MiB() int64 { return int64(s / MiB) }

// GiB is the size in whole GiB, rounded down.
func (s Size) GiB() int64 { return int64(s / GiB) }

// String gives the size as it is written in the file, "12GiB".
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && s%u.size == 0 {
			return strconv.FormatInt(int64(s/u.size), 10) + u.name
		}
	}
	return "0B"
}

// MarshalText gives the size as it is written in the file.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a size such as "12GiB".
func (s *Size) UnmarshalText(text []byte) error {
	v, err := ParseSize(string(text))
	if err == nil {
		*s = v
	}
	return err
}

const sizePattern = `^[0-9]+(B|KiB|MiB|GiB|TiB)$`

var sizeRE = regexp.MustCompile(sizePattern)

// ParseSize reads a whole number with a unit: B, KiB, MiB, GiB or TiB.
func ParseSize(s string) (Size, error) {
	bad := func(why string) (Size, error) {
		return 0, fmt.Errorf("bad size %q: %s", s, why)
	}
	if !sizeRE.MatchString(s) {
		return bad("give a whole number with a unit (B, KiB, MiB, GiB, TiB) and no space, such as 12GiB")
	}
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n > int64(1<<62/u.size) {
			return bad("it is too large")
		}
		return Size(n) * u.size, nil
	}
	return bad("unknown unit")
}

const durationPattern = `^([0-9]+(\.[0-9]+)?(w|d|h|m|s|ms))+$`

var (
	durationRE     = regexp.MustCompile(durationPattern)
	durationPartRE = regexp.MustCompile(`([0-9.]+)(ms|[wdhms])`)
	durationUnits  = map[string]time.Duration{
		"w": 7 * day, "d": day, "h": time.Hour, "m": time.Minute, "s": time.Second, "ms": time.Millisecond,
	}
)

// ParseDuration reads a duration: numbers with the units w, d, h, m, s and ms,
// such as "3d" or "1h30m". A day has 24 hours.
func ParseDuration(s string) (time.Duration, error) {
	if !durationRE.MatchString(s) {
		return 0, fmt.Errorf("bad duration %q: give a number with a unit (w, d, h, m, s, ms) and no space, such as 90s, 6h or 3d", s)
	}
	var sum float64
	for _, p := range durationPartRE.FindAllStringSubmatch(s, -1) {
		n, err := strconv.ParseFloat(p[1], 64)
		if err != nil {
			return 0, fmt.Errorf("bad duration %q: %q is no number", s, p[1])
		}
		sum += n * float64(durationUnits[p[2]])
	}
	if sum > float64(1<<62) {
		return 0, fmt.Errorf("bad duration %q: it is too long", s)
	}
	return time.Duration(sum), nil
}

// FormatDuration gives a duration as it is written in the file, such as "3d".
func FormatDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	var b strings.Builder
	for _, u := range []string{"d", "h", "m", "s", "ms"} {
		if n := d / durationUnits[u]; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u)
			d -= n * durationUnits[u]
		}
	}
	return b.String()
}
