package traffic

import (
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/lab"
)

// flips are pairs of states between which a packet under way is most likely to
// be lost or leaked: how a flow is allowed, or who denies it, is another.
var flips = []struct {
	name string
	port uint16 // of the flows that matter
	b    func(*state)
	a    func(*state)
}{
	{"exact element, then block", 8000, value("b", 8000, "host block"), nil},
	{"from one set that stays to another", 8000, and(value("b", 8000, "host block"), others), others},
	{"exact element, then wide block, egress", 8000, value("a", 8000, "block"), nil},
	{"both ends from exact to any", 8000, and(value("a", 8000, "any"), value("b", 8000, "any range")), nil},
	{"block, then a smaller one in it", 8000, value("b", 8000, "host block"), value("b", 8000, "block")},
	{"into a policy of its own", 8000, func(s *state) { s.own[2] = true }, nil},
	{"set outgrows its size", 8000, func(s *state) { s.crowd = 60 }, nil},
	{"isolated, then not, ingress", 8000, func(s *state) { s.open[1] = true }, nil},
	{"isolated, then not, egress", 8000, func(s *state) { s.open[0] = true }, nil},
	{"address changes hands, allowed", 8040, func(s *state) { s.twin = [2]bool{true, true} }, nil},
	{"peer unknown for a while", 8050, and(func(s *state) { s.absent[0] = true }, value("h", 8050, "host block")), nil},
	{"other blocks and ports", 8000, func(s *state) { s.blocks, s.ports = 200, 20 }, nil},
	{"denied by egress, then by ingress", 9000, value("a", 9000, "exact"), value("b", 9000, "exact")},
	{"denied by egress, then by ingress, blocks", 9000, value("a", 9000, "block"), value("b", 9000, "block")},
	{"denied by egress, then by ingress, any", 9000, value("a", 9000, "any"), value("b", 9000, "any")},
	{"isolation itself changes ends", 9000, func(s *state) { s.open[0] = true }, func(s *state) { s.open[1] = true }},
	{"address changes hands, denied at the other end", 9040, and(func(s *state) { s.twin[1] = true }, value("f", 9040, "exact")), value("e", 9040, "exact")},
	{"address changes hands, not isolated in between", 9040, func(s *state) { s.twin = [2]bool{true, true}; s.open[5] = true }, value("e", 9040, "exact")},
	{"one pod appears, the other goes", 9050, func(s *state) { s.absent[0] = true; value("g", 9050, "exact")(s) }, func(s *state) { s.absent[1] = true; value("h", 9050, "exact")(s) }},
	{"one pod appears, the other goes, not isolated", 9050, func(s *state) { s.absent[0], s.open[6] = true, true }, func(s *state) { s.absent[1], s.open[7] = true, true }},
}

// others are rules by which the sets of exact elements and of blocks of b stay.
func others(s *state) { s.ports, s.blocks = 5, 5 }

func and(f, g func(*state)) func(*state) { return func(s *state) { f(s); g(s) } }

// value sets the means of a pod's port.
func value(pod string, port int, by string) func(*state) {
	return func(s *state) {
		for i := range slots {
			if slots[i].pod == pod && slots[i].port == port {
				for m := range means {
					if means[m] == by {
						s.means[i] = m
						return
					}
				}
			}
		}
		panic("no slot " + pod + " or means " + by)
	}
}

// TestFlips goes to and fro between two states as fast as it can, under traffic
// of only the flows that the change is about.
func TestFlips(t *testing.T) {
	both(t, func(t *testing.T, kind lab.Kind) {
		w := &world{Lab: lab.ForTest(t, lab.Topology{Kind: kind}), t: t}
		w.pods()
		p := newPipeline(t, w.Lab)
		for _, flip := range flips {
			t.Run(flip.name, func(t *testing.T) {
				var list []flow
				for _, f := range flows() {
					if f.port == flip.port {
						list = append(list, f)
					}
				}
				docs := [2][]string{}
				for i, change := range []func(*state){flip.a, flip.b} {
					st := firstState()
					if change != nil {
						change(&st)
					}
					docs[i] = st.docs()
					if !judge(p.snapshot(docs[i]), &p.opts, list) {
						t.Fatalf("state %d gives the flows another verdict", i)
					}
				}
				p.apply(p.snapshot(docs[0]))
				sent := traffic(list)
				stop, err := w.StartTraffic(t.Context(), rate, sent)
				w.must(err)
				var j journal
				for i := range longer(t, 400) {
					s := p.snapshot(docs[1-i%2])
					u := entry{begin: time.Now()}
					c := p.apply(s)
					u.end, u.what = time.Now(), operations(c)
					if c.Empty() {
						t.Fatal("the two states have the same table")
					}
					j = append(j, u)
				}
				r, err := stop()
				w.must(err)
				complain(t, r, sent, j.during)
			})
		}
	})
}
