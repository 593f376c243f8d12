// Package conntrack reads the connections that the kernel tracks, and reads and
// clears the stamps that the table leaves in their marks: the epoch under which a
// flow was last allowed.
//
// What always holds: no entry is ever deleted, made, or changed in anything
// but the masked bits of its mark. A flow whose stamp is cleared is judged
// anew by its next packet. Everything happens in the network namespace of the
// calling thread.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Messages and attributes of linux/netfilter/nfnetlink_conntrack.h.
const (
	msgNew       = unix.NFNL_SUBSYS_CTNETLINK<<8 | 0 // IPCTNL_MSG_CT_NEW, which also changes
	msgGet       = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	attrTuple    = 1                                 // CTA_TUPLE_ORIG
	attrMark     = 8                                 // CTA_MARK
	attrZone     = 18                                // CTA_ZONE
	attrMarkMask = 21                                // CTA_MARK_MASK
	sizeofNfgen  = 4                                 // struct nfgenmsg
)

// Stamps counts the conntrack entries of both families by mark & mask. Those
// that carry no stamp (0) are left out.
func Stamps(mask uint32) (map[uint32]int, error) {
	stamps := map[uint32]int{}
	err := each(func(e entry) error {
		if v := e.mark & mask; v != 0 {
			stamps[v]++
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the connections' stamps: %w", err)
	}
	return stamps, nil
}

// Sweep clears the masked bits of every entry in which they are neither 0 nor
// keep, and says in how many it did. Entries that end meanwhile are fine.
func Sweep(mask, keep uint32) (int, error) {
	c, err := dial() // not the one that lists: the list is still under way
	if err != nil {
		return 0, fmt.Errorf("sweep old stamps: %w", err)
	}
	defer c.Close()
	cleared := 0
	err = each(func(e entry) error {
		if v := e.mark & mask; v == 0 || v == keep&mask {
			return nil
		}
		err := e.clear(c, mask)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err == nil {
			cleared++
		}
		return err
	})
	if err != nil {
		return cleared, fmt.Errorf("sweep old stamps: %w", err)
	}
	return cleared, nil
}

// entry is what matters of a conntrack entry.
type entry struct {
	family byte
	tuple  []byte // CTA_TUPLE_ORIG as the kernel wrote it
	reply  []byte // likewise CTA_TUPLE_REPLY
	info   []byte // and CTA_PROTOINFO
	zone   uint16
	mark   uint32
}

func dial() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open ctnetlink: %w", err)
	}
	return c, nil
}

// each visits all entries of both families as they come, without holding more
// than a few of them: there may be hundreds of thousands. The first error of
// visit ends it.
func each(visit func(entry) error) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Send(netlink.Message{
		Header: netlink.Header{Type: msgGet, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, sizeofNfgen), // AF_UNSPEC
	})
	if err != nil {
		return fmt.Errorf("ask for the conntrack entries: %w", err)
	}
	for m, err := range c.ReceiveIter() {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("the kernel does not list conntrack entries (%w): its module nf_conntrack_netlink is needed", err)
		}
		if err != nil {
			return fmt.Errorf("read the conntrack entries: %w", err)
		}
		e, err := read(m.Data)
		if err != nil {
			return err
		}
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

// read decodes an entry. The kernel leaves out a mark that is 0, and zone 0.
func read(b []byte) (entry, error) {
	if len(b) < sizeofNfgen {
		return entry{}, fmt.Errorf("conntrack entry of %d bytes", len(b))
	}
	ad, err := decoder(b[sizeofNfgen:])
	if err != nil {
		return entry{}, err
	}
	e := entry{family: b[0]}
	for ad.Next() {
		switch ad.Type() {
		case attrTuple:
			e.tuple = ad.Bytes()
		case attrReply:
			e.reply = ad.Bytes()
		case attrProtoinfo:
			e.info = ad.Bytes()
		case attrZone:
			e.zone = ad.Uint16()
		case attrMark:
			e.mark = ad.Uint32()
		}
	}
	if err := ad.Err(); err != nil {
		return entry{}, fmt.Errorf("decode conntrack entry: %w", err)
	}
	return e, nil
}

// clear sets the masked bits of the entry's mark to 0, whatever the others are
// by now.
func (e entry) clear(c *netlink.Conn, mask uint32) error {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.Bytes(netlink.Nested|attrTuple, e.tuple)
	if e.zone != 0 {
		ae.Uint16(attrZone, e.zone)
	}
	ae.Uint32(attrMark, 0)
	ae.Uint32(attrMarkMask, mask)
	b, err := ae.Encode()
	if err != nil {
		return err
	}
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: msgNew, Flags: netlink.Request | netlink.Acknowledge}, // no Create: a change only
		Data:   append([]byte{e.family, 0, 0, 0}, b...),
	})
	if err != nil {
		return fmt.Errorf("clear the mark of a conntrack entry: %w", err)
	}
	return nil
}
