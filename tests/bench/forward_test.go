package bench

import (
	"fmt"
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

// BenchmarkForward reports what a packet of an established flow costs: small
// datagrams from one of 110 pods to another, or from the outside to a pod. All in
// one run, in turn: the sender alone, as the gateway drops what comes; forwarding
// with connection tracking alone; with the table; with the table and its checks of
// interfaces. The time is the processor's, of one thread that sends, as the kernel
// forwards in it too. The ratios are to forwarding with connection tracking, less
// the sender, of the same round.
func BenchmarkForward(b *testing.B) {
	for _, kind := range []lab.Kind{lab.Routed, lab.Bridge} {
		f := newForwarding(b, kind)
		for _, flow := range []struct {
			name     string
			from, to *lab.Namespace
			family   int
		}{
			{"pod-to-pod-v4", f.pods[0], f.pods[1], 0},
			{"pod-to-pod-v6", f.pods[0], f.pods[1], 1},
			{"outside-to-pod-v4", f.Outside, f.pods[1], 0},
		} {
			b.Run(kind.String()+"/"+flow.name, func(b *testing.B) {
				f.b = b
				f.measure(flow.from, flow.to, flow.family)
			})
		}
	}
}

const (
	rounds     = 21     // each of all variants
	packets    = 50_000 // of a variant in a round
	batch      = 64
	udpPort    = 7000
	sinkText   = "table netdev sink {\n\tcounter sunk { }\n\tchain in { type filter hook ingress device %s priority 0; udp dport 7000 counter name sunk drop; }\n}\n"
	trackText  = "table inet track {\n\tchain forward { type filter hook forward priority 0; ct state established,related accept; }\n}\n"
	forwardTab = "edgepolicyd"
)

// forwarding is a gateway whose table is put in place by hand.
type forwarding struct {
	b *testing.B
	*lab.Lab
	pods       []*lab.Namespace
	interfaces ruleset.Interfaces
	isolations []policy.Isolation
	options    inventory.Options
	conns      []*nft.Conn
}

func newForwarding(b *testing.B, kind lab.Kind) *forwarding {
	b.Helper()
	f := &forwarding{b: b, Lab: lab.ForTest(b, lab.Topology{Kind: kind}), options: inventory.DefaultOptions()}
	snapshot := &inventory.Snapshot{}
	for i := range pods {
		a := podAddresses(i)
		n, err := f.AddPod(podNamespace(i)+"/"+podName(i), a[:]...)
		f.must(err)
		f.pods = append(f.pods, n)
		snapshot.Pods = append(snapshot.Pods, &inventory.Pod{Head: inventory.Head{Key: inventory.Key{Namespace: podNamespace(i), Name: podName(i)}}, Addresses: a[:]})
	}
	if kind == lab.Bridge {
		f.must(f.Gateway.Do(func() error { _, err := gateway.EnableBridgeFilter(lab.BridgeName); return err }))
	}
	slices.SortFunc(snapshot.Pods, func(p, q *inventory.Pod) int { return p.Key.Compare(q.Key) })
	f.isolations = policy.NewResolver(&f.options).Update(snapshot)
	f.wire()
	return f
}

func (f *forwarding) must(err error) {
	f.b.Helper()
	if err != nil {
		f.b.Fatal(err)
	}
}

// wire says what the daemon finds out of the interfaces with the CNI source.
func (f *forwarding) wire() {
	i := &f.interfaces
	i.Hold, i.Others = true, []string{"lo", lab.UplinkName}
	i.Ranges = policy.Ranges([]netip.Prefix{netip.MustParsePrefix("10.42.0.0/24"), netip.MustParsePrefix("fd42::/64")}, f.Gateway.Addresses)
	for _, n := range f.pods {
		name := n.HostInterface
		for _, a := range n.Addresses {
			if f.Kind == lab.Bridge {
				i.PortSources = append(i.PortSources, ruleset.Source{Interface: name, Address: a})
				i.Sources = append(i.Sources, ruleset.Source{Interface: lab.BridgeName, Address: a})
			} else {
				i.Sources = append(i.Sources, ruleset.Source{Interface: name, Address: a})
			}
		}
		if f.Kind == lab.Bridge {
			i.Ports, i.Checked = append(i.Ports, name), append(i.Checked, name)
		} else {
			i.Pods = append(i.Pods, name)
		}
	}
	if f.Kind == lab.Bridge {
		i.Pods = []string{lab.BridgeName}
	}
	for _, list := range [][]string{i.Pods, i.Ports, i.Checked, i.Others} {
		slices.Sort(list)
	}
}

// variant is a way to forward.
type variant struct {
	name string
	set  func()
}

// table gives a variant with the compiled table, and on a bridge with that of the
// bridge family.
func (f *forwarding) table(name string, i ruleset.Interfaces) variant {
	c := ruleset.NewCompiler(forwardTab, &f.options)
	c.Interfaces = i
	inet := c.Compile(f.isolations, ruleset.Mark{Mask: f.options.MarkMask, Epoch: 1 << 24})
	return f.tables(name, inet, i.CompileBridge(forwardTab))
}

func (f *forwarding) tables(name string, inet, bridge *ruleset.Table) variant {
	return variant{name, func() {
		f.put(nft.Open, inet)
		if bridge != nil {
			f.put(nft.OpenBridge, bridge)
		}
	}}
}

func (f *forwarding) put(open func(string) (*nft.Conn, error), t *ruleset.Table) {
	f.b.Helper()
	var c *nft.Conn
	f.must(f.Gateway.Do(func() (err error) { c, err = open(forwardTab); return err }))
	f.must(c.Claim())
	f.must(c.Apply(ruleset.Diff(&ruleset.Table{Family: t.Family, Name: t.Name}, t).Transactions))
	f.conns = append(f.conns, c)
}

// clear takes away what a variant put in place.
func (f *forwarding) clear() {
	f.b.Helper()
	for _, c := range f.conns {
		_, err := c.Delete()
		f.must(err)
		f.must(c.Close())
	}
	f.conns = nil
	_, err := f.Gateway.Run("nft", "flush", "ruleset")
	f.must(err)
}

func (f *forwarding) load(n *lab.Namespace, text string) {
	f.b.Helper()
	_, err := n.RunInput(text, "nft", "-f", "-")
	f.must(err)
}

// variants are what is compared; the second is what the others are measured by.
func (f *forwarding) variants(from *lab.Namespace) []variant {
	bare := ruleset.Interfaces{Ports: f.interfaces.Ports} // as by the routes, without CNI results
	return []variant{
		{"sender", func() { f.load(f.Gateway, fmt.Sprintf(sinkText, from.HostInterface)) }},
		{"conntrack", func() { f.load(f.Gateway, trackText) }},
		f.table("table", bare),
		f.table("interfaces", f.interfaces),
	}
}

// measure has one flow go through all variants.
func (f *forwarding) measure(from, to *lab.Namespace, family int) {
	src, dst := from.Addresses[min(family, len(from.Addresses)-1)], to.Addresses[family]
	if src.Is4() != dst.Is4() {
		f.b.Fatalf("%s and %s are not of one family", src, dst)
	}
	conn := f.established(from, to, src, dst)
	defer conn.Close()
	f.load(to, fmt.Sprintf(sinkText, "eth0"))
	defer func() {
		_, err := to.Run("nft", "delete", "table", "netdev", "sink")
		f.must(err)
	}()
	variants := f.variants(from)
	took := make([][]float64, len(variants)) // ns, by round
	for f.b.Loop() {
		for range rounds {
			for i, v := range variants {
				v.set()
				f.send(conn, packets/10)
				before := f.sunk(to)
				ns := f.send(conn, packets)
				if arrived := f.sunk(to) - before; (arrived == packets) != (i > 0) {
					f.b.Fatalf("%s: %d of %d packets arrived", v.name, arrived, packets)
				}
				f.clear()
				took[i] = append(took[i], ns)
			}
		}
	}
	f.report(variants, took)
}

// established opens a flow that has seen packets in both directions.
func (f *forwarding) established(from, to *lab.Namespace, src, dst netip.Addr) *net.UDPConn {
	f.b.Helper()
	f.load(f.Gateway, trackText)
	defer f.clear()
	var client, server *net.UDPConn
	f.must(to.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, udpPort)))
		return err
	}))
	defer server.Close()
	f.must(from.Do(func() (err error) {
		client, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, udpPort)))
		return err
	}))
	limit := time.Now().Add(5 * time.Second)
	f.must(client.SetDeadline(limit))
	f.must(server.SetDeadline(limit))
	buf := make([]byte, 64)
	for range 3 {
		_, err := client.Write(buf)
		f.must(err)
		_, peer, err := server.ReadFrom(buf)
		f.must(err)
		_, err = server.WriteTo(buf, peer)
		f.must(err)
		_, err = client.Read(buf)
		f.must(err)
	}
	f.must(client.SetDeadline(time.Time{}))
	return client
}

// send sends packets and gives the processor time of each, in nanoseconds: veth
// hands a packet to the other end within the sender's system call.
func (f *forwarding) send(c *net.UDPConn, count int) float64 {
	f.b.Helper()
	messages := make([]ipv4.Message, batch)
	for i := range messages {
		messages[i].Buffers = [][]byte{make([]byte, 22)}
	}
	pc := ipv4.NewPacketConn(c) // whatever the family: it is sendmmsg
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	f.must(unix.SchedGetaffinity(0, &all))
	one.Set(runtime.NumCPU() - 1)
	f.must(unix.SchedSetaffinity(0, &one))
	defer unix.SchedSetaffinity(0, &all)
	var begin, end unix.Timespec
	f.must(unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &begin))
	for sent := 0; sent < count; {
		n, err := pc.WriteBatch(messages[:min(batch, count-sent)], 0)
		f.must(err)
		sent += n
	}
	f.must(unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &end))
	return float64(end.Nano()-begin.Nano()) / float64(count)
}

// sunk says how many packets arrived so far.
func (f *forwarding) sunk(n *lab.Namespace) (count int) {
	f.b.Helper()
	out, err := n.Run("nft", "list", "counter", "netdev", "sink", "sunk")
	f.must(err)
	_, after, _ := strings.Cut(out, "packets ")
	_, err = fmt.Sscan(after, &count)
	f.must(err)
	return count
}

// report prints the medians, and by the rounds what each variant costs more than
// forwarding with connection tracking.
func (f *forwarding) report(variants []variant, took [][]float64) {
	f.b.ReportMetric(0, "ns/op")
	for i, v := range variants {
		f.b.ReportMetric(quantile(took[i], 0.5), v.name+"-ns/packet")
		if i < 2 {
			continue
		}
		var more, ns []float64
		for r := range took[i] {
			ns = append(ns, took[i][r]-took[1][r])
			more = append(more, 100*(took[i][r]-took[1][r])/(took[1][r]-took[0][r]))
		}
		f.b.ReportMetric(quantile(more, 0.5), v.name+"-%more")
		f.b.Logf("%-12s costs %4.0f ns more than connection tracking (quartiles %.0f, %.0f), %.1f %% (%.1f, %.1f)", v.name,
			quantile(ns, 0.5), quantile(ns, 0.25), quantile(ns, 0.75), quantile(more, 0.5), quantile(more, 0.25), quantile(more, 0.75))
	}
}

func quantile(list []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(list))
	return s[int(q*float64(len(s)-1)+0.5)]
}
