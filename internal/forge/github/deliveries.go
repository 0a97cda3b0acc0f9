package github

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"gpuserver/internal/forge"
)

// Delivery is one attempt of GitHub's to deliver an event to the App's hook.
type Delivery struct {
	ID             int64
	GUID           string // the same for each attempt; the delivery id of the headers
	DeliveredAt    time.Time
	Redelivery     bool
	StatusCode     int // what the hook answered; 0: nothing
	Status         string
	Event          string // "workflow_job"
	Action         string
	InstallationID int64
	RepositoryID   int64
}

// OK reports whether the hook took it.
func (d Delivery) OK() bool { return d.StatusCode >= 200 && d.StatusCode < 300 }

// DeliveryDetail is a Delivery with what it carried.
type DeliveryDetail struct {
	Delivery
	// Payload is the body. GitHub writes it anew, so its signature does not fit;
	// that it comes from GitHub is known from the connection.
	Payload []byte
}

type wireDelivery struct {
	ID             int64  `json:"id"`
	GUID           string `json:"guid"`
	DeliveredAt    stamp  `json:"delivered_at"`
	Redelivery     bool   `json:"redelivery"`
	Status         string `json:"status"`
	StatusCode     int    `json:"status_code"`
	Event          string `json:"event"`
	Action         string `json:"action"`
	InstallationID int64  `json:"installation_id"`
	RepositoryID   int64  `json:"repository_id"`
}

func (d *wireDelivery) delivery() Delivery {
	return Delivery{
		ID: d.ID, GUID: d.GUID, DeliveredAt: d.DeliveredAt.Time, Redelivery: d.Redelivery,
		Status: d.Status, StatusCode: d.StatusCode, Event: d.Event, Action: d.Action,
		InstallationID: d.InstallationID, RepositoryID: d.RepositoryID,
	}
}

// Deliveries lists a page of at most 100 deliveries to the App's hook, the
// newest first, from a cursor on ("": the newest). Those made before since are
// left out. next is the cursor to go on with, "" if there is nothing more.
// GitHub keeps deliveries for 3 days.
func (f *Forge) Deliveries(ctx context.Context, since time.Time, cursor string) (list []Delivery, next string, err error) {
	query := url.Values{"per_page": {strconv.Itoa(pageSize)}}
	if cursor != "" {
		query.Set("cursor", cursor)
	}
	var out []wireDelivery
	c := call{
		method: http.MethodGet, path: "/app/hook/deliveries", query: query,
		class: ClassHousekeeping, doing: "list the App's deliveries",
	}
	a, err := f.do(ctx, c, &out)
	if err != nil {
		return nil, "", err
	}
	next = nextCursor(a.header)
	for _, w := range out {
		d := w.delivery()
		if d.DeliveredAt.Before(since) {
			next = "" // and so are all after it
			continue
		}
		list = append(list, d)
	}
	return list, next, nil
}

// Delivery reads one delivery with its payload.
func (f *Forge) Delivery(ctx context.Context, id int64) (DeliveryDetail, error) {
	n := strconv.FormatInt(id, 10)
	var out struct {
		wireDelivery
		Request struct {
			Payload json.RawMessage `json:"payload"`
		} `json:"request"`
	}
	c := call{method: http.MethodGet, path: "/app/hook/deliveries/" + n, class: ClassRead, doing: "read delivery " + n}
	if _, err := f.do(ctx, c, &out); err != nil {
		return DeliveryDetail{}, err
	}
	return DeliveryDetail{Delivery: out.delivery(), Payload: out.Request.Payload}, nil
}

// Redeliver asks GitHub to deliver once more. It costs 5 points.
func (f *Forge) Redeliver(ctx context.Context, id int64) error {
	n := strconv.FormatInt(id, 10)
	c := call{
		method: http.MethodPost, path: "/app/hook/deliveries/" + n + "/attempts",
		class: ClassHousekeeping, doing: "ask for delivery " + n + " again",
	}
	_, err := f.do(ctx, c, nil)
	return err
}

// Parsed is the event that the delivery carried.
func (d DeliveryDetail) Parsed() (forge.Event, error) { return Parse(d.Event, d.Payload) }
