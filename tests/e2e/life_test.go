package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/status"
	"edgepolicy.io/edgepolicyd/tests/daemon"
)

// A restart adopts the table it finds: nothing is written that need not be, so
// that counters, and the handles of rules, are what they were.
func TestAdoption(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.enforce(allowClient, policy("other", "podSelector: {matchLabels: {app: other}}, policyTypes: [Egress]"))
		w.see("denied packets to count", strings.Repeat("outside web 80 no\n other web 80 no\n web client 80 no\n", 10))
		table := func() string { return w.gw("nft", "-a", "list", "table", "inet", "edgepolicyd") }
		before, rules := w.counters("edgepolicyd"), table()
		if _, format := before["format-1"]; !format || len(before) != 4 || before["in-default/web"] != 20 || before["eg-default/other"] != 20 || before["eg-default/web"] < 20 {
			t.Fatalf("counters %v", before)
		}
		for _, end := range []func() error{w.Stop, w.Kill} {
			w.must(end())
			w.must(w.Start())
			w.must(w.Reload())
			if got := table(); got != rules {
				w.t.Errorf("the table was\n%s\nand is\n%s", rules, got)
			}
		}
		// A change touches what changed and nothing else.
		w.enforce(allowOther, policy("other", "podSelector: {matchLabels: {app: other}}, policyTypes: [Egress]"))
		after := w.counters("edgepolicyd")
		if after["eg-default/other"] != before["eg-default/other"] || after["in-default/web"] != before["in-default/web"] {
			w.t.Errorf("counters were %v and are %v", before, after)
		}
	})
}

// What changed while no daemon ran is in force when the next one says it is
// ready: at the first packet.
func TestReadyMeansInForce(t *testing.T) {
	both(t, "", func(t *testing.T, w *world) {
		w.pods(web, client, other)
		w.serve("web", "udp", 53)
		w.must(w.Write("policies.yaml", allowClient))
		w.must(w.Start())
		w.see("the first start", "client web 80 yes\n other web 80 no")
		conn := w.connects("client", "udp", "10.42.0.12:53")
		for _, end := range []func() error{w.Stop, w.Kill} {
			w.must(end())
			w.must(w.Write("policies.yaml", allowOther))
			w.must(w.Start())
			w.see("changed", "client web 80 no\n other web 80 yes")
			w.cut("changed", conn)
			w.must(end())
			w.must(w.Write("policies.yaml", allowClient))
			w.must(w.Start())
			w.see("changed back", "client web 80 yes\n other web 80 no")
			w.works("changed back", conn)
		}
	})
}

// reload returns when the kernel has the result, and says what changed.
func TestReloadIsInForce(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		for i := range 20 {
			spec, want := isolateWeb, "no"
			if i%2 == 1 {
				spec, want = isolateWeb+", ingress: [{}]", "yes"
			}
			w.enforce(policy("web", spec))
			w.see(fmt.Sprintf("reload %d", i), "client web 80 "+want+"\n outside web 80/UDP "+want)
		}
		w.must(w.Write("policies.yaml", documents(policy("web", isolateWeb), policy("new", "podSelector: {}, ingress: [{}]"))))
		w.must(w.Write("ns.yaml", namespace("far", "team: x")))
		before, _ := w.status()
		out, errs, code, err := w.Run("reload", "-o", "json")
		w.must(err)
		var r status.ReloadResult
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 {
			w.t.Fatalf("reload -o json: %v, exit code %d: %s%s", err, code, out, errs)
		}
		after, _ := w.status()
		if r.Generation != after.Generation || r.Generation < before.Generation || !r.Changed || r.Health != status.Healthy ||
			fmt.Sprint(r.Changes) != "[policy default/new added policy default/web changed namespace far added]" {
			w.t.Errorf("reload: %+v; generation before %d, after %d", r, before.Generation, after.Generation)
		}
		out, _, code, err = w.Run("reload")
		if w.must(err); code != 0 || !strings.Contains(out, "nothing changed") {
			w.t.Errorf("reload of nothing: exit code %d: %s", code, out)
		}
	})
}

// A second daemon on the same table is refused, whether it has the same socket or
// another, says why, and changes nothing.
func TestSecondDaemon(t *testing.T) {
	w := lone(t)
	w.apply("policies.yaml", policy("web", isolateWeb))
	rules := w.gw("nft", "-a", "list", "table", "inet", "edgepolicyd")

	out, errs, code, err := w.Run("run")
	w.must(err)
	if code != 1 || !strings.Contains(errs, "another edgepolicyd is running") {
		t.Errorf("the same socket: exit code %d, want 1:\n%s%s", code, out, errs)
	}

	second, err := daemon.New(w.Lab, t.TempDir(), "")
	w.must(err)
	t.Cleanup(func() {
		if err := second.Stop(); err != nil {
			t.Error(err)
		}
	})
	started := make(chan error, 1)
	go func() { started <- second.Start() }()
	w.eventually("the second daemon says why it does not start", func() bool {
		return strings.Contains(second.Log(), "is another edgepolicyd running?")
	})
	select {
	case err := <-started:
		t.Fatalf("the second daemon became ready, or ended: %v\n%s", err, second.Log())
	default:
	}
	out, _, code, err = second.Run("status")
	if w.must(err); code != 1 || !strings.HasPrefix(out, "failed\n") || !strings.Contains(out, "is another edgepolicyd running?") {
		t.Errorf("status of the second daemon: exit code %d:\n%s", code, out)
	}
	if _, _, code, err := second.Run("flush"); err != nil || code != 1 {
		t.Errorf("flush by the second daemon: %v, exit code %d, want 1", err, code)
	}
	if got := w.gw("nft", "-a", "list", "table", "inet", "edgepolicyd"); got != rules {
		t.Errorf("the table was\n%s\nand is\n%s", rules, got)
	}
	w.see("the first goes on", "client web 80 no")
	w.healthy()

	// It takes over when the first has gone: it knows no pods.
	w.must(w.Kill())
	if err := <-started; err != nil {
		t.Fatalf("the second daemon after the first: %v", err)
	}
	w.see("the second enforces what it knows", "client web 80 yes")
}

// Other programs can't take the table away while the daemon lives (table flags
// owner and persist, kernel 6.9), and what they flush is not what we enforce.
func TestRulesetFlushedWhileRunning(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.serve("web", "udp", 53)
		w.nft("table inet other { }\n")
		w.enforce(allowClient)
		conn := w.connects("client", "udp", "10.42.0.12:53")
		w.gw("nft", "flush", "ruleset")
		if got := strings.Replace(w.tables(), "table bridge edgepolicyd\n", "", 1); got != ourTable {
			w.t.Errorf("tables after nft flush ruleset:\n%swant ours alone", got)
		}
		for _, command := range []string{"delete table inet edgepolicyd", "flush table inet edgepolicyd", "insert rule inet edgepolicyd forward accept"} {
			if _, err := w.Gateway.Run("nft", strings.Fields(command)...); err == nil {
				w.t.Errorf("nft %s succeeded", command)
			}
		}
		w.must(w.FlushConntrack())
		w.see("still", "client web 80 yes\n other web 80 no\n web client 80 no")
		w.works("still", conn)
		w.healthy()
	})
}

// While no daemon lives anybody may flush; the next one makes everything again,
// and believes no mark that an earlier table left.
func TestRulesetFlushedWhileDead(t *testing.T) {
	both(t, "", func(t *testing.T, w *world) {
		w.pods(web, client, other)
		w.serve("web", "udp", 53)
		w.must(w.Write("policies.yaml", allowClient))
		w.must(w.Start())
		conn := w.connects("client", "udp", "10.42.0.12:53") // stamped with the first epoch there is
		w.must(w.Kill())
		w.gw("nft", "flush", "ruleset")
		if got := w.tables(); got != "" {
			w.t.Fatalf("tables: %s", got)
		}
		w.see("nothing is enforced", "other web 80 yes")
		w.must(w.Write("policies.yaml", allowOther))
		w.must(w.Start())
		w.cut("stamped by the earlier table", conn)
		w.see("made again", "client web 80 no\n other web 80 yes\n web other 80 no")
		w.healthy()
	})
}

// flush has a running daemon take its table away and stop; a reload, SIGHUP or
// restart ends that, nothing else does.
func TestFlushAndReload(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.enforce(denyWeb)
		again := map[string]func(){
			"reload": func() { w.must(w.Reload()) },
			"SIGHUP": func() {
				w.must(syscall.Kill(w.PID(), syscall.SIGHUP))
				w.eventually("enforced after SIGHUP", w.closed)
			},
			"restart": func() { w.must(w.Stop()); w.must(w.Start()) },
		}
		for name, enforceAgain := range again {
			w.run(name, func() {
				out, errs, code, err := w.Run("flush")
				if w.must(err); code != 0 || w.tables() != "" {
					w.t.Errorf("flush: exit code %d, %s%s; tables %q", code, out, errs, w.tables())
				}
				w.see("flushed", "client web 80 yes\n web client 80 yes")
				s, code := w.status()
				if code != 1 || s.Health != status.Failed || s.TablePresent || len(s.Reasons) == 0 || !strings.Contains(s.Reasons[0], "flushed by uid 0") {
					w.t.Errorf("status: exit code %d, %+v", code, s)
				}
				w.must(w.Write("more.yaml", policy("client", "podSelector: {matchLabels: {app: client}}")))
				w.eventually("the new file is read", func() bool { s, _ := w.status(); return len(s.Policies) == 2 })
				w.gw("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
				w.see("still flushed", "client web 80 yes\n web client 80 yes")
				enforceAgain()
				w.see("enforced again", "client web 80 no\n web client 80 no\n other client 80 no")
				w.healthy()
				w.gw("ip", "addr", "del", "192.0.2.1/32", "dev", "lo")
				w.must(w.Remove("more.yaml"))
				w.must(w.Reload())
			})
		}
	})
}

// listener is what systemd is to the daemon.
type listener struct {
	*net.UnixConn
	t testing.TB
}

// hear gives the next message that is not about the watchdog, unless that is what
// is waited for.
func (l listener) hear(want string) {
	l.t.Helper()
	if err := l.SetReadDeadline(time.Now().Add(patience)); err != nil {
		l.t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		n, err := l.Read(buf)
		if err != nil {
			l.t.Fatalf("waiting for %s: %v", want, err)
		}
		got := string(buf[:n])
		if strings.Contains(got, want) {
			return
		}
		if !strings.Contains(got, "WATCHDOG=1") {
			l.t.Fatalf("systemd hears %q, want %s", got, want)
		}
	}
}

// What systemd is told: ready when the first apply is in the kernel and not
// before, reloading and ready around SIGHUP, alive, stopping.
func TestNotify(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	w.must(w.Write("policies.yaml", policy("web", isolateWeb)))

	// Somebody else owns the table: nothing can be applied.
	blocker, err := daemon.New(w.Lab, t.TempDir(), "")
	w.must(err)
	w.must(blocker.Start())
	t.Cleanup(func() { blocker.Kill() })

	path := filepath.Join(t.TempDir(), "notify.sock")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	w.must(err)
	defer conn.Close()
	systemd := listener{conn, t}
	cmd := exec.Command(w.Binary, "run", "--config", w.Config)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=200000")
	var log strings.Builder
	cmd.Stderr = &log
	w.must(w.Gateway.Start(cmd))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		if t.Failed() {
			t.Logf("its log:\n%s", log.String())
		}
	}()

	systemd.hear("WATCHDOG=1")
	systemd.hear("WATCHDOG=1") // and no READY=1 so far
	w.see("it is not ready", "client web 80 yes")
	w.must(blocker.Kill())
	systemd.hear("READY=1")
	w.see("ready", "client web 80 no")
	systemd.hear("WATCHDOG=1")
	w.must(cmd.Process.Signal(syscall.SIGHUP))
	systemd.hear("RELOADING=1")
	systemd.hear("READY=1")
	w.must(cmd.Process.Signal(syscall.SIGTERM))
	systemd.hear("STOPPING=1")
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the daemon ended with %v\n%s", err, log.String())
		}
	case <-time.After(patience):
		t.Error("the daemon does not end")
	}
	w.see("stopped", "client web 80 no")
}

// The exit codes of the commands: 0 fine, 1 failed, 2 wrong usage, 3 degraded.
func TestExitCodes(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	expect := func(want int, named string, args ...string) {
		t.Helper()
		out, errs, code, err := w.Run(args...)
		w.must(err)
		if code != want || !strings.Contains(out+errs, named) {
			t.Errorf("edgepolicyd %s: exit code %d, want %d and %q:\n%s%s", strings.Join(args, " "), code, want, named, out, errs)
		}
	}
	expect(1, "not running", "status")
	expect(1, "not running", "reload")
	expect(0, "nothing to do", "flush")
	w.must(w.Start())
	expect(0, "healthy", "status")
	expect(0, "generation", "reload")
	expect(2, "wrong usage", "status", "--nonsense")
	expect(2, "wrong usage", "status", "extra")
	expect(2, "wrong usage", "status", "-o", "xml")
	expect(2, "wrong usage", "reload", "--timeout", "soon")
	expect(2, "nonsense", "nonsense")
	w.must(w.Write("bad.yaml", policy("bad", "podSelektor: {}")))
	expect(3, "podSelektor", "reload")
	expect(3, "podSelektor", "status")
	expect(3, "podSelektor", "status", "-o", "json")
	w.must(w.Remove("bad.yaml"))
	expect(0, "", "reload")
	expect(0, "table", "flush")
	expect(1, "flushed by uid 0", "status")
	expect(0, "generation", "reload")
	w.must(w.Kill())
	expect(1, "not running", "status")
	expect(0, "removed", "flush")

	w.must(os.WriteFile(w.Config, []byte("tabel: x\n"), 0o644))
	expect(1, "config.yaml:1:1", "run")
	expect(1, "config.yaml:1:1", "status")
}

// The plan of the running daemon is what the kernel has.
func TestPlanAgainstTheDaemon(t *testing.T) {
	w := lone(t)
	w.apply("policies.yaml", policy("web", isolateWeb))
	if out, errs, code, err := w.Run("plan", "--diff", w.Dir); err != nil || code != 0 || strings.Contains(out, "\n+") || strings.Contains(out, "\n-") {
		t.Errorf("plan --diff of what is in force: %v, exit code %d:\n%s%s", err, code, out, errs)
	}
	out, errs, code, err := w.Run("matrix", "--port", "80/TCP", "--port", "53/UDP", "-o", "json")
	w.must(err)
	var cells []struct {
		From, To, Protocol string
		ToIP               netip.Addr
		Port               uint16
		Allowed            bool
	}
	if err := json.Unmarshal([]byte(out), &cells); err != nil || code != 0 || len(cells) == 0 {
		t.Fatalf("matrix: %v, exit code %d:\n%s%s", err, code, out, errs)
	}
	var table strings.Builder
	for _, c := range cells {
		_, from, fromPod := strings.Cut(c.From, "default/")
		_, to, toPod := strings.Cut(c.To, "default/")
		if !fromPod || !toPod || from == to {
			continue
		}
		answer := map[bool]string{true: "yes", false: "no"}[c.Allowed]
		fmt.Fprintf(&table, "%s %s %d/%s %s\n", from, c.ToIP, c.Port, c.Protocol, answer)
	}
	if n := strings.Count(table.String(), "\n"); n != 3*2*2*2 {
		t.Errorf("the matrix has %d cells between pods, want 24:\n%s", n, out)
	}
	w.see("as the matrix says", table.String())
}

// Another program may have a table of the name that the configuration says.
func TestForeignTable(t *testing.T) {
	w := newWorld(t, topologies[0], "table: filter\n")
	w.pods(web, client)
	const foreign = "table inet filter {\n set admins { type ipv4_addr; elements = { 192.0.2.1 }; }\n chain in {\n type filter hook input priority 0; policy accept;\n ip saddr @admins accept\n}\n}"
	w.nft(foreign)
	before := w.gw("nft", "list", "table", "inet", "filter")
	w.must(w.Write("web.yaml", policy("web", isolateWeb)))
	started := make(chan error, 1)
	go func() { started <- w.Start() }()
	w.eventually("the daemon refuses it", func() bool { return strings.Contains(w.Log(), "not made by edgepolicyd") })
	if s, code := w.status(); code != 1 || s.Health != status.Failed {
		t.Errorf("status: exit code %d, %s", code, s.Health)
	}
	for _, running := range []bool{true, false} {
		if !running {
			w.must(w.Kill())
			<-started
		}
		out, errs, code, err := w.Run("flush")
		if w.must(err); code != 1 || !strings.Contains(errs, "not made by edgepolicyd") {
			t.Errorf("flush (daemon running: %v): exit code %d: %s%s", running, code, out, errs)
		}
		if after := w.gw("nft", "list", "table", "inet", "filter"); after != before {
			t.Errorf("the table was changed:\n%s", after)
		}
	}
}

// What is not enforced is not shown as if it were.
func TestMatrixOfWhatIsEnforced(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	w.must(w.Write("far.yaml", pod{name: "far", labels: "app: web"}.at("203.0.113.80")))
	w.must(w.Start())
	w.enforce(policy("web", isolateWeb))
	out, errs, code, err := w.Run("matrix", "--port", "80", "-o", "json")
	w.must(err)
	var cells []policyCell
	if err := json.Unmarshal([]byte(out), &cells); err != nil || code != 0 {
		t.Fatalf("matrix: %v, exit code %d: %s%s", err, code, out, errs)
	}
	got := map[string]bool{}
	for _, c := range cells {
		if c.From == "default/client" {
			got[c.To] = c.Allowed
		}
	}
	if got["default/web"] || !got["default/far"] {
		t.Errorf("client reaches: %v; want far, which nothing filters, and not web", got)
	}
	w.must2(w.Run("flush"))
	if out, errs, code, err = w.Run("matrix"); err != nil || code != 1 || !strings.Contains(errs, "not enforced: flushed") {
		t.Errorf("matrix after flush: %v, exit code %d: %s%s", err, code, out, errs)
	}
}

type policyCell struct {
	From, To string
	Allowed  bool
}

// must2 is must for a command whose output does not matter.
func (w *world) must2(_, errs string, code int, err error) {
	w.t.Helper()
	if w.must(err); code != 0 {
		w.t.Fatalf("exit code %d: %s", code, errs)
	}
}
