package traffic

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// Of each family, one address that is always in the blocks and one that never is.
var (
	always = []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:100::7")}
	never  = []netip.Addr{netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8:100::9")}
)

// regions are where blocks overlap, nest and touch; each is used at every length
// from its own on.
var regions = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("128.0.0.0/1"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("198.51.100.0/28"),
	netip.MustParsePrefix("255.255.255.240/28"), netip.MustParsePrefix("0.0.0.0/28"), netip.MustParsePrefix("203.0.113.0/27"),
	netip.MustParsePrefix("::/0"), netip.MustParsePrefix("8000::/1"), netip.MustParsePrefix("2001:db8:100::/112"), netip.MustParsePrefix("2001:db8:100::/124"),
	netip.MustParsePrefix("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124"), netip.MustParsePrefix("::/124"), netip.MustParsePrefix("2001:db8:200::/123"),
}

// randomIn gives an address of a prefix.
func randomIn(rng *rand.Rand, p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] = b[i/8]&^(0x80>>(i%8)) | byte(rng.IntN(2))<<(7-i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// randomBlock gives an ipBlock that never holds the address that is never in.
func randomBlock(rng *rand.Rand) string {
	region := regions[rng.IntN(len(regions))]
	bits := region.Bits() + rng.IntN(region.Addr().BitLen()-region.Bits()+1)
	if rng.IntN(3) == 0 {
		bits = region.Bits() + rng.IntN(min(3, region.Addr().BitLen()-region.Bits()+1))
	}
	block := netip.PrefixFrom(randomIn(rng, region), bits).Masked()
	var except []string
	for range rng.IntN(3) {
		if n := block.Addr().BitLen() - bits; n > 0 {
			except = append(except, netip.PrefixFrom(randomIn(rng, block), bits+1+rng.IntN(n)).Masked().String())
		}
	}
	for _, a := range never {
		if !block.Contains(a) {
			continue
		}
		if bits == a.BitLen() {
			return randomBlock(rng)
		}
		except = append(except, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return blockText(block, except)
}

func blockText(block netip.Prefix, except []string) string {
	if len(except) == 0 {
		return fmt.Sprintf("{ipBlock: {cidr: %q}}", block)
	}
	return fmt.Sprintf("{ipBlock: {cidr: %q, except: [\"%s\"]}}", block, strings.Join(except, `", "`))
}

// covering gives blocks of each family that hold the address that is always in.
func covering(rng *rand.Rand) []string {
	var list []string
	for i, a := range always {
		bits := a.BitLen() - rng.IntN(a.BitLen()+1)
		block := netip.PrefixFrom(a, bits).Masked()
		var except []string
		if block.Contains(never[i]) {
			except = append(except, netip.PrefixFrom(never[i], a.BitLen()).String())
		}
		list = append(list, blockText(block, except))
	}
	return list
}

// TestIntervals edits sets of overlapping, nested and touching blocks in place,
// step by step, and asks the kernel after each step what is in them.
func TestIntervals(t *testing.T) {
	w := &world{Lab: lab.ForTest(t, lab.Topology{}), t: t}
	w.pods()
	w.must(w.AddOutside(append(slices.Clone(always), never...)...))
	p := newPipeline(t, w.Lab)
	rng := rand.New(rand.NewPCG(11, 11))
	blocks := make([]string, 30)
	for i := range blocks {
		blocks[i] = randomBlock(rng)
	}
	docs := func() []string {
		peers := strings.Join(append(covering(rng), blocks...), ", ")
		n := podNumbers["d"]
		return []string{
			podDoc("d", "pod: d", address4(n), address6(n)),
			policyDoc("d", "pod: d", inventory.Ingress, []string{"{from: [" + peers + "], ports: [{port: 8010, protocol: UDP}, {port: 8010}]}"}),
		}
	}
	p.apply(p.snapshot(docs()))
	var list []flow
	for i := range always {
		to := end("d", i == 1)
		list = append(list, flow{always[i].String(), to, 8010, true}, flow{never[i].String(), to, 8010, false})
	}
	sent := traffic(list)
	stop, err := w.StartTraffic(t.Context(), rate, sent)
	w.must(err)
	var j journal
	inPlace := 0
	for range longer(t, 300) {
		for range 1 + rng.IntN(6) {
			blocks[rng.IntN(len(blocks))] = randomBlock(rng)
		}
		s := p.snapshot(docs())
		u := entry{begin: time.Now()}
		c := p.apply(s)
		u.end, u.what = time.Now(), operations(c)
		j = append(j, u)
		inPlace += truth(editsInPlace(c))
		p.holds(s)
		w.contains(rng, p, s)
		if t.Failed() {
			t.Fatalf("after step %d\n%s\n%s", len(j), u.what, strings.Join(docs(), "---\n"))
		}
	}
	r, err := stop()
	w.must(err)
	complain(t, r, sent, j.during)
	t.Logf("%d steps, %d of them delete and add intervals in one transaction", len(j), inPlace)
	if inPlace < 100 {
		t.Error("too few sets were edited in place: the test proves less than it says")
	}
}

func editsInPlace(c ruleset.Change) bool {
	for _, tx := range c.Transactions {
		deleted := map[string]bool{}
		for _, op := range tx {
			if op.Kind == ruleset.DeleteElements {
				deleted[op.Set.Name] = true
			}
			if op.Kind == ruleset.AddElements && deleted[op.Set.Name] {
				return true
			}
		}
	}
	return false
}

// contains asks the kernel about addresses next to the edges of intervals, the
// first and the last: with packets where such a packet can be sent, else by
// looking it up in the set.
func (w *world) contains(rng *rand.Rand, p *pipeline, s *inventory.Snapshot) {
	w.t.Helper()
	var addrs []netip.Addr
	for _, set := range p.actual.Sets {
		if !set.Interval || len(set.Key) != 1 {
			continue
		}
		width := set.Key[0].Len()
		first, last := make([]byte, width), slices.Repeat([]byte{0xff}, width)
		w.inSet(p, s, set, first)
		w.inSet(p, s, set, last)
		for range 25 {
			e := set.Elements[rng.IntN(len(set.Elements))]
			for _, edge := range []string{e.Key, e.Last} {
				a, _ := netip.AddrFromSlice([]byte(edge))
				addrs = append(addrs, a.Prev(), a, a.Next())
			}
		}
	}
	var probes []lab.Probe
	var want []bool
	for _, a := range addrs {
		if !sendable(a) {
			continue
		}
		to := netip.MustParseAddr(end("d", a.Is6()))
		probes = append(probes, lab.Probe{From: w.Outside, Src: a, Dst: to, Proto: inventory.UDP, DstPort: 8010})
		want = append(want, policy.Evaluate(s, &p.opts, policy.Flow{From: policy.Endpoint{Addr: a}, To: policy.EndpointAt(s, to), Protocol: inventory.UDP, Port: 8010}).Allowed)
	}
	got, err := w.Probe(w.t.(*testing.T).Context(), probes)
	w.must(err)
	for i, p := range probes {
		if got[i] != want[i] {
			w.t.Errorf("from %s: arrived %v, want %v", p.Src, got[i], want[i])
		}
	}
}

// sendable says whether a router forwards packets from an address.
func sendable(a netip.Addr) bool {
	if !a.IsValid() || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() {
		return false
	}
	if a.Is4() {
		b := a.As4()
		return b[0] > 0 && b[0] < 224 && b[0] != 127 && b[0] != 10
	}
	return a.As16()[0]&0xe0 == 0x20
}

// inSet holds what nft finds in a set against the evaluator.
func (w *world) inSet(p *pipeline, s *inventory.Snapshot, set *ruleset.Set, addr []byte) {
	w.t.Helper()
	a, _ := netip.AddrFromSlice(addr)
	to := netip.MustParseAddr(end("d", a.Is6()))
	want := policy.Evaluate(s, &p.opts, policy.Flow{From: policy.Endpoint{Addr: a}, To: policy.EndpointAt(s, to), Protocol: inventory.UDP, Port: 8010}).Allowed
	_, err := w.Gateway.Run("nft", "get", "element", "inet", "edgepolicyd", set.Name, "{", a.String(), "}")
	if (err == nil) != want {
		w.t.Errorf("%s in set %s: nft says %v, want %v", a, set.Name, err, want)
	}
}

// TestWholeRange goes through the blocks at the ends of the address ranges, from
// each to each, in one family and in both.
func TestWholeRange(t *testing.T) {
	w := &world{Lab: lab.ForTest(t, lab.Topology{}), t: t}
	w.pods()
	p := newPipeline(t, w.Lab)
	rng := rand.New(rand.NewPCG(12, 12))
	const first4, last4, first6, last6 = "0.0.0.0/32", "255.255.255.255/32", "::/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"
	block := func(cidr string, except ...string) string { return blockText(netip.MustParsePrefix(cidr), except) }
	other := block("203.0.113.0/24") + ", " + block("2001:db8:200::/64") // so that each set stays
	lists := []string{
		block("0.0.0.0/0") + ", " + block("::/0"),
		block("0.0.0.0/0", first4) + ", " + block("::/0", last6),
		block("0.0.0.0/0", last4) + ", " + block("::/0", first6),
		block("0.0.0.0/0", first4, last4) + ", " + block("::/0", first6, last6),
		block(first4) + ", " + block(last4) + ", " + block(first6) + ", " + block(last6),
		block("128.0.0.0/1") + ", " + block("::/1"),
		block("0.0.0.0/1") + ", " + block("8000::/1"),
		block("0.0.0.0/0"),
		block("::/0"),
		block("0.0.0.0/0", "0.0.0.0/1") + ", " + block("::/0", "8000::/1"),
	}
	for _, i := range rng.Perm(len(lists)) {
		for _, j := range rng.Perm(len(lists)) {
			for _, list := range []string{lists[i], lists[j]} {
				n := podNumbers["d"]
				s := p.snapshot([]string{
					podDoc("d", "pod: d", address4(n), address6(n)),
					policyDoc("d", "pod: d", inventory.Ingress, []string{"{from: [" + list + ", " + other + "], ports: [{port: 8010, protocol: UDP}]}"}),
				})
				c := p.apply(s)
				p.holds(s)
				if !c.Empty() {
					w.contains(rng, p, s)
				}
				if t.Failed() {
					t.Fatalf("after %s\n%s", list, operations(c))
				}
			}
		}
	}
}
