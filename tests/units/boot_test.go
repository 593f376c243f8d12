package units

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// watcher is a unit that notes what the kernel has when it starts.
const watcher = `[Unit]
%s
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -c 'nft list table inet edgepolicyd >/root/at-%[2]s 2>&1; true'
[Install]
WantedBy=multi-user.target
`

// boots gives a gateway whose daemon has run, and is not started at the next boot:
// what is in the kernel then is from restore alone.
func boots(t *testing.T, config string) gateway {
	t.Helper()
	g := newGateway(t)
	g.Write("/etc/edgepolicyd/config.yaml", []byte(config), 0o644)
	for unit, head := range map[string]string{
		"containerd": "", "kubelet": "",
		"network": "DefaultDependencies=no\nWants=network-pre.target\nAfter=network-pre.target\n", // what brings interfaces up
	} {
		g.Write("/etc/systemd/system/"+unit+".service", fmt.Appendf(nil, watcher, head, unit), 0o644)
		g.Exec("systemctl", "enable", "--quiet", unit)
	}
	// All take their time, so that it is the order of the units that counts.
	for unit, seconds := range map[string]string{"nftables": "0.8", "edgepolicyd-restore": "0.3"} {
		g.Write("/etc/systemd/system/"+unit+".service.d/slow.conf", []byte("[Service]\nExecStartPre=sleep "+seconds+"\n"), 0o644)
	}
	g.Exec("systemctl", "enable", "--quiet", "nftables", "edgepolicyd-restore")
	g.Exec("systemctl", "start", "edgepolicyd")
	g.plug()
	g.eventually("the state has the pods and their range", func() bool {
		state, _ := g.Command("cat", "/var/lib/edgepolicyd/state").Output()
		return strings.Contains(string(state), "10.42.0.0/24")
	})
	return g
}

// protected says that the rules were there before anything that they are for.
func (g gateway) protected() {
	g.t.Helper()
	for _, unit := range []string{"network", "containerd", "kubelet"} {
		if table := g.Exec("cat", "/root/at-"+unit); !strings.Contains(table, "chain forward") {
			g.t.Errorf("when %s.service started, the table was: %s", unit, table)
		}
		g.Exec("rm", "/root/at-"+unit)
	}
	ended, err1 := strconv.Atoi(g.show("nftables", "ExecMainExitTimestampMonotonic"))
	began, err2 := strconv.Atoi(g.show("edgepolicyd-restore", "ExecMainStartTimestampMonotonic"))
	if err1 != nil || err2 != nil || ended == 0 || began <= ended {
		g.t.Errorf("restore began at %d us, and nftables.service, which flushes all rules, ended at %d us", began, ended)
	}
}

// TestBoot: what was saved is in the kernel before the network and before whatever
// starts pods; pods that come before the daemon are held; the daemon takes over.
func TestBoot(t *testing.T) {
	g := boots(t, "")
	g.Reboot()
	g.protected()
	if state := g.show("edgepolicyd", "ActiveState"); state != "inactive" {
		t.Fatalf("the daemon is %s", state)
	}
	if entries := g.Journal("--unit=edgepolicyd-restore", "EDGEPOLICY_EVENT=restored"); len(entries) != 1 {
		t.Errorf("the journal tells of %d restores", len(entries))
	}
	g.Exec("rm", "-r", "/var/lib/cni/results")
	g.plug()
	for _, to := range []string{web, bridge} {
		if g.reaches("client", to, 80) {
			t.Errorf("a pod that nobody knows yet reaches %s", to)
		}
	}
	g.Exec("systemctl", "start", "edgepolicyd")
	g.enforced("the daemon is up")
	// What starts the network again does not run restore against the daemon.
	g.Exec("systemctl", "start", "edgepolicyd-restore", "network")
	if state := g.show("edgepolicyd-restore", "SubState"); state != "exited" {
		t.Errorf("restore is %s", state)
	}
}

// TestBootOpen: with onBoot: open, pods that come before the daemon are open; the
// policies of addresses that are written down are not.
func TestBootOpen(t *testing.T) {
	g := boots(t, "onBoot: open\n")
	g.Write("/etc/edgepolicy.d/fixed.yaml", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: fixed, labels: {app: web}}\nstatus: {podIPs: [{ip: 10.43.0.2}]}\n"), 0o644)
	g.Reboot()
	g.protected()
	if table := g.table(); !strings.Contains(table, "10.43.0.2") {
		t.Errorf("a pod with a written address is missing:\n%s", table)
	}
	g.plug()
	for _, to := range []string{web, bridge} {
		if !g.reaches("client", to, 81) {
			t.Errorf("a pod that nobody knows yet does not reach %s", to)
		}
	}
	g.Exec("systemctl", "start", "edgepolicyd")
	g.enforced("the daemon is up")
}

// TestBootDamaged: a damaged state, or a restore that fails or hangs, keeps neither the
// boot nor the daemon.
func TestBootDamaged(t *testing.T) {
	g := boots(t, "")
	g.Write("/var/lib/edgepolicyd/state", []byte("damaged"), 0o600)
	g.Exec("sync")
	g.Reboot()
	g.protected() // by what the directory says
	if state := g.show("edgepolicyd-restore", "ActiveState"); state != "active" {
		t.Errorf("with a damaged state restore is %s", state)
	}
	g.Exec("test", "-s", "/var/lib/edgepolicyd/state.damaged-1")

	g.Exec("systemctl", "enable", "--quiet", "edgepolicyd")
	for why, dropIn := range map[string]string{
		"fails": "[Service]\nExecStart=\nExecStart=/bin/false\n",
		"hangs": "[Service]\nExecStart=\nExecStart=sleep infinity\nTimeoutStartSec=1\n",
	} {
		g.Write("/etc/systemd/system/edgepolicyd-restore.service.d/broken.conf", []byte(dropIn), 0o644)
		g.Reboot()
		if state := g.show("edgepolicyd-restore", "ActiveState"); state != "failed" {
			t.Errorf("restore that %s is %s", why, state)
		}
		for _, unit := range []string{"network", "containerd", "kubelet", "edgepolicyd", "multi-user.target"} {
			if state := g.show(unit, "ActiveState"); state != "active" {
				t.Errorf("restore %s, and %s is %s", why, unit, state)
			}
		}
	}
	g.Exec("ip", "netns", "list")
	g.plug()
	g.Exec("systemctl", "reload", "edgepolicyd")
	g.enforced("booted without restore")
}
