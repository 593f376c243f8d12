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
	e := Flow{From: nameOf(f.From), To: nameOf(f.To), Port: f.PortText(), Reasoning: policy.Explain(in.Snapshot, in.Options, f)}
	e.FromIP, e.ToIP = ipText(f.From.Addr), ipText(f.To.Addr)
	e.Allowed, e.WouldDeny = e.Reasoning.Allowed, e.Reasoning.WouldDeny
	if e.Verdict = Denied; e.Allowed {
		e.Verdict = Allowed
	}
	if f.Protocol == 0 {
		in.ports(&e, f)
	}
	in.meet(&e, f)
	e.Allowed = e.Verdict == Allowed
	return e
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
	case f.From.Pod != nil && f.To.Pod != nil && f.From.Pod.Key == f.To.Pod.Key:
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
		e.Verdict, e.WouldDeny = Held, false
		e.Warnings = append(e.Warnings, in.whyHeld(f))
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
		if end.Pod != nil || end.Gateway {
			continue
		}
		if slices.ContainsFunc(in.Interfaces.Ranges, func(r policy.AddrRange) bool {
			return r.First.Compare(end.Addr) <= 0 && end.Addr.Compare(r.Last) <= 0
		}) {
			return fmt.Sprintf("held: %s is in the pods' ranges and no known pod's, and nothing to or from it passes until a source tells whose it is", end.Addr)
		}
	}
	return "held: an address is not known to be where the packet comes from or goes to, see the rules below"
}

// others names base chains of other programs that drop what they do not accept.
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
	for _, c := range in.Others {
		if c.Drop && slices.Contains(hooks, c.Hook) && (c.Family == family || c.Family != "ip" && c.Family != "ip6") {
			e.Notes = append(e.Notes, fmt.Sprintf("table %s %s has chain %s (hook %s, priority %d) with policy drop: what none of its rules accepts it drops; its rules are not looked at here",
				c.Family, c.Table, c.Name, c.Hook, c.Priority))
		}
	}
}
