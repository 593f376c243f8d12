package preflight

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/config"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/internal/source/cni"
	"edgepolicy.io/edgepolicyd/internal/source/directory"
	"edgepolicy.io/edgepolicyd/internal/status"
)

func TestModuleStates(t *testing.T) {
	const dep = "kernel/net/bridge/br-netfilter.ko.xz: kernel/net/bridge/bridge.ko.xz\nkernel/a/nft_log.ko:\n"
	modular := map[string]string{
		"proc/modules":                           "nf_tables 311296 2 nft_ct, Live 0x0\nbr 1 0 - Live 0x0\n",
		"proc/sys/kernel/osrelease":              "6.1.0-test\n",
		"lib/modules/6.1.0-test/modules.dep":     dep,
		"lib/modules/6.1.0-test/modules.builtin": "kernel/net/netfilter/nf-conntrack.ko\n",
		"sys/module/nfnetlink_log/x":             "",
	}
	for name, want := range map[string]string{
		"nf_tables": loaded, "nf_conntrack": builtIn, "nfnetlink_log": builtIn,
		"br_netfilter": loadable, "nft_log": loadable, "bridge": absent, "br": loaded,
	} {
		if got := host(t, modular).module(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if got := host(t, map[string]string{"proc/modules": ""}).module("bridge"); got != unknown {
		t.Errorf("without /lib/modules: %s", got)
	}
	monolith := host(t, map[string]string{"sys/module/bridge/x": ""})
	if a, b := monolith.module("bridge"), monolith.module("br_netfilter"); a != builtIn || b != noModules {
		t.Errorf("a kernel without modules: %s, %s", a, b)
	}
}

func TestConntrack(t *testing.T) {
	set := func(count, most, loose string) *Host {
		return host(t, map[string]string{
			"proc/sys/net/netfilter/nf_conntrack_count": count + "\n", "proc/sys/net/netfilter/nf_conntrack_max": most + "\n",
			"proc/sys/net/netfilter/nf_conntrack_tcp_loose": loose + "\n",
		})
	}
	roomy := set("8000", "10000", "1")
	fine(t, roomy, "conntrack.room")
	fine(t, roomy, "conntrack.size")
	fine(t, roomy, "conntrack.loose")
	tight := set("3300", "4096", "0")
	finds(t, tight, "conntrack.room", Warning, "3300 of 4096 connections are in use (80 %)", "nf_conntrack_max=8192")
	finds(t, tight, "conntrack.size", Note, "at most 4096", "nf_conntrack_max=32768")
	finds(t, tight, "conntrack.loose", Note, "tcp_loose is 0", "tcp_loose=1")
	for _, id := range []string{"conntrack.room", "conntrack.size", "conntrack.loose"} {
		unseen(t, host(t, nil), id, "not in use yet")
	}
	unseen(t, set("x", "1", "y"), "conntrack.loose", "invalid syntax")
}

func TestClock(t *testing.T) {
	h := host(t, nil)
	fine(t, h, "clock.set")
	h.Now = func() time.Time { return time.Unix(3600, 0) }
	finds(t, h, "clock.set", Warning, "1970-01-01 01:00:00", "timedatectl")
}

func TestConfiguration(t *testing.T) {
	h := host(t, nil)
	fine(t, h, "config.valid")
	h.ConfigErr = errors.New("config.yaml:1:1: tabel: unknown key")
	finds(t, h, "config.valid", Impaired, "tabel", "edgepolicyd check --config /etc/edgepolicyd/config.yaml")
	h = host(t, nil)
	h.ConfigErr, h.Daemon = errors.New("tabel"), fakeDaemon{}
	finds(t, h, "config.valid", Warning, "tabel", "edgepolicyd check")
	h.ConfigErr = os.ErrPermission
	unseen(t, h, "config.valid", "permission")
}

func TestDaemonDownOrUnwell(t *testing.T) {
	h := host(t, nil)
	finds(t, h, "daemon.running", Warning, "not running", "systemctl start")
	unseen(t, h, "daemon.health", "no daemon")
	unseen(t, h, "table.equal", "no daemon")
	h.Config.Socket = config.Path(filepath.Join(h.Root, "none.sock"))
	unseen(t, h, "daemon.privileges", "no daemon")

	with := func(s status.Status) *Host {
		h := host(t, nil)
		h.Daemon = fakeDaemon{status: s}
		return h
	}
	healthy := with(status.Status{Health: status.Healthy})
	fine(t, healthy, "daemon.running")
	fine(t, healthy, "daemon.health")
	finds(t, with(status.Status{Health: status.Degraded, Reasons: []string{"rejected: x"}}), "daemon.health", Warning, "degraded: rejected: x", "edgepolicyd status")
	finds(t, with(status.Status{Health: status.Failed, Reasons: []string{"flushed"}}), "daemon.health", Impaired, "failed: flushed", "edgepolicyd reload")
	finds(t, with(status.Status{Health: status.Failed, Reasons: []string{"old"}, TablePresent: true}), "daemon.health", Impaired, "failed: old", "edgepolicyd status")
	if f := check(t, with(status.Status{Health: status.Failed, Reasons: []string{"flushed", "rejected: x"}}), "daemon.health"); len(f) != 2 || f[1].Command != "edgepolicyd status" {
		t.Errorf("a reload mends no document: %+v", f)
	}
	finds(t, with(status.Status{Health: status.Degraded, Reasons: []string{"pod a"}, Unenforceable: []status.Unenforceable{{}}}), "daemon.health", Impaired, "pod a", "")
	many := check(t, with(status.Status{Health: status.Degraded, Reasons: make([]string, 200)}), "daemon.health")
	if len(many) != maxReasons+1 || !strings.Contains(many[maxReasons].What, "190 reasons more") {
		t.Errorf("of 200 reasons: %d findings, %+v", len(many), many[len(many)-1])
	}
}

// processStatus is what proc(5) says of a process with these capabilities.
func processStatus(capabilities ...int) string {
	set := uint64(0)
	for _, c := range capabilities {
		set |= 1 << c
	}
	return fmt.Sprintf("Name:\tx\nCapInh:\t0000000000000000\nCapEff:\t%016x\nCapBnd:\tffffffffffffffff\n", set)
}

func TestPrivileges(t *testing.T) {
	fine(t, host(t, map[string]string{"proc/self/status": processStatus(netAdmin, sysAdmin)}), "privileges.own")
	finds(t, host(t, map[string]string{"proc/self/status": processStatus(sysAdmin)}), "privileges.own", Note, "without CAP_NET_ADMIN", "sudo")

	h := host(t, map[string]string{fmt.Sprintf("proc/%d/status", os.Getpid()): processStatus(netAdmin, sysModule)})
	h.Config.Socket = config.Path(filepath.Join(h.Root, "sock"))
	l, err := net.Listen("unix", string(h.Config.Socket))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fine(t, h, "daemon.privileges")
	without := map[string]string{
		fmt.Sprintf("proc/%d/status", os.Getpid()): processStatus(), "proc/modules": "", "proc/sys/kernel/osrelease": "6",
		"lib/modules/6/modules.dep": "br_netfilter.ko:\n",
	}
	socket := h.Config.Socket
	h = host(t, without)
	h.Config.Socket = socket
	found := check(t, h, "daemon.privileges")
	if len(found) != 2 || found[0].Severity != Impaired || found[1].Severity != Warning || !strings.Contains(found[1].Command, "modprobe br_netfilter") {
		t.Errorf("without capabilities: %+v", found)
	}
	delete(without, "lib/modules/6/modules.dep")
	h = host(t, without)
	h.Config.Socket = socket
	finds(t, h, "daemon.privileges", Impaired, "no CAP_NET_ADMIN", "CapabilityBoundingSet")
}

func TestStateFolder(t *testing.T) {
	fine(t, host(t, nil), "state.folder") // the daemon makes it
	make := func(mode os.FileMode, owner int) *Host {
		h := host(t, map[string]string{"var/lib/edgepolicyd/state": ""})
		folder := h.path("var/lib/edgepolicyd")
		if err := errors.Join(os.Chmod(folder, mode), os.Chown(folder, owner, 0)); err != nil {
			t.Fatal(err)
		}
		return h
	}
	fine(t, make(0o700, 0), "state.folder")
	finds(t, make(0o777, 0), "state.folder", Warning, "its mode is 0777", "chmod 0700 /")
	finds(t, make(0o700, 65534), "state.folder", Warning, "belongs to user 65534", "chown root: /")
	finds(t, host(t, map[string]string{"var/lib/edgepolicyd": ""}), "state.folder", Warning, "is no folder", "mv ")
}

// A file system that can't be written, or is full, is found: a small one is mounted
// where this thread alone sees it.
func TestStateFileSystem(t *testing.T) {
	runtime.LockOSThread() // for good
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	mounted := func(flags uintptr, size string) *Host {
		h := host(t, map[string]string{"var/lib/edgepolicyd/x": ""})
		folder := h.path("var/lib/edgepolicyd")
		if err := unix.Mount("none", folder, "tmpfs", flags, "mode=0700,size="+size); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(folder, unix.MNT_DETACH) })
		return h
	}
	fine(t, mounted(0, "16m"), "state.folder")
	finds(t, mounted(unix.MS_RDONLY, "16m"), "state.folder", Warning, "read-only", "remount,rw")
	finds(t, mounted(0, "64k"), "state.folder", Warning, "room for 64 KiB only", "df -h")
}

func TestPoliciesFolder(t *testing.T) {
	h := host(t, nil)
	finds(t, h, "policies.folder", Warning, "no policies can be read", "install -d -m 0755 /")
	h.Config.Sources.API.Server = "http://127.0.0.1:1"
	finds(t, h, "policies.folder", Note, "no policies can be read", "")
	h = host(t, map[string]string{"etc/edgepolicy.d/a.yaml": ""})
	fine(t, h, "policies.folder")
	if err := os.Chmod(h.path("etc/edgepolicy.d/a.yaml"), 0o666); err != nil {
		t.Fatal(err)
	}
	finds(t, h, "policies.folder", Warning, "a.yaml: the daemon does not read it", "chmod go-w /")
}

// reporter is a source that says the same each time.
type reporter struct {
	source.Source
	report source.Report
}

func (r reporter) Name() string { return r.report.Source }

func (r reporter) Refresh(ctx context.Context) (source.Report, error) { return r.report, ctx.Err() }

func TestSources(t *testing.T) {
	with := func(r source.Report) *Host {
		h := host(t, nil)
		h.Sources = []source.Source{reporter{report: r}}
		return h
	}
	fine(t, with(source.Report{Source: "kubelet"}), "sources.answer")
	finds(t, with(source.Report{Source: "kubelet", Err: errors.New("401")}), "sources.answer", Warning, "source kubelet: 401", "curl -kSs ")
	finds(t, with(source.Report{Source: "api", OfflineSince: time.Now()}), "sources.answer", Warning, "source api: its server is out of reach", "")
	finds(t, with(source.Report{Source: "api", Unknown: true}), "sources.answer", Warning, "does not answer", "")
	finds(t, with(source.Report{Source: directory.Name, Err: errors.New("told by policies.folder"), Rejected: []source.Rejected{{Reason: "spec"}}}), "sources.answer", Warning, "1 documents or files are rejected: spec", "edgepolicyd check")
	h := with(source.Report{Source: "api", Unknown: true})
	h.Config.Sources.API.Preset = "k3s"
	finds(t, h, "sources.answer", Warning, "does not answer", "kubectl --kubeconfig /etc/rancher/k3s/k3s.yaml get --raw /version")
	h = host(t, nil)
	h.SourcesErr = errors.New("sources.api: no node")
	finds(t, h, "sources.answer", Impaired, "no node", "")

	finds(t, with(source.Report{Source: cni.Name}), "sources.cni", Note, "no folder /var/lib/cni/results", "ls /var/lib/cni/results")
	fine(t, with(source.Report{Source: cni.Name, Network: source.Network{Present: true}}), "sources.cni")
}

func TestLegacyIptables(t *testing.T) {
	fine(t, host(t, map[string]string{"proc/thread-self/net/ip_tables_names": ""}), "others.legacy")
	fine(t, host(t, nil), "others.legacy")
	finds(t, host(t, map[string]string{"proc/thread-self/net/ip_tables_names": "filter\nmangle\n", "proc/thread-self/net/ip6_tables_names": "nat\n"}),
		"others.legacy", Note, "ip filter, ip mangle, ip6 nat", "iptables-legacy-save")
}

func TestLogReader(t *testing.T) {
	const file = "proc/thread-self/net/netfilter/nfnetlink_log"
	read := map[string]string{file: fmt.Sprintf("    7      1 0 2 65535 100 1\n%5d   4711 0 2   192  10 1\n", ruleset.LogGroup)}
	nobody := map[string]string{file: "    7      1 0 2 65535 100 1\n"}
	fine(t, host(t, nobody), "log.reader")
	finds(t, host(t, read), "log.reader", Warning, "another program", "nfnetlink_log")
	h := host(t, nobody)
	h.Daemon = fakeDaemon{}
	finds(t, h, "log.reader", Warning, "the daemon does not read", "restart")
	h = host(t, read)
	h.Daemon = fakeDaemon{}
	fine(t, h, "log.reader")
	h = host(t, nil)
	h.Config.Audit.Denied.Enabled = false
	fine(t, h, "log.reader")
}

// What others named does not reach a terminal or a shell as they wrote it.
func TestForeignTextIsHarmless(t *testing.T) {
	c := Check{ID: "x", Severity: Note, Why: "because", Command: "ip link set BRIDGE up", look: nil}
	c.look = func(_ context.Context, _ *Host) ([]problem, error) {
		return []problem{{what: "bridge \x1b[2J\nx", fill: []string{"BRIDGE", "a;reboot 'now'\x1b"}}}, nil
	}
	f := c.run(t.Context(), &Host{})[0]
	if f.What != "bridge \uFFFD[2J x" || f.Command != `ip link set 'a;reboot '\''now'\''`+"\uFFFD"+`' up` {
		t.Errorf("%q, %q", f.What, f.Command)
	}
}
