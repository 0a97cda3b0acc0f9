package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"gpuserver/internal/cloud"
	"gpuserver/internal/guest"
	"gpuserver/internal/guest/guesttest"
)

// guests are what the fake cloud's VMs do.
var guests = map[string]func(context.Context, cloud.Spec, io.Writer){
	// none boots for ever: real ones need longer to boot than a burst takes.
	"none": nil,
	// quick runs its job at once. Then it stays, so that what takes the VM down
	// is the forge's word that the job ended.
	"quick": func(ctx context.Context, spec cloud.Spec, console io.Writer) {
		(&guesttest.Player{}).Play(ctx, spec, console)
		<-ctx.Done()
	},
	// long runs a job that does not end, and reports as the agent does.
	"long": func(ctx context.Context, spec cloud.Spec, console io.Writer) {
		done := make(chan struct{})
		go func() { defer close(done); beat(ctx, spec, console) }()
		(&guesttest.Player{JobTime: 24 * time.Hour}).Play(ctx, spec, console)
		<-done
	},
}

// beatEvery is the interval at which an agent reports when nothing is new.
const beatEvery = 10 * time.Second

var beatClient = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 16, MaxConnsPerHost: 64}}

// beat sends the reports that say nothing new, until ctx ends.
func beat(ctx context.Context, spec cloud.Spec, console io.Writer) {
	p, err := guest.ParseUserData(spec.UserData)
	if err != nil {
		_, _ = fmt.Fprintln(console, "user data:", err)
		return
	}
	began := time.Now()
	t := time.NewTicker(beatEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		h := guest.Heartbeat{Phase: "runner", UptimeSeconds: time.Since(began).Seconds(), MemPeakMiB: 1000, DiskPeakMiB: 1000, AgentVersion: "played"}
		if err := post(ctx, p, h); err != nil {
			_, _ = fmt.Fprintln(console, "heartbeat:", err)
		}
	}
}

func post(ctx context.Context, p guest.Payload, h guest.Heartbeat) error {
	body, err := json.Marshal(h)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Server+"/guest/v1/heartbeat", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+p.Token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := beatClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	return err
}
