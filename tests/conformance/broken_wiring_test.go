package conformance

import (
	"iter"
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

// saying takes away all rules of a chain with a comment.
func saying(chain, comment string) damage {
	return onChain(chain, func(list []ruleset.Rule) []ruleset.Rule {
		return slices.DeleteFunc(list, func(r ruleset.Rule) bool { return r.Comment == comment })
	})
}

// epochFirst puts the epoch before what asks who sends.
func epochFirst(list []ruleset.Rule) []ruleset.Rule {
	i := slices.IndexFunc(list, func(r ruleset.Rule) bool { _, ok := r.Exprs[0].(ruleset.MarkIs); return ok })
	return slices.Insert(slices.Delete(slices.Clone(list), i, i+1), 0, list[i])
}

func onChain(name string, change func([]ruleset.Rule) []ruleset.Rule) damage {
	return func(t *ruleset.Table) iter.Seq[*ruleset.Table] {
		return func(yield func(*ruleset.Table) bool) {
			c := t.Chains[name]
			if c == nil {
				return
			}
			list := change(slices.Clone(c.Rules))
			broken := *t
			broken.Chains = map[string]*ruleset.Chain{}
			for n, chain := range t.Chains {
				broken.Chains[n] = chain
			}
			broken.Chains[name] = &ruleset.Chain{Name: c.Name, Hook: c.Hook, Rules: list}
			yield(&broken)
		}
	}
}

// another lets an interface send from the address of the one after it, too.
func another(list []ruleset.Element, i int) []ruleset.Element {
	next := list[(i+1)%len(list)]
	e := ruleset.Element{Key: list[i].Key[:16] + next.Key[16:]}
	if slices.Contains(list, e) {
		return nil
	}
	return sorted(append(list, e))
}

// uplinkToo takes the LAN's interface for a pod's.
func uplinkToo(list []ruleset.Element, i int) []ruleset.Element {
	if i > 0 {
		return nil
	}
	var b [16]byte
	copy(b[:], lab.UplinkName)
	return sorted(append(list, ruleset.Element{Key: string(b[:])}))
}

func sorted(list []ruleset.Element) []ruleset.Element {
	slices.SortFunc(list, ruleset.Element.Compare)
	return list
}

// youngDamages are mistakes that the inet table hides as soon as it sees what passes
// between ports.
var youngDamages = []wiringDamage{
	{"a port is not checked", true, "bridge, hold; bridge, some; bridge, bare", elements("checked", without[ruleset.Element])},
	{"between ports: the unknown pass", true, "bridge, some", saying("forward", "not known yet")},
	{"between ports: forged sources pass", true, "bridge, hold; bridge, some; bridge, bare", saying("forward", "not the sending pod's address")},
}

type wiringDamage struct {
	name   string
	bridge bool
	on     string
	damage damage
}

// wiringDamages are mistakes in what the tables say about interfaces: in the inet
// table, or in that of the bridge family. on names the topologies and wirings where
// no other rule hides the mistake.
var wiringDamages = []wiringDamage{
	{"a source is missing", false, "routed, hold; routed, free; bridge, hold", elements("src_", without[ruleset.Element])},
	{"a source too many", false, "routed, hold; routed, free", elements("src_", another)},
	{"a pods' interface is missing", false, "routed, hold; routed, free; bridge, hold; bridge, free", elements("pod_ifs", without[ruleset.Element])},
	{"the LAN's interface is a pods' interface", false, "routed, hold; bridge, hold", elements("pod_ifs", uplinkToo)},
	{"the LAN's interface is no other", false, "routed, hold; bridge, hold", elements("others", without[ruleset.Element])},
	{"a pod range is missing", false, "routed, hold; routed, some", elements("ranges_", without[ruleset.Element])},
	{"the epoch comes before the source", false, "routed, hold; routed, free", onChain("forward", epochFirst)},
	{"what is held passes", false, "routed, hold; routed, free; bridge, hold; bridge, free", rules("hold", changeExpr(acceptInstead))},
	{"forward: nobody asks where it comes from", false, "routed, hold; routed, free; bridge, some", saying("forward", "not from where the pod is")},
	{"input: nobody asks where it comes from", false, "routed, hold; routed, free; bridge, hold", saying("input", "not from where the pod is")},
	{"forged sources pass", false, "routed, hold; bridge, hold; bridge, some", saying("foreign", "not the sending pod's address")},
	{"forged pods pass", false, "routed, free; routed, bare", saying("foreign", "another pod's address")},
	{"what comes from a link passes", false, "bridge, free", saying("foreign", "a link's address")},
	{"the unknown pass", false, "routed, hold; routed, some", saying("foreign", "not known yet, or another pod's")},
	{"the LAN is held", false, "routed, hold; bridge, hold; routed, bare", saying("foreign", "carries no pods")},
	{"forward: what goes to no pod passes", false, "bridge, hold; bridge, free", saying("forward", "no pod's address")},
	{"forward: the unknown are reached", false, "routed, hold; routed, some", saying("forward", "not known yet")},
	{"a port's source is missing", true, "bridge, hold; bridge, free", elements("src_", without[ruleset.Element])},
	{"a port's source too many", true, "bridge, hold; bridge, free", elements("src_", another)},
	{"a port is not known", true, "bridge, free", elements("known", without[ruleset.Element])},
	{"an owned address is missing", true, "bridge, hold; bridge, some", elements("owned_", without[ruleset.Element])},
	{"from ports: forged pods pass", true, "bridge, hold; bridge, some; bridge, bare", saying("prerouting", "another pod's address")},
	{"from ports: known pods send as anybody", true, "bridge, free", saying("prerouting", "not the sending pod's address")},
	{"from ports: what is held passes", true, "bridge, hold; bridge, free; bridge, some", rules("hold", changeExpr(acceptInstead))},
}

// TestABrokenWiringIsFound breaks what the tables say about interfaces, and asks as
// TestABrokenTableIsFound does.
func TestABrokenWiringIsFound(t *testing.T) {
	for _, kind := range []lab.Kind{lab.Routed, lab.Bridge} {
		t.Run(kind.String(), func(t *testing.T) {
			r := &run{court: newCourt(t, kind), tally: tally{}}
			r.findAll(wiringDamages)
			if kind == lab.Bridge {
				r.makeYoung()
				r.findAll(youngDamages)
			}
		})
	}
}

// makeYoung has the bridge show the inet hooks nothing, as one that was just made.
func (c *court) makeYoung() {
	_, err := c.Gateway.Run("ip", "link", "set", lab.BridgeName, "type", "bridge", "nf_call_iptables", "0", "nf_call_ip6tables", "0")
	c.must(err)
	c.young = true
}

// findAll breaks tables in all the ways that concern the topology.
func (r *run) findAll(damages []wiringDamage) {
	t, of := r.t.(*testing.T), map[string]uint64{"hold": 1, "free": 2, "some": 3, "bare": 4} // of wirings
	for i, d := range damages {
		for _, on := range strings.Split(d.on, "; ") {
			where, how, _ := strings.Cut(on, ", ")
			if where != r.Kind.String() {
				continue
			}
			t.Run(how+": "+d.name, func(t *testing.T) {
				r.t = t
				r.wiring = wirings[of[how]]
				for seed := *firstSeed + uint64(i); seed < *firstSeed+uint64(i)+30; seed++ {
					if r.breakWiring(seed, d.bridge, d.damage) {
						return
					}
				}
				t.Error("no cluster of 30 has a packet that shows it: the packets that are asked about are too few")
			})
		}
	}
	r.t = t
}

// breakWiring breaks the tables of a cluster, if what is expected and they disagree
// then, and holds the kernel against both.
func (r *run) breakWiring(seed uint64, bridge bool, breaks damage) bool {
	r.t.Helper()
	o := inventory.DefaultOptions()
	r.configure(&o)
	r.forget()
	generated := cluster.Generate(cluster.Config{Seed: seed, V4: range4, V6: range6, Outside: r.outside, Gateway: r.own})
	s, err := generated.Snapshot()
	r.must(err)
	r.where, r.yaml = "a broken wiring", generated.YAML
	r.enforce(s)
	cells := r.everybody(seed, s, r.verify)
	compiler := ruleset.NewCompiler(tableName, &o)
	compiler.Interfaces = r.interfaces(s)
	right := compiler.Compile(policy.NewResolver(&o).Update(s), r.actual.Mark)
	if bridge {
		right = compiler.Interfaces.CompileBridge(tableName)
	}
	n := 0
	for broken := range breaks(right) {
		if n++; n > 30 {
			break
		}
		l := r.law()
		if bridge {
			l.bridge = broken
		} else {
			l.inet = broken
		}
		if !slices.ContainsFunc(cells, func(c *cell) bool { c.ask(s, &o, l); return (c.table.Verdict == ruleset.Accept) != c.want() }) {
			continue
		}
		if bridge {
			r.applyBridge(broken)
		} else {
			r.apply(broken)
		}
		r.proveBroken(r.everybody(seed, s, r.judge))
		return true
	}
	return false
}

// everybody gives forged packets of all kinds, and genuine ones; judge judges those
// that open the flows that the others meet.
func (r *run) everybody(seed uint64, s *inventory.Snapshot, judge func([]*cell)) []*cell {
	rng := rand.New(rand.NewPCG(seed, 8))
	cells := slices.Concat(r.opened(s, rng, judge), r.forgeries(s, rng), r.links())
	r.carried = nil
	for _, f := range cluster.Flows(s, slices.Concat(r.outside, r.ended(s)), rng, 300) {
		if !f.From.Gateway {
			cells = append(cells, &cell{kind: firstPacket, x: r.newExchange(f)})
		}
	}
	return cells
}

// proveBroken has the kernel judge packets by a broken table.
func (r *run) proveBroken(cells []*cell) {
	r.t.Helper()
	r.judge(cells)
	wrong := 0
	for _, c := range cells {
		if c.kernel != (c.table.Verdict == ruleset.Accept) {
			r.t.Fatalf("the broken table, traced, does not say what the kernel does: %s  kernel: %s", c, verdict(c.kernel))
		}
		if c.kernel != c.want() {
			wrong++
		}
	}
	if wrong == 0 {
		r.t.Error("the kernel does what is expected, by a broken table")
	}
	r.t.Logf("the kernel does not do what is expected of %d of %d packets", wrong, len(cells))
}
