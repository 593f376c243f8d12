package conformance

import (
	"math/rand/v2"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/tests/cluster"
)

// FuzzJudges holds the evaluator against the compiled table, without a kernel, so
// that it needs no root: a cluster and changes of it, under settings given as one
// bit each, compiled change by change as the daemon does.
func FuzzJudges(f *testing.F) {
	for seed := range uint64(16) {
		f.Add(seed, byte(seed*37))
	}
	gateway := addrs("10.42.0.1", "192.168.254.1", "fd42::1", "fd00:254::1")
	outside := addrs("192.168.254.77", "192.0.2.10", "192.0.2.11", "198.51.100.7", "fd00:254::77", "2001:db8::10", "2001:db8::11", "2001:db8:1::7")
	f.Fuzz(func(t *testing.T, seed uint64, settings byte) {
		rng := rand.New(rand.NewPCG(seed, 4))
		o := optionsOf(settings)
		resolver, compiler := policy.NewResolver(o), ruleset.NewCompiler(tableName, o)
		mark, _ := ruleset.Mark{Mask: o.MarkMask}.Next()
		c := cluster.Generate(configOf(seed, rng, outside, gateway))
		var actual *ruleset.Table
		var last *inventory.Snapshot
		for range 3 {
			s, err := c.Snapshot()
			if err != nil {
				t.Fatalf("%v\n%s", err, c.YAML)
			}
			keepPointers(last, s)
			last = s
			change := ruleset.Diff(actual, compiler.Compile(resolver.Update(s), mark))
			actual = change.Target
			for i, flow := range cluster.Flows(s, outside, rng, 300) {
				x := &exchange{from: flow.From.Addr, to: flow.To.Addr, protocol: flow.Protocol, source: uint16(20000 + i), port: flow.Port}
				for _, ce := range []*cell{{kind: firstPacket, x: x}, {kind: unsolicited, x: x, reply: true}} {
					if ce.ask(s, o, law{inet: actual}); !ce.agreed() {
						t.Fatalf("the evaluator and the table disagree (%s): %s%s", c.Change, ce, c.YAML)
					}
				}
			}
			c = cluster.Mutate(rng, c)
		}
	})
}
