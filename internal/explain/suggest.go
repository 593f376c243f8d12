package explain

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// ErrNothingToSuggest says that a flow is allowed as it is.
var ErrNothingToSuggest = errors.New("the policies allow this flow: there is nothing to add")

// Suggest gives the NetworkPolicies, as YAML documents, that allow a flow: one for
// each end that denies it, or would if its policies were enforced. They isolate no
// pod that is not isolated in that direction now, so that nothing becomes denied by
// them. Comments say what else they open.
//
// It is ErrNothingToSuggest if both ends allow the flow, and an error if it has a
// port that no policy can name.
func Suggest(s *inventory.Snapshot, o *inventory.Options, f policy.Flow) (string, error) {
	if f.Protocol == 0 || f.Protocol.HasPorts() && f.Port == 0 {
		return "", fmt.Errorf("suggest a policy for %s: name a port from 1 to 65535 with its protocol", f.PortText())
	}
	v := policy.Evaluate(s, o, f)
	var docs []string
	for _, d := range []inventory.Direction{inventory.Egress, inventory.Ingress} {
		own, peer, dec := f.To, f.From, v.Ingress
		if d == inventory.Egress {
			own, peer, dec = f.From, f.To, v.Egress
		}
		if dec.Allowed && !dec.WouldDeny {
			continue
		}
		g := suggestion{s: s, o: o, flow: f, direction: d, pod: own.Pod, peer: peer, audit: dec.WouldDeny}
		by := dec.Policies
		if g.audit {
			by = dec.Audited
		}
		text, err := g.write(by)
		if err != nil {
			return "", err
		}
		docs = append(docs, text)
	}
	if len(docs) == 0 {
		return "", ErrNothingToSuggest
	}
	return strings.Join(docs, "---\n"), nil
}

// suggestion is one document to be.
type suggestion struct {
	s         *inventory.Snapshot
	o         *inventory.Options
	flow      policy.Flow
	direction inventory.Direction
	pod       *inventory.Pod // that is isolated
	peer      policy.Endpoint
	audit     bool // by audited policies alone: what is added must be audited, too
}

// write gives the document. It selects by the pod's own labels, and by what one of
// the policies that isolate the pod asks for beyond them, so that it isolates no
// other.
func (g *suggestion) write(by []inventory.Key) (string, error) {
	isolating := g.isolating(by)
	selector := g.selectorOf(isolating)
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	comment := func(format string, args ...any) { line("# %s", printable(fmt.Sprintf(format, args...))) }
	comment("Allows %s of %s: %s %s %s.", g.direction, g.pod.Key, g.flow.PortText(), [...]string{"from", "to"}[g.direction], peerName(g.peer))
	g.explainSelector(comment, isolating, selector)
	g.explainPeer(comment)
	line("apiVersion: networking.k8s.io/v1")
	line("kind: NetworkPolicy")
	line("metadata:")
	line("  name: %s", quoted(g.name()))
	line("  namespace: %s", quoted(g.pod.Key.Namespace))
	if g.audit {
		line("  annotations: {edgepolicy.io/enforcement: audit} # as those that would deny it: enforce them together")
	}
	line("spec:")
	line("  podSelector: %s", selector.yaml())
	line("  policyTypes: [%s]", [...]string{"Ingress", "Egress"}[g.direction])
	line("  %s:", g.direction)
	peer, err := g.peerYAML()
	if err != nil {
		return "", err
	}
	line("  - %s: [%s]", [...]string{"from", "to"}[g.direction], peer)
	if g.flow.Protocol.HasPorts() {
		line("    ports: [{port: %d, protocol: %s}]", g.flow.Port, g.flow.Protocol)
	}
	return b.String(), nil
}

// isolating finds one of the policies that isolate the pod: one that is no pod's
// annotation, if there is such.
func (g *suggestion) isolating(by []inventory.Key) *inventory.Policy {
	var found *inventory.Policy
	for _, p := range g.s.Policies {
		if slices.Contains(by, p.Key) && (found == nil || found.Origin.Pod != "" && p.Origin.Pod == "") {
			found = p
		}
	}
	return found
}

func (g *suggestion) explainSelector(comment func(string, ...any), isolating *inventory.Policy, sel podSelector) {
	if isolating != nil && isolating.Origin.Pod != "" {
		comment("%s is isolated by its own annotation %s alone: put this there, too, as in a file it would isolate others.", g.pod.Key, "edgepolicy.io/network-policies")
	}
	also(comment, "podSelector", "this opens them, too", sel, g.sameLabels(g.pod, sel))
	if !g.flow.Protocol.HasPorts() {
		comment("%s passes only where a rule names no ports: this allows everything between the two.", g.flow.Protocol)
	}
}

func (g *suggestion) explainPeer(comment func(string, ...any)) {
	if !peerIsPod(g.peer) {
		return
	}
	sel := podSelector{labels: ownLabels(g.peer.Pod)}
	also(comment, "peer's podSelector", "they are allowed, too", sel, g.sameLabels(g.peer.Pod, sel))
}

// also says which other pods a selector matches.
func also(comment func(string, ...any), what, so string, sel podSelector, others []string) {
	switch {
	case len(sel.labels)+len(sel.more) == 0:
		comment("The %s matches all pods of the namespace, as there are no labels to tell this one by: %s.", what, so)
	case len(others) > 0:
		comment("The %s also matches %s: %s.", what, some(others), so)
	}
}

// sameLabels lists the other pods of a pod's namespace that a selector matches.
func (g *suggestion) sameLabels(pod *inventory.Pod, sel podSelector) []string {
	var names []string
	is := sel.selector()
	for _, p := range g.s.Pods {
		if p.Key.Namespace == pod.Key.Namespace && p.Key != pod.Key && p.Selectable() && is.Matches(p.Labels) {
			names = append(names, p.Key.String())
		}
	}
	return names
}

// name makes a name that no policy of the namespace has.
func (g *suggestion) name() string {
	base := g.pod.Key.Name
	if len(base) > 200 {
		base = strings.TrimRight(base[:200], "-.")
	}
	port := strings.ToLower(strings.ReplaceAll(g.flow.PortText(), "/", "-"))
	base = fmt.Sprintf("allow-%s-%s-%s", g.direction, base, port)
	name := base
	for n := 2; slices.ContainsFunc(g.s.Policies, func(p *inventory.Policy) bool {
		return p.Key == inventory.Key{Namespace: g.pod.Key.Namespace, Name: name}
	}); n++ {
		name = fmt.Sprintf("%s-%d", base, n)
	}
	return name
}

// peerIsPod says whether selectors reach an end.
func peerIsPod(e policy.Endpoint) bool {
	return !e.Gateway && e.Pod != nil && !e.Pod.HostNetwork && e.Pod.Selectable()
}

func peerName(e policy.Endpoint) string {
	if peerIsPod(e) {
		return e.Pod.Key.String()
	}
	if e.Gateway {
		return "the gateway at " + e.Addr.String()
	}
	return e.Addr.String()
}

// peerYAML gives the peer: a pod by its labels, anything else by its address.
func (g *suggestion) peerYAML() (string, error) {
	if !peerIsPod(g.peer) {
		a := g.peer.Addr.Unmap().WithZone("")
		if !a.IsValid() {
			return "", fmt.Errorf("suggest a policy for %s: the other end has no address and is no pod that selectors reach", g.pod.Key)
		}
		return fmt.Sprintf("{ipBlock: {cidr: %q}}", netip.PrefixFrom(a, a.BitLen())), nil
	}
	pods := "podSelector: " + podSelector{labels: ownLabels(g.peer.Pod)}.yaml()
	if g.peer.Pod.Key.Namespace == g.pod.Key.Namespace {
		return "{" + pods + "}", nil
	}
	return fmt.Sprintf("{namespaceSelector: {matchLabels: {%s: %s}}, %s}", inventory.MetadataName, quoted(g.peer.Pod.Key.Namespace), pods), nil
}

// volatile are labels that controllers give pods anew with each rollout or replica.
var volatile = []string{
	"pod-template-hash", "controller-revision-hash", "pod-template-generation",
	"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index", "job-name", "controller-uid",
}

// ownLabels are a pod's labels that its successors will have, too.
func ownLabels(p *inventory.Pod) labels.Set {
	set := labels.Set{}
	for k, v := range p.Labels {
		if !slices.Contains(volatile, k) && !strings.HasPrefix(k, "batch.kubernetes.io/") {
			set[k] = v
		}
	}
	return set
}

// podSelector is a selector to be written: labels, and what is asked beyond them.
type podSelector struct {
	labels labels.Set
	more   []labels.Requirement
}

// selectorOf selects the pod, and none that the policy does not select: what the
// policy asks of labels that the selector has fixed anyway need not be said.
func (g *suggestion) selectorOf(p *inventory.Policy) podSelector {
	s := podSelector{labels: ownLabels(g.pod)}
	if p == nil || p.Selector == nil {
		return s
	}
	requirements, _ := p.Selector.Requirements()
	for _, r := range requirements {
		if _, fixed := s.labels[r.Key()]; !fixed {
			s.more = append(s.more, r)
		}
	}
	return s
}

func (s podSelector) selector() labels.Selector {
	return labels.SelectorFromSet(s.labels).Add(s.more...)
}

// yaml writes the selector in one line; {} selects everything.
func (s podSelector) yaml() string {
	var parts, set, more []string
	for _, k := range slices.Sorted(maps.Keys(s.labels)) {
		set = append(set, quoted(k)+": "+quoted(s.labels[k]))
	}
	if len(set) > 0 {
		parts = append(parts, "matchLabels: {"+strings.Join(set, ", ")+"}")
	}
	for _, r := range s.more {
		var values []string
		for _, v := range slices.Sorted(maps.Keys(r.Values())) {
			values = append(values, quoted(v))
		}
		e := fmt.Sprintf("{key: %s, operator: %s", quoted(r.Key()), operators[r.Operator()])
		if len(values) > 0 {
			e += ", values: [" + strings.Join(values, ", ") + "]"
		}
		more = append(more, e+"}")
	}
	if len(more) > 0 {
		parts = append(parts, "matchExpressions: ["+strings.Join(more, ", ")+"]")
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// operators are those of matchExpressions for a selector's.
var operators = map[selection.Operator]string{
	selection.In: "In", selection.Equals: "In", selection.DoubleEquals: "In", selection.NotIn: "NotIn",
	selection.NotEquals: "NotIn", selection.Exists: "Exists", selection.DoesNotExist: "DoesNotExist",
}

// quoted gives a string as YAML: as it is where that can mean nothing else.
func quoted(s string) string {
	plain := s != "" && s[0] >= 'a' && s[0] <= 'z' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-./") == ""
	if plain && !slices.Contains(words, s) {
		return s
	}
	return strconv.Quote(s)
}

// words are those that YAML 1.1 takes for something else than strings.
var words = []string{"y", "n", "yes", "no", "on", "off", "true", "false", "null"}

// printable escapes what would end a comment or reach a terminal.
func printable(s string) string {
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// some lists up to three names.
func some(names []string) string {
	if len(names) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), len(names)-3)
	}
	return strings.Join(names, ", ")
}
