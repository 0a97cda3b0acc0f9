package dashboard_test

import (
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"gpuserver"
	"gpuserver/internal/api"
	"gpuserver/internal/api/apitest"
	"gpuserver/internal/dashboard"
	"gpuserver/internal/store"
)

type served struct {
	db    *store.DB
	fleet *apitest.Fleet
	world apitest.World
	url   string
}

func serve(t *testing.T) *served {
	t.Helper()
	s := &served{db: apitest.OpenStore(t)}
	s.fleet = apitest.NewFleet(t, s.db)
	s.world = apitest.Seed(t, s.db)
	s.url, _ = apitest.Serve(t, api.Options{DB: s.db, Actions: s.fleet, Pages: dashboard.New(dashboard.Options{DB: s.db, Around: s.fleet, Version: "1.2.3"})})
	return s
}

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

var spaces = regexp.MustCompile(`<[^>]*>|\s+`)

// words gives a page's text, without tags, one blank between words.
func words(page string) string {
	return strings.Join(strings.Fields(spaces.ReplaceAllString(page, " ")), " ")
}

// A store that cannot be written keeps every job out: the page says so first.
func TestOverviewOfAStoreThatCannotBeWritten(t *testing.T) {
	db := apitest.OpenStore(t)
	full := func(context.Context) error {
		return gpuserver.Errorf(gpuserver.KindUnavailable, "the disk under the data folder is full")
	}
	h := dashboard.New(dashboard.Options{DB: db, Around: apitest.NewFleet(t, db), Writable: full})
	url, _ := apitest.Serve(t, api.Options{DB: db, Actions: apitest.NewFleet(t, db), Pages: h})
	if _, page := get(t, url+"/"); !strings.Contains(words(page), "Nothing can be stored. the disk under the data folder is full") {
		t.Errorf("the page does not say it: %s", words(page))
	}
}

func TestOverview(t *testing.T) {
	s := serve(t)
	resp, page := get(t, s.url+"/")
	if resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, page)
	}
	text := words(page)
	for _, want := range []string{
		"2 first waits for 8 min", "Image old is held", "gpuserver image release old", "Flavor gpu_large is suspended on cloud stack", "gpuserver cloud resume stack gpu_large", "One VM is made to try it after ",
		"VMs run under software emulation",
		"1 test (3) octo/hello gpu--2 queued 8 minutes ago It waits for 8 vCPU on cloud local: 4 of 16 are free. It starts when VM gs-2 ends.",
		"2 test (4)", "gs-2 busy", "local/node1 small demo 2", "test (1) octo/hello success 10 minutes ago 1 min 23 s", "test (5) octo/hello refused",
		"local/node1 1 6 of 16 8.0 GiB of 64 GiB 40 of 500 GiB",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
}

func TestEmptyOverview(t *testing.T) {
	db := apitest.OpenStore(t)
	url, _ := apitest.Serve(t, api.Options{DB: db, Actions: apitest.NewFleet(t, db), Pages: dashboard.New(dashboard.Options{DB: db, Around: &apitest.Fleet{}})})
	_, page := get(t, url+"/")
	for _, want := range []string{"Nothing waits.", "No VM is alive.", "No job has run yet.", "No host is known."} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q", want)
		}
	}
}

func TestJobPages(t *testing.T) {
	s := serve(t)
	for path, wants := range map[string][]string{
		"/jobs/5": {"test (5) refused", "does not let mallory use the runner gpu.", "What would change it: Ask an owner of octo to add mallory to the team gpu."},
		"/jobs/3": {"test (3) queued", "Its place in the queue is 1 of 2.", "None yet."},
		"/jobs/1": {"test (1) success", "It ended: success.", "kernel", "0.700", "gs-1 gone on local/node1, flavor small, image demo", "Ran for 1 min 23 s"},
		"/jobs/2": {"It runs on VM gs-2."},
	} {
		resp, page := get(t, s.url+path)
		for _, want := range wants {
			if !strings.Contains(words(page), want) {
				t.Errorf("%s: %d, no %q in %s", path, resp.StatusCode, want, words(page))
			}
		}
	}
	for _, path := range []string{"/jobs/99", "/jobs/x", "/jobs/-1", "/nothing"} {
		if resp, page := get(t, s.url+path); resp.StatusCode != 404 || !strings.Contains(page, "This did not work") {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}

// TestNamesOfOthersDoNothing: names come from whoever may push to a repository.
func TestNamesOfOthersDoNothing(t *testing.T) {
	s := serve(t)
	err := s.db.Update(t.Context(), func(tx *store.Tx) error {
		j := s.world.Queued
		j.Name, j.URL = `<script>alert(1)</script>"'`, "javascript:alert(1)"
		j.Reason.Text = "<img src=x onerror=alert(1)>"
		return tx.SaveJob(&j)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/jobs/3"} {
		_, page := get(t, s.url+path)
		if strings.Contains(page, "<script>alert") || strings.Contains(page, "<img") || strings.Contains(page, `href="javascript`) {
			t.Errorf("%s: %s", path, page)
		}
	}
}

var inline = regexp.MustCompile(`(?i)<script(?: [^>]*)?>[^<]|<style|\son\w+=|\sstyle=|(?:src|href)="(?:https?:)?//`)

func TestPagesKeepTheirPolicy(t *testing.T) {
	s := serve(t)
	apitest.SeedGPUs(t, s.fleet, s.world)
	for _, path := range []string{"/", "/jobs/1", "/gpus/4", "/nothing"} {
		resp, page := get(t, s.url+path)
		csp := resp.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
		// The one link that leads elsewhere is to the job on its forge, and loads nothing.
		page = strings.ReplaceAll(page, `href="`+s.world.Done.URL+`"`, "")
		if found := inline.FindString(page); found != "" {
			t.Errorf("%s: %q", path, found)
		}
		for _, table := range strings.Split(page, "<table>")[1:] {
			if !strings.Contains(table, `scope="col"`) || strings.Contains(table, "<tr>") && !strings.Contains(table, `scope="row"`) {
				t.Errorf("%s: a table without headers", path)
			}
		}
	}
	for _, path := range []string{"/static/style.css", "/static/live.js", "/static/icon.svg"} {
		if resp, _ := get(t, s.url+path); resp.StatusCode != 200 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}

func TestPageOfABrokenStore(t *testing.T) {
	s := serve(t)
	_ = s.db.Close()
	resp, page := get(t, s.url+"/")
	if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(page, "This did not work") {
		t.Errorf("%d %s", resp.StatusCode, page)
	}
}

func finish(t *testing.T, s *served, id gpuserver.JobID) {
	t.Helper()
	if err := s.fleet.End(t.Context(), id, "cancelled"); err != nil {
		t.Fatal(err)
	}
}
