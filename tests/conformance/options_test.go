package conformance

import (
	"math/rand/v2"
	"net/netip"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/tests/cluster"
)

// optionsOf gives the settings that a byte stands for: one bit each, so that
// all of them meet each other.
func optionsOf(b byte) *inventory.Options {
	o := inventory.DefaultOptions()
	o.IPBlockMatchesPods = b&1 == 0
	o.GatewayEgress = b&2 == 0
	o.Reject = b&4 != 0
	if b&8 != 0 {
		o.GatewayPorts = []inventory.Port{
			{Protocol: inventory.UDP, First: 53, Last: 53},
			{Protocol: inventory.TCP, First: 80, Last: 85},
		}
	}
	if b&16 != 0 {
		o.NeverIsolate = append(o.NeverIsolate, inventory.Key{Namespace: "ns1"})
	}
	if b&32 != 0 {
		o.NeverIsolate = append(o.NeverIsolate, inventory.Key{Namespace: "default", Name: "pod1"})
	}
	o.MarkMask = [4]uint32{0xff000000, 0x00f00000, 0x0000ffff, 0x00000003}[b>>6] // the last: three epochs
	return &o
}

// pickOptions chooses: every third time the defaults, else each setting that
// differs from its default with a chance of a third.
func pickOptions(rng *rand.Rand) byte {
	if rng.IntN(3) == 0 {
		return 0
	}
	var b byte
	for bit := range 8 {
		if rng.IntN(3) == 0 {
			b |= 1 << bit
		}
	}
	return b
}

// range4 and range6 are the pod ranges of the lab's bridge.
var (
	range4 = netip.MustParsePrefix("10.42.0.0/24")
	range6 = netip.MustParsePrefix("fd42::/64")
)

// configOf makes clusters of different sizes, some of one family alone.
func configOf(seed uint64, rng *rand.Rand, outside, gateway []netip.Addr) cluster.Config {
	c := cluster.Config{
		Seed: seed, Pods: 2 + rng.IntN(9), Policies: 1 + rng.IntN(9), Namespaces: 1 + rng.IntN(4),
		V4: range4, V6: range6, Outside: outside, Gateway: gateway,
	}
	switch rng.IntN(10) {
	case 0:
		c.V4 = netip.Prefix{}
	case 1:
		c.V6 = netip.Prefix{}
	}
	return c
}
