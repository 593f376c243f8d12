package source

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// claim is a pod that claims addresses, with the rank of the report that tells
// them: a lower one counts more.
type claim struct {
	pod  *inventory.Pod
	rank int
}

// parts is what one pod is made from.
type parts struct {
	attached  *inventory.Pod // by CNI results, nil without
	describes *inventory.Pod // labels, ports and host network; nil: nobody does
	addresses claim
	phase     *inventory.Pod
}

// parts chooses from what the sources say of one pod, which stand in the order of
// precedence.
func (m *Merger) parts(same []claim, labelled bool, policies []*inventory.Policy, sandboxes map[string]description) parts {
	var p parts
	for _, c := range same {
		if len(c.pod.Attachments) > 0 {
			p.attached = c.pod
		}
	}
	var describers []*inventory.Pod
	for _, c := range same {
		if c.pod != p.attached && sameLife(p.attached, c.pod) {
			describers = append(describers, c.pod)
		}
		if p.addresses.pod == nil && len(c.pod.Addresses) > 0 {
			p.addresses = c
		}
	}
	if p.addresses.pod == nil {
		p.addresses = same[0]
	}
	if len(describers) == 0 {
		describers = m.remembered(p.attached)
	}
	m.remember(p.attached, describers, policies, sandboxes)
	switch {
	case len(describers) > 0:
		p.describes = describers[0]
	case !labelled:
		p.describes = p.attached
	}
	for _, d := range describers {
		if d.Phase != "" {
			p.phase = d
			break
		}
	}
	return p
}

// sameLife says whether what is said of a pod is about the one that is attached:
// without uids nobody can tell.
func sameLife(attached, p *inventory.Pod) bool {
	if attached == nil || p.UID == "" {
		return true
	}
	return slices.ContainsFunc(attached.Attachments, func(a inventory.Attachment) bool { return a.UID == "" || a.UID == p.UID })
}

// remembered gives the description that an attached pod had.
func (m *Merger) remembered(attached *inventory.Pod) []*inventory.Pod {
	if attached == nil {
		return nil
	}
	for _, a := range attached.Attachments {
		if d := m.sandboxes[a.Sandbox]; d.pod != nil {
			return []*inventory.Pod{d.pod}
		}
	}
	return nil
}

// remember keeps how an attached pod is described while its sandbox lives, and the
// policies that it carries. A directory's word needs no memory.
func (m *Merger) remember(attached *inventory.Pod, describers []*inventory.Pod, policies []*inventory.Policy, sandboxes map[string]description) {
	if attached == nil || len(describers) == 0 || describers[0].Origin.Source == "directory" {
		return
	}
	d := description{pod: describers[0]}
	for _, p := range policies {
		if p.Origin.Pod == attached.Key.String() {
			d.policies = append(d.policies, p)
		}
	}
	for _, a := range attached.Attachments {
		if old := m.sandboxes[a.Sandbox]; len(d.policies) == 0 && old.pod == d.pod {
			d.policies = old.policies
		}
		sandboxes[a.Sandbox] = d
	}
}

// pod makes the pod.
func (p parts) pod() *inventory.Pod {
	describes, attached := p.describes, p.attached
	if attached == nil && p.addresses.pod == describes && (p.phase == nil || p.phase.Phase == describes.Phase) {
		return describes
	}
	out := *describes
	out.Addresses = p.addresses.pod.Addresses
	if p.phase != nil {
		out.Phase = p.phase.Phase
	}
	if attached != nil {
		out.Attachments, out.UID, out.Remote = attached.Attachments, attached.UID, false
		if !out.Selectable() && !out.HostNetwork {
			out.Phase = "Running" // its sandbox lives, whatever is said of it
		}
	}
	out.JSON = manifest.PodJSON(&out)
	return &out
}

// disagreements tells which sources know other addresses than those that count.
func (p parts) disagreements(same []claim) []string {
	var notes []string
	for _, c := range same {
		if len(c.pod.Addresses) > 0 && !slices.Equal(c.pod.Addresses, p.addresses.pod.Addresses) && c.pod.Selectable() {
			notes = append(notes, fmt.Sprintf("pod %s: %s has the addresses %v, %s has %v: the latter counts", c.pod.Key,
				c.pod.Origin.Source, c.pod.Addresses, p.addresses.pod.Origin.Source, p.addresses.pod.Addresses))
		}
	}
	return notes
}

// claimed knows which pod has which address, and which addresses no pod may have.
type claimed struct {
	own, nextHops []netip.Addr // sorted
	never         []netip.Prefix
	owner         map[netip.Addr]*inventory.Pod
}

// claim gives the pods their addresses, those first whose source counts more; of
// CNI results the newest, as they tell of sandboxes, not of hopes.
func (m *Merger) claim(claims []claim, c claimed, out *Merged) {
	slices.SortStableFunc(claims, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), b.newest().Compare(a.newest()))
	})
	for _, cl := range claims {
		p := cl.pod
		if !p.Enforceable() {
			out.Snapshot.Pods = append(out.Snapshot.Pods, p)
			continue
		}
		if source := p.Origin.Source; len(p.Attachments) == 0 && (source == "kubelet" || source == "api") {
			p = m.withoutStale(p, c, out)
		}
		if reason := c.refuse(p); reason != "" {
			out.Problems = append(out.Problems, problem(inventory.KindPod, &p.Head, reason))
			continue
		}
		out.Snapshot.Pods = append(out.Snapshot.Pods, p)
	}
	slices.SortStableFunc(out.Snapshot.Pods, func(a, b *inventory.Pod) int { return a.Key.Compare(b.Key) })
}

// newest is when the newest CNI result of a pod was written, in nanoseconds.
func (c claim) newest() (n nanoseconds) {
	for _, a := range c.pod.Attachments {
		n = max(n, nanoseconds(a.Written.UnixNano()))
	}
	return n
}

type nanoseconds int64

func (n nanoseconds) Compare(o nanoseconds) int { return cmp.Compare(n, o) }

// withoutStale takes from a pod the addresses that are others' by now: a kubelet
// and an API list what has ended, and what they last knew.
func (m *Merger) withoutStale(p *inventory.Pod, c claimed, out *Merged) *inventory.Pod {
	var left []netip.Addr
	for _, a := range p.Addresses {
		other := c.owner[a]
		if other == nil || len(other.Attachments) == 0 {
			left = append(left, a)
			continue
		}
		out.Notes = append(out.Notes, fmt.Sprintf("pod %s: %s says that it has %s, which is pod %s's now", p.Key, p.Origin.Source, a, other.Key))
	}
	if len(left) == len(p.Addresses) {
		return p
	}
	if last := m.stale[p]; last != nil && slices.Equal(last.Addresses, left) {
		return last
	}
	fresh := *p
	fresh.Addresses = left
	fresh.JSON = manifest.PodJSON(&fresh)
	if m.stale == nil || len(m.stale) > len(c.owner) { // of pods long gone
		m.stale = map[*inventory.Pod]*inventory.Pod{}
	}
	m.stale[p] = &fresh
	return &fresh
}

// refuse gives the reason why the pod can't be what it says it is. If there is
// none ("") the pod's addresses are its own from here on.
func (c *claimed) refuse(p *inventory.Pod) string {
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
func (c *claimed) forbidden(a netip.Addr) string {
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
