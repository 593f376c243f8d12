package manifest

import (
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

const lintPods = `
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: a}}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: shop}
status: {podIP: 10.0.0.2}
---
`

// TestLintOptions: what the configuration allows anyway is not remarked.
func TestLintOptions(t *testing.T) {
	policy := policySpec("{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/16}}], ports: [{port: 80}]}]}")
	dns := strings.Replace(policySpec("{policyTypes: [Egress], egress: [{ports: [{port: 50, endPort: 60, protocol: UDP}]}]}"), "name: p", "name: dns", 1)
	tcpOnly := strings.Replace(dns, "protocol: UDP", "protocol: TCP", 1)
	for name, c := range map[string]struct {
		text   string
		set    func(*inventory.Options)
		blocks int // warnings of pods in the block
		dns    int // warnings that DNS may not be asked
	}{
		"default":                  {policy, func(*inventory.Options) {}, 1, 1},
		"blocks are external only": {policy, func(o *inventory.Options) { o.IPBlockMatchesPods = false }, 0, 1},
		"the gateway is open":      {policy, func(o *inventory.Options) { o.GatewayEgress = false }, 1, 0},
		"the gateway answers DNS": {policy, func(o *inventory.Options) {
			o.GatewayPorts = []inventory.Port{{Protocol: inventory.UDP, First: 53, Last: 53}}
		}, 1, 0},
		"the gateway's other port": {policy, func(o *inventory.Options) {
			o.GatewayPorts = []inventory.Port{{Protocol: inventory.TCP, First: 53, Last: 53}}
		}, 1, 1},
		"the pod is never isolated":   {policy, func(o *inventory.Options) { o.NeverIsolate = []inventory.Key{{Namespace: "default"}} }, 1, 0},
		"another policy allows DNS":   {policy + "---\n" + dns, func(*inventory.Options) {}, 1, 0},
		"another policy, but TCP":     {tcpOnly + "---\n" + policy, func(*inventory.Options) {}, 1, 1},
		"deny-all has nothing to ask": {policySpec("{policyTypes: [Egress]}"), func(*inventory.Options) {}, 0, 0},
	} {
		files := []File{Decode("directory", "f.yaml", []byte(lintPods+c.text))}
		o := inventory.DefaultOptions()
		c.set(&o)
		blocks, dns := 0, 0
		all := Lint(snapshot(files), o, files)
		for _, d := range append(all, files[0].Diagnostics...) {
			switch {
			case strings.Contains(d.Message, "also allows pods, default/a (10.0.0.1), shop/b (10.0.0.2)") && strings.Contains(d.Message, "except: [10.0.0.0/24]"):
				blocks++
			case strings.Contains(d.Message, "may not ask DNS"):
				dns++
			default:
				t.Errorf("%s: %s", name, d)
			}
		}
		if blocks != c.blocks || dns != c.dns {
			t.Errorf("%s: %v", name, all)
		}
	}
}

// TestLintWithoutPods: policies alone say nothing about what they select.
func TestLintWithoutPods(t *testing.T) {
	files := []File{Decode("directory", "f.yaml", []byte(policySpec("{podSelector: {matchLabels: {a: b}}, ingress: [{from: [{podSelector: {matchLabels: {c: d}}}, {ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: http}]}]}")))}
	if all := Lint(snapshot(files), inventory.DefaultOptions(), files); len(all) > 0 {
		t.Error(all)
	}
}
