package ruleset

import (
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/tests/cluster"
)

// kernel applies a transaction to a table as the kernel would, and fails where
// the kernel would refuse.
func kernel(t *Table, tx Transaction) (*Table, error) {
	n := &Table{Name: t.Name, Counters: maps.Clone(t.Counters), Sets: maps.Clone(t.Sets), Chains: maps.Clone(t.Chains)}
	for _, op := range tx {
		switch op.Kind {
		case AddCounter:
			n.Counters[op.Name] = true
		case DeleteCounter:
			delete(n.Counters, op.Name)
		case AddSet:
			if n.Sets[op.Set.Name] != nil {
				return nil, fmt.Errorf("set %s is there already", op.Set.Name)
			}
			n.Sets[op.Set.Name] = op.Set
		case DeleteSet:
			delete(n.Sets, op.Set.Name)
		case AddChain, EditChain:
			if (op.Kind == EditChain) == (n.Chains[op.Chain.Name] == nil) {
				return nil, fmt.Errorf("chain %s: there %v, operation %d", op.Chain.Name, n.Chains[op.Chain.Name] != nil, op.Kind)
			}
			n.Chains[op.Chain.Name] = op.Chain
		case DeleteChain:
			delete(n.Chains, op.Chain.Name)
		case AddElements, DeleteElements:
			old := n.Sets[op.Set.Name]
			if old == nil {
				return nil, fmt.Errorf("no set %s", op.Set.Name)
			}
			s := *old
			s.Elements = edited(old.Elements, op)
			if s.Size > 0 && len(s.Elements) > int(s.Size) {
				return nil, fmt.Errorf("set %s overflows: %d elements, size %d", s.Name, len(s.Elements), s.Size)
			}
			n.Sets[s.Name] = &s
		}
	}
	n.Mark = n.MarkInForce()
	return n, references(n)
}

func edited(old []Element, op Op) []Element {
	var out []Element
	if op.Kind == DeleteElements {
		for _, e := range old {
			if !slices.Contains(op.Elements, e) {
				out = append(out, e)
			}
		}
		return out
	}
	out = append(slices.Clone(old), op.Elements...)
	slices.SortFunc(out, Element.Compare)
	return out
}

// references says whether everything that is named is there.
func references(t *Table) error {
	for _, c := range t.Chains {
		for _, r := range c.Rules {
			for _, e := range r.Exprs {
				ok := true
				switch e := e.(type) {
				case Lookup:
					ok = t.Sets[e.Set] != nil
				case VerdictMap:
					ok = t.Sets[e.Map] != nil
				case Count:
					ok = t.Counters[e.Counter]
				case Verdict:
					ok = e.Chain == "" || t.Chains[e.Chain] != nil
				}
				if !ok {
					return fmt.Errorf("chain %s: %s names what is not there", c.Name, r.Text())
				}
			}
		}
	}
	for _, s := range t.Sets {
		for _, e := range s.Elements {
			if e.Jump != "" && t.Chains[e.Jump] == nil {
				return fmt.Errorf("map %s jumps to %s, which is not there", s.Name, e.Jump)
			}
		}
	}
	return nil
}

// underWay traces a packet that began with the rules of one table and finds its
// sets from the lookup number at on in the next one.
func underWay(before, after *Table, at int, p Packet) (Outcome, int) {
	lookups := 0
	tr := tracer{table: before, packet: p}
	tr.set = func(name string) *Set {
		lookups++
		if lookups > at {
			if s := after.Sets[name]; s != nil {
				return s
			}
		}
		return before.Sets[name]
	}
	return tr.trace(), lookups
}

// flowPackets makes the first packet of a flow and the reply to it.
func flowPackets(f policy.Flow) []Packet {
	p := Packet{Hook: "forward", InInterface: "eth0", Source: f.From.Addr, Destination: f.To.Addr, Protocol: f.Protocol, SourcePort: 40000, DestPort: f.Port, HopLimit: 63}
	if f.To.Gateway {
		p.Hook = "input"
		return []Packet{p}
	}
	r := p
	r.Source, r.Destination, r.SourcePort, r.DestPort, r.Reply = p.Destination, p.Source, p.DestPort, p.SourcePort, true
	return []Packet{p, r}
}

// wiring is where the pods of a generated cluster hang: nowhere that is known, on
// routed interfaces, or on one bridge.
type wiring struct {
	kind, hold bool
	bridge     bool
	of, was    map[netip.Addr]string // interface by address, as of the last snapshot that had it; was: of the one before
}

func (w *wiring) interfaces(s *inventory.Snapshot) Interfaces {
	var i Interfaces
	if !w.kind {
		return i
	}
	w.was = maps.Clone(w.of)
	i.Hold = w.hold
	i.Others = []string{"eth0"}
	i.Ranges = policy.Ranges([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}, nil)
	for _, p := range s.Pods {
		name := "cni0"
		if !w.bridge {
			h := fnv.New32()
			h.Write([]byte(p.Key.String()))
			name = fmt.Sprintf("v%x", h.Sum32())
		}
		if !p.Enforceable() || p.Remote || strings.HasSuffix(p.Key.Name, "3") { // one that no CNI result tells of
			continue
		}
		i.Pods = append(i.Pods, name)
		for _, a := range p.Addresses {
			i.Sources = append(i.Sources, Source{name, a})
			w.of[a] = name
		}
	}
	slices.Sort(i.Pods)
	i.Pods = slices.Compact(i.Pods)
	return i
}

// place gives a packet the interfaces of its ends; sometimes it is forged. It says
// whether the source had been the interface's before the change: else the packet
// may be lost, as it was forged when it was sent.
func (w *wiring) place(p *Packet, rng *rand.Rand) (genuine bool) {
	at := func(a netip.Addr) string {
		if name := w.of[a]; name != "" {
			return name
		}
		return "eth0"
	}
	p.InInterface, p.OutInterface = at(p.Source), at(p.Destination)
	if w.kind && rng.IntN(8) == 0 {
		for _, name := range w.of {
			p.InInterface = name
			break
		}
	}
	return !w.kind || w.was[p.Source] == p.InInterface || w.was[p.Source] == "" && p.InInterface == "eth0"
}

// TestChangesAreSafeForPacketsUnderWay is S30 without a kernel: after each
// transaction of a change, and for packets that meet it half way, what passes is
// allowed before or after, and what is allowed before and after passes.
func TestChangesAreSafeForPacketsUnderWay(t *testing.T) {
	seeds, steps := 60, 25
	if testing.Short() {
		seeds = 6
	}
	packets, crossing := 0, 0
	for seed := range uint64(seeds) {
		o := inventory.DefaultOptions()
		rng := rand.New(rand.NewPCG(seed, 3))
		c := cluster.Generate(cluster.Config{Seed: seed})
		r, comp := policy.NewResolver(&o), NewCompiler("t", &o)
		w := wiring{kind: seed%3 > 0, hold: seed%4 > 0, bridge: seed%3 == 1, of: map[netip.Addr]string{}}
		var actual *Table
		for step := range steps {
			s, err := c.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			comp.Interfaces = w.interfaces(s)
			desired := comp.Compile(r.Update(s), Mark{Mask: o.MarkMask, Epoch: 1 << 24})
			change := Diff(actual, desired)
			states := []*Table{actual}
			if actual == nil {
				states[0] = &Table{Name: "t", Counters: map[string]bool{}, Sets: map[string]*Set{}, Chains: map[string]*Chain{}}
			}
			for i, tx := range change.Transactions {
				next, err := kernel(states[len(states)-1], tx)
				if err != nil {
					t.Fatalf("seed %d step %d (%s), transaction %d: %v", seed, step, c.Change, i, err)
				}
				states = append(states, next)
			}
			if got, want := states[len(states)-1].Text(nil), change.Target.Text(nil); got != want {
				t.Fatalf("seed %d step %d (%s): the transactions lead to\n%s\nnot to\n%s", seed, step, c.Change, got, want)
			}
			if text := CompareText(change.Target.Text(nil), desired.Text(nil)); text != "no difference\n" {
				t.Fatalf("seed %d step %d: the target is not what was desired:\n%s", seed, step, text)
			}
			for name := range change.Target.Sets {
				if strings.HasSuffix(name, ".b") {
					crossing++
				}
			}
			if actual != nil {
				for _, f := range cluster.Flows(s, c.Outside, rng, 150) {
					if !f.From.Addr.IsValid() || !f.To.Addr.IsValid() || f.From.Gateway {
						continue
					}
					for _, p := range flowPackets(f) {
						packets++
						genuine := w.place(&p, rng)
						if last := states[len(states)-1]; !change.Restricts && states[0].Trace(p).Verdict == Accept && last.Trace(p).Verdict == Drop {
							t.Fatalf("seed %d step %d (%s): a change that says it restricts nothing denies %+v", seed, step, c.Change, p)
						}
						if text := followed(states, p, genuine); text != "" {
							t.Fatalf("seed %d step %d (%s): %s", seed, step, c.Change, text)
						}
					}
				}
			}
			actual = change.Target
			for range 1 + rng.IntN(6) { // several changes at once cross
				c = cluster.Mutate(rng, c)
			}
		}
	}
	t.Logf("%d packets, %d sets under new names", packets, crossing)
	if !testing.Short() && crossing == 0 {
		t.Error("no change needed a set under a new name: this test proves less than it says")
	}
}

// followed says what is wrong with what a packet meets during a change.
func followed(states []*Table, p Packet, genuine bool) string {
	first, last := states[0].Trace(p), states[len(states)-1].Trace(p)
	check := func(what string, got Outcome) string {
		switch {
		case got.Verdict == Accept && first.Verdict == Drop && last.Verdict == Drop:
			return fmt.Sprintf("leaked %s: %+v\nafter steps %v", what, p, got.Steps)
		case genuine && got.Verdict == Drop && first.Verdict == Accept && last.Verdict == Accept:
			return fmt.Sprintf("lost %s: %+v\nafter steps %v", what, p, got.Steps)
		}
		return ""
	}
	for i := range len(states) - 1 {
		if text := check(fmt.Sprintf("after transaction %d of %d", i, len(states)-1), states[i].Trace(p)); text != "" {
			return text
		}
		for at := 0; ; at++ {
			got, lookups := underWay(states[i], states[i+1], at, p)
			if text := check(fmt.Sprintf("in transaction %d of %d, from lookup %d on", i+1, len(states)-1, at), got); text != "" {
				return text
			}
			if at >= lookups {
				break
			}
		}
	}
	return ""
}

// A table with another mask gets the epoch that was chosen for it, since no
// connection carries that one; the next change bumps it.
func TestAnotherMaskKeepsItsEpoch(t *testing.T) {
	c := cluster.Generate(cluster.Config{Seed: 1})
	s, err := c.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	o := inventory.DefaultOptions()
	list := policy.NewResolver(&o).Update(s)
	compile := func(m Mark) *Table { return NewCompiler("t", &o).Compile(list, m) }
	actual := Diff(nil, compile(Mark{0xff000000, 0x05000000})).Target
	chosen := Mark{0x00f00000, 0x00300000}
	o.MarkMask = chosen.Mask
	change := Diff(actual, compile(chosen))
	if !change.Restricts || change.Target.Mark != chosen || change.Target.MarkInForce() != chosen {
		t.Errorf("another mask: restricts %v, mark %x, in force %x; want %x", change.Restricts, change.Target.Mark, change.Target.MarkInForce(), chosen)
	}
	next := Diff(change.Target, NewCompiler("t", &o).Compile(nil, chosen))
	if want := (Mark{0x00f00000, 0x00400000}); !next.Restricts || next.Target.Mark != want {
		t.Errorf("the next change: restricts %v, mark %x; want %x", next.Restricts, next.Target.Mark, want)
	}
}
