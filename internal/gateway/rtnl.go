// Package gateway reads over rtnetlink what the gateway itself is: its
// addresses, its next hops, the interfaces that its pods hang on; and switches
// netfilter on for the bridges that carry pods.
//
// What always holds: everything happens in the network namespace of the
// calling thread, nothing is kept from one call to the next, and no helper
// program is run. The only things ever written are two flags of one bridge
// and, where br_netfilter had to be loaded, the three sysctls that it switched
// on by that.
package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const rtaNhID = 30 // RTA_NH_ID, linux/rtnetlink.h

func dial() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return c, nil
}

// dump lists all objects of a kind. A dump that the kernel calls inconsistent,
// because something changed meanwhile, is read anew.
func dump(c *netlink.Conn, typ netlink.HeaderType, head []byte) ([]netlink.Message, error) {
	for range 10 {
		msgs, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: typ, Flags: netlink.Request | netlink.Dump},
			Data:   head,
		})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		whole := true
		for _, m := range msgs {
			whole = whole && m.Header.Flags&netlink.DumpInterrupted == 0
		}
		if whole {
			return msgs, nil
		}
	}
	return nil, errors.New("the kernel's answer changes all the time; trying again later helps")
}

// attributes decodes what follows a message's fixed header.
func attributes(b []byte, head int, each func(*netlink.AttributeDecoder)) error {
	if len(b) < head {
		return fmt.Errorf("rtnetlink message of %d bytes, want %d at least", len(b), head)
	}
	ad, err := netlink.NewAttributeDecoder(b[head:])
	if err != nil {
		return fmt.Errorf("decode rtnetlink message: %w", err)
	}
	for ad.Next() {
		each(ad)
	}
	if err := ad.Err(); err != nil {
		return fmt.Errorf("decode rtnetlink message: %w", err)
	}
	return nil
}

// addr reads an address attribute; one of a length that IP does not have is
// the zero Addr.
func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// hop is one way out of a route or nexthop object.
type hop struct {
	link int
	via  netip.Addr
}

// route is a decoded RTM_NEWROUTE.
type route struct {
	typ      byte // RTN_UNICAST, RTN_LOCAL, ...
	all      bool // a default route
	hops     []hop
	nextHops uint32 // id of a nexthop object, or 0
}

// readRoute decodes RTM_NEWROUTE; ok is false where it is not of IP.
func readRoute(b []byte) (r route, ok bool, err error) {
	if len(b) < unix.SizeofRtMsg || b[0] != unix.AF_INET && b[0] != unix.AF_INET6 {
		return route{}, false, nil
	}
	r.typ, r.all = b[7], b[1] == 0
	var single hop
	err = attributes(b, unix.SizeofRtMsg, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.RTA_MULTIPATH:
			r.hops = readMultipath(ad.Bytes())
		case rtaNhID:
			r.nextHops = ad.Uint32()
		default:
			single.read(ad)
		}
	})
	if single.link != 0 {
		r.hops = append(r.hops, single)
	}
	return r, true, err
}

func (h *hop) read(ad *netlink.AttributeDecoder) {
	switch ad.Type() {
	case unix.RTA_OIF:
		h.link = int(ad.Uint32())
	case unix.RTA_GATEWAY:
		h.via = addr(ad.Bytes())
	case unix.RTA_VIA: // struct rtvia: the family, then an address of that family
		if b := ad.Bytes(); len(b) > 2 {
			h.via = addr(b[2:])
		}
	}
}

// readMultipath decodes a list of struct rtnexthop, each with attributes; it
// stops at what is cut short.
func readMultipath(b []byte) []hop {
	var hops []hop
	for len(b) >= unix.SizeofRtNexthop {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtNexthop || size > len(b) {
			break
		}
		h := hop{link: int(binary.NativeEndian.Uint32(b[4:]))}
		if attributes(b[:size], unix.SizeofRtNexthop, h.read) != nil {
			break
		}
		hops = append(hops, h)
		b = b[min((size+3)&^3, len(b)):] // RTNH_ALIGN
	}
	return hops
}

// readGroup decodes a list of struct nexthop_grp: id, weight, 3 bytes more.
func readGroup(b []byte) []uint32 {
	var ids []uint32
	for ; len(b) >= 8; b = b[8:] {
		ids = append(ids, binary.NativeEndian.Uint32(b))
	}
	return ids
}
