package policy

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// Isolation is what the policies make of one enforceable pod.
type Isolation struct {
	Pod   *inventory.Pod
	Sides [2]*Side // by Direction; nil where the pod is not isolated (S11)
}

// Resolver turns snapshots into isolations. It remembers the last snapshot and
// works out again only what a change can have touched; a Resolver that has seen
// many snapshots gives what a new one gives for the last of them.
type Resolver struct {
	opts       *inventory.Options
	pods       map[inventory.Key]*podState
	slots      []*podState    // by slot; nil where free
	order      []*policyState // sorted by key
	namespaces map[string]labels.Set
	sides      map[string]*sideState
	addresses  uint64 // counts changes of the pods' addresses
}

// NewResolver makes an empty one. The options must not change afterwards.
func NewResolver(o *inventory.Options) *Resolver {
	return &Resolver{
		opts:       o,
		pods:       map[inventory.Key]*podState{},
		namespaces: map[string]labels.Set{},
		sides:      map[string]*sideState{},
	}
}

// podState is a pod with its slot, the index of its bit in every podSet.
type podState struct {
	pod      *inventory.Pod
	slot     int
	nsLabels labels.Set
	selected [2][]*policyState // policies that isolate it, in key order; or, where none does, would
	audited  [2]bool           // selected are only audited
	sides    [2]string         // the names of what they make, by direction
	stale    bool              // selected and sides must be worked out again
}

// podSet is a set of pods by slot.
type podSet []uint64

func (s podSet) has(slot int) bool {
	w := slot >> 6
	return w < len(s) && s[w]&(1<<(slot&63)) != 0
}

// put sets or clears a bit and says whether that changed it.
func (s *podSet) put(slot int, in bool) bool {
	if s.has(slot) == in {
		return false
	}
	for len(*s) <= slot>>6 {
		*s = append(*s, 0)
	}
	(*s)[slot>>6] ^= 1 << (slot & 63)
	return true
}

// policyState is a policy with the pods that its selectors reach.
type policyState struct {
	policy   *inventory.Policy
	selected podSet
	peers    [2][][]podSet // by direction, rule, peer
	named    [2][]bool     // by direction and rule: it names a port
	everyone [2]bool       // a rule of the direction depends on all pods: a named port without peers
	blocks   [2]bool       // a rule of the direction has an ipBlock
	version  [2]uint64     // counts changes of what the rules of a direction resolve to
}

// Update gives the isolation of every enforceable pod of this gateway, sorted by
// the pods' keys. A Side that did not change keeps its pointer.
func (r *Resolver) Update(s *inventory.Snapshot) []Isolation {
	changed := r.updatePods(s)
	r.updatePolicies(s, changed)
	for _, p := range r.pods {
		if p.stale {
			r.selectFor(p)
		}
	}
	return r.isolations(s)
}

// updatePods brings the slots in line with the snapshot and gives the pods that
// are new, gone (with pod set to nil) or different in what a policy can see.
func (r *Resolver) updatePods(s *inventory.Snapshot) []*podState {
	namespaces := map[string]labels.Set{}
	for _, p := range s.Pods {
		if _, ok := namespaces[p.Key.Namespace]; !ok {
			namespaces[p.Key.Namespace] = s.NamespaceLabels(p.Key.Namespace)
		}
	}
	var changed []*podState
	present := make(map[inventory.Key]bool, len(s.Pods))
	for _, p := range s.Pods {
		if !p.Enforceable() {
			continue
		}
		present[p.Key] = true
		st := r.pods[p.Key]
		sameNamespace := labels.Equals(r.namespaces[p.Key.Namespace], namespaces[p.Key.Namespace])
		if st != nil && st.pod == p && sameNamespace {
			continue
		}
		if st == nil {
			st = r.newSlot(p)
		}
		if st.pod != p && (st.pod == nil || !slices.Equal(st.pod.Addresses, p.Addresses)) {
			r.addresses++
		}
		st.pod, st.nsLabels, st.stale = p, namespaces[p.Key.Namespace], true
		changed = append(changed, st)
	}
	for k, st := range r.pods {
		if !present[k] {
			delete(r.pods, k)
			r.slots[st.slot] = nil
			st.pod = nil
			r.addresses++
			changed = append(changed, st)
		}
	}
	r.namespaces = namespaces
	return changed
}

func (r *Resolver) newSlot(p *inventory.Pod) *podState {
	slot := slices.Index(r.slots, nil)
	if slot < 0 {
		slot = len(r.slots)
		r.slots = append(r.slots, nil)
	}
	st := &podState{slot: slot}
	r.slots[slot], r.pods[p.Key] = st, st
	return st
}

// updatePolicies brings the policies in line: new ones are matched against every
// pod, the others against the changed pods. Both lists are sorted by key.
func (r *Resolver) updatePolicies(s *inventory.Snapshot, changed []*podState) {
	old := r.order
	order := make([]*policyState, 0, len(s.Policies))
	for _, p := range s.Policies {
		for len(old) > 0 && old[0].policy.Key.Compare(p.Key) < 0 {
			r.markSelected(old[0]) // gone
			old = old[1:]
		}
		var st *policyState
		if len(old) > 0 && old[0].policy.Key == p.Key {
			st, old = old[0], old[1:]
		}
		switch {
		case st == nil:
			st = newPolicyState(p)
			r.matchAll(st)
		case st.policy != p:
			r.markSelected(st)
			st = newPolicyState(p)
			r.matchAll(st)
		default:
			for _, pod := range changed {
				r.match(st, pod)
			}
		}
		order = append(order, st)
	}
	for _, st := range old {
		r.markSelected(st)
	}
	r.order = order
}

func newPolicyState(p *inventory.Policy) *policyState {
	st := &policyState{policy: p}
	for _, d := range inventory.Directions {
		st.peers[d] = make([][]podSet, len(p.Rules[d]))
		st.named[d] = make([]bool, len(p.Rules[d]))
		for i, rule := range p.Rules[d] {
			st.peers[d][i] = make([]podSet, len(rule.Peers))
			st.named[d][i] = hasNamed(rule)
			if len(rule.Peers) == 0 && d == inventory.Egress && st.named[d][i] {
				st.everyone[d] = true
			}
			for _, peer := range rule.Peers {
				st.blocks[d] = st.blocks[d] || peer.Block != nil
			}
		}
	}
	return st
}

func hasNamed(rule inventory.Rule) bool {
	return slices.ContainsFunc(rule.Ports, func(p inventory.Port) bool { return p.Name != "" })
}

func (r *Resolver) matchAll(st *policyState) {
	for _, pod := range r.slots {
		if pod != nil {
			r.match(st, pod)
		}
	}
}

// markSelected makes the pods that a policy selects choose their policies anew.
func (r *Resolver) markSelected(st *policyState) {
	for _, pod := range r.slots {
		if pod != nil && st.selected.has(pod.slot) {
			pod.stale = true
		}
	}
}

// match sets the bits of one pod in one policy. A pod that is a peer before or
// after counts as a change of the rules, since its addresses or ports may differ.
func (r *Resolver) match(st *policyState, pod *podState) {
	gone := pod.pod == nil
	selects := !gone && st.policy.Selects(pod.pod)
	if st.selected.put(pod.slot, selects) || selects {
		pod.stale = true
	}
	for _, d := range inventory.Directions {
		touched := st.everyone[d]
		for i, rule := range st.policy.Rules[d] {
			for j := range rule.Peers {
				if rule.Peers[j].Block != nil && !st.named[d][i] {
					continue // whose addresses are in it does not matter
				}
				in := !gone && r.isPeer(st.policy, &rule.Peers[j], pod)
				was := st.peers[d][i][j].has(pod.slot)
				st.peers[d][i][j].put(pod.slot, in)
				touched = touched || in || was
			}
		}
		if touched {
			st.version[d]++
		}
	}
}

// isPeer says whether a pod is reached by a peer's selectors (S16), or, for a
// block, has an address in it (S17): needed for named ports there.
func (r *Resolver) isPeer(p *inventory.Policy, peer *inventory.Peer, pod *podState) bool {
	if peer.Block != nil {
		return r.opts.IPBlockMatchesPods &&
			slices.ContainsFunc(pod.pod.Addresses, func(a netip.Addr) bool { return inBlock(peer.Block, a) })
	}
	if peer.Namespaces == nil {
		if pod.pod.Key.Namespace != p.Key.Namespace {
			return false
		}
	} else if !peer.Namespaces.Matches(pod.nsLabels) {
		return false
	}
	return peer.Pods == nil || peer.Pods.Matches(pod.pod.Labels)
}

func inBlock(b *inventory.IPBlock, a netip.Addr) bool {
	return b.CIDR.Contains(a) &&
		!slices.ContainsFunc(b.Except, func(e netip.Prefix) bool { return e.Contains(a) })
}

// selectFor lists the policies that isolate a pod, in key order.
func (r *Resolver) selectFor(pod *podState) {
	pod.stale = false
	pod.selected, pod.sides, pod.audited = [2][]*policyState{}, [2]string{}, [2]bool{}
	if r.opts.NeverIsolated(pod.pod.Key) { // S35
		return
	}
	var audited [2][]*policyState
	for _, st := range r.order {
		if !st.selected.has(pod.slot) {
			continue
		}
		for _, d := range inventory.Directions {
			switch {
			case !st.policy.Isolates[d]:
			case r.opts.Audits(st.policy):
				audited[d] = append(audited[d], st)
			default:
				pod.selected[d] = append(pod.selected[d], st)
			}
		}
	}
	for _, d := range inventory.Directions {
		if len(pod.selected[d]) == 0 && len(audited[d]) > 0 {
			pod.selected[d], pod.audited[d] = audited[d], true
		}
		pod.sides[d] = sideName(d, pod)
	}
}

// isolations gives each pod its sides; sides that no pod has any more are
// forgotten.
func (r *Resolver) isolations(s *inventory.Snapshot) []Isolation {
	used := make(map[string]*sideState, len(r.sides))
	list := make([]Isolation, 0, len(r.pods))
	for _, p := range s.Pods {
		st := r.pods[p.Key]
		if st == nil || p.Remote {
			continue
		}
		iso := Isolation{Pod: p}
		for _, d := range inventory.Directions {
			if len(st.selected[d]) > 0 {
				iso.Sides[d] = r.side(d, st, used)
			}
		}
		list = append(list, iso)
	}
	r.sides = used
	return list
}

// side gives the Side of a pod: pods that the same policies select share one,
// unless an ingress rule names a port, which each pod resolves for itself (S20).
func (r *Resolver) side(d inventory.Direction, pod *podState, used map[string]*sideState) *Side {
	id := pod.sides[d]
	st := used[id]
	if st != nil {
		return st.side
	}
	st = r.sides[id]
	if st == nil || !st.current(pod.selected[d], r.addresses) {
		fresh := r.buildSide(d, id, pod)
		if st != nil && fresh.side.equal(st.side) {
			fresh.side = st.side
		}
		st = fresh
	}
	used[id] = st
	return st.side
}

// sideName identifies what a Side is made from.
func sideName(d inventory.Direction, pod *podState) string {
	var b strings.Builder
	b.WriteString(d.String())
	if pod.audited[d] {
		b.WriteString(" audit")
	}
	for _, st := range pod.selected[d] {
		b.WriteByte(' ')
		b.WriteString(st.policy.Key.String())
	}
	if d == inventory.Ingress {
		for _, st := range pod.selected[d] {
			for i := range st.policy.Rules[d] {
				for _, port := range st.policy.Rules[d][i].Ports {
					if port.Name == "" {
						continue
					}
					b.WriteByte(' ')
					b.WriteString(port.Name)
					for _, n := range namedPorts(pod.pod, port) {
						b.WriteString(" " + n.String())
					}
				}
			}
		}
	}
	return b.String()
}

// namedPorts resolves a named port on a pod, by name and protocol (S20).
func namedPorts(pod *inventory.Pod, port inventory.Port) []PortRange {
	var list []PortRange
	for _, n := range pod.Ports {
		if n.Name == port.Name && n.Protocol == port.Protocol {
			list = append(list, PortRange{Protocol: n.Protocol, First: n.Port, Last: n.Port})
		}
	}
	return list
}
