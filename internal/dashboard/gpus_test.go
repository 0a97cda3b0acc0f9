package dashboard_test

import (
	"context"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"gpuserver"
	"gpuserver/internal/api/apitest"
	"gpuserver/internal/store"
)

func TestOverviewShowsCards(t *testing.T) {
	s := serve(t)
	if _, page := get(t, s.url+"/"); strings.Contains(page, "GPU") {
		t.Error("without cards the page speaks of GPUs")
	}
	apitest.SeedGPUs(t, s.fleet, s.world)
	_, page := get(t, s.url+"/")
	text := words(page)
	for _, want := range []string{
		"GPU slots free on local 1",
		"GPU 4 is quarantined (tesla-v100 on local/node1 at 0000:a3:00.0, 3 hours ago ). Xid 79: the card has fallen off the bus. gpuserver gpu history 4 says more.",
		"put it back with gpuserver gpu uncordon 4",
		"1 local/node1 0000:27:00.0 19 tesla-v100 in service gs-3 until 5 hours from now at most 0.0",
		"2 local/node1 0000:28:00.0 19 tesla-v100 in service gs-3 has its group until 5 hours from now at most 0.0",
		"3 local/node1 0000:44:00.0 32 tesla-v100 in service 0.0 4 ",
		"5 local/node1 0000:c3:00.0 87 tesla-v100 resting its memory had an uncorrectable error 2.0",
		"6 local/node2 0000:27:00.0 7 tesla-v100 cordoned its fan is loud 0.0",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	for _, not := range []string{"GPU 5 is quarantined", "GPU 6 is quarantined"} {
		if strings.Contains(text, not) {
			t.Errorf("%q is said", not)
		}
	}
	for what, want := range map[string]string{
		"way from a card to the job that has it": `<a href="/jobs/6">gs-3</a>`,
		"way to the card's own page":             `<a href="/gpus/4">`,
		"colour for quarantine":                  `<span class="word bad">quarantined</span>`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s", what)
		}
	}
}

func TestPageOfACard(t *testing.T) {
	s := serve(t)
	apitest.SeedGPUs(t, s.fleet, s.world)
	for path, wants := range map[string][]string{
		"/gpus/4": {
			"GPU 4 quarantined tesla-v100 on local/node1 at 0000:a3:00.0: Xid 79: the card has fallen off the bus",
			"What to do: gpuserver gpu history 4", "Strikes 6.0, the last 3 hours ago", "IOMMU group 75", "UUID GPU-00000004-0000", "16 lanes at most",
			"strike 6.0 1 xid: Xid 79", "seen first seen at 0000:a3:00.0",
		},
		"/gpus/2": {"GPU 2 in service", "Held by gs-3 busy , which has another card of the group, job 6 , until 5 hours from now at most"},
		"/gpus/5": {"GPU 5 resting", "Rests until 2 hours from now"},
	} {
		resp, page := get(t, s.url+path)
		for _, want := range wants {
			if !strings.Contains(words(page), want) {
				t.Errorf("%s: %d, no %q in %s", path, resp.StatusCode, want, words(page))
			}
		}
	}
	for _, path := range []string{"/gpus/99", "/gpus/x", "/gpus/-1", "/gpus/44:00.0"} {
		if resp, page := get(t, s.url+path); resp.StatusCode != 404 || !strings.Contains(page, "This did not work") {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}

func TestJobPageNamesItsCards(t *testing.T) {
	s := serve(t)
	apitest.SeedGPUs(t, s.fleet, s.world)
	for path, want := range map[string]string{
		"/jobs/6": "GPU 1 tesla-v100 on local/node1 at 0000:27:00.0, GPU-00000001-0000-0000-0000-000000000000",
		"/jobs/1": "GPU 4 tesla-v100 on local/node1 at 0000:a3:00.0",
	} {
		if _, page := get(t, s.url+path); !strings.Contains(words(page), want) {
			t.Errorf("%s: no %q in %s", path, want, words(page))
		}
	}
	if _, page := get(t, s.url+"/jobs/3"); strings.Contains(page, "GPU ") {
		t.Error("a job without cards has one")
	}
}

func TestOverviewSaysThatACardFailedAJob(t *testing.T) {
	s := serve(t)
	err := s.db.Update(t.Context(), func(tx *store.Tx) error {
		s.world.Done.Reason = gpuserver.Reason{Class: gpuserver.ReasonGPU, Text: "the GPU at 0000:a3:00.0 failed during the job"}
		return tx.SaveJob(&s.world.Done)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, page := get(t, s.url+"/"); !strings.Contains(words(page), "1 min 23 s the GPU at 0000:a3:00.0 failed during the job") {
		t.Errorf("it is not told: %s", words(page))
	}
}

// What a card's vendor or a guest wrote does nothing on the page.
func TestReasonsOfCardsDoNothing(t *testing.T) {
	s := serve(t)
	c := apitest.SeedGPUs(t, s.fleet, s.world)
	err := s.db.Update(t.Context(), func(tx *store.Tx) error {
		c.Bad.Reason, c.Bad.UUID, c.Bad.Model = "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "<script>alert(2)</script>"
		return tx.SaveGPU(&c.Bad)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/jobs/1", "/gpus/4"} {
		if _, page := get(t, s.url+path); strings.Contains(page, "<script>alert") || strings.Contains(page, "<img") {
			t.Errorf("%s: %s", path, page)
		}
	}
}

func TestCardsAreLive(t *testing.T) {
	s := serve(t)
	c := apitest.SeedGPUs(t, s.fleet, s.world)
	ctx := browse(t)
	// Without its clock the page fetches anew only when it is told of a change.
	perform(t, ctx, before(eventsOnly), chromedp.EmulateViewport(1200, 900), chromedp.Navigate(s.url+"/"))
	until(t, ctx, live+" && window.fetched === 1") // the fetch at the connection's start
	shoot(t, ctx, "gpus")
	err := s.db.Update(t.Context(), func(tx *store.Tx) error {
		c.Single.State, c.Single.Reason = gpuserver.GPUQuarantined, "it was seen to die"
		return tx.SaveGPU(&c.Single)
	})
	if err != nil {
		t.Fatal(err)
	}
	until(t, ctx, `[...document.querySelectorAll("p.alarm")].some((p) => p.textContent.includes("GPU 3 is quarantined"))`)

	perform(t, ctx, chromedp.Navigate(s.url+"/gpus/3"))
	until(t, ctx, live+" && window.fetched === 1")
	if err := s.fleet.CordonGPU(t.Context(), c.Single.ID, "", "me"); err != nil {
		t.Fatal(err)
	}
	until(t, ctx, `document.querySelector("h1").textContent.includes("cordoned") && document.title.includes("cordoned")`)
}

// eventsOnly takes the page's clock away and counts its fetches.
const eventsOnly = `{
  const real = window.fetch;
  window.setInterval = () => 0;
  window.fetched = 0;
  window.fetch = (...args) => real(...args).finally(() => { window.fetched++; });
}`

// before runs a script in each page before the page's own.
func before(script string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: script})
		return err
	})
}

func TestCardsFitAPhoneInTheDark(t *testing.T) {
	s := serve(t)
	apitest.SeedGPUs(t, s.fleet, s.world)
	ctx := browse(t)
	perform(t, ctx, chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile), emulate(emulation.SetEmulatedMedia,
		emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}}))
	for path, name := range map[string]string{"/": "phone-gpus", "/jobs/6": "phone-gpu-job", "/gpus/4": "phone-gpu"} {
		perform(t, ctx, chromedp.Navigate(s.url+path))
		if ask(t, ctx, chromedp.Evaluate[bool](wide)) {
			t.Errorf("%s is wider than a phone", path)
		}
		shoot(t, ctx, name)
	}
}
