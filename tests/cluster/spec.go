package cluster

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// newPolicy makes a policy.
func (c *Cluster) newPolicy(rng *rand.Rand) networkPolicy {
	c.serial++
	return networkPolicy{
		namespace: pick(rng, c.namespaces...).name,
		name:      fmt.Sprintf("policy%d", c.serial),
		spec:      c.newSpec(rng),
	}
}

// someEnforcement gives the annotation that says whether a policy is only tried.
func someEnforcement(rng *rand.Rand) string {
	switch {
	case chance(rng, 15):
		return "audit"
	case chance(rng, 5):
		return "enforce"
	}
	return ""
}

// newSpec makes a policy's spec. policyTypes may be missing, or leave out a
// direction that has rules (S2).
func (c *Cluster) newSpec(rng *rand.Rand) object {
	spec := object{}
	if !chance(rng, 10) { // absent: everything (S3)
		spec["podSelector"] = newSelector(rng, podLabels)
	}
	switch rng.IntN(8) {
	case 0: // absent
	case 1:
		spec["policyTypes"] = []string{}
	case 2:
		spec["policyTypes"] = []string{"Ingress"}
	case 3:
		spec["policyTypes"] = []string{"Egress"}
	case 4:
		spec["policyTypes"] = []string{"Egress", "Ingress"}
	default:
		spec["policyTypes"] = []string{"Ingress", "Egress"}
	}
	if rules := c.newRules(rng, "from"); rules != nil {
		spec["ingress"] = rules
	}
	if rules := c.newRules(rng, "to"); rules != nil {
		spec["egress"] = rules
	}
	return spec
}

// newRules makes the rules of a direction, nil where they are absent. peers is
// "from" or "to".
func (c *Cluster) newRules(rng *rand.Rand, peers string) []object {
	if chance(rng, 12) {
		return nil
	}
	rules := []object{}
	for range pick(rng, 0, 1, 1, 2, 2, 3) {
		rules = append(rules, c.newRule(rng, peers))
	}
	return rules
}

// newRule makes a rule, at times {}.
func (c *Cluster) newRule(rng *rand.Rand, peers string) object {
	rule := object{}
	if n := pick(rng, -1, 0, 1, 1, 1, 2, 2, 3, 4); n >= 0 {
		list := []object{}
		for range n {
			list = append(list, c.newPeer(rng))
		}
		rule[peers] = list
	}
	if n := pick(rng, -1, -1, 0, 1, 1, 2, 3, 4); n >= 0 {
		list := []object{}
		for range n {
			list = append(list, newPort(rng))
		}
		rule["ports"] = list
	}
	return rule
}

// newPeer makes one item of from or to.
func (c *Cluster) newPeer(rng *rand.Rand) object {
	switch rng.IntN(9) {
	case 0, 1:
		return object{"podSelector": newSelector(rng, podLabels)}
	case 2:
		return object{"namespaceSelector": newSelector(rng, namespaceLabels)}
	case 3, 4:
		return object{"namespaceSelector": newSelector(rng, namespaceLabels), "podSelector": newSelector(rng, podLabels)}
	default:
		return object{"ipBlock": c.newBlock(rng)}
	}
}

// metadataName is the label that every namespace has (S4).
const metadataName = "kubernetes.io/metadata.name"

// newSelector makes a selector over a vocabulary, at times {}.
func newSelector(rng *rand.Rand, vocabulary map[string][]string) object {
	if chance(rng, 20) {
		return object{}
	}
	vocabulary = maps.Clone(vocabulary)
	if vocabulary["team"] != nil {
		vocabulary[metadataName] = []string{"default", "ns1", "ns2"}
	}
	keys := slices.Sorted(maps.Keys(vocabulary))
	o := object{}
	kind := rng.IntN(3) // labels, expressions, both
	if kind != 1 {
		set := map[string]string{}
		for range pick(rng, 1, 1, 2) {
			k := pick(rng, keys...)
			set[k] = pick(rng, vocabulary[k]...)
		}
		o["matchLabels"] = set
	}
	if kind != 0 {
		var list []object
		for range pick(rng, 1, 1, 2) {
			list = append(list, newExpression(rng, pick(rng, keys...), vocabulary))
		}
		o["matchExpressions"] = list
	}
	return o
}

// newExpression makes one of matchExpressions.
func newExpression(rng *rand.Rand, key string, vocabulary map[string][]string) object {
	operator := pick(rng, "In", "In", "NotIn", "NotIn", "Exists", "DoesNotExist")
	o := object{"key": key, "operator": operator}
	if operator == "In" || operator == "NotIn" {
		var values []string
		for range pick(rng, 1, 1, 2, 3) {
			values = append(values, pick(rng, vocabulary[key]...))
		}
		o["values"] = values
	}
	return o
}

// interestingPorts are few, so that ranges overlap and touch, and have the ends.
var interestingPorts = []int{1, 2, 53, 80, 81, 85, 90, 91, 443, 8080, 65534, 65535}

// newPort makes one entry of ports, at times {}.
func newPort(rng *rand.Rand) object {
	o := object{}
	if p := pick(rng, "", "TCP", "TCP", "UDP", "SCTP"); p != "" {
		o["protocol"] = p
	}
	switch rng.IntN(7) {
	case 0: // every port
	case 1, 2:
		o["port"] = pick(rng, portNames...)
	case 3, 4:
		o["port"] = pick(rng, interestingPorts...)
	default:
		first := pick(rng, interestingPorts...)
		o["port"] = first
		o["endPort"] = min(65535, first+pick(rng, 0, 1, 4, 9, 10, 300, 65535))
	}
	return o
}

// newBlock makes an ipBlock around an address that somebody has, so that it
// matters, or right beside it.
func (c *Cluster) newBlock(rng *rand.Rand) object {
	known := c.knownAddresses()
	a := pick(rng, known...)
	block := around(rng, a, 0)
	if chance(rng, 15) { // the block that touches it
		block = beside(block)
	}
	text := block.String()
	if chance(rng, 5) { // host bits, which are accepted (S8)
		text = netip.PrefixFrom(offset(block.Addr(), 1), block.Bits()).String()
		if !block.Contains(offset(block.Addr(), 1)) {
			text = block.String()
		}
	}
	o := object{"cidr": text}
	var inside []netip.Addr
	for _, k := range known {
		if block.Contains(k) {
			inside = append(inside, k)
		}
	}
	inside = append(inside, block.Addr())
	var except []string
	for range pick(rng, 0, 0, 1, 1, 2, 3) {
		if block.Bits() < a.BitLen() {
			except = append(except, around(rng, pick(rng, inside...), block.Bits()+1).String())
		}
	}
	if chance(rng, 3) { // its whole block, which is accepted (S8)
		except = append(except, block.String())
	}
	if except != nil {
		o["except"] = except
	}
	return o
}

// knownAddresses lists everybody's addresses, and the ranges' ends.
func (c *Cluster) knownAddresses() []netip.Addr {
	known := slices.Concat(c.Outside, c.Gateway)
	for _, p := range c.pods {
		known = append(known, p.addresses...)
	}
	for _, r := range c.ranges() {
		known = append(known, r.Masked().Addr())
	}
	return known
}

// around gives a prefix that has the address, of a common length or longer than
// least bits.
func around(rng *rand.Rand, a netip.Addr, least int) netip.Prefix {
	lengths := []int{0, 1, 8, 16, 24, 25, 28, 29, 30, 31, 32}
	if a.Is6() {
		lengths = []int{0, 1, 32, 64, 112, 120, 124, 126, 127, 128}
	}
	lengths = slices.DeleteFunc(lengths, func(n int) bool { return n < least })
	return netip.PrefixFrom(a, pick(rng, lengths...)).Masked()
}

// beside gives the block of the same size after this one, or the block itself
// where it is large.
func beside(p netip.Prefix) netip.Prefix {
	free := p.Addr().BitLen() - p.Bits()
	if free > 16 {
		return p
	}
	return netip.PrefixFrom(offset(p.Addr(), 1<<free), p.Bits())
}
