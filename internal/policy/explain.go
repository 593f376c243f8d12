package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// Reasoning is how a flow's verdict comes about.
type Reasoning struct {
	Allowed   bool          `json:"allowed"`
	WouldDeny bool          `json:"wouldDeny,omitempty"` // allowed only because policies are audited
	Egress    SideReasoning `json:"egress"`              // the source's
	Ingress   SideReasoning `json:"ingress"`             // the destination's
}

// SideReasoning is one end's part.
type SideReasoning struct {
	Pod       string            `json:"pod,omitempty"` // namespace/name; "" where the end is not a pod that policies apply to
	Allowed   bool              `json:"allowed"`
	Isolated  bool              `json:"isolated"`
	WouldDeny bool              `json:"wouldDeny,omitempty"`
	Reason    string            `json:"reason"`             // as in Decision
	Policies  []PolicyReasoning `json:"policies,omitempty"` // that select the pod in this direction, sorted
	Others    []Unconcerned     `json:"others,omitempty"`   // of the pod's namespace, that do not
}

// PolicyReasoning is what one policy says of a flow.
type PolicyReasoning struct {
	Policy  string          `json:"policy"` // namespace/name
	Origin  string          `json:"origin"` // file:line, or the source
	Audited bool            `json:"audited,omitempty"`
	Rules   []RuleReasoning `json:"rules,omitempty"` // without any the policy allows nothing
}

// RuleReasoning is one rule, as "default/web egress rule 0".
type RuleReasoning struct {
	Index       int    `json:"index"` // in spec.ingress or spec.egress, from 0
	Matches     bool   `json:"matches"`
	PeerMatches bool   `json:"peerMatches"`
	PortMatches bool   `json:"portMatches"`
	Peers       []Test `json:"peers,omitempty"` // each entry of from or to; none: everyone
	Ports       string `json:"ports"`           // what the ports say
}

// Test is one condition, with why it holds or not.
type Test struct {
	Holds bool   `json:"holds"`
	Text  string `json:"text"`
}

// Unconcerned is a policy that a pod has nothing to do with in a direction.
type Unconcerned struct {
	Policy string `json:"policy"`
	Why    string `json:"why"`
}

// Explain gives the verdict of Evaluate with the reasoning behind it. A flow of
// protocol 0 is any traffic that no rule with ports allows.
func Explain(s *inventory.Snapshot, o *inventory.Options, f Flow) Reasoning {
	j := judge{s, o}
	v := Evaluate(s, o, f)
	f.From, f.To = j.end(f.From), j.end(f.To)
	return Reasoning{
		Allowed: v.Allowed, WouldDeny: v.WouldDeny(),
		Egress:  j.reason(inventory.Egress, v.Egress, f),
		Ingress: j.reason(inventory.Ingress, v.Ingress, f),
	}
}

// reason explains one side's decision.
func (j judge) reason(d inventory.Direction, dec Decision, f Flow) SideReasoning {
	own, peer := f.To, f.From
	if d == inventory.Egress {
		own, peer = f.From, f.To
	}
	r := SideReasoning{Allowed: dec.Allowed, Isolated: dec.Isolated, WouldDeny: dec.WouldDeny, Reason: dec.Reason}
	if own.Pod == nil {
		return r
	}
	r.Pod = own.Pod.Key.String()
	for _, p := range j.s.Policies {
		if p.Key.Namespace != own.Pod.Key.Namespace {
			continue
		}
		if why := unconcerned(p, own.Pod, d); why != "" {
			r.Others = append(r.Others, Unconcerned{p.Key.String(), why})
			continue
		}
		says := PolicyReasoning{Policy: p.Key.String(), Origin: p.Origin.String(), Audited: j.o.Audits(p)}
		for i, rule := range p.Rules[d] {
			says.Rules = append(says.Rules, j.explainRule(p, i, rule, peer, f))
		}
		r.Policies = append(r.Policies, says)
	}
	return r
}

// unconcerned says why a policy of the pod's namespace is not about it, "" if it
// is.
func unconcerned(p *inventory.Policy, pod *inventory.Pod, d inventory.Direction) string {
	switch {
	case p.Selects(pod) && p.Isolates[d]:
		return ""
	case p.Selects(pod):
		return fmt.Sprintf("policyTypes lacks %s", [...]string{"Ingress", "Egress"}[d])
	case pod.Remote:
		return "the pod runs on another node, which enforces it"
	case p.Origin.Pod != "" && p.Origin.Pod != pod.Key.String():
		return "it is in the annotation of pod " + p.Origin.Pod + ", and applies to that alone"
	}
	return fmt.Sprintf("podSelector %s does not match (%s)", selectorText(p.Selector), labelText(pod.Labels))
}

func (j judge) explainRule(p *inventory.Policy, i int, rule inventory.Rule, peer Endpoint, f Flow) RuleReasoning {
	r := RuleReasoning{Index: i, PeerMatches: j.peersMatch(p, rule, peer), PortMatches: j.portsMatch(rule, f), Ports: j.portsText(rule, f)}
	r.Matches = r.PeerMatches && r.PortMatches
	for _, entry := range rule.Peers {
		if entry.Block != nil {
			r.Peers = append(r.Peers, Test{j.blockMatches(entry.Block, peer), j.blockText(entry.Block, peer)})
		} else {
			r.Peers = append(r.Peers, Test{j.selectorsMatch(p, entry, peer), j.selectorsText(p, entry, peer)})
		}
	}
	return r
}

// selectorsText says what a peer's selectors make of the other end.
func (j judge) selectorsText(p *inventory.Policy, peer inventory.Peer, e Endpoint) string {
	var parts []string
	say := func(name string, s labels.Selector, holds bool, what string) {
		verb := "matches"
		if !holds {
			verb = "does not match"
		}
		parts = append(parts, fmt.Sprintf("%s %s %s %s", name, selectorText(s), verb, what))
	}
	switch {
	case e.Pod == nil:
		for _, s := range []struct {
			name string
			is   labels.Selector
		}{{"namespaceSelector", peer.Namespaces}, {"podSelector", peer.Pods}} {
			if s.is != nil {
				parts = append(parts, s.name+" "+selectorText(s.is))
			}
		}
		return strings.Join(parts, ", ") + ": the other end is no pod"
	case peer.Namespaces == nil && e.Pod.Key.Namespace != p.Key.Namespace:
		return fmt.Sprintf("podSelector %s reaches only namespace %s, and %s is in another", selectorText(peer.Pods), p.Key.Namespace, e.Pod.Key)
	}
	if peer.Namespaces != nil {
		set := j.namespace(e.Pod)
		holds := peer.Namespaces.Matches(set)
		say("namespaceSelector", peer.Namespaces, holds, fmt.Sprintf("namespace %s (%s)", e.Pod.Key.Namespace, labelText(set)))
	}
	if peer.Pods != nil {
		say("podSelector", peer.Pods, peer.Pods.Matches(e.Pod.Labels), fmt.Sprintf("%s (%s)", e.Pod.Key, labelText(e.Pod.Labels)))
	}
	return strings.Join(parts, ", ")
}

// blockText says what an ipBlock makes of the other end.
func (j judge) blockText(b *inventory.IPBlock, e Endpoint) string {
	switch {
	case e.Pod != nil && !j.o.IPBlockMatchesPods:
		return fmt.Sprintf("ipBlock %s: the other end is a pod, and ipBlockMatchesPods is false", b.CIDR)
	case !e.Addr.IsValid():
		return fmt.Sprintf("ipBlock %s: the other end has no address yet", b.CIDR)
	case !b.CIDR.Contains(e.Addr):
		return fmt.Sprintf("ipBlock %s does not contain %s", b.CIDR, e.Addr)
	}
	if i := slices.IndexFunc(b.Except, func(x netip.Prefix) bool { return x.Contains(e.Addr) }); i >= 0 {
		return fmt.Sprintf("ipBlock %s except %s leaves %s out", b.CIDR, b.Except[i], e.Addr)
	}
	return fmt.Sprintf("ipBlock %s contains %s", b.CIDR, e.Addr)
}

// portsText says what a rule's ports make of the flow's; of a flow of any traffic
// it lists them.
func (j judge) portsText(r inventory.Rule, f Flow) string {
	if len(r.Ports) == 0 {
		return "no ports are named, which is everything"
	}
	var list []string
	for _, p := range r.Ports {
		list = append(list, portText(p, f.To))
	}
	entries := strings.Join(list, ", ")
	switch {
	case f.Protocol == 0:
		return "only " + entries
	case !f.Protocol.HasPorts():
		return fmt.Sprintf("%s passes only rules without ports, and this names %s", f.Protocol, entries)
	case j.portsMatch(r, f):
		return fmt.Sprintf("%s is among %s", f.PortText(), entries)
	}
	return fmt.Sprintf("%s is not among %s", f.PortText(), entries)
}

// PortText gives "80/TCP", or the protocol alone if it has no ports, or "any
// traffic".
func (f Flow) PortText() string {
	switch {
	case f.Protocol == 0:
		return "any traffic"
	case f.Protocol.HasPorts():
		return fmt.Sprintf("%d/%s", f.Port, f.Protocol)
	}
	return f.Protocol.String()
}

// portText gives one entry of ports, a named one with what it is at the
// destination (S20).
func portText(p inventory.Port, to Endpoint) string {
	if p.Name == "" {
		return PortRange{Protocol: p.Protocol, First: p.First, Last: p.Last}.String()
	}
	name := fmt.Sprintf("%s/%s", p.Name, p.Protocol)
	if to.Pod == nil {
		return name + " (a name, and the destination is no pod)"
	}
	var numbers []string
	for _, n := range to.Pod.Ports {
		if n.Name == p.Name && n.Protocol == p.Protocol {
			numbers = append(numbers, strconv.Itoa(int(n.Port)))
		}
	}
	if len(numbers) == 0 {
		return fmt.Sprintf("%s (no port of %s has this name)", name, to.Pod.Key)
	}
	return fmt.Sprintf("%s (%s on %s)", name, strings.Join(numbers, ", "), to.Pod.Key)
}

// selectorText gives a selector as kubectl takes it, and {} for all.
func selectorText(s labels.Selector) string {
	if s == nil || s.Empty() {
		return "{}"
	}
	return s.String()
}

func labelText(set labels.Set) string {
	if len(set) == 0 {
		return "no labels"
	}
	return set.String()
}
