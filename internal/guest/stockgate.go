package guest

import (
	"fmt"
	"strings"

	"gpuserver"
	"gpuserver/internal/gate"
)

// stockGate is the part of the stock image's script that stands before the
// runner in a VM with cards: there is no agent, so the script counts the cards
// of each model on the PCI bus, and writes the report that an agent would write
// on the console. If one is missing, the VM goes off and the runner never starts.
func stockGate(e *gate.Expectation) string {
	if e == nil {
		return ""
	}
	counts := map[string]int{}
	var models []string
	for _, c := range e.Cards {
		m := c.VendorID + " " + c.DeviceID
		if counts[m]++; counts[m] == 1 {
			models = append(models, m)
		}
	}
	var script strings.Builder
	script.WriteString(`cards= findings=
count() {
n=0
for d in ~/sys/bus/pci/devices/*; do
[ "$(cat "$d/vendor") $(cat "$d/device")" = "0x$1 0x$2" ] || continue
case $(cat "$d/class") in 0x03*|0x12*) ;; *) continue ;; esac
n=$((n + 1)) cards="$cards${cards:+,}{\"address\":\"${d##*/}\",\"vendor_id\":\"$1\",\"device_id\":\"$2\"}"
done
[ $n -ge $3 ] || findings="$findings${findings:+,}{\"kind\":\"` + string(gate.KindMissing) + `\",\"text\":\"$n of $3 cards $1:$2 are on the VM's PCI bus\"}"
}
`)
	for _, m := range models {
		fmt.Fprintf(&script, "count %s %d\n", m, counts[m])
	}
	script.WriteString(`[ "$findings" ] && passed=false || passed=true
printf '\n` + gate.ConsolePrefix + `{"when":"` + gate.Before + `","passed":%s,"cards":[%s],"findings":[%s],"seconds":0}\n' $passed "$cards" "$findings" >~/dev/console
[ $passed = true ] || { poweroff; exit; }
`)
	return script.String()
}

// checkGate refuses an expectation that nothing could meet or miss. The ids go
// into a script.
func (p *Payload) checkGate() error {
	if p.Gate == nil {
		return nil
	}
	if n := len(p.Gate.Cards); n < 1 || n > gate.MaxCards {
		return gpuserver.Errorf(gpuserver.KindInvalid, "guest payload: gate has %d cards, expected 1 to %d", n, gate.MaxCards)
	}
	if p.Gate.Timeout < 0 {
		return gpuserver.Errorf(gpuserver.KindInvalid, "guest payload: gate.timeout is negative")
	}
	for _, c := range p.Gate.Cards {
		for _, id := range []string{c.VendorID, c.DeviceID} {
			if len(id) != 4 || strings.Trim(id, "0123456789abcdef") != "" {
				return gpuserver.Errorf(gpuserver.KindInvalid, "guest payload: gate has a card %q:%q, expected four hexadecimal digits each", c.VendorID, c.DeviceID)
			}
		}
	}
	return nil
}
