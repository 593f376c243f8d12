// Package policy gives NetworkPolicies their meaning: which flows they allow.
//
// What always holds: it reads a Snapshot and Options and changes neither; the
// same input gives the same answer; and it knows nothing of kernels. Evaluate
// and Matrix judge flows and share no code with what is compiled for the kernel,
// so that each can be held against the other.
package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// This file is the judge: it answers for one flow what the specification says,
// by walking through policies, rules, peers and ports in the order in which the
// specification speaks of them. It shares nothing with the compiler and
// remembers nothing between flows, because it is what the compiler and the
// kernel are held against. The S numbers are those of the specification.

// Endpoint is one end of a flow.
type Endpoint struct {
	// Addr is the address as the pod sees it: after DNAT at the destination,
	// before SNAT at the source (S27). It may be invalid for a pod that has no
	// address yet; such an end is judged by its labels and no ipBlock matches it.
	Addr netip.Addr
	// Pod is the pod that has the address; nil: not a pod.
	Pod *inventory.Pod
	// Gateway is, at the source, a process of the gateway itself (S24): traffic
	// that the gateway only forwards is not its own, whatever its source address.
	// At the destination it is one of the gateway's own addresses (S25).
	Gateway bool
}

// EndpointAt finds what has an address: the gateway, an enforceable pod, or
// neither. What the gateway has is never a pod's (S33).
func EndpointAt(s *inventory.Snapshot, a netip.Addr) Endpoint {
	a = a.Unmap().WithZone("")
	if slices.Contains(s.Gateway, a) {
		return Endpoint{Addr: a, Gateway: true}
	}
	return Endpoint{Addr: a, Pod: s.PodAt(a)}
}

// Flow is a new connection, or the first packet of an exchange without one
// (ICMP echo). Replies, errors and neighbour discovery, which pass without being
// asked about (S22, S28), are not flows.
type Flow struct {
	From, To Endpoint
	Protocol inventory.Protocol
	Port     uint16 // destination port; ignored for protocols without ports
}

// RuleRef names one rule of a policy.
type RuleRef struct {
	Policy    inventory.Key
	Direction inventory.Direction
	Index     int // in spec.ingress or spec.egress, from 0
}

// String gives "namespace/name egress rule 0".
func (r RuleRef) String() string {
	return fmt.Sprintf("%s %s rule %d", r.Policy, r.Direction, r.Index)
}

// Decision is what one side of a flow says.
type Decision struct {
	Isolated bool
	Allowed  bool
	Policies []inventory.Key // those that isolate the pod in this direction, sorted
	Rule     *RuleRef        // the first that allows, in the order of the policies; nil if none had to
	Reason   string          // why, as the rest of a sentence: "not isolated"
	// Audited are the policies that would isolate the pod in this direction if they
	// were enforced, sorted; none where a policy that is enforced isolates it.
	Audited   []inventory.Key
	WouldDeny bool // allowed, but by none of Audited
}

// Verdict is what both sides say together.
type Verdict struct {
	Allowed bool
	Egress  Decision // the source's
	Ingress Decision // the destination's
}

// WouldDeny says whether the flow passes only because policies are audited.
func (v Verdict) WouldDeny() bool {
	return v.Allowed && (v.Egress.WouldDeny || v.Ingress.WouldDeny)
}

// Evaluate says whether the snapshot's policies allow a flow, and why.
func Evaluate(s *inventory.Snapshot, o *inventory.Options, f Flow) Verdict {
	j := judge{s, o}
	f.From, f.To = j.end(f.From), j.end(f.To)
	v := Verdict{Egress: j.side(inventory.Egress, f), Ingress: j.side(inventory.Ingress, f)}
	v.Allowed = v.Egress.Allowed && v.Ingress.Allowed // S15
	return v
}

// judge is the snapshot and the options that a flow is judged by.
type judge struct {
	s *inventory.Snapshot
	o *inventory.Options
}

// end takes the pod from an endpoint that no policy and no selector reaches.
func (j judge) end(e Endpoint) Endpoint {
	e.Addr = e.Addr.Unmap().WithZone("")
	switch {
	case e.Pod == nil:
	case e.Gateway, e.Pod.HostNetwork: // S6, S24: a hostNetwork pod is the gateway
		e.Pod, e.Gateway = nil, true
	case !e.Pod.Selectable(), j.refused(e.Pod): // S6, S33
		e.Pod, e.Gateway = nil, slices.Contains(j.s.Gateway, e.Addr)
	}
	return e
}

// refused says whether a pod claims an address that is never a pod's (S33). Next
// hops of routes are among Options.NeverPods; whoever makes the options knows
// them.
func (j judge) refused(p *inventory.Pod) bool {
	return slices.ContainsFunc(p.Addresses, func(a netip.Addr) bool {
		return slices.Contains(j.s.Gateway, a) || a.IsLoopback() || a.IsMulticast() ||
			slices.ContainsFunc(j.o.NeverPods, func(n netip.Prefix) bool { return n.Contains(a) })
	})
}

// side is one pod's own decision: the source's for egress, the destination's for
// ingress.
func (j judge) side(d inventory.Direction, f Flow) Decision {
	own, peer := f.To, f.From
	if d == inventory.Egress {
		own, peer = f.From, f.To
	}
	if own.Pod == nil {
		return Decision{Allowed: true, Reason: "not a pod"}
	}
	if j.o.NeverIsolated(own.Pod.Key) { // S35
		return Decision{Allowed: true, Reason: "never isolated"}
	}
	enforced, audited := j.isolating(own.Pod, d)
	if len(enforced) == 0 { // S11
		return j.audit(audited, d, f, peer)
	}
	dec := Decision{Isolated: true, Policies: keysOf(enforced)}
	if dec.Reason = j.exempt(d, f); dec.Reason != "" {
		dec.Allowed = true
		return dec
	}
	if dec.Rule = j.allowing(enforced, d, f, peer); dec.Rule != nil {
		dec.Allowed = true
		dec.Reason = "allowed by " + dec.Rule.String()
		return dec
	}
	dec.Reason = "not allowed by " + joinKeys(dec.Policies)
	return dec
}

// audit is the decision for a pod that no policy isolates: all is allowed,
// whatever the audited ones say. What none of them allows they would deny.
func (j judge) audit(audited []*inventory.Policy, d inventory.Direction, f Flow, peer Endpoint) Decision {
	dec := Decision{Allowed: true, Reason: "not isolated", Audited: keysOf(audited)}
	if len(audited) == 0 || j.exempt(d, f) != "" || j.allowing(audited, d, f, peer) != nil {
		return dec
	}
	dec.WouldDeny = true
	are := "which is"
	if len(audited) > 1 {
		are = "which are"
	}
	dec.Reason = fmt.Sprintf("would be denied: not allowed by %s, %s only audited", joinKeys(dec.Audited), are)
	return dec
}

// isolating lists the policies that isolate a pod in a direction (S11), and those
// that would if they were enforced.
func (j judge) isolating(pod *inventory.Pod, d inventory.Direction) (enforced, audited []*inventory.Policy) {
	for _, p := range j.s.Policies {
		if !p.Isolates[d] || // S2: policyTypes, defaulted; rules of another direction do not count
			!p.Selects(pod) { // S3, S5
			continue
		}
		if j.o.Audits(p) {
			audited = append(audited, p)
		} else {
			enforced = append(enforced, p)
		}
	}
	return enforced, audited
}

// allowing gives the first rule of the policies that allows a flow (S12: a union;
// what one of them allows is allowed).
func (j judge) allowing(policies []*inventory.Policy, d inventory.Direction, f Flow, peer Endpoint) *RuleRef {
	for _, p := range policies {
		for i, r := range p.Rules[d] { // S14: no rules allow nothing
			if j.peersMatch(p, r, peer) && j.portsMatch(r, f) { // S13: of the same rule
				return &RuleRef{Policy: p.Key, Direction: d, Index: i}
			}
		}
	}
	return nil
}

// exempt says why no policy is asked about a flow, or nothing where policies are.
func (j judge) exempt(d inventory.Direction, f Flow) string {
	if f.From.Pod != nil && f.To.Pod != nil && f.From.Pod.Key == f.To.Pod.Key { // S23
		return "a pod cannot block itself"
	}
	if d == inventory.Ingress && f.From.Gateway { // S24
		return "gateway's own traffic"
	}
	if d == inventory.Egress && f.To.Gateway { // S25
		if !j.o.GatewayEgress {
			return "the gateway is open to pods"
		}
		for _, p := range j.o.GatewayPorts {
			if j.portMatches(p, f) {
				return "the gateway's port is open to pods"
			}
		}
	}
	return ""
}

// peersMatch says whether the other end is among a rule's peers. No peers are
// everyone (S14).
func (j judge) peersMatch(p *inventory.Policy, r inventory.Rule, e Endpoint) bool {
	if len(r.Peers) == 0 {
		return true
	}
	for _, peer := range r.Peers {
		if peer.Block != nil {
			if j.blockMatches(peer.Block, e) {
				return true
			}
		} else if j.selectorsMatch(p, peer, e) {
			return true
		}
	}
	return false
}

// selectorsMatch says whether a peer's selectors match the other end, which must
// be a pod: no selector reaches another address (S16).
func (j judge) selectorsMatch(p *inventory.Policy, peer inventory.Peer, e Endpoint) bool {
	if e.Pod == nil {
		return false
	}
	switch {
	case peer.Pods == nil && peer.Namespaces == nil:
		return false // the API has no such peer; it must not come to mean everyone
	case peer.Namespaces == nil: // S16: the policy's own namespace
		return e.Pod.Key.Namespace == p.Key.Namespace && peer.Pods.Matches(e.Pod.Labels)
	case peer.Pods == nil: // S16: all pods of those namespaces
		return peer.Namespaces.Matches(j.namespace(e.Pod))
	default: // S16: both
		return peer.Namespaces.Matches(j.namespace(e.Pod)) && peer.Pods.Matches(e.Pod.Labels)
	}
}

// namespace gives the labels of a pod's namespace (S4).
func (j judge) namespace(p *inventory.Pod) labels.Set {
	return j.s.NamespaceLabels(p.Key.Namespace)
}

// blockMatches says whether an ipBlock has the other end's address (S17).
// A prefix contains addresses of its own family only (S19).
func (j judge) blockMatches(b *inventory.IPBlock, e Endpoint) bool {
	if e.Pod != nil && !j.o.IPBlockMatchesPods { // S17
		return false
	}
	if !b.CIDR.Contains(e.Addr) {
		return false
	}
	for _, x := range b.Except { // S18: narrows this block, denies nothing
		if x.Contains(e.Addr) {
			return false
		}
	}
	return true
}

// portsMatch says whether the flow is among a rule's ports. No ports are
// everything (S14), which alone allows protocols without ports (S22).
func (j judge) portsMatch(r inventory.Rule, f Flow) bool {
	if len(r.Ports) == 0 {
		return true
	}
	for _, p := range r.Ports {
		if j.portMatches(p, f) {
			return true
		}
	}
	return false
}

// portMatches says whether a flow's destination is one entry of ports.
func (j judge) portMatches(p inventory.Port, f Flow) bool {
	if f.Protocol != p.Protocol { // S22: a port is TCP, UDP or SCTP, never ICMP
		return false
	}
	if p.Name == "" {
		return p.First <= f.Port && f.Port <= p.Last // S21
	}
	// S20: the destination's, which is the selected pod for ingress and the peer
	// for egress, whatever kind of peer named it.
	if f.To.Pod == nil {
		return false
	}
	for _, n := range f.To.Pod.Ports {
		if n.Name == p.Name && n.Protocol == p.Protocol && n.Port == f.Port {
			return true
		}
	}
	return false
}

// keysOf gives the policies' keys.
func keysOf(policies []*inventory.Policy) (keys []inventory.Key) {
	for _, p := range policies {
		keys = append(keys, p.Key)
	}
	return keys
}

// joinKeys lists keys as "a/b, c/d".
func joinKeys(keys []inventory.Key) string {
	var names []string
	for _, k := range keys {
		names = append(names, k.String())
	}
	return strings.Join(names, ", ")
}
