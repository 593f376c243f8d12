package cluster

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// Flows gives the flows of a snapshot that are worth asking about: every pod,
// the gateway and the outside addresses to each other in both families (one end
// is a pod), to the ports around both ends of every rule's range and to the named
// ports, in each protocol that has ports, and ICMP echo.
//
// Where there are more than n, it gives a fair sample of each kind of flow: small
// kinds whole, of large ones as many as there is room for, and at least one, be
// it more than n. A pod's flows to itself are left out: no packet of them leaves
// it.
func Flows(s *inventory.Snapshot, outside []netip.Addr, rng *rand.Rand, n int) []policy.Flow {
	pairs := map[string][][2]policy.Endpoint{} // by kind of ends
	ends := endpoints(s, outside)
	for _, from := range ends {
		for _, to := range ends {
			if from.Addr.Is4() == to.Addr.Is4() && from.Pod != to.Pod { // one is a pod, and not both the same
				kind := fmt.Sprint(from.Addr.Is4(), kindOf(from), kindOf(to))
				pairs[kind] = append(pairs[kind], [2]policy.Endpoint{from, to})
			}
		}
	}
	var kinds []kind
	for name, ports := range probes(s) {
		for ends, pairs := range pairs {
			kinds = append(kinds, kind{ends + " " + name, pairs, ports})
		}
	}
	slices.SortFunc(kinds, func(a, b kind) int {
		return cmp.Or(cmp.Compare(a.size(), b.size()), cmp.Compare(a.name, b.name))
	})
	var flows []policy.Flow
	for i, k := range kinds {
		share := max(1, (n-len(flows))/(len(kinds)-i))
		flows = append(flows, k.sample(rng, share)...)
	}
	return flows
}

// kind is a set of flows that are alike: every pair to every probe.
type kind struct {
	name   string
	pairs  [][2]policy.Endpoint
	probes []probe
}

func (k kind) size() int { return len(k.pairs) * len(k.probes) }

// sample gives n different flows, or all.
func (k kind) sample(rng *rand.Rand, n int) []policy.Flow {
	chosen := map[int]bool{}
	var flows []policy.Flow
	for len(flows) < min(n, k.size()) {
		i := len(flows)
		if n < k.size() {
			i = rng.IntN(k.size())
		}
		if chosen[i] {
			continue
		}
		chosen[i] = true
		pair, p := k.pairs[i/len(k.probes)], k.probes[i%len(k.probes)]
		if p.protocol == inventory.ICMP && pair[0].Addr.Is6() {
			p.protocol = inventory.ICMPv6
		}
		flows = append(flows, policy.Flow{From: pair[0], To: pair[1], Protocol: p.protocol, Port: p.port})
	}
	return flows
}

// endpoints lists every address that takes part.
func endpoints(s *inventory.Snapshot, outside []netip.Addr) []policy.Endpoint {
	var ends []policy.Endpoint
	add := func(a netip.Addr) {
		if !slices.ContainsFunc(ends, func(e policy.Endpoint) bool { return e.Addr == a }) {
			ends = append(ends, policy.EndpointAt(s, a))
		}
	}
	for _, p := range s.Pods {
		if p.Enforceable() {
			for _, a := range p.Addresses {
				add(a)
			}
		}
	}
	for _, a := range slices.Concat(s.Gateway, outside) {
		add(a)
	}
	return ends
}

// kindOf names the kind of an end.
func kindOf(e policy.Endpoint) string {
	switch {
	case e.Pod != nil:
		return "pod"
	case e.Gateway:
		return "gateway"
	}
	return "outside"
}

// probe is a destination port; port 0 for ICMP echo.
type probe struct {
	protocol inventory.Protocol
	port     uint16
}

// probes lists the destination ports of a snapshot by kind. A port that is of
// several kinds counts for the first of them.
func probes(s *inventory.Snapshot) map[string][]probe {
	byKind := map[string][]probe{"echo": {{inventory.ICMP, 0}}}
	seen := map[probe]bool{}
	add := func(kind string, protocol inventory.Protocol, port int) {
		p := probe{protocol, uint16(port)}
		if port < 1 || port > 65535 || seen[p] {
			return
		}
		seen[p] = true
		name := kind + " " + protocol.String()
		byKind[name] = append(byKind[name], p)
	}
	ports := rulePorts(s)
	for _, p := range s.Pods {
		for _, n := range p.Ports {
			add("named", n.Protocol, int(n.Port))
		}
	}
	for _, p := range ports {
		add("first", p.Protocol, int(p.First))
		add("last", p.Protocol, int(p.Last))
	}
	for _, p := range ports {
		add("before", p.Protocol, int(p.First)-1)
		add("after", p.Protocol, int(p.Last)+1)
	}
	protocols := []inventory.Protocol{inventory.TCP, inventory.UDP, inventory.SCTP}
	for _, p := range ports { // a rule for one protocol says nothing of another
		for _, protocol := range protocols {
			add("other", protocol, int(p.First))
		}
	}
	for _, protocol := range protocols {
		add("other", protocol, 1)
		add("other", protocol, 40000)
		add("other", protocol, 65535)
	}
	return byKind
}

// rulePorts lists the ports that rules give by number.
func rulePorts(s *inventory.Snapshot) []inventory.Port {
	var ports []inventory.Port
	for _, p := range s.Policies {
		for _, d := range inventory.Directions {
			for _, r := range p.Rules[d] {
				for _, port := range r.Ports {
					if port.Name == "" {
						ports = append(ports, port)
					}
				}
			}
		}
	}
	return ports
}
