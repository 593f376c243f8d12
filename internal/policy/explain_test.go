package policy_test

import (
	"encoding/json"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/tests/cluster"
)

// What is explained is what Evaluate says, and the explanation's parts add up to
// it: a side that had to be allowed has a rule that matches, and one that is
// denied has none.
func TestExplanationsAgreeWithEvaluate(t *testing.T) {
	for seed := range uint64(40) {
		c := cluster.Generate(cluster.Config{Seed: seed})
		s, err := c.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		o := inventory.DefaultOptions()
		o.IPBlockMatchesPods, o.Audit = seed%3 != 0, seed%7 == 0
		for _, f := range cluster.Flows(s, c.Outside, rand.New(rand.NewPCG(seed, 9)), 300) {
			v, r := policy.Evaluate(s, &o, f), policy.Explain(s, &o, f)
			if r.Allowed != v.Allowed || r.WouldDeny != v.WouldDeny() {
				t.Fatalf("seed %d: explained %+v, judged %+v", seed, r, v)
			}
			for i, d := range []policy.Decision{v.Egress, v.Ingress} {
				side := []policy.SideReasoning{r.Egress, r.Ingress}[i]
				if text := addsUp(side, d); text != "" {
					t.Fatalf("seed %d, %s -> %s %s: %s\n%+v\n%+v", seed, f.From.Addr, f.To.Addr, f.PortText(), text, side, d)
				}
			}
		}
	}
}

// refuses finds the texts of peers that do not match.
var refuses = regexp.MustCompile(`does not (match|contain)| leaves .* out$|reaches only|: the other end `)

// addsUp says how a side's reasoning differs from the decision.
func addsUp(side policy.SideReasoning, d policy.Decision) string {
	if side.Allowed != d.Allowed || side.Isolated != d.Isolated || side.WouldDeny != d.WouldDeny || side.Reason != d.Reason {
		return "another decision"
	}
	enforced, audited := 0, 0
	matched := map[bool]string{} // by audited: the first rule
	for _, p := range side.Policies {
		if p.Audited {
			audited++
		} else {
			enforced++
		}
		for _, rule := range p.Rules {
			if rule.Matches != (rule.PeerMatches && rule.PortMatches) {
				return "a rule does not add up"
			}
			holds := len(rule.Peers) == 0
			for _, peer := range rule.Peers {
				holds = holds || peer.Holds
				if peer.Holds == refuses.MatchString(peer.Text) {
					return "a peer's text says otherwise: " + peer.Text
				}
			}
			if holds != rule.PeerMatches || rule.PortMatches == (strings.Contains(rule.Ports, "not among") || strings.Contains(rule.Ports, "passes only")) {
				return "a rule's texts say otherwise"
			}
			if rule.Matches && matched[p.Audited] == "" {
				matched[p.Audited] = p.Policy
			}
		}
	}
	switch {
	case d.Reason == "never isolated" || side.Pod == "":
	case enforced != len(d.Policies) || !d.Isolated && audited != len(d.Audited):
		return "other policies"
	case d.Rule != nil && matched[false] != d.Rule.Policy.String(), d.Isolated && !d.Allowed && matched[false] != "":
		return "another rule"
	case d.WouldDeny && matched[true] != "":
		return "an audited rule matches"
	}
	return ""
}

// explain gives the rules' texts of the isolated destination.
func (c *court) explain(from, to string, f policy.Flow) string {
	c.t.Helper()
	f.From, f.To = c.end(from), c.end(to)
	j, err := json.Marshal(policy.Explain(c.s, &c.o, f))
	if err != nil {
		c.t.Fatal(err)
	}
	return string(j)
}

func TestExplanationsSayWhy(t *testing.T) {
	db := withPorts(testPod("default/db", "app=db", "10.42.0.2"), inventory.NamedPort{Name: "metrics", Protocol: inventory.TCP, Port: 9090})
	c := newCourt(t, "10.42.0.254", testNamespace("y", "env=test"), db,
		testPod("default/x", "app=api", "10.42.0.1"), testPod("y/far", "", "10.42.0.4"),
		testPolicy("default/db", selector("app=db"), egress(), ingress(
			rule(podPeer("app=web"), port("80/TCP"), port("metrics/TCP"), port("nothing/UDP")),
			rule(namespacePeer("env=prod")),
			rule(bothPeer("env=test", "app=web")),
			rule(blockPeer("10.0.0.0/8", "10.1.0.0/16"), blockPeer("192.168.0.0/16")))),
		testPolicy("default/other", selector("app=api,tier=x"), ingress()),
		testPolicy("default/outgoing", selector("app=db"), egress()))
	tcp := policy.Flow{Protocol: inventory.TCP, Port: 5432}
	for _, tc := range []struct {
		from string
		flow policy.Flow
		want []string
	}{
		{"default/x", tcp, []string{
			`podSelector app=web does not match default/x (app=api)`,
			`5432/TCP is not among 80/TCP, metrics/TCP (9090 on default/db), nothing/UDP (no port of default/db has this name)`,
			`namespaceSelector env=prod does not match namespace default (kubernetes.io/metadata.name=default)`,
			`ipBlock 192.168.0.0/16 does not contain 10.42.0.1`,
			`ipBlock 10.0.0.0/8 contains 10.42.0.1`,
			`{"policy":"default/other","why":"podSelector app=api,tier=x does not match (app=db)"}`,
			`{"policy":"default/outgoing","why":"policyTypes lacks Ingress"}`,
		}},
		{"default/x", policy.Flow{Protocol: inventory.ICMP}, []string{`ICMP passes only rules without ports, and this names 80/TCP, `, `no ports are named, which is everything`}},
		{"default/x", policy.Flow{}, []string{`only 80/TCP, metrics/TCP (9090 on default/db)`}},
		{"y/far", tcp, []string{
			`podSelector app=web reaches only namespace default, and y/far is in another`,
			`namespaceSelector env=test matches namespace y (env=test,kubernetes.io/metadata.name=y), podSelector app=web does not match y/far (no labels)`,
		}},
		{"10.1.2.3", tcp, []string{
			`ipBlock 10.0.0.0/8 except 10.1.0.0/16 leaves 10.1.2.3 out`,
			`podSelector app=web: the other end is no pod`, `namespaceSelector env=test, podSelector app=web: the other end is no pod`,
		}},
	} {
		got := c.explain(tc.from, "default/db", tc.flow)
		for _, want := range tc.want {
			if !strings.Contains(got, want) && !strings.Contains(got, strings.Trim(mustJSON(t, want), `"`)) {
				t.Errorf("%s %s: lacks %q:\n%s", tc.from, tc.flow.PortText(), want, got)
			}
		}
	}
	c.o.IPBlockMatchesPods = false
	if got := c.explain("default/x", "default/db", tcp); !strings.Contains(got, "ipBlock 10.0.0.0/8: the other end is a pod, and ipBlockMatchesPods is false") {
		t.Errorf("lacks the option:\n%s", got)
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	j, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(j)
}
