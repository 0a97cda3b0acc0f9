package dashboard_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// browse gives a tab of a headless Chromium that ends with the test. What the
// page's console says, violations of its policy included, fails the test.
func browse(t *testing.T) context.Context {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Skip("no Chromium is installed")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.WSURLReadTimeout(2*time.Minute))
	alloc, cancelAlloc := chromedp.NewExecAllocator(context.Background(), opts...)
	tab, cancelTab := chromedp.NewContext(alloc)
	t.Cleanup(func() {
		_ = chromedp.Cancel(tab) // waits for the browser, which still writes to its folder
		cancelTab()
		cancelAlloc()
	})
	// The first call starts the browser, which would end with its time limit.
	if err := chromedp.Do(tab); err != nil {
		t.Fatal(err)
	}
	err := chromedp.Listen(tab, func(e any) {
		switch e := e.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("exception: %s", e.ExceptionDetails.Text)
		case *log.EventEntryAdded:
			if e.Entry.Level == log.EntryLevelError {
				t.Errorf("console: %s %s", e.Entry.Text, e.Entry.URL)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(tab, 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func perform(t *testing.T, ctx context.Context, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatal(err)
	}
}

// ask gives the value of an action.
func ask[T any](t *testing.T, ctx context.Context, a chromedp.Action[T]) T {
	t.Helper()
	v, err := chromedp.Run(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// until waits for a JavaScript expression to be true. It asks each time anew:
// chromedp's Poll names a page's context, which after a navigation may be the
// last page's still.
func until(t *testing.T, ctx context.Context, expression string) {
	t.Helper()
	for !ask(t, ctx, chromedp.Evaluate[bool](expression)) {
		select {
		case <-ctx.Done():
			t.Fatalf("%s is not true: %v", expression, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// emulate sends one of the browser's emulation commands.
func emulate[P any](c cdp.Command[P, cdp.Empty], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, c, params)
		return err
	})
}

// wide asks whether something sticks out of the window at the right.
const wide = `document.documentElement.scrollWidth > document.documentElement.clientWidth`

const live = `document.getElementById("link").textContent === "live"`

func TestPagesAreLive(t *testing.T) {
	s := serve(t)
	ctx := browse(t)
	perform(t, ctx, chromedp.EmulateViewport(1200, 900), chromedp.Navigate(s.url+"/"))
	until(t, ctx, live)
	shoot(t, ctx, "overview")
	finish(t, s, s.world.Queued.ID)
	// Without a reload: the job left the queue for the recent ones.
	until(t, ctx, `[...document.querySelectorAll("[aria-labelledby=recent] tr")].some((r) => r.textContent.includes("test (3)") && r.textContent.includes("cancelled"))`)

	perform(t, ctx, chromedp.Navigate(s.url+"/jobs/4"))
	until(t, ctx, live)
	finish(t, s, s.world.Behind.ID)
	until(t, ctx, `document.querySelector("h1").textContent.includes("cancelled") && document.title.includes("cancelled")`)
}

func TestPagesFitAPhoneInTheDark(t *testing.T) {
	s := serve(t)
	ctx := browse(t)
	perform(t, ctx, chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile), emulate(emulation.SetEmulatedMedia,
		emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}}))
	for path, name := range map[string]string{"/": "phone", "/jobs/1": "phone-job", "/jobs/5": "phone-refused"} {
		perform(t, ctx, chromedp.Navigate(s.url+path))
		if ask(t, ctx, chromedp.Evaluate[bool](wide)) {
			t.Errorf("%s is wider than a phone", path)
		}
		if back := ask(t, ctx, chromedp.Evaluate[string](`getComputedStyle(document.body).backgroundColor`)); back != "rgb(15, 19, 23)" {
			t.Errorf("%s in the dark is %s", path, back)
		}
		shoot(t, ctx, name)
	}
}

func TestPagesNeedNoScript(t *testing.T) {
	s := serve(t)
	ctx := browse(t)
	perform(t, ctx, emulate(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}), chromedp.Navigate(s.url+"/jobs/5"))
	if text := ask(t, ctx, chromedp.Text(chromedp.CSS("main"))); !strings.Contains(text, "Ask an owner of octo") {
		t.Errorf("without scripts: %q", text)
	}
}

// shoot takes a picture where GPUSERVER_TEST_SHOTS says; to be looked at.
func shoot(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	dir := os.Getenv("GPUSERVER_TEST_SHOTS")
	if dir == "" {
		return
	}
	png := ask(t, ctx, chromedp.FullScreenshot(100))
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}
