package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// pod is a pod of the lab and what the directory says of it.
type pod struct {
	name   string // "web", or "namespace/web"
	n      int    // its addresses are 10.42.0.n and fd42::n
	labels string // "app: web, tier: front"
	spec   string // of the Pod: "containers: [...]"
	phase  string
}

func (p pod) key() (namespace, name string) {
	if ns, name, ok := strings.Cut(p.name, "/"); ok {
		return ns, name
	}
	return "default", p.name
}

func (p pod) addresses() []string {
	return []string{fmt.Sprintf("10.42.0.%d", p.n), fmt.Sprintf("fd42::%d", p.n)}
}

// yaml is the pod's document.
func (p pod) yaml() string {
	a := p.addresses()
	return p.at(a...)
}

// at is the document of the pod with other addresses.
func (p pod) at(addrs ...string) string {
	ns, name := p.key()
	var ips []string
	for _, a := range addrs {
		ips = append(ips, fmt.Sprintf("{ip: %q}", a))
	}
	phase := p.phase
	if phase == "" {
		phase = "Running"
	}
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s, labels: {%s}}\nspec: {%s}\nstatus: {phase: %s, podIPs: [%s]}\n",
		name, ns, p.labels, p.spec, phase, strings.Join(ips, ", "))
}

// documents joins YAML documents.
func documents(list ...string) string { return strings.Join(list, "---\n") }

// policy is a NetworkPolicy's document; name may be "namespace/name", spec is a
// flow mapping.
func policy(name, spec string) string {
	ns, base := pod{name: name}.key()
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: %s}\nspec: {%s}\n", base, ns, spec)
}

func namespace(name, labels string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {%s}}\n", name, labels)
}

// pods makes pods in the lab and writes their documents into pods.yaml.
func (w *world) pods(list ...pod) {
	w.t.Helper()
	var docs []string
	for _, p := range list {
		w.pod(p.name, p.addresses()...)
		docs = append(docs, p.yaml())
	}
	w.must(w.Write("pods.yaml", documents(docs...)))
}

// crowd is what most tests need: a server, a client, somebody else, and a
// stranger in another namespace.
var (
	web      = pod{name: "web", n: 12, labels: "app: web"}
	client   = pod{name: "client", n: 11, labels: "app: client"}
	other    = pod{name: "other", n: 13, labels: "app: other"}
	stranger = pod{name: "far/stranger", n: 14, labels: "app: client"}
)

// crowded is both with the crowd and a running daemon.
func crowded(t *testing.T, config string, test func(t *testing.T, w *world)) {
	both(t, config, func(t *testing.T, w *world) {
		w.pods(web, client, other, stranger)
		w.must(w.Start())
		test(t, w)
	})
}

// enforce makes policies.yaml hold these documents, and nothing else.
func (w *world) enforce(docs ...string) {
	w.t.Helper()
	w.apply("policies.yaml", documents(docs...))
}

// addrs are the addresses that a name stands for in see: a pod (of namespace
// default unless it says otherwise), outside, gateway (its uplink), one of them
// with .4 or .6 for one family, or an address.
func (w *world) addrs(name string) []netip.Addr {
	w.t.Helper()
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}
	}
	base, family, _ := strings.Cut(name, ".")
	var all []netip.Addr
	switch base {
	case "gateway":
		all = parse("192.168.254.1", "fd00:254::1")
	case "outside":
		all = parse("192.168.254.2", "fd00:254::2")
	default:
		n := w.names[base]
		if n == nil {
			w.t.Fatalf("nobody is called %q", name)
		}
		all = n.Addresses
	}
	var list []netip.Addr
	for _, a := range all {
		if family == "" || a.Is4() == (family == "4") {
			list = append(list, a)
		}
	}
	return list
}

// service reads "80", "80/UDP" or "ping".
func service(s string) (inventory.Protocol, uint16, error) {
	if s == "ping" {
		return inventory.ICMP, 0, nil
	}
	port, name, found := strings.Cut(s, "/")
	proto := inventory.TCP
	if found {
		var ok bool
		if proto, ok = inventory.ParseProtocol(name); !ok {
			n, err := strconv.Atoi(name)
			if err != nil {
				return 0, 0, fmt.Errorf("protocol %q", name)
			}
			proto = inventory.Protocol(n)
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return proto, uint16(n), err
}

// see sends the first packets of connections and compares with a table of lines
//
//	from to service yes|no
//
// in every family that both ends have. What follows # is a comment.
func (w *world) see(why, table string) {
	w.t.Helper()
	var probes []lab.Probe
	var want []bool
	var text []string
	for line := range strings.Lines(table) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 4 || f[3] != "yes" && f[3] != "no" {
			w.t.Fatalf("line %q: want from, to, service and yes or no", line)
		}
		proto, port, err := service(f[2])
		w.must(err)
		before := len(probes)
		for _, src := range w.addrs(f[0]) {
			for _, dst := range w.addrs(f[1]) {
				if src.Is4() != dst.Is4() {
					continue
				}
				probes = append(probes, lab.Probe{From: w.names[strings.Split(f[0], ".")[0]], Src: src, Dst: dst, Proto: proto, DstPort: port})
				want, text = append(want, f[3] == "yes"), append(text, fmt.Sprintf("%s (%s to %s)", strings.Join(f[:3], " "), src, dst))
			}
		}
		if len(probes) == before {
			w.t.Fatalf("line %q: the two ends have no family in common", line)
		}
	}
	got, err := w.Probe(context.Background(), probes)
	w.must(err)
	for i := range got {
		if got[i] != want[i] {
			w.t.Errorf("%s: %s: arrived %v, want %v", why, text[i], got[i], want[i])
		}
	}
}

// status asks the daemon as a person does.
func (w *world) status() (status.Status, int) {
	w.t.Helper()
	out, errs, code, err := w.Run("status", "-o", "json")
	w.must(err)
	var s status.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		w.t.Fatalf("status -o json: %v: %q %q", err, out, errs)
	}
	return s, code
}

// healthy fails unless the daemon says that all is well.
func (w *world) healthy() {
	w.t.Helper()
	if s, code := w.status(); s.Health != status.Healthy || code != 0 || len(s.Reasons) > 0 {
		w.t.Errorf("status: %s, exit code %d, %q; want healthy", s.Health, code, s.Reasons)
	}
}

// degraded fails unless the daemon is, and names all of this in its reasons.
func (w *world) degraded(names ...string) status.Status {
	w.t.Helper()
	s, code := w.status()
	if s.Health != status.Degraded || code != 3 {
		w.t.Errorf("status: %s, exit code %d, %q; want degraded and 3", s.Health, code, s.Reasons)
	}
	reasons := strings.Join(s.Reasons, "\n")
	for _, n := range names {
		if !strings.Contains(reasons, n) {
			w.t.Errorf("the reasons do not name %q:\n%s", n, reasons)
		}
	}
	return s
}

// eventually waits up to ten seconds for something that takes effect without a
// reload.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Errorf("within 10 s: not %s", what)
			return
		}
	}
}

// gw runs a command in the gateway.
func (w *world) gw(name string, args ...string) string {
	w.t.Helper()
	out, err := w.Gateway.Run(name, args...)
	w.must(err)
	return out
}

// nft loads a table of another program into the gateway.
func (w *world) nft(text string) {
	w.t.Helper()
	_, err := w.Gateway.RunInput(text, "nft", "-f", "-")
	w.must(err)
}

// patience is how long something that should work may take; denial how long is
// waited for what should not.
const (
	patience = 10 * time.Second
	denial   = 400 * time.Millisecond
)

// serve starts an echo server on all of a pod's addresses.
func (w *world) serve(name, network string, port uint16) {
	w.t.Helper()
	for _, a := range w.addrs(name) {
		_, err := w.names[name].Listen(network, netip.AddrPortFrom(a, port))
		w.must(err)
	}
}

// dial connects; tries is how long it may take.
func (w *world) dial(from, network, to string, within time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	c, err := w.names[from].Dial(ctx, network, netip.Addr{}, netip.MustParseAddrPort(to))
	if err != nil {
		return nil, err
	}
	return c, lab.Exchange(c, within)
}

// connects says that a connection can be made and carries data.
func (w *world) connects(from, network, to string) net.Conn {
	w.t.Helper()
	c, err := w.dial(from, network, to, patience)
	if err != nil {
		w.t.Errorf("%s from %s to %s: %v", network, from, to, err)
	}
	return c
}

// fails says that no connection comes about.
func (w *world) fails(from, network, to string) {
	w.t.Helper()
	if _, err := w.dial(from, network, to, denial); err == nil {
		w.t.Errorf("%s from %s to %s: connected", network, from, to)
	}
}

// works says that a connection that was made carries data.
func (w *world) works(why string, c net.Conn) {
	w.t.Helper()
	if err := lab.Exchange(c, patience); err != nil {
		w.t.Errorf("%s: %v", why, err)
	}
}

// cut says that a connection that was made carries no data any more.
func (w *world) cut(why string, c net.Conn) {
	w.t.Helper()
	if err := lab.Exchange(c, denial); err == nil {
		w.t.Errorf("%s: %s to %s still carries data", why, c.LocalAddr(), c.RemoteAddr())
	}
}

// run is a part of a test with a name, in the same world.
func (w *world) run(name string, test func()) {
	w.t.Helper()
	outer := w.t.(*testing.T)
	outer.Run(name, func(t *testing.T) {
		w.t = t
		defer func() { w.t = outer }()
		test()
	})
}

// replace is strings.NewReplacer for one use.
func replace(s string, pairs ...string) string { return strings.NewReplacer(pairs...).Replace(s) }

// counters gives the packets of the named counters of an inet table.
func (w *world) counters(table string) map[string]uint64 {
	w.t.Helper()
	var listing struct {
		Nftables []struct {
			Counter *struct {
				Name    string
				Packets uint64
			}
		}
	}
	w.must(json.Unmarshal([]byte(w.gw("nft", "-j", "list", "counters", "table", "inet", table)), &listing))
	found := map[string]uint64{}
	for _, o := range listing.Nftables {
		if o.Counter != nil {
			found[o.Counter.Name] = o.Counter.Packets
		}
	}
	return found
}
