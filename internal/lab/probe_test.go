package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

var protocols = []inventory.Protocol{inventory.TCP, inventory.UDP, inventory.SCTP, inventory.ICMP}

// cluster is a lab with pods of two addresses in each family.
func cluster(tb testing.TB, t Topology, pods int) (*Lab, []*Namespace) {
	tb.Helper()
	l := ForTest(tb, t)
	var all []*Namespace
	for i := range pods {
		n, err := l.AddPod(fmt.Sprintf("default/pod%d", i),
			netip.AddrFrom4([4]byte{10, 42, 0, byte(10 + i)}), netip.AddrFrom4([4]byte{10, 42, 0, byte(110 + i)}),
			netip.MustParseAddr(fmt.Sprintf("fd42::%x", 0x10+i)), netip.MustParseAddr(fmt.Sprintf("fd42::1:%x", 0x10+i)))
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, n)
	}
	if err := l.AddOutside(addrs("192.168.254.77", "8.8.8.8", "fd00:254::77", "2001:4860:4860::8888")...); err != nil {
		tb.Fatal(err)
	}
	return l, all
}

func addrs(s ...string) []netip.Addr {
	var a []netip.Addr
	for _, s := range s {
		a = append(a, netip.MustParseAddr(s))
	}
	return a
}

func both(t *testing.T, f func(*testing.T, Kind)) {
	for _, k := range []Kind{Routed, Bridge} {
		t.Run(k.String(), func(t *testing.T) { f(t, k) })
	}
}

// everyone is all pairs of pods, outside addresses and the gateway, in all
// protocols: no pair twice, none within one namespace.
func everyone(l *Lab, pods []*Namespace) []Probe {
	var out []Probe
	all := append(slices.Clone(pods), l.Outside, l.Gateway)
	for _, from := range all {
		for _, to := range all {
			for _, src := range from.Addresses {
				for _, dst := range to.Addresses {
					if from == to || src.Is4() != dst.Is4() || src.IsLinkLocalUnicast() || dst.IsLinkLocalUnicast() {
						continue
					}
					for _, proto := range protocols {
						out = append(out, Probe{From: from, To: to, Src: src, Dst: dst, Proto: proto, DstPort: 80})
					}
				}
			}
		}
	}
	return out
}

// A probe that does not arrive means "denied": so with no rules all 20,000
// arrive, each time.
func TestEveryProbeArrives(t *testing.T) {
	both(t, func(t *testing.T, k Kind) {
		l, pods := cluster(t, Topology{Kind: k}, 12)
		var probes []Probe
		for len(probes) < 20_000 {
			probes = append(probes, everyone(l, pods)...)
		}
		probes = probes[:20_000]
		for range 3 {
			mustAllArrive(t, l, probes)
		}
	})
}

func mustAllArrive(t *testing.T, l *Lab, probes []Probe) {
	t.Helper()
	arrived, err := l.Probe(context.Background(), probes)
	if err != nil {
		t.Fatal(err)
	}
	lost := 0
	for i, ok := range arrived {
		if !ok {
			p := probes[i]
			if lost++; lost <= 10 {
				t.Errorf("lost: %s %s to %s %s, %s", p.From.Name, p.Src, p.To.Name, p.Dst, p.Proto)
			}
		}
	}
	if lost > 0 {
		t.Fatalf("%d of %d probes lost without any rule", lost, len(probes))
	}
}

// ARP and neighbour discovery work without the lab's static entries. A neighbour that
// misses the kernel's question is asked again after a second: packets until then are
// lost without any fault.
func TestDynamicNeighbours(t *testing.T) {
	both(t, func(t *testing.T, k Kind) {
		l, pods := cluster(t, Topology{Kind: k, Dynamic: true}, 3)
		probes := everyone(l, pods)
		for range 5 {
			arrived, err := l.Probe(context.Background(), probes)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(arrived, false) {
				return
			}
			time.Sleep(1500 * time.Millisecond)
		}
		mustAllArrive(t, l, probes)
	})
}
