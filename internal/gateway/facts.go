package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Facts are the addresses that are never a pod's (S33), and those that a pod's
// egress policy judges as the gateway (S25). Both lists are sorted, without
// zones and without duplicates.
type Facts struct {
	// Addresses are the gateway's own: of all interfaces, both families,
	// loopback and link-local included.
	Addresses []netip.Addr
	// NextHops are the gateways of all routes of all routing tables, also of
	// multipath routes and nexthop objects.
	NextHops []netip.Addr
}

// Read reads the facts as they are now.
func Read(ctx context.Context) (Facts, error) {
	c, err := dial()
	if err != nil {
		return Facts{}, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return Facts{}, fmt.Errorf("set deadline of rtnetlink: %w", err)
		}
	}
	var f Facts
	if f.Addresses, err = ownAddresses(c); err != nil {
		return Facts{}, fmt.Errorf("read the gateway's addresses: %w", err)
	}
	if f.NextHops, err = nextHops(c); err != nil {
		return Facts{}, fmt.Errorf("read the gateway's next hops: %w", err)
	}
	return f, ctx.Err()
}

func sorted(a []netip.Addr) []netip.Addr {
	slices.SortFunc(a, netip.Addr.Compare)
	return slices.Compact(a)
}

func ownAddresses(c *netlink.Conn) ([]netip.Addr, error) {
	var own []netip.Addr
	err := eachAddress(c, func(_ int, a netip.Prefix) { own = append(own, a.Addr()) })
	return sorted(own), err
}

// eachAddress visits the gateway's addresses, each with the length of its subnet's
// prefix and the index of its interface.
func eachAddress(c *netlink.Conn, visit func(index int, a netip.Prefix)) error {
	msgs, err := dump(c, unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg))
	if err != nil {
		return err
	}
	for _, m := range msgs {
		var local, address netip.Addr
		err := attributes(m.Data, unix.SizeofIfAddrmsg, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.IFA_LOCAL:
				local = addr(ad.Bytes())
			case unix.IFA_ADDRESS: // the other end's, on a point-to-point link
				address = addr(ad.Bytes())
			}
		})
		if err != nil {
			return err
		}
		if !local.IsValid() {
			local = address
		}
		if local.IsValid() {
			visit(int(binary.NativeEndian.Uint32(m.Data[4:])), netip.PrefixFrom(local, int(m.Data[1])))
		}
	}
	return nil
}

func nextHops(c *netlink.Conn) ([]netip.Addr, error) {
	var via []netip.Addr
	err := eachRoute(c, func(r route) {
		for _, h := range r.hops {
			if h.via.IsValid() && !h.via.IsUnspecified() {
				via = append(via, h.via)
			}
		}
	})
	return sorted(via), err
}

// eachRoute visits the routes of all tables, those with a nexthop object with
// its hops (the kernel need not repeat them: net.ipv4.nexthop_compat_mode).
func eachRoute(c *netlink.Conn, visit func(route)) error {
	objects, err := nextHopObjects(c)
	if err != nil {
		return err
	}
	msgs, err := dump(c, unix.RTM_GETROUTE, make([]byte, unix.SizeofRtMsg))
	if err != nil {
		return err
	}
	for _, m := range msgs {
		r, ok, err := readRoute(m.Data)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if len(r.hops) == 0 {
			r.hops = objects[r.nextHops]
		}
		visit(r)
	}
	return nil
}

// nextHopObjects reads "ip nexthop" by id, groups with the hops of all their
// members.
func nextHopObjects(c *netlink.Conn) (map[uint32][]hop, error) {
	msgs, err := dump(c, unix.RTM_GETNEXTHOP, make([]byte, unix.SizeofNhmsg))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return nil, nil // a kernel older than 5.3 has none
	}
	if err != nil {
		return nil, err
	}
	hops, groups := map[uint32][]hop{}, map[uint32][]uint32{}
	for _, m := range msgs {
		var id uint32
		var h hop
		var members []uint32
		err := attributes(m.Data, unix.SizeofNhmsg, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NHA_ID:
				id = ad.Uint32()
			case unix.NHA_OIF:
				h.link = int(ad.Uint32())
			case unix.NHA_GATEWAY:
				h.via = addr(ad.Bytes())
			case unix.NHA_GROUP:
				members = readGroup(ad.Bytes())
			}
		})
		if err != nil {
			return nil, err
		}
		hops[id], groups[id] = []hop{h}, members
	}
	for id, members := range groups {
		for i, m := range members {
			if i == 0 {
				hops[id] = nil
			}
			hops[id] = append(hops[id], hops[m]...)
		}
	}
	return hops, nil
}

// coalesce is how long Watch waits for more of the same after a change.
const coalesce = 20 * time.Millisecond

// Watch calls changed when it has begun to watch, and then after each change
// of links, addresses, routes or nexthop objects of the gateway, until ctx
// ends, which gives nil. Changes within 20 ms make one call. Changes that the
// kernel could not deliver, because too many came at once, count as one.
func Watch(ctx context.Context, changed func()) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	for _, group := range []uint32{
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEXTHOP,
	} {
		if err := c.JoinGroup(group); err != nil && !(group == unix.RTNLGRP_NEXTHOP && errors.Is(err, unix.EINVAL)) {
			return fmt.Errorf("watch rtnetlink group %d: %w", group, err)
		}
	}
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		changed()
		if err := receive(c); err != nil {
			return ended(ctx, err)
		}
		wait := time.NewTimer(coalesce)
		select {
		case <-ctx.Done():
			return nil
		case <-wait.C:
		}
		if err := drain(ctx, c); err != nil {
			return ended(ctx, err)
		}
	}
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch rtnetlink: %w", err)
}

// receive waits for a change.
func receive(c *netlink.Conn) error {
	_, err := c.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return nil
	}
	return err
}

// drain reads the changes that are there already.
func drain(ctx context.Context, c *netlink.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return err
	}
	for {
		err := receive(c)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return ctx.Err() // it may have ended before the deadline was lifted
}
