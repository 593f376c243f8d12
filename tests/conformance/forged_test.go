package conformance

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/tests/cluster"
)

// The kinds of cells with a sender of their own.
const (
	forged   = "another's address"
	borrowed = "another's address in an established flow"
	linked   = "a link's addresses"
)

// TestWhoSendsAsWhom has pods send from addresses that are not theirs, into flows
// that are established too, and between addresses of a link. Where interfaces are
// known, S11's exception holds; where not, the packet is its address's.
func TestWhoSendsAsWhom(t *testing.T) {
	for _, kind := range []lab.Kind{lab.Routed, lab.Bridge} {
		t.Run(kind.String(), func(t *testing.T) {
			r := &run{court: newCourt(t, kind), tally: tally{}}
			for seed := *firstSeed; seed < *firstSeed+24; seed++ {
				r.forge(seed)
			}
			for _, w := range wirings {
				for _, k := range []string{forged, borrowed, linked} {
					n := r.tally[w.String()+": "+k]
					if kind == lab.Routed && k == linked {
						continue // no route leads from one link to another
					}
					if n == nil || !w.known && n[1] == 0 {
						t.Errorf("%s: %s: no packet came through, or none was sent: this proves nothing", w, k)
						continue
					}
					if w.known && n[0] == 0 || w.known && k == linked && n[1] > 0 {
						t.Errorf("%s: %s: %d passed, %d did not", w, k, n[1], n[0])
					}
					t.Logf("%s: %s: %d passed, %d did not", w, k, n[1], n[0])
				}
			}
		})
	}
}

// TestWhoSendsAsWhomOnAYoungBridge does the same before the bridge shows the inet
// hooks what passes between its ports: then its own table alone stands there.
func TestWhoSendsAsWhomOnAYoungBridge(t *testing.T) {
	r := &run{court: newCourt(t, lab.Bridge), tally: tally{}}
	r.makeYoung()
	for seed := *firstSeed; seed < *firstSeed+20; seed++ {
		r.forge(seed)
	}
	for _, w := range wirings {
		if n := r.tally[w.String()+": "+forged]; n == nil || n[1] == 0 || w.known && n[0] == 0 {
			t.Errorf("%s: %v denied and allowed: this proves nothing", w, n)
		}
	}
}

// forge judges a cluster's forged packets.
func (r *run) forge(seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	r.wiring = wiringOf(seed)
	o := inventory.DefaultOptions()
	r.configure(&o)
	generated := cluster.Generate(configOf(seed, rng, r.outside, r.own))
	s, err := generated.Snapshot()
	r.must(err)
	r.where, r.yaml = fmt.Sprintf("seed %d, forged, %s, %s", seed, r.wiring, r.Kind), generated.YAML
	r.enforce(s)
	for _, cells := range [][]*cell{r.forgeries(s, rng), r.links(), r.opened(s, rng, r.verify)} {
		r.judge(cells)
		for _, c := range cells {
			if c.kernel != c.want() || !c.agreed() && c.kind != linked {
				t := r.t
				t.Fatalf("seed %d, %s, %s: %s from %s: %s  kernel: %s\n%s", seed, r.wiring, r.Kind, c.kind, c.x.sender.HostInterface, c, verdict(c.kernel), r.yaml)
			}
			r.tally.count(r.wiring.String()+": "+c.kind, c.kernel)
		}
	}
	// What was borrowed is its owner's still.
	r.verify(r.goOn())
	r.carried = nil
}

// forgeries are packets of each pod from addresses of other pods, of the outside and
// of nobody, and from its own.
func (r *run) forgeries(s *inventory.Snapshot, rng *rand.Rand) (cells []*cell) {
	var sources []netip.Addr
	for _, p := range s.Pods {
		if p.Enforceable() {
			sources = append(sources, p.Addresses...)
		}
	}
	sources = append(sources, r.outside...)
	for _, r := range []netip.Prefix{range4, range6} {
		free := r.Addr()
		for range 200 + rng.IntN(20) {
			free = free.Next()
		}
		sources = append(sources, free)
	}
	targets := append(append([]netip.Addr{}, sources[:len(sources)-2]...), r.own...)
	for _, n := range append([]*lab.Namespace{r.Outside}, r.pods...) {
		if len(n.Addresses) == 0 {
			continue
		}
		for range 40 {
			from, to := sources[rng.IntN(len(sources))], targets[rng.IntN(len(targets))]
			if from.Is4() != to.Is4() || from == to || r.Owner(to) == n || r.Owner(from) == r.Owner(to) || n == r.Outside && r.Owner(to) == r.Gateway {
				continue
			}
			x := r.newExchange(policy.Flow{From: policy.Endpoint{Addr: from}, To: policy.Endpoint{Addr: to}, Protocol: inventory.UDP, Port: uint16(80 + rng.IntN(12))})
			x.sender = n
			cells = append(cells, &cell{kind: forged, x: x})
		}
	}
	return cells
}

// links are packets between pods of a bridge from or to addresses of the link.
func (r *run) links() (cells []*cell) {
	if r.Kind != lab.Bridge {
		return nil
	}
	for i, n := range r.pods {
		other := r.pods[(i+1)%len(r.pods)]
		for _, own := range append([]netip.Addr{n.LinkLocal}, n.Addresses...) {
			targets := []netip.Addr{other.LinkLocal, netip.MustParseAddr("ff02::1"), netip.MustParseAddr("ff05::fb")}
			for _, a := range other.Addresses {
				if own == n.LinkLocal && a.Is6() {
					targets = append(targets, a)
				}
			}
			if own.Is4() {
				targets = addrs("224.0.0.251", "239.1.2.3", "255.255.255.255")
			}
			for _, to := range targets {
				x := r.newExchange(policy.Flow{From: policy.Endpoint{Addr: own}, To: policy.Endpoint{Addr: to}, Protocol: inventory.UDP, Port: 5353})
				x.sender, x.receiver = n, other
				cells = append(cells, &cell{kind: linked, x: x})
			}
		}
	}
	return cells
}

// opened are packets that a third pod sends into flows between two others.
func (r *run) opened(s *inventory.Snapshot, rng *rand.Rand, judge func([]*cell)) (cells []*cell) {
	var opening []*cell
	for _, f := range cluster.Flows(s, r.outside, rng, 200) {
		if f.From.Pod != nil && !f.To.Gateway && f.Protocol.HasPorts() && r.Owner(f.From.Addr) != r.Owner(f.To.Addr) {
			opening = append(opening, &cell{kind: firstPacket, x: r.newExchange(f)})
		}
	}
	judge(opening)
	for i, c := range opening {
		n := r.pods[i%len(r.pods)]
		if !c.x.open || n == r.Owner(c.x.from) || n == r.Owner(c.x.to) {
			continue
		}
		r.carried = append(r.carried, c.x)
		x := *c.x
		x.sender = n
		cells = append(cells, &cell{kind: borrowed, x: &x})
	}
	return cells
}
