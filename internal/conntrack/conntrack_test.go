package conntrack

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
)

const mask = 0xff000000

// insert makes conntrack entries, one line of conntrack(8) options each.
func insert(t testing.TB, l *lab.Lab, lines ...string) {
	t.Helper()
	if _, err := l.Gateway.RunInput("-I "+strings.Join(lines, "\n-I ")+"\n", "conntrack", "-R", "-"); err != nil {
		t.Fatal(err)
	}
}

// entries lists all entries as conntrack(8) shows them, without their ages.
func entries(t testing.TB, l *lab.Lab) []string {
	t.Helper()
	var all []string
	out, err := l.Gateway.Run("conntrack", "-L")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		all = append(all, strings.Join(append(f[:2:2], f[3:]...), " ")) // the third is the seconds left
	}
	slices.Sort(all)
	return all
}

func stamps(t testing.TB, l *lab.Lab) (got map[uint32]int) {
	t.Helper()
	if err := l.Gateway.Do(func() (err error) { got, err = Stamps(mask); return err }); err != nil {
		t.Fatal(err)
	}
	return got
}

func sweep(t testing.TB, l *lab.Lab, mask, keep uint32) (n int) {
	t.Helper()
	if err := l.Gateway.Do(func() (err error) { n, err = Sweep(mask, keep); return err }); err != nil {
		t.Fatal(err)
	}
	return n
}

var some = []string{
	"-s 10.0.0.1 -d 10.0.0.2 -p udp --sport 1 --dport 2 -t 300 --mark 0x01000007",
	"-s 10.0.0.1 -d 10.0.0.2 -p udp --sport 2 --dport 2 -t 300 --mark 0x02000007",
	"-s 10.0.0.1 -d 10.0.0.2 -p udp --sport 3 --dport 2 -t 300 --mark 0x02000000",
	"-s 10.0.0.1 -d 10.0.0.2 -p udp --sport 4 --dport 2 -t 300 --mark 0x00ffffff",
	"-s 10.0.0.1 -d 10.0.0.2 -p udp --sport 5 --dport 2 -t 300",
	"-s 10.0.0.1 -d 10.0.0.2 -p tcp --sport 6 --dport 2 -t 300 --state ESTABLISHED -u SEEN_REPLY,ASSURED --mark 0xff123456",
	"-s 10.0.0.1 -d 10.0.0.2 -p icmp --icmp-type 8 --icmp-code 0 --icmp-id 9 -t 300 --mark 0x02000001",
	"-s 10.0.0.1 -d 10.0.0.2 -r 10.9.9.9 -q 10.0.0.1 -p udp --sport 7 --dport 2 --reply-port-src 2 --reply-port-dst 7 -t 300 --mark 0x02000001",
	"-s fd00::1 -d fd00::2 -p udp --sport 1 --dport 2 -t 300 --mark 0x02000003",
	"-s fd00::1 -d fd00::2 -p tcp --sport 1 --dport 2 -t 300 --state SYN_SENT --mark 0x01000003",
	"-s fd00::1 -d fd00::2 -p icmpv6 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 9 -t 300 --mark 0x03000003",
	"-s 10.0.0.1 -d 10.0.0.2 -p udp --sport 1 --dport 2 -t 300 --mark 0x02000009 -w 5", // the same flow in another zone
}

func TestStamps(t *testing.T) {
	l := lab.ForTest(t, lab.Topology{})
	if got := stamps(t, l); len(got) != 0 {
		t.Errorf("stamps of no connections: %v", got)
	}
	insert(t, l, some...)
	want := map[uint32]int{0x01000000: 2, 0x02000000: 6, 0x03000000: 1, 0xff000000: 1}
	if got := stamps(t, l); !maps.Equal(got, want) {
		t.Errorf("stamps %x, want %x", got, want)
	}
}

var markOf = regexp.MustCompile(`mark=(\d+)`)

// The masked bits go from all but those to be kept; every other bit, and all
// else of each entry, stays; none is deleted.
func TestSweep(t *testing.T) {
	for _, c := range []struct{ mask, keep uint32 }{
		{mask, 0x02000000}, {mask, 0}, {mask, 0x77000000}, {0x0f000000, 0x0f000000}, {0x00000001, 0}, {0, 0},
	} {
		t.Run(fmt.Sprintf("%08x keep %08x", c.mask, c.keep), func(t *testing.T) {
			l := lab.ForTest(t, lab.Topology{})
			insert(t, l, some...)
			want, n := entries(t, l), 0
			for i, line := range want {
				want[i] = markOf.ReplaceAllStringFunc(line, func(s string) string {
					var m uint32
					fmt.Sscanf(s, "mark=%d", &m)
					if v := m & c.mask; v != 0 && v != c.keep {
						n++
						m &^= c.mask
					}
					return fmt.Sprintf("mark=%d", m)
				})
			}
			slices.Sort(want)
			if got := sweep(t, l, c.mask, c.keep); got != n {
				t.Errorf("swept %d, want %d", got, n)
			}
			if got := entries(t, l); !slices.Equal(got, want) {
				t.Errorf("entries are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if got := sweep(t, l, c.mask, c.keep); got != 0 {
				t.Errorf("a second sweep found %d", got)
			}
		})
	}
}

// Real flows, stamped by nft: a connection goes on over a sweep.
func TestSweepRealFlows(t *testing.T) {
	l := lab.ForTest(t, lab.Topology{})
	addr4, addr6 := netip.MustParseAddr("10.42.0.2"), netip.MustParseAddr("fd42::2")
	pod, err := l.AddPod("p", addr4, addr6)
	if err != nil {
		t.Fatal(err)
	}
	const rule = "table inet t {\nchain f {\ntype filter hook forward priority 0\nct mark set ct mark & 0x00ffffff | 0x05000000\n}\n}\n"
	if _, err := l.Gateway.RunInput(rule, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{addr4, addr6} {
		if _, err := pod.Listen("tcp", netip.AddrPortFrom(a, 7)); err != nil {
			t.Fatal(err)
		}
		c, err := l.Outside.Dial(t.Context(), "tcp", netip.Addr{}, netip.AddrPortFrom(a, 7))
		if err != nil {
			t.Fatal(err)
		}
		if err := lab.Exchange(c, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if got := stamps(t, l); got[0x05000000] != 1 {
			t.Errorf("stamps: %x", got)
		}
		if n := sweep(t, l, mask, 0x06000000); n != 1 {
			t.Errorf("swept %d, want 1", n)
		}
		if got := stamps(t, l); len(got) != 0 {
			t.Errorf("stamps after the sweep: %x", got)
		}
		if err := lab.Exchange(c, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if got := stamps(t, l); got[0x05000000] != 1 {
			t.Errorf("not stamped anew: %x", got)
		}
		if err := l.FlushConntrack(); err != nil {
			t.Fatal(err)
		}
	}
}

// many fills the gateway with entries stamped 4 by sending through it.
func many(t testing.TB, n int) *lab.Lab {
	t.Helper()
	l := lab.ForTest(t, lab.Topology{})
	pod, err := l.AddPod("p", netip.MustParseAddr("10.42.0.2"))
	if err != nil {
		t.Fatal(err)
	}
	const rule = "table inet t {\nchain f {\ntype filter hook forward priority 0\nct mark set 0x04000001\n}\n}\n"
	if _, err := l.Gateway.RunInput(rule, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Gateway.Run("sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=600"); err != nil {
		t.Fatal(err)
	}
	probes := make([]lab.Probe, n)
	for i := range probes {
		probes[i] = lab.Probe{From: l.Outside, Dst: pod.Addresses[0], Proto: inventory.UDP, DstPort: uint16(1 + i%2)}
	}
	if _, err := l.Probe(t.Context(), probes); err != nil {
		t.Fatal(err)
	}
	return l
}

// 50,000 entries, some of which end while they are swept.
func TestManyEntries(t *testing.T) {
	const n = 50_000
	l := many(t, n)
	if got := stamps(t, l); !maps.Equal(got, map[uint32]int{0x04000000: n}) {
		t.Fatalf("stamps %x, want %d", got, n)
	}
	flushed := make(chan error, 1)
	go func() {
		time.Sleep(20 * time.Millisecond)
		_, err := l.Gateway.Run("conntrack", "-D", "-p", "udp", "--dport", "2")
		flushed <- err
	}()
	swept := sweep(t, l, mask, 0)
	if err := <-flushed; err != nil {
		t.Fatal(err)
	}
	if swept < n/2 || swept > n {
		t.Errorf("swept %d of %d, half of which were deleted meanwhile", swept, n)
	}
	if got := stamps(t, l); len(got) != 0 {
		t.Errorf("left: %x", got)
	}
	out, err := l.Gateway.Run("conntrack", "-C")
	if err != nil || strings.TrimSpace(out) != fmt.Sprint(n/2) {
		t.Errorf("%s entries, want %d (%v)", out, n/2, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 8, 0, 8, 0, 1, 0, 0, 7, 6, 0, 18, 0, 0, 5, 0, 0, 8, 0, 1, 128, 0, 0, 0, 0})
	f.Add([]byte{10, 0, 0, 0, 5, 0, 8, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := read(b); err == nil && len(e.tuple) > len(b) {
			t.Fatal("a tuple longer than its message")
		}
	})
}

func BenchmarkStamps(b *testing.B) {
	l := many(b, 50_000)
	for b.Loop() {
		stamps(b, l)
	}
}
