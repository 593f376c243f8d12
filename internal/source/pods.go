package source

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// description is what one source says of a pod, or, of one whose sandbox lives,
// said last.
type description struct {
	pod      *inventory.Pod
	rank     int // of its report
	listed   bool
	policies []*inventory.Policy // that it carries; of one that is not listed any more
}

// life is an attachment with those who describe it.
type life struct {
	*inventory.Attachment
	described []description
}

// recipe is what a pod was made from; the same recipe gives the same pod.
type recipe struct {
	attached, describes, addresses, phase *inventory.Pod
	without                               string // the parts of one pod that were left out
}

// make gives the pod of a recipe that was made before, or a new one.
func (g *merging) make(r recipe, fresh func() *inventory.Pod) *inventory.Pod {
	p := g.made[r]
	if p == nil {
		if p = g.last.made[r]; p == nil {
			p = fresh()
		}
		g.made[r] = p
	}
	return p
}

// pod makes one pod of what the reports, in their order, say of it.
func (g *merging) pod(same []claim) {
	var attached *claim
	var others []description
	for i, c := range same {
		if len(c.pod.Attachments) > 0 {
			attached = &same[i]
		} else {
			others = append(others, description{pod: c.pod, rank: c.rank, listed: true})
		}
	}
	switch {
	case attached != nil:
		g.attached(*attached, others, same)
	case len(others) == 1:
		g.claims = append(g.claims, claim{pod: same[0].pod, rank: same[0].rank, told: same[0].pod.Origin.Source})
	default:
		g.put(nil, oneLife(others), same)
	}
}

// oneLife leaves out what is said of another life of a pod than the first that
// tells: an API that is away lists what a kubelet has replaced.
func oneLife(all []description) []description {
	first := slices.IndexFunc(all, func(d description) bool { return !d.byHand() })
	if first < 0 {
		return all
	}
	p := all[first].pod
	return slices.DeleteFunc(all, func(d description) bool { return !d.byHand() && !oneUID(p.UID, d.pod.UID, p.Remote == d.pod.Remote) })
}

// byHand says whether it is the operator's word, which tells of whatever life the
// pod is in.
func (d *description) byHand() bool { return d.pod.Origin.Source == "directory" }

// describes says whether it is about the life of an attachment.
func (d *description) describes(a *inventory.Attachment) bool {
	return d.byHand() || oneUID(d.pod.UID, a.UID, !d.pod.Remote)
}

// oneUID says whether two uids can be of one life. Without them nobody can tell, but
// that it runs on one node.
func oneUID(a, b string, sameNode bool) bool {
	if a == "" || b == "" {
		return sameNode
	}
	return a == b
}

// attached makes a pod that CNI results tell of.
func (g *merging) attached(c claim, others []description, same []claim) {
	lives := make([]life, len(c.pod.Attachments))
	newest := &lives[0]
	for i := range lives {
		l := &lives[i]
		l.Attachment = &c.pod.Attachments[i]
		l.described = g.describe(l.Attachment, others)
		if newest.compare(l) < 0 {
			newest = l
		}
	}
	attached := &c
	if g.labelled && !g.options.NeverIsolated(c.pod.Key) {
		unknown := func(l life) bool { return len(l.described) == 0 }
		if waits := g.part(c.pod, lives, unknown); waits != nil {
			g.claims = append(g.claims, claim{pod: waits, rank: c.rank, told: waits.Origin.Source, waiting: true})
		}
		c.pod = g.part(c.pod, lives, func(l life) bool { return !unknown(l) })
	}
	if c.pod != nil {
		g.useCarried(c.pod.Key, newest.described)
		g.put(attached, newest.described, same)
	}
}

// compare orders lives by who knows more of the present.
func (l *life) compare(o *life) int {
	known := func(l *life) int {
		switch {
		case slices.ContainsFunc(l.described, func(d description) bool { return d.listed && !d.byHand() }):
			return 2
		case len(l.described) > 0:
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(known(l), known(o)), l.Written.Compare(o.Written), strings.Compare(l.Sandbox, o.Sandbox))
}

// describe gives who describes an attachment: those who list it, and those who did
// while its sandbox lived. It remembers them.
func (g *merging) describe(a *inventory.Attachment, others []description) []description {
	var all []description
	for _, d := range others {
		if d.describes(a) {
			all = append(all, d)
		}
	}
	for _, d := range g.last.memory[a.Sandbox] {
		rank, ok := g.rank[d.pod.Origin.Source]
		if d.rank = rank; ok && !slices.ContainsFunc(all, func(o description) bool { return o.rank == rank }) {
			all = append(all, d)
		}
	}
	if g.memory[a.Sandbox] == nil {
		for _, d := range all {
			if d.byHand() {
				continue // what the operator takes back counts no more
			}
			if d.listed {
				d.listed, d.policies = false, g.carried[carrier{d.rank, d.pod.Key.String()}]
			}
			g.memory[a.Sandbox] = append(g.memory[a.Sandbox], d)
		}
	}
	return all
}

// carrier is a pod of a report that carries policies.
type carrier struct {
	rank int
	pod  string
}

// carriers finds them.
func (g *merging) carriers() {
	g.carried = map[carrier][]*inventory.Policy{}
	for rank, list := range g.policies {
		for _, p := range list {
			if p.Origin.Pod != "" {
				c := carrier{rank, p.Origin.Pod}
				g.carried[c] = append(g.carried[c], p)
			}
		}
	}
}

// useCarried has a pod keep the policies that it carries while its sandbox lives,
// and not have those of another life.
func (g *merging) useCarried(pod inventory.Key, described []description) {
	for rank := range g.policies {
		i := slices.IndexFunc(described, func(d description) bool { return d.rank == rank })
		if i >= 0 && described[i].listed {
			continue
		}
		if len(g.carried[carrier{rank, pod.String()}]) > 0 {
			g.policies[rank] = slices.DeleteFunc(slices.Clone(g.policies[rank]), func(p *inventory.Policy) bool { return p.Origin.Pod == pod.String() })
		}
		if i >= 0 {
			g.policies[rank] = slices.Concat(g.policies[rank], described[i].policies)
		}
	}
}

// part gives an attached pod with some of its attachments; nil with none.
func (g *merging) part(p *inventory.Pod, lives []life, has func(life) bool) *inventory.Pod {
	var kept []inventory.Attachment
	var list []netip.Addr
	var without []string
	var newest inventory.Attachment
	for _, l := range lives {
		if !has(l) {
			without = append(without, l.Sandbox)
			continue
		}
		kept, list = append(kept, *l.Attachment), append(list, l.Addresses...)
		if len(kept) == 1 || l.Written.After(newest.Written) {
			newest = *l.Attachment
		}
	}
	switch {
	case len(kept) == 0:
		return nil
	case len(without) == 0:
		return p
	}
	return g.make(recipe{attached: p, without: strings.Join(without, " ")}, func() *inventory.Pod {
		out := *p
		out.Attachments, out.Addresses, out.UID = kept, addresses(list), newest.UID
		out.JSON = manifest.PodJSON(&out)
		return &out
	})
}

// put makes the pod, of what CNI results say of it (nil: nothing) and of what
// others do.
func (g *merging) put(attached *claim, described []description, same []claim) {
	var r recipe
	all := described
	if attached != nil {
		r.attached = attached.pod
		all = append(slices.Clone(described), description{pod: attached.pod, rank: attached.rank})
		slices.SortStableFunc(all, func(a, b description) int { return cmp.Compare(a.rank, b.rank) })
	}
	tells := all[0]
	for _, d := range all {
		if len(tells.pod.Addresses) == 0 && len(d.pod.Addresses) > 0 {
			tells = d
		}
		if d.pod == r.attached {
			continue
		}
		if r.describes == nil {
			r.describes = d.pod
		}
		if r.phase == nil && d.pod.Phase != "" {
			r.phase = d.pod
		}
	}
	r.addresses = tells.pod
	if r.describes == nil {
		r.describes = r.attached
	}
	p := g.make(r, r.pod)
	g.disagreements(&r, same)
	g.claims = append(g.claims, claim{pod: p, rank: tells.rank, told: tells.pod.Origin.Source})
}

// pod makes the pod.
func (r *recipe) pod() *inventory.Pod {
	describes, attached := r.describes, r.attached
	if attached == nil && r.addresses == describes && (r.phase == nil || r.phase.Phase == describes.Phase) {
		return describes
	}
	out := *describes
	out.Addresses = r.addresses.Addresses
	if r.phase != nil {
		out.Phase = r.phase.Phase
	}
	if attached != nil {
		out.Attachments, out.UID, out.Remote = attached.Attachments, cmp.Or(attached.UID, out.UID), false
		if out.Origin.Source != "directory" {
			out.HostNetwork = false // such a pod has no attachment: what says so is of another life
		}
		if !out.Selectable() && !out.HostNetwork {
			out.Phase = "Running" // its sandbox lives, whatever is said of it
		}
	}
	out.JSON = manifest.PodJSON(&out)
	return &out
}

// disagreements tells which sources know other addresses than those that count, or
// other labels than the directory's.
func (g *merging) disagreements(r *recipe, same []claim) {
	for _, c := range same {
		if !c.pod.Selectable() {
			continue
		}
		counts := len(c.pod.Attachments) > 0 && r.addresses == r.attached
		if len(c.pod.Addresses) > 0 && !counts && !slices.Equal(c.pod.Addresses, r.addresses.Addresses) {
			g.note(c.pod, r.addresses, "addresses", c.pod.Addresses, r.addresses.Addresses)
		}
		if r.describes.Origin.Source == "directory" && len(c.pod.Attachments) == 0 && !maps.Equal(c.pod.Labels, r.describes.Labels) {
			g.note(c.pod, r.describes, "labels", c.pod.Labels, r.describes.Labels)
		}
	}
}

func (g *merging) note(p, counts *inventory.Pod, what string, has, other any) {
	g.out.Notes = append(g.out.Notes, fmt.Sprintf("pod %s: %s has the %s %v, %s has %v: the latter counts", p.Key,
		p.Origin.Source, what, has, counts.Origin.Source, other))
}
