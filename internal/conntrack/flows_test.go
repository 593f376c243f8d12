package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/lab"
)

// String is what the tests compare: "TCP 10.0.0.1:6 > 10.0.0.2:2", with "ended" where
// that is so.
func (f Flow) String() string {
	text := fmt.Sprintf("%s %s > %s", f.Original.Protocol, f.From(), f.To())
	if !f.Established() {
		text += " ended"
	}
	return text
}

func flows(t testing.TB, l *lab.Lab) (list []string) {
	t.Helper()
	err := l.Gateway.Do(func() error {
		return Flows(func(f Flow) error { list = append(list, f.String()); return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// What conntrack(8) put into the kernel is read back as the pods see it.
func TestFlowsOfTheKernel(t *testing.T) {
	l := lab.ForTest(t, lab.Topology{})
	if got := flows(t, l); len(got) != 0 {
		t.Errorf("flows of an idle gateway: %v", got)
	}
	insert(t, l,
		"-s 10.0.0.1 -d 10.0.0.2 -p udp --sport 1 --dport 2 -t 300",
		"-s 10.0.0.1 -d 10.0.0.2 -p tcp --sport 6 --dport 2 -t 300 --state ESTABLISHED -u SEEN_REPLY,ASSURED",
		"-s 10.0.0.1 -d 10.0.0.2 -p tcp --sport 7 --dport 2 -t 300 --state SYN_SENT",
		"-s 10.0.0.1 -d 10.0.0.2 -p tcp --sport 8 --dport 2 -t 300 --state TIME_WAIT -u SEEN_REPLY",
		"-s 10.0.0.1 -d 10.0.0.2 -p tcp --sport 9 --dport 2 -t 300 --state CLOSE_WAIT -u SEEN_REPLY",
		"-s 10.0.0.1 -d 10.0.0.2 -p icmp --icmp-type 8 --icmp-code 0 --icmp-id 9 -t 300",
		"-s 10.0.0.3 -d 192.0.2.1 -r 10.9.9.9 -q 192.0.2.7 -p tcp --sport 7 --dport 80 --reply-port-src 8080 --reply-port-dst 60000 -t 300 --state ESTABLISHED -u SEEN_REPLY",
		"-s fd00::1 -d fd00::2 -p udp --sport 1 --dport 2 -t 300",
		"-s fd00::1 -d fd00::2 -p icmpv6 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 9 -t 300",
		"-s 10.0.0.1 -d 10.0.0.2 -p udp --sport 1 --dport 2 -t 300 -w 5",
		"-s 10.0.0.1 -d 10.0.0.2 -p sctp --orig-port-src 3 --orig-port-dst 4 -t 300 --state ESTABLISHED --orig-vtag 1 --reply-vtag 2",
	)
	want := []string{
		"ICMP 10.0.0.1:0 > 10.0.0.2:0",
		"ICMPv6 [fd00::1]:0 > [fd00::2]:0",
		"SCTP 10.0.0.1:3 > 10.0.0.2:4",
		"TCP 10.0.0.1:6 > 10.0.0.2:2",
		"TCP 10.0.0.1:7 > 10.0.0.2:2 ended",
		"TCP 10.0.0.1:8 > 10.0.0.2:2 ended",
		"TCP 10.0.0.1:9 > 10.0.0.2:2",
		"TCP 10.0.0.3:7 > 10.9.9.9:8080", // after DNAT, before SNAT
		"UDP 10.0.0.1:1 > 10.0.0.2:2",
		"UDP 10.0.0.1:1 > 10.0.0.2:2", // in another zone
		"UDP [fd00::1]:1 > [fd00::2]:2",
	}
	if got := flows(t, l); !slices.Equal(got, want) {
		t.Errorf("flows are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A connection that nft sent to another address and port, and hid the source of.
func TestFlowsRealNAT(t *testing.T) {
	l := lab.ForTest(t, lab.Topology{})
	addr := netip.MustParseAddr("10.42.0.2")
	pod, err := l.AddPod("p", addr)
	if err != nil {
		t.Fatal(err)
	}
	const rules = "table ip t {\nchain d {\ntype nat hook prerouting priority dstnat\ntcp dport 8080 dnat to 10.42.0.2:7\n}\n" +
		"chain s {\ntype nat hook postrouting priority srcnat\nip daddr 10.42.0.2 masquerade\n}\n}\n"
	if _, err := l.Gateway.RunInput(rules, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if _, err := pod.Listen("tcp", netip.AddrPortFrom(addr, 7)); err != nil {
		t.Fatal(err)
	}
	c, err := l.Outside.Dial(t.Context(), "tcp", netip.Addr{}, netip.MustParseAddrPort("192.168.254.1:8080"))
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Exchange(c, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("TCP 192.168.254.2:%d > 10.42.0.2:7", c.LocalAddr().(*net.TCPAddr).Port)
	if got := flows(t, l); !slices.Equal(got, []string{want}) {
		t.Errorf("flows are %q, want %q", got, want)
	}
}

func TestFlowsEndsWithTheFirstError(t *testing.T) {
	l := lab.ForTest(t, lab.Topology{})
	insert(t, l, some...)
	enough, n := errors.New("enough"), 0
	err := l.Gateway.Do(func() error { return Flows(func(Flow) error { n++; return enough }) })
	if n != 1 || !errors.Is(err, enough) {
		t.Errorf("%d visits, error %v", n, err)
	}
}

// 50,000 flows, each of which is seen.
func TestFlowsMany(t *testing.T) {
	const n = 50_000
	l := many(t, n)
	got := flows(t, l)
	if got = slices.Compact(got); len(got) != n {
		t.Errorf("%d flows, want %d", len(got), n)
	}
}

// message makes an entry as the kernel writes it.
type message struct {
	family    byte
	src, dst  string // original
	rsrc      string // the reply's source
	proto     uint8
	ports     [3]uint16 // original source and destination, reply source
	state     uint8
	stateAttr uint16
}

func (m message) encode() []byte {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	tuple := func(typ uint16, src, dst string, sport, dport uint16) {
		ae.Nested(typ, func(ae *netlink.AttributeEncoder) error {
			ae.Nested(attrTupleIP, func(ae *netlink.AttributeEncoder) error {
				s, d := uint16(attrV4Src), uint16(attrV4Dst)
				if strings.Contains(src, ":") {
					s, d = attrV6Src, attrV6Dst
				}
				ae.Bytes(s, netip.MustParseAddr(src).AsSlice())
				ae.Bytes(d, netip.MustParseAddr(dst).AsSlice())
				return nil
			})
			ae.Nested(attrTupleProto, func(ae *netlink.AttributeEncoder) error {
				ae.Uint8(attrProtoNum, m.proto)
				ae.Uint16(attrSrcPort, sport)
				ae.Uint16(attrDstPort, dport)
				return nil
			})
			return nil
		})
	}
	tuple(attrTuple, m.src, m.dst, m.ports[0], m.ports[1])
	tuple(attrReply, m.rsrc, m.src, m.ports[2], m.ports[0])
	if m.stateAttr != 0 {
		ae.Nested(attrProtoinfo, func(ae *netlink.AttributeEncoder) error {
			ae.Nested(m.stateAttr, func(ae *netlink.AttributeEncoder) error { ae.Uint8(attrState, m.state); return nil })
			return nil
		})
	}
	b, err := ae.Encode()
	if err != nil {
		panic(err)
	}
	return append([]byte{m.family, 0, 0, 0}, b...)
}

func decode(b []byte) (Flow, error) {
	e, err := read(b)
	if err != nil {
		return Flow{}, err
	}
	return e.flow()
}

var (
	plain = message{family: unix.AF_INET, src: "10.0.0.1", dst: "10.0.0.2", rsrc: "10.0.0.2", proto: 17, ports: [3]uint16{1, 2, 2}}
	dnat6 = message{family: unix.AF_INET6, src: "fd00::1", dst: "fd00::2", rsrc: "fd00::9", proto: 6, ports: [3]uint16{1, 80, 8080}, state: 3, stateAttr: attrInfoTCP}
)

func TestDecodeFlow(t *testing.T) {
	state := func(proto uint8, attr uint16, state uint8) message {
		m := plain
		m.proto, m.stateAttr, m.state = proto, attr, state
		return m
	}
	for _, c := range []struct {
		m    message
		want string
	}{
		{plain, "UDP 10.0.0.1:1 > 10.0.0.2:2"},
		{dnat6, "TCP [fd00::1]:1 > [fd00::9]:8080"},
		{state(6, attrInfoTCP, 1), "TCP 10.0.0.1:1 > 10.0.0.2:2 ended"}, // SYN_SENT
		{state(6, attrInfoTCP, 2), "TCP 10.0.0.1:1 > 10.0.0.2:2"},       // SYN_RECV
		{state(6, attrInfoTCP, 6), "TCP 10.0.0.1:1 > 10.0.0.2:2 ended"}, // LAST_ACK
		{state(132, attrInfoSCTP, 2), "SCTP 10.0.0.1:1 > 10.0.0.2:2 ended"},
		{state(132, attrInfoSCTP, 4), "SCTP 10.0.0.1:1 > 10.0.0.2:2"},
		{state(132, attrInfoSCTP, 7), "SCTP 10.0.0.1:1 > 10.0.0.2:2 ended"},
		{state(0, 0, 0), "0 10.0.0.1:1 > 10.0.0.2:2"}, // a pod can send protocol 0
		{state(47, 0, 0), "47 10.0.0.1:1 > 10.0.0.2:2"},
	} {
		f, err := decode(c.m.encode())
		if err != nil || f.String() != c.want {
			t.Errorf("got %q, %v; want %q", f, err, c.want)
		}
	}
	mixed := plain
	mixed.family = unix.AF_INET6
	if _, err := decode(mixed.encode()); err == nil {
		t.Error("IPv4 addresses in an entry of IPv6: no error")
	}
	other := plain.encode()
	other = other[:len(other)-len(other)/2]
	if _, err := decode(other); err == nil {
		t.Error("half an entry: no error")
	}
}

func FuzzFlow(f *testing.F) {
	for _, m := range []message{plain, dnat6, {family: unix.AF_INET, src: "10.0.0.1", dst: "10.0.0.2", rsrc: "10.0.0.2", proto: 132, stateAttr: attrInfoSCTP, state: 4}} {
		b := m.encode()
		f.Add(b)
		for i := range b {
			f.Add(b[:i])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		flow, err := decode(b)
		if err != nil {
			return
		}
		if v4 := b[0] == unix.AF_INET; flow.From().Addr().Is4() != v4 || flow.To().Addr().Is4() != v4 {
			t.Fatalf("%s of family %d", flow, b[0])
		}
		if !flow.Original.Destination.IsValid() || !flow.Reply.Destination.IsValid() {
			t.Fatal("an address is missing")
		}
	})
}
