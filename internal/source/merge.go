package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// Problem is an object that was left out of a snapshot, although its source
// has it in force.
type Problem struct {
	Object string // "Pod default/web"
	Origin inventory.Origin
	Reason string
}

// Merged is what all sources together know.
type Merged struct {
	Snapshot *inventory.Snapshot
	// Problems are the objects that were left out, in the order pods, namespaces,
	// policies, by key.
	Problems []Problem
	// Waiting are pods of this gateway whose addresses a CNI result tells, and whose
	// labels nobody knows yet, if Wait is set. They are not in the snapshot. None if
	// nothing but CNI results and the directory says what pods there are: then no
	// labels are all there will be.
	Waiting []*inventory.Pod
	// Notes are what sources say differently of one pod, in the order of pods. That
	// is no problem: S10 says who counts.
	Notes []string
}

// Merger merges reports. It remembers what it made, so that pods that did not
// change keep their pointers, and how pods were described that a kubelet lists no
// more while their sandboxes live: a static pod leaves the kubelet's list at once
// and serves for its whole grace period.
type Merger struct {
	// Wait: pods whose labels are not known yet are Waiting. Else they are taken to
	// have none.
	Wait bool

	pods      map[inventory.Key]mergedPod
	sandboxes map[string]description
	stale     map[*inventory.Pod]*inventory.Pod // without the addresses that are others' by now
}

// mergedPod is a pod and what it was made from.
type mergedPod struct {
	from [3]*inventory.Pod // describes it, gives its addresses, gives its phase
	pod  *inventory.Pod
}

// description is how a pod was described, with the policies that it carries.
type description struct {
	pod      *inventory.Pod
	policies []*inventory.Policy
}

// Merge makes the snapshot of what all sources know.
//
// Of objects with the same kind and key the one in the earlier report counts,
// within a report the earlier one (S10). Of pods, addresses come from the first
// report that has any, labels, ports and host network from the first without
// attachments, so that CNI results count for addresses only; and what describes
// another life of the pod, by its uid, does not count.
//
// Pods that claim an address that is never a pod's (S33) are left out: own are the
// gateway's own addresses, nextHops those of its routes. So is a pod that claims
// the address of another, whose source counts more, or which comes before it by
// key; but an address that only a kubelet or an API tells is stale then, and only
// that goes. Pods that claim nothing (S6: hostNetwork, ended) are not looked at.
//
// The snapshot has the pointers of the reports where one report tells all there is
// of an object, and own, sorted, as its gateway.
func (m *Merger) Merge(reports []Report, own, nextHops []netip.Addr, o *inventory.Options) Merged {
	var pods []claim
	var namespaces []*inventory.Namespace
	var policies []*inventory.Policy
	labelled := false // somebody describes pods that CNI results tell of
	for i := range reports {
		for _, p := range reports[i].Objects.Pods {
			pods = append(pods, claim{pod: p, rank: i})
		}
		namespaces = append(namespaces, reports[i].Objects.Namespaces...)
		policies = append(policies, reports[i].Objects.Policies...)
		labelled = labelled || m.Wait && (reports[i].Source == "kubelet" || reports[i].Source == "api")
	}
	out := Merged{Snapshot: &inventory.Snapshot{Gateway: addresses(own)}}
	claims := m.merge(pods, policies, labelled, &out)
	for _, d := range m.sandboxes {
		policies = append(policies, d.policies...)
	}
	m.claim(claims, claimed{own: out.Snapshot.Gateway, nextHops: addresses(nextHops), never: o.NeverPods, owner: map[netip.Addr]*inventory.Pod{}}, &out)
	slices.SortStableFunc(out.Problems, func(a, b Problem) int { return strings.Compare(a.Object, b.Object) })
	var more []Problem
	out.Snapshot.Namespaces, more = first(inventory.KindNamespace, namespaces, func(n *inventory.Namespace) *inventory.Head { return &n.Head })
	out.Problems = append(out.Problems, more...)
	out.Snapshot.Policies, more = first(inventory.KindPolicy, policies, func(p *inventory.Policy) *inventory.Head { return &p.Head })
	out.Problems = append(out.Problems, more...)
	return out
}

// Merge merges reports once.
func Merge(reports []Report, own, nextHops []netip.Addr, o *inventory.Options) (*inventory.Snapshot, []Problem) {
	out := (&Merger{}).Merge(reports, own, nextHops, o)
	return out.Snapshot, out.Problems
}

// merge makes one pod of all that is known under each key.
func (m *Merger) merge(all []claim, policies []*inventory.Policy, labelled bool, out *Merged) []claim {
	slices.SortStableFunc(all, func(a, b claim) int { return a.pod.Key.Compare(b.pod.Key) })
	fresh := make(map[inventory.Key]mergedPod, len(m.pods))
	sandboxes := map[string]description{}
	var claims []claim
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].pod.Key == all[0].pod.Key {
			n++
		}
		same := oncePerSource(all[:n], out)
		all = all[n:]
		if len(same) == 1 && len(same[0].pod.Attachments) == 0 {
			claims = append(claims, same[0])
			continue
		}
		p := m.parts(same, labelled, policies, sandboxes)
		merged := m.pods[p.addresses.pod.Key]
		if p.describes == nil && labelled {
			out.Waiting = append(out.Waiting, p.addresses.pod)
			continue
		}
		if from := [3]*inventory.Pod{p.describes, p.addresses.pod, p.phase}; merged.pod == nil || merged.from != from {
			merged = mergedPod{from, p.pod()}
		}
		fresh[merged.pod.Key] = merged
		out.Notes = append(out.Notes, p.disagreements(same)...)
		claims = append(claims, claim{merged.pod, p.addresses.rank})
	}
	m.pods, m.sandboxes = fresh, sandboxes
	return claims
}

// oncePerSource keeps the first pod of each report; the others are problems.
func oncePerSource(same []claim, out *Merged) []claim {
	var kept []claim
	for _, c := range same {
		if n := len(kept); n > 0 && kept[n-1].rank == c.rank {
			out.Problems = append(out.Problems, problem(inventory.KindPod, &c.pod.Head, fmt.Sprintf("%s defines it too and comes first", kept[n-1].pod.Origin)))
			continue
		}
		kept = append(kept, c)
	}
	return kept
}

// first sorts objects by key and keeps the first of each key.
func first[T any](kind inventory.Kind, all []T, head func(T) *inventory.Head) (kept []T, problems []Problem) {
	slices.SortStableFunc(all, func(a, b T) int { return head(a).Key.Compare(head(b).Key) })
	for _, object := range all {
		h := head(object)
		if len(kept) == 0 || head(kept[len(kept)-1]).Key != h.Key {
			kept = append(kept, object)
			continue
		}
		winner := head(kept[len(kept)-1])
		if winner != h {
			problems = append(problems, problem(kind, h, fmt.Sprintf("%s defines it too and comes first", winner.Origin)))
		}
	}
	return kept, problems
}

func problem(kind inventory.Kind, h *inventory.Head, reason string) Problem {
	return Problem{Object: fmt.Sprintf("%s %s", kind, h.Key), Origin: h.Origin, Reason: reason}
}

// addresses sorts a copy, without duplicates, in the form that pods' have.
func addresses(in []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(in))
	for _, a := range in {
		out = append(out, a.Unmap().WithZone(""))
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
