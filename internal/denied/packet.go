package denied

import (
	"encoding/binary"
	"net/netip"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// packet is what is told of a packet.
type packet struct {
	from, to         netip.Addr
	protocol         inventory.Protocol
	fromPort, toPort uint16 // of protocols that have ports, and of first fragments
	stray            bool   // it begins no TCP connection
}

// parse reads the headers of an IPv4 or IPv6 packet (RFC 791, 8200); false if it is
// neither. What is cut off, or in a later fragment, is left out.
func parse(b []byte) (packet, bool) {
	if len(b) == 0 {
		return packet{}, false
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b)
	case 6:
		return parse6(b)
	}
	return packet{}, false
}

func parse4(b []byte) (packet, bool) {
	if len(b) < 20 {
		return packet{}, false
	}
	p := packet{from: netip.AddrFrom4([4]byte(b[12:16])), to: netip.AddrFrom4([4]byte(b[16:20])), protocol: inventory.Protocol(b[9])}
	header := int(b[0]&15) * 4
	if later := binary.BigEndian.Uint16(b[6:8])&0x1fff != 0; !later && header >= 20 && header <= len(b) {
		p.ports(b[header:])
	}
	return p, true
}

// The extension headers that stand between an IPv6 header and what it carries
// (RFC 8200 section 4.1, RFC 4302).
const (
	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extAuth        = 51
	extDestination = 60
)

func parse6(b []byte) (packet, bool) {
	if len(b) < 40 {
		return packet{}, false
	}
	p := packet{from: netip.AddrFrom16([16]byte(b[8:24])).Unmap(), to: netip.AddrFrom16([16]byte(b[24:40])).Unmap()}
	next, rest := b[6], b[40:]
	for {
		p.protocol = inventory.Protocol(next)
		size := 0
		switch next {
		case extHopByHop, extRouting, extDestination:
			if len(rest) >= 2 {
				size = int(rest[1])*8 + 8
			}
		case extAuth:
			if len(rest) >= 2 {
				size = int(rest[1])*4 + 8
			}
		case extFragment:
			if len(rest) >= 8 {
				size = 8
				if binary.BigEndian.Uint16(rest[2:4])&^7 != 0 { // not the first
					p.protocol = inventory.Protocol(rest[0])
					return p, true
				}
			}
		default:
			p.ports(rest)
			return p, true
		}
		if size == 0 || size > len(rest) {
			return p, true
		}
		next, rest = rest[0], rest[size:]
	}
}

// ports reads those of TCP, UDP and SCTP, which have them in the same place.
func (p *packet) ports(b []byte) {
	if p.protocol.HasPorts() && len(b) >= 4 {
		p.fromPort, p.toPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	}
	const flags, syn, ack = 13, 2, 16 // RFC 9293
	p.stray = p.protocol == inventory.TCP && len(b) > flags && b[flags]&(syn|ack) != syn
}

// turned is the packet as one of the other direction.
func (p packet) turned() packet {
	p.from, p.to, p.fromPort, p.toPort = p.to, p.from, p.toPort, p.fromPort
	return p
}
