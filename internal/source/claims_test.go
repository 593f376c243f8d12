package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// Of two pods with one address: whose it is, and what becomes of the other, which
// has a second address too.
func TestWhoKeepsAnAddress(t *testing.T) {
	// a/loser comes first by key, so that nothing but the source decides.
	pods := map[string]func(name, ip string) *inventory.Pod{
		"directory": func(name, ip string) *inventory.Pod { return known("directory", name+" app=d ip="+ip) },
		"cni":       func(name, ip string) *inventory.Pod { return sandbox(name, "S"+name+" uid="+name+" ip="+ip) },
		"kubelet": func(name, ip string) *inventory.Pod {
			return known("kubelet", name+" uid="+name+" phase=Running ip="+ip)
		},
		"api": func(name, ip string) *inventory.Pod { return known("api", name+" uid="+name+" phase=Running ip="+ip) },
	}
	order := []string{"directory", "cni", "kubelet", "api"}
	for i, winner := range order {
		for _, loser := range order[i:] {
			first, second := "b/winner", "a/loser"
			if winner == loser {
				first, second = "a/winner", "b/loser"
			}
			w, l := pods[winner](first, "10.0.0.1"), pods[loser](second, "10.0.0.1,10.0.0.2")
			reports := []Report{report(winner, w), report(loser, l)}
			if winner == loser {
				reports = []Report{report(winner, l, w)}
			}
			got := merge(&Merger{}, reports...)
			var left []netip.Addr
			if p := got.Snapshot.Pod(l.Key); p != nil {
				left = p.Addresses
			}
			if p := got.Snapshot.Pod(w.Key); p == nil || !slices.Equal(p.Addresses, addrs("10.0.0.1")) {
				t.Errorf("%s against %s: %s", winner, loser, text(got))
			}
			// What nobody has seen run is refused whole; what runs, or is said to, must stay enforced.
			if whole := loser == "directory"; whole != (got.Snapshot.Pod(l.Key) == nil) || !whole && !slices.Equal(left, addrs("10.0.0.2")) {
				t.Errorf("%s against %s: the loser has %v: %s", winner, loser, left, text(got))
			}
			// A kubelet and an API are known to be late; else the two contradict each other.
			late := winner != "directory" && winner != loser
			if late != (len(got.Problems) == 0 && len(got.Notes) == 1) || late == (len(got.Problems) == 1 && len(got.Notes) == 0) {
				t.Errorf("%s against %s: %s", winner, loser, text(got))
			}
			for _, p := range got.Problems {
				if p.Object != "Pod "+second || p.Reason != fmt.Sprintf("its address 10.0.0.1 belongs to pod %s (%s)", first, w.Origin) {
					t.Errorf("%s against %s: %+v", winner, loser, p)
				}
			}
		}
	}
}

// Of two sandboxes the newer has the address, whatever else its pod has.
func TestTheNewerSandboxHasTheAddress(t *testing.T) {
	kubelet := report("kubelet", known("kubelet", "a/x uid=x app=x"), known("kubelet", "b/y uid=y app=y"))
	x := sandbox("a/x", "S1 at=1s uid=x ip=10.0.0.1", "S3 at=3s uid=x ip=10.0.0.3")
	y := sandbox("b/y", "S2 at=2s uid=y ip=10.0.0.1,10.0.0.2")
	expect(t, "an older attachment of a pod with a newer one", merge(&Merger{Wait: true}, report("cni", x, y), kubelet),
		"a/x from kubelet uid=x labels=app=x ips=[10.0.0.3] phase= sandbox=S1 sandbox=S3",
		"b/y from kubelet uid=y labels=app=y ips=[10.0.0.1 10.0.0.2] phase= sandbox=S2",
		"problem: Pod a/x of kubelet: its address 10.0.0.1 belongs to pod b/y (kubelet)")
	y = sandbox("b/y", "S2 at=2s uid=y ip=10.0.0.1,192.0.2.254")
	expect(t, "what a refused pod claims is free for others", merge(&Merger{Wait: true}, report("cni", x, y), kubelet),
		"a/x from kubelet uid=x labels=app=x ips=[10.0.0.1 10.0.0.3] phase= sandbox=S1 sandbox=S3",
		"problem: Pod b/y of kubelet: its address 192.0.2.254 is the next hop of a route: such an address is never a pod's")
}

// The operator's word is before the newest sandbox.
func TestTheDirectorysAddressesOfWhatRuns(t *testing.T) {
	hand := report("directory", known("directory", "b/y app=y ip=10.0.0.1"))
	cni := report("cni", sandbox("a/x", "S2 at=2s uid=x ip=10.0.0.1,10.0.0.2"), sandbox("b/y", "S1 at=1s uid=y ip=10.0.0.1"))
	expect(t, "an older sandbox, by hand", merge(&Merger{}, hand, cni),
		"a/x from cni uid=x labels= ips=[10.0.0.2] phase= sandbox=S2", "b/y from directory uid=y labels=app=y ips=[10.0.0.1] phase= sandbox=S1",
		"problem: Pod a/x of cni: its address 10.0.0.1 belongs to pod b/y (directory)")
}

// S33 holds for what every source says.
func TestNeverAPodWhateverTheSource(t *testing.T) {
	for _, address := range []string{"192.0.2.1", "192.0.2.254", "127.0.0.1", "224.0.0.9", "255.255.255.255", "0.0.0.0"} {
		for _, p := range []*inventory.Pod{
			known("directory", "a/x ip="+address), sandbox("a/x", "S1 ip="+address), known("kubelet", "a/x ip="+address), known("api", "a/x ip="+address),
			known("api", "a/x remote ip="+address),
		} {
			source := p.Origin.Source
			got := merge(&Merger{}, report(source, p))
			if len(got.Snapshot.Pods) > 0 || len(got.Problems) != 1 || got.Problems[0].Object != "Pod a/x" || got.Problems[0].Origin.Source != source ||
				!strings.Contains(got.Problems[0].Reason, "its address "+address+" ") {
				t.Errorf("%s of %s: %s", address, source, text(got))
			}
		}
		got := merge(&Merger{}, report("cni", sandbox("a/x", "S1 uid=x ip="+address)), report("kubelet", known("kubelet", "a/x uid=x app=x ip=10.0.0.1")))
		if len(got.Snapshot.Pods) > 0 || len(got.Problems) != 1 {
			t.Errorf("%s of a CNI result, another of the kubelet: %s", address, text(got))
		}
	}
}

// A gateway's worth: 110 pods that everybody knows and 1,000 policies.
func BenchmarkMergeAllSources(b *testing.B) {
	var reports [3]Report
	for i, name := range []string{"cni", "kubelet", "api"} {
		reports[i].Source = name
	}
	add := func(i int, label string) {
		key, address := fmt.Sprintf("n%d/p%03d", i%8, i), fmt.Sprintf("10.42.0.%d", i+2)
		for r, p := range []*inventory.Pod{
			sandbox(key, fmt.Sprintf("S%03d uid=u%d ip=%s", i, i, address)),
			known("kubelet", fmt.Sprintf("%s uid=u%d app=%s phase=Running ip=%s", key, i, label, address)),
			known("api", fmt.Sprintf("%s uid=u%d app=%s phase=Running ip=%s", key, i, label, address)),
		} {
			if i < len(reports[r].Objects.Pods) {
				reports[r].Objects.Pods[i] = p
			} else {
				reports[r].Objects.Pods = append(reports[r].Objects.Pods, p)
			}
		}
	}
	for i := range 110 {
		add(i, "x")
	}
	for i := range 1000 {
		reports[2].Objects.Policies = append(reports[2].Objects.Policies, &inventory.Policy{Head: head("api", fmt.Sprintf("n%d/p%04d", i%8, i))})
	}
	o := inventory.DefaultOptions()
	for _, changed := range []bool{false, true} {
		b.Run(fmt.Sprintf("changed=%v", changed), func(b *testing.B) {
			m := Merger{Wait: true}
			for n := range b.N {
				if changed {
					b.StopTimer()
					add(n%110, fmt.Sprint(n))
					b.StartTimer()
				}
				m.Merge(reports[:], nil, nil, &o)
			}
		})
	}
}
