package traffic

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// journal remembers what updates did, and when.
type journal []entry

type entry struct {
	begin, end time.Time
	what       string
}

// during gives the updates that were under way at the time of an event.
func (j journal) during(e lab.Event) string {
	var b strings.Builder
	for i, u := range j {
		if u.end.After(e.Sent) && u.begin.Before(e.Done) {
			fmt.Fprintf(&b, "update %d at %s, %s long: %s\n", i, u.begin.Format("15:04:05.000000"), u.end.Sub(u.begin), u.what)
		}
	}
	return b.String()
}

// next gives a state one to three steps away in which every flow has the verdict
// that it always has, with what was done.
func next(rng *rand.Rand, p *pipeline, st state, list []flow) (state, string) {
	for {
		n := st
		var what []string
		for range 1 + rng.IntN(3) {
			what = append(what, n.mutate(rng))
		}
		if n != st && judge(p.snapshot(n.docs()), &p.opts, list) {
			return n, strings.Join(what, "; ")
		}
	}
}

// rate is packets a second: as many as one core sends while the other updates.
const rate = 60_000

// TestUpdates makes thousands of updates of every kind, each with new flows
// going on that must all pass, and others that must never pass.
func TestUpdates(t *testing.T) {
	both(t, func(t *testing.T, kind lab.Kind) {
		w := &world{Lab: lab.ForTest(t, lab.Topology{Kind: kind}), t: t}
		w.pods()
		p := newPipeline(t, w.Lab)
		rng := rand.New(rand.NewPCG(uint64(kind), 7))
		st, list := firstState(), flows()
		s := p.snapshot(st.docs())
		if !judge(s, &p.opts, list) {
			t.Fatal("the first state does not give the flows the verdicts that they should have")
		}
		p.apply(s)
		sent := traffic(list)
		stop, err := w.StartTraffic(t.Context(), rate, sent)
		w.must(err)
		var j journal
		kinds, ways := map[string]int{}, map[uint16]map[string]bool{}
		for range longer(t, 2300) {
			what := ""
			st, what = next(rng, p, st, list)
			s = p.snapshot(st.docs())
			u := entry{begin: time.Now()}
			c := p.apply(s)
			u.end, u.what = time.Now(), what+"\n"+operations(c)
			j = append(j, u)
			count(kinds, c)
			st.noteWays(ways, list)
		}
		r, err := stop()
		w.must(err)
		complain(t, r, sent, j.during)
		p.holds(s)
		t.Logf("%d updates: %v", len(j), kinds)
		for i, f := range sent {
			if r.Sent[i] < 100 {
				t.Errorf("%s to %s %d: only %d packets", f.Probe.Src, f.Probe.Dst, f.Probe.DstPort, r.Sent[i])
			}
		}
		for _, port := range []uint16{8000, 9000, 8010, 8020, 8030, 8040, 9040, 8050, 9050} {
			if len(ways[port]) < 5 {
				t.Errorf("port %d: decided in few ways only: %v", port, ways[port])
			}
		}
		for _, k := range []string{"restrict", "loosen", "set under a new name", "add chain", "delete chain", "delete elements", "add elements"} {
			if kinds[k] < 20 {
				t.Errorf("%d updates that %s: the test proves less than it says", kinds[k], k)
			}
		}
	})
}

func (st *state) noteWays(ways map[uint16]map[string]bool, list []flow) {
	for _, f := range list {
		if ways[f.port] == nil {
			ways[f.port] = map[string]bool{}
		}
		ways[f.port][st.way(f.port)] = true
	}
}

// count counts what a change does.
func count(kinds map[string]int, c ruleset.Change) {
	kinds["restrict"] += truth(c.Restricts)
	kinds["loosen"] += truth(!c.Restricts && !c.Empty())
	kinds["nothing"] += truth(c.Empty())
	seen := map[string]bool{}
	for _, tx := range c.Transactions {
		for _, op := range tx {
			switch {
			case op.Kind == ruleset.AddSet && (strings.HasSuffix(op.Set.Name, ".b") || strings.HasSuffix(op.Set.Name, ".c")):
				seen["set under a new name"] = true
			case op.Kind == ruleset.AddChain:
				seen["add chain"] = true
			case op.Kind == ruleset.DeleteChain:
				seen["delete chain"] = true
			case op.Kind == ruleset.AddElements:
				seen["add elements"] = true
			case op.Kind == ruleset.DeleteElements:
				seen["delete elements"] = true
			}
		}
	}
	for k := range seen {
		kinds[k]++
	}
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}
