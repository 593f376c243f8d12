package policy_test

import (
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/source"
)

const remoteYAML = `
apiVersion: v1
kind: Pod
metadata: {name: here, labels: {app: web}}
status: {podIPs: [{ip: 10.42.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: web, role: client}}
spec: {nodeName: other}
status: {podIPs: [{ip: 10.42.9.2}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {role: client}}}], ports: [{port: 80}]}]
`

// Pods of other nodes are peers, and no policy applies to them here.
func TestRemotePods(t *testing.T) {
	f := manifest.Decode("api", "", []byte(remoteYAML))
	var objects inventory.Objects
	for _, d := range f.Documents {
		if d.Pod != nil {
			d.Pod.Remote = d.Pod.Node == "other"
			objects.Pods = append(objects.Pods, d.Pod)
		} else {
			objects.Policies = append(objects.Policies, d.Policy)
		}
	}
	o := inventory.DefaultOptions()
	s, problems := source.Merge([]source.Report{{Source: "api", Objects: objects}}, nil, nil, &o)
	list := policy.NewResolver(&o).Update(s)
	if len(problems) > 0 || len(list) != 1 || list[0].Pod.Key.Name != "here" || list[0].Sides[inventory.Ingress] == nil {
		t.Fatalf("isolations %+v, problems %v", list, problems)
	}
	if exact := list[0].Sides[inventory.Ingress].Exact; len(exact) != 1 || exact[0].Addr.String() != "10.42.9.2" || exact[0].Port != 80 {
		t.Errorf("the remote peer: %+v", exact)
	}
	here, far := s.Pods[1], s.Pods[0]
	judge := func(from, to *inventory.Pod, port uint16) bool {
		return policy.Evaluate(s, &o, policy.Flow{
			From: policy.Endpoint{Addr: from.Addresses[0], Pod: from}, To: policy.Endpoint{Addr: to.Addresses[0], Pod: to},
			Protocol: inventory.TCP, Port: port,
		}).Allowed
	}
	for _, c := range []struct {
		from, to *inventory.Pod
		port     uint16
		want     bool
	}{{far, here, 80, true}, {far, here, 81, false}, {here, far, 22, true}} {
		if got := judge(c.from, c.to, c.port); got != c.want {
			t.Errorf("%s to %s:%d: %v", c.from.Key, c.to.Key, c.port, got)
		}
	}
}
