package ruleset

import (
	"maps"
	"slices"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// The hooks and priorities, in one place, with the reason for each.
var (
	// forward sees traffic between pods, and between pods and the outside, after
	// DNAT and before SNAT in both directions (S27). Priority 0 (filter) is where
	// firewalls sit: conntrack (-200) and DNAT (-100) are done.
	forwardHook = &Hook{Name: "forward", Priority: 0}
	// input sees what is for the gateway itself (S25). There is no output chain:
	// what the gateway's own processes send is always allowed (S24).
	inputHook = &Hook{Name: "input", Priority: 0}
)

// Names of the chains and maps that every table has.
const (
	chainForward = "forward"
	chainInput   = "input"
	setND        = "nd"
	setRA        = "ra"
)

// family is what differs between IPv4 and IPv6.
type family struct {
	name        string // of nfproto
	suffix      string // of sets: "v4"
	digit       string // of chains: "4"
	source      Field
	destination Field
	addrType    Type
	icmp        string
}

var families = [2]family{
	{"ipv4", "v4", "4", IPSource, IPDestination, TypeIPv4, "icmp"},
	{"ipv6", "v6", "6", IP6Source, IP6Destination, TypeIPv6, "ipv6-icmp"},
}

func key(f ...Field) (k Fields) {
	copy(k[:], f)
	return k
}

func rule(exprs ...Expr) Rule { return Rule{Exprs: exprs} }

func accept() Expr            { return Verdict{Kind: Accept} }
func gotoChain(n string) Expr { return Verdict{Kind: Goto, Chain: n} }

// commented adds a comment.
func (r Rule) commented(c string) Rule {
	r.Comment = c
	return r
}

// neighbourDiscovery lets IPv6 work (S22): solicitations and advertisements only
// as sent on the link itself, with hop limit 255, and MLD with 1 to multicast.
// Accepted by type alone they would carry data to anywhere.
func neighbourDiscovery() []Rule {
	return []Rule{
		rule(Lookup{Key: key(ICMPv6Type), Set: setND}, Match{HopLimit, "255"}, accept()).commented("neighbour discovery"),
		rule(Lookup{Key: key(ICMPv6Type), Set: setND}, Match{HopLimit, "1"}, Match{IP6Destination, "ff00::/8"}, accept()).commented("multicast listener discovery"),
	}
}

// routerTypes drops what only a router may say, when a pod says it (S22).
func routerTypes() Rule {
	return rule(Lookup{Key: key(ICMPv6Type), Set: setRA}, Lookup{Key: key(IP6Source), Set: "pods_v6"}, Verdict{Kind: Drop}).
		commented("router advertisements and redirects never come from a pod")
}

// forwardChain is the first thing a packet meets. Flows that were judged under
// the rules in force carry the epoch and pass at once; what is no pod's passes; and
// what returns from its judge is allowed and gets the epoch.
//
// The epoch is in this chain alone. A base chain's rules are those of the moment
// at which the packet came, while a chain that it enters later can be newer than
// that, if the packet was held up for two changes: it must not stamp.
func forwardChain(m Mark, i *Interfaces) *Chain {
	c := &Chain{Name: chainForward, Hook: forwardHook}
	c.Rules = append(c.Rules, i.fromPods()...)
	c.Rules = append(c.Rules, rule(MarkIs{m.Mask, m.Epoch, false}, accept()).commented("judged under these rules"))
	c.Rules = append(c.Rules, i.toPods()...)
	c.Rules = append(c.Rules, i.unknown()...)
	for _, f := range families {
		pods := "pods_" + f.suffix
		c.Rules = append(c.Rules, rule(Lookup{Key: key(f.source), Set: pods, Not: true},
			Lookup{Key: key(f.destination), Set: pods, Not: true}, accept()).commented("not a pod's"))
	}
	for _, f := range families {
		c.Rules = append(c.Rules, rule(Match{NFProto, f.name}, Verdict{Kind: Jump, Chain: "judge" + f.digit}))
	}
	c.Rules = append(c.Rules,
		rule(Related, accept()).commented("an ICMP error must not stamp the flow it is about"),
		rule(SetMark{m.Mask, m.Epoch}, accept()).commented("allowed"))
	return c
}

// judgeChains send a packet of one family through the chains of both ends. What
// they let return is allowed.
func judgeChains(f family, m Mark) []*Chain {
	judge := &Chain{Name: "judge" + f.digit}
	if f.digit == "6" {
		judge.Rules = append(neighbourDiscovery(), routerTypes())
	}
	judge.Rules = append(judge.Rules,
		rule(Related, Match{L4Proto, f.icmp}, MarkIs{m.Mask, 0, true}, accept()).commented("ICMP errors of an allowed flow"),
		rule(Reply, gotoChain("judge"+f.digit+"r")),
		rule(VerdictMap{f.source, "eg_" + f.suffix}),
		rule(VerdictMap{f.destination, "in_" + f.suffix}))
	reply := &Chain{Name: "judge" + f.digit + "r", Rules: []Rule{
		rule(VerdictMap{f.destination, "egr_" + f.suffix}),
		rule(VerdictMap{f.source, "inr_" + f.suffix}),
	}}
	return []*Chain{judge, reply}
}

// inputChain judges what pods send to the gateway itself. Nothing is stamped
// here: each packet is judged.
func inputChain(o *inventory.Options, gatewayPorts string, i *Interfaces) *Chain {
	c := &Chain{Name: chainInput, Hook: inputHook}
	if !o.GatewayEgress && !i.known() {
		return c
	}
	c.Rules = append(c.Rules,
		rule(Match{InInterface, "lo"}, accept()),
		rule(Reply, accept()).commented("answers to the gateway"),
		rule(Related, Match{L4Proto, "icmp"}, accept()),
		rule(Related, Match{L4Proto, "ipv6-icmp"}, accept()))
	c.Rules = append(c.Rules, neighbourDiscovery()...)
	c.Rules = append(c.Rules, routerTypes())
	c.Rules = append(c.Rules, i.fromPods()...)
	if !o.GatewayEgress {
		return c
	}
	for _, f := range families {
		if gatewayPorts != "" {
			c.Rules = append(c.Rules, rule(Lookup{Key: key(f.source), Set: "pods_" + f.suffix},
				Lookup{Key: key(L4Proto, DestPort), Set: gatewayPorts}, accept()).commented("gateway.allowFromPods"))
		}
		c.Rules = append(c.Rules, rule(VerdictMap{f.source, "eg_" + f.suffix}))
	}
	return c
}

// icmpTypes makes a set of ICMPv6 types (RFC 4861, 2710, 3810).
func icmpTypes(name string, types ...byte) *Set {
	s := &Set{Name: name, Key: []Type{TypeICMPv6}, Size: 16}
	for _, t := range types {
		s.Elements = append(s.Elements, Element{Key: string([]byte{t, 0, 0, 0})})
	}
	return s
}

func constantSets() []*Set {
	return []*Set{
		icmpTypes(setND, 130, 131, 132, 133, 135, 136, 143),
		icmpTypes(setRA, 134, 137),
	}
}

// withMark gives the table with another epoch: only the chain that holds it is
// new.
func (t *Table) withMark(m Mark) *Table {
	n := *t
	n.Mark = m
	n.Chains = maps.Clone(t.Chains)
	old := t.Chains[chainForward]
	forward := &Chain{Name: old.Name, Hook: old.Hook, Rules: slices.Clone(old.Rules)}
	for i, r := range forward.Rules {
		for j, e := range r.Exprs {
			switch e.(type) {
			case MarkIs:
				forward.Rules[i].Exprs = slices.Clone(r.Exprs)
				forward.Rules[i].Exprs[j] = MarkIs{m.Mask, m.Epoch, false}
			case SetMark:
				forward.Rules[i].Exprs = slices.Clone(r.Exprs)
				forward.Rules[i].Exprs[j] = SetMark{m.Mask, m.Epoch}
			}
		}
	}
	n.Chains[chainForward] = forward
	return &n
}

// MarkInForce finds the mask and epoch that the forward chain lets pass at once.
func (t *Table) MarkInForce() Mark {
	c := t.Chains[chainForward]
	if c == nil {
		return Mark{}
	}
	for _, r := range c.Rules {
		if len(r.Exprs) > 0 {
			if m, ok := r.Exprs[0].(MarkIs); ok {
				return Mark{m.Mask, m.Value}
			}
		}
	}
	return Mark{}
}
