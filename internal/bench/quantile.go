package bench

import (
	"maps"
	"math"
	"slices"
	"time"
)

// Quantiles are of times in milliseconds.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
	N   int     `json:"n"` // how many were measured
}

// nearestRank gives a quantile of sorted values: the smallest that at least that
// part of all does not exceed, so it is one that was measured.
func nearestRank(sorted []time.Duration, q float64) time.Duration {
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// quantiles sorts ds.
func quantiles(ds []time.Duration) Quantiles {
	if len(ds) == 0 {
		return Quantiles{}
	}
	slices.Sort(ds)
	at := func(q float64) float64 { return millis(nearestRank(ds, q)) }
	return Quantiles{P50: at(0.5), P99: at(0.99), Max: at(1), N: len(ds)}
}

func millis(d time.Duration) float64 { return round(float64(d)/float64(time.Millisecond), 2) }

// round keeps n digits behind the point.
func round(x float64, n int) float64 {
	p := math.Pow10(n)
	return math.Round(x*p) / p
}

func sortedTimes(m map[int64]time.Time) []time.Time {
	return slices.SortedFunc(maps.Values(m), time.Time.Compare)
}
