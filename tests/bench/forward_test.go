package bench

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

const (
	rounds  = 2000 // of all variants
	burst   = 256  // packets of a variant in a round
	batch   = 64
	udpPort = 7000
	table   = "edgepolicyd"

	// sink counts and drops what comes in by an interface, before anything else.
	sink = "table netdev sink {\n\tcounter sunk { }\n\tchain in { type filter hook ingress device %s priority 0; udp dport 7000 counter name sunk drop; }\n}\n"
	// track is the least that a gateway with a firewall has.
	track = "table inet track {\n\tchain forward { type filter hook forward priority 0; ct state established,related accept; }\n}\n"
)

// BenchmarkForward reports what a packet of an established flow costs: small
// datagrams from one of 110 pods to another, or from the outside to a pod. There is a
// gateway for each variant, and they take turns: one that drops what comes, which is
// the price of sending; one with connection tracking alone; with the table; with the
// table and its checks of interfaces. The time is the processor's, of the thread that
// sends, as the kernel forwards in it too. "%-more" is how much more than connection
// tracking alone the gateway has to do.
func BenchmarkForward(b *testing.B) {
	for _, kind := range []lab.Kind{lab.Routed, lab.Bridge} {
		for _, flow := range []struct {
			name    string
			outside bool
			family  int
		}{{"pod-to-pod-v4", false, 0}, {"pod-to-pod-v6", false, 1}, {"outside-to-pod-v4", true, 0}} {
			b.Run(kind.String()+"/"+flow.name, func(b *testing.B) {
				var lanes []*lane
				for _, v := range variants() {
					l := &lane{b: b, name: v.name, Lab: lab.ForTest(b, lab.Topology{Kind: kind})}
					l.open(flow.outside, flow.family, v.put)
					lanes = append(lanes, l)
				}
				race(b, lanes)
			})
		}
	}
}

// variant is what a gateway has to do.
type variant struct {
	name string
	put  func(*lane)
}

// variants are what is compared: the first is the sender alone, the second what the
// others are measured by.
func variants() []variant {
	return []variant{
		{"sender", func(l *lane) { l.load(l.Gateway, fmt.Sprintf(sink, l.from.HostInterface)) }},
		{"conntrack", func(l *lane) { l.load(l.Gateway, track) }},
		{"table", func(l *lane) {
			i := ruleset.Interfaces{Ports: l.interfaces().Ports} // what routes tell, without CNI results
			l.put(l.compile(i), i.CompileBridge(table))
		}},
		{"interfaces", func(l *lane) {
			i := l.interfaces()
			l.put(l.compile(i), i.CompileBridge(table))
		}},
	}
}

// lane is a gateway with two pods and one flow. Its table knows of 110.
type lane struct {
	b    *testing.B
	name string
	*lab.Lab
	pods     [2]*lab.Namespace
	from, to *lab.Namespace
	conn     *net.UDPConn
	messages []ipv4.Message
	took     []float64 // ns for each packet, by round
}

func (l *lane) must(err error) {
	l.b.Helper()
	if err != nil {
		l.b.Fatal(err)
	}
}

func (l *lane) load(n *lab.Namespace, text string) {
	l.b.Helper()
	_, err := n.RunInput(text, "nft", "-f", "-")
	l.must(err)
}

// open makes the pods, puts the gateway's rules in place and opens the flow. From
// then on the receiver drops what comes, as cheaply as can be.
func (l *lane) open(outside bool, family int, put func(*lane)) {
	l.b.Helper()
	for i := range l.pods {
		a := podAddresses(i)
		var err error
		l.pods[i], err = l.AddPod(podNamespace(i)+"/"+podName(i), a[:]...)
		l.must(err)
	}
	if l.Kind == lab.Bridge {
		l.must(l.Gateway.Do(func() error { _, err := gateway.EnableBridgeFilter(lab.BridgeName); return err }))
	}
	l.from, l.to = l.pods[0], l.pods[1]
	if outside {
		l.from = l.Outside
	}
	put(l)
	src, dst := l.from.Addresses[family], l.to.Addresses[family]
	l.must(l.from.Do(func() (err error) {
		l.conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, udpPort)))
		return err
	}))
	l.b.Cleanup(func() { l.conn.Close() })
	if l.name != "sender" {
		l.talk(dst)
	}
	l.load(l.to, fmt.Sprintf(sink, "eth0"))
	l.messages = make([]ipv4.Message, batch)
	for i := range l.messages {
		l.messages[i].Buffers = [][]byte{make([]byte, 22)}
	}
}

// talk has the flow see packets in both directions.
func (l *lane) talk(dst netip.Addr) {
	l.b.Helper()
	var server *net.UDPConn
	l.must(l.to.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, udpPort)))
		return err
	}))
	defer server.Close()
	buf := make([]byte, 64)
	for limit := time.Now().Add(10 * time.Second); ; {
		_, err := l.conn.Write(buf)
		l.must(err)
		l.must(server.SetReadDeadline(time.Now().Add(200 * time.Millisecond)))
		_, peer, err := server.ReadFrom(buf) // neighbours may have to find each other first
		if err == nil {
			_, err = server.WriteTo(buf, peer)
			l.must(err)
			return
		}
		if time.Now().After(limit) {
			l.b.Fatalf("%s: %v", l.name, err)
		}
	}
}

// interfaces is what the daemon finds out with the CNI source.
func (l *lane) interfaces() ruleset.Interfaces {
	i := ruleset.Interfaces{
		Hold: true, Others: []string{"lo", lab.UplinkName},
		Ranges: policy.Ranges([]netip.Prefix{netip.MustParsePrefix("10.42.0.0/24"), netip.MustParsePrefix("fd42::/64")}, l.Gateway.Addresses),
	}
	for n := range pods {
		name := fmt.Sprintf("vethpod%d", n)
		if n < len(l.pods) {
			name = l.pods[n].HostInterface
		}
		for _, a := range podAddresses(n) {
			if l.Kind == lab.Bridge {
				i.PortSources = append(i.PortSources, ruleset.Source{Interface: name, Address: a})
				i.Sources = append(i.Sources, ruleset.Source{Interface: lab.BridgeName, Address: a})
			} else {
				i.Sources = append(i.Sources, ruleset.Source{Interface: name, Address: a})
			}
		}
		if l.Kind == lab.Bridge {
			i.Ports, i.Checked, i.Known = append(i.Ports, name), append(i.Checked, name), append(i.Known, name)
		} else {
			i.Pods = append(i.Pods, name)
		}
	}
	if l.Kind == lab.Bridge {
		i.Pods = []string{lab.BridgeName}
	}
	for _, list := range [][]string{i.Pods, i.Ports, i.Checked, i.Known, i.Others} {
		slices.Sort(list)
	}
	return i
}

// compile makes the table of 110 pods, of which none is isolated.
func (l *lane) compile(i ruleset.Interfaces) *ruleset.Table {
	s := &inventory.Snapshot{}
	for n := range pods {
		a := podAddresses(n)
		s.Pods = append(s.Pods, &inventory.Pod{Head: inventory.Head{Key: inventory.Key{Namespace: podNamespace(n), Name: podName(n)}}, Addresses: a[:]})
	}
	slices.SortFunc(s.Pods, func(p, q *inventory.Pod) int { return p.Key.Compare(q.Key) })
	o := inventory.DefaultOptions()
	c := ruleset.NewCompiler(table, &o)
	c.Interfaces = i
	return c.Compile(policy.NewResolver(&o).Update(s), ruleset.Mark{Mask: o.MarkMask, Epoch: 1 << 24})
}

// put has the kernel take the tables; there may be none of the bridge family.
func (l *lane) put(inet, bridge *ruleset.Table) {
	l.b.Helper()
	put := func(open func(string) (*nft.Conn, error), t *ruleset.Table) {
		var c *nft.Conn
		l.must(l.Gateway.Do(func() (err error) { c, err = open(table); return err }))
		defer c.Close()
		l.must(c.Claim())
		l.must(c.Apply(ruleset.Diff(&ruleset.Table{Family: t.Family, Name: t.Name}, t).Transactions))
	}
	put(nft.Open, inet)
	if bridge != nil {
		put(nft.OpenBridge, bridge)
	}
}

// send sends a burst and gives the processor time of each packet, in nanoseconds:
// veth hands a packet to its other end within the sender's system call.
func (l *lane) send() float64 {
	pc := ipv4.NewPacketConn(l.conn) // whatever the family: it is sendmmsg
	var begin, end unix.Timespec
	l.must(unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &begin))
	for sent := 0; sent < burst; {
		n, err := pc.WriteBatch(l.messages[:min(batch, burst-sent)], 0)
		l.must(err)
		sent += n
	}
	l.must(unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &end))
	return float64(end.Nano()-begin.Nano()) / burst
}

// sunk says how many packets arrived.
func (l *lane) sunk() (count int) {
	l.b.Helper()
	out, err := l.to.Run("nft", "list", "counter", "netdev", "sink", "sunk")
	l.must(err)
	_, after, _ := strings.Cut(out, "packets ")
	_, err = fmt.Sscan(after, &count)
	l.must(err)
	return count
}

// race has all lanes send in turn, on one processor.
func race(b *testing.B, lanes []*lane) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		b.Fatal(err)
	}
	one.Set(runtime.NumCPU() - 1)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		b.Fatal(err)
	}
	defer unix.SchedSetaffinity(0, &all)
	sent := 0
	for b.Loop() {
		for range rounds {
			for _, i := range rand.Perm(len(lanes)) {
				lanes[i].took = append(lanes[i].took, lanes[i].send())
			}
			sent += burst
		}
	}
	for i, l := range lanes {
		if arrived := l.sunk(); i == 0 && arrived != 0 || i > 0 && arrived != sent {
			b.Errorf("%s: %d of %d packets arrived", l.name, arrived, sent)
		}
	}
	report(b, lanes)
}

// report gives the medians, and what each lane costs more than the second, round by
// round.
func report(b *testing.B, lanes []*lane) {
	b.ReportMetric(0, "ns/op")
	median := func(l *lane) float64 { return quantile(l.took, 0.5) }
	forwarding := median(lanes[1]) - median(lanes[0])
	for i, l := range lanes {
		b.ReportMetric(median(l), "ns-"+l.name)
		if i < 2 {
			continue
		}
		var more []float64
		for r, ns := range l.took {
			more = append(more, ns-lanes[1].took[r])
		}
		b.ReportMetric(100*quantile(more, 0.5)/forwarding, "%-more-"+l.name)
		b.Logf("%s: %.0f ns more than connection tracking's %.0f; quartiles %.0f and %.0f", l.name, quantile(more, 0.5), forwarding, quantile(more, 0.25), quantile(more, 0.75))
	}
}

func quantile(list []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(list))
	return s[int(q*float64(len(s)-1)+0.5)]
}
