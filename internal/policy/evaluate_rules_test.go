package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// Each test proves one rule of the specification, from both sides: what it
// allows and what it denies.

func TestS02PolicyTypesDecideWhichRulesCount(t *testing.T) {
	p := testPolicy("default/p", selector("app=web"), ingress())
	p.Rules[inventory.Egress] = []inventory.Rule{rule(blockPeer("10.9.9.9/32"))} // policyTypes: [Ingress]
	c := newCourt(t, testPod("default/web", "app=web", "10.42.0.1"), testPod("default/db", "", "10.42.0.2"), p)
	c.yes("default/web", "default/db", "80/TCP")
	c.no("default/db", "default/web", "80/TCP")
}

func TestS03EmptySelectorIsTheNamespace(t *testing.T) {
	for name, s := range map[string]*inventory.Policy{
		"empty":  testPolicy("default/p", selector(""), ingress()),
		"absent": testPolicy("default/p", nil, ingress()),
	} {
		t.Run(name, func(t *testing.T) {
			c := newCourt(t, s, testPod("default/a", "", "10.42.0.1"), testPod("default/b", "x=y", "10.42.0.2"),
				testPod("other/c", "x=y", "10.42.0.3"))
			c.no("other/c", "default/a", "80/TCP")
			c.no("other/c", "default/b", "80/TCP")
			c.yes("default/a", "other/c", "80/TCP")
		})
	}
}

func TestS04NamespaceWithoutObject(t *testing.T) {
	c := newCourt(t,
		testNamespace("lying", inventory.MetadataName+"=plain"),
		testPod("plain/a", "", "10.42.0.1"), testPod("other/b", "", "10.42.0.2"), testPod("lying/l", "", "10.42.0.4"),
		testPod("default/web", "", "10.42.0.3"),
		testPolicy("default/p", selector(""), ingress(rule(namespacePeer(inventory.MetadataName+"=plain")))))
	c.yes("plain/a", "default/web", "80/TCP")
	c.no("other/b", "default/web", "80/TCP")
	c.no("lying/l", "default/web", "80/TCP")
}

func TestS05Selectors(t *testing.T) {
	for _, tc := range []struct {
		labels  string // of the pod
		matches []metav1.LabelSelectorRequirement
		also    string // matchLabels
		want    bool
	}{
		{labels: "a=1", want: true},
		{labels: "a=1", also: "a=1", want: true},
		{labels: "a=1", also: "a=1,b=1", want: false},
		{labels: "", also: "k=", want: false}, // the key must be there
		{labels: "k=", also: "k=", want: true},
		{labels: "k=x", also: "k=", want: false},
		{labels: "a=1", matches: exprs(expression("a", metav1.LabelSelectorOpIn, "1", "2")), want: true},
		{labels: "a=3", matches: exprs(expression("a", metav1.LabelSelectorOpIn, "1", "2")), want: false},
		{labels: "", matches: exprs(expression("a", metav1.LabelSelectorOpIn, "1", "")), want: false},
		{labels: "a=1", matches: exprs(expression("a", metav1.LabelSelectorOpNotIn, "1")), want: false},
		{labels: "a=2", matches: exprs(expression("a", metav1.LabelSelectorOpNotIn, "1")), want: true},
		{labels: "", matches: exprs(expression("a", metav1.LabelSelectorOpNotIn, "1")), want: true}, // lacks the key
		{labels: "a=", matches: exprs(expression("a", metav1.LabelSelectorOpExists)), want: true},
		{labels: "", matches: exprs(expression("a", metav1.LabelSelectorOpExists)), want: false},
		{labels: "a=1", matches: exprs(expression("a", metav1.LabelSelectorOpDoesNotExist)), want: false},
		{labels: "b=1", matches: exprs(expression("a", metav1.LabelSelectorOpDoesNotExist)), want: true},
		{labels: "a=1,b=2", also: "a=1", matches: exprs(expression("b", metav1.LabelSelectorOpNotIn, "2")), want: false}, // ANDed
		{labels: "a=1,b=3", also: "a=1", matches: exprs(expression("b", metav1.LabelSelectorOpNotIn, "2")), want: true},
	} {
		t.Run(fmt.Sprintf("%s %s%v", tc.labels, tc.also, tc.matches), func(t *testing.T) {
			s := selector(tc.also, tc.matches...)
			peer := newCourt(t, testPod("default/a", tc.labels, "10.42.0.1"), testPod("default/web", "role=web", "10.42.0.2"),
				testPolicy("default/p", selector("role=web"), ingress(rule(inventory.Peer{Pods: s}))))
			peer.want(tc.want, "default/a", "default/web", []string{"80/TCP"})
			target := newCourt(t, testPod("default/a", tc.labels, "10.42.0.1"), testPod("other/b", "", "10.42.0.2"),
				testPolicy("default/p", s, ingress()))
			target.want(!tc.want, "other/b", "default/a", []string{"80/TCP"})
			ns := newCourt(t, testNamespace("n", tc.labels), testPod("n/a", "", "10.42.0.1"), testPod("default/web", "", "10.42.0.2"),
				testPolicy("default/p", selector(""), ingress(rule(inventory.Peer{Namespaces: s}))))
			ns.want(tc.want, "n/a", "default/web", []string{"80/TCP"})
		})
	}
}

func exprs(e ...metav1.LabelSelectorRequirement) []metav1.LabelSelectorRequirement { return e }

func TestS06PodsThatDoNotCount(t *testing.T) {
	phase := func(key, phase, address string) *inventory.Pod {
		return testPodWith(testPod(key, "app=x", address), func(p *inventory.Pod) { p.Phase = phase })
	}
	c := newCourt(t, "192.168.1.1",
		testPodWith(testPod("default/host", "app=x", "192.168.1.1"), func(p *inventory.Pod) { p.HostNetwork = true }),
		phase("default/done", "Succeeded", "10.42.0.2"), phase("default/failed", "Failed", "10.42.0.3"),
		phase("default/pending", "Pending", "10.42.0.4"), phase("default/live", "Running", "10.42.0.5"),
		phase("default/unknown", "Unknown", "10.42.0.7"), phase("default/new", "", "10.42.0.8"),
		testPod("default/web", "", "10.42.0.6"), testPod("other/any", "", "10.42.0.9"),
		testPolicy("default/isolate", selector("app=x"), ingress()),
		testPolicy("default/web", selector(""), egress(rule(podPeer("app=x")))))
	for _, ended := range []string{"default/done", "default/failed"} {
		c.yes("other/any", ended, "80/TCP")  // not isolated for ingress
		c.yes(ended, "other/any", "80/TCP")  // nor for egress
		c.no("default/web", ended, "80/TCP") // and no peer
	}
	c.yes("other/any", "default/host", "80/TCP")
	c.no("default/web", "default/host", "80/TCP")
	c.yes("default/host", "default/live", "80/TCP") // the gateway's own (S24)
	for _, live := range []string{"default/live", "default/pending", "default/unknown", "default/new"} {
		c.no("other/any", live, "80/TCP")
		if v := c.judge("default/web", live, "80/TCP"); !v.Egress.Allowed {
			t.Errorf("web -> %s: egress %s", live, v.Egress.Reason)
		}
	}
	if e := policy.EndpointAt(c.s, netip.MustParseAddr("10.42.0.2")); e.Pod != nil {
		t.Errorf("the address of a pod that has ended is still %s", e.Pod.Key)
	}
}

func TestS06PodWithoutAddressIsJudgedByLabels(t *testing.T) {
	c := newCourt(t, testPod("default/new", "app=new"), testPod("default/web", "app=web", "10.42.0.1"),
		testPolicy("default/new", selector("app=new"), egress(rule(podPeer("app=web"), port("80/TCP"))), ingress(rule(blockPeer("0.0.0.0/0")))),
		testPolicy("default/web", selector("app=web"), ingress(rule(podPeer("app=new"), port("80-81/TCP")), rule(blockPeer("0.0.0.0/0"), port("82/TCP")))))
	c.yes("default/new", "default/web", "80/TCP")
	c.no("default/new", "default/web", "81/TCP", "82/TCP")
	c.yes("default/web", "default/new", "80/TCP")
	noEgress := newCourt(t, testPod("default/new", "app=new"), testPod("default/web", "app=web", "10.42.0.1"), c.s.Policies[1])
	noEgress.no("default/new", "default/web", "82/TCP") // no ipBlock has an absent address
	noEgress.yes("default/new", "default/web", "81/TCP")
}

func TestS07EveryAddressIsIsolated(t *testing.T) {
	c := newCourt(t, testPod("default/web", "app=web", "10.42.0.1", "10.42.0.2", "fd00::1"), testPod("default/a", "", "10.42.0.9", "fd00::9"),
		testPolicy("default/p", selector("app=web"), ingress(rule(blockPeer("10.42.0.9/32"), port("80/TCP"))), egress(rule(blockPeer("10.42.0.0/16")))))
	c.yes("10.42.0.9", "10.42.0.1", "80/TCP")
	c.yes("10.42.0.9", "10.42.0.2", "80/TCP")
	c.no("fd00::9", "fd00::1", "80/TCP") // names IPv4 only, isolates IPv6 too
	c.no("10.42.0.9", "10.42.0.2", "81/TCP")
	c.yes("10.42.0.2", "10.42.0.9", "1/UDP")
	c.no("fd00::1", "fd00::9", "1/UDP")
}

func TestS08ExceptMayCoverItsBlock(t *testing.T) {
	c := newCourt(t, testPod("default/web", "app=web", "10.42.0.1"),
		testPolicy("default/p", selector(""), ingress(
			rule(blockPeer("192.168.10.0/24", "192.168.10.0/24"), port("80/TCP")),
			rule(blockPeer("192.168.10.0/24", "192.168.10.0/25"), port("81/TCP")))))
	c.no("192.168.10.5", "default/web", "80/TCP", "81/TCP")
	c.no("192.168.10.200", "default/web", "80/TCP")
	c.yes("192.168.10.200", "default/web", "81/TCP")
}

func TestS11NotIsolatedMeansEverything(t *testing.T) {
	c := newCourt(t, testPod("default/a", "app=a", "10.42.0.1"), testPod("default/b", "app=b", "10.42.0.2"),
		testPolicy("default/in", selector("app=a"), ingress()),
		testPolicy("default/out", selector("app=b"), egress()))
	c.no("192.168.1.5", "default/a", "80/TCP", "ICMP")
	c.yes("default/a", "192.168.1.5", "80/TCP", "ICMP", "47") // isolated for ingress only
	c.yes("192.168.1.5", "default/b", "80/TCP", "9/SCTP", "ICMP", "47")
	c.no("default/b", "192.168.1.5", "80/TCP", "ICMP")
	v := c.judge("192.168.1.5", "default/a", "80/TCP")
	if !v.Ingress.Isolated || v.Ingress.Allowed || v.Egress.Isolated || !slices.Equal(v.Ingress.Policies, []inventory.Key{testKey("default/in")}) {
		t.Errorf("verdict %+v", v)
	}
}

func TestS12UnionOfPolicies(t *testing.T) {
	policies := []any{
		testPolicy("default/none", selector(""), ingress()),
		testPolicy("default/first", selector("app=web"), ingress(rule(podPeer("app=a"), port("80/TCP")))),
		testPolicy("default/second", selector("app=web"), ingress(rule(podPeer("app=b"), port("81/TCP")), rule(podPeer("app=a"), port("82/TCP")))),
		testPolicy("default/unrelated", selector("app=a"), ingress(rule())),
	}
	pods := []any{testPod("default/web", "app=web", "10.42.0.1"), testPod("default/a", "app=a", "10.42.0.2"), testPod("default/b", "app=b", "10.42.0.3")}
	for range len(policies) { // whatever the order
		policies = append(policies[1:], policies[0])
		c := newCourt(t, slices.Concat(pods, policies)...)
		c.yes("default/a", "default/web", "80/TCP", "82/TCP")
		c.yes("default/b", "default/web", "81/TCP")
		c.no("default/a", "default/web", "81/TCP", "83/TCP")
		c.no("default/b", "default/web", "80/TCP", "82/TCP")
		v := c.judge("default/a", "default/web", "82/TCP")
		if v.Ingress.Rule == nil || v.Ingress.Rule.String() != "default/second ingress rule 1" || len(v.Ingress.Policies) != 3 {
			t.Errorf("allowed by %v of %v", v.Ingress.Rule, v.Ingress.Policies)
		}
	}
}

func TestS13NoCrossProduct(t *testing.T) {
	for _, d := range inventory.Directions {
		rules := []inventory.Rule{
			rule(podPeer("app=a"), port("80/TCP")),
			rule(podPeer("app=b"), blockPeer("192.168.1.0/24"), port("443/TCP"), port("53/UDP")),
		}
		part := ingress(rules...)
		if d == inventory.Egress {
			part = egress(rules...)
		}
		c := newCourt(t, testPod("default/web", "app=web", "10.42.0.1"), testPod("default/a", "app=a", "10.42.0.2"),
			testPod("default/b", "app=b", "10.42.0.3"), testPolicy("default/p", selector("app=web"), part))
		want := func(allowed bool, peer string, ports ...string) {
			t.Helper()
			if d == inventory.Egress {
				c.want(allowed, "default/web", peer, ports)
			} else {
				c.want(allowed, peer, "default/web", ports)
			}
		}
		want(true, "default/a", "80/TCP")
		want(false, "default/a", "443/TCP", "53/UDP", "80/UDP")
		want(true, "default/b", "443/TCP", "53/UDP")
		want(false, "default/b", "80/TCP", "53/TCP", "443/UDP")
		want(true, "192.168.1.9", "443/TCP", "53/UDP")
		want(false, "192.168.1.9", "80/TCP")
	}
}

func TestS14EmptyMeansAll(t *testing.T) {
	pods := []any{testPod("default/web", "app=web", "10.42.0.1", "fd00::1"), testPod("other/a", "", "10.42.0.2", "fd00::2")}
	judge := func(rules ...inventory.Rule) *court {
		return newCourt(t, append(pods, testPolicy("default/p", selector("app=web"), ingress(rules...)))...)
	}
	none := judge()
	none.no("other/a", "default/web", "80/TCP", "ICMP")
	none.no("192.168.1.1", "default/web", "80/TCP", "ICMP")
	all := judge(rule())
	all.yes("other/a", "default/web", "80/TCP", "1/UDP", "65535/SCTP", "ICMP", "47")
	all.yes("2001:db8::1", "fd00::1", "80/TCP", "ICMPv6")
	ports := judge(rule(port("80/TCP")))
	ports.yes("192.168.1.1", "default/web", "80/TCP")
	ports.yes("2001:db8::1", "fd00::1", "80/TCP")
	ports.no("192.168.1.1", "default/web", "81/TCP", "80/UDP", "ICMP")
	peers := judge(rule(blockPeer("192.168.1.0/24")))
	peers.yes("192.168.1.1", "default/web", "80/TCP", "1/UDP", "ICMP")
	peers.no("192.168.2.1", "default/web", "80/TCP", "ICMP")
}

func TestS15BothSidesMustAllow(t *testing.T) {
	c := newCourt(t, testPod("default/a", "app=a", "10.42.0.1"), testPod("default/b", "app=b", "10.42.0.2"),
		testPolicy("default/out", selector("app=a"), egress(rule(podPeer("app=b"), port("80-81/TCP")))),
		testPolicy("default/in", selector("app=b"), ingress(rule(podPeer("app=a"), port("81-82/TCP")))))
	c.yes("default/a", "default/b", "81/TCP")
	c.no("default/a", "default/b", "80/TCP", "82/TCP")
	if v := c.judge("default/a", "default/b", "80/TCP"); !v.Egress.Allowed || v.Ingress.Allowed {
		t.Errorf("verdict %+v", v)
	}
	if v := c.judge("default/a", "default/b", "82/TCP"); v.Egress.Allowed || !v.Ingress.Allowed {
		t.Errorf("verdict %+v", v)
	}
}

func TestS16Selectors(t *testing.T) {
	pods := []any{testNamespace("red", "color=red"), testNamespace("blue", "color=blue"),
		testPod("default/web", "app=web", "10.42.0.1"), testPod("default/a", "app=a", "10.42.0.2"),
		testPod("red/a", "app=a", "10.42.0.3"), testPod("red/b", "app=b", "10.42.0.4"),
		testPod("blue/a", "app=a", "10.42.0.5"), testPod("blue/b", "app=b", "10.42.0.6")}
	sources := []string{"default/a", "red/a", "red/b", "blue/a", "blue/b", "192.168.1.1"}
	for name, tc := range map[string]struct {
		peers   []any
		reached []string
	}{
		"pods":                {[]any{podPeer("app=a")}, []string{"default/a"}},
		"every pod":           {[]any{podPeer("")}, []string{"default/a"}},
		"namespace":           {[]any{namespacePeer("color=red")}, []string{"red/a", "red/b"}},
		"both in one item":    {[]any{bothPeer("color=red", "app=a")}, []string{"red/a"}},
		"in two items":        {[]any{namespacePeer("color=red"), podPeer("app=a")}, []string{"default/a", "red/a", "red/b"}},
		"every namespace":     {[]any{namespacePeer("")}, []string{"default/a", "red/a", "red/b", "blue/a", "blue/b"}},
		"every one, some pod": {[]any{bothPeer("", "app=b")}, []string{"red/b", "blue/b"}},
		"some, every pod":     {[]any{bothPeer("color=blue", "")}, []string{"blue/a", "blue/b"}},
		"nothing matches":     {[]any{namespacePeer("color=green"), podPeer("app=z")}, nil},
		"no selector":         {[]any{inventory.Peer{}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			in := newCourt(t, append(pods, testPolicy("default/p", selector("app=web"), ingress(rule(tc.peers...))))...)
			out := newCourt(t, append(pods, testPolicy("default/p", selector("app=web"), egress(rule(tc.peers...))))...)
			for _, s := range sources {
				in.want(slices.Contains(tc.reached, s), s, "default/web", []string{"80/TCP"})
				out.want(slices.Contains(tc.reached, s), "default/web", s, []string{"80/TCP"})
			}
		})
	}
}

func TestS17BlockMatchesPods(t *testing.T) {
	c := newCourt(t, "192.168.1.1", testPod("default/web", "app=web", "10.42.0.1"), testPod("default/a", "app=a", "10.42.0.2"),
		testPodWith(testPod("default/done", "", "10.42.0.3"), func(p *inventory.Pod) { p.Phase = "Succeeded" }),
		testPolicy("default/p", selector("app=web"), ingress(rule(blockPeer("10.42.0.0/16"))), egress(rule(blockPeer("0.0.0.0/0")))))
	c.yes("default/a", "default/web", "80/TCP")
	c.yes("default/web", "default/a", "80/TCP")
	c.yes("10.42.0.99", "default/web", "80/TCP")
	c.o.IPBlockMatchesPods = false
	c.no("default/a", "default/web", "80/TCP")
	c.no("default/web", "default/a", "80/TCP")
	c.yes("10.42.0.99", "default/web", "80/TCP") // in the block, but no pod's
	c.yes("default/web", "10.42.0.3", "80/TCP")  // a pod's no more
	c.yes("default/web", "8.8.8.8", "80/TCP")
	c.yes("default/web", "192.168.1.1", "80/TCP") // the gateway is no pod
}

func TestS18ExceptIsNoDeny(t *testing.T) {
	c := newCourt(t, testPod("default/web", "app=web", "10.42.0.1"), testPod("default/a", "app=a", "10.42.0.2"),
		testPolicy("default/p", selector("app=web"), ingress(
			rule(blockPeer("10.0.0.0/8", "10.42.0.0/24", "10.43.0.0/16"), port("80/TCP")),
			rule(podPeer("app=a"), port("80/TCP")),          // another peer allows it
			rule(blockPeer("10.43.7.0/24"), port("80/TCP")), // another rule, nested in the except
			rule(blockPeer("10.0.0.0/8", "10.43.0.0/16")))), // another, overlapping
		testPolicy("default/q", selector("app=web"), ingress(rule(blockPeer("10.43.8.1/32"), blockPeer("10.43.8.1/32"))))) // another policy
	c.yes("10.1.2.3", "default/web", "80/TCP")
	c.yes("default/a", "default/web", "80/TCP")
	c.yes("10.43.7.9", "default/web", "80/TCP")
	c.yes("10.43.8.1", "default/web", "80/TCP", "ICMP")
	c.yes("10.42.0.9", "default/web", "80/TCP")
	c.no("10.43.9.1", "default/web", "80/TCP")
	c.no("10.43.8.2", "default/web", "80/TCP")
	c.no("10.43.7.9", "default/web", "81/TCP")
	c.no("11.0.0.0", "default/web", "80/TCP")
}

func TestS18TouchingBlocksAndRanges(t *testing.T) {
	c := newCourt(t, testPod("default/web", "", "10.42.0.1"),
		testPolicy("default/p", selector(""), ingress(
			rule(blockPeer("10.0.0.0/25"), blockPeer("10.0.0.128/25"), blockPeer("10.0.0.64/26"),
				port("80-90/TCP"), port("91-95/TCP"), port("85-93/TCP"), port("85/TCP"), port("85/TCP")))))
	for _, from := range []string{"10.0.0.0", "10.0.0.127", "10.0.0.128", "10.0.0.255"} {
		c.yes(from, "default/web", "80/TCP", "90/TCP", "91/TCP", "95/TCP")
		c.no(from, "default/web", "79/TCP", "96/TCP", "85/UDP")
	}
	c.no("10.0.1.0", "default/web", "85/TCP")
	c.no("9.255.255.255", "default/web", "85/TCP")
}

func TestS19AllOfOneFamily(t *testing.T) {
	pods := []any{testPod("default/web", "app=web", "10.42.0.1", "fd00::1"), testPod("default/a", "", "10.42.0.2", "fd00::2")}
	four := newCourt(t, append(pods, testPolicy("default/p", selector("app=web"), egress(rule(blockPeer("0.0.0.0/0")))))...)
	four.yes("10.42.0.1", "8.8.8.8", "80/TCP")
	four.yes("10.42.0.1", "10.42.0.2", "80/TCP")
	four.no("fd00::1", "2001:db8::8", "80/TCP")
	four.no("fd00::1", "fd00::2", "80/TCP")
	six := newCourt(t, append(pods, testPolicy("default/p", selector("app=web"), egress(rule(blockPeer("::/0")))))...)
	six.no("10.42.0.1", "8.8.8.8", "80/TCP")
	six.yes("fd00::1", "2001:db8::8", "80/TCP")
	six.no("::ffff:10.42.0.1", "::ffff:8.8.8.8", "80/TCP") // an IPv4 address, however written
}

// withPorts gives a pod named ports.
func withPorts(p *inventory.Pod, ports ...inventory.NamedPort) *inventory.Pod {
	p.Ports = ports
	return p
}

func TestS20NamedPortsPerDestination(t *testing.T) {
	web := func(proto inventory.Protocol, n uint16) inventory.NamedPort {
		return inventory.NamedPort{Name: "web", Protocol: proto, Port: n}
	}
	pods := []any{"192.168.1.1", testPod("default/client", "app=client", "10.42.0.1"),
		withPorts(testPod("default/a", "app=server", "10.42.0.2"), web(inventory.TCP, 8080), web(inventory.UDP, 53), web(inventory.TCP, 8081),
			inventory.NamedPort{Name: "admin", Protocol: inventory.TCP, Port: 7000}),
		withPorts(testPod("default/b", "app=server", "10.42.0.3"), web(inventory.TCP, 9090)),
		testPod("default/c", "app=server", "10.42.0.4")}
	named := port("web/TCP")

	in := newCourt(t, append(pods, testPolicy("default/p", selector("app=server"), ingress(rule(named))))...)
	in.yes("default/client", "default/a", "8080/TCP", "8081/TCP")
	in.no("default/client", "default/a", "9090/TCP", "7000/TCP", "53/UDP", "53/TCP", "8080/UDP", "ICMP")
	in.yes("192.168.7.7", "default/b", "9090/TCP")
	in.no("default/client", "default/b", "8080/TCP")
	in.no("default/client", "default/c", "8080/TCP", "9090/TCP", "80/TCP", "1/TCP", "65535/TCP") // unresolved: nothing

	for name, peers := range map[string][]any{
		"everyone": {}, "selector": {podPeer("app=server")}, "block": {blockPeer("0.0.0.0/0")},
	} {
		t.Run(name, func(t *testing.T) {
			out := newCourt(t, append(pods, testPolicy("default/p", selector("app=client"), egress(rule(append(peers, named)...))))...)
			out.yes("default/client", "default/a", "8080/TCP", "8081/TCP")
			out.no("default/client", "default/a", "9090/TCP", "53/UDP", "ICMP")
			out.yes("default/client", "default/b", "9090/TCP")
			out.no("default/client", "default/b", "8080/TCP")
			out.no("default/client", "default/c", "8080/TCP", "9090/TCP", "1/TCP")
			out.no("default/client", "8.8.8.8", "8080/TCP", "9090/TCP", "1/TCP") // no pod
			out.no("default/client", "192.168.1.1", "8080/TCP", "9090/TCP")
			out.o.IPBlockMatchesPods = false
			out.want(name != "block", "default/client", "default/a", []string{"8080/TCP"})
		})
	}
	outside := newCourt(t, append(pods, testPolicy("default/p", selector("app=client"), egress(rule(blockPeer("10.42.0.3/32"), named))))...)
	outside.yes("default/client", "default/b", "9090/TCP")
	outside.no("default/client", "default/a", "8080/TCP") // has the port, not the address
	self := newCourt(t, append(pods, testPolicy("default/p", selector("app=server"), egress(rule(podPeer("app=server"), named))))...)
	self.yes("default/a", "default/b", "9090/TCP") // the peer's port
	self.no("default/a", "default/b", "8080/TCP")  // not one's own
}

func TestS20UnresolvedBesideOthers(t *testing.T) {
	c := newCourt(t, testPod("default/a", "", "10.42.0.1"), testPod("other/b", "", "10.42.0.2"),
		testPolicy("default/p", selector(""), ingress(rule(port("nobody/TCP"), port("80/TCP")))))
	c.yes("other/b", "default/a", "80/TCP")
	c.no("other/b", "default/a", "81/TCP", "ICMP")
}

func TestS21ProtocolOnlyAndRanges(t *testing.T) {
	c := newCourt(t, testPod("default/a", "", "10.42.0.1"), testPod("other/b", "", "10.42.0.2"),
		testPolicy("default/p", selector(""), ingress(rule(port("UDP"), port("100-200/TCP"), port("65535-65535/TCP"), port("1/TCP"), port("300-300/SCTP")))))
	c.yes("other/b", "default/a", "1/UDP", "53/UDP", "65535/UDP")
	c.yes("other/b", "default/a", "1/TCP", "100/TCP", "150/TCP", "200/TCP", "65535/TCP", "300/SCTP")
	c.no("other/b", "default/a", "2/TCP", "99/TCP", "201/TCP", "65534/TCP", "150/SCTP", "299/SCTP", "301/SCTP", "ICMP")
}

func TestS22ProtocolsWithoutPorts(t *testing.T) {
	c := newCourt(t, testPod("default/a", "app=a", "10.42.0.1", "fd00::1"), testPod("default/b", "app=b", "10.42.0.2", "fd00::2"),
		testPod("default/web", "app=web", "10.42.0.3", "fd00::3"),
		testPolicy("default/p", selector("app=web"), ingress(rule(podPeer("app=a"), port("TCP"), port("UDP"), port("SCTP")), rule(podPeer("app=b")))))
	c.yes("default/a", "default/web", "80/TCP", "80/UDP", "80/SCTP")
	c.no("default/a", "default/web", "ICMP", "47")
	c.no("fd00::1", "fd00::3", "ICMPv6")
	c.yes("default/b", "default/web", "80/TCP", "80/UDP", "80/SCTP", "ICMP", "47")
	c.yes("fd00::2", "fd00::3", "ICMPv6")
	c.no("192.168.1.1", "default/web", "ICMP")
}

func TestS23PodCannotBlockItself(t *testing.T) {
	c := newCourt(t, testPod("default/a", "", "10.42.0.1", "10.42.0.2"), testPod("default/b", "", "10.42.0.3"),
		testPolicy("default/p", selector(""), ingress(), egress()))
	c.yes("default/a", "default/a", "80/TCP", "ICMP")
	c.yes("10.42.0.1", "10.42.0.2", "80/TCP")
	c.no("default/a", "default/b", "80/TCP", "ICMP")
}

func TestS24GatewayReachesItsPods(t *testing.T) {
	c := newCourt(t, "192.168.1.1", testPod("default/a", "", "10.42.0.1"),
		testPodWith(testPod("default/host", "", "192.168.1.1"), func(p *inventory.Pod) { p.HostNetwork = true }),
		testPodWith(testPod("default/starting", ""), func(p *inventory.Pod) { p.HostNetwork = true }), // no address yet
		testPolicy("default/p", selector(""), ingress(), egress()))
	c.yes("gateway", "default/a", "80/TCP", "ICMP")
	c.yes("default/host", "default/a", "80/TCP")
	c.yes("default/starting", "default/a", "80/TCP")
	c.no("192.168.1.2", "default/a", "80/TCP", "ICMP")
	// What the gateway only forwards, with its address as the source, is not its own.
	masqueraded := policy.Flow{From: policy.Endpoint{Addr: c.s.Gateway[0]}, To: c.end("default/a"), Protocol: inventory.TCP, Port: 80}
	if v := policy.Evaluate(c.s, &c.o, masqueraded); v.Allowed {
		t.Errorf("masqueraded traffic: %s", v.Ingress.Reason)
	}
}

func TestS25EgressToTheGateway(t *testing.T) {
	objects := []any{"192.168.1.1", "fd00::ffff", testPod("default/a", "app=a", "10.42.0.1", "fd00::1"), testPod("default/free", "", "10.42.0.2"),
		testPolicy("default/p", selector("app=a"), egress(rule(blockPeer("192.168.1.0/24"), port("443/TCP")), rule(namespacePeer(""))))}
	c := newCourt(t, objects...)
	c.yes("10.42.0.1", "192.168.1.1", "443/TCP") // as its policy says
	c.no("10.42.0.1", "192.168.1.1", "53/UDP", "53/TCP", "80/TCP", "ICMP")
	c.no("fd00::1", "fd00::ffff", "443/TCP")
	c.yes("default/free", "192.168.1.1", "80/TCP")

	c.o.GatewayPorts = []inventory.Port{port("53/UDP"), port("8000-8001/TCP")}
	c.yes("10.42.0.1", "192.168.1.1", "53/UDP", "8000/TCP", "8001/TCP")
	c.yes("fd00::1", "fd00::ffff", "53/UDP")
	c.no("10.42.0.1", "192.168.1.1", "53/TCP", "8002/TCP", "ICMP")
	c.no("10.42.0.1", "192.168.1.2", "53/UDP") // the gateway's only

	c.o.GatewayPorts, c.o.GatewayEgress = nil, false
	c.yes("10.42.0.1", "192.168.1.1", "53/UDP", "80/TCP", "ICMP")
	c.no("10.42.0.1", "192.168.1.2", "53/UDP")
}

func TestS27JudgedBehindNAT(t *testing.T) {
	// A hostPort 8080 of the gateway leads to the pod's port 80, and the pod's
	// own traffic is masqueraded: the judge is given neither 8080 nor the
	// gateway's address.
	c := newCourt(t, "192.168.1.1", testPod("default/a", "", "10.42.0.1"),
		testPolicy("default/p", selector(""), ingress(rule(blockPeer("192.168.1.0/24", "192.168.1.1/32"), port("80/TCP")))))
	c.yes("192.168.1.77", "10.42.0.1", "80/TCP")
	c.no("192.168.1.77", "10.42.0.1", "8080/TCP")
	c.no("192.168.2.77", "10.42.0.1", "80/TCP")
}

func TestS32RelabellingTakesEffect(t *testing.T) {
	p := testPolicy("default/p", selector("app=web"), ingress(rule(bothPeer("color=red", "app=a"))))
	judge := func(web, a, color, address string) *court {
		return newCourt(t, p, testNamespace("n", "color="+color), testPod("default/web", "app="+web, "10.42.0.1"), testPod("n/a", "app="+a, address))
	}
	judge("web", "a", "red", "10.42.0.2").yes("10.42.0.2", "10.42.0.1", "80/TCP")
	judge("web", "b", "red", "10.42.0.2").no("10.42.0.2", "10.42.0.1", "80/TCP")
	judge("web", "a", "blue", "10.42.0.2").no("10.42.0.2", "10.42.0.1", "80/TCP")
	judge("web", "a", "red", "10.42.0.3").no("10.42.0.2", "10.42.0.1", "80/TCP")
	judge("db", "b", "blue", "10.42.0.2").yes("10.42.0.2", "10.42.0.1", "80/TCP")
}

func TestS33AddressesThatAreNeverAPods(t *testing.T) {
	for _, bad := range []string{"192.168.1.1", "127.0.0.1", "::1", "224.0.0.5", "ff02::1", "10.1.0.7"} {
		t.Run(bad, func(t *testing.T) {
			c := newCourt(t, "192.168.1.1", testPod("default/bad", "app=x", "10.42.0.1", bad), testPod("default/good", "app=x", "10.42.0.2"),
				testPod("default/web", "app=web", "10.42.0.3"),
				testPolicy("default/isolate", selector("app=x"), ingress(), egress()),
				testPolicy("default/web", selector("app=web"), ingress(rule(podPeer("app=x")))))
			c.o.NeverPods = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
			c.yes("10.99.0.1", bad, "80/TCP") // not isolated
			c.yes(bad, "10.99.0.1", "80/TCP")
			c.yes("10.99.0.1", "10.42.0.1", "80/TCP") // the pod is refused whole
			c.no("10.99.0.1", "default/good", "80/TCP")
			if bad != "192.168.1.1" { // the gateway's own traffic passes (S24)
				c.no(bad, "default/web", "80/TCP") // no peer
			}
			c.o.NeverPods = nil
			if bad == "10.1.0.7" {
				c.no("10.99.0.1", bad, "80/TCP")
			}
		})
	}
}

func TestS35NeverIsolated(t *testing.T) {
	c := newCourt(t, testPod("cloud/agent", "app=agent", "10.42.0.1"), testPod("cloud/other", "", "10.42.0.2"), testPod("default/web", "app=web", "10.42.0.3"),
		testPolicy("cloud/all", selector(""), ingress(), egress()),
		testPolicy("default/web", selector("app=web"), ingress(rule(bothPeer("", "app=agent")))))
	c.no("cloud/agent", "default/web", "80/TCP")
	c.no("default/web", "cloud/agent", "80/TCP")
	c.o.NeverIsolate = []inventory.Key{testKey("cloud/agent")}
	c.yes("cloud/agent", "default/web", "80/TCP") // still a peer
	c.yes("default/web", "cloud/agent", "80/TCP")
	c.no("cloud/agent", "cloud/other", "80/TCP") // the other end's isolation holds
	c.no("default/web", "cloud/other", "80/TCP")
	c.o.NeverIsolate = []inventory.Key{{Namespace: "cloud"}}
	c.yes("default/web", "cloud/other", "80/TCP")
	if v := c.judge("default/web", "cloud/other", "80/TCP"); v.Ingress.Isolated || v.Ingress.Policies != nil {
		t.Errorf("reported as isolated: %+v", v.Ingress)
	}
}

func TestReasons(t *testing.T) {
	c := newCourt(t, "192.168.1.1", testPod("default/web", "app=web", "10.42.0.1"), testPod("default/a", "app=a", "10.42.0.2"), testPod("other/n", "", "10.42.0.3"),
		testPolicy("default/base", selector(""), egress(), ingress()),
		testPolicy("default/web", selector("app=web"), egress(rule(port("1/TCP")), rule(podPeer("app=a"), port("80/TCP")))),
		testPolicy("default/a", selector("app=a"), ingress(rule(podPeer("app=web")))))
	c.o.GatewayPorts = []inventory.Port{port("53/UDP")}
	c.o.NeverIsolate = []inventory.Key{testKey("other/agent")}
	for _, tc := range []struct{ from, to, port, egress, ingress string }{
		{"default/web", "default/a", "80/TCP", "allowed by default/web egress rule 1", "allowed by default/a ingress rule 0"},
		{"default/web", "default/a", "81/TCP", "not allowed by default/base, default/web", "allowed by default/a ingress rule 0"},
		{"default/web", "8.8.8.8", "81/TCP", "not allowed by default/base, default/web", "not a pod"},
		{"other/n", "default/web", "81/TCP", "not isolated", "not allowed by default/base"},
		{"default/a", "default/a", "81/TCP", "a pod cannot block itself", "a pod cannot block itself"},
		{"gateway", "default/a", "81/TCP", "not a pod", "gateway's own traffic"},
		{"default/a", "192.168.1.1", "53/UDP", "the gateway's port is open to pods", "not a pod"},
		{"default/a", "192.168.1.1", "53/TCP", "not allowed by default/base", "not a pod"},
	} {
		v := c.judge(tc.from, tc.to, tc.port)
		if v.Egress.Reason != tc.egress || v.Ingress.Reason != tc.ingress {
			t.Errorf("%s -> %s %s:\n got %q, %q\nwant %q, %q", tc.from, tc.to, tc.port, v.Egress.Reason, v.Ingress.Reason, tc.egress, tc.ingress)
		}
	}
}
