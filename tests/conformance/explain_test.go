package conformance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/explain"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/tests/cluster"
)

// TestExplanationsAgreeWithTheKernel asks for an explanation of each new flow of
// generated clusters, and then sends it. What is explained as allowed arrives, and
// by a rule that the policies say matches; what is not does not, and the counters
// that explanations name, and no others, went up by exactly their packets.
func TestExplanationsAgreeWithTheKernel(t *testing.T) {
	const clusters = 60
	for _, kind := range []lab.Kind{lab.Routed, lab.Bridge} {
		t.Run(kind.String(), func(t *testing.T) {
			r := &run{court: newCourt(t, kind), tally: tally{}}
			x := &explained{run: r, counts: map[string]int{}}
			for seed := *firstSeed; seed < *firstSeed+clusters; seed++ {
				x.seed(seed)
			}
			t.Logf("%v", x.counts)
			for _, what := range []string{explain.Allowed, explain.Denied, explain.Held, "would be denied", "rules named", "counters compared"} {
				if x.counts[what] < 10 {
					t.Errorf("%s: only %d: this proves little", what, x.counts[what])
				}
			}
		})
	}
}

// explained is a run that explains each flow before it is sent.
type explained struct {
	*run
	counts map[string]int
}

// seed explains a cluster's flows.
func (x *explained) seed(seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 11))
	x.wiring = wiringOf(seed)
	o := optionsOf(pickOptions(rng))
	o.Audit = seed%12 == 0
	x.configure(o)
	c := cluster.Generate(configOf(seed, rng, x.outside, x.own))
	s, err := c.Snapshot()
	x.must(err)
	x.where, x.yaml = fmt.Sprintf("seed %d, explained, %s, %s", seed, x.wiring, x.Kind), c.YAML
	x.enforce(s)
	known := x.outside
	if !x.wiring.bare { // without ranges only the routes tell that an address is a pod's, and explain asks for none
		known = slices.Concat(x.outside, x.ended(s))
	}
	list := slices.DeleteFunc(cluster.Flows(s, known, rng, explainedFlows), func(f policy.Flow) bool {
		return f.From.Gateway && rng.IntN(5) > 0 // always allowed
	})
	var wrong string
	for range 3 { // the lab sends again what a busy machine has lost, and it counts twice
		if wrong = x.explainAndSend(list); wrong == "" {
			return
		}
	}
	x.t.Fatalf("%s: %s\n%s", x.where, wrong, x.yaml)
}

// explainedFlows is how many flows of each cluster are explained.
const explainedFlows = 150

// explainAndSend holds the explanations of flows against what becomes of them, and
// says which counter counted other packets than explained.
func (x *explained) explainAndSend(list []policy.Flow) string {
	before := x.counters()
	in := explain.Input{Snapshot: x.snapshot, Options: x.options, Table: x.actual, Interfaces: x.interfaces(x.snapshot), Counters: before}
	want := map[string]uint64{}
	var cells []*cell
	var flows []explain.Flow
	for _, f := range list {
		e, err := explain.Explain(in, explain.Question{From: f.From.Addr.String(), To: f.To.Addr.String(), Port: f.PortText()})
		if err != nil || len(e.Flows) != 1 {
			x.t.Fatalf("%s: %v, %d flows", x.where, err, len(e.Flows))
		}
		flows = append(flows, e.Flows[0])
		cells = append(cells, &cell{kind: firstPacket, x: x.newExchange(f)})
		for _, name := range counted(e.Flows[0]) {
			want[name]++
		}
	}
	x.verify(cells)
	for i, c := range cells {
		x.compare(c, flows[i])
	}
	return x.compareCounters(before, x.counters(), want)
}

func (x *explained) fail(f explain.Flow, format string, args ...any) {
	x.t.Helper()
	x.t.Fatalf("%s: %s -> %s %s: %s\n%s%s", x.where, f.FromIP, f.ToIP, f.Port, fmt.Sprintf(format, args...),
		explain.Explanation{Verdict: f.Verdict, Flows: []explain.Flow{f}}.Text(), x.yaml)
}

// compare holds one flow's explanation against what became of its packet.
func (x *explained) compare(c *cell, f explain.Flow) {
	x.t.Helper()
	if f.Allowed != c.kernel || f.Verdict == explain.Held != (c.held && c.table.Verdict != ruleset.Accept) {
		x.fail(f, "explained as %s, kernel: %s, held: %t", f.Verdict, verdict(c.kernel), c.held)
	}
	if f.Verdict != explain.Held && len(f.Warnings) > 0 {
		x.fail(f, "warnings %q", f.Warnings)
	}
	x.counts[f.Verdict]++
	if f.WouldDeny {
		x.counts["would be denied"]++
	}
	if f.Verdict != explain.Allowed || f.Table == nil {
		return
	}
	for _, r := range f.Table.Rules {
		for prefix, side := range map[string]policy.SideReasoning{"eg-": f.Reasoning.Egress, "in-": f.Reasoning.Ingress} {
			if _, comment, found := strings.Cut(r.Text, `comment "`); found && strings.HasPrefix(r.Chain, prefix) {
				x.counts["rules named"]++
				if !namesMatch(comment, side) {
					x.fail(f, "rule %s in chain %s", r.Text, r.Chain)
				}
			}
		}
	}
}

// namesMatch says whether a comment, as default/web#0, default/db#1, names a rule
// that matches. One that says that there are more may mean another.
func namesMatch(comment string, side policy.SideReasoning) bool {
	names := strings.Split(strings.TrimSuffix(comment, `"`), ", ")
	for _, p := range side.Policies {
		for _, r := range p.Rules {
			if r.Matches && slices.Contains(names, fmt.Sprintf("%s#%d", p.Policy, r.Index)) {
				return true
			}
		}
	}
	return strings.Contains(comment, " more")
}

// counted are the counters that an explanation names.
func counted(f explain.Flow) (names []string) {
	if f.Table == nil {
		return nil
	}
	for _, c := range f.Table.Counters {
		names = append(names, c.Name)
	}
	return names
}

func (x *explained) counters() map[string]ruleset.Counts {
	all, err := x.conn.Counters()
	x.must(err)
	return all
}

// compareCounters holds what the counters have counted against what explanations
// said. What is held is compared as a bound: pods send to their links, too, and on a
// bridge its own table holds most.
func (x *explained) compareCounters(before, after map[string]ruleset.Counts, want map[string]uint64) string {
	for name := range x.actual.Counters {
		got := after[name].Packets - before[name].Packets
		switch {
		case name == ruleset.HoldCounter && (got >= want[name] || x.Kind == lab.Bridge):
		case got != want[name]:
			return fmt.Sprintf("counter %s counted %d packets, %d were explained so", name, got, want[name])
		case got > 0:
			x.counts["counters compared"]++
		}
	}
	return ""
}
