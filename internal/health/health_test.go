package health

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gpuserver"
	"gpuserver/internal/gate"
	"gpuserver/internal/pci"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func well() gpuserver.GPU {
	return gpuserver.GPU{ID: 3, Address: "0000:44:00.0", State: gpuserver.GPUInService, StateAt: start}
}

// seen is evidence of kinds, with their names for texts.
func seen(kinds ...gate.Kind) (es []Evidence) {
	for _, k := range kinds {
		es = append(es, Evidence{Kind: k, Text: string(k)})
	}
	return es
}

func TestHardEvidenceTakesACardOutAtOnce(t *testing.T) {
	for _, k := range []gate.Kind{gate.KindDead, gate.KindMissing, gate.KindRemap, gate.KindECC, KindReset, KindInaccessible} {
		g, o := Policy{}.Strike(well(), seen(k), start.Add(time.Hour))
		if g.State != gpuserver.GPUQuarantined || !o.Quarantined || o.Points != 3 || g.Reason != string(k) || !g.StateAt.Equal(start.Add(time.Hour)) {
			t.Errorf("%s: %+v, %+v", k, g, o)
		}
	}
}

func TestThreePointsTakeACardOut(t *testing.T) {
	g, now := well(), start
	for i, want := range []struct {
		points float64
		state  gpuserver.GPUState
		rest   time.Duration
	}{
		{1, gpuserver.GPUInService, 10 * time.Minute}, {2, gpuserver.GPUInService, 20 * time.Minute}, {3, gpuserver.GPUQuarantined, 0},
	} {
		now = now.Add(time.Hour)
		g, _ = Policy{}.Strike(g, seen(gate.KindThrottle), now)
		rest := time.Duration(0)
		if !g.RestUntil.IsZero() {
			rest = g.RestUntil.Sub(now)
		}
		if g.Strikes != want.points || g.State != want.state || rest != want.rest {
			t.Errorf("after strike %d: %+v, rest %s", i+1, g, rest)
		}
	}
}

// A card that its driver wants reset gets a rest, not more: a job can have done
// that, and the host resets it after each VM.
func TestRecoveryIsNoHardEvidence(t *testing.T) {
	g, o := Policy{}.Strike(well(), seen(gate.KindRecovery), start)
	if g.State != gpuserver.GPUInService || o.Points != 2 || !g.RestUntil.After(start) {
		t.Errorf("%+v, %+v", g, o)
	}
}

func TestPointsFade(t *testing.T) {
	g, _ := Policy{}.Strike(well(), seen(gate.KindXid), start)
	for after, want := range map[time.Duration]float64{
		-time.Hour: 2, 0: 2, 24*time.Hour - 1: 2, 24 * time.Hour: 1, 48 * time.Hour: 0, 1000 * time.Hour: 0,
	} {
		if got := (Policy{}).Left(g, start.Add(after)); got != want {
			t.Errorf("after %s %v points are left, want %v", after, got, want)
		}
	}
	if got := (Policy{Fade: time.Hour}).Left(g, start.Add(time.Hour)); got != 1 {
		t.Errorf("with an hour for a point, after one: %v", got)
	}
}

// What is seen at one moment is one strike, of the heaviest.
func TestOneMomentIsOneStrike(t *testing.T) {
	g, o := Policy{}.Strike(well(), seen(gate.KindThrottle, gate.KindXid, gate.KindThrottle), start)
	if o.Points != 2 || g.Strikes != 2 || o.Text != "throttle; xid" || g.Reason != o.Text {
		t.Errorf("%+v, %+v", g, o)
	}
}

// A cordoned card keeps the operator's reason until it is quarantined.
func TestCordonedCard(t *testing.T) {
	g := well()
	g.State, g.Reason = gpuserver.GPUCordoned, "new fan"
	g, _ = Policy{}.Strike(g, seen(gate.KindXid), start)
	if g.State != gpuserver.GPUCordoned || g.Reason != "new fan" || g.Strikes != 2 {
		t.Errorf("%+v", g)
	}
	if g, _ = (Policy{}).Strike(g, seen(gate.KindDead), start); g.State != gpuserver.GPUQuarantined || g.Reason != "dead" {
		t.Errorf("%+v", g)
	}
	at := g.StateAt
	if g, o := (Policy{}).Strike(g, seen(gate.KindXid), start.Add(time.Hour)); g.StateAt != at || g.Reason != "dead" || o.Quarantined || o.Points != 2 {
		t.Errorf("quarantined already: %+v, %+v", g, o)
	}
}

func TestOut(t *testing.T) {
	now := start.Add(time.Hour)
	g := well()
	if why, _ := Out(g, now); why != "" {
		t.Errorf("a card in service: %q", why)
	}
	struck, _ := Policy{}.Strike(g, seen(gate.KindXid), now)
	dead, _ := Policy{}.Strike(g, seen(gate.KindDead), now)
	cordoned := g
	cordoned.State, cordoned.Reason, cordoned.Address = gpuserver.GPUCordoned, "new fan", ""
	for want, g := range map[string]gpuserver.GPU{
		"card 3 at 0000:44:00.0 rests until 2026-03-01 13:20:00 UTC after a strike: xid":                                                    struck,
		"card 3 at 0000:44:00.0 is quarantined since 2026-03-01 13:00:00 UTC: dead; an operator puts it back with gpuserver gpu uncordon 3": dead,
		"card 3 is cordoned since 2026-03-01 12:00:00 UTC: new fan; an operator puts it back with gpuserver gpu uncordon 3":                 cordoned,
	} {
		if why, _ := Out(g, now); why != want {
			t.Errorf("got  %s\nwant %s", why, want)
		}
	}
	if _, until := Out(struck, now); !until.Equal(now.Add(20 * time.Minute)) {
		t.Errorf("rests until %v", until)
	}
	if why, _ := Out(struck, now.Add(20*time.Minute)); why != "" {
		t.Errorf("after its rest: %q", why)
	}
}

func TestHostsReading(t *testing.T) {
	r := pci.Reading{Address: "a", Present: true, Link: pci.Link{Width: 16}, AER: &pci.AER{Correctable: 5, NonFatal: 1, Fatal: 1}}
	line := func(at time.Time, is pci.Trouble) pci.LogLine {
		return pci.LogLine{At: at, Trouble: is, Text: string(is)}
	}
	for name, tt := range map[string]struct {
		change func(now, was *pci.Reading, b *Before)
		want   []gate.Kind
	}{
		"well":                            {func(*pci.Reading, *pci.Reading, *Before) {}, nil},
		"not there":                       {func(now, _ *pci.Reading, _ *Before) { *now = pci.Reading{Address: "a"} }, []gate.Kind{gate.KindMissing}},
		"dead, with widths of all ones":   {func(now, _ *pci.Reading, _ *Before) { now.Dead, now.Link.Width = true, 0 }, []gate.Kind{gate.KindDead}},
		"fewer lanes":                     {func(now, _ *pci.Reading, _ *Before) { now.Link.Width = 8 }, []gate.Kind{KindWidth}},
		"lanes not known now":             {func(now, _ *pci.Reading, _ *Before) { now.Link.Width = 0 }, nil},
		"lanes never known":               {func(now, _ *pci.Reading, b *Before) { now.Link.Width, b.Width = 1, 0 }, nil},
		"slower, at rest":                 {func(now, was *pci.Reading, _ *Before) { now.Link.Speed, was.Link.Speed = 2.5, 8 }, nil},
		"a fatal error":                   {func(now, _ *pci.Reading, _ *Before) { now.AER.Fatal++ }, []gate.Kind{KindAERFatal}},
		"an error not corrected":          {func(now, _ *pci.Reading, _ *Before) { now.AER.NonFatal++ }, []gate.Kind{KindAERNonFatal}},
		"corrected errors":                {func(now, _ *pci.Reading, _ *Before) { now.AER.Correctable += 1000 }, nil},
		"the host booted: smaller totals": {func(now, _ *pci.Reading, _ *Before) { now.AER = &pci.AER{Fatal: 2} }, nil},
		"totals not known now":            {func(now, _ *pci.Reading, _ *Before) { now.AER = nil }, nil},
		"totals not known before":         {func(_, was *pci.Reading, _ *Before) { was.AER = nil }, nil},
		"not read before":                 {func(_, _ *pci.Reading, b *Before) { b.Reading = nil }, nil},
		"a reset failed since":            {func(now, _ *pci.Reading, _ *Before) { now.Log = []pci.LogLine{line(start, pci.TroubleReset)} }, []gate.Kind{KindReset}},
		"a reset failed before":           {func(now, _ *pci.Reading, _ *Before) { now.Log = []pci.LogLine{line(start.Add(-1), pci.TroubleReset)} }, nil},
		"the time of before is not known": {func(now, _ *pci.Reading, b *Before) {
			now.Log, b.At = []pci.LogLine{line(start, pci.TroubleReset)}, time.Time{}
		}, nil},
		"words that are not known": {func(now, _ *pci.Reading, _ *Before) { now.Log = []pci.LogLine{line(start, "news")} }, nil},
		"fell off the bus, and its log": {func(now, _ *pci.Reading, _ *Before) {
			now.Dead = true
			now.Log = []pci.LogLine{line(start, pci.TroubleLink)}
		}, []gate.Kind{gate.KindDead, KindLinkDown}},
		"one kind said twice": {func(now, _ *pci.Reading, _ *Before) {
			now.Log = []pci.LogLine{line(start, pci.TroubleLink), line(start, pci.TroubleLink)}
		}, []gate.Kind{KindLinkDown}},
		"inaccessible, slow reset and AER": {func(now, _ *pci.Reading, _ *Before) {
			now.Log = []pci.LogLine{line(start, pci.TroubleInaccessible), line(start, pci.TroubleSlowReset), line(start, pci.TroubleFatal)}
		}, []gate.Kind{KindAERFatal, KindSlowReset, KindInaccessible}},
	} {
		now, was := r, r
		nowAER, wasAER := *r.AER, *r.AER
		now.AER, was.AER = &nowAER, &wasAER
		b := Before{At: start, Reading: &was, Width: 16}
		tt.change(&now, &was, &b)
		var got []gate.Kind
		for _, e := range Host(now, b) {
			got = append(got, e.Kind)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestWidth(t *testing.T) {
	for _, tt := range []struct {
		known int
		now   pci.Reading
		want  int
	}{
		{0, pci.Reading{Present: true, Link: pci.Link{Width: 8}}, 8},
		{16, pci.Reading{Present: true, Link: pci.Link{Width: 8}}, 16},
		{8, pci.Reading{Present: true, Link: pci.Link{Width: 16}}, 16},
		{8, pci.Reading{Present: true, Dead: true, Link: pci.Link{Width: 32}}, 8},
		{8, pci.Reading{Link: pci.Link{Width: 32}}, 8},
	} {
		if got := Width(tt.known, tt.now); got != tt.want {
			t.Errorf("known %d, read %+v: %d, want %d", tt.known, tt.now, got, tt.want)
		}
	}
}

func card(uuid string) gate.Card { return gate.Card{VendorID: "10de", DeviceID: "1db4", UUID: uuid} }

func TestGuestsReport(t *testing.T) {
	one := []Attached{{"a", "10de", "1db4"}}
	two := append(one, Attached{"b", "10de", "1db4"})
	chosen := []Attached{{}, {}} // by the cloud
	finding := func(host string, k gate.Kind) []gate.Finding { return []gate.Finding{{Host: host, Kind: k, Text: "x"}} }
	for name, tt := range map[string]struct {
		report   gate.Report
		attached []Attached
		want     string // for each card the kinds, with ? if doubtful
	}{
		"passed":                  {gate.Report{Passed: true, Cards: []gate.Card{card("1")}}, one, "passed []"},
		"passed, chosen":          {gate.Report{Passed: true, Cards: []gate.Card{card("1"), card("2")}}, chosen, "passed [] []"},
		"one of them":             {gate.Report{Cards: []gate.Card{card("1"), card("2")}, Findings: finding("b", gate.KindECC)}, two, "[] [ecc]"},
		"passed with a finding":   {gate.Report{Passed: true, Cards: []gate.Card{card("1")}, Findings: finding("a", gate.KindXid)}, one, "[xid]"},
		"after the job":           {gate.Report{When: gate.After, Cards: []gate.Card{card("1")}, Findings: finding("a", gate.KindECC)}, one, "[ecc?]"},
		"the whole VM, one card":  {gate.Report{Cards: []gate.Card{}, Findings: finding("", gate.KindMissing)}, one, "[missing]"},
		"the whole VM, two cards": {gate.Report{Cards: []gate.Card{card("1")}, Findings: finding("", gate.KindMissing)}, two, "[missing?] [missing?]"},
		"it knows which":          {gate.Report{Cards: []gate.Card{card("1")}, Findings: finding("b", gate.KindMissing)}, two, "[] [missing]"},
		"says passed with too few": {
			gate.Report{Passed: true, Cards: []gate.Card{card("1")}}, two, "[missing?] [missing?]",
		},
		"says passed with none, and one was given": {gate.Report{Passed: true}, one, "[missing]"},
		"says passed with too few, chosen":         {gate.Report{Passed: true, Cards: []gate.Card{card("1")}}, chosen, "[missing?] [missing?]"},
		"says passed with others":                  {gate.Report{Passed: true, Cards: []gate.Card{{VendorID: "1002", DeviceID: "1"}}}, one, "[missing]"},
		"too many":                                 {gate.Report{Passed: true, Cards: []gate.Card{card("1"), card("2")}}, one, "[lie]"},
		"one UUID twice":                           {gate.Report{Passed: true, Cards: []gate.Card{card("1"), card("1")}}, two, "[lie?] [lie?]"},
		"without UUIDs":                            {gate.Report{Passed: true, Cards: []gate.Card{card(""), card("")}}, two, "passed [] []"},
		"a card that was not given":                {gate.Report{Cards: []gate.Card{card("1")}, Findings: finding("z", gate.KindDead)}, one, "[lie]"},
		"failed, and no word why":                  {gate.Report{Cards: []gate.Card{card("1")}}, one, "[tool]"},
	} {
		v := Guest(tt.report, tt.attached)
		got := ""
		if v.Passed {
			got = "passed "
		}
		var cards []string
		for _, es := range v.Seen {
			var kinds []string
			for _, e := range es {
				k := string(e.Kind)
				if e.Doubtful {
					k += "?"
				}
				kinds = append(kinds, k)
			}
			cards = append(cards, fmt.Sprint(kinds))
		}
		if got += strings.Join(cards, " "); got != tt.want || v.Passed != (v.Why == "") {
			t.Errorf("%s: %s (%q), want %s", name, got, v.Why, tt.want)
		}
	}
}

func anyEvidence() *rapid.Generator[Evidence] {
	var kinds []gate.Kind
	for k := range soft {
		kinds = append(kinds, k)
	}
	kinds = append(append(kinds, hard...), "something new")
	return rapid.Custom(func(t *rapid.T) Evidence {
		return Evidence{Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), Text: "x", Doubtful: rapid.Bool().Draw(t, "doubtful")}
	})
}

// Whatever is seen and whenever: points are never negative and only fade with
// time; a card is out exactly if its points reached the threshold; doubtful
// evidence never does so by itself; below it every strike gives a rest.
func TestStrikes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{
			Threshold: rapid.SampledFrom([]float64{0, 1, 3, 7}).Draw(t, "threshold"),
			Fade:      rapid.SampledFrom([]time.Duration{0, time.Hour, 72 * time.Hour}).Draw(t, "fade"),
			Rest:      rapid.SampledFrom([]time.Duration{0, time.Second, 30 * time.Hour}).Draw(t, "rest"),
		}
		threshold := p.withDefaults().Threshold
		g, now := well(), start
		for range rapid.IntRange(0, 12).Draw(t, "moments") {
			later := now.Add(time.Duration(rapid.Int64Range(0, int64(60*time.Hour)).Draw(t, "pause")))
			if a, b := p.Left(g, now), p.Left(g, later); b > a || b < 0 {
				t.Fatalf("%v points at %v, %v at %v", a, now, b, later)
			}
			now = later
			left, before := p.Left(g, now), g
			es := rapid.SliceOfN(anyEvidence(), 0, 3).Draw(t, "evidence")
			var o Outcome
			g, o = p.Strike(g, es, now)
			switch {
			case len(es) == 0:
				if d := cmp.Diff(before, g); d != "" || o != (Outcome{}) {
					t.Fatalf("nothing was seen, and it changed:\n%s", d)
				}
			case g.Strikes != left+o.Points || o.Points <= 0:
				t.Fatalf("%v points and a strike of %v give %v", left, o.Points, g.Strikes)
			case before.State == gpuserver.GPUQuarantined && g.State != before.State:
				t.Fatal("a strike put it back")
			case before.State != gpuserver.GPUQuarantined && (g.State == gpuserver.GPUQuarantined) != (g.Strikes >= threshold):
				t.Fatalf("%s with %v points of %v", g.State, g.Strikes, threshold)
			case g.State == gpuserver.GPUInService && !g.RestUntil.After(now):
				t.Fatal("no rest after a strike")
			case g.State == gpuserver.GPUInService && g.RestUntil.Sub(now) > longestRest:
				t.Fatalf("a rest of %s", g.RestUntil.Sub(now))
			}
		}
	})
}

// Doubtful evidence alone takes no card out at one moment.
func TestDoubtTakesNothingOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		es := rapid.SliceOfN(anyEvidence(), 1, 5).Draw(t, "evidence")
		for i := range es {
			es[i].Doubtful = true
		}
		if g, _ := (Policy{}).Strike(well(), es, start); g.State != gpuserver.GPUInService {
			t.Fatalf("%s by %v", g.State, es)
		}
	})
}

// A reading of which nothing is known but that the card is there is never held
// against it, whatever was known before.
func TestUnknownNeverStrikes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1000)
		was := &pci.Reading{Present: true, Link: pci.Link{Width: int(n.Draw(t, "width"))}, AER: &pci.AER{Fatal: n.Draw(t, "fatal"), NonFatal: n.Draw(t, "nonfatal")}}
		b := Before{At: start, Reading: was, Width: int(n.Draw(t, "baseline"))}
		if es := Host(pci.Reading{Address: "a", Present: true, Group: -1}, b); len(es) > 0 {
			t.Fatalf("held against it: %v", es)
		}
	})
}

// Whatever a guest says, it says something of its own cards only, and a report
// that does not pass leaves no doubt about why.
func TestGuestSpeaksOfItsOwnCards(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hosts := rapid.SampledFrom([]string{"", "a", "b", "z"})
		var r gate.Report
		r.Passed = rapid.Bool().Draw(t, "passed")
		for range rapid.IntRange(0, 4).Draw(t, "cards") {
			r.Cards = append(r.Cards, card(rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "uuid")))
		}
		for range rapid.IntRange(0, 4).Draw(t, "findings") {
			r.Findings = append(r.Findings, gate.Finding{Host: hosts.Draw(t, "host"), Kind: gate.KindECC, Text: strings.Repeat("ü", 1000)})
		}
		attached := []Attached{{"a", "10de", "1db4"}, {"b", "10de", "1db4"}}[:rapid.IntRange(1, 2).Draw(t, "attached")]
		v := Guest(r, attached)
		n := 0
		for _, es := range v.Seen {
			n += len(es)
		}
		if len(v.Seen) != len(attached) || v.Passed && n > 0 || !v.Passed && (n == 0 || v.Why == "") || len(v.Why) > 1000 {
			t.Fatalf("%+v of %+v", v, r)
		}
	})
}
