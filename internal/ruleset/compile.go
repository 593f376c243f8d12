package ruleset

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// Compiler makes the desired table. It remembers what it made of each pod and
// each Side and makes again only what changed.
type Compiler struct {
	// Interfaces is what the table says about interfaces; it may be changed between
	// calls of Compile.
	Interfaces Interfaces

	name  string
	opts  *inventory.Options
	pods  map[inventory.Key]*compiledPod
	sides map[*policy.Side]*compiledSide
}

// NewCompiler makes a compiler of the table of the given name.
func NewCompiler(table string, o *inventory.Options) *Compiler {
	return &Compiler{name: table, opts: o}
}

type compiledPod struct {
	isolation policy.Isolation
	chains    []*Chain
	counters  []string
}

// compiledSide is a Side's sets, and the rules that allow by them in the
// direction of the flow and in that of its replies.
type compiledSide struct {
	sets           []*Set
	forward, reply []Rule
}

// Compile makes the table. The mark's epoch is written into it as given.
func (c *Compiler) Compile(list []policy.Isolation, m Mark) *Table {
	t := &Table{Name: c.name, Mark: m, Counters: map[string]bool{formatCounter(): true}, Sets: map[string]*Set{}, Chains: map[string]*Chain{}}
	pods := make(map[inventory.Key]*compiledPod, len(list))
	sides := make(map[*policy.Side]*compiledSide, len(c.sides))
	for _, iso := range list {
		pod := c.pods[iso.Pod.Key]
		if pod == nil || pod.isolation.Sides != iso.Sides || !slices.Equal(pod.isolation.Pod.Addresses, iso.Pod.Addresses) {
			pod = c.compilePod(iso, sides)
		}
		pods[iso.Pod.Key] = pod
		for _, side := range iso.Sides {
			if side != nil {
				c.sideOf(side, sides).addTo(t)
			}
		}
		for _, ch := range pod.chains {
			t.Chains[ch.Name] = ch
		}
		for _, n := range pod.counters {
			t.Counters[n] = true
		}
	}
	c.pods, c.sides = pods, sides
	c.addMaps(t, list)
	c.addBase(t)
	return t
}

// sideOf gives a compiled Side, from this run, the last one, or anew.
func (c *Compiler) sideOf(side *policy.Side, sides map[*policy.Side]*compiledSide) *compiledSide {
	cs := sides[side]
	if cs == nil {
		if cs = c.sides[side]; cs == nil {
			cs = compileSide(side)
		}
		sides[side] = cs
	}
	return cs
}

func (cs *compiledSide) addTo(t *Table) {
	for _, s := range cs.sets {
		t.Sets[s.Name] = s
	}
}

// addMaps fills the sets of pods' addresses and the verdict maps that lead from
// an address to its pod's chains.
func (c *Compiler) addMaps(t *Table, list []policy.Isolation) {
	for _, f := range families {
		pods := &Set{Name: "pods_" + f.suffix, Key: []Type{f.addrType}}
		maps := map[string]*Set{}
		for _, name := range []string{"eg", "egr", "in", "inr"} {
			maps[name] = &Set{Name: name + "_" + f.suffix, Key: []Type{f.addrType}, Verdicts: true}
		}
		for _, iso := range list {
			for _, a := range iso.Pod.Addresses {
				if a.Is4() != (f.addrType == TypeIPv4) {
					continue
				}
				k := string(a.AsSlice())
				pods.Elements = append(pods.Elements, Element{Key: k})
				for _, d := range inventory.Directions {
					if iso.Sides[d] == nil {
						continue
					}
					for _, prefix := range sidePrefixes[d] {
						maps[prefix].Elements = append(maps[prefix].Elements, Element{Key: k, Jump: chainName(prefix, iso.Pod.Key)})
					}
				}
			}
		}
		for _, s := range append([]*Set{pods}, maps["eg"], maps["egr"], maps["in"], maps["inr"]) {
			slices.SortFunc(s.Elements, Element.Compare)
			s.Size = max(512, sizeFor(len(s.Elements)))
			t.Sets[s.Name] = s
		}
	}
}

// sidePrefixes name a pod's chains: for the direction of the flow and for its
// replies.
var sidePrefixes = [2][2]string{inventory.Ingress: {"in", "inr"}, inventory.Egress: {"eg", "egr"}}

// sizeFor gives the size to declare for n elements: room for twice as many.
func sizeFor(n int) uint32 {
	return max(16, uint32(1)<<bits.Len(uint(2*n)))
}

func (c *Compiler) addBase(t *Table) {
	for _, s := range constantSets() {
		t.Sets[s.Name] = s
	}
	gatewayPorts := ""
	if len(c.opts.GatewayPorts) > 0 {
		var list []policy.PortRange
		for _, p := range c.opts.GatewayPorts {
			list = append(list, policy.PortRange{Protocol: p.Protocol, First: p.First, Last: p.Last})
		}
		s := portSet(list)
		t.Sets[s.Name] = s
		gatewayPorts = s.Name
	}
	chains := []*Chain{forwardChain(t.Mark, &c.Interfaces), inputChain(c.opts, gatewayPorts, &c.Interfaces)}
	if c.Interfaces.known() {
		c.Interfaces.addSets(t)
		t.Counters[counterHold] = true
		chains = append(chains, c.Interfaces.holdChain(), c.Interfaces.foreignChain())
	}
	for _, f := range families {
		chains = append(chains, judgeChains(f, t.Mark)...)
	}
	for _, ch := range chains {
		t.Chains[ch.Name] = ch
	}
}

// CounterName is the name of the counter of what a pod's policies deny in a
// direction, or would deny if they are only audited.
func CounterName(d inventory.Direction, pod inventory.Key, audited bool) string {
	prefix := sidePrefixes[d][0]
	if audited {
		prefix = "would-" + prefix
	}
	return chainName(prefix, pod)
}

// maxPrefix is the longest prefix of a Log (NF_LOG_PREFIXLEN less the terminating
// zero).
const maxPrefix = 127

// LogPrefix is what packets are shown with that a counter counts: its name, cut and
// made unique where it is too long, and the ID of the Side: who reads of a packet a
// moment later must name the policies that denied it, not those of that moment.
func LogPrefix(counter, side string) string {
	side = " " + side
	if len(counter)+len(side) > maxPrefix {
		sum := sha256.Sum256([]byte(counter))
		counter = counter[:maxPrefix-17-len(side)] + "-" + hex.EncodeToString(sum[:8])
	}
	return counter + side
}

// chainName names a pod's chain or counter: "in-namespace/name", cut and made
// unique by a hash where the kernel's limit on names asks for it.
func chainName(prefix string, pod inventory.Key) string {
	name := prefix + "-" + pod.String()
	if len("deny-")+len(name) > maxName {
		sum := sha256.Sum256([]byte(pod.String()))
		name = name[:maxName-len("deny-")-17] + "-" + hex.EncodeToString(sum[:8])
	}
	return name
}

func (c *Compiler) compilePod(iso policy.Isolation, sides map[*policy.Side]*compiledSide) *compiledPod {
	p := &compiledPod{isolation: iso}
	for _, d := range inventory.Directions {
		side := iso.Sides[d]
		if side == nil {
			continue
		}
		cs := c.sideOf(side, sides)
		counter := CounterName(d, iso.Pod.Key, side.Audit)
		deny := "deny-" + counter
		if side.Audit {
			deny = counter
		}
		p.counters = append(p.counters, counter)
		p.chains = append(p.chains, c.denyChain(deny, counter, side))
		for i, allow := range [2][]Rule{cs.forward, cs.reply} {
			// The peer is the source of an ingress flow and the destination of an
			// egress one; in replies it is the other way round.
			peerIsSource := (d == inventory.Ingress) != (i == 1)
			rules := append(slices.Clone(allow), selfRules(iso.Pod, peerIsSource)...)
			rules = append(rules, rule(gotoChain(deny)))
			p.chains = append(p.chains, &Chain{Name: chainName(sidePrefixes[d][i], iso.Pod.Key), Rules: rules})
		}
	}
	return p
}

// selfRules let a pod reach itself through a service (S23). Without DNAT its own
// address as the other end is a forgery.
func selfRules(pod *inventory.Pod, peerIsSource bool) []Rule {
	var rules []Rule
	for _, a := range pod.Addresses {
		f := families[0]
		if !a.Is4() {
			f = families[1]
		}
		field := f.destination
		if peerIsSource {
			field = f.source
		}
		rules = append(rules, rule(DNATed, Match{field, a.String()}, Verdict{Kind: Return}).commented("itself, through a service"))
	}
	return rules
}

// denyChain shows, counts and drops; the flow loses its stamp, so that nothing
// counts it as allowed any more. Of a side that is only audited it shows and counts,
// and lets the packet go on to the other end's judgement.
func (c *Compiler) denyChain(name, counter string, side *policy.Side) *Chain {
	ch := &Chain{Name: name}
	if !side.Audit {
		ch.Rules = append(ch.Rules, rule(SetMark{c.opts.MarkMask, 0}))
	}
	if c.opts.Log {
		ch.Rules = append(ch.Rules, rule(Valid, Limit{c.opts.LogRate}, Log{LogPrefix(counter, side.ID)}))
	}
	why := "not allowed by " + joinLimited(side.Policies)
	if side.Audit {
		ch.Rules = append(ch.Rules, rule(Count{counter}, Verdict{Kind: Return}).commented("would be "+why))
	} else if c.opts.Reject {
		ch.Rules = append(ch.Rules,
			rule(Match{L4Proto, "tcp"}, Count{counter}, Reject{Reset: true}).commented(why),
			rule(Count{counter}, Reject{}).commented(why))
	} else {
		ch.Rules = append(ch.Rules, rule(Count{counter}, Verdict{Kind: Drop}).commented(why))
	}
	return ch
}

// compileSide makes the sets of a Side and the rules that look them up.
func compileSide(side *policy.Side) *compiledSide {
	cs := &compiledSide{}
	prefix := sidePrefixes[side.Direction][0]
	if len(side.All) > 0 {
		cs.allow(side.All, nil, nil)
		return cs
	}
	if len(side.Any) > 0 {
		cs.allow(side.AnyOrigins, nil, cs.add(portSet(side.Any)))
	}
	for _, f := range families {
		if s := exactSet(prefix+f.digit+"-"+side.ID, f, side.Exact); len(s.Elements) > 0 {
			cs.exact(side.ExactFrom, f, side.Direction, cs.add(s))
		}
	}
	for _, g := range side.Groups {
		var ports *Set
		suffix := ""
		if g.Ports != nil {
			ports = portSet(g.Ports)
			suffix = strings.TrimPrefix(ports.Name, "pt")
		}
		for _, f := range families {
			s := addressSet(prefix+f.digit+"b-"+side.ID+suffix, f, g.Addresses)
			if len(s.Elements) == 0 {
				continue
			}
			cs.add(s)
			if ports != nil {
				cs.add(ports)
			}
			cs.group(g.Origins, f, side.Direction, s, ports)
		}
	}
	return cs
}

func (cs *compiledSide) add(s *Set) *Set {
	if !slices.ContainsFunc(cs.sets, func(o *Set) bool { return o.Name == s.Name }) {
		cs.sets = append(cs.sets, s)
	}
	return s
}

// allow adds a rule for any address: with ports, or for everything.
func (cs *compiledSide) allow(origins []policy.Origin, exprs []Expr, ports *Set) {
	for i, list := range []*[]Rule{&cs.forward, &cs.reply} {
		e := slices.Clone(exprs)
		if ports != nil {
			e = append(e, Lookup{Key: key(L4Proto, portField(i)), Set: ports.Name})
		}
		*list = append(*list, Rule{Exprs: append(e, Verdict{Kind: Return}), Comment: joinLimited(origins)})
	}
}

// portField gives the field with the server's port: the destination of the flow
// (0), the source of its replies (1).
func portField(i int) Field {
	if i == 1 {
		return SourcePort
	}
	return DestPort
}

// peerField gives the field with the peer's address.
func peerField(f family, d inventory.Direction, i int) Field {
	if (d == inventory.Ingress) != (i == 1) {
		return f.source
	}
	return f.destination
}

func (cs *compiledSide) exact(origins []policy.Origin, f family, d inventory.Direction, s *Set) {
	for i, list := range []*[]Rule{&cs.forward, &cs.reply} {
		*list = append(*list, Rule{
			Exprs:   []Expr{Lookup{Key: key(peerField(f, d, i), L4Proto, portField(i)), Set: s.Name}, Verdict{Kind: Return}},
			Comment: joinLimited(origins),
		})
	}
}

func (cs *compiledSide) group(origins []policy.Origin, f family, d inventory.Direction, s, ports *Set) {
	for i, list := range []*[]Rule{&cs.forward, &cs.reply} {
		e := []Expr{Lookup{Key: key(peerField(f, d, i)), Set: s.Name}}
		if ports != nil {
			e = append(e, Lookup{Key: key(L4Proto, portField(i)), Set: ports.Name})
		}
		*list = append(*list, Rule{Exprs: append(e, Verdict{Kind: Return}), Comment: joinLimited(origins)})
	}
}

// joinLimited lists things for a comment, as many as fit.
func joinLimited[T fmt.Stringer](list []T) string {
	var b strings.Builder
	for i, o := range list {
		more := fmt.Sprintf(" and %d more", len(list)-i)
		text := o.String()
		if i > 0 {
			text = ", " + text
		}
		if b.Len()+len(text)+len(more) > maxComment-len("not allowed by ") {
			return strings.TrimSpace(b.String() + more)
		}
		b.WriteString(text)
	}
	return b.String()
}

// keyBuffer gathers the keys of many elements in one allocation.
type keyBuffer struct {
	b    []byte
	ends []int
}

func (k *keyBuffer) end() { k.ends = append(k.ends, len(k.b)) }

func (k *keyBuffer) elements() []Element {
	all := string(k.b)
	list := make([]Element, len(k.ends))
	start := 0
	for i, end := range k.ends {
		list[i].Key = all[start:end]
		start = end
	}
	return list
}

func exactSet(name string, f family, exact []policy.PeerPort) *Set {
	var k keyBuffer
	for _, e := range exact {
		if e.Addr.Is4() != (f.addrType == TypeIPv4) {
			continue
		}
		k.b = append(k.b, e.Addr.AsSlice()...)
		k.b = append(k.b, byte(e.Protocol), 0, 0, 0, byte(e.Port>>8), byte(e.Port), 0, 0)
		k.end()
	}
	return &Set{Name: name, Key: []Type{f.addrType, TypeProtocol, TypePort}, Size: sizeFor(len(k.ends)), Elements: k.elements()}
}

// addressSet makes a set of addresses: of ranges where there is one, else exact.
func addressSet(name string, f family, ranges []policy.AddrRange) *Set {
	s := &Set{Name: name, Key: []Type{f.addrType}}
	var first, last keyBuffer
	for _, r := range ranges {
		if r.First.Is4() != (f.addrType == TypeIPv4) {
			continue
		}
		s.Interval = s.Interval || r.First != r.Last
		first.b = append(first.b, r.First.AsSlice()...)
		first.end()
		last.b = append(last.b, r.Last.AsSlice()...)
		last.end()
	}
	s.Elements = first.elements()
	if !s.Interval {
		s.Name = strings.Replace(name, "b-", "a-", 1)
		s.Size = sizeFor(len(s.Elements))
		return s
	}
	for i, e := range last.elements() {
		s.Elements[i].Last = e.Key
	}
	return s
}

// portSet makes the set of protocols and ports. It is named by its content and
// never edited: the kernel's sets of concatenated ranges are slow to change.
func portSet(ports []policy.PortRange) *Set {
	s := &Set{Key: []Type{TypeProtocol, TypePort}}
	sum := sha256.Sum256([]byte(fmt.Sprint(ports)))
	s.Name = "pt-" + hex.EncodeToString(sum[:8])
	for _, p := range ports {
		s.Interval = s.Interval || p.First != p.Last
	}
	for _, p := range ports {
		e := Element{Key: string([]byte{byte(p.Protocol), 0, 0, 0, byte(p.First >> 8), byte(p.First), 0, 0})}
		if s.Interval {
			e.Last = string([]byte{byte(p.Protocol), 0, 0, 0, byte(p.Last >> 8), byte(p.Last), 0, 0})
		}
		s.Elements = append(s.Elements, e)
	}
	if !s.Interval {
		s.Size = sizeFor(len(ports))
	}
	slices.SortFunc(s.Elements, Element.Compare)
	return s
}

// PodChains names the chains of one pod's part of the table.
func PodChains(pod inventory.Key) []string {
	var list []string
	for _, d := range inventory.Directions {
		for _, prefix := range sidePrefixes[d] {
			list = append(list, chainName(prefix, pod))
		}
	}
	return list
}
