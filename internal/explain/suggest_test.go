package explain

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/tests/cluster"
)

// snapshotOf decodes YAML, which must be valid.
func snapshotOf(t *testing.T, yaml string, gateway ...string) *inventory.Snapshot {
	t.Helper()
	s := add(t, &inventory.Snapshot{}, yaml)
	for _, a := range gateway {
		s.Gateway = append(s.Gateway, netip.MustParseAddr(a))
	}
	slices.SortFunc(s.Gateway, netip.Addr.Compare)
	return s
}

// add gives a snapshot with the objects of a file more, as the directory would
// have them.
func add(t *testing.T, to *inventory.Snapshot, yaml string) *inventory.Snapshot {
	t.Helper()
	s := *to
	f := manifest.Decode("directory", "more.yaml", []byte(yaml))
	for _, d := range f.Diagnostics {
		t.Fatalf("%s\n%s", d, yaml)
	}
	for _, d := range f.Documents {
		switch {
		case d.Policy != nil:
			if slices.ContainsFunc(s.Policies, func(p *inventory.Policy) bool { return p.Key == d.Policy.Key }) {
				t.Fatalf("there is a policy %s already:\n%s", d.Policy.Key, yaml)
			}
			s.Policies = append(slices.Clone(s.Policies), d.Policy)
		case d.Pod != nil:
			s.Pods = append(slices.Clone(s.Pods), d.Pod)
		case d.Namespace != nil:
			s.Namespaces = append(slices.Clone(s.Namespaces), d.Namespace)
		}
	}
	slices.SortFunc(s.Policies, func(a, b *inventory.Policy) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(s.Pods, func(a, b *inventory.Pod) int { return a.Key.Compare(b.Key) })
	return &s
}

// Whatever is denied: with what is suggested it is allowed, and nothing that was
// allowed is denied; and what would be denied is so no more.
func TestSuggestionsAllowAndDenyNothing(t *testing.T) {
	denied, would := 0, 0
	for seed := range uint64(60) {
		c := cluster.Generate(cluster.Config{Seed: seed})
		s, err := c.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		o := inventory.DefaultOptions()
		o.IPBlockMatchesPods, o.Audit = seed%3 != 0, seed%10 == 0
		rng := rand.New(rand.NewPCG(seed, 9))
		flows := cluster.Flows(s, c.Outside, rng, 300)
		tried := 0
		for _, i := range rng.Perm(len(flows)) {
			f := flows[i]
			before := policy.Evaluate(s, &o, f)
			text, err := Suggest(s, &o, f)
			if before.Allowed && !before.WouldDeny() {
				if !errors.Is(err, ErrNothingToSuggest) {
					t.Fatalf("seed %d: something is suggested for an allowed flow: %v\n%s", seed, err, text)
				}
				continue
			}
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if tried++; tried > 12 {
				break
			}
			after := add(t, s, text)
			if v := policy.Evaluate(after, &o, f); !v.Allowed || v.WouldDeny() {
				t.Fatalf("seed %d: %s -> %s %s is still not allowed (egress %s, ingress %s) with\n%s\n%s", seed, f.From.Addr, f.To.Addr, f.PortText(), v.Egress.Reason, v.Ingress.Reason, text, c.YAML)
			}
			if before.Allowed {
				would++
			} else {
				denied++
			}
			for _, other := range flows {
				was, is := policy.Evaluate(s, &o, other), policy.Evaluate(after, &o, other)
				if was.Allowed && !is.Allowed || is.WouldDeny() && !was.WouldDeny() {
					t.Fatalf("seed %d: %s -> %s %s is denied by\n%s\n%s", seed, other.From.Addr, other.To.Addr, other.PortText(), text, c.YAML)
				}
			}
		}
	}
	if denied < 200 || would < 20 {
		t.Errorf("%d denied and %d that would be: this proves little", denied, would)
	}
}

const shopYAML = `
{apiVersion: v1, kind: Pod, metadata: {name: web-7d9-x, labels: {app: web, pod-template-hash: 7d9}}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-7d9-y, labels: {app: web, pod-template-hash: 7d9}}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db-0, namespace: data, labels: {app: db, level: "1", statefulset.kubernetes.io/pod-name: db-0}}, status: {podIP: 10.0.0.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db-1, namespace: data, labels: {app: db, level: "1", statefulset.kubernetes.io/pod-name: db-1}}, status: {podIP: 10.0.0.4}}
---
{apiVersion: v1, kind: Pod, metadata: {name: bare}, status: {podIP: 10.0.0.5}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: data}
spec: {podSelector: {matchLabels: {statefulset.kubernetes.io/pod-name: db-0}}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [x]}]}, policyTypes: [Egress]}
`

func TestSuggestionAsItReads(t *testing.T) {
	s, o := snapshotOf(t, shopYAML, "10.0.0.254"), inventory.DefaultOptions()
	at := func(a string) policy.Endpoint { return policy.EndpointAt(s, netip.MustParseAddr(a)) }
	for _, tc := range []struct {
		name     string
		from, to string
		protocol inventory.Protocol
		want     string
	}{
		{"both ends", "10.0.0.1", "10.0.0.3", inventory.TCP, `# Allows egress of default/web-7d9-x: 5432/TCP to data/db-0.
# The podSelector also matches default/web-7d9-y: this opens them, too.
# The peer's podSelector also matches data/db-1: they are allowed, too.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: allow-egress-web-7d9-x-5432-tcp
  namespace: default
spec:
  podSelector: {matchLabels: {app: web}, matchExpressions: [{key: tier, operator: NotIn, values: [x]}]}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: data}}, podSelector: {matchLabels: {app: db, level: "1"}}}]
    ports: [{port: 5432, protocol: TCP}]
---
# Allows ingress of data/db-0: 5432/TCP from default/web-7d9-x.
# The peer's podSelector also matches default/web-7d9-y: they are allowed, too.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: allow-ingress-db-0-5432-tcp
  namespace: data
spec:
  podSelector: {matchLabels: {app: db, level: "1"}, matchExpressions: [{key: statefulset.kubernetes.io/pod-name, operator: In, values: [db-0]}]}
  policyTypes: [Ingress]
  ingress:
  - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}, podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432, protocol: TCP}]
`},
		{"no labels, to the gateway, by ICMP", "10.0.0.5", "10.0.0.254", inventory.ICMP, `# Allows egress of default/bare: ICMP to the gateway at 10.0.0.254.
# The podSelector also matches default/web-7d9-x, default/web-7d9-y: this opens them, too.
# ICMP passes only where a rule names no ports: this allows everything between the two.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: allow-egress-bare-icmp
  namespace: default
spec:
  podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [x]}]}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: "10.0.0.254/32"}}]
`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Suggest(s, &o, policy.Flow{From: at(tc.from), To: at(tc.to), Protocol: tc.protocol, Port: 5432})
			if err != nil || got != tc.want {
				t.Errorf("%v\n%s\nwant\n%s", err, got, tc.want)
			}
		})
	}
	// It must not take the name of another.
	f := policy.Flow{From: at("10.0.0.9"), To: at("10.0.0.3"), Protocol: inventory.UDP, Port: 53}
	first, err := Suggest(s, &o, f)
	if err != nil || !strings.Contains(first, "name: allow-ingress-db-0-53-udp\n") || !strings.Contains(first, `cidr: "10.0.0.9/32"`) {
		t.Fatalf("%v\n%s", err, first)
	}
	again := add(t, s, first)
	f.From.Addr = netip.MustParseAddr("10.0.0.10")
	if second, err := Suggest(again, &o, f); err != nil || !strings.Contains(second, "name: allow-ingress-db-0-53-udp-2\n") {
		t.Errorf("%v\n%s", err, second)
	}
	if text, err := Suggest(s, &o, policy.Flow{From: at("10.0.0.9"), To: at("10.0.0.3")}); err == nil {
		t.Errorf("without a port:\n%s", text)
	}
}

// Values that YAML takes for something else, and what would leave a comment.
func TestSuggestionsAreStringsAndComments(t *testing.T) {
	for _, value := range []string{"", "true", "no", "1", "1e3", "0x10", "y", "a-b", "A.b_c", "null", "web"} {
		got := manifest.Decode("directory", "x", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: x, labels: {k: "+quoted(value)+"}}\n"))
		if len(got.Documents) != 1 || got.Documents[0].Pod == nil || got.Documents[0].Pod.Labels["k"] != value || len(got.Diagnostics) > 0 {
			t.Errorf("%q is written as %s: %v", value, quoted(value), got.Diagnostics)
		}
	}
	if got := printable("a\nb\x1b[31m \"c\""); strings.ContainsAny(got, "\n\x1b") || !strings.Contains(got, `"c"`) {
		t.Errorf("%q", got)
	}
}
