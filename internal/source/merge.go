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

// Merge makes the snapshot of what all sources know.
//
// Of objects with the same kind and key the one in the earlier report counts,
// within a report the earlier one (S10). Pods that claim an address that is
// never a pod's (S33) are left out: own are the gateway's own addresses,
// nextHops those of its routes. So is a pod that claims the address of another,
// which comes before it by key. Pods that claim nothing (S6: hostNetwork, ended)
// are not looked at. Each object left out is a Problem, in the order pods,
// namespaces, policies, by key; except pods that several sources know, as they
// are expected to.
//
// The snapshot has the pointers of the reports, and own, sorted, as its gateway.
func Merge(reports []Report, own, nextHops []netip.Addr, o *inventory.Options) (*inventory.Snapshot, []Problem) {
	var pods []*inventory.Pod
	var namespaces []*inventory.Namespace
	var policies []*inventory.Policy
	for i := range reports {
		pods = append(pods, reports[i].Objects.Pods...)
		namespaces = append(namespaces, reports[i].Objects.Namespaces...)
		policies = append(policies, reports[i].Objects.Policies...)
	}
	s := &inventory.Snapshot{Gateway: addresses(own)}
	pods, problems := first(inventory.KindPod, pods, func(p *inventory.Pod) *inventory.Head { return &p.Head })
	c := claims{own: s.Gateway, nextHops: addresses(nextHops), never: o.NeverPods, owner: map[netip.Addr]*inventory.Pod{}}
	for _, p := range pods {
		if reason := c.refuse(p); reason != "" {
			problems = append(problems, problem(inventory.KindPod, &p.Head, reason))
			continue
		}
		s.Pods = append(s.Pods, p)
	}
	slices.SortStableFunc(problems, func(a, b Problem) int { return strings.Compare(a.Object, b.Object) })
	var more []Problem
	s.Namespaces, more = first(inventory.KindNamespace, namespaces, func(n *inventory.Namespace) *inventory.Head { return &n.Head })
	problems = append(problems, more...)
	s.Policies, more = first(inventory.KindPolicy, policies, func(p *inventory.Policy) *inventory.Head { return &p.Head })
	return s, append(problems, more...)
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
		if kind == inventory.KindPod && winner.Origin.Source != h.Origin.Source {
			continue
		}
		problems = append(problems, problem(kind, h, fmt.Sprintf("%s defines it too and comes first", winner.Origin)))
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

// claims knows which pod has which address, and which addresses no pod may have.
type claims struct {
	own, nextHops []netip.Addr // sorted
	never         []netip.Prefix
	owner         map[netip.Addr]*inventory.Pod
}

// refuse gives the reason why the pod can't be what it says it is. If there is
// none ("") the pod's addresses are its own from here on.
func (c *claims) refuse(p *inventory.Pod) string {
	if !p.Enforceable() {
		return ""
	}
	for _, a := range p.Addresses {
		if reason := c.forbidden(a); reason != "" {
			return fmt.Sprintf("its address %s %s: such an address is never a pod's", a, reason)
		}
		if other := c.owner[a]; other != nil {
			return fmt.Sprintf("its address %s belongs to pod %s (%s)", a, other.Key, other.Origin)
		}
	}
	for _, a := range p.Addresses {
		c.owner[a] = p
	}
	return ""
}

// broadcast is the limited broadcast address (RFC 919).
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// forbidden says why an address can't be a pod's (S33), or nothing.
func (c *claims) forbidden(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "is the unspecified one"
	case a.IsLoopback():
		return "is a loopback address"
	case a.IsMulticast():
		return "is a multicast address"
	case a == broadcast:
		return "is the broadcast address"
	}
	if _, ok := slices.BinarySearchFunc(c.own, a, netip.Addr.Compare); ok {
		return "is this gateway's own"
	}
	if _, ok := slices.BinarySearchFunc(c.nextHops, a, netip.Addr.Compare); ok {
		return "is the next hop of a route"
	}
	for _, n := range c.never {
		if n.Contains(a) {
			return fmt.Sprintf("is in %s of neverPods", n)
		}
	}
	return ""
}
