package preflight

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/config"
	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/internal/source/cni"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// gatewayHost is a lab with a pod, and its gateway to look at.
type gatewayHost struct {
	*lab.Lab
	t   *testing.T
	pod *lab.Namespace
}

func newGateway(t *testing.T, kind lab.Kind) *gatewayHost {
	t.Helper()
	l := lab.ForTest(t, lab.Topology{Kind: kind})
	p, err := l.AddPod("web", netip.MustParseAddr("10.42.0.12"), netip.MustParseAddr("fd42::12"))
	if err != nil {
		t.Fatal(err)
	}
	return &gatewayHost{l, t, p}
}

// fresh is the gateway, with nothing known of it yet.
func (g *gatewayHost) fresh() *Host {
	return &Host{Root: "/", Config: config.Default(), Daemon: fakeDaemon{err: status.ErrNotRunning}, Now: time.Now}
}

// in makes checks in the gateway.
func (g *gatewayHost) in(do func()) {
	g.t.Helper()
	if err := g.Gateway.Do(func() error { do(); return nil }); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gatewayHost) run(name string, args ...string) {
	g.t.Helper()
	if _, err := g.Gateway.Run(name, args...); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gatewayHost) nft(text string) {
	g.t.Helper()
	if _, err := g.Gateway.RunInput(text, "nft", "-f", "-"); err != nil {
		g.t.Fatal(err)
	}
}

// enforce puts the daemon's table into the gateway, for its pod.
func (g *gatewayHost) enforce() *ruleset.Table {
	g.t.Helper()
	o := inventory.DefaultOptions()
	s := &inventory.Snapshot{Pods: []*inventory.Pod{pod("web", "10.42.0.12", "fd42::12")}}
	want := ruleset.NewCompiler("edgepolicyd", &o).Compile(policy.NewResolver(&o).Update(s), ruleset.Mark{Mask: o.MarkMask, Epoch: 1 << 24})
	g.in(func() {
		c, err := nft.Open("edgepolicyd")
		if err != nil {
			g.t.Fatal(err)
		}
		defer c.Close()
		if err := c.Claim(); err != nil {
			g.t.Fatal(err)
		}
		if err := c.Apply(ruleset.Diff(nil, want).Transactions); err != nil {
			g.t.Fatal(err)
		}
	})
	return want
}

func TestTable(t *testing.T) {
	g := newGateway(t, lab.Routed)
	g.in(func() {
		finds(t, g.fresh(), "table.present", Impaired, "there is no table inet edgepolicyd", "systemctl start edgepolicyd")
	})
	flushed := g.fresh()
	flushed.Daemon = fakeDaemon{status: status.Status{Health: status.Failed}}
	g.in(func() {
		finds(t, flushed, "table.present", Impaired, "there is no table inet edgepolicyd", "edgepolicyd reload")
	})
	want := g.enforce()
	asked := 0
	h := g.fresh()
	h.Daemon = fakeDaemon{status: status.Status{Generation: 7}, table: func() string { asked++; return want.Text(nil) }}
	g.in(func() {
		fine(t, h, "table.present")
		fine(t, h, "table.equal")
		h.Daemon = fakeDaemon{status: status.Status{Generation: 7}, table: func() string { return strings.Replace(want.Text(nil), "accept", "drop", 1) }}
		finds(t, h, "table.equal", Impaired, `" in place of "ct state related`, "edgepolicyd reload")
	})
	if asked == 0 {
		t.Error("the daemon was not asked for its table")
	}
	other := newGateway(t, lab.Routed)
	other.nft("table inet edgepolicyd { chain c { accept; }; }\n")
	other.in(func() {
		finds(t, other.fresh(), "table.present", Impaired, "was not made by edgepolicyd", "nft list table inet edgepolicyd")
	})
}

func TestBridgeFilter(t *testing.T) {
	g := newGateway(t, lab.Bridge)
	g.in(func() { fine(t, g.fresh(), "bridge.filter") }) // nothing is enforced yet
	g.enforce()
	check := func(severity Severity, what string) {
		t.Helper()
		g.in(func() { finds(t, g.fresh(), "bridge.filter", severity, what, "") })
	}
	check(Impaired, "bridge cni0 carries pods and does not show IPv4 and IPv6 packets")
	g.run("ip", "link", "set", "cni0", "type", "bridge", "nf_call_iptables", "1")
	check(Impaired, "does not show IPv6 packets")
	g.run("sysctl", "-qw", "net.bridge.bridge-nf-call-ip6tables=1")
	check(OK, "")
	g.run("sysctl", "-qw", "net.bridge.bridge-nf-call-ip6tables=0")
	g.in(func() {
		finds(t, g.fresh(), "bridge.filter", Impaired, "IPv6", "ip link set cni0 type bridge nf_call_iptables 1 nf_call_ip6tables 1")
	})
	g.run("ip", "link", "set", "cni0", "type", "bridge", "nf_call_ip6tables", "1")
	check(OK, "")
	routed := newGateway(t, lab.Routed)
	routed.enforce()
	routed.in(func() { fine(t, routed.fresh(), "bridge.filter") })
}

// The CNI configuration names a bridge before there are pods.
func TestBridgeOfTheCNIConfiguration(t *testing.T) {
	g := newGateway(t, lab.Bridge)
	h := g.fresh()
	h.Sources = []source.Source{reporter{report: source.Report{Source: cni.Name, Network: source.Network{Bridges: []string{"cni0", "later0"}}}}}
	g.in(func() {
		if list, err := h.bridges(t.Context()); err != nil || strings.Join(list, " ") != "cni0" {
			t.Errorf("bridges %v, %v", list, err)
		}
	})
}

// br_netfilter that is missing keeps pods on a bridge from being told apart.
func TestBridgeModule(t *testing.T) {
	g := newGateway(t, lab.Bridge)
	g.in(func() { fine(t, g.fresh(), "bridge.module") })
	without := func(files map[string]string) *Host {
		h := g.fresh()
		h.Root = tree(t, files)
		return h
	}
	files := map[string]string{"proc/modules": "", "proc/sys/kernel/osrelease": "6", "lib/modules/6/modules.dep": "br_netfilter.ko:\n"}
	g.in(func() { fine(t, without(files), "bridge.module") }) // no pods are known
	g.enforce()
	g.in(func() {
		finds(t, without(files), "bridge.module", Impaired, "br_netfilter is not loaded, and bridge cni0 carries pods", "modprobe br_netfilter")
		finds(t, without(nil), "bridge.module", Impaired, "loads no modules", "CONFIG_BRIDGE_NETFILTER")
	})
}

func TestForwarding(t *testing.T) {
	g := newGateway(t, lab.Routed)
	g.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
	g.in(func() { fine(t, g.fresh(), "forwarding.on") }) // no pods are known
	g.enforce()
	g.in(func() {
		finds(t, g.fresh(), "forwarding.on", Note, "net.ipv4.ip_forward is 0, and 1 pod addresses are of IPv4", "sysctl -w net.ipv4.ip_forward=1")
	})
	g.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=0")
	g.in(func() { finds(t, g.fresh(), "forwarding.on", Note, "IPv6", "net.ipv6.conf.all.forwarding=1") })
	g.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
	g.in(func() { fine(t, g.fresh(), "forwarding.on") })
}

func TestOtherPrograms(t *testing.T) {
	g := newGateway(t, lab.Routed)
	g.enforce()
	nobody := func() *Host { // no process of the machine that runs the test counts
		h := g.fresh()
		h.Root = tree(t, map[string]string{"proc/1/comm": "init\n"})
		return h
	}
	checks := []string{"others.drop", "others.chains", "others.mark", "others.offload", "others.kube-router", "others.programs"}
	g.in(func() {
		for _, id := range checks {
			fine(t, nobody(), id)
		}
	})
	g.nft(`
table ip filter {
	chain FORWARD { type filter hook forward priority filter; policy drop; }
	chain KUBE-ROUTER-FORWARD { accept; }
	chain KUBE-POD-FW-ABC { drop; }
	chain KUBE-POD-FW-DEF { drop; }
	chain DOCKER { accept; }
}
table inet firewalld {
	chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept; }
	chain mangle { type filter hook postrouting priority 200; }
	chain marks { ct mark set ct mark and 0x00ffffff or 0x01000000; }
	chain theirs { ct mark set ct mark or 0x1; }
}
`)
	g.in(func() {
		finds(t, nobody(), "others.drop", Warning, "ip filter FORWARD (hook forward, priority 0)", "nft list chain ip filter FORWARD")
		finds(t, nobody(), "others.chains", Note, "inet firewalld filter_FORWARD (hook forward, priority 10)", "nft list ruleset")
		finds(t, nobody(), "others.mark", Warning, "chain inet firewalld marks has rules that write the connection mark: 0xff000000", "nft list chain inet firewalld marks")
		offload := nobody() // not every kernel that runs the test has flow tables
		offload.offloaded.done, offload.offloaded.value = true, map[string]string{g.pod.HostInterface: "flow table ft of table x"}
		finds(t, offload, "others.offload", Impaired, "interface "+g.pod.HostInterface+" of pods is in flow table ft of table x", "nft list flowtables")
		offload.offloaded.value = map[string]string{"uplink": "flow table ft of table x"}
		finds(t, offload, "others.offload", Note, "interface uplink is in flow table ft", "")
		finds(t, nobody(), "others.kube-router", Warning, "2 chains KUBE-POD-FW-* in table ip filter, 1 chains KUBE-ROUTER-* in table ip filter; nobody who makes them runs", "KUBE-(ROUTER|POD-FW|NWPLCY)")
		running := nobody()
		running.Root = tree(t, map[string]string{"proc/12/comm": "k3s-server\n", "proc/13/comm": "firewalld\n"})
		finds(t, running, "others.kube-router", Warning, "process k3s-server runs", "--disable-network-policy")
		found := check(t, running, "others.programs")
		if len(found) != 2 || !strings.Contains(found[0].What, "firewalld writes firewall rules: process firewalld, table inet firewalld") || !strings.Contains(found[1].What, "docker writes firewall rules: table ip filter") {
			t.Errorf("programs: %+v", found)
		}
	})
	tripped["others.programs"] = true
}

// Nothing changes on the gateway that is looked at.
func TestRunChangesNothing(t *testing.T) {
	g := newGateway(t, lab.Bridge)
	g.enforce()
	state := func() string {
		t.Helper()
		var all []string
		for _, c := range [][]string{{"nft", "list", "ruleset"}, {"ip", "addr"}, {"ip", "route"}, {"sysctl", "net.bridge", "net.ipv4.ip_forward", "net.netfilter.nf_conntrack_max"}} {
			out, err := g.Gateway.Run(c[0], c[1:]...)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, out)
		}
		g.in(func() {
			ip4, ip6, err := gateway.BridgeFilter("cni0")
			if err != nil {
				t.Error(err)
			}
			all = append(all, fmt.Sprint(ip4, ip6))
		})
		return strings.Join(all, "\n")
	}
	before := state()
	h := g.fresh()
	h.Config.Socket = config.Path(t.TempDir() + "/none")
	var found []Finding
	g.in(func() { found = Run(t.Context(), h) })
	if after := state(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	ids := map[string]bool{}
	for i, f := range found {
		ids[f.ID] = true
		if i > 0 && f.Severity != found[i-1].Severity && Worst([]Finding{f, found[i-1]}) == f.Severity {
			t.Errorf("%s comes after %s", f.Severity, found[i-1].Severity)
		}
		if f.Severity != OK && !f.Unseen && (f.What == "" || f.Why == "" || f.Command == "") {
			t.Errorf("incomplete: %+v", f)
		}
	}
	for _, c := range Checks() {
		if !ids[c.ID] {
			t.Errorf("nothing is said of %s", c.ID)
		}
	}
	if Worst(found) != Impaired || found[0].ID != "bridge.filter" {
		t.Errorf("the worst is %s: %+v", Worst(found), found[0])
	}
}
