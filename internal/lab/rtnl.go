package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Attributes that golang.org/x/sys/unix does not name (linux/if_link.h,
// linux/veth.h).
const (
	vethInfoPeer = 1
	operUp       = 6 // IF_OPER_UP
)

func dialRoute() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return c, nil
}

// request sends one rtnetlink message, of a fixed header and attributes, and
// waits for its acknowledgement.
func request(c *netlink.Conn, typ uint16, flags netlink.HeaderFlags, head []byte, attrs func(*netlink.AttributeEncoder)) error {
	ae := netlink.NewAttributeEncoder()
	if attrs != nil {
		attrs(ae)
	}
	b, err := ae.Encode()
	if err != nil {
		return err
	}
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append(head, b...),
	})
	return err
}

// ifinfo is struct ifinfomsg.
func ifinfo(index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

func setUp(c *netlink.Conn, index int) error {
	return request(c, unix.RTM_NEWLINK, 0, ifinfo(index, unix.IFF_UP, unix.IFF_UP), nil)
}

func addBridge(c *netlink.Conn, name string, index int, mac [6]byte) error {
	err := request(c, unix.RTM_NEWLINK, netlink.Create|netlink.Excl, ifinfo(index, unix.IFF_UP, unix.IFF_UP), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, name)
		ae.Bytes(unix.IFLA_ADDRESS, mac[:])
		ae.Nested(unix.IFLA_LINKINFO, func(ae *netlink.AttributeEncoder) error {
			ae.String(unix.IFLA_INFO_KIND, "bridge")
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	return nil
}

// end is one end of a veth pair.
type end struct {
	name   string
	index  int
	mac    [6]byte
	master int // of a bridge, or 0
}

// addVeth makes a veth pair: near in the connection's namespace and up, far in
// the namespace farNS and still down.
func addVeth(c *netlink.Conn, near, far end, farNS int) error {
	encode := func(ae *netlink.AttributeEncoder, e end) {
		ae.String(unix.IFLA_IFNAME, e.name)
		ae.Bytes(unix.IFLA_ADDRESS, e.mac[:])
		if e.master != 0 {
			ae.Uint32(unix.IFLA_MASTER, uint32(e.master))
		}
	}
	err := request(c, unix.RTM_NEWLINK, netlink.Create|netlink.Excl, ifinfo(near.index, unix.IFF_UP, unix.IFF_UP), func(ae *netlink.AttributeEncoder) {
		encode(ae, near)
		ae.Nested(unix.IFLA_LINKINFO, func(ae *netlink.AttributeEncoder) error {
			ae.String(unix.IFLA_INFO_KIND, "veth")
			ae.Nested(unix.IFLA_INFO_DATA, func(ae *netlink.AttributeEncoder) error {
				ae.Do(vethInfoPeer, func() ([]byte, error) {
					peer := netlink.NewAttributeEncoder()
					encode(peer, far)
					peer.Uint32(unix.IFLA_NET_NS_FD, uint32(farNS))
					b, err := peer.Encode()
					return append(ifinfo(far.index, 0, 0), b...), err
				})
				return nil
			})
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("add veth %s: %w", near.name, err)
	}
	return nil
}

func deleteLink(c *netlink.Conn, index int) error {
	return request(c, unix.RTM_DELLINK, 0, ifinfo(index, 0, 0), nil)
}

// waitUp waits until an interface passes packets: the kernel activates the
// queue of a new veth end a moment after it said that it is up.
func waitUp(c *netlink.Conn, index int) error {
	for start := time.Now(); ; time.Sleep(200 * time.Microsecond) {
		msgs, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request},
			Data:   ifinfo(index, 0, 0),
		})
		if err != nil {
			return fmt.Errorf("read link %d: %w", index, err)
		}
		ad, err := netlink.NewAttributeDecoder(msgs[0].Data[unix.SizeofIfInfomsg:])
		if err != nil {
			return err
		}
		for ad.Next() {
			if ad.Type() == unix.IFLA_OPERSTATE && ad.Uint8() == operUp {
				return nil
			}
		}
		if time.Since(start) > 10*time.Second {
			return fmt.Errorf("link %d does not come up", index)
		}
	}
}

// waitLinkLocal waits until an interface has the IPv6 link-local address that
// the kernel gives it when it is ready: before that it may miss a neighbour
// solicitation.
func waitLinkLocal(c *netlink.Conn, index int, want netip.Addr) error {
	for start := time.Now(); ; time.Sleep(200 * time.Microsecond) {
		msgs, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.RTM_GETADDR, Flags: netlink.Request | netlink.Dump},
			Data:   append([]byte{unix.AF_INET6}, make([]byte, unix.SizeofIfAddrmsg-1)...),
		})
		if err != nil {
			return fmt.Errorf("read addresses: %w", err)
		}
		for _, m := range msgs {
			if len(m.Data) < unix.SizeofIfAddrmsg || m.Data[2]&unix.IFA_F_TENTATIVE != 0 || int(binary.NativeEndian.Uint32(m.Data[4:])) != index {
				continue
			}
			ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfAddrmsg:])
			if err != nil {
				return err
			}
			for ad.Next() {
				if a, ok := netip.AddrFromSlice(ad.Bytes()); ad.Type() == unix.IFA_ADDRESS && ok && a == want {
					return nil
				}
			}
		}
		if time.Since(start) > 10*time.Second {
			return fmt.Errorf("link %d does not get the address %s", index, want)
		}
	}
}

// linkLocal is the address that the kernel derives from a MAC address (RFC
// 4291, appendix A).
func linkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// address adds (RTM_NEWADDR) or deletes (RTM_DELADDR) an interface's address.
func address(c *netlink.Conn, typ uint16, index int, p netip.Prefix) error {
	head := make([]byte, unix.SizeofIfAddrmsg)
	head[0], head[1], head[2] = family(p.Addr()), byte(p.Bits()), unix.IFA_F_NODAD
	binary.NativeEndian.PutUint32(head[4:], uint32(index))
	var flags netlink.HeaderFlags
	if typ == unix.RTM_NEWADDR {
		flags = netlink.Create | netlink.Replace
	}
	err := request(c, typ, flags, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.IFA_LOCAL, p.Addr().AsSlice())
		ae.Bytes(unix.IFA_ADDRESS, p.Addr().AsSlice())
	})
	if err != nil {
		return fmt.Errorf("address %s on link %d: %w", p, index, err)
	}
	return nil
}

// route adds or replaces (RTM_NEWROUTE) or deletes (RTM_DELROUTE) a route out
// of an interface; without a valid via the destination is on the link.
func route(c *netlink.Conn, typ uint16, dst netip.Prefix, via netip.Addr, index int) error {
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[1] = family(dst.Addr()), byte(dst.Bits())
	head[4], head[5], head[6], head[7] = unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST
	if via.IsValid() {
		head[6] = unix.RT_SCOPE_UNIVERSE
	}
	var flags netlink.HeaderFlags
	if typ == unix.RTM_NEWROUTE {
		flags = netlink.Create | netlink.Replace
	}
	err := request(c, typ, flags, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.RTA_DST, dst.Addr().AsSlice())
		ae.Uint32(unix.RTA_OIF, uint32(index))
		if via.IsValid() {
			ae.Bytes(unix.RTA_GATEWAY, via.AsSlice())
		}
	})
	if err != nil {
		return fmt.Errorf("route to %s on link %d: %w", dst, index, err)
	}
	return nil
}

// neighbour adds (RTM_NEWNEIGH) or deletes (RTM_DELNEIGH) a permanent
// neighbour entry. The kernel's tables hold 1,024 entries over all namespaces;
// permanent ones do not count.
func neighbour(c *netlink.Conn, typ uint16, index int, a netip.Addr, mac [6]byte) error {
	head := make([]byte, unix.SizeofNdMsg)
	head[0] = family(a)
	binary.NativeEndian.PutUint32(head[4:], uint32(index))
	binary.NativeEndian.PutUint16(head[8:], unix.NUD_PERMANENT)
	var flags netlink.HeaderFlags
	if typ == unix.RTM_NEWNEIGH {
		flags = netlink.Create | netlink.Replace
	}
	err := request(c, typ, flags, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.NDA_DST, a.AsSlice())
		ae.Bytes(unix.NDA_LLADDR, mac[:])
	})
	if err != nil {
		return fmt.Errorf("neighbour %s on link %d: %w", a, index, err)
	}
	return nil
}

// forwardTo tells a bridge which port a MAC address is behind, so that nothing
// is flooded.
func forwardTo(c *netlink.Conn, port int, mac [6]byte) error {
	head := make([]byte, unix.SizeofNdMsg)
	head[0] = unix.AF_BRIDGE
	binary.NativeEndian.PutUint32(head[4:], uint32(port))
	binary.NativeEndian.PutUint16(head[8:], unix.NUD_NOARP)
	head[10] = unix.NTF_MASTER
	err := request(c, unix.RTM_NEWNEIGH, netlink.Create|netlink.Replace, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.NDA_LLADDR, mac[:])
	})
	if err != nil {
		return fmt.Errorf("bridge port %d: %w", port, err)
	}
	return nil
}
