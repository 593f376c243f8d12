package ruleset

import (
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// Packet is what rules can see of a packet and its connection.
type Packet struct {
	Hook                 string // "forward" or "input"
	InInterface          string
	OutInterface         string
	Source, Destination  netip.Addr
	Protocol             inventory.Protocol
	SourcePort, DestPort uint16
	ICMPv6Type, HopLimit byte
	Related              bool // ct state related
	Reply                bool // ct direction reply
	DNATed               bool // ct status dnat
	Mark                 uint32
}

// Counts are what a counter holds.
type Counts struct{ Packets, Bytes uint64 }

// BaseChain is a base chain of another program's table, at one of the hooks that
// pods' packets pass.
type BaseChain struct {
	Family   string // ip, ip6, inet, bridge or netdev
	Table    string
	Name     string
	Type     string // filter, nat or route
	Hook     string // prerouting, input, forward, output, postrouting or ingress
	Priority int32
	Drop     bool // its policy is drop
}

// Step is a rule whose expressions all matched.
type Step struct {
	Chain string
	Index int // of the rule in its chain, from 0
	Rule  Rule
}

// Outcome is what became of a traced packet.
type Outcome struct {
	Verdict VerdictKind // Accept or Drop; a Reject is a Drop
	Mark    uint32      // the connection mark afterwards
	Steps   []Step
}

// Trace sends a packet through the table as the kernel would.
func (t *Table) Trace(p Packet) Outcome {
	tr := tracer{table: t, packet: p, set: func(name string) *Set { return t.Sets[name] }}
	return tr.trace()
}

func (tr *tracer) trace() Outcome {
	tr.out.Verdict, tr.out.Mark = Accept, tr.packet.Mark
	for _, name := range []string{chainForward, chainInput} {
		if c := tr.table.Chains[name]; c != nil && c.Hook != nil && c.Hook.Name == tr.packet.Hook {
			tr.run(c)
		}
	}
	return tr.out
}

type tracer struct {
	table  *Table
	set    func(name string) *Set // what a lookup finds
	packet Packet
	out    Outcome
}

// run evaluates a chain and what it goes to; true means that the packet's fate
// is decided.
func (tr *tracer) run(c *Chain) bool {
	for i, r := range c.Rules {
		kind, chain, matched := tr.rule(r)
		if matched {
			tr.out.Steps = append(tr.out.Steps, Step{Chain: c.Name, Index: i, Rule: r})
		}
		switch kind {
		case Accept, Drop:
			tr.out.Verdict = kind
			return true
		case Return:
			return false
		case Goto:
			return tr.run(tr.table.Chains[chain])
		case Jump:
			if tr.run(tr.table.Chains[chain]) {
				return true
			}
		}
	}
	return false
}

func (tr *tracer) rule(r Rule) (kind VerdictKind, chain string, matched bool) {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case Match:
			if !tr.match(e) {
				return "", "", false
			}
		case Lookup:
			key, ok := tr.key(e.Key)
			if !ok || tr.set(e.Set).find(key) != nil == e.Not {
				return "", "", false
			}
		case VerdictMap:
			key, ok := tr.key(Fields{e.Field})
			if !ok {
				return "", "", false
			}
			if el := tr.set(e.Map).find(key); el != nil {
				return Jump, el.Jump, true
			}
			return "", "", false
		case FlowIs:
			if !map[FlowIs]bool{Related: tr.packet.Related, Reply: tr.packet.Reply, DNATed: tr.packet.DNATed, Valid: true}[e] {
				return "", "", false
			}
		case MarkIs:
			if (tr.out.Mark&e.Mask == e.Value) == e.Not {
				return "", "", false
			}
		case Note, Limit, Log, Count:
		case SetMark:
			tr.out.Mark = tr.out.Mark&^e.Mask | e.Value
		case Reject:
			return Drop, "", true
		case Verdict:
			return e.Kind, e.Chain, true
		}
	}
	return "", "", true
}

func (tr *tracer) match(m Match) bool {
	p := &tr.packet
	switch m.Field {
	case InInterface:
		return p.InInterface == m.Value
	case OutInterface:
		return p.OutInterface == m.Value
	case L4Proto:
		return p.Protocol == ProtocolNumber(m.Value)
	case NFProto:
		return p.Source.Is4() == (m.Value == families[0].name)
	case HopLimit:
		return !p.Source.Is4() && strconv.Itoa(int(p.HopLimit)) == m.Value
	}
	a := p.Source
	if m.Field == IPDestination || m.Field == IP6Destination {
		a = p.Destination
	}
	if prefix, err := netip.ParsePrefix(m.Value); err == nil {
		return prefix.Contains(a)
	}
	return m.Value == a.String()
}

// key gives the packet's value for a set's key; false if the packet lacks a
// field, for which a rule does not match.
func (tr *tracer) key(fields Fields) (string, bool) {
	var k []byte
	p := &tr.packet
	for _, f := range fields {
		switch f {
		case IPSource, IPDestination, IP6Source, IP6Destination:
			a := p.Source
			if f == IPDestination || f == IP6Destination {
				a = p.Destination
			}
			if a.Is4() != (f == IPSource || f == IPDestination) {
				return "", false
			}
			k = append(k, a.AsSlice()...)
		case InInterface:
			k = append(k, ifname(p.InInterface)...)
		case OutInterface:
			k = append(k, ifname(p.OutInterface)...)
		case L4Proto:
			k = append(k, byte(p.Protocol), 0, 0, 0)
		case SourcePort:
			k = append(k, byte(p.SourcePort>>8), byte(p.SourcePort), 0, 0)
		case DestPort:
			k = append(k, byte(p.DestPort>>8), byte(p.DestPort), 0, 0)
		case ICMPv6Type:
			if p.Protocol != inventory.ICMPv6 {
				return "", false
			}
			k = append(k, p.ICMPv6Type, 0, 0, 0)
		}
	}
	return string(k), true
}

// find gives the element that a key is in.
func (s *Set) find(key string) *Element {
	if !s.Interval {
		i, ok := slices.BinarySearchFunc(s.Elements, key, func(e Element, k string) int { return strings.Compare(e.Key, k) })
		if !ok {
			return nil
		}
		return &s.Elements[i]
	}
	if len(s.Key) == 1 { // disjoint ranges: the last that begins at or before the key
		i := sort.Search(len(s.Elements), func(i int) bool { return s.Elements[i].Key > key })
		if i > 0 && s.Elements[i-1].Last >= key {
			return &s.Elements[i-1]
		}
		return nil
	}
	for i, e := range s.Elements {
		if s.contains(e, key) {
			return &s.Elements[i]
		}
	}
	return nil
}

// contains says whether each field of key is within the element's range.
func (s *Set) contains(e Element, key string) bool {
	for at, rest := 0, s.Key; len(rest) > 0; rest = rest[1:] {
		end := at + rest[0].Len()
		if key[at:end] < e.Key[at:end] || key[at:end] > e.Last[at:end] {
			return false
		}
		at = end
	}
	return true
}
