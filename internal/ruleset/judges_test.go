package ruleset_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/tests/cluster"
)

// optionSets are the settings that change verdicts.
func optionSets() []inventory.Options {
	plain := inventory.DefaultOptions()
	external := plain
	external.IPBlockMatchesPods = false
	open := plain
	open.GatewayEgress = false
	open.Reject = true
	ports := plain
	ports.GatewayPorts = []inventory.Port{{Protocol: inventory.UDP, First: 53, Last: 53}}
	ports.NeverIsolate = []inventory.Key{{Namespace: "default"}}
	tried := plain
	tried.Audit, tried.Log = true, false
	return []inventory.Options{plain, external, open, ports, tried}
}

// packet is the first packet of a flow, or its reply, as the table meets it.
func packet(f policy.Flow, reply bool) ruleset.Packet {
	p := ruleset.Packet{
		Hook: "forward", InInterface: "eth0", Source: f.From.Addr, Destination: f.To.Addr,
		Protocol: f.Protocol, SourcePort: 54321, DestPort: f.Port, HopLimit: 63,
	}
	if f.To.Gateway {
		p.Hook = "input"
	}
	if f.From.Gateway {
		p.Hook = "output"
	}
	switch f.Protocol {
	case inventory.ICMP:
		if !f.From.Addr.Is4() {
			p.Protocol = inventory.ICMPv6
		}
		p.SourcePort, p.DestPort, p.ICMPv6Type = 0, 0, 128
	case inventory.ICMPv6:
		p.SourcePort, p.DestPort, p.ICMPv6Type = 0, 0, 128
	}
	if reply {
		p.Source, p.Destination, p.SourcePort, p.DestPort, p.Reply = p.Destination, p.Source, p.DestPort, p.SourcePort, true
	}
	return p
}

// agree holds the evaluator's verdict against the compiled table's, in both
// directions of the flow, and returns a description of a difference.
func agree(s *inventory.Snapshot, o *inventory.Options, t *ruleset.Table, f policy.Flow) string {
	want := policy.Evaluate(s, o, f)
	for _, reply := range []bool{false, true} {
		if reply && (f.To.Gateway || f.From.Gateway) {
			continue // replies to and from the gateway pass by their direction alone
		}
		got := t.Trace(packet(f, reply))
		if (got.Verdict == ruleset.Accept) != want.Allowed {
			text := fmt.Sprintf("%s -> %s %d/%s (reply %v): evaluator says %v (egress %s, ingress %s), the table %s:",
				f.From.Addr, f.To.Addr, f.Port, f.Protocol, reply, want.Allowed, want.Egress.Reason, want.Ingress.Reason, got.Verdict)
			for _, step := range got.Steps {
				text += fmt.Sprintf("\n\t%s: %s", step.Chain, step.Rule.Text())
			}
			return text
		}
		for d, side := range [2]policy.Decision{inventory.Ingress: want.Ingress, inventory.Egress: want.Egress} {
			judged := d == int(inventory.Egress) || want.Egress.Allowed // else the packet is gone before
			own := [2]policy.Endpoint{inventory.Ingress: f.To, inventory.Egress: f.From}[d]
			if own.Pod == nil || !judged || reply && !want.Allowed {
				continue
			}
			if counts(got, ruleset.CounterName(inventory.Direction(d), own.Pod.Key, true)) != side.WouldDeny {
				return fmt.Sprintf("%s -> %s %d/%s (reply %v): would the %s be denied? the evaluator says %v", f.From.Addr, f.To.Addr, f.Port, f.Protocol, reply, inventory.Direction(d), side.WouldDeny)
			}
		}
	}
	return ""
}

// counts says whether a packet passed a rule that counts it there.
func counts(o ruleset.Outcome, counter string) bool {
	return slices.ContainsFunc(o.Steps, func(s ruleset.Step) bool {
		return slices.Contains(s.Rule.Exprs, ruleset.Expr(ruleset.Count{Counter: counter}))
	})
}

// TestEvaluatorAndTableAgree holds two of the three judges against each other on
// generated clusters; the third, the kernel, is in tests/conformance.
func TestEvaluatorAndTableAgree(t *testing.T) {
	clusters, flows := 400, 1500
	if testing.Short() {
		clusters = 40
	}
	cells := 0
	for seed := range uint64(clusters) {
		c := cluster.Generate(cluster.Config{Seed: seed})
		s, err := c.Snapshot()
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, c.YAML)
		}
		o := optionSets()[seed%5]
		table := ruleset.NewCompiler("t", &o).Compile(policy.NewResolver(&o).Update(s), ruleset.Mark{Mask: o.MarkMask, Epoch: 1 << 24})
		rng := rand.New(rand.NewPCG(seed, 1))
		for _, f := range cluster.Flows(s, c.Outside, rng, flows) {
			if !f.From.Addr.IsValid() || !f.To.Addr.IsValid() {
				continue
			}
			cells++
			if text := agree(s, &o, table, f); text != "" {
				t.Fatalf("seed %d: %s\n%s", seed, text, c.YAML)
			}
		}
	}
	t.Logf("%d flows in %d clusters agree", cells, clusters)
}

// TestIncrementalEqualsFresh holds a resolver and compiler that have seen many
// changes against new ones.
func TestIncrementalEqualsFresh(t *testing.T) {
	for seed := range uint64(30) {
		o := optionSets()[seed%5]
		rng := rand.New(rand.NewPCG(seed, 2))
		c := cluster.Generate(cluster.Config{Seed: seed})
		r, comp := policy.NewResolver(&o), ruleset.NewCompiler("t", &o)
		var last *inventory.Snapshot
		for step := range 60 {
			s, err := c.Snapshot()
			if err != nil {
				t.Fatalf("seed %d step %d (%s): %v", seed, step, c.Change, err)
			}
			keepPointers(last, s)
			last = s
			m := ruleset.Mark{Mask: o.MarkMask, Epoch: 1 << 24}
			got := comp.Compile(r.Update(s), m).Text(nil)
			want := ruleset.NewCompiler("t", &o).Compile(policy.NewResolver(&o).Update(s), m).Text(nil)
			if got != want {
				t.Fatalf("seed %d step %d (%s): incremental\n%s\nfresh\n%s", seed, step, c.Change, got, want)
			}
			c = cluster.Mutate(rng, c)
		}
	}
}

// keepPointers gives objects that did not change the pointers they had, as the
// sources do.
func keepPointers(old, fresh *inventory.Snapshot) {
	if old == nil {
		return
	}
	for i, p := range fresh.Pods {
		if o := old.Pod(p.Key); o != nil && string(o.JSON) == string(p.JSON) {
			fresh.Pods[i] = o
		}
	}
	for i, p := range fresh.Policies {
		for _, o := range old.Policies {
			if o.Key == p.Key && string(o.JSON) == string(p.JSON) {
				fresh.Policies[i] = o
			}
		}
	}
}
