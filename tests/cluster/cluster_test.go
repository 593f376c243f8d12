package cluster

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

func mustSnapshot(t *testing.T, c Cluster) *inventory.Snapshot {
	t.Helper()
	s, err := c.Snapshot()
	if err != nil {
		t.Fatalf("%v\n%s", err, c.YAML)
	}
	return s
}

func TestSameSeedSameCluster(t *testing.T) {
	a, b := Generate(Config{Seed: 7}), Generate(Config{Seed: 7})
	ra, rb := rand.New(rand.NewPCG(7, 7)), rand.New(rand.NewPCG(7, 7))
	for i := range 20 {
		if !bytes.Equal(a.YAML, b.YAML) || a.Change != b.Change {
			t.Fatalf("after %d changes: %q and %q", i, a.Change, b.Change)
		}
		a, b = Mutate(ra, a), Mutate(rb, b)
	}
	if bytes.Equal(Generate(Config{Seed: 8}).YAML, Generate(Config{Seed: 7}).YAML) {
		t.Error("seeds 7 and 8 give the same")
	}
}

// Every construct of the API must turn up, and nothing invalid.
func TestEveryConstruct(t *testing.T) {
	constructs := map[string]*regexp.Regexp{
		"empty selector":  regexp.MustCompile(`podSelector: {}`),
		"every namespace": regexp.MustCompile(`namespaceSelector: {}`),
		"both selectors": regexp.MustCompile(`- namespaceSelector: {}
 +podSelector:`),
		"empty from":                  regexp.MustCompile(`from: \[\]`),
		"empty to":                    regexp.MustCompile(`to: \[\]`),
		"empty ports":                 regexp.MustCompile(`ports: \[\]`),
		"empty ingress":               regexp.MustCompile(`ingress: \[\]`),
		"empty egress":                regexp.MustCompile(`egress: \[\]`),
		"empty policyTypes":           regexp.MustCompile(`policyTypes: \[\]`),
		"empty rule":                  regexp.MustCompile(`(ingress|egress):\n +- {}`),
		"empty port":                  regexp.MustCompile(`ports:\n +- {}`),
		"no selector":                 regexp.MustCompile(`(?m)^spec: {}|spec:\n  (policyTypes|egress|ingress):(\n  [ -].*)*\n---`),
		"In":                          regexp.MustCompile(`operator: In`),
		"NotIn":                       regexp.MustCompile(`operator: NotIn`),
		"Exists":                      regexp.MustCompile(`operator: Exists`),
		"DoesNotExist":                regexp.MustCompile(`operator: DoesNotExist`),
		"empty label":                 regexp.MustCompile(`matchLabels:\n +app: ""`),
		"empty value":                 regexp.MustCompile(`values:\n +- ""`),
		"number as label":             regexp.MustCompile(`role: "1"`),
		"namespace by name":           regexp.MustCompile(`kubernetes.io/metadata.name: ns1`),
		"everything IPv4":             regexp.MustCompile(`cidr: 0.0.0.0/0`),
		"everything IPv6":             regexp.MustCompile(`cidr: ::/0`),
		"one IPv4 address":            regexp.MustCompile(`cidr: [0-9.]+/32`),
		"one IPv6 address":            regexp.MustCompile(`cidr: [0-9a-f:]+/128`),
		"host bits":                   regexp.MustCompile(`cidr: [0-9.]+\.[0-9]*[13579]/(24|25|28|30)`),
		"several excepts":             regexp.MustCompile(`except:\n +- [^ ]+/[0-9]+\n +- [^ ]+/[0-9]+`),
		"named port":                  regexp.MustCompile(`port: web`),
		"port nobody has":             regexp.MustCompile(`port: nobody`),
		"endPort of one port":         regexp.MustCompile(`endPort: 80\n +port: 80\n`),
		"range to the end":            regexp.MustCompile(`endPort: 65535\n +port: 1\n`),
		"port 1":                      regexp.MustCompile(`- port: 1\n`),
		"port 65535":                  regexp.MustCompile(`port: 65535\n`),
		"protocol alone":              regexp.MustCompile(`- protocol: UDP\n`),
		"SCTP":                        regexp.MustCompile(`protocol: SCTP`),
		"hostNetwork":                 regexp.MustCompile(`hostNetwork: true`),
		"sidecar":                     regexp.MustCompile(`restartPolicy: Always`),
		"init container with ports":   regexp.MustCompile(`name: setup\n +ports:`),
		"ended":                       regexp.MustCompile(`phase: Succeeded`),
		"failed":                      regexp.MustCompile(`phase: Failed`),
		"terminating":                 regexp.MustCompile(`deletionTimestamp`),
		"no address":                  regexp.MustCompile(`status: {}|status:\n  phase: \w+\n---`),
		"old kubelet":                 regexp.MustCompile(`podIP: [^ \n]+\n---`),
		"several of a family":         regexp.MustCompile(`podIPs:(\n +- ip: [0-9a-f:.]+)*\n +- ip: 10\.[0-9.]+\n +- ip: 10\.`),
		"IPv6 first":                  regexp.MustCompile(`podIPs:\n +- ip: fd00:[0-9a-f:]+\n +- ip: 10\.`),
		"namespace left to default":   regexp.MustCompile(`metadata:\n(  labels:\n(    .*\n)+)?  name: pod[0-9]+\nspec`),
		"same name, several numbers":  regexp.MustCompile(`containerPort: 53\n +name: web(?s:.*)containerPort: 80\n +name: web`),
		"policyTypes leaves one out":  regexp.MustCompile(`(?m)^  egress:\n  +- (?s:.{1,300})policyTypes:\n +- Ingress\n---`),
		"policyTypes in other order":  regexp.MustCompile(`- Egress\n +- Ingress`),
		"selector with both parts":    regexp.MustCompile(`matchExpressions:(\n +(-|key|operator|values).*)+\n +matchLabels:`),
		"block with one exception":    regexp.MustCompile(`except:\n +- [^ \n]+\n`),
		"a container without a name":  regexp.MustCompile(`- containerPort: 12345\n`),
		"a port without its protocol": regexp.MustCompile(`- containerPort: [0-9]+\n +name: \w+\n +(- |name|image|init)`),
	}
	for seed := range uint64(150) {
		c := Generate(Config{Seed: seed, Pods: 10, Policies: 8})
		mustSnapshot(t, c)
		for name, r := range constructs {
			if r.Match(c.YAML) {
				delete(constructs, name)
			}
		}
	}
	for name := range constructs {
		t.Errorf("never made: %s", name)
	}
}

// What the text alone does not show.
func TestEveryRelation(t *testing.T) {
	missing := map[string]bool{}
	for _, k := range []string{"nested blocks", "touching blocks", "the same block twice", "except with a pod", "except with an outside address",
		"block with a pod", "overlapping ranges", "touching ranges", "a name with two protocols in a pod", "a name with different numbers",
		"a finished pod's address is another's", "namespace without an object", "except is the whole block", "same except twice or nested"} {
		missing[k] = true
	}
	for seed := range uint64(150) {
		c := Generate(Config{Seed: seed, Pods: 10, Policies: 8})
		s := mustSnapshot(t, c)
		for _, found := range relations(s, c.Outside) {
			delete(missing, found)
		}
		if len(s.Namespaces) < 3 {
			delete(missing, "namespace without an object")
		}
	}
	for k := range missing {
		t.Errorf("never made: %s", k)
	}
}

func relations(s *inventory.Snapshot, outside []netip.Addr) []string {
	var found []string
	say := func(is bool, what string) {
		if is {
			found = append(found, what)
		}
	}
	for _, p := range s.Policies {
		for _, d := range inventory.Directions {
			var blocks []*inventory.IPBlock
			var ports []inventory.Port
			for _, r := range p.Rules[d] {
				for _, peer := range r.Peers {
					if peer.Block != nil {
						blocks = append(blocks, peer.Block)
					}
				}
				ports = append(ports, r.Ports...)
			}
			for i, b := range blocks {
				blockRelations(say, s, outside, b)
				for _, o := range blocks[i+1:] {
					say(o.CIDR == b.CIDR, "the same block twice")
					say(o.CIDR != b.CIDR && o.CIDR.Overlaps(b.CIDR), "nested blocks")
					say(beside(b.CIDR).Addr() == o.CIDR.Addr() && b.CIDR != o.CIDR, "touching blocks")
				}
			}
			for i, a := range ports {
				for _, b := range ports[i+1:] {
					same := a.Protocol == b.Protocol && a.Name == "" && b.Name == ""
					say(same && a.First < b.First && b.First <= a.Last && a.Last < b.Last, "overlapping ranges")
					say(same && a.Last+1 == b.First, "touching ranges")
				}
			}
		}
	}
	podRelations(say, s)
	return found
}

func blockRelations(say func(bool, string), s *inventory.Snapshot, outside []netip.Addr, b *inventory.IPBlock) {
	for _, pod := range s.Pods {
		for _, a := range pod.Addresses {
			say(b.CIDR.Contains(a), "block with a pod")
			for _, e := range b.Except {
				say(e.Contains(a), "except with a pod")
			}
		}
	}
	for i, e := range b.Except {
		say(e == b.CIDR, "except is the whole block")
		say(slices.ContainsFunc(outside, e.Contains), "except with an outside address")
		for _, o := range b.Except[i+1:] {
			say(e.Overlaps(o), "same except twice or nested")
		}
	}
}

func podRelations(say func(bool, string), s *inventory.Snapshot) {
	numbers := map[string]uint16{}
	for _, p := range s.Pods {
		protocols := map[string]inventory.Protocol{}
		for _, n := range p.Ports {
			before, known := protocols[n.Name]
			say(known && before != n.Protocol, "a name with two protocols in a pod")
			number, known := numbers[n.Name]
			say(known && number != n.Port, "a name with different numbers")
			protocols[n.Name], numbers[n.Name] = n.Protocol, n.Port
		}
		for _, a := range p.Addresses {
			say(!p.HostNetwork && !p.Selectable() && s.PodAt(a) != nil, "a finished pod's address is another's")
		}
	}
}

func TestMutate(t *testing.T) {
	kinds := map[string]bool{}
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 3))
		c := Generate(Config{Seed: seed})
		for range 60 {
			before := bytes.Clone(c.YAML)
			next := Mutate(rng, c)
			if c.render(); !bytes.Equal(before, c.YAML) {
				t.Fatalf("%s: changed the cluster before, too", next.Change)
			}
			if next.Change == "" || bytes.Equal(next.YAML, c.YAML) {
				t.Fatalf("%q changed nothing", next.Change)
			}
			s := mustSnapshot(t, next)
			owners := map[netip.Addr]inventory.Key{}
			for _, p := range s.Pods {
				for _, a := range p.Addresses {
					if o, taken := owners[a]; taken && p.Enforceable() {
						t.Fatalf("%s: %s is of %s and %s", next.Change, a, o, p.Key)
					}
					if p.Enforceable() {
						owners[a] = p.Key
					}
				}
			}
			kinds[changeKind(next.Change)] = true
			c = next
		}
	}
	for _, want := range []string{"pod gets labels", "namespace gets labels", "namespace has an object", "policy rule is new", "policy rule goes",
		"policy rule changes", "policy gets policyTypes", "policy selects", "policy is new", "policy goes", "pod is new", "pod goes",
		"address changes hands", "pod moves", "pod is Failed", "pod gets other ports"} {
		if !kinds[want] {
			t.Errorf("never: %s (of %v)", want, kinds)
		}
	}
}

// changeKind takes the names from a change.
func changeKind(s string) string {
	if strings.Contains(s, " goes from pod ") {
		return "address changes hands"
	}
	for _, cut := range []string{`, it was.*`, ` at .*`, ` to .*`, ` \[.*`, ` map.*`, `: .*`, ` [a-z0-9]+/[a-z0-9]+`, ` (ns\d|default)`, ` (in|e)gress`, ` \d+`} {
		s = regexp.MustCompile(cut).ReplaceAllString(s, "")
	}
	return s
}

// kindsOf sorts flows into ends, family and protocol.
func kindsOf(flows []policy.Flow) map[string]int {
	count := map[string]int{}
	for _, f := range flows {
		count[fmt.Sprint(kindOf(f.From), " ", kindOf(f.To), " ", f.From.Addr.Is4(), " ", f.Protocol)]++
	}
	return count
}

func TestFlowsKeepEveryKind(t *testing.T) {
	c := Generate(Config{Seed: 5, Pods: 12, Policies: 10})
	s := mustSnapshot(t, c)
	all := Flows(s, c.Outside, rand.New(rand.NewPCG(1, 1)), 1<<30)
	some := Flows(s, c.Outside, rand.New(rand.NewPCG(1, 1)), 1000)
	again := Flows(s, c.Outside, rand.New(rand.NewPCG(1, 1)), 1000)
	if !slices.Equal(some, again) {
		t.Error("the same random numbers give other flows")
	}
	if len(all) < 10000 || len(some) > 1000 || len(some) < 900 {
		t.Errorf("%d flows, %d of them asked for 1000", len(all), len(some))
	}
	want := kindsOf(all)
	if got := kindsOf(some); len(got) != len(want) || len(want) != 5*2*4 {
		t.Errorf("%d kinds of %d: %v", len(got), len(want), want)
	}
	for kind, n := range kindsOf(Flows(s, c.Outside, rand.New(rand.NewPCG(1, 1)), 0)) {
		if n == 0 || want[kind] == 0 {
			t.Errorf("%s: %d", kind, n)
		}
	}
	seen := map[policy.Flow]bool{}
	for _, f := range all {
		if seen[f] {
			t.Fatalf("twice: %+v", f)
		}
		seen[f] = true
		if f.From.Addr.Is4() != f.To.Addr.Is4() || f.From.Pod == f.To.Pod {
			t.Fatalf("no flow: %+v", f)
		}
	}
}

func TestFlowsHaveTheEdges(t *testing.T) {
	pod := func(name, address string) *inventory.Pod {
		return &inventory.Pod{Head: inventory.Head{Key: inventory.Key{Namespace: "default", Name: name}},
			Addresses: []netip.Addr{netip.MustParseAddr(address)}}
	}
	a, b := pod("a", "10.42.0.1"), pod("b", "fd00::1")
	b.Ports = []inventory.NamedPort{{Name: "web", Protocol: inventory.UDP, Port: 9999}}
	p := &inventory.Policy{Head: inventory.Head{Key: inventory.Key{Namespace: "default", Name: "p"}}}
	p.Rules[inventory.Egress] = []inventory.Rule{{Ports: []inventory.Port{
		{Protocol: inventory.TCP, First: 80, Last: 90}, {Protocol: inventory.SCTP, First: 1, Last: 65535}, {Protocol: inventory.UDP, Name: "web"}}}}
	s := &inventory.Snapshot{Pods: []*inventory.Pod{a, b}, Policies: []*inventory.Policy{p}, Gateway: []netip.Addr{netip.MustParseAddr("10.42.0.254")}}
	var got []string
	for _, f := range Flows(s, []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, rand.New(rand.NewPCG(1, 1)), 10000) {
		got = append(got, fmt.Sprintf("%s>%s %d/%s", f.From.Addr, f.To.Addr, f.Port, f.Protocol))
	}
	for _, ends := range []string{"10.42.0.1>192.0.2.1", "192.0.2.1>10.42.0.1", "fd00::1>2001:db8::1", "2001:db8::1>fd00::1", "10.42.0.1>10.42.0.254", "10.42.0.254>10.42.0.1"} {
		for _, port := range []string{"79/TCP", "80/TCP", "90/TCP", "91/TCP", "80/UDP", "80/SCTP", "1/SCTP", "65535/SCTP", "9999/UDP", "40000/UDP"} {
			if !slices.Contains(got, ends+" "+port) {
				t.Errorf("no %s %s", ends, port)
			}
		}
		echo := " 0/ICMP"
		if strings.Contains(ends, ":") {
			echo = " 0/ICMPv6"
		}
		if !slices.Contains(got, ends+echo) {
			t.Errorf("no %s%s", ends, echo)
		}
	}
}

func TestOneFamily(t *testing.T) {
	c := Generate(Config{Seed: 2, V6: netip.MustParsePrefix("fd00:7::/120")})
	for _, p := range mustSnapshot(t, c).Pods {
		for _, a := range p.Addresses {
			if !netip.MustParsePrefix("fd00:7::/120").Contains(a) {
				t.Errorf("%s at %s", p.Key, a)
			}
		}
	}
	full := Generate(Config{Seed: 2, Pods: 40, V4: netip.MustParsePrefix("10.0.0.0/28")}) // no room for all
	mustSnapshot(t, full)
}
