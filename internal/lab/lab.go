// Package lab makes an edge gateway out of network namespaces: the gateway,
// its pods, and the outside, with real interfaces, routes and packets. Tests
// and the demo use it; it is never linked into the daemon.
//
// What always holds: nothing outside the lab's own namespaces is changed.
// What a probe says is not a guess from a timeout: after each burst the lab
// waits until the kernel has dealt with every packet of it, and a burst in
// which the kernel itself lost a packet is sent again. So "did not arrive"
// means that something in the gateway dropped it.
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Kind is how pods are attached to the gateway.
type Kind int

const (
	// Routed pods each hang on a veth pair of their own, with a host route to
	// each address, as with the ptp plugin and Calico.
	Routed Kind = iota
	// Bridge pods are ports of one Linux bridge, cni0, as with the bridge
	// plugin. Netfilter is off for the bridge: the daemon switches it on (S26).
	Bridge
)

// String gives "routed" or "bridge".
func (k Kind) String() string { return [...]string{"routed", "bridge"}[k] }

// Topology describes a lab. The zero value is a routed gateway.
type Topology struct {
	Kind Kind
	// Bridge holds the gateway's addresses on cni0, with the pod ranges; absent:
	// 10.42.0.1/24 and fd42::1/64. Kind Routed does not use it.
	Bridge []netip.Prefix
	// Uplink holds the gateway's addresses towards the outside; absent:
	// 192.168.254.1/24 and fd00:254::1/64. The outside's router has the next
	// address of each.
	Uplink []netip.Prefix
	// Dynamic leaves it to the gateway's kernel to find its pods by ARP and
	// neighbour discovery. Otherwise it has permanent entries; pods always ask. The
	// first packets to a neighbour can be lost then, as outside a lab.
	Dynamic bool
}

// BridgeName and UplinkName are interfaces of the gateway.
const (
	BridgeName = "cni0"
	UplinkName = "uplink"
)

const (
	bridgeIndex  = 900
	uplinkIndex  = 901
	firstPodPort = 1000
	eth0Index    = 2 // in pods and the outside
)

// nextHop4 and nextHop6 are what routed pods have as their default route.
var (
	nextHop4 = netip.MustParseAddr("169.254.1.1")
	nextHop6 = netip.MustParseAddr("fe80::1")
)

// Lab is a gateway with its pods and the outside. Its methods may be called
// from several goroutines.
type Lab struct {
	Topology
	Gateway *Namespace
	Outside *Namespace

	name string
	mu   sync.Mutex
	pods []*Namespace
	next int // id of the next namespace
	own  map[netip.Addr]*Namespace

	probeMu sync.Mutex
	wire    *wire  // of Probe, made by its first call
	port    uint16 // the last automatic source port
}

// TB is what ForTest needs of testing.TB.
type TB interface {
	Helper()
	Fatal(args ...any)
	Cleanup(func())
	Errorf(format string, args ...any)
}

// ForTest makes a lab that goes when the test ends.
func ForTest(tb TB, t Topology) *Lab {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("this test needs root: it makes network namespaces")
	}
	l, err := New(t)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Errorf("close the lab: %v", err)
		}
	})
	return l
}

// New makes a gateway and the outside, without pods. It needs root. What an
// earlier process left behind when it died is removed first.
func New(t Topology) (*Lab, error) {
	if err := Sweep(); err != nil {
		return nil, err
	}
	if len(t.Bridge) == 0 {
		t.Bridge = []netip.Prefix{netip.MustParsePrefix("10.42.0.1/24"), netip.MustParsePrefix("fd42::1/64")}
	}
	if len(t.Uplink) == 0 {
		t.Uplink = []netip.Prefix{netip.MustParsePrefix("192.168.254.1/24"), netip.MustParsePrefix("fd00:254::1/64")}
	}
	l := &Lab{Topology: t, name: fmt.Sprintf("epd-%d-%d", os.Getpid(), labs.Add(1)), own: map[netip.Addr]*Namespace{}}
	if err := l.makeGateway(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := l.makeOutside(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) namespace(name string) (*Namespace, error) {
	id := l.next
	l.next++
	n, err := newNamespace(name, fmt.Sprintf("%s-%d-%s", l.name, id, strings.ReplaceAll(name, "/", "-")))
	if err != nil {
		return nil, err
	}
	n.id = id
	n.mac = [6]byte{0x02, 0xed, 0, byte(id >> 8), byte(id), 2}
	n.hostMAC = [6]byte{0x02, 0xed, 0, byte(id >> 8), byte(id), 1}
	n.LinkLocal = linkLocal(n.mac)
	return n, nil
}

// makeGateway makes a namespace that forwards. Flows that saw no reply are
// forgotten after 5 s, or a source port could not be used again soon.
func (l *Lab) makeGateway() (err error) {
	if l.Gateway, err = l.namespace("gateway"); err != nil {
		return err
	}
	err = l.Gateway.Do(func() error {
		return sysctls(
			"net/ipv4/ip_forward", "1",
			"net/ipv6/conf/all/forwarding", "1",
			"net/ipv6/conf/default/forwarding", "1",
			"net/bridge/bridge-nf-call-iptables", "0",
			"net/bridge/bridge-nf-call-ip6tables", "0",
			"net/bridge/bridge-nf-call-arptables", "0",
			"net/netfilter/nf_conntrack_udp_timeout", "5",
			"net/netfilter/nf_conntrack_tcp_timeout_syn_sent", "5",
			"net/netfilter/nf_conntrack_tcp_timeout_close", "5",
			"net/netfilter/nf_conntrack_sctp_timeout_cookie_wait", "5",
			"net/netfilter/nf_conntrack_sctp_timeout_closed", "5",
			"net/netfilter/nf_conntrack_icmp_timeout", "5",
			"net/netfilter/nf_conntrack_icmpv6_timeout", "5",
		)
	})
	if err != nil || l.Kind == Routed {
		return err
	}
	l.Gateway.LinkLocal = linkLocal(l.Gateway.hostMAC) // on cni0
	if err := addBridge(l.Gateway.rtnl, BridgeName, bridgeIndex, l.Gateway.hostMAC); err != nil {
		return err
	}
	for _, p := range l.Topology.Bridge {
		if err := address(l.Gateway.rtnl, unix.RTM_NEWADDR, bridgeIndex, p); err != nil {
			return err
		}
		l.claim(l.Gateway, p.Addr())
	}
	return nil
}

func (l *Lab) makeOutside() (err error) {
	if l.Outside, err = l.namespace("outside"); err != nil {
		return err
	}
	gw, out := l.Gateway.rtnl, l.Outside
	out.HostInterface = UplinkName
	if err := l.connect(out, end{name: UplinkName, index: uplinkIndex, mac: out.hostMAC}); err != nil {
		return err
	}
	for _, p := range l.Uplink {
		router := p.Addr().Next()
		everything := netip.PrefixFrom(p.Addr(), 0).Masked()
		l.claim(l.Gateway, p.Addr())
		l.claim(out, router)
		err := errors.Join(
			address(gw, unix.RTM_NEWADDR, uplinkIndex, p),
			address(out.rtnl, unix.RTM_NEWADDR, eth0Index, netip.PrefixFrom(router, p.Bits())),
			route(gw, unix.RTM_NEWROUTE, everything, router, uplinkIndex),
			route(out.rtnl, unix.RTM_NEWROUTE, everything, p.Addr(), eth0Index),
			l.permanent(unix.RTM_NEWNEIGH, uplinkIndex, router, out.mac),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// connect makes the veth pair of a namespace and waits until packets pass.
func (l *Lab) connect(n *Namespace, near end) error {
	gw := l.Gateway.rtnl
	if err := addVeth(gw, near, end{name: "eth0", index: eth0Index, mac: n.mac}, n.fd); err != nil {
		return err
	}
	if err := errors.Join(setUp(n.rtnl, eth0Index), waitUp(gw, near.index), waitUp(n.rtnl, eth0Index)); err != nil {
		return err
	}
	if near.master == 0 {
		if err := waitLinkLocal(gw, near.index, linkLocal(near.mac)); err != nil {
			return err
		}
	}
	return waitLinkLocal(n.rtnl, eth0Index, n.LinkLocal)
}

// permanent sets the gateway's neighbour entry of an address.
func (l *Lab) permanent(typ uint16, index int, a netip.Addr, mac [6]byte) error {
	if l.Dynamic {
		return nil
	}
	return neighbour(l.Gateway.rtnl, typ, index, a, mac)
}

func (l *Lab) claim(n *Namespace, a netip.Addr) {
	l.own[a] = n
	n.Addresses = append(n.Addresses, a)
	slices.SortFunc(n.Addresses, netip.Addr.Compare)
}

// AddOutside gives the outside more addresses, of the LAN or the Internet.
func (l *Lab) AddOutside(addrs ...netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addrs {
		err := errors.Join(
			address(l.Outside.rtnl, unix.RTM_NEWADDR, eth0Index, netip.PrefixFrom(a, a.BitLen())),
			l.permanent(unix.RTM_NEWNEIGH, uplinkIndex, a, l.Outside.mac),
		)
		if err != nil {
			return err
		}
		l.claim(l.Outside, a)
	}
	return nil
}

// Owner is the namespace that has an address now, or nil.
func (l *Lab) Owner(a netip.Addr) *Namespace {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.own[a]
}

// FlushConntrack forgets all connections of the gateway.
func (l *Lab) FlushConntrack() error {
	return l.Gateway.Do(func() error {
		c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return fmt.Errorf("open netfilter netlink: %w", err)
		}
		defer c.Close()
		const ctDelete = 1<<8 | 2 // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
		if err := request(c, ctDelete, 0, make([]byte, 4), nil); err != nil {
			return fmt.Errorf("flush conntrack: %w", err)
		}
		return nil
	})
}

// Close removes everything: processes, sockets, namespaces.
func (l *Lab) Close() error {
	l.probeMu.Lock()
	if l.wire != nil {
		l.wire.close()
		l.wire = nil
	}
	l.probeMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, n := range append(l.pods, l.Outside, l.Gateway) {
		if n != nil {
			errs = append(errs, n.close())
		}
	}
	l.pods, l.Outside, l.Gateway = nil, nil, nil
	return errors.Join(errs...)
}
