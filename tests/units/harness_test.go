// Package units runs edgepolicyd as its units run it, under a real systemd.
package units

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/tests/daemon"
	"edgepolicy.io/edgepolicyd/tests/journal/container"
)

// policies let web be reached by client on port 80 alone, and web reach nobody.
const policies = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
`

// network is the CNI configuration of the pods' bridge.
const network = `{"cniVersion":"1.0.0","name":"edgenet","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"ipam":{"type":"host-local","subnet":"10.42.0.0/24"}}]}`

// gateway is a container in which edgepolicyd is installed, with policies and a CNI
// network.
type gateway struct {
	*container.Container
	t *testing.T
}

func newGateway(t *testing.T) gateway {
	t.Helper()
	binary, err := daemon.Build()
	if err != nil {
		t.Fatal(err)
	}
	g := gateway{container.Start(t), t}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := g.Command("journalctl", "--no-pager", "--lines=100", "--unit=edgepolicyd*").CombinedOutput()
			t.Logf("the journal ends with:\n%s", out)
		}
	})
	g.Copy(binary, "/usr/sbin/edgepolicyd")
	for _, unit := range []string{"edgepolicyd", "edgepolicyd-restore"} {
		g.Copy("../../systemd/"+unit+".service", "/usr/lib/systemd/system/"+unit+".service")
	}
	g.Exec("systemctl", "daemon-reload")
	g.Exec("mkdir", "--mode=0700", "--parents", "/etc/edgepolicyd", "/etc/edgepolicy.d", "/var/lib/cni/results")
	g.Write("/etc/cni/net.d/10-edgenet.conflist", []byte(network), 0o644)
	g.Write("/etc/edgepolicy.d/all.yaml", []byte(policies), 0o600)
	return g
}

// addresses of the pods and of the gateway's bridge.
const bridge, web, client = "10.42.0.1", "10.42.0.2", "10.42.0.3"

// plug makes the bridge and the pods, as a container runtime does, with their results.
func (g gateway) plug() {
	g.t.Helper()
	g.Exec("sh", "-ec", "ip link add cni0 type bridge && ip addr add "+bridge+"/24 dev cni0 && ip link set cni0 up")
	g.pod("web", web, "/run/netns/web")
	g.pod("client", client, "/run/netns/client")
}

// pod makes a pod on the bridge; its CNI result says that its network namespace is
// at the path.
func (g gateway) pod(name, address, sandbox string) {
	g.t.Helper()
	g.Exec("sh", "-ec", strings.NewReplacer("POD", name, "ADDRESS", address).Replace(`ip netns add POD
		ip link add veth-POD type veth peer name eth0 netns POD
		ip link set veth-POD master cni0 up
		ip -n POD addr add ADDRESS/24 dev eth0
		ip -n POD link set eth0 up
		ip -n POD route add default via `+bridge))
	result, err := json.Marshal(map[string]any{
		"kind": "cniCacheV1", "containerId": name, "config": base64.StdEncoding.EncodeToString([]byte(network)),
		"ifName": "eth0", "networkName": "edgenet",
		"cniArgs": [][2]string{{"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", name}},
		"result": map[string]any{
			"cniVersion": "1.0.0",
			"interfaces": []map[string]string{{"name": "cni0"}, {"name": "veth-" + name}, {"name": "eth0", "sandbox": sandbox}},
			"ips":        []map[string]any{{"address": address + "/24", "interface": 2}},
		},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.Write("/var/lib/cni/results/edgenet-"+name+"-eth0", result, 0o600)
}

// reaches says whether a packet of a pod gets to a port and back. Nobody listens
// there: who is reached refuses.
func (g gateway) reaches(pod, address string, port int) bool {
	g.t.Helper()
	out, err := g.Command("ip", "netns", "exec", pod, "timeout", "1", "bash", "-c", fmt.Sprintf(">/dev/tcp/%s/%d", address, port)).CombinedOutput()
	exit, ok := err.(*exec.ExitError)
	switch {
	case ok && exit.ExitCode() == 124:
		return false
	case ok && strings.Contains(string(out), "Connection refused"):
		return true
	}
	g.t.Fatalf("%s to %s port %d: %v: %s", pod, address, port, err, out)
	return false
}

// enforced says that the policies, and nothing else, are in force.
func (g gateway) enforced(when string) {
	g.t.Helper()
	for _, probe := range []struct {
		from, to string
		port     int
		want     bool
	}{{"client", web, 80, true}, {"client", web, 81, false}, {"web", client, 80, false}, {"client", bridge, 80, true}} {
		if got := g.reaches(probe.from, probe.to, probe.port); got != probe.want {
			g.t.Errorf("%s: %s reaches %s port %d: %v", when, probe.from, probe.to, probe.port, got)
		}
	}
}

// table is the table in the kernel; empty if there is none.
func (g gateway) table() string {
	out, _ := g.Command("nft", "list", "table", "inet", "edgepolicyd").Output()
	return string(out)
}

// show gives a property of a unit.
func (g gateway) show(unit, property string) string {
	g.t.Helper()
	return strings.TrimSpace(g.Exec("systemctl", "show", "--value", "--property="+property, unit))
}

func (g gateway) eventually(what string, ok func() bool) {
	g.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("not within a minute: %s", what)
		}
	}
}
