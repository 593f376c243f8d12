package lab

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// Probe is one packet. The zero values of the optional fields send the first
// packet of a connection: TCP SYN, UDP datagram, SCTP INIT, echo request.
type Probe struct {
	From *Namespace // who sends; nil: the owner of Src
	To   *Namespace // where it should arrive; nil: the owner of Dst, or the outside
	Src  netip.Addr // may be forged; zero: the first address of From in Dst's family
	Dst  netip.Addr
	// Proto may be any. ICMP stands for ICMPv6 where Dst is IPv6.
	Proto inventory.Protocol
	// SrcPort 0 takes the next unused one. It is the identifier of an echo
	// request.
	SrcPort, DstPort uint16

	TCPFlags byte   // instead of SYN
	ICMP     []byte // instead of an echo request: a message from its type on; the lab fills in the checksum
	HopLimit byte   // instead of 64
	VLAN0    bool   // the frame carries an 802.1Q tag with VLAN 0; not from the gateway
}

// trailerLen is what every packet of a lab ends with: a number by which a
// wire knows its own packets, and the id of the packet.
const trailerLen = 4 + 8

const (
	etherIPv4  = 0x0800
	etherIPv6  = 0x86dd
	etherVLAN  = 0x8100
	tcpSYN     = 2
	sctpINIT   = 1
	ipDontFrag = 0x4000
)

var (
	be         = binary.BigEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// appendFrame appends the Ethernet header of a probe.
func (p *Probe) appendFrame(b []byte, dst, src [6]byte) []byte {
	b = append(append(b, dst[:]...), src[:]...)
	if p.VLAN0 {
		b = be.AppendUint16(b, etherVLAN)
		b = be.AppendUint16(b, 0)
	}
	if p.Dst.Is4() {
		return be.AppendUint16(b, etherIPv4)
	}
	return be.AppendUint16(b, etherIPv6)
}

// appendIP appends the IP packet of a probe.
func (p *Probe) appendIP(b []byte, magic uint32, id uint64) []byte {
	hops := p.HopLimit
	if hops == 0 {
		hops = 64
	}
	start := len(b)
	if p.Dst.Is4() {
		b = append(b, 0x45, 0, 0, 0)
		b = be.AppendUint16(b, uint16(id))
		b = be.AppendUint16(b, ipDontFrag)
		b = append(b, hops, byte(p.Proto), 0, 0)
	} else {
		b = append(b, 0x60, 0, 0, 0, 0, 0, byte(p.Proto), hops)
	}
	b = append(append(b, p.Src.AsSlice()...), p.Dst.AsSlice()...)
	transport := len(b)
	b = p.appendTransport(b, id)
	b = be.AppendUint32(b, magic)
	b = be.AppendUint64(b, id)
	if p.Dst.Is4() {
		be.PutUint16(b[start+2:], uint16(len(b)-start))
		be.PutUint16(b[start+10:], fold(sum(0, b[start:transport])))
	} else {
		be.PutUint16(b[start+4:], uint16(len(b)-transport))
	}
	p.checksum(b[transport:])
	return b
}

// appendTransport appends the transport header, without its checksum. Lengths
// count the trailer, which follows.
func (p *Probe) appendTransport(b []byte, id uint64) []byte {
	if p.Proto.HasPorts() {
		b = be.AppendUint16(be.AppendUint16(b, p.SrcPort), p.DstPort)
	}
	switch p.Proto {
	case inventory.TCP:
		flags := p.TCPFlags
		if flags == 0 {
			flags = tcpSYN
		}
		b = be.AppendUint32(b, uint32(id))
		b = append(b, 0, 0, 0, 0, 5<<4, flags)
		b = append(b, 0xff, 0xff, 0, 0, 0, 0)
	case inventory.UDP:
		b = be.AppendUint16(b, 8+trailerLen)
		b = append(b, 0, 0)
	case inventory.SCTP:
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // verification tag: 0 in an INIT; checksum
		b = append(b, sctpINIT, 0)
		b = be.AppendUint16(b, 20+4+trailerLen)
		b = be.AppendUint32(b, uint32(id)|1) // initiate tag, not 0
		b = append(b, 0, 1, 0, 0)            // receiver window
		b = append(b, 0, 1, 0, 1)            // streams
		b = be.AppendUint32(b, uint32(id))
		b = be.AppendUint16(b, 0xc0de) // a parameter to be skipped if unknown
		b = be.AppendUint16(b, 4+trailerLen)
	case inventory.ICMP, inventory.ICMPv6:
		if p.ICMP != nil {
			return append(b, p.ICMP...)
		}
		echo := byte(8)
		if p.Dst.Is6() {
			echo = 128
		}
		b = append(b, echo, 0, 0, 0)
		b = be.AppendUint16(be.AppendUint16(b, p.SrcPort), 1)
	}
	return b
}

// checksum fills in the checksum of a transport segment.
func (p *Probe) checksum(seg []byte) {
	at := 0
	switch p.Proto {
	case inventory.TCP:
		at = 16
	case inventory.UDP:
		at = 6
	case inventory.ICMP, inventory.ICMPv6:
		at = 2
	case inventory.SCTP: // RFC 9260, appendix A: CRC32c, little endian
		binary.LittleEndian.PutUint32(seg[8:], crc32.Checksum(seg, castagnoli))
		return
	default:
		return
	}
	var s uint32
	if p.Proto != inventory.ICMP {
		s = sum(sum(0, p.Src.AsSlice()), p.Dst.AsSlice()) + uint32(p.Proto) + uint32(len(seg))
	}
	seg[at], seg[at+1] = 0, 0
	c := fold(sum(s, seg))
	if c == 0 && p.Proto == inventory.UDP {
		c = 0xffff
	}
	be.PutUint16(seg[at:], c)
}

// sum adds big-endian 16-bit words (RFC 1071).
func sum(s uint32, b []byte) uint32 {
	for len(b) >= 2 {
		s += uint32(be.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
