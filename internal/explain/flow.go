package explain

import (
	"fmt"
	"net/netip"
	"slices"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// flow explains one flow; of protocol 0 all that the ends' policies tell apart.
func (in Input) flow(f policy.Flow) Flow {
	e := Flow{From: in.nameOf(f.From), To: in.nameOf(f.To), Port: f.PortText(), Reasoning: policy.Explain(in.Snapshot, in.Options, f)}
	e.FromIP, e.ToIP = ipText(f.From.Addr), ipText(f.To.Addr)
	in.unlabelled(&e.Reasoning.Egress, f.From)
	in.unlabelled(&e.Reasoning.Ingress, f.To)
	e.Allowed, e.WouldDeny = e.Reasoning.Allowed, e.Reasoning.WouldDeny
	if e.Verdict = Denied; e.Allowed {
		e.Verdict = Allowed
	}
	if f.Protocol == 0 {
		in.ports(&e, f)
	}
	in.meet(&e, f)
	if e.Allowed = e.Verdict == Allowed; e.Verdict == Held {
		e.WouldDeny, e.Passes, e.Would, e.Stays = false, nil, nil, nil
	}
	return e
}

const unlabelledReason = "its labels are not known yet"

// unlabelled says of an end that waits for its labels that nobody can tell which
// policies are about it.
func (in Input) unlabelled(s *policy.SideReasoning, e policy.Endpoint) {
	if p := in.waitsAt(e.Addr); p != nil {
		s.Pod, s.Reason = p.Key.String(), unlabelledReason
	}
}

func ipText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// meet sends a first packet of the flow through the table, if it meets it, and says
// what else stands in its way.
func (in Input) meet(e *Flow, f policy.Flow) {
	in.outside(e, f)
	switch {
	case f.From.Gateway && f.To.Gateway:
		e.Notes = append(e.Notes, "the gateway's traffic to itself meets no rule")
		return
	case f.From.Pod != nil && f.To.Pod != nil && f.From.Pod.Key == f.To.Pod.Key, f.From.Addr.IsValid() && f.From.Addr == f.To.Addr:
		e.Notes = append(e.Notes, "the packet does not leave the pod, unless it goes through a service")
		return
	case !f.From.Addr.IsValid() || !f.To.Addr.IsValid():
		return
	case f.From.Gateway:
		e.Notes = append(e.Notes, "the gateway's own packets pass the hook output, where the table has no rules (S24)")
	case len(e.Warnings) == 0 && in.Table != nil:
		in.trace(e, f)
	}
	in.others(e, f)
}

// outside warns of ends that the table says nothing about (S34).
func (in Input) outside(e *Flow, f policy.Flow) {
	for _, end := range []policy.Endpoint{f.From, f.To} {
		if end.Pod == nil {
			continue
		}
		if why, found := in.Outside[end.Pod.Key]; found {
			e.Warnings = append(e.Warnings, fmt.Sprintf("not enforced: the traffic of %s does not pass the table: %s", end.Pod.Key, why))
		}
	}
}

// broadcast is the limited broadcast address (RFC 919).
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// onTheLink says that an address leads to the sender's own link and not further: a
// gateway forwards such packets between the ports of a bridge alone. IPv4's
// link-local addresses are routed by the kernel like others.
func onTheLink(a netip.Addr) bool {
	return a.IsMulticast() || a == broadcast || linkScoped(a)
}

// linkScoped says that an address is one that a pod sends to from its link-local
// address (RFC 6724 section 5, rule 2).
func linkScoped(a netip.Addr) bool {
	return a.Is6() && (a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast())
}

// someLinkLocal stands for a pod's link-local address: no source tells which it is.
var someLinkLocal = netip.MustParseAddr("fe80::")

// packet is the first of a flow. Of a flow of any traffic it is one of TCP.
func (in Input) packet(f policy.Flow) ruleset.Packet {
	p := ruleset.Packet{
		Hook: "forward", InInterface: in.interfaceOf(f.From.Addr), OutInterface: in.interfaceOf(f.To.Addr),
		Source: f.From.Addr, Destination: f.To.Addr, Protocol: f.Protocol, SourcePort: 50000, DestPort: f.Port, HopLimit: 63,
	}
	switch {
	case p.Protocol == 0:
		p.Protocol = inventory.TCP
	case !p.Protocol.HasPorts():
		p.SourcePort, p.DestPort, p.ICMPv6Type = 0, 0, 128 // echo request
	}
	switch {
	case onTheLink(f.To.Addr) && in.carriesPods(p.InInterface):
		if p.OutInterface = p.InInterface; linkScoped(f.To.Addr) {
			p.Source = someLinkLocal
		}
	case linkScoped(f.From.Addr) && in.carriesPods(p.OutInterface):
		p.InInterface = p.OutInterface
	}
	if f.To.Gateway {
		p.Hook, p.OutInterface = "input", ""
	}
	return p
}

// interfaceOf is where an address is known to be, or "".
func (in Input) interfaceOf(a netip.Addr) string {
	i := slices.IndexFunc(in.Interfaces.Sources, func(s ruleset.Source) bool { return s.Address == a })
	if i < 0 {
		return ""
	}
	return in.Interfaces.Sources[i].Interface
}

func (in Input) carriesPods(name string) bool { return slices.Contains(in.Interfaces.Pods, name) }

// trace sends the flow's first packet through the table, and holds the table's
// verdict against the policies'.
func (in Input) trace(e *Flow, f policy.Flow) {
	p := in.packet(f)
	out := in.Table.Trace(p)
	t := &Trace{Hook: p.Hook, Verdict: string(out.Verdict)}
	held := false
	for _, s := range out.Steps {
		t.Rules = append(t.Rules, Rule{Chain: s.Chain, Text: s.Rule.Text()})
		for _, x := range s.Rule.Exprs {
			if c, ok := x.(ruleset.Count); ok {
				n, known := in.Counters[c.Counter]
				t.Counters = append(t.Counters, Counter{Name: c.Counter, Known: known, Packets: n.Packets, Bytes: n.Bytes})
				held = held || c.Counter == ruleset.HoldCounter
			}
		}
	}
	passes := out.Verdict == ruleset.Accept
	switch {
	case held:
		e.Verdict = Held
		e.Warnings = append(e.Warnings, in.whyHeld(f))
		if onTheLink(f.To.Addr) && !linkScoped(f.To.Addr) {
			e.Notes = append(e.Notes, fmt.Sprintf("programs of the gateway that listen to %s hear what goes to the gateway: ask about that", f.To.Addr))
		}
	case f.Protocol == 0:
		return // which packet it was says nothing of the others
	case passes != e.Reasoning.Allowed:
		e.Warnings = append(e.Warnings, fmt.Sprintf("THE TABLE DISAGREES: its rules below %s what the policies %s. Either a change is on its way into the table: ask again; or this is a bug: please report it with this text",
			map[bool]string{true: "accept", false: "drop"}[passes], map[bool]string{true: "allow", false: "deny"}[e.Reasoning.Allowed]))
	}
	e.Table = t
}

// whyHeld says which end is held (S11).
func (in Input) whyHeld(f policy.Flow) string {
	for _, end := range []policy.Endpoint{f.From, f.To} {
		if p := in.waitsAt(end.Addr); p != nil {
			return fmt.Sprintf("held: %s (%s) waits for its labels: its CNI result is there, but no source that is configured has told them", p.Key, end.Addr)
		}
		if end.Pod != nil || end.Gateway {
			continue
		}
		if slices.ContainsFunc(in.Interfaces.Ranges, func(r policy.AddrRange) bool {
			return r.First.Compare(end.Addr) <= 0 && end.Addr.Compare(r.Last) <= 0
		}) {
			return fmt.Sprintf("held: %s is in the pods' ranges and no known pod's, and nothing to or from it passes until a source tells whose it is", end.Addr)
		}
	}
	switch {
	case linkScoped(f.To.Addr) && !linkScoped(f.From.Addr):
		return fmt.Sprintf("held: to %s a pod sends from its link-local address, not from %s, and from that nothing passes but neighbour discovery (S7, S22)", f.To.Addr, f.From.Addr)
	case linkScoped(f.From.Addr):
		return fmt.Sprintf("held: %s is a link's address, from which nothing passes from or to a pod but neighbour discovery (S7, S22)", f.From.Addr)
	case onTheLink(f.To.Addr):
		return fmt.Sprintf("held: %s is no pod's: it leads to all neighbours, and from a pod nothing passes to them but neighbour discovery (S11, S22)", f.To.Addr)
	}
	return "held: an address is not known to be where the packet comes from or goes to, see the rules below"
}

// others names base chains of other programs that drop what they do not accept, and
// warns where they may give the packet another destination before it is judged (S27).
func (in Input) others(e *Flow, f policy.Flow) {
	hooks := []string{"ingress", "prerouting", "forward", "postrouting"}
	family := "ip6"
	switch {
	case f.From.Gateway:
		hooks = []string{"output", "postrouting"}
	case f.To.Gateway:
		hooks = []string{"ingress", "prerouting", "input"}
	}
	if f.From.Addr.Is4() {
		family = "ip"
	}
	translates := false
	for _, c := range in.Others {
		translates = translates || c.Type == "nat" && c.Hook == "prerouting" && (c.Family == family || c.Family == "inet")
		if c.Drop && slices.Contains(hooks, c.Hook) && (c.Family == family || c.Family != "ip" && c.Family != "ip6") {
			e.Notes = append(e.Notes, fmt.Sprintf("table %s %s has chain %s (hook %s, priority %d) with policy drop: what none of its rules accepts it drops; its rules are not looked at here",
				c.Family, c.Table, c.Name, c.Hook, c.Priority))
		}
	}
	if translates && f.To.Pod == nil && !f.From.Gateway && e.Verdict != Held {
		e.Warnings = append(e.Warnings, fmt.Sprintf("if %s is a hostPort or service address, policies see the address behind it: ask about that", f.To.Addr))
	}
}
