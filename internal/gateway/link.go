package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// PodLink says how the gateway reaches an address: by its route.
type PodLink struct {
	Interface string     // empty: no route
	Index     int        // of the interface
	Kind      string     // IFLA_INFO_KIND: veth, bridge, macvlan, ...; empty for hardware and lo
	Bridge    bool       // the interface is a Linux bridge
	Ports     []string   // of a bridge that has none but those that pods hang on, sorted; nil for a bridge that the LAN is on: with a network card, or an uplink
	Uplink    bool       // a default route leaves here too
	Via       netip.Addr // the next hop, if there is one
	Own       bool       // the address is the gateway's own
	lan       bool       // a bridge with a port that ends in no pod
}

// Links finds the links of addresses, in their order.
func Links(ctx context.Context, addrs []netip.Addr) ([]PodLink, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	uplinks, err := uplinks(c)
	if err != nil {
		return nil, err
	}
	known, _, err := interfaces(c)
	if err != nil {
		return nil, fmt.Errorf("read the gateway's interfaces: %w", err)
	}
	links := make([]PodLink, len(addrs))
	for i, a := range addrs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r, err := lookup(c, a)
		if err != nil {
			return nil, fmt.Errorf("find the route to %s: %w", a, err)
		}
		if len(r.hops) == 0 {
			continue
		}
		h := r.hops[0]
		l, ok := known[h.link]
		if !ok {
			continue // made since the list was read: a change that Watch tells
		}
		if l.Uplink = uplinks[h.link]; l.Uplink {
			l.Ports = nil // the LAN is behind one of them
		}
		l.Via, l.Own = h.via, r.typ == unix.RTN_LOCAL
		links[i] = l
	}
	return links, nil
}

// uplinks are the interfaces that a default route leaves by, by index.
func uplinks(c *netlink.Conn) (map[int]bool, error) {
	found := map[int]bool{}
	err := eachRoute(c, func(r route) {
		for _, h := range r.hops {
			if r.all && r.typ == unix.RTN_UNICAST {
				found[h.link] = true
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read the gateway's default routes: %w", err)
	}
	return found, nil
}

// Interface is an interface of the gateway.
type Interface struct {
	Name   string
	Kind   string // IFLA_INFO_KIND; empty for hardware and lo
	Bridge string // the bridge that it is a port of, empty for none
	// Pods: what it carries can only be pods: it is a bridge whose ports all end in
	// a network namespace, a bridge without ports, or such an end that is no bridge's
	// port; and no default route leaves by it.
	Pods      bool
	Ports     []string       // of a bridge, sorted
	Addresses []netip.Prefix // the gateway's own on it, with the length of the subnet's prefix, not masked
}

// Interfaces lists the gateway's interfaces by name.
func Interfaces(ctx context.Context) (map[string]Interface, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return nil, fmt.Errorf("set deadline of rtnetlink: %w", err)
		}
	}
	up, err := uplinks(c)
	if err != nil {
		return nil, err
	}
	known, masters, err := interfaces(c)
	if err != nil {
		return nil, fmt.Errorf("read the gateway's interfaces: %w", err)
	}
	addresses := map[int][]netip.Prefix{}
	if err := eachAddress(c, func(index int, a netip.Prefix) { addresses[index] = append(addresses[index], a) }); err != nil {
		return nil, fmt.Errorf("read the gateway's addresses: %w", err)
	}
	all := make(map[string]Interface, len(known))
	ports := map[string][]string{}
	for port, master := range masters {
		if known[master].Bridge {
			ports[known[master].Interface] = append(ports[known[master].Interface], known[port].Interface)
		}
	}
	for index, l := range known {
		i := Interface{Name: l.Interface, Kind: l.Kind, Addresses: addresses[index]}
		i.Ports = ports[i.Name]
		slices.Sort(i.Ports)
		if master := known[masters[index]]; master.Bridge {
			i.Bridge = master.Interface
		}
		switch {
		case up[index]:
		case l.Bridge:
			i.Pods = !l.lan
		default:
			i.Pods = (l.Kind == "veth" || l.Kind == "netkit") && masters[index] == 0 // a tunnel can be the operator's
		}
		all[i.Name] = i
	}
	return all, nil
}

// lookup asks the kernel for the route that a packet to an address takes. No
// route is a route without hops.
func lookup(c *netlink.Conn, a netip.Addr) (route, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.RTA_DST, a.AsSlice())
	b, err := ae.Encode()
	if err != nil {
		return route{}, err
	}
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[1] = unix.AF_INET6, byte(a.BitLen())
	if a.Is4() {
		head[0] = unix.AF_INET
	}
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request},
		Data:   append(head, b...),
	})
	for _, none := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL} {
		if errors.Is(err, none) { // unreachable, prohibited and blackhole routes among them
			return route{}, nil
		}
	}
	if err != nil {
		return route{}, err
	}
	if len(msgs) == 0 {
		return route{}, nil
	}
	r, _, err := readRoute(msgs[0].Data)
	if r.typ != unix.RTN_UNICAST && r.typ != unix.RTN_LOCAL {
		r.hops = nil // an IPv6 unreachable route names lo
	}
	return r, err
}

// interfaces reads all interfaces, and the masters of those that have one, by
// index.
func interfaces(c *netlink.Conn) (map[int]PodLink, map[int]int, error) {
	msgs, err := dump(c, unix.RTM_GETLINK, ifinfo(0))
	if err != nil {
		return nil, nil, err
	}
	all := make(map[int]PodLink, len(msgs))
	masters := map[int]int{} // of ports, by index
	for _, m := range msgs {
		var l PodLink
		master := 0
		err := attributes(m.Data, unix.SizeofIfInfomsg, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.IFLA_IFNAME:
				l.Interface = ad.String()
			case unix.IFLA_MASTER:
				master = int(ad.Uint32())
			case unix.IFLA_LINKINFO:
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						if ad.Type() == unix.IFLA_INFO_KIND {
							l.Kind = ad.String()
						}
					}
					return nil
				})
			}
		})
		if err != nil {
			return nil, nil, err
		}
		l.Index = int(binary.NativeEndian.Uint32(m.Data[4:]))
		l.Bridge = l.Kind == "bridge"
		all[l.Index] = l
		masters[l.Index] = master
	}
	mixed := map[int]bool{}
	for port, master := range masters {
		if bridge := all[master]; bridge.Bridge {
			bridge.Ports = append(bridge.Ports, all[port].Interface)
			slices.Sort(bridge.Ports)
			all[master] = bridge
			mixed[master] = mixed[master] || !podKinds[all[port].Kind]
		}
	}
	for index, is := range mixed {
		if bridge := all[index]; is {
			bridge.Ports, bridge.lan = nil, true
			all[index] = bridge
		}
	}
	return all, masters, nil
}

// podKinds are the kinds of interfaces that end in a pod.
var podKinds = map[string]bool{"veth": true, "tun": true, "netkit": true}

// Unenforceable says why the traffic of a pod there does not pass the
// gateway's filter, or not all of it (S34), and what would be right; "" where
// it passes.
func (l PodLink) Unenforceable() string {
	switch {
	case l.Interface == "":
		return "the gateway has no route to it: check that the pod runs here and that its address is right"
	case l.Own:
		return "it is an address of the gateway itself: give the pod one of its own"
	case l.Via.IsValid():
		return fmt.Sprintf("it is reached through the router %s on %s: its traffic to others there does not pass this gateway", l.Via, l.Interface)
	case l.Kind == "bridge":
		return ""
	case l.Uplink:
		return fmt.Sprintf("it is reached out of the uplink %s: it is on the network outside, and its traffic there does not pass this gateway's filter", l.Interface)
	}
	switch l.Kind {
	case "veth", "tun", "netkit": // podKinds
		return ""
	case "macvlan", "macvtap", "ipvlan", "ipvtap":
		return fmt.Sprintf("it is on %s, a %s interface, whose traffic does not pass the gateway's filter: attach the pod by a veth pair, routed or on a bridge", l.Interface, l.Kind)
	case "":
		return fmt.Sprintf("it is reached out of %s, a network card: its traffic to others there does not pass the gateway's filter", l.Interface)
	}
	return fmt.Sprintf("it is reached out of %s, a %s interface, which does not end in a pod of this gateway", l.Interface, l.Kind)
}
