package gate

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// dcgmConfiguration is the severity and dcgmSoftware the category of a warning
// about how the machine is set up, such as persistence mode being off: no fault
// of a card.
// Source: DCGM documentation, "Diagnostic Errors".
const (
	dcgmConfiguration = 5
	dcgmSoftware      = 3
)

// dcgmLog is the part of `dcgmi diag -j` that is looked at. Its form is not
// promised: what is not there fails nothing.
type dcgmLog struct {
	Diagnostic struct {
		Categories []struct {
			Tests []dcgmTest `json:"tests"`
		} `json:"test_categories"`
	} `json:"DCGM Diagnostic"`
}

type dcgmTest struct {
	Name    string `json:"name"`
	Results []struct {
		Status   string          `json:"status"`
		Entity   json.RawMessage `json:"entity_id"`
		GPU      json.RawMessage `json:"gpu_id"` // DCGM before 4
		Warnings json.RawMessage `json:"warnings"`
	} `json:"results"`
}

// dcgmWarning is one of DCGM 4; older versions have texts in other forms.
type dcgmWarning struct {
	Text     string `json:"warning"`
	Severity int    `json:"error_severity"`
	Category int    `json:"error_category"`
}

// askDCGM runs the short diagnosis, if the image has it.
func (c *check) askDCGM(ctx context.Context) {
	path := c.tool("dcgmi")
	if path == "" {
		return
	}
	c.alsoAsked("dcgmi")
	out, err := c.call(ctx, dcgmTimeout, path, "diag", "-r", "1", "-j")
	var l dcgmLog
	if json.Unmarshal(out.stdout, &l) != nil || len(l.Diagnostic.Categories) == 0 {
		// A test that failed is told in the JSON, whatever the exit status.
		if err != nil {
			c.found("", KindTool, "dcgmi failed: %s", reason(out, err, nil))
		} else {
			c.found("", KindTool, "dcgmi printed no diagnosis: %s", out.both())
		}
		return
	}
	for _, category := range l.Diagnostic.Categories {
		for _, test := range category.Tests {
			c.judgeTest(test)
		}
	}
}

func (c *check) judgeTest(test dcgmTest) {
	cards := c.of(vendorNVIDIA)
	for _, r := range test.Results {
		why, fault := faults(r.Warnings)
		if !strings.EqualFold(r.Status, "fail") || !fault {
			continue
		}
		host := ""
		if n, ok := index(r.Entity, r.GPU); ok && n < len(cards) {
			host = cards[n].Host
		}
		c.found(host, KindDiagnosis, "dcgmi's test %q failed%s", test.Name, why)
	}
}

// faults gives the first warning that is about a card. A test that failed
// without a warning that can be read is one, too.
func faults(raw json.RawMessage) (why string, fault bool) {
	var warnings []dcgmWarning
	if json.Unmarshal(raw, &warnings) != nil || len(warnings) == 0 {
		return "", !strings.Contains(string(raw), "Persistence")
	}
	for _, w := range warnings {
		if w.Severity != dcgmConfiguration && w.Category != dcgmSoftware && !strings.HasPrefix(w.Text, "Persistence") {
			return fmt.Sprintf(": %s", w.Text), true
		}
	}
	return "", false
}

// index reads the number of a card, which is a number or a text.
func index(raws ...json.RawMessage) (int, bool) {
	for _, raw := range raws {
		if n, err := strconv.Atoi(strings.Trim(string(raw), `"`)); err == nil && n >= 0 {
			return n, true
		}
	}
	return 0, false
}
