package page

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/report"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// gatewayYAML is a small factory gateway.
const gatewayYAML = `
apiVersion: v1
kind: Pod
metadata: {name: broker, namespace: plant, labels: {app: broker, tier: messaging}}
spec: {containers: [{name: c, ports: [{name: mqtt, containerPort: 8883}]}]}
status: {podIPs: [{ip: 10.42.0.10}, {ip: "fd42::10"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: historian, namespace: plant, labels: {app: historian, tier: data}}
status: {podIPs: [{ip: 10.42.0.11}, {ip: "fd42::11"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: opcua-bridge, namespace: plant, labels: {app: opcua}}
status: {podIPs: [{ip: 10.42.0.12}, {ip: "fd42::12"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: dashboard, namespace: web, labels: {app: dashboard}}
status: {podIPs: [{ip: 10.42.0.13}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cloud-agent, namespace: kube-system, labels: {app: agent}}
status: {podIPs: [{ip: 10.42.0.2}, {ip: "fd42::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: camera-ingest-with-a-rather-long-name-7f9c5d6b8-x2x9k, namespace: vision, labels: {app: camera}}
status: {podIPs: [{ip: 10.42.0.20}, {ip: "fd42::20"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: metrics, namespace: vision, labels: {app: metrics}}
spec: {hostNetwork: true}
---
apiVersion: v1
kind: Namespace
metadata: {name: web, labels: {zone: office}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: broker, namespace: plant}
spec:
  podSelector: {matchLabels: {app: broker}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [historian, opcua]}]}}, {namespaceSelector: {matchLabels: {zone: office}}}]
    ports: [{port: mqtt}, {port: 1883}]
  - from: [{ipBlock: {cidr: 192.168.20.0/24, except: [192.168.20.99/32]}}]
    ports: [{port: 8883}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: data, namespace: plant}
spec:
  podSelector: {matchLabels: {tier: data}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {}}], ports: [{port: 5432}]}]
  egress:
  - to: [{podSelector: {matchLabels: {app: broker}}}]
    ports: [{port: 1883}]
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchExpressions: [{key: legacy, operator: DoesNotExist}]}}]
    ports: [{port: 53, protocol: UDP}, {port: 53}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: dashboard, namespace: web, annotations: {edgepolicy.io/enforcement: audit}}
spec:
  podSelector: {}
  ingress: [{from: [{ipBlock: {cidr: 192.168.0.0/16}}], ports: [{port: 8000, endPort: 8080}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cameras, namespace: vision}
spec:
  podSelector: {matchLabels: {app: camera}}
  policyTypes: [Ingress, Egress]
  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]
`

// hostile is what a name from the network might be.
const hostile = "<script>smuggled=1</script>\"'&\x1b[31m\u202e\xff" + "averylongwordwithoutanyplacetobreakitapart-averylongwordwithoutanyplacetobreakitapart"

var at = time.Date(2026, 3, 14, 9, 26, 53, 0, time.UTC)

// snapshot decodes manifests.
func snapshot(t *testing.T, yaml string) *inventory.Snapshot {
	t.Helper()
	f := manifest.Decode("directory", "/etc/edgepolicy.d/plant.yaml", []byte(yaml))
	r := source.Report{Source: "directory"}
	for _, d := range f.Documents {
		switch {
		case !d.Valid:
			t.Fatal(f.Diagnostics)
		case d.Pod != nil:
			r.Objects.Pods = append(r.Objects.Pods, d.Pod)
		case d.Namespace != nil:
			r.Objects.Namespaces = append(r.Objects.Namespaces, d.Namespace)
		case d.Policy != nil:
			r.Objects.Policies = append(r.Objects.Policies, d.Policy)
		}
	}
	o := inventory.DefaultOptions()
	s, problems := source.Merge([]source.Report{r}, []netip.Addr{netip.MustParseAddr("192.168.20.1")}, nil, &o)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return s
}

// of makes a report of what is known and what is otherwise so.
func of(s *inventory.Snapshot, st status.Status, denied ...status.DeniedFlow) report.Report {
	o := inventory.DefaultOptions()
	o.NeverIsolate = []inventory.Key{{Namespace: "kube-system", Name: "cloud-agent"}}
	for _, p := range s.Policies {
		st.Policies = append(st.Policies, status.PolicyStatus{Name: p.Key.String(), Since: at.Add(-40 * time.Hour)})
	}
	st.DaemonVersion, st.Generation, st.Table, st.TablePresent = "0.5.0-3f2a91c", 1284, "edgepolicyd", true
	st.Started, st.LastApply = at.Add(-9*24*time.Hour), at.Add(-3*time.Hour)
	return report.Report{Gateway: "gw-line-3.plant.example", Time: at, Status: st, Snapshot: s, Options: &o,
		Matrix: policy.Matrix(s, &o, policy.MatrixRequest{}), Denied: denied}
}

func flow(verdict, direction, pod string, from, to status.DeniedEnd, port uint16, packets uint64) status.DeniedFlow {
	return status.DeniedFlow{Verdict: verdict, Direction: direction, Pod: pod, Policies: []string{"plant/data", "plant/gone"}, From: from, To: to,
		Protocol: "TCP", Port: port, Interface: "veth3f2a91c0", First: at.Add(-time.Hour), Last: at.Add(-time.Minute), Packets: packets}
}

// factory is a gateway with something of everything.
func factory(t *testing.T) report.Report {
	age := int64(4)
	end := func(a, pod string) status.DeniedEnd {
		return status.DeniedEnd{Address: netip.MustParseAddr(a), Pod: pod}
	}
	return of(snapshot(t, gatewayYAML), status.Status{
		Health: status.Degraded, Reasons: []string{"rejected: /etc/edgepolicy.d/web.yaml:4:3: NetworkPolicy web/api: spec.podSelectr: unknown field; did you mean podSelector? (its last valid version stays in force)", "pod vision/lidar is not enforced: it is attached by macvlan"},
		Pods: 6, IsolatedPods: 3, NodeName: "gw-line-3", Offline: true,
		Hold: status.Hold{On: true, Ranges: []string{"10.42.0.0/24", "fd42::/64"}, Packets: 20417, Addresses: []string{"10.42.0.77"}},
		Sources: []status.SourceStatus{
			{Name: "directory", LastRead: at.Add(-time.Minute), Warnings: []string{"/etc/edgepolicy.d/plant.yaml:61:3: spec.ingress[0]: the selector matches no pod: " + hostile}},
			{Name: "cni", LastRead: at.Add(-time.Second)},
			{Name: "kubelet", LastRead: at.Add(-time.Second), AgeSeconds: &age},
			{Name: "api", OfflineSince: at.Add(-5 * time.Hour), Error: "Get \"https://10.0.0.1:6443\": dial tcp 10.0.0.1:6443: i/o timeout"},
		},
		Rejected:      []status.Rejected{{Object: "NetworkPolicy web/api", File: "/etc/edgepolicy.d/web.yaml:4:3", Reason: "spec.podSelectr: unknown field; did you mean podSelector?", Kept: true}},
		Unenforceable: []status.Unenforceable{{Pod: "vision/lidar", Reason: "it is attached by macvlan"}},
		NeverIsolated: []string{"kube-system/cloud-agent"},
	},
		flow("would deny", "ingress", "web/dashboard", end("203.0.113.9", ""), end("10.42.0.13", "web/dashboard"), 22, 3),
		flow("denied", "egress", "plant/historian", end("10.42.0.11", "plant/historian"), end("10.42.0.13", "web/dashboard"), 8080, 1204),
		flow("denied", "egress", hostile, end("fd42::11", hostile), end("2001:db8:1234:5678:9abc:def0:1234:5678", ""), 443, 17))
}

// crowd is a gateway with very many pods.
func crowd(t *testing.T, n int) report.Report {
	var docs []string
	for i := range n {
		docs = append(docs, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: worker-%03d, labels: {app: w%d}}\nstatus: {podIPs: [{ip: 10.42.1.%d}]}\n", i, i%7, i+1))
	}
	for i := range 7 {
		docs = append(docs, fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: w%d}\nspec: {podSelector: {matchLabels: {app: w%d}}, ingress: [{from: [{podSelector: {matchLabels: {app: w%d}}}], ports: [{port: 80}, {port: 443}]}]}\n", i, i, (i+1)%7))
	}
	return of(snapshot(t, strings.Join(docs, "---\n")), status.Status{Health: status.Healthy, Pods: n, IsolatedPods: n})
}

// idle is a gateway that knows nothing yet, and enforces nothing.
func idle(t *testing.T) report.Report {
	r := of(&inventory.Snapshot{}, status.Status{Health: status.Failed, Reasons: []string{"flushed by uid 0 at 2026-03-14T09:00:00Z: nothing is enforced until a reload or restart"}})
	r.NoMatrix = "edgepolicyd answers: what is known is not enforced: flushed by uid 0"
	return r
}
