package units

import (
	"fmt"
	"strings"
	"testing"
)

// TestWorksHardened: with what the unit leaves it, the daemon does everything that it
// does, and complains of nothing.
func TestWorksHardened(t *testing.T) {
	g := newGateway(t)
	g.Write("/etc/edgepolicyd/config.yaml", []byte("metrics: {listen: '127.0.0.1:9469'}\naudit: {denied: {window: 1s}}\n"), 0o644)
	g.Exec("systemctl", "start", "edgepolicyd")
	g.plug()
	g.Exec("systemctl", "reload", "edgepolicyd")

	// Pods by their CNI results on a bridge whose filtering is switched on.
	g.enforced("hardened")
	for _, flag := range []string{"nf_call_iptables", "nf_call_ip6tables"} {
		if on := g.Exec("cat", "/sys/class/net/cni0/bridge/"+flag); on != "1\n" {
			t.Errorf("%s is %s", flag, on)
		}
	}
	if out := g.Exec("nft", "list", "table", "bridge", "edgepolicyd"); !strings.Contains(out, "veth-web") {
		t.Errorf("in the bridge family's table there are no pods' ports:\n%s", out)
	}
	// An address that nobody knows is held.
	g.Exec("sh", "-ec", "ip -n client addr add 10.42.0.99/24 dev eth0 && ip -n client route add "+bridge+" dev eth0 src 10.42.0.99")
	if g.reaches("client", bridge, 80) {
		t.Error("an address that is no pod's is not held")
	}
	g.Exec("ip", "-n", "client", "addr", "del", "10.42.0.99/24", "dev", "eth0")

	// Denied packets by NFLOG.
	g.eventually("a denied packet is in the journal", func() bool {
		return len(g.Journal("--unit=edgepolicyd", "EDGEPOLICY_EVENT=denied", "EDGEPOLICY_SRC_POD=default/client", "EDGEPOLICY_DST_POD=default/web", "EDGEPOLICY_PORT=81")) > 0
	})
	// Connections, by conntrack: one that was allowed is cut.
	g.Exec("systemd-run", "--quiet", "--unit=listen", "ip", "netns", "exec", "web", "perl", "-MIO::Socket::INET", "-e",
		`$$s = IO::Socket::INET->new(Listen => 5, LocalPort => 80) or die; push @c, $$s->accept while 1`)
	g.Exec("systemd-run", "--quiet", "--unit=connect", "--property=Restart=on-failure", "--property=RestartSec=1", "ip", "netns", "exec", "client", "bash", "-ec", "exec 3<>/dev/tcp/"+web+"/80; touch /run/connected; sleep infinity")
	g.eventually("a pod connects", func() bool { return g.Command("test", "-e", "/run/connected").Run() == nil })
	g.Write("/etc/edgepolicy.d/all.yaml", []byte(strings.Replace(policies, "port: 80", "port: 8080", 1)), 0o600)
	g.eventually("connections that are cut are counted", func() bool {
		return len(g.Journal("--unit=edgepolicyd", "EDGEPOLICY_EVENT=connections-cut")) > 0
	})
	// The state is saved, by the daemon, for itself.
	g.eventually("the state is saved", func() bool {
		out, _ := g.Command("stat", "--format=%U %a", "/var/lib/edgepolicyd", "/var/lib/edgepolicyd/state").Output()
		return string(out) == "root 700\nroot 600\n"
	})
	// Whoever is root asks it, and Prometheus on the loopback address.
	if out := g.Exec("edgepolicyd", "status"); !strings.HasPrefix(out, "healthy\n") {
		t.Errorf("status: %s", out)
	}
	if out := g.Exec("bash", "-ec", `exec 3<>/dev/tcp/127.0.0.1/9469; printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3; cat <&3`); !strings.Contains(out, "edgepolicyd_") {
		t.Errorf("metrics: %s", out)
	}
	if out, err := g.Command("edgepolicyd", "doctor").CombinedOutput(); err != nil {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	for _, e := range g.Journal("--unit=edgepolicyd", "--priority=warning") {
		if e["EDGEPOLICY_EVENT"] != "denied" {
			t.Errorf("the daemon complains: %s", e["MESSAGE"])
		}
	}
	g.bounded()
}

// bounded says that the limits of the unit are those of the process.
func (g gateway) bounded() {
	g.t.Helper()
	status := g.Exec("cat", "/proc/"+g.show("edgepolicyd", "MainPID")+"/status")
	const admin = 1 << 12 // CAP_NET_ADMIN
	for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
		if want := fmt.Sprintf("%s:\t%016x\n", set, admin); !strings.Contains(status, want) {
			g.t.Errorf("%s is another than CAP_NET_ADMIN:\n%s", set, status)
		}
	}
	if !strings.Contains(status, "NoNewPrivs:\t1\n") || !strings.Contains(status, "Seccomp:\t2\n") {
		g.t.Errorf("the process may gain privileges, or call everything:\n%s", status)
	}
}

// TestLoadsBridgeFilter: where br_netfilter is missing it is loaded before the daemon
// starts, and what it switches on for every bridge is set back, but for what the
// operator asks for.
func TestLoadsBridgeFilter(t *testing.T) {
	g := newGateway(t)
	const fake = `#!/bin/sh
[ "$*" = "-q br_netfilter" ] && mkdir /proc/sys/net/bridge || exit 1
for v in ip ip6 arp; do echo 1 >/proc/sys/net/bridge/bridge-nf-call-${v}tables; done
`
	g.Write("/usr/local/sbin/modprobe", []byte(fake), 0o755)
	g.Write("/etc/sysctl.d/bridge.conf", []byte("net.bridge.bridge-nf-call-arptables = 1\n"), 0o644)
	g.Exec("mount", "-t", "tmpfs", "tmpfs", "/proc/sys/net")
	for _, want := range []string{"1\n0\n0\n", "1\n1\n1\n"} { // arptables first
		g.Exec("systemctl", "restart", "edgepolicyd")
		if got := g.Exec("sh", "-c", "cat /proc/sys/net/bridge/bridge-nf-call-*"); got != want {
			t.Errorf("what br_netfilter does for every bridge is %q, want %q", got, want)
		}
		// What is there already is somebody else's.
		g.Exec("sh", "-c", "for f in /proc/sys/net/bridge/*; do echo 1 >$f; done")
	}
	// A kernel that has none is no reason not to start.
	g.Exec("rm", "-r", "/proc/sys/net/bridge", "/usr/local/sbin/modprobe")
	g.Exec("systemctl", "restart", "edgepolicyd")
}

// TestSandboxOfProcess: results that name a pod's network namespace as that of a process
// (cri-dockerd) count, though the unit does not let the daemon look at other users'
// processes; not when the process is gone.
func TestSandboxOfProcess(t *testing.T) {
	g := newGateway(t)
	g.plug()
	g.Exec("systemd-run", "--quiet", "--unit=pause", "ip", "netns", "exec", "web", "setpriv", "--reuid=65535", "--clear-groups", "sleep", "infinity")
	process := "/proc/" + g.show("pause", "MainPID")
	g.eventually("the pod's process runs", func() bool { return g.Exec("cat", process+"/comm") == "sleep\n" })
	g.Exec("sed", "--in-place", "s,/run/netns/web,"+process+"/ns/net,", "/var/lib/cni/results/edgenet-web-eth0")
	g.Exec("systemctl", "start", "edgepolicyd")
	g.enforced("a process's namespace")
	g.Exec("systemctl", "stop", "pause")
	g.Exec("systemctl", "restart", "edgepolicyd")
	if g.reaches("client", web, 80) {
		t.Error("the pod of a process that is gone is believed still")
	}
}
