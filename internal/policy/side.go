package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// PortRange is an inclusive range of ports of one protocol.
type PortRange struct {
	Protocol    inventory.Protocol
	First, Last uint16
}

// String gives "80/TCP" or "80-90/TCP", or the protocol alone for every port.
func (p PortRange) String() string {
	switch {
	case p.First == 0 && p.Last == 65535:
		return p.Protocol.String()
	case p.First == p.Last:
		return fmt.Sprintf("%d/%s", p.First, p.Protocol)
	}
	return fmt.Sprintf("%d-%d/%s", p.First, p.Last, p.Protocol)
}

// AddrRange is an inclusive range of addresses of one family.
type AddrRange struct{ First, Last netip.Addr }

// PeerPort is one allowed peer address with one port.
type PeerPort struct {
	Addr     netip.Addr
	Protocol inventory.Protocol
	Port     uint16
}

// Origin names the policy rule that something comes from.
type Origin struct {
	Policy inventory.Key
	Rule   int // index in spec.ingress or spec.egress, from 0
}

// String gives "namespace/policy#rule".
func (o Origin) String() string { return fmt.Sprintf("%s#%d", o.Policy, o.Rule) }

// Group allows a set of addresses a set of ports.
type Group struct {
	Ports     []PortRange // nil: all traffic, other protocols included (S22)
	Addresses []AddrRange // disjoint, not touching, sorted, IPv4 before IPv6
	Origins   []Origin
}

// Side is what an isolated pod allows in one direction, merged from all
// policies that isolate it (S12): the peer is allowed if any of the parts
// allows it.
type Side struct {
	// ID is 16 hex digits that stand for the policies the side is made from. It
	// stays when their content changes, so that what carries its name in the
	// kernel can be edited in place.
	ID        string
	Direction inventory.Direction
	Policies  []inventory.Key
	// Audit: no policy isolates the pod in this direction, and those of the side are
	// only tried; see inventory.Options.Audits.
	Audit bool

	All        []Origin    // rules that allow everything
	Any        []PortRange // ports that are open to every address
	AnyOrigins []Origin
	Exact      []PeerPort // single ports of single addresses; sorted, distinct
	ExactFrom  []Origin
	Groups     []Group // one per distinct set of ports, sorted by it
}

func (s *Side) equal(o *Side) bool {
	return s.ID == o.ID && s.Audit == o.Audit && slices.Equal(s.Policies, o.Policies) && slices.Equal(s.All, o.All) &&
		slices.Equal(s.Any, o.Any) && slices.Equal(s.AnyOrigins, o.AnyOrigins) &&
		slices.Equal(s.Exact, o.Exact) && slices.Equal(s.ExactFrom, o.ExactFrom) &&
		slices.EqualFunc(s.Groups, o.Groups, func(a, b Group) bool {
			return slices.Equal(a.Ports, b.Ports) && slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Origins, b.Origins)
		})
}

// sideState is a Side with the versions of what it was made from.
type sideState struct {
	side      *Side
	policies  []*policyState
	versions  []uint64
	addresses uint64
	usesAll   bool // depends on every pod's address: ipBlocks that leave pods out
}

func (st *sideState) current(policies []*policyState, addresses uint64) bool {
	if st.usesAll && st.addresses != addresses || !slices.Equal(st.policies, policies) {
		return false
	}
	for i, p := range policies {
		if p.version[st.side.Direction] != st.versions[i] {
			return false
		}
	}
	return true
}

// sideBuilder gathers the parts of a Side.
type sideBuilder struct {
	r      *Resolver
	side   *Side
	pod    *inventory.Pod
	any    []PortRange
	exact  []PeerPort
	groups map[string]*groupBuilder // by the text of their ports
}

type groupBuilder struct {
	ports   []PortRange
	ranges  []AddrRange
	origins []Origin
}

func (r *Resolver) buildSide(d inventory.Direction, id string, pod *podState) *sideState {
	sum := sha256.Sum256([]byte(id))
	b := sideBuilder{
		r: r, pod: pod.pod, groups: map[string]*groupBuilder{},
		side: &Side{ID: hex.EncodeToString(sum[:8]), Direction: d, Audit: pod.audited[d]},
	}
	st := &sideState{side: b.side, policies: pod.selected[d], addresses: r.addresses}
	for _, p := range pod.selected[d] {
		b.side.Policies = append(b.side.Policies, p.policy.Key)
		st.versions = append(st.versions, p.version[d])
		st.usesAll = st.usesAll || p.blocks[d] && !r.opts.IPBlockMatchesPods
		for i := range p.policy.Rules[d] {
			b.rule(p, i)
		}
	}
	b.finish()
	return st
}

// rule adds one rule: its peers times its ports (S13), never mixed with others'.
func (b *sideBuilder) rule(p *policyState, i int) {
	d := b.side.Direction
	rule := &p.policy.Rules[d][i]
	origin := Origin{Policy: p.policy.Key, Rule: i}
	everything := len(rule.Ports) == 0
	numeric, named := b.ports(rule)
	if len(rule.Peers) == 0 { // S14
		if everything {
			b.side.All = append(b.side.All, origin)
		}
		if len(numeric) > 0 {
			b.any = append(b.any, numeric...)
			b.side.AnyOrigins = append(b.side.AnyOrigins, origin)
		}
		for _, pod := range b.r.slots {
			b.exactNamed(pod, nil, named, origin)
		}
		return
	}
	for j := range rule.Peers {
		block := rule.Peers[j].Block
		if block != nil && (everything || len(numeric) > 0) {
			b.group(numeric, b.r.blockRanges(block), origin)
		}
		if block != nil && len(named) == 0 {
			continue
		}
		for _, pod := range b.r.slots {
			if pod == nil || !p.peers[d][i][j].has(pod.slot) {
				continue
			}
			if block == nil {
				b.podPeer(pod, everything, numeric, origin)
			}
			b.exactNamed(pod, block, named, origin)
		}
	}
}

// ports gives the rule's numeric ports, with an ingress rule's names resolved on
// the selected pod, and the names that each egress peer resolves for itself.
func (b *sideBuilder) ports(rule *inventory.Rule) (numeric []PortRange, named []inventory.Port) {
	for _, port := range rule.Ports {
		switch {
		case port.Name == "":
			numeric = append(numeric, PortRange{Protocol: port.Protocol, First: port.First, Last: port.Last})
		case b.side.Direction == inventory.Ingress:
			numeric = append(numeric, namedPorts(b.pod, port)...)
		default:
			named = append(named, port)
		}
	}
	return mergePorts(numeric), named
}

// podPeer allows a pod's addresses: single ports as exact elements, ranges and
// "everything" as a group.
func (b *sideBuilder) podPeer(pod *podState, everything bool, numeric []PortRange, origin Origin) {
	var ranges []PortRange
	for _, port := range numeric {
		if port.First != port.Last {
			ranges = append(ranges, port)
			continue
		}
		for _, a := range pod.pod.Addresses {
			b.addExact(PeerPort{Addr: a, Protocol: port.Protocol, Port: port.First}, origin)
		}
	}
	if everything || len(ranges) > 0 {
		addrs := make([]AddrRange, len(pod.pod.Addresses))
		for i, a := range pod.pod.Addresses {
			addrs[i] = AddrRange{First: a, Last: a}
		}
		b.group(ranges, addrs, origin)
	}
}

// exactNamed allows a peer pod's own ports of the given names; with a block, at
// its addresses inside it.
func (b *sideBuilder) exactNamed(pod *podState, block *inventory.IPBlock, named []inventory.Port, origin Origin) {
	if pod == nil {
		return
	}
	for _, port := range named {
		for _, n := range namedPorts(pod.pod, port) {
			for _, a := range pod.pod.Addresses {
				if block == nil || inBlock(block, a) {
					b.addExact(PeerPort{Addr: a, Protocol: n.Protocol, Port: n.First}, origin)
				}
			}
		}
	}
}

func (b *sideBuilder) addExact(e PeerPort, origin Origin) {
	b.exact = append(b.exact, e)
	b.side.ExactFrom = appendOrigin(b.side.ExactFrom, origin)
}

func appendOrigin(list []Origin, o Origin) []Origin {
	if n := len(list); n > 0 && list[n-1] == o {
		return list
	}
	return append(list, o)
}

func (b *sideBuilder) group(ports []PortRange, addrs []AddrRange, origin Origin) {
	key := fmt.Sprint(ports)
	g := b.groups[key]
	if g == nil {
		g = &groupBuilder{ports: ports}
		b.groups[key] = g
	}
	g.ranges = append(g.ranges, addrs...)
	g.origins = appendOrigin(g.origins, origin)
}

// finish sorts and merges what was gathered. Where a rule allows everything the
// other parts say nothing more and are left out.
func (b *sideBuilder) finish() {
	if len(b.side.All) > 0 {
		b.side.AnyOrigins, b.side.ExactFrom = nil, nil
		return
	}
	b.side.Any = mergePorts(b.any)
	slices.SortFunc(b.exact, func(x, y PeerPort) int {
		return cmp.Or(x.Addr.Compare(y.Addr), cmp.Compare(x.Protocol, y.Protocol), cmp.Compare(x.Port, y.Port))
	})
	b.side.Exact = slices.Compact(b.exact)
	keys := make([]string, 0, len(b.groups))
	for k := range b.groups {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		g := b.groups[k]
		b.side.Groups = append(b.side.Groups, Group{Ports: g.ports, Addresses: mergeAddrs(g.ranges), Origins: g.origins})
	}
}

// blockRanges gives the addresses of an ipBlock as ranges: its CIDR less the
// exceptions (S18) and, where blocks mean external addresses only, less every
// pod's address (S17).
func (r *Resolver) blockRanges(b *inventory.IPBlock) []AddrRange {
	holes := make([]AddrRange, 0, len(b.Except))
	for _, e := range b.Except {
		holes = append(holes, prefixRange(e))
	}
	if !r.opts.IPBlockMatchesPods {
		for _, pod := range r.slots {
			if pod == nil {
				continue
			}
			for _, a := range pod.pod.Addresses {
				if b.CIDR.Contains(a) {
					holes = append(holes, AddrRange{First: a, Last: a})
				}
			}
		}
	}
	return subtract(prefixRange(b.CIDR), mergeAddrs(holes))
}
