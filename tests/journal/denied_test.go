package journal

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/tests/daemon"
	"edgepolicy.io/edgepolicyd/tests/journal/container"
)

const config = `denied: %s
audit: {denied: {window: 1s}}
`

const manifests = `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
status: {podIPs: [{ip: 10.42.0.12}, {ip: "fd42::12"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other}
status: {podIPs: [{ip: 10.42.0.13}, {ip: "fd42::13"}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: base}
spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080}]}]}
`

// start runs the daemon in the network of the lab's gateway and with the files, the
// processes and the journal of the container.
func start(t *testing.T, l *lab.Lab, c *container.Container, how string) {
	t.Helper()
	binary, err := daemon.Build()
	if err != nil {
		t.Fatal(err)
	}
	c.Copy(binary, "/usr/sbin/edgepolicyd")
	c.Write("/etc/edgepolicyd/config.yaml", fmt.Appendf(nil, config, how), 0o644)
	c.Write("/etc/edgepolicy.d/all.yaml", []byte(manifests), 0o644)
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(c.PID), "--mount", "--pid", "--uts", "--ipc", "--", "sh", "-c", "echo $$ >/run/daemon.pid; exec edgepolicyd run")
	cmd.WaitDelay = 10 * time.Second
	var console daemon.Output
	cmd.Stdout, cmd.Stderr = &console, &console
	if err := l.Gateway.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Exec("sh", "-c", "kill $(cat /run/daemon.pid)") // nsenter passes nothing on
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("the daemon ends with %v", err)
			t.Logf("the daemon's standard error:\n%s", &console)
		}
	})
	eventually(t, "the daemon enforces", func() bool { return c.Command("edgepolicyd", "reload").Run() == nil })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// flow is one kind of denied packet.
type flow struct {
	from, to           netip.Addr
	protocol           inventory.Protocol
	port               uint16
	pod, direction     string
	policies           string
	fromPod, toPod, as string
}

// flows are all kinds: each protocol in both families, between pods, from and to
// outside, and to the gateway itself.
func flows() (list []flow) {
	for _, v := range []struct {
		web, other, outside, gateway string
		icmp                         inventory.Protocol
	}{
		{"10.42.0.12", "10.42.0.13", "192.168.254.2", "192.168.254.1", inventory.ICMP},
		{"fd42::12", "fd42::13", "fd00:254::2", "fd00:254::1", inventory.ICMPv6},
	} {
		addr := netip.MustParseAddr
		for _, p := range []flow{{protocol: inventory.TCP, port: 81}, {protocol: inventory.UDP, port: 53}, {protocol: inventory.SCTP, port: 9}, {protocol: v.icmp}} {
			add := func(from, to, direction, policies, fromPod, toPod, as string) {
				p.from, p.to, p.pod, p.direction, p.policies, p.fromPod, p.toPod, p.as = addr(from), addr(to), "default/web", direction, policies, fromPod, toPod, as
				list = append(list, p)
			}
			add(v.other, v.web, "ingress", "default/base\ndefault/web", "default/other", "default/web", "default/other")
			add(v.outside, v.web, "ingress", "default/base\ndefault/web", "", "default/web", v.outside)
			add(v.web, v.outside, "egress", "default/web", "default/web", "", "default/web")
			add(v.web, v.gateway, "egress", "default/web", "default/web", "", "default/web")
		}
	}
	return list
}

// want is the entry that a flow must have in the journal.
func (f flow) want() container.Entry {
	to := f.to.String() + "/" + f.protocol.String()
	e := container.Entry{
		"EDGEPOLICY_POD": f.pod, "EDGEPOLICY_DIRECTION": f.direction, "EDGEPOLICY_POLICY": f.policies,
		"EDGEPOLICY_SRC": f.from.String(), "EDGEPOLICY_DST": f.to.String(), "EDGEPOLICY_PROTOCOL": f.protocol.String(),
		"EDGEPOLICY_SRC_POD": f.fromPod, "EDGEPOLICY_DST_POD": f.toPod,
		"EDGEPOLICY_COUNT": "1", "EDGEPOLICY_WINDOW": "1s", "PRIORITY": "4",
	}
	if f.port != 0 {
		e["EDGEPOLICY_PORT"] = strconv.Itoa(int(f.port))
		to = netip.AddrPortFrom(f.to, f.port).String() + "/" + f.protocol.String()
	}
	e["MESSAGE"] = fmt.Sprintf("denied %s %s -> %s", f.direction, f.as, to)
	return e
}

// describes says whether an entry has all that is wanted, and nothing in the fields
// that are wanted empty. Of the message the beginning, the policies and the interface
// are looked at.
func describes(got, want container.Entry) bool {
	for name, value := range want {
		if name == "MESSAGE" {
			rest, ok := strings.CutPrefix(got[name], value)
			policies := strings.ReplaceAll(want["EDGEPOLICY_POLICY"], "\n", ", ")
			if !ok || !strings.Contains(rest, ": not allowed by "+policies+" (from "+got["EDGEPOLICY_INTERFACE"]+", 1 packet logged)") {
				return false
			}
		} else if got[name] != value {
			return false
		}
	}
	return got["EDGEPOLICY_INTERFACE"] != ""
}

// TestDeniedReadBack: denied packets of every kind come back from the journal by
// their fields, dropped and rejected, and what the daemon did besides.
func TestDeniedReadBack(t *testing.T) {
	for _, how := range []string{"drop", "reject"} {
		t.Run(how, func(t *testing.T) {
			l := lab.ForTest(t, lab.Topology{Kind: lab.Routed})
			for _, p := range []struct{ name, v4, v6 string }{{"web", "10.42.0.12", "fd42::12"}, {"other", "10.42.0.13", "fd42::13"}} {
				if _, err := l.AddPod(p.name, netip.MustParseAddr(p.v4), netip.MustParseAddr(p.v6)); err != nil {
					t.Fatal(err)
				}
			}
			c := container.Start(t)
			start(t, l, c, how)
			var probes []lab.Probe
			for _, f := range flows() {
				probes = append(probes, lab.Probe{Src: f.from, Dst: f.to, Proto: f.protocol, DstPort: f.port})
			}
			arrived, err := l.Probe(context.Background(), probes)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(arrived, true) {
				t.Errorf("not all are denied: %v", arrived)
			}
			var entries []container.Entry
			eventually(t, "every flow has its entry", func() bool {
				entries = c.Journal("EDGEPOLICY_EVENT=denied")
				return len(entries) >= len(probes)
			})
			for _, f := range flows() {
				if !slices.ContainsFunc(entries, func(e container.Entry) bool { return describes(e, f.want()) }) {
					t.Errorf("no entry for %+v", f.want())
				}
			}
			if len(entries) != len(probes) {
				t.Errorf("%d entries for %d flows", len(entries), len(probes))
			}
			for _, e := range entries {
				if t.Failed() {
					t.Log(e["MESSAGE"])
				}
			}
			for _, name := range []string{"start", "inventory", "inventory-complete", "generation-applied", "reload"} {
				if len(c.Journal("EDGEPOLICY_EVENT="+name)) == 0 {
					t.Errorf("there is no entry of %s", name)
				}
			}
			if got := c.Journal("EDGEPOLICY_EVENT=inventory", "EDGEPOLICY_POLICY=default/web"); len(got) != 1 || len(got[0]["EDGEPOLICY_HASH"]) != 64 || got[0]["EDGEPOLICY_FILE"] != "/etc/edgepolicy.d/all.yaml:12" {
				t.Errorf("default/web in the inventory: %v", got)
			}
		})
	}
}
