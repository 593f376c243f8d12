package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// AddPod makes a pod with any number of addresses of both families and waits
// until packets pass. The gateway's interface of it is n.HostInterface.
func (l *Lab) AddPod(name string, addrs ...netip.Addr) (*Namespace, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.namespace(name)
	if err != nil {
		return nil, err
	}
	n.HostInterface = fmt.Sprintf("veth%d", n.id)
	if err := l.plug(n, addrs); err != nil {
		return nil, errors.Join(fmt.Errorf("add pod %s: %w", name, err), n.close())
	}
	l.pods = append(l.pods, n)
	return n, nil
}

// plug connects a pod to the gateway.
func (l *Lab) plug(n *Namespace, addrs []netip.Addr) error {
	gw := l.Gateway.rtnl
	near := end{name: n.HostInterface, index: n.port(), mac: n.hostMAC}
	if l.Kind == Bridge {
		near.master = bridgeIndex
	}
	if err := l.connect(n, near); err != nil {
		return err
	}
	if l.Kind == Bridge {
		if err := errors.Join(
			forwardTo(gw, near.index, n.mac),
			waitUp(gw, bridgeIndex), // up with its first port
			waitLinkLocal(gw, bridgeIndex, l.Gateway.LinkLocal),
		); err != nil {
			return err
		}
	} else {
		err := errors.Join(
			address(gw, unix.RTM_NEWADDR, near.index, netip.PrefixFrom(nextHop4, 32)),
			address(gw, unix.RTM_NEWADDR, near.index, netip.PrefixFrom(nextHop6, 64)),
		)
		if err != nil {
			return err
		}
		l.own[nextHop4] = l.Gateway
	}
	return l.readdress(n, slices.Clone(addrs)) // may be the Addresses of a pod that loses them
}

// Readdress gives a pod other addresses. Those that it keeps are not touched;
// one that another pod had is taken from it.
func (l *Lab) Readdress(n *Namespace, addrs ...netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.readdress(n, slices.Clone(addrs)) // may be the Addresses of a pod that loses them
}

func (l *Lab) readdress(n *Namespace, addrs []netip.Addr) error {
	for _, a := range addrs {
		if slices.Contains(n.Addresses, a) {
			continue
		}
		if other := l.own[a]; other != nil {
			if other == l.Gateway || other == l.Outside {
				return fmt.Errorf("%s belongs to the %s", a, other.Name)
			}
			if err := l.removeAddress(other, a); err != nil {
				return err
			}
		}
		if err := l.addAddress(n, a); err != nil {
			return err
		}
	}
	for _, a := range slices.Clone(n.Addresses) {
		if !slices.Contains(addrs, a) {
			if err := l.removeAddress(n, a); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Lab) addAddress(n *Namespace, a netip.Addr) error {
	p, via, link, routed := l.place(n, a)
	if err := address(n.rtnl, unix.RTM_NEWADDR, eth0Index, p); err != nil {
		return err
	}
	if routed {
		if err := route(l.Gateway.rtnl, unix.RTM_NEWROUTE, netip.PrefixFrom(a, a.BitLen()), netip.Addr{}, link); err != nil {
			return err
		}
	}
	l.claim(n, a)
	if via == nextHop4 { // gone with the last address
		if err := route(n.rtnl, unix.RTM_NEWROUTE, netip.PrefixFrom(via, 32), netip.Addr{}, eth0Index); err != nil {
			return err
		}
	}
	if !via.IsValid() {
		return l.permanent(unix.RTM_NEWNEIGH, link, a, n.mac)
	}
	return errors.Join(
		route(n.rtnl, unix.RTM_NEWROUTE, netip.PrefixFrom(a, 0).Masked(), via, eth0Index),
		l.permanent(unix.RTM_NEWNEIGH, link, a, n.mac),
	)
}

func (l *Lab) removeAddress(n *Namespace, a netip.Addr) error {
	p, _, link, routed := l.place(n, a)
	errs := []error{address(n.rtnl, unix.RTM_DELADDR, eth0Index, p), l.permanent(unix.RTM_DELNEIGH, link, a, n.mac)}
	if routed {
		errs = append(errs, route(l.Gateway.rtnl, unix.RTM_DELROUTE, netip.PrefixFrom(a, a.BitLen()), netip.Addr{}, link))
	}
	delete(l.own, a)
	n.Addresses = slices.DeleteFunc(n.Addresses, func(b netip.Addr) bool { return a == b })
	return errors.Join(errs...)
}

// place says with which prefix a pod has an address, the next hop of its
// default route, the gateway's interface towards it, and whether the gateway
// needs a route to it.
func (l *Lab) place(n *Namespace, a netip.Addr) (p netip.Prefix, via netip.Addr, link int, routed bool) {
	if l.Kind == Routed {
		via = nextHop6
		if a.Is4() {
			via = nextHop4
		}
		return netip.PrefixFrom(a, a.BitLen()), via, n.port(), true
	}
	for _, b := range l.Topology.Bridge {
		if b.Contains(a) {
			return netip.PrefixFrom(a, b.Bits()), b.Addr(), bridgeIndex, false
		}
	}
	return netip.PrefixFrom(a, a.BitLen()), netip.Addr{}, bridgeIndex, true
}

// port is the index of the gateway's end of a pod's veth pair.
func (n *Namespace) port() int { return firstPodPort + n.id }

// RemovePod removes a pod with its interface, routes and processes.
func (l *Lab) RemovePod(n *Namespace) error {
	l.probeMu.Lock()
	if l.wire != nil {
		l.wire.forget(n)
	}
	l.probeMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, a := range slices.Clone(n.Addresses) {
		if l.Kind == Bridge {
			_, _, link, _ := l.place(n, a)
			errs = append(errs, l.permanent(unix.RTM_DELNEIGH, link, a, n.mac))
		}
		delete(l.own, a)
	}
	l.pods = slices.DeleteFunc(l.pods, func(p *Namespace) bool { return p == n })
	errs = append(errs, deleteLink(l.Gateway.rtnl, n.port()), n.close())
	return errors.Join(errs...)
}
