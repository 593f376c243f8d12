package kubelet

import (
	"encoding/json"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
)

// How long lists have to lack a pod until it counts as gone, where they are in
// doubt. A kubelet that restarts was recorded to answer "items":null for up to
// 0.35 s and to fill its list within 40 ms after that, on two x86 cores; this is
// room for slow gateways, and keeping what is gone for so long does no harm.
const (
	settle      = 5 * time.Second
	settleEmpty = 15 * time.Second // where the list is empty
)

// belief is what is believed of what a kubelet lists.
//
// What a list has, counts at once. What it lacks, does not:
//
//   - A list is in doubt for 5 s after a sign that the kubelet has just started:
//     the first answer of all, the first after a failure or over a new
//     connection, an empty list where pods were known, a list that lacks two or
//     more pods at once, or one in which a pod has lost its address or went back
//     to Pending.
//   - A pod that is missing from a list in doubt stays, until all lists for 5 s
//     have lacked it; 15 s if the list is empty. A failure, or another pod's
//     coming back, starts that time anew.
//   - A pod that is missing from a list that is not in doubt is gone.
//   - While a list holds an item of which nobody can tell which pod it is, no pod
//     is gone.
//   - A pod that is listed without an address keeps those that it had, as long
//     as it is the same (uid), and neither of the two versions has ended.
//   - What was only kept yields to what is listed: addresses that a kept pod has,
//     and another is listed with, are the other's.
//   - An item that is not valid leaves the last valid version of its pod.
//   - An empty list is believed to be all there is after 15 s, also when nothing
//     was known before.
//
// A kubelet whose API server is away lists no pods of the API's after a restart,
// for as long as that takes, although they run: they leave here, and stay
// enforced by what the CNI source knows.
type belief struct {
	seed    maphash.Seed
	items   map[uint64]*item // of the last list, by the hash of its bytes
	entries map[inventory.Key]*entry
	nobody  []*item // of the last list, of which the pod can't be told
	round   uint64  // counts lists

	known bool      // some list was believed, or there was a saved state
	empty time.Time // since when lists are empty
	sign  time.Time // when the kubelet last looked as if it had just started
	again bool      // the next list is the first after a failure
}

// entry is what is believed of one pod.
type entry struct {
	pod      *inventory.Pod // nil: none that was valid yet
	policies []*inventory.Policy
	rejected []source.Rejected
	item     *item          // what the list has
	used     *item          // the item that was looked at last; nil: all is of the saved state
	round    uint64         // the last list that had it
	borrowed bool           // pod's addresses are an earlier item's...
	bare     *inventory.Pod // ...and this is the pod without them
	missing  time.Time      // since when lists lack it
}

func newBelief() belief {
	return belief{seed: maphash.MakeSeed(), items: map[uint64]*item{}, entries: map[inventory.Key]*entry{}, again: true}
}

// recall takes over what was known before the daemon started.
func (b *belief) recall(o inventory.Objects, annotations bool) {
	for _, p := range o.Pods {
		b.entries[p.Key] = &entry{pod: p}
		b.known = true
	}
	if !annotations {
		return
	}
	for _, p := range o.Policies {
		namespace, name, _ := strings.Cut(p.Origin.Pod, "/")
		if e := b.entries[inventory.Key{Namespace: namespace, Name: name}]; e != nil {
			e.policies = append(e.policies, p)
		}
	}
}

// list takes a list. fresh: it came over a new connection.
func (b *belief) list(now time.Time, raw [][]byte, fresh bool, decode func([]byte) *item) {
	b.round++
	if fresh || b.again {
		b.sign, b.again = now, false
	}
	b.sort(raw, decode)
	back, restarted := false, false
	for _, e := range b.entries {
		if e.round == b.round {
			back = back || !e.missing.IsZero()
			e.missing = time.Time{}
			restarted = e.update() || restarted
		}
	}
	if restarted {
		b.sign = now
	}
	b.depart(now, len(raw) == 0, back)
	b.yield()
	switch {
	case len(raw) > 0:
		b.known, b.empty = true, time.Time{}
	case b.empty.IsZero():
		b.empty = now
	case now.Sub(b.empty) >= settleEmpty:
		b.known = true
	}
}

// sort finds each item's entry, decoding what the last list did not have.
func (b *belief) sort(raw [][]byte, decode func([]byte) *item) {
	b.nobody = b.nobody[:0]
	for _, data := range raw {
		sum := maphash.Bytes(b.seed, data)
		it := b.items[sum]
		if it == nil {
			it = decode(data)
			b.items[sum] = it
		}
		if it.round == b.round {
			continue // twice the same
		}
		it.round = b.round
		if it.key.Name == "" {
			b.nobody = append(b.nobody, it)
			continue
		}
		e := b.entries[it.key]
		if e == nil {
			e = &entry{}
			b.entries[it.key] = e
		}
		if e.round != b.round || better(it, e.item) {
			e.round, e.item = b.round, it
		}
	}
	maps.DeleteFunc(b.items, func(_ uint64, it *item) bool { return it.round != b.round })
}

// update takes over what the list says of a pod. It says whether that is what a
// kubelet says that has just started.
func (e *entry) update() (restarted bool) {
	it := e.item
	if it == e.used {
		return false
	}
	e.used = it
	if it.pod == nil {
		e.rejected = []source.Rejected{it.rejected}
		e.rejected[0].Kept = e.pod != nil
		return false
	}
	e.borrowed, e.bare = false, nil
	old, pod := e.pod, it.pod
	if old != nil && old.UID == pod.UID && old.Selectable() && pod.Selectable() {
		waiting := func(phase string) bool { return phase == "" || phase == "Pending" }
		restarted = waiting(pod.Phase) && !waiting(old.Phase)
		if len(pod.Addresses) == 0 && len(old.Addresses) > 0 {
			restarted = true
			pod = withAddresses(pod, old.Addresses)
			e.borrowed, e.bare = pod != it.pod, it.pod
		}
	}
	if old != nil && same(&old.Head, &pod.Head) {
		pod = old
	}
	e.pod = pod
	e.carry(it.carried)
	return restarted
}

// carry takes over the policies in a pod's annotation. A document that is not
// valid keeps its last valid version, one that has no name all that may be it.
func (e *entry) carry(docs []carried) {
	find := func(in []*inventory.Policy, name string) *inventory.Policy {
		if i := slices.IndexFunc(in, func(p *inventory.Policy) bool { return p.Key.Name == name }); i >= 0 {
			return in[i]
		}
		return nil
	}
	old, anything := e.policies, false
	e.policies, e.rejected = nil, nil
	for _, c := range docs {
		before, p := find(old, c.name), c.policy
		if p == nil || before != nil && same(&before.Head, &p.Head) {
			p = before
		}
		if p != nil && find(e.policies, c.name) == nil {
			e.policies = append(e.policies, p)
		}
		if c.policy == nil {
			r := c.rejected
			r.Kept = before != nil || c.name == "" && len(old) > 0
			e.rejected = append(e.rejected, r)
			anything = anything || c.name == ""
		}
	}
	for _, p := range old {
		if anything && find(e.policies, p.Key.Name) == nil {
			e.policies = append(e.policies, p)
		}
	}
}

// depart finds out which of the pods that the list lacks are gone. back: others
// that were missing have come back, so that there may be more to come.
func (b *belief) depart(now time.Time, empty, back bool) {
	var missing []inventory.Key
	fresh := 0 // missing since this list
	for key, e := range b.entries {
		switch {
		case e.round == b.round:
		case e.pod == nil:
			delete(b.entries, key)
		default:
			missing = append(missing, key)
			if e.missing.IsZero() {
				fresh++
			}
		}
	}
	if empty && fresh > 0 || fresh > 1 {
		b.sign = now
	}
	doubt, wait := now.Sub(b.sign) < settle, settle
	if empty {
		wait = settleEmpty
	}
	for _, key := range missing {
		e := b.entries[key]
		switch {
		case len(b.nobody) == 0 && !doubt && e.missing.IsZero(),
			len(b.nobody) == 0 && !back && !e.missing.IsZero() && now.Sub(e.missing) >= wait:
			delete(b.entries, key)
		case back || e.missing.IsZero():
			e.missing = now
		}
	}
}

// yield takes from what is only kept the addresses that others are listed with.
func (b *belief) yield() {
	kept := func(e *entry) bool { return e.borrowed || !e.missing.IsZero() }
	any := false
	for _, e := range b.entries {
		any = any || kept(e)
	}
	if !any {
		return
	}
	listed := map[netip.Addr]bool{}
	for _, e := range b.entries {
		if e.round == b.round && e.item.pod != nil && e.item.pod.Enforceable() {
			for _, a := range e.item.pod.Addresses {
				listed[a] = true
			}
		}
	}
	for key, e := range b.entries {
		switch {
		case !kept(e) || !slices.ContainsFunc(e.pod.Addresses, func(a netip.Addr) bool { return listed[a] }):
		case e.borrowed && e.missing.IsZero():
			e.pod, e.borrowed, e.bare = e.bare, false, nil
		default:
			delete(b.entries, key)
		}
	}
}

// failed says that a list was asked for in vain: what the lists before it lacked
// tells nothing any more.
func (b *belief) failed() {
	b.again, b.empty = true, time.Time{}
	for _, e := range b.entries {
		e.missing = time.Time{}
	}
}

// confirm says when a list may settle a doubt; zero if there is none.
func (b *belief) confirm() time.Time {
	var at time.Time
	earlier := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	if !b.known && !b.empty.IsZero() {
		earlier(b.empty.Add(settleEmpty))
	}
	for _, e := range b.entries {
		switch {
		case e.missing.IsZero() || len(b.nobody) > 0:
		case b.empty.IsZero():
			earlier(e.missing.Add(settle))
		default:
			earlier(e.missing.Add(settleEmpty))
		}
	}
	return at
}

// whole says whether the last list is all there is.
func (b *belief) whole() bool {
	if b.round == 0 {
		return false // there was none
	}
	for _, e := range b.entries {
		if e.round != b.round {
			return false
		}
	}
	return b.known && len(b.nobody) == 0
}

// complete says whether nothing is to be expected soon: every pod that can have
// an address has one.
func (b *belief) complete() bool {
	if b.round == 0 {
		return false
	}
	for _, e := range b.entries {
		if e.round == b.round && e.item.pod != nil && e.item.pod.Selectable() && len(e.item.pod.Addresses) == 0 {
			return false
		}
	}
	return b.whole()
}

// tell puts what is believed into a report, sorted by key: the kubelet's order
// is a new one each time.
func (b *belief) tell(r *source.Report) {
	keys := slices.SortedFunc(maps.Keys(b.entries), inventory.Key.Compare)
	for _, key := range keys {
		e := b.entries[key]
		if e.pod != nil {
			r.Objects.Pods = append(r.Objects.Pods, e.pod)
		}
		r.Objects.Policies = append(r.Objects.Policies, e.policies...)
		r.Rejected = append(r.Rejected, e.rejected...)
		if e.item != nil {
			r.Diagnostics = append(r.Diagnostics, e.item.warnings...)
			for _, c := range e.item.carried {
				r.Diagnostics = append(r.Diagnostics, c.warnings...)
			}
		}
	}
	slices.SortStableFunc(r.Objects.Policies, func(a, b *inventory.Policy) int { return a.Key.Compare(b.Key) })
	for _, it := range b.nobody {
		r.Rejected = append(r.Rejected, it.rejected)
		r.Diagnostics = append(r.Diagnostics, it.warnings...)
	}
	slices.SortFunc(r.Rejected[len(r.Rejected)-len(b.nobody):], func(a, b source.Rejected) int { return strings.Compare(a.Reason, b.Reason) })
	slices.SortFunc(r.Diagnostics[len(r.Diagnostics)-told(b.nobody):], func(a, b manifest.Diagnostic) int { return strings.Compare(a.String(), b.String()) })
	r.Unknown = !b.known
}

func told(items []*item) (n int) {
	for _, it := range items {
		n += len(it.warnings)
	}
	return n
}

// same says whether two versions of an object are equal, and from one place.
func same(a, b *inventory.Head) bool {
	return a.Key == b.Key && a.Origin == b.Origin && string(a.JSON) == string(b.JSON)
}

// withAddresses gives a pod that has none the addresses of an earlier version.
func withAddresses(p *inventory.Pod, addresses []netip.Addr) *inventory.Pod {
	type ip struct {
		IP string `json:"ip"`
	}
	status := struct {
		Phase  string `json:"phase,omitempty"`
		PodIPs []ip   `json:"podIPs"`
	}{Phase: p.Phase}
	for _, a := range addresses {
		status.PodIPs = append(status.PodIPs, ip{a.String()})
	}
	var object map[string]json.RawMessage
	if json.Unmarshal(p.JSON, &object) != nil {
		return p
	}
	var err error
	if object["status"], err = json.Marshal(status); err != nil {
		return p
	}
	data, err := json.Marshal(object)
	if err != nil {
		return p
	}
	// By the one path that makes pods, so that JSON and Addresses agree.
	if doc, _ := manifest.Served(Name, inventory.KindPod, data); doc.Pod != nil {
		return doc.Pod
	}
	return p
}
