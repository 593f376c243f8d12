package cluster

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
)

// Mutate gives the cluster after one small change, which Change names: labels, a
// policy, a pod, or an address that changes hands. The cluster that was given
// stays as it was.
func Mutate(rng *rand.Rand, c Cluster) Cluster {
	before := string(c.YAML)
	for range 100 {
		next := c
		next.namespaces = slices.Clone(c.namespaces)
		next.pods = slices.Clone(c.pods)
		next.policies = slices.Clone(c.policies)
		next.Change = pick(rng, changes...)(&next, rng)
		if next.Change == "" {
			continue // nothing to change in this way
		}
		if next.render(); string(next.YAML) != before {
			return next
		}
	}
	panic("cluster: nothing can be changed")
}

// changes are the ways to change a cluster. Each says what it did, or nothing if
// the cluster lacks what it needs. They replace maps and slices, never write to
// them: older clusters share them.
var changes = []func(*Cluster, *rand.Rand) string{
	relabelPod, relabelNamespace, toggleNamespace, changePolicy, changePolicy, reselectPolicy, tryPolicy,
	addPolicy, removePolicy, addPod, removePod, handOver, changeAddresses, changePhase, changePorts,
}

func relabelPod(c *Cluster, rng *rand.Rand) string {
	if len(c.pods) == 0 {
		return ""
	}
	p := &c.pods[rng.IntN(len(c.pods))]
	p.labels = relabel(rng, p.labels, podLabels)
	return fmt.Sprintf("pod %s/%s gets labels %v", p.namespace, p.name, p.labels)
}

func relabelNamespace(c *Cluster, rng *rand.Rand) string {
	n := &c.namespaces[rng.IntN(len(c.namespaces))]
	n.labels = relabel(rng, n.labels, namespaceLabels)
	n.object = true
	return fmt.Sprintf("namespace %s gets labels %v", n.name, n.labels)
}

// relabel sets, changes or removes one label.
func relabel(rng *rand.Rand, set map[string]string, vocabulary map[string][]string) map[string]string {
	set = maps.Clone(set)
	k := pick(rng, slices.Sorted(maps.Keys(vocabulary))...)
	if _, found := set[k]; found && chance(rng, 50) {
		delete(set, k)
	} else {
		set[k] = pick(rng, vocabulary[k]...)
	}
	return set
}

func toggleNamespace(c *Cluster, rng *rand.Rand) string {
	n := &c.namespaces[rng.IntN(len(c.namespaces))]
	n.object = !n.object
	return fmt.Sprintf("namespace %s has an object: %t", n.name, n.object)
}

// changePolicy replaces, adds or removes one rule, or the policyTypes.
func changePolicy(c *Cluster, rng *rand.Rand) string {
	if len(c.policies) == 0 {
		return ""
	}
	p := &c.policies[rng.IntN(len(c.policies))]
	p.spec = maps.Clone(p.spec)
	field, peers := "ingress", "from"
	if chance(rng, 50) {
		field, peers = "egress", "to"
	}
	rules, _ := p.spec[field].([]object)
	rules = slices.Clone(rules)
	at := rng.IntN(len(rules) + 1)
	name := fmt.Sprintf("policy %s/%s %s rule %d", p.namespace, p.name, field, at)
	switch {
	case chance(rng, 15):
		p.spec["policyTypes"] = pick(rng, []string{"Ingress"}, []string{"Egress"}, []string{"Ingress", "Egress"})
		return fmt.Sprintf("policy %s/%s gets policyTypes %v", p.namespace, p.name, p.spec["policyTypes"])
	case at == len(rules):
		p.spec[field] = append(rules, c.newRule(rng, peers))
		return name + " is new"
	case chance(rng, 40):
		p.spec[field] = slices.Delete(rules, at, at+1)
		return name + " goes"
	default:
		rules[at] = c.newRule(rng, peers)
		p.spec[field] = rules
		return name + " changes"
	}
}

func reselectPolicy(c *Cluster, rng *rand.Rand) string {
	if len(c.policies) == 0 {
		return ""
	}
	p := &c.policies[rng.IntN(len(c.policies))]
	p.spec = maps.Clone(p.spec)
	p.spec["podSelector"] = newSelector(rng, podLabels)
	return fmt.Sprintf("policy %s/%s selects %v", p.namespace, p.name, p.spec["podSelector"])
}

// tryPolicy enforces a policy that was only tried, or the other way round.
func tryPolicy(c *Cluster, rng *rand.Rand) string {
	if len(c.policies) == 0 {
		return ""
	}
	p := &c.policies[rng.IntN(len(c.policies))]
	switch p.enforcement {
	case "audit":
		p.enforcement = pick(rng, "", "enforce")
	default:
		p.enforcement = "audit"
	}
	return fmt.Sprintf("policy %s/%s is %q", p.namespace, p.name, p.enforcement)
}

func addPolicy(c *Cluster, rng *rand.Rand) string {
	p := c.newPolicy(rng)
	c.policies = append(c.policies, p)
	return fmt.Sprintf("policy %s/%s is new", p.namespace, p.name)
}

func removePolicy(c *Cluster, rng *rand.Rand) string {
	if len(c.policies) == 0 {
		return ""
	}
	i := rng.IntN(len(c.policies))
	p := c.policies[i]
	c.policies = slices.Delete(c.policies, i, i+1)
	return fmt.Sprintf("policy %s/%s goes", p.namespace, p.name)
}

func addPod(c *Cluster, rng *rand.Rand) string {
	p := c.newPod(rng)
	c.pods = append(c.pods, p)
	return fmt.Sprintf("pod %s/%s is new at %s", p.namespace, p.name, joinAddresses(p.addresses))
}

func removePod(c *Cluster, rng *rand.Rand) string {
	if len(c.pods) < 2 {
		return ""
	}
	i := rng.IntN(len(c.pods))
	p := c.pods[i]
	c.pods = slices.Delete(c.pods, i, i+1)
	return fmt.Sprintf("pod %s/%s goes, it was at %s", p.namespace, p.name, joinAddresses(p.addresses))
}

// handOver gives an address of one pod to another; both live on.
func handOver(c *Cluster, rng *rand.Rand) string {
	live := c.live()
	if len(live) < 2 {
		return ""
	}
	rng.Shuffle(len(live), func(i, k int) { live[i], live[k] = live[k], live[i] })
	from, to := &c.pods[live[0]], &c.pods[live[1]]
	i := rng.IntN(len(from.addresses))
	a := from.addresses[i]
	from.addresses = slices.Delete(slices.Clone(from.addresses), i, i+1)
	to.addresses = append(slices.Clone(to.addresses), a)
	return fmt.Sprintf("%s goes from pod %s/%s to %s/%s", a, from.namespace, from.name, to.namespace, to.name)
}

// changeAddresses gives a pod that has its own network other addresses, or none.
func changeAddresses(c *Cluster, rng *rand.Rand) string {
	if len(c.pods) == 0 {
		return ""
	}
	p := &c.pods[rng.IntN(len(c.pods))]
	if p.hostNetwork {
		return ""
	}
	if len(p.addresses) > 0 && chance(rng, 25) {
		p.addresses = nil
	} else {
		p.addresses = c.someAddresses(rng)
	}
	return fmt.Sprintf("pod %s/%s moves to %s", p.namespace, p.name, joinAddresses(p.addresses))
}

// changePhase ends a pod.
func changePhase(c *Cluster, rng *rand.Rand) string {
	live := c.live()
	if len(live) < 2 {
		return ""
	}
	p := &c.pods[pick(rng, live...)]
	p.phase = pick(rng, "Succeeded", "Failed")
	return fmt.Sprintf("pod %s/%s is %s", p.namespace, p.name, p.phase)
}

func changePorts(c *Cluster, rng *rand.Rand) string {
	if len(c.pods) == 0 {
		return ""
	}
	p := &c.pods[rng.IntN(len(c.pods))]
	c.somePorts(rng, p)
	return fmt.Sprintf("pod %s/%s gets other ports", p.namespace, p.name)
}

// joinAddresses lists addresses for Change.
func joinAddresses(addresses []netip.Addr) string {
	if len(addresses) == 0 {
		return "no address"
	}
	var text []string
	for _, a := range addresses {
		text = append(text, a.String())
	}
	return strings.Join(text, ", ")
}
