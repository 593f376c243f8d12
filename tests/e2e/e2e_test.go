// Package e2e tests the real daemon, from YAML files to packets.
package e2e

import (
	"context"
	"net/netip"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/tests/daemon"
)

// world is a lab with a daemon in it.
type world struct {
	*lab.Lab
	*daemon.Daemon
	t     testing.TB
	names map[string]*lab.Namespace // of pods, and gateway and outside
}

// newWorld makes a lab and a daemon, not yet started.
func newWorld(t testing.TB, topology lab.Topology, config string) *world {
	t.Helper()
	l := lab.ForTest(t, topology)
	d, err := daemon.New(l, t.TempDir(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", d.Log())
		}
	})
	return &world{Lab: l, Daemon: d, t: t, names: map[string]*lab.Namespace{"gateway": l.Gateway, "outside": l.Outside}}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// pod makes a pod in the lab.
func (w *world) pod(name string, addrs ...string) *lab.Namespace {
	w.t.Helper()
	n, err := w.AddPod(name, parse(addrs...)...)
	w.must(err)
	w.names[name] = n
	return n
}

func parse(addrs ...string) []netip.Addr {
	var list []netip.Addr
	for _, a := range addrs {
		list = append(list, netip.MustParseAddr(a))
	}
	return list
}

// apply writes a file and has the daemon take it.
func (w *world) apply(name, content string) {
	w.t.Helper()
	w.must(w.Write(name, content))
	w.must(w.Reload())
}

// reach says whether a new connection's first packet arrives.
func (w *world) reach(p lab.Probe) bool {
	w.t.Helper()
	got, err := w.Probe(context.Background(), []lab.Probe{p})
	w.must(err)
	return got[0]
}

// expect probes and complains.
func (w *world) expect(want bool, what string, p lab.Probe) {
	w.t.Helper()
	if got := w.reach(p); got != want {
		w.t.Errorf("%s: arrived %v, want %v", what, got, want)
	}
}

func tcp(src, dst string, port uint16) lab.Probe {
	return lab.Probe{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Proto: inventory.TCP, DstPort: port}
}

// topologies are the two that pods come in.
var topologies = []lab.Topology{{Kind: lab.Routed}, {Kind: lab.Bridge}}

// both runs a test on both topologies.
func both(t *testing.T, config string, test func(t *testing.T, w *world)) {
	for _, topology := range topologies {
		t.Run(topology.Kind.String(), func(t *testing.T) { test(t, newWorld(t, topology, config)) })
	}
}

const twoPods = `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
status: {podIPs: [{ip: 10.42.0.12}, {ip: "fd42::12"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
status: {podIPs: [{ip: 10.42.0.11}, {ip: "fd42::11"}]}
`

const denyIngress = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}}
`

func TestYAMLInPacketDropped(t *testing.T) {
	both(t, "", func(t *testing.T, w *world) {
		w.pod("web", "10.42.0.12", "fd42::12")
		w.pod("client", "10.42.0.11", "fd42::11")
		w.must(w.Write("pods.yaml", twoPods))
		w.must(w.Start())
		for _, ends := range [][2]string{{"10.42.0.11", "10.42.0.12"}, {"fd42::11", "fd42::12"}} {
			w.expect(true, "no policy", tcp(ends[0], ends[1], 80))
		}
		w.apply("web.yaml", denyIngress)
		for _, ends := range [][2]string{{"10.42.0.11", "10.42.0.12"}, {"fd42::11", "fd42::12"}} {
			w.expect(false, "isolated", tcp(ends[0], ends[1], 80))
			w.expect(true, "not isolated", tcp(ends[1], ends[0], 80))
		}
	})
}
