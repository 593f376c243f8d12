package conformance

import (
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/tests/cluster"
)

// damage gives the tables that a right one can become by one kind of mistake in
// a compiler.
type damage func(*ruleset.Table) iter.Seq[*ruleset.Table]

// elements damages each element of the sets whose names begin with one of the
// prefixes, separated by spaces. change gets a copy of the elements; nil means
// that there is nothing to break.
func elements(prefixes string, change func(list []ruleset.Element, i int) []ruleset.Element) damage {
	return func(t *ruleset.Table) iter.Seq[*ruleset.Table] {
		return func(yield func(*ruleset.Table) bool) {
			for _, name := range slices.Sorted(maps.Keys(t.Sets)) {
				s := t.Sets[name]
				for i := range s.Elements {
					if !hasPrefix(name, prefixes) {
						continue
					}
					list := change(slices.Clone(s.Elements), i)
					if list == nil {
						continue
					}
					set, broken := *s, *t
					set.Elements = list
					broken.Sets = maps.Clone(t.Sets)
					broken.Sets[name] = &set
					if !yield(&broken) {
						return
					}
				}
			}
		}
	}
}

// rules does the same with the rules of chains.
func rules(prefixes string, change func(list []ruleset.Rule, i int) []ruleset.Rule) damage {
	return func(t *ruleset.Table) iter.Seq[*ruleset.Table] {
		return func(yield func(*ruleset.Table) bool) {
			for _, name := range slices.Sorted(maps.Keys(t.Chains)) {
				c := t.Chains[name]
				for i := range c.Rules {
					if !hasPrefix(name, prefixes) {
						continue
					}
					list := change(slices.Clone(c.Rules), i)
					if list == nil {
						continue
					}
					broken := *t
					broken.Chains = maps.Clone(t.Chains)
					broken.Chains[name] = &ruleset.Chain{Name: c.Name, Hook: c.Hook, Rules: list}
					if !yield(&broken) {
						return
					}
				}
			}
		}
	}
}

func hasPrefix(name, prefixes string) bool {
	return slices.ContainsFunc(strings.Fields(prefixes), func(p string) bool { return strings.HasPrefix(name, p) })
}

func without[T any](list []T, i int) []T { return slices.Delete(list, i, i+1) }

// withoutAllow takes away a rule of a pod's chain that allows something.
func withoutAllow(list []ruleset.Rule, i int) []ruleset.Rule {
	if last(list[i]) != (ruleset.Verdict{Kind: ruleset.Return}) {
		return nil
	}
	return without(list, i)
}

// withoutDeny takes away the end of a pod's chain.
func withoutDeny(list []ruleset.Rule, i int) []ruleset.Rule {
	if v, ok := last(list[i]).(ruleset.Verdict); !ok || v.Kind != ruleset.Goto || !strings.HasPrefix(v.Chain, "deny-") {
		return nil
	}
	return without(list, i)
}

func withoutMap(list []ruleset.Rule, i int) []ruleset.Rule {
	if _, ok := last(list[i]).(ruleset.VerdictMap); !ok {
		return nil
	}
	return without(list, i)
}

func last(r ruleset.Rule) ruleset.Expr { return r.Exprs[len(r.Exprs)-1] }

// changeExpr changes the first expression of a rule that change knows what to do
// with: it gives what comes instead, or false.
func changeExpr(change func(ruleset.Expr) ([]ruleset.Expr, bool)) func([]ruleset.Rule, int) []ruleset.Rule {
	return func(list []ruleset.Rule, i int) []ruleset.Rule {
		for k, e := range list[i].Exprs {
			if instead, ok := change(e); ok {
				list[i].Exprs = slices.Concat(list[i].Exprs[:k], instead, list[i].Exprs[k+1:])
				return list
			}
		}
		return nil
	}
}

// anyPort takes the ports from a rule that asks for an address, too: peers and
// ports are mixed (S13).
func anyPort(list []ruleset.Rule, i int) []ruleset.Rule {
	if len(list[i].Exprs) != 3 {
		return nil
	}
	return changeExpr(func(e ruleset.Expr) ([]ruleset.Expr, bool) {
		l, ok := e.(ruleset.Lookup)
		return nil, ok && strings.HasPrefix(l.Set, "pt-")
	})(list, i)
}

// wrongEnd looks at the other port.
func wrongEnd(e ruleset.Expr) ([]ruleset.Expr, bool) {
	l, ok := e.(ruleset.Lookup)
	for i, f := range l.Key {
		switch f {
		case ruleset.DestPort:
			l.Key[i] = ruleset.SourcePort
			return []ruleset.Expr{l}, ok
		case ruleset.SourcePort:
			l.Key[i] = ruleset.DestPort
			return []ruleset.Expr{l}, ok
		}
	}
	return nil, false
}

// acceptInstead forgets to drop.
func acceptInstead(e ruleset.Expr) ([]ruleset.Expr, bool) {
	_, reject := e.(ruleset.Reject)
	return []ruleset.Expr{ruleset.Verdict{Kind: ruleset.Accept}}, reject || e == ruleset.Verdict{Kind: ruleset.Drop}
}

// swap exchanges the chains of two neighbours in a verdict map.
func swap(list []ruleset.Element, i int) []ruleset.Element {
	if i == 0 || list[i].Jump == list[i-1].Jump {
		return nil
	}
	list[i].Jump, list[i-1].Jump = list[i-1].Jump, list[i].Jump
	return list
}

// shorter ends a range one too early.
func shorter(list []ruleset.Element, i int) []ruleset.Element {
	e := &list[i]
	if e.Last <= e.Key {
		return nil
	}
	b := []byte(e.Last)
	end := len(b) - 1
	if len(b) == 8 { // protocol and port, both padded to four bytes
		end = 5
	}
	for b[end]--; b[end] == 0xff; b[end]-- {
		end--
	}
	e.Last = string(b)
	return list
}

var damages = []struct {
	name   string
	damage damage
}{
	{"an element of an ingress set is missing", elements("in4 in6", without[ruleset.Element])},
	{"an element of an egress set is missing", elements("eg4 eg6", without[ruleset.Element])},
	{"a port is missing", elements("pt-", without[ruleset.Element])},
	{"a range of ports ends one too early", elements("pt-", shorter)},
	{"a range of addresses ends one too early", elements("in4b in6b eg4b eg6b", shorter)},
	{"a pod's address is missing", elements("pods_", without[ruleset.Element])},
	{"an address's ingress is not judged", elements("in_", without[ruleset.Element])},
	{"an address's egress is not judged", elements("eg_", without[ruleset.Element])},
	{"replies from an address are not judged", elements("inr_", without[ruleset.Element])},
	{"replies to an address are not judged", elements("egr_", without[ruleset.Element])},
	{"two pods' chains are swapped", elements("in_ eg_", swap)},
	{"two pods' chains for replies are swapped", elements("inr_ egr_", swap)},
	{"an ingress rule is missing", rules("in-", withoutAllow)},
	{"an egress rule is missing", rules("eg-", withoutAllow)},
	{"a rule for replies from a pod is missing", rules("inr-", withoutAllow)},
	{"a rule for replies to a pod is missing", rules("egr-", withoutAllow)},
	{"a rule does not ask for the port", rules("in- eg-", anyPort)},
	{"a rule asks for the wrong end's port", rules("in- eg-", changeExpr(wrongEnd))},
	{"a rule for replies asks for the wrong end's port", rules("inr- egr-", changeExpr(wrongEnd))},
	{"an isolated pod's chain has no end", rules("in- eg-", withoutDeny)},
	{"the denying chain accepts", rules("deny-", changeExpr(acceptInstead))},
	{"the input hook does not ask for egress", rules("input", withoutMap)},
	{"a family is not judged", rules("judge", withoutMap)},
}

// TestABrokenTableIsFound breaks tables on purpose, to know that the proof can
// fail: the kernel must dissent from the evaluator, and the traced table must
// foresee every one of its verdicts.
func TestABrokenTableIsFound(t *testing.T) {
	for _, kind := range []lab.Kind{lab.Routed, lab.Bridge} {
		t.Run(kind.String(), func(t *testing.T) {
			c := newCourt(t, kind)
			for i, d := range damages {
				t.Run(d.name, func(t *testing.T) {
					c.t = t // fails this one
					for seed := *firstSeed + uint64(i); seed < *firstSeed+uint64(i)+100; seed++ {
						if c.breakOne(seed, d.damage) {
							return
						}
					}
					t.Error("no cluster of 100 has a packet that shows it: the flows that are asked about are too few")
				})
			}
			c.t = t
		})
	}
}

// breakOne breaks the table of a cluster, if the evaluator and the table disagree
// then, and holds the kernel against both.
func (c *court) breakOne(seed uint64, breaks damage) bool {
	rng := rand.New(rand.NewPCG(seed, 5))
	o := inventory.DefaultOptions()
	generated := cluster.Generate(cluster.Config{Seed: seed, V4: range4, V6: range6, Outside: c.outside, Gateway: c.own})
	s, err := generated.Snapshot()
	c.must(err)
	list := cluster.Flows(s, c.outside, rng, 1000)
	right := ruleset.NewCompiler(tableName, &o).Compile(policy.NewResolver(&o).Update(s), ruleset.Mark{Mask: o.MarkMask, Epoch: 1 << 24})
	n := 0
	for broken := range breaks(right) {
		if n++; n > 20 {
			return false
		}
		if shows(s, &o, broken, list) {
			c.holdAgainst(s, &o, broken, list)
			return true
		}
	}
	return false
}

// shows says whether a flow, or the reply of one that was opened before, meets
// the damage.
func shows(s *inventory.Snapshot, o *inventory.Options, t *ruleset.Table, list []policy.Flow) bool {
	return slices.ContainsFunc(list, func(f policy.Flow) bool {
		ce := cell{kind: firstPacket, x: &exchange{from: f.From.Addr, to: f.To.Addr, protocol: f.Protocol, source: 54321, port: f.Port}}
		ce.ask(s, o, law{inet: t})
		return !ce.agreed()
	})
}

// holdAgainst puts a broken table in force, over connections from before there
// were policies.
func (c *court) holdAgainst(s *inventory.Snapshot, o *inventory.Options, broken *ruleset.Table, list []policy.Flow) {
	c.t.Helper()
	c.configure(o)
	c.forget()
	bare := *s
	bare.Policies = nil
	c.enforce(&bare)
	var opening, cells []*cell
	for _, f := range list {
		x := c.newExchange(f)
		opening = append(opening, &cell{kind: firstPacket, x: x})
		cells = append(cells, &cell{kind: lateReply, x: x, reply: true}, &cell{kind: firstPacket, x: c.newExchange(f)})
	}
	c.judge(opening)
	c.snapshot = s
	c.apply(broken)
	c.judge(cells)
	wrong := 0
	for _, ce := range cells {
		if ce.kernel != (ce.table.Verdict == ruleset.Accept) {
			c.t.Fatalf("the broken table, traced, does not say what the kernel does: %s  kernel: %s", ce, verdict(ce.kernel))
		}
		if ce.kernel != ce.evaluator.Allowed {
			wrong++
		}
	}
	if wrong == 0 {
		c.t.Error("the kernel agrees with the evaluator on a broken table")
	}
	c.t.Logf("the kernel and the evaluator disagree on %d of %d packets", wrong, len(cells))
}

// TestAStaleEpochIsFound leaves the epoch as it was over a change that denies:
// connections from before must then go on, and be found.
func TestAStaleEpochIsFound(t *testing.T) {
	c := newCourt(t, lab.Routed)
	o := inventory.DefaultOptions()
	c.configure(&o)
	generated := cluster.Generate(cluster.Config{Seed: *firstSeed, V4: range4, V6: range6, Outside: c.outside, Gateway: c.own})
	s, err := generated.Snapshot()
	c.must(err)
	bare := *s
	bare.Policies = nil
	c.enforce(&bare)
	var opening, cells []*cell
	for _, f := range cluster.Flows(s, c.outside, rand.New(rand.NewPCG(*firstSeed, 6)), 1000) {
		x := c.newExchange(f)
		opening = append(opening, &cell{kind: firstPacket, x: x})
		cells = append(cells, &cell{kind: lateReply, x: x, reply: true})
	}
	c.judge(opening)

	change := ruleset.Diff(c.actual, c.compiler.Compile(c.resolver.Update(s), c.firstMark()))
	if !change.Restricts {
		t.Fatal("the policies restrict nothing: choose another seed")
	}
	for i, transaction := range change.Transactions {
		change.Transactions[i] = slices.DeleteFunc(slices.Clone(transaction), func(op ruleset.Op) bool {
			return op.Kind == ruleset.EditChain && op.Chain.Name == "forward"
		})
	}
	for _, name := range []string{"forward"} {
		change.Target.Chains[name] = c.actual.Chains[name]
	}
	c.must(c.conn.Apply(change.Transactions))
	c.actual, c.snapshot = change.Target, s
	c.judge(cells)
	wrong := 0
	for _, ce := range cells {
		if ce.kernel != (ce.table.Verdict == ruleset.Accept) {
			t.Fatalf("the table, traced, does not say what the kernel does: %s  kernel: %s", ce, verdict(ce.kernel))
		}
		if ce.kernel && !ce.evaluator.Allowed {
			wrong++
		}
	}
	if wrong == 0 {
		t.Error("no connection went on that the policies deny")
	}
}
