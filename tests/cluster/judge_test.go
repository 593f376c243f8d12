package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// Generated clusters are of no use if everything in them is allowed, or denied,
// for one reason.
func TestClustersAskEverything(t *testing.T) {
	reasons := map[string]int{}
	allowed, total := 0, 0
	for seed := range uint64(40) {
		c := Generate(Config{Seed: seed})
		s, rng := mustSnapshot(t, c), rand.New(rand.NewPCG(seed, 9))
		o := inventory.DefaultOptions()
		if seed%4 == 0 {
			o.IPBlockMatchesPods = false
			o.GatewayPorts = []inventory.Port{{Protocol: inventory.UDP, First: 53, Last: 53}}
		}
		for _, f := range Flows(s, c.Outside, rng, 500) {
			v := policy.Evaluate(s, &o, f)
			total++
			if v.Allowed {
				allowed++
			}
			for _, d := range []policy.Decision{v.Egress, v.Ingress} {
				reason, _, _ := strings.Cut(d.Reason, " by ")
				reasons[reason]++
			}
		}
	}
	if allowed < total/5 || allowed > total*4/5 {
		t.Errorf("%d of %d flows are allowed", allowed, total)
	}
	for _, r := range []string{"not a pod", "not isolated", "allowed", "not allowed", "would be denied: not allowed", "gateway's own traffic", "the gateway's port is open to pods"} {
		if reasons[r] == 0 {
			t.Errorf("never: %s (of %v)", r, reasons)
		}
	}
}

// What must hold whatever the policies are: order and repetition do not matter
// (S12); a rule more never denies; a policy less never allows where another still
// isolates; without policies everything is allowed.
func TestJudgeLaws(t *testing.T) {
	o := inventory.DefaultOptions()
	for seed := range uint64(25) {
		c := Generate(Config{Seed: seed})
		s, rng := mustSnapshot(t, c), rand.New(rand.NewPCG(seed, 9))
		backwards, twice, fewer, wider, none := *s, *s, *s, *s, *s
		backwards.Policies = slices.Clone(s.Policies)
		slices.Reverse(backwards.Policies)
		twice.Policies = slices.Concat(s.Policies, s.Policies)
		gone := rng.IntN(len(s.Policies))
		fewer.Policies = slices.Delete(slices.Clone(s.Policies), gone, gone+1)
		wider.Policies = slices.Clone(s.Policies)
		more := *s.Policies[gone]
		for _, d := range inventory.Directions {
			more.Rules[d] = slices.Concat(more.Rules[d], []inventory.Rule{{Ports: []inventory.Port{{Protocol: inventory.TCP, Last: 65535}}}})
		}
		wider.Policies[gone] = &more
		none.Policies = nil
		for _, f := range Flows(s, c.Outside, rng, 300) {
			v := policy.Evaluate(s, &o, f)
			name := fmt.Sprintf("seed %d, %s -> %s %d/%s", seed, f.From.Addr, f.To.Addr, f.Port, f.Protocol)
			if w := policy.Evaluate(&backwards, &o, f); w.Allowed != v.Allowed {
				t.Errorf("%s: other verdict with the policies backwards", name)
			}
			if w := policy.Evaluate(&twice, &o, f); w.Allowed != v.Allowed {
				t.Errorf("%s: other verdict with every policy twice", name)
			}
			if w := policy.Evaluate(&wider, &o, f); v.Allowed && !w.Allowed {
				t.Errorf("%s: denied by a rule more", name)
			}
			w := policy.Evaluate(&fewer, &o, f)
			if w.Egress.Isolated == v.Egress.Isolated && w.Ingress.Isolated == v.Ingress.Isolated && w.Allowed && !v.Allowed {
				t.Errorf("%s: allowed by a policy less", name)
			}
			if w := policy.Evaluate(&none, &o, f); !w.Allowed {
				t.Errorf("%s: denied without policies", name)
			}
		}
	}
}

// What audited policies say changes no verdict: without them, or with others in
// their place, everything is as it was; and where all are, everything passes. One
// that is alone in a direction would deny what it denies once it is enforced.
func TestJudgeLawsOfAudit(t *testing.T) {
	plain := inventory.DefaultOptions()
	all := plain
	all.Audit = true
	would := 0
	for seed := range uint64(40) {
		c := Generate(Config{Seed: seed})
		s, rng := mustSnapshot(t, c), rand.New(rand.NewPCG(seed, 9))
		without, empty, enforced, audited := *s, *s, *s, *s
		without.Policies, empty.Policies, enforced.Policies, audited.Policies = nil, nil, nil, nil
		for _, p := range s.Policies {
			isolating, trying := *p, *p
			isolating.Audit, trying.Audit = false, true
			enforced.Policies = append(enforced.Policies, &isolating)
			audited.Policies = append(audited.Policies, &trying)
			if !p.Audit {
				without.Policies = append(without.Policies, p)
				empty.Policies = append(empty.Policies, p)
				continue
			}
			hollow := *p
			hollow.Rules = [2][]inventory.Rule{}
			empty.Policies = append(empty.Policies, &hollow)
		}
		for _, f := range Flows(s, c.Outside, rng, 300) {
			name := fmt.Sprintf("seed %d, %s -> %s %d/%s", seed, f.From.Addr, f.To.Addr, f.Port, f.Protocol)
			v, hollow, strict := policy.Evaluate(s, &plain, f), policy.Evaluate(&empty, &plain, f), policy.Evaluate(&enforced, &plain, f)
			if w := policy.Evaluate(&without, &plain, f); w.Allowed != v.Allowed || w.WouldDeny() {
				t.Errorf("%s: without the audited policies allowed %t (would deny: %t), with them %t", name, w.Allowed, w.WouldDeny(), v.Allowed)
			}
			if hollow.Allowed != v.Allowed || v.WouldDeny() && !hollow.WouldDeny() {
				t.Errorf("%s: with audited policies that allow nothing allowed %t (would deny: %t), before %t", name, hollow.Allowed, hollow.WouldDeny(), v.Allowed)
			}
			if v.WouldDeny() {
				would++
			}
			for i, d := range []policy.Decision{v.Egress, v.Ingress} {
				e := []policy.Decision{strict.Egress, strict.Ingress}[i]
				switch {
				case d.WouldDeny && (!d.Allowed || d.Isolated || len(d.Audited) == 0 || d.Rule != nil || e.Allowed):
					t.Errorf("%s: %+v, enforced %+v", name, d, e)
				case len(d.Audited) > 0 && (d.Isolated || !slices.Equal(d.Audited, e.Policies) || d.WouldDeny == e.Allowed):
					t.Errorf("%s: %+v, enforced %+v", name, d, e)
				}
			}
			for _, w := range []policy.Verdict{policy.Evaluate(&audited, &plain, f), policy.Evaluate(s, &all, f), policy.Evaluate(&enforced, &all, f)} {
				if !w.Allowed || w.WouldDeny() == strict.Allowed {
					t.Errorf("%s: all audited: allowed %t, would deny %t; all enforced: allowed %t", name, w.Allowed, w.WouldDeny(), strict.Allowed)
				}
			}
		}
	}
	if would < 100 {
		t.Errorf("only %d flows would be denied: this proves little", would)
	}
}

func BenchmarkEvaluate(b *testing.B) {
	c := Generate(Config{Seed: 1, Pods: 110, Policies: 1000})
	s, err := c.Snapshot()
	if err != nil {
		b.Fatal(err)
	}
	o := inventory.DefaultOptions()
	flows := Flows(s, c.Outside, rand.New(rand.NewPCG(1, 1)), 1000)
	for i := 0; b.Loop(); i++ {
		policy.Evaluate(s, &o, flows[i%len(flows)])
	}
}
