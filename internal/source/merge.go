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
	// labels are all there will be. Pods that no policy may cut off (S35) never wait.
	Waiting []*inventory.Pod
	// Notes are what sources say differently of one pod, in the order of pods. That
	// is no problem: S10 says who counts.
	Notes []string
}

// Merger merges reports. It remembers what it made, so that pods that did not
// change keep their pointers, and how pods were described that a source tells of no
// more while their sandboxes live: a static pod leaves the kubelet's list at once
// and serves for its whole grace period.
type Merger struct {
	// Wait: pods whose labels are not known yet are Waiting. Else they are taken to
	// have none.
	Wait bool

	memory map[string][]description // by sandbox, one for each source that told of it
	made   map[recipe]*inventory.Pod
}

// merging is one run of Merge.
type merging struct {
	last     *Merger
	rank     map[string]int // of each source, by its name
	labelled bool           // somebody describes pods that CNI results tell of
	options  *inventory.Options
	policies [][]*inventory.Policy // of each report
	carried  map[carrier][]*inventory.Policy
	claims   []claim
	memory   map[string][]description
	made     map[recipe]*inventory.Pod
	out      Merged
}

// Merge makes the snapshot of what all sources know.
//
// Of objects with the same kind and key the one in the earlier report counts,
// within a report the earlier one (S10). Of pods, addresses come from the first
// report that has any, labels, ports and host network from the first without
// attachments, so that CNI results count for addresses only. What is said of
// another life of the pod, by its uid, does not count; but a directory's word does,
// as it is the operator's.
//
// A pod with two sandboxes, one of a life that nobody has described yet, is what is
// known of the other, and Waiting with the new one.
//
// Pods that claim an address that is never a pod's (S33) are left out: own are the
// gateway's own addresses, nextHops those of its routes. So is a pod that has the
// address of another by the directory's word. What runs, or is said to, loses that
// address only, as its others must stay enforced: see claims. Pods that claim
// nothing (S6: hostNetwork, ended) are not looked at.
//
// The snapshot has the pointers of the reports where one report tells all there is
// of an object, and own, sorted, as its gateway.
func (m *Merger) Merge(reports []Report, own, nextHops []netip.Addr, o *inventory.Options) Merged {
	g := merging{last: m, options: o, rank: map[string]int{}, memory: map[string][]description{}, made: map[recipe]*inventory.Pod{}}
	g.out.Snapshot = &inventory.Snapshot{Gateway: addresses(own)}
	var pods []claim
	var namespaces []*inventory.Namespace
	for i := range reports {
		for _, p := range reports[i].Objects.Pods {
			pods = append(pods, claim{pod: p, rank: i})
		}
		namespaces = append(namespaces, reports[i].Objects.Namespaces...)
		g.policies = append(g.policies, reports[i].Objects.Policies)
		g.rank[reports[i].Source] = i
		g.labelled = g.labelled || m.Wait && (reports[i].Source == "kubelet" || reports[i].Source == "api")
	}
	g.carriers()
	g.merge(pods)
	g.claim(&claims{own: g.out.Snapshot.Gateway, nextHops: addresses(nextHops), never: o.NeverPods})
	m.memory, m.made = g.memory, g.made
	out := g.out
	slices.Sort(out.Notes)
	out.Notes = slices.Compact(out.Notes)
	slices.SortStableFunc(out.Problems, func(a, b Problem) int { return strings.Compare(a.Object, b.Object) })
	var more []Problem
	out.Snapshot.Namespaces, more = first(inventory.KindNamespace, namespaces, func(n *inventory.Namespace) *inventory.Head { return &n.Head })
	out.Problems = append(out.Problems, more...)
	out.Snapshot.Policies, more = first(inventory.KindPolicy, slices.Concat(g.policies...), func(p *inventory.Policy) *inventory.Head { return &p.Head })
	out.Problems = append(out.Problems, more...)
	return out
}

// Merge merges reports once.
func Merge(reports []Report, own, nextHops []netip.Addr, o *inventory.Options) (*inventory.Snapshot, []Problem) {
	out := (&Merger{}).Merge(reports, own, nextHops, o)
	return out.Snapshot, out.Problems
}

// merge makes one pod of all that is known under each key.
func (g *merging) merge(all []claim) {
	slices.SortStableFunc(all, func(a, b claim) int { return a.pod.Key.Compare(b.pod.Key) })
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].pod.Key == all[0].pod.Key {
			n++
		}
		g.pod(g.oncePerSource(all[:n]))
		all = all[n:]
	}
}

// oncePerSource keeps the first pod of each report; the others are problems.
func (g *merging) oncePerSource(same []claim) []claim {
	var kept []claim
	for _, c := range same {
		if n := len(kept); n > 0 && kept[n-1].rank == c.rank {
			g.out.Problems = append(g.out.Problems, problem(inventory.KindPod, &c.pod.Head, fmt.Sprintf("%s defines it too and comes first", kept[n-1].pod.Origin)))
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
