package ruleset

import (
	"net/netip"
	"slices"

	"edgepolicy.io/edgepolicyd/internal/policy"
)

// Interfaces is what is known of the gateway's interfaces. The zero value says
// that nothing is: then a pod is who its address says, and addresses that are no
// pod's are not ours.
type Interfaces struct {
	// Pods are the interfaces that carry pods and nothing else, sorted: a routed
	// pod's own, or a bridge. What comes from there must be one of Sources.
	Pods    []string
	Sources []Source
	// Hold: addresses in Ranges that are no known pod's neither send nor receive
	// through the gateway (S11), whatever the interface, but for Others; and so do
	// all that come from Pods.
	Hold   bool
	Ranges []policy.AddrRange // sorted, disjoint
	Others []string           // interfaces that carry no pods, sorted: the LAN's, and those with a default route
	// Ports are ports of bridges that carry pods, sorted. Tagged frames from there
	// are dropped, as they would pass by the inet hooks. Checked are those that must
	// send to other ports as PortSources only, and Known those that must always, as
	// their pods are known.
	Ports       []string
	Checked     []string
	Known       []string
	PortSources []Source
}

// Source is an address that an interface may send from.
type Source struct {
	Interface string
	Address   netip.Addr
}

// Names of sets and chains that depend on interfaces.
const (
	setPodInterfaces = "pod_ifs"
	setOthers        = "others"
	chainForeign     = "foreign"
	chainHold        = "hold"
	counterHold      = "hold"
)

// HeldSets name the sets in which the kernel notes addresses that are held, and
// HoldCounter counts their packets.
var HeldSets = [2]string{"held_v4", "held_v6"}

// HoldCounter is the name of the counter of held packets.
const HoldCounter = counterHold

// heldFor is how long the kernel remembers a held address after its last packet,
// in seconds.
const heldFor = 30

// ifname is an interface's name as a set's key has it: IFNAMSIZ bytes.
func ifname(name string) string {
	var b [16]byte
	copy(b[:15], name)
	return string(b[:])
}

func nameSet(name string, list []string) *Set {
	s := &Set{Name: name, Key: []Type{TypeInterface}}
	for _, n := range list {
		s.Elements = append(s.Elements, Element{Key: ifname(n)})
	}
	return sized(s)
}

// sourceSets are the addresses that each interface may send from, by family.
func sourceSets(list []Source) []*Set {
	var sets []*Set
	for _, f := range families {
		s := &Set{Name: "src_" + f.suffix, Key: []Type{TypeInterface, f.addrType}}
		for _, src := range list {
			if src.Address.Is4() == (f.addrType == TypeIPv4) {
				s.Elements = append(s.Elements, Element{Key: ifname(src.Interface) + string(src.Address.AsSlice())})
			}
		}
		sets = append(sets, sized(s))
	}
	return sets
}

// sized sorts a set's elements and declares its size.
func sized(s *Set) *Set {
	slices.SortFunc(s.Elements, Element.Compare)
	s.Elements = slices.Compact(s.Elements)
	s.Size = max(512, sizeFor(len(s.Elements)))
	return s
}

// rangeSet makes an interval set of disjoint ranges.
func rangeSet(name string, f family, ranges []policy.AddrRange) *Set {
	s := &Set{Name: name, Key: []Type{f.addrType}, Interval: true}
	for _, r := range ranges {
		if r.First.Is4() == (f.addrType == TypeIPv4) {
			s.Elements = append(s.Elements, Element{Key: string(r.First.AsSlice()), Last: string(r.Last.AsSlice())})
		}
	}
	slices.SortFunc(s.Elements, Element.Compare)
	return s
}

// linkLocalSets are the addresses that belong to a link, not to a pod: nothing to
// them or, in IPv6, from them passes between pods but what S22 says.
func linkLocalSets() []*Set {
	var sets []*Set
	for i, list := range [2][]string{
		{"169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"},
		{"::/128", "fe80::/10", "ff00::/8"},
	} {
		var prefixes []netip.Prefix
		for _, text := range list {
			prefixes = append(prefixes, netip.MustParsePrefix(text))
		}
		sets = append(sets, rangeSet("local_"+families[i].suffix, families[i], policy.Ranges(prefixes, nil)))
	}
	return sets
}

// addSets adds the sets that the rules below look up.
func (i *Interfaces) addSets(t *Table) {
	var sets []*Set
	if i.known() {
		sets = append(sourceSets(i.Sources), nameSet(setPodInterfaces, i.Pods))
		if i.Hold {
			sets = append(sets, nameSet(setOthers, i.Others))
		} else {
			sets = append(sets, linkLocalSets()...)
		}
	}
	if i.holdsRanges() {
		for n, f := range families {
			sets = append(sets, rangeSet("ranges_"+f.suffix, f, i.Ranges), &Set{Name: HeldSets[n], Key: []Type{f.addrType}, Size: 1024, Timeout: heldFor})
		}
	}
	for _, s := range sets {
		t.Sets[s.Name] = s
	}
}

func (i *Interfaces) holdsRanges() bool { return i.Hold && len(i.Ranges) > 0 }

// known says that there are rules that depend on interfaces.
func (i *Interfaces) known() bool { return len(i.Pods) > 0 || i.holdsRanges() }

// fromPods looks at what is not known to come from where it does. It stands before
// the epoch: a forged packet of an established flow is no part of it.
func (i *Interfaces) fromPods() []Rule {
	if !i.known() {
		return nil
	}
	var rules []Rule
	for _, f := range families {
		rules = append(rules, rule(Lookup{Key: key(InInterface, f.source), Set: "src_" + f.suffix, Not: true}, Verdict{Kind: Jump, Chain: chainForeign}).
			commented("not from where the pod is"))
	}
	return rules
}

// foreignChain is for packets whose source is not known to be where they come from.
// With hold, an address of a pod, or of the pod ranges, is nobody else's, and nothing
// else comes from pods' interfaces: also an interface that nobody has heard of can't
// forge a pod. Without, only where pods are known.
//
// An address that is in the ranges is held without asking whether it is a pod's, so
// that no packet sees that change half way.
func (i *Interfaces) foreignChain() *Chain {
	c := &Chain{Name: chainForeign}
	from, hold := Lookup{Key: key(InInterface), Set: setPodInterfaces}, gotoChain(chainHold)
	if i.Hold {
		c.Rules = append(c.Rules, rule(Lookup{Key: key(InInterface), Set: setOthers}, Verdict{Kind: Return}).commented("carries no pods"))
		if len(i.Pods) > 0 {
			c.Rules = append(c.Rules, rule(from, hold).commented("not the sending pod's address"))
		}
	}
	for _, f := range families {
		pods := Lookup{Key: key(f.source), Set: "pods_" + f.suffix}
		if !i.Hold {
			c.Rules = append(c.Rules, rule(from, pods, hold).commented("another pod's address"),
				rule(from, Lookup{Key: key(f.source), Set: "local_" + f.suffix}, hold).commented("a link's address"))
			continue
		}
		if i.holdsRanges() {
			c.Rules = append(c.Rules, rule(Lookup{Key: key(f.source), Set: "ranges_" + f.suffix}, hold).commented("not known yet, or another pod's"))
		}
		c.Rules = append(c.Rules, rule(pods, hold).commented("another pod's address"))
	}
	return c
}

// toPods holds what goes to a pod's interface and to no pod.
func (i *Interfaces) toPods() []Rule {
	if len(i.Pods) == 0 {
		return nil
	}
	var rules []Rule
	to := Lookup{Key: key(OutInterface), Set: setPodInterfaces}
	for _, f := range families {
		nobody := Lookup{Key: key(f.destination), Set: "pods_" + f.suffix, Not: true}
		if !i.Hold {
			nobody = Lookup{Key: key(f.destination), Set: "local_" + f.suffix}
		}
		rules = append(rules, rule(to, nobody, gotoChain(chainHold)).commented("no pod's address"))
	}
	return rules
}

// unknown holds what goes to addresses of the pod ranges that are no pod's.
func (i *Interfaces) unknown() []Rule {
	if !i.holdsRanges() {
		return nil
	}
	var rules []Rule
	for _, f := range families {
		rules = append(rules, rule(Lookup{Key: key(f.destination), Set: "ranges_" + f.suffix},
			Lookup{Key: key(f.destination), Set: "pods_" + f.suffix, Not: true},
			Lookup{Key: key(OutInterface), Set: setOthers, Not: true}, gotoChain(chainHold)).commented("not known yet"))
	}
	return rules
}

// holdChain lets IPv6 neighbours find each other, notes whom it holds, and drops.
func (i *Interfaces) holdChain() *Chain {
	c := &Chain{Name: chainHold, Rules: neighbourDiscovery()}
	if i.holdsRanges() {
		for n, f := range families {
			for _, field := range []Field{f.source, f.destination} {
				c.Rules = append(c.Rules, rule(Lookup{Key: key(field), Set: "ranges_" + f.suffix},
					Lookup{Key: key(field), Set: "pods_" + f.suffix, Not: true}, Note{field, HeldSets[n]}))
			}
		}
	}
	c.Rules = append(c.Rules, rule(Count{counterHold}, Verdict{Kind: Drop}).commented("held"))
	return c
}

// The hooks of the bridge family's table. Both see frames before br_netfilter, which
// sits at 0 in the one and at -1 in the other, shows them to the inet hooks.
var (
	// prerouting sees all frames, also those for the gateway and beyond.
	bridgePreroutingHook = &Hook{Name: "prerouting", Priority: -300}
	// forward sees frames between ports; -200 is where the family's filters sit.
	bridgeForwardHook = &Hook{Name: "forward", Priority: -200}
)

const (
	chainPrerouting = "prerouting"
	setPorts        = "ports"
	setChecked      = "checked"
	setKnown        = "known"
)

// CompileBridge makes the table of the bridge family: who may send as whom, by
// port, which the inet hooks can't see. It is nil where there is nothing for it to
// do.
//
// A port that nobody knows yet may answer the gateway, as its probes are always
// allowed (S24); what else it sends to the gateway or through it meets the inet
// table, and what it sends to other ports goes no further than here, from a bridge's
// first frame on.
func (i *Interfaces) CompileBridge(name string) *Table {
	if len(i.Ports)+len(i.Checked) == 0 && !i.holdsRanges() {
		return nil
	}
	t := &Table{Family: FamilyBridge, Name: name, Counters: map[string]bool{counterHold: true}, Sets: map[string]*Set{}, Chains: map[string]*Chain{}}
	all := &Chain{Name: chainPrerouting, Hook: bridgePreroutingHook}
	between := &Chain{Name: chainForward, Hook: bridgeForwardHook, Rules: neighbourDiscovery()}
	hold, drop := gotoChain(chainHold), Verdict{Kind: Drop}
	from := func(set string) Lookup { return Lookup{Key: key(InInterface), Set: set} }
	for _, tag := range []string{"8021q", "8021ad"} {
		all.Rules = append(all.Rules, rule(from(setPorts), Match{EtherType, tag}, drop).commented("a VLAN tag leads past the filter"))
	}
	var known []Rule
	for _, f := range families {
		forged := Lookup{Key: key(InInterface, f.source), Set: "src_" + f.suffix, Not: true}
		owned := Lookup{Key: key(f.source), Set: "owned_" + f.suffix}
		anybody := from(setChecked)
		if i.Hold {
			anybody = Lookup{Key: key(InInterface), Set: setOthers, Not: true}
		}
		all.Rules = append(all.Rules, rule(owned, anybody, forged, hold).commented("another pod's address"))
		known = append(known, rule(from(setKnown), forged, hold).commented("not the sending pod's address"))
		if i.holdsRanges() {
			between.Rules = append(between.Rules, rule(Lookup{Key: key(f.source), Set: "ranges_" + f.suffix}, anybody, forged, hold).commented("not known yet"))
		}
		between.Rules = append(between.Rules, rule(from(setChecked), forged, hold).commented("not the sending pod's address"))
		t.Sets["owned_"+f.suffix] = ownedSet(f, i.PortSources)
	}
	all.Rules = append(append(all.Rules, neighbourDiscovery()...), known...)
	i.addBridgeSets(t)
	for _, c := range []*Chain{all, between, i.bridgeHold()} {
		t.Chains[c.Name] = c
	}
	return t
}

func (i *Interfaces) addBridgeSets(t *Table) {
	sets := append(sourceSets(i.PortSources), constantSets()[0], nameSet(setPorts, i.Ports), nameSet(setChecked, i.Checked), nameSet(setKnown, i.Known))
	if i.Hold {
		sets = append(sets, nameSet(setOthers, i.Others))
	}
	if i.holdsRanges() {
		for n, f := range families {
			sets = append(sets, rangeSet("ranges_"+f.suffix, f, i.Ranges), &Set{Name: HeldSets[n], Key: []Type{f.addrType}, Size: 1024, Timeout: heldFor})
		}
	}
	for _, s := range sets {
		t.Sets[s.Name] = s
	}
}

// bridgeHold notes who is held, counts and drops.
func (i *Interfaces) bridgeHold() *Chain {
	c := &Chain{Name: chainHold}
	if i.holdsRanges() {
		for n, f := range families {
			c.Rules = append(c.Rules, rule(Lookup{Key: key(f.source), Set: "ranges_" + f.suffix},
				Lookup{Key: key(f.source), Set: "owned_" + f.suffix, Not: true}, Note{f.source, HeldSets[n]}))
		}
	}
	c.Rules = append(c.Rules, rule(Count{counterHold}, Verdict{Kind: Drop}).commented("held"))
	return c
}

// ownedSet holds the addresses of one family that are some port's.
func ownedSet(f family, list []Source) *Set {
	s := &Set{Name: "owned_" + f.suffix, Key: []Type{f.addrType}}
	for _, src := range list {
		if src.Address.Is4() == (f.addrType == TypeIPv4) {
			s.Elements = append(s.Elements, Element{Key: string(src.Address.AsSlice())})
		}
	}
	return sized(s)
}
