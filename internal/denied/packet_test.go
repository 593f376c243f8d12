package denied

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// ip6 is an IPv6 packet with extension headers, each given without its next header.
func ip6(last byte, payload []byte, headers ...[]byte) []byte {
	b := make([]byte, 40)
	b[0] = 0x60
	copy(b[8:], netip.MustParseAddr("fd00::1").AsSlice())
	copy(b[24:], netip.MustParseAddr("fd00::2").AsSlice())
	next := 6
	for _, h := range headers {
		b[next] = h[0]
		next = len(b)
		b = append(b, h...)
	}
	b[next] = last
	return append(b, payload...)
}

func ip4(protocol byte, fragment uint16, options int, payload []byte) []byte {
	b := make([]byte, 20+options)
	b[0] = 0x40 | byte(5+options/4)
	b[9] = protocol
	binary.BigEndian.PutUint16(b[6:], fragment)
	copy(b[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	return append(b, payload...)
}

// Ports are read behind options and extension headers, and never out of what is not
// the beginning of TCP, UDP or SCTP.
func TestParse(t *testing.T) {
	ports := []byte{0x12, 0x34, 0, 80}
	v4 := func(p inventory.Protocol, from, to uint16) packet {
		return packet{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), p, from, to, false}
	}
	v6 := func(p inventory.Protocol, from, to uint16) packet {
		return packet{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"), p, from, to, false}
	}
	// The first byte is what the header is called, in place of the next header.
	hop, route, auth := []byte{0, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 16), make([]byte, 12)
	route[0], route[1], auth[0], auth[1] = 43, 1, 51, 1
	first, later := []byte{44, 0, 0, 1, 0, 0, 0, 9}, []byte{44, 0, 0, 9, 0, 0, 0, 9}
	for name, tt := range map[string]struct {
		data []byte
		want packet
	}{
		"tcp":                   {ip4(6, 0, 0, ports), v4(inventory.TCP, 0x1234, 80)},
		"options":               {ip4(132, 0x4000, 8, ports), v4(inventory.SCTP, 0x1234, 80)},
		"first fragment":        {ip4(17, 0x2000, 0, ports), v4(inventory.UDP, 0x1234, 80)},
		"later fragment":        {ip4(17, 0x2001, 0, ports), v4(inventory.UDP, 0, 0)},
		"icmp":                  {ip4(1, 0, 0, ports), v4(inventory.ICMP, 0, 0)},
		"cut off":               {ip4(6, 0, 0, ports[:3]), v4(inventory.TCP, 0, 0)},
		"header longer than it": {append([]byte{0x4f}, ip4(6, 0, 0, ports)[1:]...), v4(inventory.TCP, 0, 0)},
		"udp6":                  {ip6(17, ports), v6(inventory.UDP, 0x1234, 80)},
		"all headers":           {ip6(6, ports, hop, route, auth, first), v6(inventory.TCP, 0x1234, 80)},
		"later fragment of 6":   {ip6(6, ports, hop, later), v6(inventory.TCP, 0, 0)},
		"icmp6":                 {ip6(58, ports), v6(inventory.ICMPv6, 0, 0)},
		"header cut off":        {ip6(6, nil, hop)[:44], v6(0, 0, 0)},
	} {
		got, ok := parse(tt.data)
		if !ok || got != tt.want {
			t.Errorf("%s: %+v %t, want %+v", name, got, ok, tt.want)
		}
	}
	for _, data := range [][]byte{nil, {0x45}, {0x60, 1}, make([]byte, 60), ip4(6, 0, 0, nil)[:19], ip6(6, nil)[:39]} {
		if p, ok := parse(data); ok {
			t.Errorf("% x is %+v", data, p)
		}
	}
}

// Whatever a packet holds, it is read within its bounds.
func FuzzParse(f *testing.F) {
	f.Add(ip4(6, 0, 4, []byte{1, 2, 3, 4}))
	f.Add(ip6(17, []byte{1, 2, 3, 4}, []byte{0, 0, 0, 0, 0, 0, 0, 0}, []byte{44, 0, 0, 1, 0, 0, 0, 9}))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, ok := parse(data)
		if ok != p.from.IsValid() || ok != p.to.IsValid() || p.from.Zone() != "" {
			t.Fatalf("%+v %t", p, ok)
		}
		if !p.protocol.HasPorts() && (p.fromPort != 0 || p.toPort != 0) {
			t.Fatalf("ports of %s: %+v", p.protocol, p)
		}
		if p.turned().turned() != p {
			t.Fatalf("turned twice: %+v", p.turned().turned())
		}
	})
}
