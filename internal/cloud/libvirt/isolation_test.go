package libvirt

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// servant runs the commands that the host sends it, and greets on port 7000.
const servant = `
static ADDRESS/24 GATEWAY 1420
nc -ll -p 7000 -e echo hello &
nc -ll -p 998 -e sh
`

// startServant makes a servant and gives its address.
func startServant(t *testing.T, d *Driver, name string) address {
	t.Helper()
	script := strings.NewReplacer("GATEWAY", d.cfg.Network.Gateway().String(),
		"ADDRESS/24", `$(sed 's/.*"ip_address":"\([0-9.]*\)".*/\1/' /drive/openstack/latest/network_data.json)/24`).Replace(servant)
	start(t, d, name, script)
	_, a, err := d.pool.held(name)
	if err != nil {
		t.Fatal(err)
	}
	dial(t, d.cfg, name, "998").Close()
	return a
}

// order runs a command in a servant and gives its output.
func order(t *testing.T, d *Driver, vm, command string) string {
	t.Helper()
	c := dial(t, d.cfg, vm, "998")
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	fmt.Fprintf(c, "%s\nexit\n", command)
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%s: %s: %v", vm, command, err)
	}
	return string(b)
}

// greeted reports whether a VM is greeted at a place: "ADDRESS PORT". If an
// answer is expected it is asked for again: a guest that asked in vain shortly
// before remembers for some seconds that nobody is there.
func greeted(t *testing.T, d *Driver, vm, place string, expected bool) bool {
	t.Helper()
	tries, wait := 1, 3
	if expected {
		tries, wait = 10, 10
	}
	for range tries {
		if strings.Contains(order(t, d, vm, fmt.Sprintf("nc -w %d %s </dev/null || sleep 1", wait, place)), "hello") {
			return true
		}
	}
	return false
}

// address6 gives the IPv6 address that a servant made itself from a router's
// advertisement.
func address6(t *testing.T, d *Driver, vm string) (found string) {
	t.Helper()
	eventually(t, func() error {
		found = strings.TrimSpace(order(t, d, vm, `ip -6 addr show dev eth0 scope global | sed -n 's/.*inet6 \(fd77[^/]*\).*/\1/p' | head -n 1`))
		if found == "" {
			return fmt.Errorf("%s has no IPv6 address by router advertisement", vm)
		}
		return nil
	})
	return found
}

// makeWorld gives the lab's host an uplink to a namespace in which public and
// private addresses answer, and listeners on its own addresses.
func makeWorld(t *testing.T) {
	t.Helper()
	host(t, `ip netns add world && ip link add up0 type veth peer name down0 netns world &&
ip addr add 198.51.100.1/24 dev up0 && ip -6 addr add 2001:db8:1::1/64 dev up0 nodad && ip link set up0 up &&
ip -n world link set lo up && ip -n world addr add 198.51.100.2/24 dev down0 && ip -n world -6 addr add 2001:db8:1::2/64 dev down0 nodad && ip -n world link set down0 up &&
for a in 203.0.113.9/32 10.9.9.9/32 10.8.8.8/32 172.16.9.9/32 100.64.9.9/32 169.254.169.254/32 2001:db8:9::9/128 fd00:9::9/128; do ip -n world addr add $a dev lo || exit 1; done &&
ip route add default via 198.51.100.2 && ip -6 route add default via 2001:db8:1::2 &&
(sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0 net.bridge.bridge-nf-call-arptables=0 2>/dev/null; true)`) // else bridged packets are judged as routed ones, and no check shows which rule acted
	t.Cleanup(func() { host(t, "ip netns del world; ip link del up0 2>/dev/null; true") })
	world(t, "world", ":7000")
	for _, port := range []string{"7000", "8441"} {
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			t.Fatal(err)
		}
		go greet(l)
		t.Cleanup(func() { l.Close() })
	}
}

// TestIsolation tries from inside a VM what a hostile job would, and shows of
// each refusal that it is a rule's doing: with the rule gone there is an answer.
func TestIsolation(t *testing.T) {
	cfg := newPlace(t)
	cfg.Network.OpenRanges = append(cfg.Network.OpenRanges, prefix("10.8.8.0/24"))
	makeWorld(t)
	d := open(t, cfg)
	a, b := startServant(t, d, "mallory"), startServant(t, d, "bob")
	gateway, gateway6 := cfg.Network.Gateway().String(), cfg.Network.Gateway6().String()
	table := tableName(cfg.Network)
	address6(t, d, "mallory")
	bob6 := address6(t, d, "bob")

	for what, place := range map[string]string{
		"a public address": "203.0.113.9 7000", "an opened private range": "10.8.8.8 7000", "the agent's port": gateway + " 8441",
		"a public IPv6 address": "2001:db8:9::9 7000", "the agent's port by IPv6": gateway6 + " 8441",
	} {
		if !greeted(t, d, "mallory", place, true) {
			t.Errorf("a VM does not reach %s (%s)", what, place)
		}
	}
	if out := order(t, d, "mallory", "nslookup localhost "+gateway); !strings.Contains(out, "127.0.0.1") {
		t.Errorf("DNS does not answer: %s", out)
	}
	if out := host(t, "timeout 5 bash -c 'exec 3<>/dev/tcp/"+b.ip.String()+"/7000; cat <&3'"); !strings.Contains(out, "hello") {
		t.Errorf("the neighbour does not greet its host, so that it greets no VM proves nothing: %q", out)
	}

	// Whoever looks after the rules must not do so while they are taken away.
	d.Close()
	openHost, openWorld := "nft flush chain inet "+table+" to_host", "nft delete element inet "+table+" closed"
	meet := fmt.Sprintf("bridge link set dev %s isolated off; bridge link set dev %s isolated off", a.tap, b.tap)
	apart := fmt.Sprintf("bridge link set dev %s isolated on; bridge link set dev %s isolated on", a.tap, b.tap)
	via := func(action string) {
		order(t, d, "mallory", "ip route "+action+" "+b.ip.String()+"/32 via "+gateway)
		order(t, d, "bob", "ip route "+action+" "+a.ip.String()+"/32 via "+gateway)
	}
	for _, c := range []struct {
		what, place, without, again string
		prepare, after              func()
	}{
		{what: "the host on the bridge", place: gateway + " 7000", without: openHost},
		{what: "the host's other address", place: "198.51.100.1 7000", without: openHost},
		{what: "the host by IPv6", place: gateway6 + " 7000", without: openHost},
		{what: "the host's other IPv6 address", place: "2001:db8:1::1 7000", without: openHost},
		{what: "a neighbour", place: b.ip.String() + " 7000", without: meet, again: apart},
		{what: "a neighbour by IPv6", place: bob6 + " 7000", without: meet, again: apart},
		{
			what: "a neighbour by way of the host", place: b.ip.String() + " 7000", without: "nft flush chain inet " + table + " from_guest",
			prepare: func() { via("add") }, after: func() { via("del") },
		},
		{what: "a private range (10)", place: "10.9.9.9 7000", without: openWorld + "4 { 10.0.0.0/8 }"},
		{what: "a private range (172.16)", place: "172.16.9.9 7000", without: openWorld + "4 { 172.16.0.0/12 }"},
		{what: "shared addresses", place: "100.64.9.9 7000", without: openWorld + "4 { 100.64.0.0/10 }"},
		{what: "link-local addresses", place: "169.254.169.254 7000", without: openWorld + "4 { 169.254.0.0/16 }"},
		{what: "a private IPv6 range", place: "fd00:9::9 7000", without: openWorld + "6 { fc00::/7 }"},
	} {
		t.Run(c.what, func(t *testing.T) {
			if c.prepare != nil {
				c.prepare()
				defer c.after()
			}
			if greeted(t, d, "mallory", c.place, false) {
				t.Errorf("a VM reaches %s (%s)", c.what, c.place)
			}
			host(t, c.without)
			if !greeted(t, d, "mallory", c.place, true) {
				t.Errorf("without its rule (%s) %s does not answer either: the check proves nothing", c.without, c.place)
			}
			if c.again != "" {
				host(t, c.again)
			}
			applyRules(t, d)
			if greeted(t, d, "mallory", c.place, false) {
				t.Errorf("with its rule back, a VM reaches %s", c.what)
			}
		})
	}
	t.Run("a false source address", func(t *testing.T) { falseSource(t, d, a) })
	applyRules(t, d)
	t.Run("from elsewhere", func(t *testing.T) { fromElsewhere(t, d, b, bob6) })
	t.Run("a port without its bridge", func(t *testing.T) { lostBridge(t, d, a) })
}

// fromElsewhere comes from the world, for which this host is a router: neither
// the VMs nor the host's address on their bridge are there for it.
func fromElsewhere(t *testing.T, d *Driver, b address, bob6 string) {
	n := d.cfg.Network
	host(t, fmt.Sprintf("ip -n world route add %s via 198.51.100.1 && ip -n world -6 route add %s via 2001:db8:1::1", n.CIDR, n.CIDR6))
	greets := func(place string) bool {
		ip, port, _ := strings.Cut(place, " ")
		return strings.Contains(host(t, fmt.Sprintf("ip netns exec world timeout 3 bash -c 'exec 3<>/dev/tcp/%s/%s && cat <&3' 2>&1; true", ip, port)), "hello")
	}
	table := "nft flush chain inet " + tableName(n) + " "
	for what, place := range map[string]string{
		"a VM": b.ip.String() + " 7000", "a VM by IPv6": bob6 + " 7000",
		"the agent's port": n.Gateway().String() + " 8441", "the agent's port by IPv6": n.Gateway6().String() + " 8441",
	} {
		if greets(place) {
			t.Errorf("from elsewhere %s is reached (%s)", what, place)
		}
		host(t, table+"to_guest")
		if !greets(place) {
			t.Errorf("without its rule %s does not answer either: the check proves nothing", what)
		}
		applyRules(t, d)
	}
}

// lostBridge takes the bridge away from under a running VM, whose port is then
// an interface of the host's like any other, with an address that the VM can
// guess. The VM's tries are on its console, the only way left to hear of it.
func lostBridge(t *testing.T, d *Driver, a address) {
	const tried, got = "LOST tried", "LOST hello"
	c := dial(t, d.cfg, "mallory", "998")
	if _, err := io.WriteString(c, "(while :; do echo LOST $(nc -w 2 fe80::7777%eth0 7000 </dev/null || sleep 1); echo "+tried+"; done) </dev/null >/dev/console 2>&1 &\n"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	consoleUntil(t, d, "mallory", tried)
	host(t, "virsh -q net-destroy "+d.cfg.Network.Name+" && ip -6 addr add fe80::7777/64 dev "+a.tap+" nodad")
	before := strings.Count(consoleUntil(t, d, "mallory", tried), tried)
	eventually(t, func() error {
		all := consoleUntil(t, d, "mallory", tried)
		if strings.Contains(all, got) {
			t.Fatal("a VM without its bridge reaches the host")
		}
		if n := strings.Count(all, tried) - before; n < 4 {
			return fmt.Errorf("it tried %d times", n)
		}
		return nil
	})
	host(t, "nft flush chain inet "+tableName(d.cfg.Network)+" input")
	consoleUntil(t, d, "mallory", got) // else the check proves nothing
}

// falseSource tries to speak as somebody else on the network.
func falseSource(t *testing.T, d *Driver, a address) {
	other := d.pool.at(77).ip.String()
	order(t, d, "mallory", "ip addr add "+other+"/24 dev eth0; ip route add 203.0.113.9/32 via "+d.cfg.Network.Gateway().String()+" src "+other)
	try := func(expected bool) bool { return greeted(t, d, "mallory", "203.0.113.9 7000", expected) }
	if try(false) {
		t.Error("a VM speaks from an address that is not its own")
	}
	table := tableName(d.cfg.Network)
	host(t, "nft flush chain bridge "+table+" from_port")
	if try(false) {
		t.Error("without our rules alone a VM speaks from an address that is not its own: libvirt's filter does nothing")
	}
	applyRules(t, d)
	host(t, "ebtables -t nat -F")
	if try(false) {
		t.Error("without libvirt's filter alone a VM speaks from an address that is not its own: our rules do nothing")
	}
	host(t, "nft flush chain bridge "+table+" from_port")
	if !try(true) {
		t.Error("without any rule there is no answer either: the check proves nothing")
	}
}

// TestPortKeepsToItsAddresses plays a guest on a port of the bridge, with the
// tools that one who wants another's IPv6 address would bring along.
func TestPortKeepsToItsAddresses(t *testing.T) {
	cfg := newPlace(t)
	makeWorld(t)
	d := open(t, cfg)
	n, mallory, bob := d.cfg.Network, d.pool.at(9), d.pool.at(10)
	own, stolen := mallory.six(n)[1].String(), bob.six(n)[1].String()
	host(t, strings.NewReplacer("PORT", mallory.tap, "MAC", mallory.mac.String(), "BRIDGE", n.Bridge).Replace(
		`ip netns add mallory && ip link add PORT mtu 1420 type veth peer name eth0 mtu 1420 address MAC netns mallory &&
ip -n mallory link set eth0 up && ip link set PORT master BRIDGE up && bridge link set dev PORT isolated on`))
	t.Cleanup(func() { host(t, "ip netns del mallory; ip link del "+mallory.tap+" 2>/dev/null; true") })
	eventually(t, func() error {
		if out := host(t, "ip -n mallory -6 addr show dev eth0 scope global -tentative"); !strings.Contains(out, own+"/64") {
			return fmt.Errorf("no address by router advertisement, want %s:\n%s", own, out)
		}
		return nil
	})
	// It may ask for an address, and names itself as others call a server of theirs.
	if out := host(t, "ip netns exec mallory busybox udhcpc -i eth0 -f -q -n -s /bin/true -x hostname:registry 2>&1"); !strings.Contains(out, "lease of "+mallory.ip.String()+" obtained") {
		t.Errorf("DHCP does not give a guest its address:\n%s", out)
	}
	if out := host(t, "busybox nslookup registry "+n.Gateway().String()+" 2>&1; true"); strings.Contains(out, mallory.ip.String()) {
		t.Errorf("guests find a guest under the name that it gave itself:\n%s", out)
	}

	const timeout = "timeout 3 bash -c "
	fromIt := func(source string) bool {
		host(t, "ip -n mallory -6 route replace 2001:db8:9::9/128 via "+n.Gateway6().String()+" dev eth0 src "+source)
		return strings.Contains(host(t, "ip netns exec mallory "+timeout+"'exec 3<>/dev/tcp/2001:db8:9::9/7000 && cat <&3' 2>&1; true"), "hello")
	}
	if !fromIt(own) {
		t.Error("a guest does not reach the world from its own address")
	}
	// believes asks the host who has bob's address, which nobody has.
	believes := func() bool {
		host(t, "ip -6 neigh flush dev "+n.Bridge+"; "+timeout+"'exec 3<>/dev/tcp/"+stolen+"/7000' 2>/dev/null; true")
		return strings.Contains(host(t, "ip -6 neigh show "+stolen+" dev "+n.Bridge), mallory.mac.String())
	}
	d.Close() // whoever looks after the rules must not do so while they are taken away

	host(t, "ip -n mallory -6 addr add "+stolen+"/128 dev eth0 nodad")
	if fromIt(stolen) {
		t.Error("a guest speaks from another's IPv6 address")
	}
	host(t, "nft flush chain bridge "+tableName(n)+" from_port")
	if !fromIt(stolen) {
		t.Error("without the rules there is no answer either: the check proves nothing")
	}
	applyRules(t, d)
	// A proxy speaks from its own address of another's.
	host(t, "ip -n mallory -6 addr del "+stolen+"/128 dev eth0 && ip netns exec mallory sysctl -qw net.ipv6.conf.eth0.proxy_ndp=1 net.ipv6.conf.eth0.forwarding=1 "+
		"net.ipv6.neigh.eth0.proxy_delay=0 && ip -n mallory -6 neigh add proxy "+stolen+" dev eth0")
	if believes() {
		t.Error("the host believes a guest that says that another's IPv6 address is its own")
	}
	chain := "bridge " + tableName(n) + " from_port"
	host(t, "handle=$(nft -a list chain "+chain+" | sed -n 's/.*@told6 .*# handle //p') && nft delete rule "+chain+" handle $handle")
	if !believes() {
		t.Error("without its rule the host does not believe it either: the check proves nothing")
	}
}

// applyRules puts our tables back as a driver would.
func applyRules(t *testing.T, d *Driver) {
	t.Helper()
	c := exec.Command("nft", "-f", "-")
	c.Stdin = strings.NewReader(rules(d.pool))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestTakenAway takes network, rules and filters from under running VMs, as a
// flush or an operator's mistake does, and wants all of it back.
func TestTakenAway(t *testing.T) {
	cfg := newPlace(t)
	makeWorld(t)
	d := open(t, cfg)
	a := startServant(t, d, "one")
	if !greeted(t, d, "one", "203.0.113.9 7000", true) {
		t.Fatal("a VM does not reach the world")
	}
	for what, command := range map[string]string{
		"flushed rules":     "nft flush ruleset",
		"destroyed network": "virsh -q net-destroy " + cfg.Network.Name,
		"one rule deleted":  "nft flush chain inet " + tableName(cfg.Network) + " from_guest",
	} {
		t.Run(what, func(t *testing.T) {
			host(t, command)
			eventually(t, func() error {
				out, err := exec.Command("bash", "-c", "nft list chain inet "+tableName(cfg.Network)+" from_guest | grep -q closed4 && virsh -q net-info "+
					cfg.Network.Name+" && ebtables -t nat -L | grep "+a.tap+" && bridge -d link show dev "+a.tap+" | grep 'isolated on'").CombinedOutput()
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
			if !greeted(t, d, "one", "203.0.113.9 7000", true) {
				t.Error("the VM does not reach the world any more")
			}
			if greeted(t, d, "one", "10.9.9.9 7000", false) {
				t.Error("the VM reaches a private range")
			}
		})
	}
}

// dropping gives the lab's host a firewall that drops what it does not know, as
// docker and ufw leave it.
func dropping(t *testing.T) {
	for _, program := range []string{"iptables", "ip6tables"} {
		host(t, strings.ReplaceAll("X -P FORWARD DROP && X -P INPUT DROP && X -A INPUT -i up0 -j ACCEPT && X -A INPUT -i lo -j ACCEPT", "X", program))
		t.Cleanup(func() {
			host(t, strings.ReplaceAll("X -P FORWARD ACCEPT && X -P INPUT ACCEPT && X -F INPUT && X -F FORWARD", "X", program))
		})
	}
}

// TestOtherFirewall has a host whose firewall drops what it does not know, as
// docker leaves it: VMs reach the world all the same.
func TestOtherFirewall(t *testing.T) {
	cfg := newPlace(t)
	makeWorld(t)
	dropping(t)
	d := open(t, cfg)
	startServant(t, d, "one")
	if !greeted(t, d, "one", "203.0.113.9 7000", true) {
		t.Error("a VM does not reach the world through a FORWARD policy of DROP")
	}
	address6(t, d, "one")
	if !greeted(t, d, "one", "2001:db8:9::9 7000", true) {
		t.Error("a VM does not reach the world by IPv6 through a FORWARD policy of DROP")
	}
	if !greeted(t, d, "one", cfg.Network.Gateway().String()+" 8441", true) {
		t.Error("a VM does not reach the agent's port through an INPUT policy of DROP")
	}
	if greeted(t, d, "one", cfg.Network.Gateway().String()+" 7000", false) {
		t.Error("a VM reaches another port of the host")
	}
}
