package ruleset

import (
	"fmt"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// Type is the data type of a field in a set's key.
type Type string

// The types in use, by nft's names.
const (
	TypeIPv4      Type = "ipv4_addr"
	TypeIPv6      Type = "ipv6_addr"
	TypeProtocol  Type = "inet_proto"
	TypePort      Type = "inet_service"
	TypeICMPv6    Type = "icmpv6_type"
	TypeInterface Type = "ifname"
)

// Len is the length of a value in a concatenation, in bytes: padded to 4.
func (t Type) Len() int {
	if t == TypeIPv6 || t == TypeInterface {
		return 16
	}
	return 4
}

// Field is something of a packet or its connection that a rule can look at.
// Its value is nft's name for it.
type Field string

// The fields in use.
const (
	IPSource       Field = "ip saddr"
	IPDestination  Field = "ip daddr"
	IP6Source      Field = "ip6 saddr"
	IP6Destination Field = "ip6 daddr"
	HopLimit       Field = "ip6 hoplimit"
	L4Proto        Field = "meta l4proto"
	SourcePort     Field = "th sport"
	DestPort       Field = "th dport"
	ICMPv6Type     Field = "icmpv6 type"
	InInterface    Field = "iifname"
	OutInterface   Field = "oifname"
	EtherType      Field = "ether type"
	NFProto        Field = "meta nfproto"
)

// Expr is one expression of a rule. The set of expressions is closed: every
// stage (text, netlink, trace) handles each of them. They are comparable.
type Expr interface{ text() string }

// Match compares a field with one value, given in nft's own text.
type Match struct {
	Field Field
	Value string
}

// Lookup looks a packet's fields up in a set.
type Lookup struct {
	Key Fields
	Set string
	Not bool
}

// VerdictMap looks a field up in a verdict map and does what it finds there;
// without an element the rule does nothing.
type VerdictMap struct {
	Field Field
	Map   string
}

// Fields is a key of up to three fields, in order; unused ones are empty.
type Fields [3]Field

// Note puts a field's value into a set that forgets it after the set's Timeout.
type Note struct {
	Field Field
	Set   string
}

// FlowIs matches packets by their connection: see the constants.
type FlowIs string

// What FlowIs can ask.
const (
	Related FlowIs = "ct state related"    // conntrack took it for part of another flow: ICMP errors, helpers' connections
	Reply   FlowIs = "ct direction reply"  // the flow was opened from the other end
	DNATed  FlowIs = "ct status dnat"      // its destination was translated: a service or hostPort
	Valid   FlowIs = "ct state != invalid" // it is not what a connection that has ended left behind
)

// MarkIs matches the masked connection mark: equal to Value, or with Not
// different from it.
type MarkIs struct {
	Mask, Value uint32
	Not         bool
}

// SetMark keeps the mark's other bits and sets the masked ones.
type SetMark struct{ Mask, Value uint32 }

// Limit matches up to Rate packets a second, after a burst of twice as many.
type Limit struct{ Rate uint32 }

// Burst is how many packets a Limit lets pass at once.
func (l Limit) Burst() uint32 { return 2 * l.Rate }

// Log shows a packet's first bytes to who listens on LogGroup (NFLOG), with the
// prefix.
type Log struct{ Prefix string }

// How packets are shown. The kernel keeps up to LogThreshold of them before it wakes
// the reader, LogSnaplen bytes of each: all headers of an IPv6 packet with options.
const (
	LogGroup     = 60880
	LogSnaplen   = 192
	LogThreshold = 64
)

// Count counts packets and bytes in a named counter.
type Count struct{ Counter string }

// Reject answers a packet: with a TCP reset, or ICMP port unreachable.
type Reject struct{ Reset bool }

// Verdict ends the rule: accept, drop, return, or jump or goto a chain.
type Verdict struct {
	Kind  VerdictKind
	Chain string
}

// VerdictKind is what a Verdict does.
type VerdictKind string

// The kinds of verdicts.
const (
	Accept VerdictKind = "accept"
	Drop   VerdictKind = "drop"
	Return VerdictKind = "return"
	Jump   VerdictKind = "jump"
	Goto   VerdictKind = "goto"
)

func (m Match) text() string { return string(m.Field) + " " + m.Value }

func (l Lookup) text() string {
	op := " @"
	if l.Not {
		op = " != @"
	}
	return l.Key.String() + op + l.Set
}

// String joins the fields as nft writes a concatenation.
func (f Fields) String() string {
	var b strings.Builder
	for i, field := range f {
		if field == "" {
			break
		}
		if i > 0 {
			b.WriteString(" . ")
		}
		b.WriteString(string(field))
	}
	return b.String()
}

func (n Note) text() string { return "update @" + n.Set + " { " + string(n.Field) + " }" }

func (v VerdictMap) text() string { return string(v.Field) + " vmap @" + v.Map }
func (f FlowIs) text() string     { return string(f) }

func (m MarkIs) text() string {
	op := "=="
	if m.Not {
		op = "!="
	}
	return fmt.Sprintf("ct mark & 0x%08x %s 0x%08x", m.Mask, op, m.Value)
}

func (s SetMark) text() string {
	if s.Value == 0 {
		return fmt.Sprintf("ct mark set ct mark & 0x%08x", ^s.Mask)
	}
	return fmt.Sprintf("ct mark set ct mark & 0x%08x | 0x%08x", ^s.Mask, s.Value)
}

func (l Limit) text() string {
	return fmt.Sprintf("limit rate %d/second burst %d packets", l.Rate, l.Burst())
}

func (l Log) text() string {
	return fmt.Sprintf("log prefix %q group %d snaplen %d queue-threshold %d", l.Prefix, LogGroup, LogSnaplen, LogThreshold)
}

func (c Count) text() string { return "counter name \"" + c.Counter + "\"" }

func (r Reject) text() string {
	if r.Reset {
		return "reject with tcp reset"
	}
	return "reject"
}

func (v Verdict) text() string {
	if v.Chain != "" {
		return string(v.Kind) + " " + v.Chain
	}
	return string(v.Kind)
}

// fieldTypes gives the data type of the fields that sets have keys of.
var fieldTypes = map[Field]Type{
	IPSource: TypeIPv4, IPDestination: TypeIPv4, IP6Source: TypeIPv6, IP6Destination: TypeIPv6,
	L4Proto: TypeProtocol, SourcePort: TypePort, DestPort: TypePort, ICMPv6Type: TypeICMPv6,
	InInterface: TypeInterface, OutInterface: TypeInterface,
}

// protocolValues are nft's names of the protocols that rules match by name.
var protocolValues = map[string]inventory.Protocol{
	"icmp": inventory.ICMP, "ipv6-icmp": inventory.ICMPv6, "tcp": inventory.TCP,
}

// ProtocolNumber gives the number of a protocol in a Match of L4Proto.
func ProtocolNumber(name string) inventory.Protocol { return protocolValues[name] }
