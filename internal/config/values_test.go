package config

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]Size{"0B": 0, "1KiB": 1024, "12GiB": 12 << 30, "3TiB": 3 << 40, "4194305TiB": -1, "99999999999999999999B": -1} {
		got, err := ParseSize(text)
		if (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "12", "12GB", "12 GiB", "-1GiB", "1.5GiB", "GiB", "12gib"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q was read as %d", text, got)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0s": 0, "90s": 90 * time.Second, "1h30m": 90 * time.Minute, "3d": 72 * time.Hour, "1w": 168 * time.Hour,
		"250ms": 250 * time.Millisecond, "1.5h": 90 * time.Minute, "1m1ms": time.Minute + time.Millisecond,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "3", "3 d", "-1s", "1y", "s", "1.s", "1us", "99999999999d"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}

// What is printed is read as the same value again.
func TestValuesReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := Size(rapid.Int64Range(0, 1<<61).Draw(t, "size"))
		if got, err := ParseSize(size.String()); err != nil || got != size {
			t.Fatalf("%s: %d, %v; want %d", size, got, err, size)
		}
		d := time.Duration(rapid.Int64Range(0, 1<<33).Draw(t, "ms")) * time.Millisecond
		if got, err := ParseDuration(FormatDuration(d)); err != nil || got != d {
			t.Fatalf("%s: %v, %v; want %v", FormatDuration(d), got, err, d)
		}
	})
}

func TestNearest(t *testing.T) {
	words := []string{"name", "retention", "clouds", "mtu"}
	for word, want := range map[string]string{
		"nmae": "name", "Retention": "retention", "cloud": "clouds", "mtü": "mtu", "something": "", "": "", "x": "",
	} {
		if got := nearest(word, words); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func TestEditDistance(t *testing.T) {
	word := rapid.StringN(0, 12, -1)
	rapid.Check(t, func(t *rapid.T) {
		a, b := word.Draw(t, "a"), word.Draw(t, "b")
		ab, ba := editDistance(a, b), editDistance(b, a)
		if ab != ba || editDistance(a, a) != 0 {
			t.Fatalf("%q, %q: %d and back %d", a, b, ab, ba)
		}
	})
}
