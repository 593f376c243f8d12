package policy_test

import (
	"bytes"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// audited makes a policy one that is only tried.
func audited(p *inventory.Policy) { p.Audit = true }

// auditCourt: web is isolated for egress by an enforced policy and an audited
// one, and for ingress by audited ones alone.
func auditCourt(t *testing.T) *court {
	return newCourt(t, "10.42.0.254",
		testPod("default/web", "app=web", "10.42.0.1"), testPod("default/db", "app=db", "10.42.0.2"), testPod("default/api", "app=api", "10.42.0.3"),
		testPolicy("default/out", selector("app=web"), egress(rule(podPeer("app=db")))),
		testPolicy("default/tried-in", selector("app=web"), ingress(rule(podPeer("app=api"), port("80/TCP"))), audited),
		testPolicy("default/tried-out", selector("app=web"), egress(rule(podPeer("app=api"))), audited),
		testPolicy("default/tried-too", selector("app=web"), ingress(rule(podPeer("app=api"), port("81/TCP"))), audited))
}

func TestAuditedPoliciesNeitherIsolateNorAllow(t *testing.T) {
	c := auditCourt(t)
	c.yes("default/web", "default/db", "80/TCP")
	c.no("default/web", "default/api", "80/TCP") // only the audited one would allow
	c.yes("default/db", "default/web", "80/TCP", "ICMP")
	c.yes("default/api", "default/web", "80/TCP", "82/TCP")
	c.o.Audit = true
	c.yes("default/web", "default/api", "80/TCP")
}

func TestWhatAuditedPoliciesWouldDeny(t *testing.T) {
	c := auditCourt(t)
	for _, tc := range []struct {
		from, to, port string
		want           bool
		reason         string // of the ingress
	}{
		{"default/db", "default/web", "80/TCP", true, "would be denied: not allowed by default/tried-in, default/tried-too, which are only audited"},
		{"default/api", "default/web", "82/TCP", true, "would be denied: not allowed by default/tried-in, default/tried-too, which are only audited"},
		{"default/api", "default/web", "81/TCP", false, "not isolated"},    // a union
		{"gateway", "default/web", "82/TCP", false, "not isolated"},        // S24
		{"default/web", "default/web", "82/TCP", false, "not isolated"},    // S23
		{"default/web", "default/api", "80/TCP", false, "not isolated"},    // denied; where an enforced one isolates, others mean nothing
		{"10.42.0.200", "default/web", "80/TCP", true, "would be denied:"}, // no pod
		{"10.42.0.200", "default/db", "80/TCP", false, "not isolated"},     // not selected
	} {
		v := c.judge(tc.from, tc.to, tc.port)
		if v.WouldDeny() != tc.want || !strings.HasPrefix(v.Ingress.Reason, tc.reason) {
			t.Errorf("%s -> %s %s: would deny %t, %s", tc.from, tc.to, tc.port, v.WouldDeny(), v.Ingress.Reason)
		}
	}
	c.o.NeverIsolate = []inventory.Key{testKey("default/web")}
	if v := c.judge("default/db", "default/web", "80/TCP"); v.WouldDeny() || v.Ingress.Reason != "never isolated" {
		t.Errorf("never isolated: %+v", v)
	}
	c.o.NeverIsolate, c.o.Audit = nil, true
	if v := c.judge("default/web", "10.42.0.200", "80/TCP"); !v.WouldDeny() || v.Egress.Reason != "would be denied: not allowed by default/out, default/tried-out, which are only audited" {
		t.Errorf("all audited: %+v", v)
	}
	c.o.GatewayEgress = false
	if v := c.judge("default/web", "10.42.0.254", "80/TCP"); v.WouldDeny() { // S25
		t.Errorf("the gateway is open: %+v", v)
	}
}

func TestMatrixShowsWhatWouldBeDenied(t *testing.T) {
	c := newCourt(t, testPod("default/a", "app=a", "10.42.0.1"), testPod("default/b", "app=b", "10.42.0.2"),
		testPolicy("default/tried", selector("app=a"), ingress(), audited))
	cells := policy.Matrix(c.s, &c.o, policy.MatrixRequest{Ports: []policy.MatrixPort{{Protocol: inventory.TCP, Port: 80}}})
	text := string(table(t, cells))
	for _, want := range []string{" 1  default/a  =  +\n", " 2  default/b  ?  =\n", "? reached, but audited policies would deny it"} {
		if !strings.Contains(text, want) {
			t.Errorf("the matrix lacks %q:\n%s", want, text)
		}
	}
	if json := lines(t, cells); bytes.Count(json, []byte(`"wouldDeny":true`)) != 1 || !bytes.Contains(json, []byte("which is only audited")) {
		t.Errorf("cells:\n%s", json)
	}
}
