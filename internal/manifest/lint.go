package manifest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// Duplicates names each object that stands a second time in the files, which
// are in the order of S10: the first counts, each other is an error.
func Duplicates(files []File) []Diagnostic {
	type id struct {
		kind inventory.Kind
		key  inventory.Key
	}
	first := map[id]inventory.Origin{}
	var all []Diagnostic
	for _, f := range files {
		for i, doc := range f.Documents {
			at := id{doc.Kind, doc.Key}
			if doc.Key.Name == "" || doc.Kind == "" {
				continue
			}
			if origin, twice := first[at]; twice {
				all = append(all, f.trees[i].diagnose(Error, field.NewPath("metadata", "name"), doc.Key.Name,
					fmt.Sprintf("a second %s %s: the one at %s counts; rename or remove one", doc.Kind, doc.Key, origin)))
				continue
			}
			first[at] = doc.Origin
		}
	}
	return all
}

// Lint says what is doubtful in the files' policies, given all that is known:
// each policy by itself is right, yet probably not what its author meant. All
// are warnings, but for Duplicates. What one document alone tells, Decode has
// told already.
func Lint(s *inventory.Snapshot, o inventory.Options, files []File) []Diagnostic {
	l := linter{Snapshot: s, Options: o, namespaces: map[string]labels.Set{}}
	for _, n := range s.Namespaces {
		l.namespaces[n.Key.Name] = s.NamespaceLabels(n.Key.Name)
	}
	for _, p := range s.Pods {
		l.namespaces[p.Key.Namespace] = s.NamespaceLabels(p.Key.Namespace)
		if p.Selectable() {
			l.pods = append(l.pods, p)
		}
	}
	all := Duplicates(files)
	seen := map[inventory.Key]bool{}
	for _, f := range files {
		for i, doc := range f.Documents {
			if doc.Policy != nil && !seen[doc.Key] {
				seen[doc.Key] = true
				l.log = log{tree: f.trees[i]}
				l.policy(doc.Policy)
				all = append(all, l.found...)
			}
		}
	}
	return all
}

type linter struct {
	*inventory.Snapshot
	inventory.Options
	log
	pods       []*inventory.Pod // those that selectors may reach, addresses or not
	namespaces map[string]labels.Set
}

func (l *linter) policy(p *inventory.Policy) {
	spec := field.NewPath("spec")
	selected := l.matching(func(pod *inventory.Pod) bool {
		return p.Selects(pod)
	})
	own := func(ns string) bool { return ns == p.Key.Namespace }
	if len(selected) == 0 && len(l.pods) > 0 && !p.Selector.Empty() {
		l.warn(spec.Child("podSelector"), p.Selector.String(), "matches no pod of namespace "+p.Key.Namespace+": "+l.podHint(p.Selector, own))
	}
	for _, d := range inventory.Directions {
		if !p.Isolates[d] {
			continue
		}
		for i, rule := range p.Rules[d] {
			at := spec.Child(d.String()).Index(i)
			peers := at.Child([...]string{"from", "to"}[d])
			for j, peer := range rule.Peers {
				if peer.Block != nil {
					l.block(*peer.Block, d, peers.Index(j).Child("ipBlock"))
				} else {
					l.peer(p, peer, peers.Index(j))
				}
			}
			candidates := selected
			if d == inventory.Egress {
				candidates = l.reached(p, rule)
			}
			l.namedPorts(rule, d, candidates, at.Child("ports"))
		}
	}
	l.dns(p, selected, spec.Child("egress"))
}

func (l *linter) matching(match func(*inventory.Pod) bool) []*inventory.Pod {
	var all []*inventory.Pod
	for _, pod := range l.pods {
		if match(pod) {
			all = append(all, pod)
		}
	}
	return all
}

// peerMatches says whether a selector peer of a policy reaches a pod (S16).
func (l *linter) peerMatches(p *inventory.Policy, peer inventory.Peer, pod *inventory.Pod) bool {
	switch {
	case peer.Namespaces == nil:
		return pod.Key.Namespace == p.Key.Namespace && peer.Pods.Matches(pod.Labels)
	case !peer.Namespaces.Matches(l.namespaces[pod.Key.Namespace]):
		return false
	}
	return peer.Pods == nil || peer.Pods.Matches(pod.Labels)
}

// reached gives the pods that a rule's peers name.
func (l *linter) reached(p *inventory.Policy, rule inventory.Rule) []*inventory.Pod {
	return l.matching(func(pod *inventory.Pod) bool {
		return len(rule.Peers) == 0 || slices.ContainsFunc(rule.Peers, func(peer inventory.Peer) bool {
			if peer.Block != nil {
				return l.IPBlockMatchesPods && slices.ContainsFunc(pod.Addresses, func(a netip.Addr) bool { return contains(*peer.Block, a) })
			}
			return l.peerMatches(p, peer, pod)
		})
	})
}

// peer warns of a peer whose selectors match nothing.
func (l *linter) peer(p *inventory.Policy, peer inventory.Peer, at *field.Path) {
	if len(l.pods) == 0 || len(l.matching(func(pod *inventory.Pod) bool { return l.peerMatches(p, peer, pod) })) > 0 {
		return
	}
	in := func(ns string) bool { return ns == p.Key.Namespace }
	where := "no pod of namespace " + p.Key.Namespace
	if peer.Namespaces != nil {
		in = func(ns string) bool { return peer.Namespaces.Matches(l.namespaces[ns]) }
		where = "no pod of the namespaces that namespaceSelector names"
		var sets []labelled
		known := false
		for name, set := range l.namespaces {
			sets = append(sets, labelled{"namespace " + name, set})
			known = known || in(name)
		}
		if !known {
			l.warn(at.Child("namespaceSelector"), peer.Namespaces.String(), "matches no namespace: "+hint(peer.Namespaces, sets, "namespace"))
			return
		}
	}
	if peer.Pods != nil && !peer.Pods.Empty() {
		l.warn(at.Child("podSelector"), peer.Pods.String(), "matches "+where+": "+l.podHint(peer.Pods, in))
	}
}

// podHint says what the pods of some namespaces have instead, or in which other
// namespace the selector would match.
func (l *linter) podHint(s labels.Selector, in func(namespace string) bool) string {
	var sets []labelled
	for _, pod := range l.Pods {
		if !pod.Selectable() && in(pod.Key.Namespace) && s.Matches(pod.Labels) {
			return fmt.Sprintf("pod %s would, but no policy reaches a pod with hostNetwork, or one that has ended", pod.Key)
		}
	}
	for _, pod := range l.pods {
		if in(pod.Key.Namespace) {
			sets = append(sets, labelled{"pod " + pod.Key.String(), pod.Labels})
		} else if s.Matches(pod.Labels) && !s.Matches(labels.Set{}) {
			return fmt.Sprintf("pod %s has these labels, but is in another namespace: add a namespaceSelector to a peer, or correct metadata.namespace", pod.Key)
		}
	}
	return hint(s, sets, "pod")
}

// namedPorts warns of a port name that no pod has on which it is looked up (S20).
func (l *linter) namedPorts(rule inventory.Rule, d inventory.Direction, pods []*inventory.Pod, at *field.Path) {
	onlyBlocks := d == inventory.Egress && len(rule.Peers) > 0 &&
		!slices.ContainsFunc(rule.Peers, func(p inventory.Peer) bool { return p.Block == nil })
	for i, port := range rule.Ports {
		var names []string
		var other string
		found := port.Name == "" || len(l.pods) == 0
		for _, pod := range pods {
			for _, has := range pod.Ports {
				names = append(names, has.Name)
				found = found || (has.Name == port.Name && has.Protocol == port.Protocol)
				if has.Name == port.Name {
					other = fmt.Sprintf(": pod %s has it as %s", pod.Key, has.Protocol)
				}
			}
		}
		if near := nearest(port.Name, names); other == "" && near != "" {
			other = fmt.Sprintf(": did you mean %s?", near)
		}
		path := at.Index(i).Child("port")
		switch {
		case found:
		case len(pods) > 0:
			l.warn(path, port.Name, fmt.Sprintf("no port of the pods here has this name with %s, so that this entry matches nothing%s", port.Protocol, other))
		case onlyBlocks:
			l.warn(path, port.Name, "a name is looked up on pods, and this rule names only addresses, so that it matches nothing: write the number")
		}
	}
}

// dns warns of pods that may reach something, but not ask for names: port 53/UDP
// to anyone. Pods whose policies allow no egress at all have nothing to look up.
// Of several policies the first tells.
func (l *linter) dns(p *inventory.Policy, selected []*inventory.Pod, at *field.Path) {
	asksDNS := func(port inventory.Port) bool {
		return port.Protocol == inventory.UDP && (port.Name != "" || (port.First <= 53 && 53 <= port.Last))
	}
	if !p.Isolates[inventory.Egress] || len(p.Rules[inventory.Egress]) == 0 || !l.GatewayEgress || slices.ContainsFunc(l.GatewayPorts, asksDNS) {
		return
	}
	var names []string
	for _, pod := range selected {
		var first *inventory.Policy
		allowed := l.NeverIsolated(pod.Key)
		for _, q := range l.Policies {
			if q.Key.Namespace != pod.Key.Namespace || !q.Isolates[inventory.Egress] || !q.Selector.Matches(pod.Labels) {
				continue
			}
			for _, rule := range q.Rules[inventory.Egress] {
				if first == nil {
					first = q
				}
				allowed = allowed || len(rule.Ports) == 0 || slices.ContainsFunc(rule.Ports, asksDNS)
			}
		}
		if !allowed && first != nil && first.Key == p.Key {
			names = append(names, pod.Key.String())
		}
	}
	if len(names) > 0 {
		l.warn(at, "", fmt.Sprintf("%s may not ask DNS, so that names do not resolve: if that is not meant, add a rule with ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]", some(names)))
	}
}

// block warns of an address block that holds pods or the gateway (S17, S25).
func (l *linter) block(b inventory.IPBlock, d inventory.Direction, at *field.Path) {
	if l.IPBlockMatchesPods {
		l.blockOfPods(b, at)
	}
	if d == inventory.Ingress || !l.GatewayEgress {
		return // what the gateway sends is always allowed (S24), or what it gets by option
	}
	var own []string
	var except []string
	for _, a := range l.Gateway {
		if contains(b, a) && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			own = append(own, a.String())
			except = append(except, netip.PrefixFrom(a, a.BitLen()).String())
		}
	}
	if len(own) > 0 {
		l.warn(at.Child("cidr"), b.CIDR.String(), fmt.Sprintf("also allows the gateway's own addresses, %s: if that is not meant, add except: [%s]", some(own), strings.Join(except, ", ")))
	}
}

func (l *linter) blockOfPods(b inventory.IPBlock, at *field.Path) {
	var names []string
	var inside []netip.Addr
	unknown := false
	for _, pod := range l.pods {
		unknown = unknown || len(pod.Addresses) == 0
		for _, a := range pod.Addresses {
			if contains(b, a) {
				names = append(names, fmt.Sprintf("%s (%s)", pod.Key, a))
				inside = append(inside, a)
			}
		}
	}
	cidr := at.Child("cidr")
	const why = "an ipBlock matches addresses, whoever owns them"
	if len(inside) > 0 {
		except := podRange(inside, b.CIDR)
		if except == b.CIDR {
			l.warn(cidr, b.CIDR.String(), fmt.Sprintf("these are addresses of pods, %s: they change; a podSelector follows the pod", some(names)))
			return
		}
		l.warn(cidr, b.CIDR.String(), fmt.Sprintf("also allows pods, %s, as %s: to leave the pods out, add except: [%s]", some(names), why, except))
		return
	}
	if unknown && b.CIDR.Bits() == 0 && openToPrivate(b) {
		l.warn(cidr, b.CIDR.String(), fmt.Sprintf("also allows every pod and the gateway, as %s: to leave the pods out, add their range, as in except: [%s]", why, private(b.CIDR)[0]))
	}
}
