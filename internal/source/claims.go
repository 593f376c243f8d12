package source

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// claim is a pod that claims addresses, with the rank of the report that tells
// them: a lower one counts more.
type claim struct {
	pod     *inventory.Pod
	rank    int
	told    string // by which source
	waiting bool   // it has its addresses, but is not enforced yet
}

// claims knows which pod has which address, and which addresses no pod may have.
//
// An address is the directory's pod's, then the one's that has the newest CNI
// result with it, as these tell of sandboxes and not of hopes, then the kubelet's,
// then the API's; within a report the first pod's by key. A pod that runs and is not
// described yet has its addresses too: nobody else's rules are for them.
type claims struct {
	own, nextHops []netip.Addr // sorted
	never         []netip.Prefix
	owner         map[netip.Addr]claim
	newest        map[netip.Addr]*inventory.Pod // of those with attachments
}

// claim gives the pods their addresses.
func (g *merging) claim(c *claims) {
	slices.SortStableFunc(g.claims, func(a, b claim) int { return cmp.Compare(a.rank, b.rank) })
	c.owner = map[netip.Addr]claim{}
	c.sandboxes(g.claims)
	for _, cl := range g.claims {
		if cl.pod.Enforceable() {
			if cl.pod = g.settle(c, cl); cl.pod == nil {
				continue
			}
		}
		if cl.waiting {
			g.out.Waiting = append(g.out.Waiting, cl.pod)
			continue
		}
		g.out.Snapshot.Pods = append(g.out.Snapshot.Pods, cl.pod)
	}
	byKey := func(a, b *inventory.Pod) int { return a.Key.Compare(b.Key) }
	slices.SortStableFunc(g.out.Snapshot.Pods, byKey)
	slices.SortStableFunc(g.out.Waiting, byKey)
}

// sandboxes finds out which attached pod has each address.
func (c *claims) sandboxes(all []claim) {
	c.newest = map[netip.Addr]*inventory.Pod{}
	best := map[netip.Addr]claim{}
	for _, cl := range all {
		if len(cl.pod.Attachments) == 0 || !cl.pod.Enforceable() || c.refuse(cl.pod) != "" {
			continue
		}
		for _, a := range cl.pod.Addresses {
			if b := best[a]; b.pod == nil || b.rank == cl.rank && written(cl.pod, a).After(written(b.pod, a)) {
				best[a], c.newest[a] = cl, cl.pod
			}
		}
	}
}

// written is when the newest result was written that gives the pod an address.
func written(p *inventory.Pod, address netip.Addr) (t time.Time) {
	for _, a := range p.Attachments {
		if slices.Contains(a.Addresses, address) && a.Written.After(t) {
			t = a.Written
		}
	}
	return t
}

// settle gives the pod with the addresses that are its own, nil for one that is
// left out.
func (g *merging) settle(c *claims, cl claim) *inventory.Pod {
	p := cl.pod
	if reason := c.refuse(p); reason != "" {
		g.refused(p, reason)
		return nil
	}
	var left []netip.Addr
	var lost []string
	for _, a := range p.Addresses {
		other, taken := c.owner[a]
		if newest := c.newest[a]; !taken && len(p.Attachments) > 0 && newest != p {
			other, taken = claim{pod: newest, rank: cl.rank, told: cl.told}, true
		}
		switch {
		case !taken:
			left = append(left, a)
		case other.pod.Key == p.Key: // two lives of one pod
		case len(p.Attachments) == 0 && other.rank < cl.rank && !other.byHand():
			g.out.Notes = append(g.out.Notes, fmt.Sprintf("pod %s: %s says that it has %s, which is pod %s's now", p.Key, cl.told, a, other.pod.Key))
		default:
			lost = append(lost, fmt.Sprintf("its address %s belongs to pod %s (%s)", a, other.pod.Key, other.pod.Origin))
		}
	}
	if len(lost) > 0 {
		g.refused(p, strings.Join(lost, "; "))
		if cl.byHand() {
			return nil
		}
	}
	for _, a := range left {
		c.owner[a] = cl
	}
	if len(left) == len(p.Addresses) {
		return p
	}
	return g.make(recipe{addresses: p, without: fmt.Sprint(left)}, func() *inventory.Pod {
		fresh := *p
		fresh.Addresses = left
		fresh.JSON = manifest.PodJSON(&fresh)
		return &fresh
	})
}

// byHand says whether the pod's addresses are the operator's word alone, so that
// nothing is known to run.
func (c *claim) byHand() bool { return c.told == "directory" && len(c.pod.Attachments) == 0 }

func (g *merging) refused(p *inventory.Pod, reason string) {
	g.out.Problems = append(g.out.Problems, problem(inventory.KindPod, &p.Head, reason))
}

// refuse gives the reason why the pod can't be what it says it is (S33), or
// nothing.
func (c *claims) refuse(p *inventory.Pod) string {
	for _, a := range p.Addresses {
		if reason := c.forbidden(a); reason != "" {
			return fmt.Sprintf("its address %s %s: such an address is never a pod's", a, reason)
		}
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
