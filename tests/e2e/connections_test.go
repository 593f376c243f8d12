package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
)

var (
	allowClient = policy("web", isolateWebBothWays+", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]")
	allowOther  = policy("web", isolateWebBothWays+", ingress: [{from: [{podSelector: {matchLabels: {app: other}}}]}]")
	denyWeb     = policy("web", isolateWebBothWays)
)

// pair is an established connection with both of its ends in hand: a to port 7 of
// b.
type pair struct{ a, b net.Conn }

// connect makes a pair over TCP.
func (w *world) connect(from, to string, at netip.Addr) pair {
	w.t.Helper()
	where := netip.AddrPortFrom(at, 7)
	var ln *net.TCPListener
	w.must(w.names[to].Do(func() (err error) {
		ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(where))
		return err
	}))
	defer ln.Close()
	w.must(ln.SetDeadline(time.Now().Add(patience)))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, err := w.names[from].Dial(ctx, "tcp", netip.Addr{}, where)
	w.must(err)
	b, err := ln.Accept()
	w.must(err)
	w.t.Cleanup(func() { b.Close() })
	return pair{a, b}
}

// carries sends a line from one end and says whether it comes within the time.
func carries(from, to net.Conn, within time.Duration) error {
	want := fmt.Sprintf("%d\n", time.Now().UnixNano())
	if _, err := io.WriteString(from, want); err != nil {
		return err
	}
	if err := to.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	r := bufio.NewReaderSize(to, 16)
	for {
		got, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if got == want { // else what was sent while the connection was cut
			return nil
		}
	}
}

func (w *world) bothWays(why string, p pair) {
	w.t.Helper()
	if err := errors.Join(carries(p.a, p.b, patience), carries(p.b, p.a, patience)); err != nil {
		w.t.Errorf("%s: %s to %s: %v", why, p.a.LocalAddr(), p.a.RemoteAddr(), err)
	}
}

// S28: replies of an allowed connection pass, whatever the other direction says.
func TestS28Replies(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.enforce(
			policy("web", isolateWebBothWays+", ingress: [{ports: [{port: 80}, {port: 53, protocol: UDP}]}]"),
			policy("client", "podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress], egress: [{ports: [{port: 80}, {port: 53, protocol: UDP}]}]"))
		w.serve("web", "tcp", 80)
		w.serve("web", "udp", 53)
		for _, a := range []string{"10.42.0.12", "[fd42::12]"} {
			for _, from := range []string{"client", "outside", "gateway"} {
				w.connects(from, "tcp", a+":80")
				w.connects(from, "udp", a+":53")
			}
		}
		w.see("the other way round", "web client 80 no\n web other 80 no\n web outside 80 no\n client web 81 no")
	})
}

// icmpError is the message that a router or host sends about a packet: of type
// and code 3/3 or 3/4 (1/4 and 2/0 in ICMPv6).
func icmpError(unreachable bool, about lab.Probe) []byte {
	m := []byte{3, 4, 0, 0, 0, 0, 5, 0} // fragmentation needed, MTU 1280
	if unreachable {
		m = []byte{3, 3, 0, 0, 0, 0, 0, 0}
	}
	if about.Dst.Is6() {
		if m = []byte{2, 0, 0, 0, 0, 0, 5, 0}; unreachable {
			m = []byte{1, 4, 0, 0, 0, 0, 0, 0}
		}
		m = append(m, 0x60, 0, 0, 0, 0, 16, byte(about.Proto), 64)
	} else {
		m = append(m, 0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, byte(about.Proto), 0, 0)
	}
	m = append(append(m, about.Src.AsSlice()...), about.Dst.AsSlice()...)
	m = binary.BigEndian.AppendUint16(m, about.SrcPort)
	m = binary.BigEndian.AppendUint16(m, about.DstPort)
	return append(m, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
}

// S28: ICMP errors about an allowed connection pass, about no other.
func TestS28Errors(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.must(w.AddOutside(parse("203.0.113.9", "2001:db8::9")...))
		w.enforce(denyWebExcept("53", "UDP"),
			policy("client", "podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]"))
		for _, at := range []string{"10.42.0.12:53", "[fd42::12]:53"} {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			c, err := w.names["client"].Dial(ctx, "udp", netip.Addr{}, netip.MustParseAddrPort(at))
			cancel()
			w.must(err)
			w.must(c.SetDeadline(time.Now().Add(patience)))
			_, err = c.Write([]byte("anybody there?"))
			w.must(err)
			if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
				w.t.Errorf("udp to the closed port %s: %v, want the pod's port unreachable", at, err)
			}
		}
		for _, a := range [][3]string{{"10.42.0.11", "203.0.113.9", "192.168.254.2"}, {"fd42::11", "2001:db8::9", "fd00:254::2"}} {
			flow := lab.Probe{Src: netip.MustParseAddr(a[0]), Dst: netip.MustParseAddr(a[1]), Proto: inventory.UDP, SrcPort: 5000, DstPort: 53}
			denied, unknown := flow, flow
			denied.DstPort, unknown.SrcPort = 54, 5001
			got, err := w.Probe(context.Background(), []lab.Probe{flow, denied})
			w.must(err)
			if !got[0] || got[1] {
				w.t.Fatalf("the flows from %s: %v, want allowed and denied", a[0], got)
			}
			router := lab.Probe{From: w.Outside, Src: netip.MustParseAddr(a[2]), Dst: flow.Src, Proto: inventory.ICMP}
			var probes []lab.Probe
			for _, about := range []lab.Probe{flow, denied, unknown} {
				router.ICMP = icmpError(false, about)
				probes = append(probes, router)
			}
			if got, err = w.Probe(context.Background(), probes); err != nil || !got[0] || got[1] || got[2] {
				w.t.Errorf("packet too big to %s about an allowed, a denied and an unknown flow: %v %v", a[0], got, err)
			}
		}
	})
}

// S28: so do a pod's errors about its allowed connection to the gateway.
func TestS28ErrorsToTheGateway(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.enforce(policy("web", isolateWeb+", policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]"))
		for _, a := range [][2]string{{"10.42.0.12", "192.168.254.1"}, {"fd42::12", "fd00:254::1"}} {
			flow := flowOf(a[0], a[1])
			denied := flow
			denied.DstPort = 54
			w.fate("the flows", []bool{true, false}, flow, denied)
			var errs []lab.Probe
			for _, f := range []lab.Probe{flow, denied} {
				answer := lab.Probe{Src: f.Dst, Dst: f.Src, Proto: f.Proto, SrcPort: f.DstPort, DstPort: f.SrcPort}
				errs = append(errs, lab.Probe{Src: f.Src, Dst: f.Dst, Proto: inventory.ICMP, ICMP: icmpError(true, answer)})
			}
			w.fate("errors about the answers to them", []bool{true, false}, errs...)
		}
	})
}

// denyWebExcept isolates web both ways but for one port to it.
func denyWebExcept(port, protocol string) string {
	return policy("web", isolateWebBothWays+", ingress: [{ports: [{port: "+port+", protocol: "+protocol+"}]}]")
}

// S28: a helper's data connection passes until the next restricting change.
func TestS28Helper(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.nft(`table ip helpers {
			ct helper ftp { type "ftp" protocol tcp; }
			chain pre { type filter hook prerouting priority 0; tcp dport 21 ct helper set "ftp"; }
		}`)
		w.enforce(denyWebExcept("21", "TCP"))
		control := w.ftp("client", 5050)
		w.see("before the helper knows of it, any port", "client.4 web.4 5051 no")
		w.serve("web", "tcp", 5050)
		data := w.connects("client", "tcp", "10.42.0.12:5050") // 227 named it
		w.enforce(denyWebExcept("21", "TCP"), policy("other", "podSelector: {matchLabels: {app: other}}"))
		w.cut("the data connection after a restricting change", data)
		if err := carries(control.a, control.b, patience); err != nil {
			w.t.Errorf("the control connection: %v", err)
		}
	})
}

// ftp opens a control connection to port 21 of web, in which the server answers
// PASV with a port.
func (w *world) ftp(from string, port int) pair {
	w.t.Helper()
	var ln *net.TCPListener
	w.must(w.names["web"].Do(func() (err error) {
		ln, err = net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(10, 42, 0, 12), Port: 21})
		return err
	}))
	defer ln.Close()
	w.must(ln.SetDeadline(time.Now().Add(patience)))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, err := w.names[from].Dial(ctx, "tcp", netip.Addr{}, netip.MustParseAddrPort("10.42.0.12:21"))
	w.must(err)
	b, err := ln.Accept()
	w.must(err)
	w.t.Cleanup(func() { b.Close() })
	say := func(from, to net.Conn, text string) {
		_, err := io.WriteString(from, text)
		w.must(err)
		w.must(to.SetReadDeadline(time.Now().Add(patience)))
		_, err = io.ReadFull(to, make([]byte, len(text)))
		w.must(err)
	}
	say(b, a, "220 ready\r\n")
	say(a, b, "PASV\r\n")
	say(b, a, fmt.Sprintf("227 Entering Passive Mode (10,42,0,12,%d,%d)\r\n", port/256, port%256))
	return pair{a, b}
}

// S29: a change that denies what is allowed cuts established connections,
// whichever end sends first, and the same connections resume when it is allowed
// again.
func TestS29Cut(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.serve("web", "udp", 53)
		denyClient := policy("client", "podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]")
		for i, deny := range []string{allowOther, documents(allowClient, denyClient)} {
			w.run([]string{"by ingress", "by egress"}[i], func() {
				w.enforce(allowClient)
				var tcp []pair
				var udp []net.Conn
				for _, a := range w.addrs("web") {
					// Two of each: either end may be the first to send.
					p, q := w.connect("client", "web", a), w.connect("client", "web", a)
					tcp = append(tcp, p, pair{q.b, q.a})
					udp = append(udp, w.connects("client", "udp", netip.AddrPortFrom(a, 53).String()))
				}
				for _, p := range tcp {
					w.bothWays("allowed", p)
				}
				w.enforce(deny)
				for range 2 {
					var wait sync.WaitGroup
					for n, p := range tcp {
						wait.Go(func() {
							if carries(p.a, p.b, denial) == nil {
								w.t.Errorf("from %s to %s still carries data", p.a.LocalAddr(), p.b.LocalAddr())
							}
						})
						tcp[n] = pair{p.b, p.a} // and then the other way
					}
					wait.Wait()
				}
				for _, c := range udp {
					w.cut("udp", c)
				}
				w.see("new ones", "client web 80 no")
				w.enforce(allowClient)
				for _, p := range tcp {
					w.bothWays("resumed", p)
				}
				for _, c := range udp {
					w.works("udp resumed", c)
				}
			})
		}
	})
}

// S29: what the new policy still allows is not disturbed: not one packet is lost,
// in established flows of either direction, while others are cut.
func TestS29Undisturbed(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.serve("web", "udp", 53)
		w.enforce(policy("web", isolateWebBothWays+", ingress: [{}]"))
		var flows []lab.Flow
		for _, a := range [][3]string{{"10.42.0.11", "10.42.0.13", "10.42.0.12"}, {"fd42::11", "fd42::13", "fd42::12"}} {
			udp := lab.Probe{Src: netip.MustParseAddr(a[0]), Dst: netip.MustParseAddr(a[2]), Proto: inventory.UDP, SrcPort: 6000, DstPort: 53}
			back := lab.Probe{Src: udp.Dst, Dst: udp.Src, Proto: inventory.UDP, SrcPort: 53, DstPort: 6000}
			cut := udp
			cut.Src = netip.MustParseAddr(a[1])
			flows = append(flows, lab.Flow{Probe: udp, Expect: lab.Allowed}, lab.Flow{Probe: back, Expect: lab.Allowed}, lab.Flow{Probe: cut})
			established, err := w.Probe(context.Background(), []lab.Probe{udp, cut})
			w.must(err)
			if !established[0] || !established[1] {
				w.t.Fatal("a flow was not allowed")
			}
		}
		conn := w.connects("client", "udp", "10.42.0.12:53")
		stop, err := w.StartTraffic(context.Background(), 3000, flows)
		w.must(err)
		for range 10 {
			w.enforce(allowClient)
			w.see("cut", "other web 80 no\n client web 80 yes")
			w.enforce(policy("web", isolateWebBothWays+", ingress: [{}]"))
		}
		report, err := stop()
		w.must(err)
		if report.Lost > 0 || report.Leaked > 0 {
			w.t.Errorf("of the flows that stayed allowed %d packets were lost of %v: %+v", report.Lost, report.Sent, report.Wrong)
		}
		for i, f := range flows {
			if report.Sent[i] == 0 || f.Expect == lab.Either && report.Arrived[i] == report.Sent[i] {
				w.t.Errorf("flow %d: %d sent, %d arrived: it was not tried, or never cut", i, report.Sent[i], report.Arrived[i])
			}
		}
		w.works("a connection", conn)
	})
}

// S29, S24: the gateway's own packets go on, and so do the answers to them; what
// the pod began is cut.
func TestS29GatewayGoesOn(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.serve("gateway", "tcp", 53)
		for i, a := range w.addrs("gateway") {
			probe := w.connect("gateway", "web", w.addrs("web")[i])
			asked := w.connects("web", "tcp", netip.AddrPortFrom(a, 53).String())
			w.bothWays("before", probe)
			w.enforce(denyWeb)
			w.bothWays("of the gateway", probe)
			w.cut("of the pod", asked)
			w.enforce()
			w.works("allowed again", asked)
		}
	})
}

// S30: no packet meets half of a change: during changes that keep a flow allowed
// none of it is lost, and of what stays denied nothing slips through. (Thousands
// of changes: tests/traffic.)
func TestS30AtOneInstant(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		states := []string{
			allowClient,
			documents(allowClient, policy("more", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}, {podSelector: {matchLabels: {app: none}}}], ports: [{port: 80}]}]")),
			policy("other-name", isolateWebBothWays+`, ingress: [{from: [{ipBlock: {cidr: 10.42.0.11/32}}, {ipBlock: {cidr: "fd42::11/128"}}]}]`),
			documents(allowClient, policy("client", "podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]")),
			policy("web", isolateWebBothWays+", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80, endPort: 90}]}]"),
		}
		w.enforce(states[0])
		flow := func(src, dst string, e lab.Expect) lab.Flow { return lab.Flow{Probe: tcp(src, dst, 80), Expect: e} }
		stop, err := w.StartTraffic(context.Background(), 3000, []lab.Flow{
			flow("10.42.0.11", "10.42.0.12", lab.Allowed), flow("fd42::11", "fd42::12", lab.Allowed),
			flow("10.42.0.13", "10.42.0.12", lab.Denied), flow("fd42::13", "fd42::12", lab.Denied),
			flow("10.42.0.12", "10.42.0.13", lab.Denied), flow("192.168.254.2", "10.42.0.12", lab.Denied),
		})
		w.must(err)
		for i := range 20 {
			w.enforce(states[(i+1)%len(states)])
		}
		report, err := stop()
		w.must(err)
		if report.Lost > 0 || report.Leaked > 0 {
			w.t.Errorf("%d lost, %d leaked of %v: %+v", report.Lost, report.Leaked, report.Sent, report.Wrong)
		}
		for i, n := range report.Sent {
			if n < 100 {
				w.t.Errorf("flow %d: only %d packets were sent", i, n)
			}
		}
	})
}

// tables lists the gateway's nftables tables.
func (w *world) tables() string {
	w.t.Helper()
	return w.gw("nft", "list", "tables")
}

const ourTable = "table inet edgepolicyd\n"

// S31: rules stay in force when the daemon stops or is killed, for established
// connections too; only flush takes them away, and only ours.
func TestS31RulesStay(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.nft("table inet other { }\n")
		w.enforce(allowClient)
		conn := w.connect("client", "web", netip.MustParseAddr("10.42.0.12"))
		for _, end := range []func() error{w.Stop, w.Kill} {
			w.must(end())
			w.see("no daemon", "client web 80 yes\n other web 80 no\n web client 80 no")
			w.bothWays("no daemon", conn)
			w.must(w.Start())
			w.see("back", "client web 80 yes\n other web 80 no\n web client 80 no")
			w.bothWays("back", conn)
		}
		w.must(w.Kill())
		out, errs, code, err := w.Run("flush")
		w.must(err)
		if code != 0 || w.tables() != "table inet other\n" {
			w.t.Errorf("flush without a daemon: exit code %d, %s%s; tables:\n%s", code, out, errs, w.tables())
		}
		w.see("flushed", "client web 80 yes\n other web 80 yes\n web client 80 yes")
		if out, errs, code, err := w.Run("flush"); err != nil || code != 0 || !strings.Contains(out, "nothing to do") {
			w.t.Errorf("flush of nothing: %v, exit code %d, %s%s", err, code, out, errs)
		}
	})
}

// S32: labels, addresses and policies that change take effect on targets and on
// peers.
func TestS32Changes(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		with := func(docs ...string) {
			w.t.Helper()
			w.apply("pods.yaml", documents(docs...))
		}
		w.enforce(allowClient, policy("far/in", `podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: x}}}]}]`))
		const before = "client web 80 yes\n other web 80 no\n client far/stranger 80 no"
		w.see("before", before)
		w.run("a peer relabelled", func() {
			with(web.yaml(), pod{name: "client", n: 11, labels: "app: former"}.yaml(), pod{name: "other", n: 13, labels: "app: client"}.yaml(), stranger.yaml())
			w.see("after", "client web 80 no\n other web 80 yes")
		})
		w.run("a target relabelled", func() {
			with(pod{name: "web", n: 12, labels: "app: former"}.yaml(), client.yaml(), pod{name: "other", n: 13, labels: "app: web"}.yaml(), stranger.yaml())
			w.see("after", "outside web 80 yes\n other web 80 no # by its egress\n web other 80 no\n client other 80 yes\n far/stranger other 80 no")
		})
		with(web.yaml(), client.yaml(), other.yaml(), stranger.yaml())
		w.see("back", before)
		w.run("a namespace relabelled", func() {
			w.apply("ns.yaml", namespace("default", "team: x"))
			w.see("after", "client far/stranger 80 yes")
			w.apply("ns.yaml", namespace("default", "team: y"))
			w.see("and again", "client far/stranger 80 no")
			w.must(w.Remove("ns.yaml"))
			w.must(w.Reload())
			w.see("without an object", "client far/stranger 80 no")
		})
		w.run("a pod's address changed", func() {
			w.must(w.Readdress(w.names["web"], parse("10.42.0.50", "fd42::50")...))
			w.must(w.Readdress(w.names["client"], parse("10.42.0.51", "fd42::51")...))
			with(web.at("10.42.0.50", "fd42::50"), client.at("10.42.0.51", "fd42::51"), other.yaml(), stranger.yaml())
			w.see("as target and as peer", "client web 80 yes\n other web 80 no")
		})
		w.run("addresses reused by others", func() {
			w.must(w.Readdress(w.names["other"], parse("10.42.0.51", "fd42::51")...)) // it was a client's
			w.must(w.Readdress(w.names["client"], parse("10.42.0.50", "fd42::50")...))
			w.must(w.Readdress(w.names["web"], parse("10.42.0.12", "fd42::12")...))
			with(web.yaml(), client.at("10.42.0.50", "fd42::50"), other.at("10.42.0.51", "fd42::51"), stranger.yaml())
			w.see("the old address is worth nothing", "client web 80 yes\n other web 80 no\n other client 80 yes")
		})
		w.run("a pod gone", func() {
			with(web.yaml(), other.at("10.42.0.51", "fd42::51"), stranger.yaml())
			w.see("no peer any more", "client web 80 no")
			with(client.at("10.42.0.50", "fd42::50"), other.at("10.42.0.51", "fd42::51"), stranger.yaml())
			w.see("no target any more", "other web 80 yes\n web other 80 yes")
		})
		w.run("a policy deleted", func() {
			with(web.yaml(), client.at("10.42.0.50", "fd42::50"), other.at("10.42.0.51", "fd42::51"), stranger.yaml())
			w.see("with it", "other web 80 no")
			w.must(w.Remove("policies.yaml"))
			w.must(w.Reload())
			w.see("without", "other web 80 yes\n web other 80 yes\n client far/stranger 80 yes")
		})
		w.healthy()
	})
}
