package gateway

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
)

// ip runs ip(8) in the lab's gateway, one command a line.
func ip(t testing.TB, l *lab.Lab, lines string) {
	t.Helper()
	if _, err := l.Gateway.RunInput(lines, "ip", "-batch", "-"); err != nil {
		t.Fatal(err)
	}
}

func addrs(s ...string) []netip.Addr {
	var a []netip.Addr
	for _, s := range s {
		a = append(a, netip.MustParseAddr(s))
	}
	return a
}

func inside(t testing.TB, n *lab.Namespace, f func() error) {
	t.Helper()
	if err := n.Do(f); err != nil {
		t.Fatal(err)
	}
}

func pod(t testing.TB, l *lab.Lab, name string, a ...string) *lab.Namespace {
	t.Helper()
	n, err := l.AddPod(name, addrs(a...)...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func read(t testing.TB, l *lab.Lab) (f Facts) {
	t.Helper()
	inside(t, l.Gateway, func() (err error) { f, err = Read(t.Context()); return err })
	return f
}

// S33: the gateway's own addresses on every interface and in both families,
// and the next hops of all routes in all tables, however they are written.
func TestFacts(t *testing.T) {
	l := lab.ForTest(t, lab.Topology{Kind: lab.Bridge})
	ip(t, l, `link add v0 type veth peer name v1
		link set v0 up
		link set v1 up
		addr add 10.9.0.1 peer 10.9.0.2/32 dev v0
		addr add 10.8.0.1/24 dev v0
		addr add fd08::1/64 dev v0 nodad
		link add down0 type veth peer name down1
		addr add 10.7.0.1/24 dev down0
		route add 10.100.0.0/16 via 10.8.0.2 table 77
		route add 10.101.0.0/16 nexthop via 10.8.0.3 dev v0 nexthop via 10.8.0.4 dev v0 weight 5
		route add fd0a::/64 nexthop via fd08::3 dev v0 nexthop via fe80::4 dev v0
		route add 10.102.0.0/16 via inet6 fe80::5 dev v0
		nexthop add id 11 via 10.8.0.6 dev v0
		nexthop add id 12 via fd08::7 dev v0
		nexthop add id 13 via 10.8.0.8 dev v0
		nexthop add id 14 group 11/13
		route add 10.103.0.0/16 nhid 14
		route add fd0b::/64 nhid 12
		route add blackhole 10.104.0.0/16
		route add unreachable fd0c::/64
		route add 10.105.0.0/16 dev v0
	`)
	for _, compat := range []string{"1", "0"} {
		if _, err := l.Gateway.Run("sysctl", "-qw", "net.ipv4.nexthop_compat_mode="+compat); err != nil {
			t.Fatal(err)
		}
		f := read(t, l)
		for _, a := range addrs("127.0.0.1", "::1", "10.9.0.1", "10.8.0.1", "fd08::1", "10.7.0.1", "10.42.0.1", "fd42::1", "192.168.254.1", "fd00:254::1") {
			if !slices.Contains(f.Addresses, a) {
				t.Errorf("addresses lack %s: %v", a, f.Addresses)
			}
		}
		if slices.Contains(f.Addresses, netip.MustParseAddr("10.9.0.2")) {
			t.Error("the other end of a point-to-point link is taken for our own")
		}
		if !slices.ContainsFunc(f.Addresses, netip.Addr.IsLinkLocalUnicast) {
			t.Errorf("no link-local address: %v", f.Addresses)
		}
		want := addrs("10.8.0.2", "10.8.0.3", "10.8.0.4", "10.8.0.6", "10.8.0.8", "192.168.254.2", "fd00:254::2", "fd08::3", "fd08::7", "fe80::4", "fe80::5")
		if !slices.Equal(f.NextHops, want) {
			t.Errorf("nexthop_compat_mode %s: next hops\n%v, want\n%v", compat, f.NextHops, want)
		}
		if !slices.IsSortedFunc(f.Addresses, netip.Addr.Compare) || len(slices.Compact(slices.Clone(f.Addresses))) != len(f.Addresses) {
			t.Errorf("not sorted and distinct: %v", f.Addresses)
		}
	}
}

func TestReadEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Read(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Read after the end: %v", err)
	}
}

// S26, S34: where a pod is, and whether its traffic passes the filter.
func TestLinks(t *testing.T) {
	routed := lab.ForTest(t, lab.Topology{})
	a := pod(t, routed, "a", "10.42.0.11", "fd42::11")
	ip(t, routed, `link add lan0 type veth peer name lan1
		link set lan0 up
		link set lan1 up
		addr add 10.50.0.1/24 dev lan0
		link add mv0 link lan0 type macvlan mode bridge
		link set mv0 up
		route add 10.50.0.20 dev mv0
		link add mt0 link lan0 type macvtap mode bridge
		link set mt0 up
		route add 10.50.0.21 dev mt0
		route add 10.60.0.0/16 via 10.50.0.9
		route add blackhole 10.61.0.0/16
		route add unreachable 10.62.0.0/16
		route add prohibit 10.63.0.0/16
		route add unreachable fd62::/64
		tuntap add dev tap0 mode tap
		link set tap0 up
		route add 10.42.0.12 dev tap0
	`)
	bridged := lab.ForTest(t, lab.Topology{Kind: lab.Bridge})
	b := pod(t, bridged, "b", "10.42.0.11", "fd42::11")
	ip(t, bridged, `link add lan type bridge
		link set lan up
		link add lan0 type veth peer name lan1
		link set lan0 master lan
		addr add 10.70.0.1/24 dev lan
		route add default via 10.70.0.254 metric 50
	`)
	for _, c := range []struct {
		lab     *lab.Lab
		addr    string
		want    PodLink // without Index
		problem string
	}{
		{routed, "10.42.0.11", PodLink{Interface: a.HostInterface, Kind: "veth"}, ""},
		{routed, "fd42::11", PodLink{Interface: a.HostInterface, Kind: "veth"}, ""},
		{routed, "10.42.0.12", PodLink{Interface: "tap0", Kind: "tun"}, ""},
		{routed, "10.50.0.20", PodLink{Interface: "mv0", Kind: "macvlan"}, "macvlan"},
		{routed, "10.50.0.21", PodLink{Interface: "mt0", Kind: "macvtap"}, "macvtap"},
		{routed, "10.60.0.1", PodLink{Interface: "lan0", Kind: "veth", Via: netip.MustParseAddr("10.50.0.9")}, "router 10.50.0.9"},
		{routed, "192.168.254.77", PodLink{Interface: "uplink", Kind: "veth", Uplink: true}, "uplink"},
		{routed, "fd00:254::77", PodLink{Interface: "uplink", Kind: "veth", Uplink: true}, "uplink"},
		{routed, "8.8.8.8", PodLink{Interface: "uplink", Kind: "veth", Uplink: true, Via: netip.MustParseAddr("192.168.254.2")}, "router"},
		{routed, "2001:db8::1", PodLink{Interface: "uplink", Kind: "veth", Uplink: true, Via: netip.MustParseAddr("fd00:254::2")}, "router"},
		{routed, "192.168.254.1", PodLink{Interface: "lo", Own: true}, "gateway itself"},
		{routed, "fd00:254::1", PodLink{Interface: "lo", Own: true}, "gateway itself"},
		{routed, "10.61.0.1", PodLink{}, "no route"},
		{routed, "10.62.0.1", PodLink{}, "no route"},
		{routed, "10.63.0.1", PodLink{}, "no route"},
		{routed, "fd62::1", PodLink{}, "no route"},
		{bridged, "10.42.0.11", PodLink{Interface: "cni0", Kind: "bridge", Bridge: true, Ports: []string{b.HostInterface}}, ""},
		{bridged, "fd42::11", PodLink{Interface: "cni0", Kind: "bridge", Bridge: true, Ports: []string{b.HostInterface}}, ""},
		{bridged, "10.70.0.7", PodLink{Interface: "lan", Kind: "bridge", Bridge: true, Uplink: true}, ""},
	} {
		var got []PodLink
		inside(t, c.lab.Gateway, func() (err error) {
			got, err = Links(t.Context(), addrs("10.42.0.11", c.addr))
			return err
		})
		l := got[1]
		if (l.Index != 0) != (l.Interface != "") {
			t.Errorf("%s: index %d of %q", c.addr, l.Index, l.Interface)
		}
		l.Index = 0
		if l.Interface == "lo" {
			l.Uplink = false // an unreachable IPv6 default leaves by lo
		}
		if !reflect.DeepEqual(l, c.want) {
			t.Errorf("%s: %+v, want %+v", c.addr, l, c.want)
		}
		if why := l.Unenforceable(); (why == "") != (c.problem == "") || !strings.Contains(why, c.problem) {
			t.Errorf("%s: %q, want %q", c.addr, why, c.problem)
		}
	}
}

// What this kernel cannot make.
func TestUnenforceable(t *testing.T) {
	for _, l := range []PodLink{
		{Interface: "ipvl0", Kind: "ipvlan"}, {Interface: "eth1"}, {Interface: "flannel.1", Kind: "vxlan"},
		{Interface: "eth0.5", Kind: "vlan"}, {Interface: "wg0", Kind: "wireguard"},
	} {
		if why := l.Unenforceable(); !strings.Contains(why, l.Interface) || !strings.Contains(why, l.Kind) {
			t.Errorf("%+v: %q", l, why)
		}
	}
}

// S26: on for this bridge, in both families, off for every other; and what it
// says is what packets do.
func TestEnableBridgeFilter(t *testing.T) {
	l := lab.ForTest(t, lab.Topology{Kind: lab.Bridge})
	a, b := pod(t, l, "a", "10.42.0.11", "fd42::11"), pod(t, l, "b", "10.42.0.12", "fd42::12")
	ip(t, l, "link add other type bridge")
	if _, err := l.Gateway.RunInput("table inet t {\nchain f { type filter hook forward priority 0; policy drop; \n}\n}\n", "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	pass := func() bool {
		got, err := l.Probe(t.Context(), []lab.Probe{
			{From: a, Dst: b.Addresses[0], Proto: inventory.UDP, DstPort: 1},
			{From: a, Dst: b.Addresses[1], Proto: inventory.UDP, DstPort: 1},
		})
		if err != nil {
			t.Fatal(err)
		}
		if got[0] != got[1] {
			t.Fatalf("IPv4 passes: %v, IPv6 passes: %v", got[0], got[1])
		}
		return got[0]
	}
	if !pass() {
		t.Fatal("the bridge is filtered from the start: nothing to test")
	}
	for i, before := range []string{"nf_call_iptables 0 nf_call_ip6tables 0", "nf_call_iptables 1 nf_call_ip6tables 1", "nf_call_iptables 0 nf_call_ip6tables 1", "nf_call_iptables 1 nf_call_ip6tables 0"} {
		ip(t, l, "link set cni0 type bridge "+before+" nf_call_arptables 1")
		var changed bool
		inside(t, l.Gateway, func() (err error) { changed, err = EnableBridgeFilter("cni0"); return err })
		if changed != (i != 1) {
			t.Errorf("after %q: changed %v", before, changed)
		}
		out, err := l.Gateway.Run("ip", "-d", "link", "show", "cni0")
		if err != nil || !strings.Contains(out, "nf_call_iptables 1 nf_call_ip6tables 1 nf_call_arptables 1") {
			t.Errorf("after %q: %s, %v", before, out, err)
		}
		if pass() {
			t.Errorf("after %q: packets between pods of one bridge pass a filter that drops all", before)
		}
	}
	if out, err := l.Gateway.Run("ip", "-d", "link", "show", "other"); err != nil || !strings.Contains(out, "nf_call_iptables 0 nf_call_ip6tables 0") {
		t.Errorf("the other bridge: %s, %v", out, err)
	}
	for _, name := range []string{"nosuch", "uplink"} {
		inside(t, l.Gateway, func() error {
			if _, err := EnableBridgeFilter(name); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v", name, err)
			}
			return nil
		})
	}
}

// Each kind of change is told; many at once are told as few; it ends with its
// context.
func TestWatch(t *testing.T) {
	l := lab.ForTest(t, lab.Topology{Kind: lab.Bridge})
	ip(t, l, "link add v0 type veth peer name v1\nlink set v0 up\nlink set v1 up\n")
	ctx, cancel := context.WithCancel(t.Context())
	var calls atomic.Int64
	called, ended := make(chan struct{}, 1000), make(chan error, 1)
	go func() {
		ended <- l.Gateway.Do(func() error {
			return Watch(ctx, func() {
				calls.Add(1)
				called <- struct{}{}
			})
		})
	}()
	wait := func(what string) {
		t.Helper()
		select {
		case <-called:
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: not told", what)
		}
		for quiet := false; !quiet; { // later news of the same change
			select {
			case <-called:
			case <-time.After(200 * time.Millisecond):
				quiet = true
			}
		}
	}
	wait("the beginning")
	for _, change := range []string{
		"addr add 10.8.0.1/24 dev v0", "addr add fd08::1/64 dev v0 nodad",
		"route add 10.100.0.0/16 via 10.8.0.2 table 77", "route add fd0a::/64 via fd08::3",
		"nexthop add id 11 via 10.8.0.6 dev v0", "nexthop del id 11",
		"link add br9 type bridge", "link set br9 up", "link set br9 type bridge nf_call_iptables 1",
		"addr del 10.8.0.1/24 dev v0", "link del v0",
	} {
		ip(t, l, change+"\n")
		wait(change)
	}
	before := calls.Load()
	var many strings.Builder
	for i := range 2000 {
		many.WriteString("addr add " + netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}).String() + "/32 dev br9\n")
	}
	start := time.Now()
	ip(t, l, many.String())
	took := time.Since(start)
	wait("2,000 addresses")
	if n, most := calls.Load()-before, int64((took+200*time.Millisecond)/coalesce)+2; n > most {
		t.Errorf("2,000 changes in %s: %d calls, want %d at most", took, n, most)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("end of Watch: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Watch does not end with its context")
	}
}

// More changes than the socket holds are one change, not the end.
func TestWatchOverflow(t *testing.T) {
	l := lab.ForTest(t, lab.Topology{Kind: lab.Bridge})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	release, called, ended := make(chan struct{}), make(chan struct{}, 1000), make(chan error, 1)
	go func() {
		ended <- l.Gateway.Do(func() error {
			return Watch(ctx, func() {
				called <- struct{}{}
				<-release
			})
		})
	}()
	<-called
	var many strings.Builder
	for i := range 4000 {
		many.WriteString("addr add " + netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}).String() + "/32 dev cni0\n")
	}
	ip(t, l, many.String()) // 4,000 addresses and routes while nobody reads
	var drops bool
	inside(t, l.Gateway, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/netlink")
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			drops = drops || len(f) > 8 && f[1] == "0" && f[8] != "0" && f[8] != "Drops"
		}
		return err
	})
	if !drops {
		t.Fatal("the socket did not overflow: nothing was tested")
	}
	close(release)
	<-called
	ip(t, l, "addr add 10.9.9.9/32 dev cni0\n")
	select {
	case <-called:
	case err := <-ended:
		t.Fatalf("ended: %v", err)
	case <-time.After(5 * time.Second):
		t.Fatal("deaf after an overflow")
	}
}

// The order in which modprobe inserts, and names as they are in modules.dep.
func TestModuleFiles(t *testing.T) {
	const dep = `kernel/net/802/stp.ko.xz: kernel/net/llc/llc.ko.xz
kernel/net/bridge/br_netfilter.ko.xz: kernel/net/bridge/bridge.ko.xz kernel/net/802/stp.ko.xz kernel/net/llc/llc.ko.xz
kernel/x/nft-x.ko:
`
	for name, want := range map[string]string{
		"br_netfilter": "kernel/net/llc/llc.ko.xz kernel/net/802/stp.ko.xz kernel/net/bridge/bridge.ko.xz kernel/net/bridge/br_netfilter.ko.xz",
		"nft_x":        "kernel/x/nft-x.ko",
		"netfilter":    "",
	} {
		if got, err := moduleFiles(strings.NewReader(dep), name); err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// A module that cannot be loaded says which file failed and how.
func TestLoadModule(t *testing.T) {
	dir := t.TempDir()
	if err := loadModuleFrom(dir, "br_netfilter"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no modules.dep: %v", err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("modules.dep", "br_netfilter.ko: bridge.ko\n")
	if err := loadModuleFrom(dir, "other"); err == nil || !strings.Contains(err.Error(), "other") {
		t.Errorf("unknown module: %v", err)
	}
	write("bridge.ko", "no module")
	var errno unix.Errno
	if err := loadModuleFrom(dir, "br_netfilter"); !errors.As(err, &errno) || !strings.Contains(err.Error(), "bridge.ko") {
		t.Errorf("not a module: %v", err)
	}
}

// What the kernel sends is trusted, but a short or odd message must be an
// error, not a crash.
func FuzzRoute(f *testing.F) {
	f.Add([]byte{2, 16, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0, 8, 0, 4, 0, 3, 0, 0, 0})
	f.Add([]byte{10, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0, 20, 0, 9, 0, 16, 0, 0, 0, 3, 0, 0, 0, 8, 0, 5, 0, 10, 0, 0, 1})
	f.Add([]byte{2, 16, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0, 12, 0, 9, 0, 7, 0, 0, 0, 3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _, _ := readRoute(b)
		if len(r.hops) > len(b)/unix.SizeofRtNexthop+1 {
			t.Fatalf("%d hops out of %d bytes", len(r.hops), len(b))
		}
		readGroup(b)
	})
}

func FuzzModuleFiles(f *testing.F) {
	f.Add("a.ko: b.ko c.ko\n")
	f.Add("net/br-netfilter.ko.zst:\n:\n\n")
	f.Fuzz(func(t *testing.T, dep string) {
		files, err := moduleFiles(strings.NewReader(dep), "br_netfilter")
		if err == nil && len(files) > 0 && moduleName(files[len(files)-1]) != "br_netfilter" {
			t.Fatalf("%q ends with another module", files)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	l := lab.ForTest(b, lab.Topology{})
	for i := range 110 {
		pod(b, l, "p", netip.AddrFrom4([4]byte{10, 42, 0, byte(i + 2)}).String())
	}
	inside(b, l.Gateway, func() error {
		for b.Loop() {
			if _, err := Read(b.Context()); err != nil {
				return err
			}
		}
		return nil
	})
}

// BenchmarkLinks finds the links of 110 pods on veths of their own. Most of its
// time is the scheduler's, for a goroutine that is locked to a thread, as the
// daemon's is not.
func BenchmarkLinks(b *testing.B) {
	l := lab.ForTest(b, lab.Topology{})
	var all []netip.Addr
	for i := range 110 {
		all = append(all, netip.AddrFrom4([4]byte{10, 42, 0, byte(i + 2)}))
		pod(b, l, "p", all[i].String())
	}
	inside(b, l.Gateway, func() error {
		for b.Loop() {
			if _, err := Links(b.Context(), all); err != nil {
				return err
			}
		}
		return nil
	})
}
