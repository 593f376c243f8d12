package lab

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// rules loads an nft table into the gateway.
func rules(t *testing.T, l *Lab, text string) {
	t.Helper()
	if _, err := l.Gateway.RunInput("table inet lab { }\ndelete table inet lab\n"+strings.ReplaceAll(text, " }", "\n}")+"\n", "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

func probe(t *testing.T, l *Lab, p ...Probe) []bool {
	t.Helper()
	arrived, err := l.Probe(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	return arrived
}

// Each hook's drops are seen as such, and nothing else is taken for one: UDP
// port 80 is denied, everything else is not.
func TestDroppedIsSeen(t *testing.T) {
	both(t, func(t *testing.T, k Kind) {
		l, pods := cluster(t, Topology{Kind: k}, 4)
		if k == Bridge {
			if _, err := l.Gateway.Run("ip", "link", "set", BridgeName, "type", "bridge", "nf_call_iptables", "1", "nf_call_ip6tables", "1"); err != nil {
				t.Fatal(err)
			}
		}
		rules(t, l, `table inet lab {
			chain f { type filter hook forward priority 0; udp dport 80 drop; }
			chain i { type filter hook input priority 0; udp dport 80 drop; }
			chain o { type filter hook output priority 0; udp dport 80 drop; } }`)
		probes := everyone(l, pods)
		for i, ok := range probe(t, l, probes...) {
			if p := probes[i]; ok != (p.Proto != inventory.UDP) {
				t.Fatalf("%s %s to %s %s, %s: arrived %v", p.From.Name, p.Src, p.To.Name, p.Dst, p.Proto, ok)
			}
		}
		denied := slices.DeleteFunc(slices.Clone(probes), func(p Probe) bool { return p.Proto != inventory.UDP })
		if slices.Contains(probe(t, l, denied...), true) {
			t.Fatal("a denied probe arrived")
		}
	})
}

// Without the bridge's netfilter flags the gateway does not see pod to pod.
func TestBridgeFilterIsOff(t *testing.T) {
	l, pods := cluster(t, Topology{Kind: Bridge}, 2)
	rules(t, l, `table inet lab { chain f { type filter hook forward priority 0; policy drop; } }`)
	got := probe(t, l,
		Probe{From: pods[0], Dst: pods[1].Addresses[0], Proto: inventory.TCP, DstPort: 80},
		Probe{From: l.Outside, Dst: pods[1].Addresses[0], Proto: inventory.TCP, DstPort: 80})
	if !slices.Equal(got, []bool{true, false}) {
		t.Errorf("same bridge, from outside: %v, want passed and dropped", got)
	}
}

// The kernel's own idea of the packets: all checksums are right (conntrack
// calls a packet with a wrong one invalid), and each begins a connection.
func TestPacketsAreValid(t *testing.T) {
	l, pods := cluster(t, Topology{}, 2)
	rules(t, l, `table inet lab {
		chain f { type filter hook forward priority 0; ct state new ct direction original accept; drop; }
		chain i { type filter hook input priority 0; meta l4proto { tcp, udp, sctp, icmp, ipv6-icmp } ct state new accept; icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; drop; } }`)
	if _, err := l.Gateway.Run("sysctl", "-wq", "net.netfilter.nf_conntrack_checksum=1"); err != nil {
		t.Fatal(err)
	}
	mustAllArrive(t, l, everyone(l, pods))
	if err := l.FlushConntrack(); err != nil {
		t.Fatal(err)
	}
	out, err := l.Gateway.Run("conntrack", "-C")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.TrimSpace(out); len(n) > 1 {
		t.Errorf("%s connections after FlushConntrack", n)
	}
}

func TestOddPackets(t *testing.T) {
	both(t, func(t *testing.T, k Kind) {
		l, pods := cluster(t, Topology{Kind: k}, 2)
		a, b := pods[0], pods[1]
		nd := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, b.LinkLocal.AsSlice()...)
		probes := []Probe{
			{From: a, Src: netip.MustParseAddr("203.0.113.9"), Dst: b.Addresses[0], Proto: inventory.UDP, DstPort: 53},
			{From: a, Src: b.Addresses[0], Dst: l.Gateway.first(true), Proto: inventory.UDP, DstPort: 53},
			{From: a, Dst: b.Addresses[0], Proto: inventory.TCP, DstPort: 80, TCPFlags: 0x10},
			{From: a, Dst: b.Addresses[0], Proto: 47},
			{From: a, Dst: b.Addresses[0], Proto: inventory.UDP, DstPort: 9, VLAN0: true},
			{From: a, Dst: b.first(false), Proto: inventory.UDP, DstPort: 9, VLAN0: true, HopLimit: 2},
			{From: a, Dst: b.first(false), Proto: inventory.ICMPv6, ICMP: nd, HopLimit: 255},
			{From: a, Dst: netip.MustParseAddr("198.51.100.7"), Proto: inventory.TCP, DstPort: 443},
			{From: a, To: a, Dst: a.Addresses[0], Proto: inventory.UDP, DstPort: 9},
		}
		if k == Bridge {
			probes = append(probes,
				Probe{From: a, Src: a.LinkLocal, To: b, Dst: b.LinkLocal, Proto: inventory.UDP, DstPort: 9},
				Probe{From: a, To: b, Dst: netip.MustParseAddr("ff02::1"), Proto: inventory.UDP, DstPort: 9},
				Probe{From: a, To: b, Dst: netip.MustParseAddr("224.0.0.251"), Proto: inventory.UDP, DstPort: 9},
				Probe{From: a, To: b, Dst: netip.MustParseAddr("255.255.255.255"), Proto: inventory.UDP, DstPort: 9},
				Probe{From: a, Src: a.LinkLocal, To: l.Gateway, Dst: l.Gateway.LinkLocal, Proto: inventory.UDP, DstPort: 9})
		} else {
			probes = append(probes, Probe{From: a, Src: a.LinkLocal, To: l.Gateway, Dst: nextHop6, Proto: inventory.UDP, DstPort: 9})
		}
		for i, ok := range probe(t, l, probes...) {
			if !ok {
				t.Errorf("probe %d did not arrive: %+v", i, probes[i])
			}
		}
	})
}

func TestProbeErrors(t *testing.T) {
	l, pods := cluster(t, Topology{}, 1)
	for _, p := range []Probe{
		{Src: netip.MustParseAddr("1.2.3.4"), Dst: pods[0].Addresses[0]},
		{From: pods[0]},
		{From: pods[0], Src: netip.MustParseAddr("::1"), Dst: pods[0].Addresses[0]},
	} {
		if _, err := l.Probe(context.Background(), []Probe{p}); err == nil {
			t.Errorf("%+v was sent", p)
		}
	}
}

// Addresses change hands, pods go and come, while others are not disturbed.
func TestPodsChange(t *testing.T) {
	both(t, func(t *testing.T, k Kind) {
		l, pods := cluster(t, Topology{Kind: k}, 3)
		a, b, c := pods[0], pods[1], pods[2]
		mine, extra := slices.Clone(b.Addresses), addrs("10.42.0.200", "fd42::200", "10.99.0.1", "fd99::1")
		if err := l.Readdress(b, extra...); err != nil {
			t.Fatal(err)
		}
		if err := l.Readdress(c, append(mine, c.Addresses...)...); err != nil {
			t.Fatal(err)
		}
		if owner := l.Owner(mine[0]); owner != c {
			t.Fatalf("owner of %s is %v", mine[0], owner)
		}
		mustAllArrive(t, l, everyone(l, pods))
		if err := l.Readdress(a, b.Addresses...); err != nil { // takes them
			t.Fatal(err)
		}
		if len(b.Addresses) != 0 {
			t.Fatalf("b still has %v", b.Addresses)
		}
		mustAllArrive(t, l, everyone(l, pods))
		gone := Probe{From: a, To: c, Dst: mine[0], Proto: inventory.UDP, DstPort: 1}
		if err := l.RemovePod(c); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(netnsDir, c.NetNS)); !os.IsNotExist(err) {
			t.Errorf("namespace of a removed pod: %v", err)
		}
		if err := l.Readdress(b, mine...); err != nil {
			t.Fatal(err)
		}
		gone.To = b
		if !probe(t, l, gone)[0] {
			t.Error("an address of a removed pod does not reach its new pod")
		}
		mustAllArrive(t, l, everyone(l, pods[:2]))
		if err := l.Readdress(b, l.Gateway.Addresses[0]); err == nil {
			t.Error("a pod took the gateway's address")
		}
	})
}

func TestConnections(t *testing.T) {
	both(t, func(t *testing.T, k Kind) {
		l, pods := cluster(t, Topology{Kind: k}, 2)
		for _, from := range []*Namespace{pods[0], l.Outside, l.Gateway} {
			for _, network := range []string{"tcp", "udp"} {
				for _, at := range pods[1].Addresses {
					where := netip.AddrPortFrom(at, 7)
					ln, err := pods[1].Listen(network, where)
					if err != nil {
						t.Fatal(err)
					}
					c, err := from.Dial(t.Context(), network, from.first(at.Is4()), where)
					if err != nil {
						t.Fatal(err)
					}
					for range 3 {
						if err := Exchange(c, 5*time.Second); err != nil {
							t.Fatalf("%s from %s: %v", network, from.Name, err)
						}
					}
					c.Close()
					ln.Close()
				}
			}
		}
		c, err := pods[0].Dial(t.Context(), "udp", netip.Addr{}, netip.AddrPortFrom(pods[1].Addresses[0], 7))
		if err != nil {
			t.Fatal(err)
		}
		if err := Exchange(c, 200*time.Millisecond); err == nil {
			t.Error("a closed server answers")
		}
	})
}

// Processes run inside and are gone with the lab, and so is all else.
func TestCloseAndSweep(t *testing.T) {
	l, err := New(Topology{Kind: Bridge})
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.AddPod("a", addrs("10.42.0.9")...)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := p.Run("ip", "-o", "-4", "addr", "show", "dev", "eth0"); err != nil || !strings.Contains(out, "10.42.0.9/24") {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := p.Run("sh", "-c", "echo no >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("a failing command: %v", err)
	}
	cmd := exec.Command("sleep", "60")
	if err := p.Start(cmd); err != nil {
		t.Fatal(err)
	}
	dead := exec.Command("true") // a pid that was ours and is free again
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	left := "epd-" + strconv.Itoa(dead.Process.Pid) + "-1-0-gateway"
	if err := p.Do(func() error { return bindNetNS(left) }); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(netnsDir, left)); !os.IsNotExist(err) {
		t.Errorf("leftover of a dead process: %v", err)
	}
	if _, err := os.Stat(filepath.Join(netnsDir, p.NetNS)); err != nil {
		t.Errorf("Sweep took a living lab: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("process after Close: %v", err)
	}
	if m, _ := filepath.Glob(filepath.Join(netnsDir, l.name+"-*")); len(m) > 0 {
		t.Errorf("left behind: %v", m)
	}
}

// A thread that was inside a namespace comes back, also from a panic.
func TestDoComesBack(t *testing.T) {
	l := ForTest(t, Topology{})
	at := func() (s string) {
		if err := onThread(func() (err error) { s, err = os.Readlink("/proc/thread-self/ns/net"); return }); err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := at()
	func() {
		defer func() { recover() }()
		l.Gateway.Do(func() error {
			if at() == before {
				t.Error("not inside")
			}
			return l.Outside.Do(func() error { panic("in the outside") })
		})
	}()
	if at() != before {
		t.Error("did not come back")
	}
}
