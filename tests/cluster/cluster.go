// Package cluster makes small random clusters, as Kubernetes YAML, and the flows
// that are worth asking about in them, to hold the judges of a network policy
// against each other.
//
// What always holds: the same Config gives the same bytes, and Mutate with the
// same random numbers the same change; what is made is valid, if odd; no two
// pods that are alive have an address in common.
package cluster

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	"gopkg.in/yaml.v3"
)

// Config says what to make. Its zero value is a cluster of both families with
// addresses of its own choice.
type Config struct {
	Seed                       uint64
	Pods, Policies, Namespaces int          // 0: 8, 6 and 3
	V4, V6                     netip.Prefix // pod ranges; one alone: pods of that family only
	Outside                    []netip.Addr // addresses that are nobody's here, for ipBlocks
	Gateway                    []netip.Addr // the gateway's own; none: the first host of each range
}

// Cluster is one state of a cluster.
type Cluster struct {
	YAML    []byte       // all its objects, one document each
	Outside []netip.Addr // as configured, or chosen
	Gateway []netip.Addr
	Change  string // what Mutate did, "" if nothing was done yet

	v4, v6     netip.Prefix
	serial     int // numbers names, never used twice
	namespaces []namespace
	pods       []pod
	policies   []networkPolicy
}

type namespace struct {
	name   string
	labels map[string]string
	object bool // it has one (S4)
}

type pod struct {
	namespace, name string
	labels          map[string]string
	addresses       []netip.Addr // in the order of status.podIPs
	containers      [][]containerPort
	sidecar, init   []containerPort
	hostNetwork     bool
	terminating     bool
	phase           string
}

type containerPort struct {
	name, protocol string // protocol "": absent
	number         int
}

type networkPolicy struct {
	namespace, name string
	enforcement     string // annotation, "" for none
	spec            object
}

// object is a YAML mapping; yaml.v3 writes its keys sorted.
type object map[string]any

// Generate makes a cluster.
func Generate(config Config) Cluster {
	rng := rand.New(rand.NewPCG(config.Seed, 1))
	c := Cluster{Outside: config.Outside, Gateway: config.Gateway, v4: config.V4, v6: config.V6}
	if !c.v4.IsValid() && !c.v6.IsValid() {
		c.v4, c.v6 = netip.MustParsePrefix("10.42.0.0/24"), netip.MustParsePrefix("fd00:42::/112")
	}
	if c.Outside == nil {
		for _, a := range []string{"192.0.2.10", "192.0.2.11", "198.51.100.7", "2001:db8::10", "2001:db8::11", "2001:db8:1::7"} {
			c.Outside = append(c.Outside, netip.MustParseAddr(a))
		}
	}
	if c.Gateway == nil {
		for _, r := range c.ranges() {
			c.Gateway = append(c.Gateway, offset(r.Masked().Addr(), 1))
		}
	}
	for i := range orDefault(config.Namespaces, 3) {
		n := namespace{name: "default", labels: someLabels(rng, namespaceLabels), object: chance(rng, 70)}
		if i > 0 {
			n.name = fmt.Sprintf("ns%d", i)
		}
		c.namespaces = append(c.namespaces, n)
	}
	for range orDefault(config.Pods, 8) {
		c.pods = append(c.pods, c.newPod(rng))
	}
	for range orDefault(config.Policies, 6) {
		c.policies = append(c.policies, c.newPolicy(rng))
	}
	for i := range c.policies {
		c.policies[i].enforcement = someEnforcement(rng)
	}
	c.render()
	return c
}

func orDefault(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}

// chance is true in so many of a hundred cases.
func chance(rng *rand.Rand, percent int) bool { return rng.IntN(100) < percent }

// pick chooses one.
func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

// ranges lists the pod ranges there are.
func (c *Cluster) ranges() []netip.Prefix {
	return slices.DeleteFunc([]netip.Prefix{c.v4, c.v6}, func(p netip.Prefix) bool { return !p.IsValid() })
}

// offset adds n to an address.
func offset(a netip.Addr, n uint64) netip.Addr {
	b := a.AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += uint64(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	sum, _ := netip.AddrFromSlice(b)
	return sum
}

// The labels there are: few, so that selectors often match. Empty values and
// numbers must stay strings.
var (
	podLabels       = map[string][]string{"app": {"a", "b", "c", ""}, "tier": {"x", "y"}, "example.com/role": {"r", "1", "true"}}
	namespaceLabels = map[string][]string{"team": {"red", "blue", ""}, "env": {"prod", "test"}}
)

// someLabels gives an object about half of the labels.
func someLabels(rng *rand.Rand, vocabulary map[string][]string) map[string]string {
	set := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(vocabulary)) {
		if chance(rng, 60) {
			set[k] = pick(rng, vocabulary[k]...)
		}
	}
	return set
}

// newPod makes a pod: most are alive and have addresses.
func (c *Cluster) newPod(rng *rand.Rand) pod {
	c.serial++
	p := pod{
		namespace:   pick(rng, c.namespaces...).name,
		name:        fmt.Sprintf("pod%d", c.serial),
		labels:      someLabels(rng, podLabels),
		phase:       pick(rng, "Running", "Running", "Running", "Pending", "Unknown", ""),
		terminating: chance(rng, 5),
	}
	c.somePorts(rng, &p)
	switch kind := rng.IntN(100); {
	case kind < 8:
		p.hostNetwork, p.addresses = true, c.Gateway
	case kind < 16:
		p.phase = pick(rng, "Succeeded", "Failed")
		if live := c.live(); len(live) > 0 && chance(rng, 60) {
			p.addresses = c.pods[pick(rng, live...)].addresses // handed on since
		} else {
			p.addresses = c.someAddresses(rng)
		}
	case kind < 23: // none yet
	default:
		p.addresses = c.someAddresses(rng)
	}
	return p
}

// live lists the pods that are alive and have addresses of their own.
func (c *Cluster) live() []int {
	var found []int
	for i, p := range c.pods {
		if !p.hostNetwork && len(p.addresses) > 0 && p.phase != "Succeeded" && p.phase != "Failed" {
			found = append(found, i)
		}
	}
	return found
}

// someAddresses gives a pod mostly one of each family, sometimes one family
// alone or several of one.
func (c *Cluster) someAddresses(rng *rand.Rand) []netip.Addr {
	var found []netip.Addr
	only := rng.IntN(8) // 0 and 1: that family
	for i, r := range c.ranges() {
		if only < len(c.ranges()) && only != i {
			continue
		}
		for range pick(rng, 1, 1, 1, 1, 2, 3) {
			if a := c.freeAddress(rng, r, found); a.IsValid() {
				found = append(found, a)
			}
		}
	}
	rng.Shuffle(len(found), func(i, k int) { found[i], found[k] = found[k], found[i] })
	return found
}

// freeAddress finds an address of a range that nobody has, near the others, so
// that blocks cover some and not all. It is invalid if there is none.
func (c *Cluster) freeAddress(rng *rand.Rand, r netip.Prefix, but []netip.Addr) netip.Addr {
	taken := slices.Concat(c.Gateway, c.Outside, but)
	for _, p := range c.pods {
		taken = append(taken, p.addresses...)
	}
	base := r.Masked().Addr()
	start := uint64(rng.IntN(4 * (len(c.pods) + 2)))
	for i := range uint64(1 << 16) {
		a := offset(base, 2+start+i)
		if !r.Contains(a) || !r.Contains(offset(a, 1)) { // the last is the broadcast address
			start = -i // and round
			continue
		}
		if !slices.Contains(taken, a) {
			return a
		}
	}
	return netip.Addr{}
}

// portNames are those that policies name; no pod has the last.
var portNames = []string{"web", "dns", "metrics", "nobody"}

// somePorts gives a pod's containers ports. A name may come twice in a pod, with
// another protocol or number, in another container.
func (c *Cluster) somePorts(rng *rand.Rand, p *pod) {
	ports := func() []containerPort {
		var found []containerPort
		for _, name := range portNames[:3] {
			if chance(rng, 35) {
				found = append(found, containerPort{name, pick(rng, "", "TCP", "UDP", "SCTP"), pick(rng, interestingPorts...)})
			}
		}
		if chance(rng, 10) {
			found = append(found, containerPort{"", "TCP", 12345})
		}
		return found
	}
	p.containers = [][]containerPort{ports()}
	if chance(rng, 25) {
		p.containers = append(p.containers, ports())
	}
	p.sidecar, p.init = nil, nil
	if chance(rng, 25) {
		p.sidecar = ports()
	}
	if chance(rng, 15) {
		p.init = ports()
	}
}

// render writes the YAML.
func (c *Cluster) render() {
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	write := func(o object) {
		if err := encoder.Encode(o); err != nil {
			panic(err) // maps, slices, strings and numbers
		}
	}
	for _, n := range c.namespaces {
		if n.object {
			write(object{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": n.name, "labels": n.labels}})
		}
	}
	for _, p := range c.pods {
		write(p.object())
	}
	for _, p := range c.policies {
		head := metadata(p.namespace, p.name)
		if p.enforcement != "" {
			head["annotations"] = object{"edgepolicy.io/enforcement": p.enforcement}
		}
		write(object{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": head, "spec": p.spec})
	}
	if err := encoder.Close(); err != nil {
		panic(err)
	}
	c.YAML = b.Bytes()
}

// metadata leaves the default namespace away where the name ends oddly (S2).
func metadata(namespace, name string) object {
	if namespace == "default" && (name[len(name)-1]-'0')%2 == 1 {
		return object{"name": name}
	}
	return object{"name": name, "namespace": namespace}
}

// object gives the pod as a kubelet would.
func (p pod) object() object {
	head := metadata(p.namespace, p.name)
	if len(p.labels) > 0 {
		head["labels"] = p.labels
	}
	if p.terminating {
		head["deletionTimestamp"] = "2024-05-01T12:00:00Z"
	}
	spec := object{}
	if p.hostNetwork {
		spec["hostNetwork"] = true
	}
	var containers, inits []object
	for i, ports := range p.containers {
		containers = append(containers, container(fmt.Sprintf("app%d", i), ports))
	}
	if p.init != nil {
		inits = append(inits, container("setup", p.init))
	}
	if p.sidecar != nil {
		o := container("sidecar", p.sidecar)
		o["restartPolicy"] = "Always"
		inits = append(inits, o)
	}
	spec["containers"] = containers
	if inits != nil {
		spec["initContainers"] = inits
	}
	status := object{}
	if p.phase != "" {
		status["phase"] = p.phase
	}
	if len(p.addresses) > 0 {
		status["podIP"] = p.addresses[0].String()
	}
	if len(p.addresses) > 1 || len(p.labels) > 1 { // old kubelets have podIP alone (S7)
		var ips []object
		for _, a := range p.addresses {
			ips = append(ips, object{"ip": a.String()})
		}
		if ips != nil {
			status["podIPs"] = ips
		}
	}
	return object{"apiVersion": "v1", "kind": "Pod", "metadata": head, "spec": spec, "status": status}
}

func container(name string, ports []containerPort) object {
	o := object{"name": name, "image": "registry.example.com/" + name + ":1"}
	var list []object
	for _, p := range ports {
		entry := object{"containerPort": p.number}
		if p.name != "" {
			entry["name"] = p.name
		}
		if p.protocol != "" {
			entry["protocol"] = p.protocol
		}
		list = append(list, entry)
	}
	if list != nil {
		o["ports"] = list
	}
	return o
}
