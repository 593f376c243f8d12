// Package conformance is the project's main proof. Three judges look at the same
// packets: the evaluator, which reads the policies as the specification does; the
// compiled table, traced without a kernel; and the kernel that holds the table,
// with real packets on routed veths and on a Linux bridge. All must agree on
// every packet of thousands of generated clusters.
//
// What always holds: a run is reproducible. Each cluster comes from a seed that a
// failure names; -seed begins with that one, -clusters says how many there are.
package conformance

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/tests/cluster"
)

var (
	firstSeed = flag.Uint64("seed", 1, "the seed of the first cluster")
	howMany   = flag.Int("clusters", 0, "clusters on each topology, changed ones included (default 1500, with -short 100)")
)

const (
	steps     = 4   // of each seed: a new cluster, then changes of it
	flows     = 300 // first packets in each cluster
	unasked   = 50
	replies   = 150
	before    = 150 // opened before a new cluster's policies come
	carryOver = 100 // exchanges that go on in the next cluster
)

func TestThreeJudges(t *testing.T) {
	n := *howMany
	switch {
	case n > 0:
	case testing.Short():
		n = 100
	default:
		n = 1500
	}
	for _, kind := range []lab.Kind{lab.Routed, lab.Bridge} {
		t.Run(kind.String(), func(t *testing.T) {
			r := &run{court: newCourt(t, kind), tally: tally{}}
			for seed := *firstSeed; r.clusters < n; seed++ {
				r.seed(seed)
			}
			all := r.tally["everything"]
			t.Logf("%s: %d clusters (%d of them changes of the one before, %d tables read back), %d packets agreed on, %d allowed and %d denied",
				kind, r.clusters, r.changed, r.tablesRead, all[0]+all[1], all[1], all[0])
			r.tally.print(t)
			if n >= 100 {
				r.tally.check(t)
			}
		})
	}
}

// run is one topology's clusters.
type run struct {
	*court
	tally                         tally
	clusters, changed, tablesRead int
	where                         string // what is being judged, to find it again
	yaml                          []byte
}

// seed judges a new cluster and changes of it.
func (r *run) seed(seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3)) // of the cluster alone: what was there before must not matter
	settings := pickOptions(rng)
	r.wiring = wiringOf(seed)
	r.configure(optionsOf(settings))
	c := cluster.Generate(configOf(seed, rng, r.outside, r.own))
	for step := range steps {
		if step > 0 {
			c = cluster.Mutate(rng, c)
			r.changed++
		}
		r.clusters++
		r.where = fmt.Sprintf("seed %d, step %d (%s), settings %#02x, %s, %s", seed, step, c.Change, settings, r.wiring, r.Kind)
		r.yaml = c.YAML
		s, err := c.Snapshot()
		if err != nil {
			r.t.Fatalf("%s: %v\n%s", r.where, err, c.YAML)
		}
		probing := rand.New(rand.NewPCG(seed, 100+uint64(step)))
		if step == 0 {
			r.openBefore(s, probing)
		}
		r.enforce(s)
		r.compareTables(step == 0)
		list := cluster.Flows(s, slices.Concat(r.outside, r.ended(s)), probing, flows)
		r.judgeAll(list, probing)
	}
}

// openBefore opens connections while there are no policies yet, which then come
// over them (S29).
func (r *run) openBefore(s *inventory.Snapshot, rng *rand.Rand) {
	bare := *s
	bare.Policies = nil
	r.enforce(&bare)
	var cells []*cell
	for _, f := range cluster.Flows(s, r.outside, rng, before) { // the ports of the policies to come
		if !f.From.Gateway {
			x := r.newExchange(f)
			cells = append(cells, &cell{kind: firstPacket, x: x})
			r.carried = append(r.carried, x)
		}
	}
	r.verify(cells)
}

// ended lists addresses that pods have which are no more: nobody's, for policies.
func (r *run) ended(s *inventory.Snapshot) (list []netip.Addr) {
	for _, p := range s.Pods {
		for _, a := range p.Addresses {
			if n := r.Owner(a); n != nil && n != r.Gateway && s.PodAt(a) == nil && !slices.Contains(list, a) {
				list = append(list, a)
			}
		}
	}
	return list
}

// judgeAll asks about new flows, about replies to nothing, about the flows'
// replies, and before all that about the exchanges that are under way.
func (r *run) judgeAll(list []policy.Flow, rng *rand.Rand) {
	r.verify(r.goOn())
	var fresh []*exchange
	var cells []*cell
	for i, f := range list {
		if f.From.Gateway && i%3 != 0 {
			continue // always allowed
		}
		x := r.newExchange(f)
		fresh = append(fresh, x)
		cells = append(cells, &cell{kind: firstPacket, x: x})
		if i%(len(list)/unasked+1) == 0 {
			cells = append(cells, &cell{kind: unsolicited, x: r.newExchange(f), reply: true})
		}
	}
	r.verify(cells)
	r.carried = append(r.carried, fresh...)
	if rng.IntN(2) == 0 { // replies have to be judged, too
		r.sweep(0)
	}
	shuffle(rng, fresh)
	cells = nil
	spent := map[*exchange]bool{} // denied ones with a reply: that is a connection of its own
	for _, x := range fresh[:min(replies, len(fresh))] {
		cells = append(cells, &cell{kind: reply, x: x, reply: true})
		spent[x] = !x.open
	}
	r.verify(cells)
	r.carried = slices.DeleteFunc(r.carried, func(x *exchange) bool { return spent[x] })
	shuffle(rng, r.carried)
	r.carried = r.carried[:min(carryOver, len(r.carried))]
}

func shuffle[T any](rng *rand.Rand, list []T) {
	rng.Shuffle(len(list), func(i, k int) { list[i], list[k] = list[k], list[i] })
}

// goOn has exchanges from before the change go on, from either end.
func (r *run) goOn() []*cell {
	var cells []*cell
	r.carried = slices.DeleteFunc(r.carried, func(x *exchange) bool {
		from, to := r.Owner(x.from), r.Owner(x.to)
		if from == nil || to == nil || from == to {
			return true // no packet comes or leaves
		}
		c := &cell{kind: again, x: x}
		if len(cells)%2 == 0 {
			c.kind, c.reply = lateReply, true
		}
		cells = append(cells, c)
		return c.reply && !x.open
	})
	return cells
}

// verify has packets judged, counts them, and fails where a judge dissents.
func (r *run) verify(cells []*cell) {
	r.t.Helper()
	r.judge(cells)
	for i, c := range cells {
		if !c.unanimous() {
			r.dissent(cells, i)
		}
		r.tally.add(c)
	}
}

// dissent tells all about the first packet that the judges disagree on.
func (r *run) dissent(cells []*cell, i int) {
	r.t.Helper()
	c := cells[i]
	others := 0
	for _, o := range cells[i+1:] {
		if !o.unanimous() {
			others++
		}
	}
	text := fmt.Sprintf("the judges disagree on this packet and %d more: %s\n%s  kernel: %s\n", others, r.where, c, verdict(c.kernel))
	text += fmt.Sprintf("  a new connection on a table made anew, kernel: %s\n", verdict(r.anew(c)))
	seed, _, _ := strings.Cut(strings.TrimPrefix(r.where, "seed "), ",")
	r.t.Fatalf("%s\nagain: go test ./tests/conformance -run TestThreeJudges/%s -seed %s -clusters %d\n(or with an earlier seed, if what was there before matters)\n%s",
		text, r.Kind, seed, steps, r.yaml)
}

// anew gives the kernel's verdict with no history: to tell what a table says
// from how it came about.
func (r *run) anew(c *cell) bool {
	_, err := r.conn.Delete()
	r.must(err)
	r.must(r.conn.Claim())
	r.forget()
	r.actual = nil
	inet, _ := r.compile(ruleset.NewCompiler(tableName, r.options), policy.NewResolver(r.options), r.snapshot)
	r.apply(inet)
	again := &cell{kind: firstPacket, x: r.newExchange(c.flow)}
	r.judge([]*cell{again})
	return again.kernel
}

// compareTables holds the table that came about change by change against one
// made anew, and at times against what the kernel reads back.
func (r *run) compareTables(read bool) {
	r.t.Helper()
	fresh, bridge := r.compile(ruleset.NewCompiler(tableName, r.options), policy.NewResolver(r.options), r.snapshot)
	pairs := [][2]*ruleset.Table{{r.actual, fresh}}
	if bridge != nil && r.bridgeActual != nil {
		pairs = append(pairs, [2]*ruleset.Table{r.bridgeActual, bridge})
	}
	for _, p := range pairs {
		if d := ruleset.CompareText(p[0].Text(nil), p[1].Text(nil)); d != "no difference\n" {
			r.t.Fatalf("%s: a table made anew differs from the one in force:\n%s%s", r.where, d, r.yaml)
		}
	}
	if !read {
		return
	}
	r.tablesRead++
	if err := r.readBack(); err != nil {
		r.t.Fatalf("%s: %v\n%s", r.where, err, r.yaml)
	}
}

// tally counts cells by what they are, denied and allowed.
type tally map[string]*[2]int

func (t tally) add(c *cell) {
	if c.held {
		t.count("held: "+c.kind, false)
		return
	}
	ends := kindOf(c.flow.From) + " to " + kindOf(c.flow.To)
	family := "IPv6"
	if c.flow.From.Addr.Is4() {
		family = "IPv4"
	}
	proto := c.x.protocol.String()
	if !c.x.protocol.HasPorts() {
		proto = "echo"
	}
	kind := c.kind
	if c.open {
		kind += ", open"
	}
	keys := []string{"everything", "kind: " + kind, "ends: " + ends, "protocol: " + family + " " + proto}
	for _, d := range []policy.Decision{c.evaluator.Egress, c.evaluator.Ingress} {
		reason, _, _ := strings.Cut(d.Reason, " by ")
		keys = append(keys, "reason: "+reason)
	}
	for _, key := range keys {
		t.count(key, c.evaluator.Allowed)
	}
}

func (t tally) count(key string, allowed bool) {
	if t[key] == nil {
		t[key] = &[2]int{}
	}
	if allowed {
		t[key][1]++
	} else {
		t[key][0]++
	}
}

func kindOf(e policy.Endpoint) string {
	switch {
	case e.Gateway:
		return "gateway"
	case e.Pod != nil:
		return "pod"
	}
	return "outside"
}

func (t tally) print(tb testing.TB) {
	for _, key := range slices.Sorted(maps.Keys(t)) {
		n := t[key]
		tb.Logf("%-34s %8d cells, %8d allowed, %8d denied (%d%% allowed)", key, n[0]+n[1], n[1], n[0], percent(n))
	}
}

func percent(n *[2]int) int { return 100 * n[1] / (n[0] + n[1]) }

// check fails where cells of a kind were nearly all allowed or nearly all denied,
// though they could have been either, and where a reason was never met.
func (t tally) check(tb testing.TB) {
	for key, n := range t {
		share := percent(n)
		_, ends, isEnds := strings.Cut(key, "ends: ")
		switch {
		case strings.HasPrefix(key, "reason: "), strings.HasPrefix(key, "held: "):
		case key == "kind: "+reply+", open", isEnds && (!strings.Contains(ends, "pod") || ends == "gateway to pod"):
			if n[0] > 0 {
				tb.Errorf("%s: %d denied", key, n[0])
			}
		case share < 3 || share > 97, key == "everything" && (share < 25 || share > 75):
			tb.Errorf("%s: %d%% are allowed: this proves little", key, share)
		}
	}
	for _, kind := range []string{firstPacket, unsolicited, again} {
		if t["held: "+kind] == nil {
			tb.Errorf("no %s was held", kind)
		}
	}
	for _, reason := range []string{"allowed", "not allowed", "not isolated", "never isolated", "not a pod", "gateway's own traffic",
		"the gateway is open to pods", "the gateway's port is open to pods"} {
		if t["reason: "+reason] == nil {
			tb.Errorf("no packet was judged so: %s", reason)
		}
	}
}
