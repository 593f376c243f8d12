package policy_test

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// court is a snapshot with the options it is judged by.
type court struct {
	t *testing.T
	s *inventory.Snapshot
	o inventory.Options
}

// newCourt sorts pods, policies, namespaces and gateway addresses (text) into a
// snapshot with default options.
func newCourt(t *testing.T, objects ...any) *court {
	t.Helper()
	c := &court{t: t, s: &inventory.Snapshot{}, o: inventory.DefaultOptions()}
	for _, o := range objects {
		switch o := o.(type) {
		case *inventory.Pod:
			c.s.Pods = append(c.s.Pods, o)
		case *inventory.Policy:
			c.s.Policies = append(c.s.Policies, o)
		case *inventory.Namespace:
			c.s.Namespaces = append(c.s.Namespaces, o)
		case string:
			c.s.Gateway = append(c.s.Gateway, netip.MustParseAddr(o))
		default:
			t.Fatalf("object %T", o)
		}
	}
	slices.SortFunc(c.s.Pods, func(a, b *inventory.Pod) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(c.s.Policies, func(a, b *inventory.Policy) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(c.s.Namespaces, func(a, b *inventory.Namespace) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(c.s.Gateway, netip.Addr.Compare)
	return c
}

// end reads "default/web" (the pod by its first address, whatever it is like),
// "gateway" (a process of it) or an address.
func (c *court) end(name string) policy.Endpoint {
	c.t.Helper()
	if name == "gateway" {
		return policy.Endpoint{Addr: c.s.Gateway[0], Gateway: true}
	}
	if a, err := netip.ParseAddr(name); err == nil {
		return policy.EndpointAt(c.s, a)
	}
	p := c.s.Pod(testKey(name))
	if p == nil {
		c.t.Fatalf("no pod %s", name)
	}
	e := policy.Endpoint{Pod: p}
	if len(p.Addresses) > 0 {
		e.Addr = p.Addresses[0]
	}
	return e
}

// judge evaluates a flow to "80/TCP", "ICMP" or "47" (a protocol by number).
func (c *court) judge(from, to, port string) policy.Verdict {
	c.t.Helper()
	f := policy.Flow{From: c.end(from), To: c.end(to)}
	if number, protocol, found := strings.Cut(port, "/"); found {
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			c.t.Fatal(err)
		}
		f.Port = uint16(n)
		f.Protocol, _ = inventory.ParseProtocol(protocol)
	} else if port == "ICMP" {
		f.Protocol = inventory.ICMP
	} else if port == "ICMPv6" {
		f.Protocol = inventory.ICMPv6
	} else {
		n, err := strconv.ParseUint(port, 10, 8)
		if err != nil {
			c.t.Fatal(err)
		}
		f.Protocol = inventory.Protocol(n)
	}
	return policy.Evaluate(c.s, &c.o, f)
}

// yes demands that each of the ports is allowed.
func (c *court) yes(from, to string, ports ...string) {
	c.t.Helper()
	c.want(true, from, to, ports)
}

// no demands that each of the ports is denied.
func (c *court) no(from, to string, ports ...string) {
	c.t.Helper()
	c.want(false, from, to, ports)
}

func (c *court) want(allowed bool, from, to string, ports []string) {
	c.t.Helper()
	for _, p := range ports {
		if v := c.judge(from, to, p); v.Allowed != allowed {
			c.t.Errorf("%s -> %s %s: allowed %t, want %t\negress: %s\ningress: %s", from, to, p,
				v.Allowed, allowed, v.Egress.Reason, v.Ingress.Reason)
		}
	}
}

// testKey reads "namespace/name".
func testKey(s string) inventory.Key {
	namespace, name, _ := strings.Cut(s, "/")
	return inventory.Key{Namespace: namespace, Name: name}
}

// testLabels reads "a=b,c=d".
func testLabels(s string) labels.Set {
	set := labels.Set{}
	for pair := range strings.SplitSeq(s, ",") {
		if k, v, found := strings.Cut(pair, "="); found {
			set[k] = v
		}
	}
	return set
}

func testPod(key, labelled string, addresses ...string) *inventory.Pod {
	p := &inventory.Pod{Head: inventory.Head{Key: testKey(key)}, Labels: testLabels(labelled), Phase: "Running"}
	for _, a := range addresses {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	slices.SortFunc(p.Addresses, netip.Addr.Compare)
	return p
}

// testPodWith is testPod changed.
func testPodWith(p *inventory.Pod, change func(*inventory.Pod)) *inventory.Pod {
	change(p)
	return p
}

func testNamespace(name, labelled string) *inventory.Namespace {
	return &inventory.Namespace{Head: inventory.Head{Key: inventory.Key{Name: name}}, Labels: testLabels(labelled)}
}

// testPolicy makes a policy that isolates in no direction but those of parts.
func testPolicy(key string, selector labels.Selector, parts ...func(*inventory.Policy)) *inventory.Policy {
	p := &inventory.Policy{Head: inventory.Head{Key: testKey(key)}, Selector: selector}
	for _, part := range parts {
		part(p)
	}
	return p
}

// ingress and egress isolate, and give the rules.
func ingress(rules ...inventory.Rule) func(*inventory.Policy) {
	return func(p *inventory.Policy) {
		p.Isolates[inventory.Ingress], p.Rules[inventory.Ingress] = true, rules
	}
}

func egress(rules ...inventory.Rule) func(*inventory.Policy) {
	return func(p *inventory.Policy) {
		p.Isolates[inventory.Egress], p.Rules[inventory.Egress] = true, rules
	}
}

// rule makes a rule of peers and ports.
func rule(parts ...any) inventory.Rule {
	var r inventory.Rule
	for _, p := range parts {
		switch p := p.(type) {
		case inventory.Peer:
			r.Peers = append(r.Peers, p)
		case inventory.Port:
			r.Ports = append(r.Ports, p)
		default:
			panic("a rule has peers and ports")
		}
	}
	return r
}

// selector reads matchLabels "a=b,c=d" as Kubernetes does; "" is {}.
func selector(matchLabels string, expressions ...metav1.LabelSelectorRequirement) labels.Selector {
	s, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{
		MatchLabels: testLabels(matchLabels), MatchExpressions: expressions,
	})
	if err != nil {
		panic(err)
	}
	return s
}

// expression is one of matchExpressions.
func expression(key string, operator metav1.LabelSelectorOperator, values ...string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: key, Operator: operator, Values: values}
}

// podPeer, namespacePeer and bothPeer are peers by matchLabels.
func podPeer(matchLabels string) inventory.Peer {
	return inventory.Peer{Pods: selector(matchLabels)}
}

func namespacePeer(matchLabels string) inventory.Peer {
	return inventory.Peer{Namespaces: selector(matchLabels)}
}

func bothPeer(namespaces, pods string) inventory.Peer {
	return inventory.Peer{Namespaces: selector(namespaces), Pods: selector(pods)}
}

func blockPeer(cidr string, except ...string) inventory.Peer {
	b := &inventory.IPBlock{CIDR: netip.MustParsePrefix(cidr)}
	for _, e := range except {
		b.Except = append(b.Except, netip.MustParsePrefix(e))
	}
	return inventory.Peer{Block: b}
}

// port reads "80/TCP", "80-90/TCP", "web/TCP" (named) or "TCP" (every port).
func port(s string) inventory.Port {
	number, name, found := strings.Cut(s, "/")
	if !found {
		protocol, _ := inventory.ParseProtocol(s)
		return inventory.Port{Protocol: protocol, Last: 65535}
	}
	var p inventory.Port
	p.Protocol, _ = inventory.ParseProtocol(name)
	first, last, ranged := strings.Cut(number, "-")
	n, err := strconv.ParseUint(first, 10, 16)
	if err != nil {
		p.Name = number
		return p
	}
	p.First, p.Last = uint16(n), uint16(n)
	if ranged {
		n, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			panic(err)
		}
		p.Last = uint16(n)
	}
	return p
}
