package source

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// universe makes reports of a few pods, lives and addresses, in a random state.
type universe struct {
	rng   *rand.Rand
	pods  map[string]*inventory.Pod // by what they say
	final map[string]bool           // "source uid": lives that only memory could describe at the end
}

func (u *universe) once(text string, fresh func() *inventory.Pod) *inventory.Pod {
	if u.pods[text] == nil {
		u.pods[text] = fresh()
	}
	return u.pods[text]
}

func (u *universe) report(source string, final bool) Report {
	var all []*inventory.Pod
	for i := range 8 {
		life := u.rng.IntN(3)
		uid := fmt.Sprintf("u%d-%d", i, life)
		if u.rng.IntN(4) == 0 || !final && u.final[source+" "+uid] {
			continue
		}
		key, ip := fmt.Sprintf("n%d/p%d", i%2, i), fmt.Sprintf("10.0.0.%d", 1+u.rng.IntN(12))
		if u.rng.IntN(3) == 0 {
			ip += fmt.Sprintf(",fd00::%d", 1+u.rng.IntN(12))
		}
		switch source {
		case "cni":
			at := []string{fmt.Sprintf("S%s at=%ds uid=%s ip=%s", uid, u.rng.IntN(3), uid, ip)}
			if u.rng.IntN(4) == 0 {
				uid = fmt.Sprintf("u%d-%d", i, (life+1)%3)
				at = append(at, fmt.Sprintf("S%s at=%ds uid=%s ip=10.0.0.%d", uid, u.rng.IntN(3), uid, 20+i))
			}
			all = append(all, u.once(key+strings.Join(at, ","), func() *inventory.Pod { return sandbox(key, at...) }))
		case "directory":
			if u.rng.IntN(4) == 0 {
				words := fmt.Sprintf("%s app=hand%d", key, u.rng.IntN(2))
				if u.rng.IntN(2) == 0 {
					words += " ip=" + ip
				}
				all = append(all, u.once(source+words, func() *inventory.Pod { return known(source, words) }))
			}
		default:
			words := fmt.Sprintf("%s uid=%s app=%s%d phase=%s", key, uid, source, u.rng.IntN(2), []string{"Pending", "Running", "Running", "Failed"}[u.rng.IntN(4)])
			if u.rng.IntN(3) > 0 {
				words += " ip=" + ip
			}
			if source == "api" && u.rng.IntN(5) == 0 {
				words += " remote"
			}
			all = append(all, u.once(source+words, func() *inventory.Pod { return known(source, words) }))
		}
	}
	r := report(source, all...)
	if source == "kubelet" {
		for _, p := range all {
			if u.rng.IntN(3) == 0 {
				r = r.carrying(p.Key.String(), p.Key.String()+".carried")
			}
		}
	}
	return r
}

// How the sources came to know what they know at last does not matter, nor in which
// order they list it, but for how sandboxes were described that nobody lists any
// more.
func TestHistoryDoesNotMatter(t *testing.T) {
	names := []string{"directory", "cni", "kubelet", "api"}
	o := inventory.DefaultOptions()
	var pods, waiting, problems, notes int
	for seed := range uint64(200) {
		u := &universe{rng: rand.New(rand.NewPCG(seed, 9)), pods: map[string]*inventory.Pod{}, final: map[string]bool{}}
		wait := seed%3 > 0
		last := map[string]Report{}
		for _, n := range names {
			last[n] = u.report(n, true)
		}
		for _, p := range last["cni"].Objects.Pods {
			for _, a := range p.Attachments {
				for _, n := range names[2:] {
					if !slices.ContainsFunc(last[n].Objects.Pods, func(p *inventory.Pod) bool { return p.UID == a.UID }) {
						u.final[n+" "+a.UID] = true
					}
				}
			}
		}
		ordered := func(r map[string]Report, shuffle bool) (list []Report) {
			for _, n := range names {
				x := r[n]
				if x.Source == "" {
					x = report(n)
				}
				if shuffle {
					x.Objects.Pods, x.Objects.Policies = slices.Clone(x.Objects.Pods), slices.Clone(x.Objects.Policies)
					u.rng.Shuffle(len(x.Objects.Pods), func(i, j int) { x.Objects.Pods[i], x.Objects.Pods[j] = x.Objects.Pods[j], x.Objects.Pods[i] })
					u.rng.Shuffle(len(x.Objects.Policies), func(i, j int) {
						x.Objects.Policies[i], x.Objects.Policies[j] = x.Objects.Policies[j], x.Objects.Policies[i]
					})
				}
				list = append(list, x)
			}
			return list
		}
		want := (&Merger{Wait: wait}).Merge(ordered(last, false), nil, nil, &o)
		sound(t, seed, want)
		for range 10 {
			m := Merger{Wait: wait}
			events := map[string][]Report{}
			left := 0
			for _, n := range names {
				for range u.rng.IntN(4) {
					events[n] = append(events[n], u.report(n, false))
				}
				events[n] = append(events[n], last[n])
				left += len(events[n])
			}
			now := map[string]Report{}
			for ; left > 0; left-- {
				n := names[u.rng.IntN(4)]
				for len(events[n]) == 0 {
					n = names[u.rng.IntN(4)]
				}
				now[n], events[n] = events[n][0], events[n][1:]
				sound(t, seed, m.Merge(ordered(now, true), nil, nil, &o))
			}
			got := m.Merge(ordered(now, true), nil, nil, &o)
			if text(got) != text(want) {
				t.Fatalf("seed %d: after other reports before:\n%s\nwithout:\n%s", seed, text(got), text(want))
			}
		}
		pods, waiting, problems, notes = pods+len(want.Snapshot.Pods), waiting+len(want.Waiting), problems+len(want.Problems), notes+len(want.Notes)
	}
	t.Logf("%d pods, %d waiting, %d problems, %d notes", pods, waiting, problems, notes)
	if min(pods, waiting, problems, notes) < 100 {
		t.Error("this test proves less than it says")
	}
}

// sound says what holds of every snapshot.
func sound(t *testing.T, seed uint64, m Merged) {
	t.Helper()
	owner := map[netip.Addr]*inventory.Pod{}
	for i, p := range m.Snapshot.Pods {
		if i > 0 && m.Snapshot.Pods[i-1].Key.Compare(p.Key) >= 0 {
			t.Fatalf("seed %d: not sorted, or twice: %s", seed, text(m))
		}
		if !p.Enforceable() {
			continue
		}
		for _, a := range p.Addresses {
			if owner[a] != nil {
				t.Fatalf("seed %d: %s belongs to %s and %s", seed, a, owner[a].Key, p.Key)
			}
			owner[a] = p
		}
	}
	for _, p := range m.Waiting {
		for _, a := range p.Addresses {
			if owner[a] != nil {
				t.Fatalf("seed %d: %s is %s's, which waits, and %s's", seed, a, p.Key, owner[a].Key)
			}
		}
	}
	for i := 1; i < len(m.Notes); i++ {
		if m.Notes[i] == m.Notes[i-1] {
			t.Fatalf("seed %d: noted twice: %s", seed, m.Notes[i])
		}
	}
}
