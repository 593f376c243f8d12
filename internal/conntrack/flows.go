package conntrack

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// More attributes of linux/netfilter/nfnetlink_conntrack.h. The first three are of
// an entry, the others of what is nested in them.
const (
	attrReply     = 2 // CTA_TUPLE_REPLY
	attrProtoinfo = 4 // CTA_PROTOINFO

	attrTupleIP    = 1 // CTA_TUPLE_IP
	attrTupleProto = 2 // CTA_TUPLE_PROTO
	attrV4Src      = 1 // CTA_IP_V4_SRC
	attrV4Dst      = 2 // CTA_IP_V4_DST
	attrV6Src      = 3 // CTA_IP_V6_SRC
	attrV6Dst      = 4 // CTA_IP_V6_DST
	attrProtoNum   = 1 // CTA_PROTO_NUM
	attrSrcPort    = 2 // CTA_PROTO_SRC_PORT
	attrDstPort    = 3 // CTA_PROTO_DST_PORT

	attrInfoTCP  = 1 // CTA_PROTOINFO_TCP
	attrInfoSCTP = 3 // CTA_PROTOINFO_SCTP
	attrState    = 1 // CTA_PROTOINFO_TCP_STATE, CTA_PROTOINFO_SCTP_STATE
)

// Tuple is what the packets of one direction carry. The ports are 0 of protocols
// that have none.
type Tuple struct {
	Protocol             inventory.Protocol
	Source, Destination  netip.Addr
	SourcePort, DestPort uint16
}

// Flow is a connection, or an exchange without one, as conntrack knows it.
type Flow struct {
	Original Tuple // as whoever began sent it
	Reply    Tuple // as the answer to it comes
	state    uint8 // of TCP and SCTP (nf_conntrack_tcp.h, nf_conntrack_sctp.h)
}

// From is who began, and where to, as the pods see it (S27): the source before SNAT
// and the destination after DNAT, which the reply comes from.
func (f Flow) From() netip.AddrPort {
	return netip.AddrPortFrom(f.Original.Source, f.Original.SourcePort)
}

// To is the other end; see From.
func (f Flow) To() netip.AddrPort {
	return netip.AddrPortFrom(f.Reply.Source, f.Reply.SourcePort)
}

// Established says whether the flow can carry data: the handshake is done, where
// there is one, and not both ends have closed it. A protocol without states counts
// as long as conntrack remembers it.
func (f Flow) Established() bool {
	switch f.Original.Protocol {
	case inventory.TCP: // SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT
		return 2 <= f.state && f.state <= 5
	case inventory.SCTP: // COOKIE_ECHOED, ESTABLISHED, SHUTDOWN_SENT, SHUTDOWN_RECD, HEARTBEAT_SENT
		return 3 <= f.state && f.state <= 6 || f.state == 8
	}
	return true
}

// Flows visits all flows of both families as the kernel lists them, holding only a
// few at a time. The first error of visit ends it. It needs CAP_NET_ADMIN; without, it
// is unix.EPERM.
func Flows(visit func(Flow) error) error {
	err := each(func(e entry) error {
		f, err := e.flow()
		if err != nil {
			return err
		}
		return visit(f)
	})
	if err != nil {
		return fmt.Errorf("list the connections: %w", err)
	}
	return nil
}

// flow decodes the entry's tuples and state.
func (e entry) flow() (f Flow, err error) {
	if f.Original, err = readTuple(e.family, e.tuple); err != nil {
		return Flow{}, err
	}
	if f.Reply, err = readTuple(e.family, e.reply); err != nil {
		return Flow{}, err
	}
	if f.Reply.Protocol != f.Original.Protocol {
		return Flow{}, fmt.Errorf("conntrack entry: protocol %s one way, %s the other", f.Original.Protocol, f.Reply.Protocol)
	}
	info, err := decoder(e.info)
	if err != nil {
		return Flow{}, err
	}
	for info.Next() {
		if t := info.Type(); t == attrInfoTCP || t == attrInfoSCTP {
			info.Nested(func(of *netlink.AttributeDecoder) error {
				for of.Next() {
					if of.Type() == attrState {
						f.state = of.Uint8()
					}
				}
				return nil
			})
		}
	}
	if err := info.Err(); err != nil {
		return Flow{}, fmt.Errorf("decode conntrack entry: %w", err)
	}
	return f, nil
}

// readTuple decodes CTA_TUPLE_ORIG or CTA_TUPLE_REPLY.
func readTuple(family byte, b []byte) (Tuple, error) {
	var t Tuple
	ad, err := decoder(b)
	if err != nil {
		return t, err
	}
	for ad.Next() {
		switch ad.Type() {
		case attrTupleIP:
			ad.Nested(t.readIP)
		case attrTupleProto:
			ad.Nested(t.readProto)
		}
	}
	if err := ad.Err(); err != nil {
		return Tuple{}, fmt.Errorf("decode conntrack entry: %w", err)
	}
	v4 := family == unix.AF_INET
	if !t.Source.IsValid() || !t.Destination.IsValid() || t.Source.Is4() != v4 || t.Destination.Is4() != v4 {
		return Tuple{}, fmt.Errorf("conntrack entry of family %d without its addresses: %+v", family, t)
	}
	return t, nil
}

func (t *Tuple) readIP(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		a, ok := netip.AddrFromSlice(ad.Bytes())
		switch typ := ad.Type(); {
		case typ < attrV4Src || attrV6Dst < typ:
			continue
		case !ok || a.Is4() != (typ <= attrV4Dst):
			return fmt.Errorf("an address of %d bytes", len(ad.Bytes()))
		case typ == attrV4Src || typ == attrV6Src:
			t.Source = a
		default:
			t.Destination = a
		}
	}
	return nil
}

func (t *Tuple) readProto(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case attrProtoNum:
			t.Protocol = inventory.Protocol(ad.Uint8())
		case attrSrcPort:
			t.SourcePort = ad.Uint16()
		case attrDstPort:
			t.DestPort = ad.Uint16()
		}
	}
	return nil
}

func decoder(b []byte) (*netlink.AttributeDecoder, error) {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return nil, fmt.Errorf("decode conntrack entry: %w", err)
	}
	ad.ByteOrder = binary.BigEndian
	return ad, nil
}
