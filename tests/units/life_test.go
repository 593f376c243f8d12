package units

import (
	"strings"
	"testing"
)

// TestEnds: however the daemon ends, the rules stay in force; and systemd starts it
// again if nobody has stopped it.
func TestEnds(t *testing.T) {
	g := newGateway(t)
	g.plug()
	g.Write("/etc/systemd/system/edgepolicyd.service.d/watchdog.conf", []byte("[Service]\nWatchdogSec=2\n"), 0o644)
	g.Exec("systemctl", "daemon-reload")
	g.Exec("systemctl", "start", "edgepolicyd")

	// What is denied goes on all the time; the pod counts what comes.
	g.Exec("ip", "netns", "exec", "web", "nft", "add table inet count; add chain inet count input { type filter hook input priority 0; }; add rule inet count input udp dport 9 counter")
	g.Exec("systemd-run", "--quiet", "--unit=stream", "ip", "netns", "exec", "client", "bash", "-c", "while echo >/dev/udp/"+web+"/9; do sleep 0.01; done")
	// Go's runtime tells where it was and exits when it gets SIGSEGV.
	for _, end := range []struct{ signal, result string }{{"KILL", "signal"}, {"SEGV", "exit-code"}, {"STOP", "watchdog"}} {
		before := g.show("edgepolicyd", "MainPID")
		g.Exec("systemctl", "kill", "--signal="+end.signal, "edgepolicyd")
		g.eventually("started again after "+end.signal, func() bool {
			pid := g.show("edgepolicyd", "MainPID")
			return g.show("edgepolicyd", "ActiveState") == "active" && pid != before && pid != "0"
		})
		failed := g.Journal("UNIT=edgepolicyd.service", "MESSAGE_ID=d9b373ed55a64feb8242e02dbe79a49c") // "Failed with result"
		if len(failed) == 0 {
			t.Fatalf("systemd tells of no end after %s", end.signal)
		}
		if got := failed[len(failed)-1]["UNIT_RESULT"]; got != end.result {
			t.Errorf("after %s the unit's result is %s, want %s", end.signal, got, end.result)
		}
	}
	if n := g.show("edgepolicyd", "NRestarts"); n != "3" {
		t.Errorf("started again %s times", n)
	}
	g.Exec("systemctl", "stop", "edgepolicyd")
	if state := g.show("edgepolicyd", "ActiveState"); state != "inactive" {
		t.Errorf("after stop the unit is %s", state)
	}
	g.enforced("stopped")
	g.Exec("systemctl", "start", "edgepolicyd")
	if state := g.show("stream", "ActiveState"); state != "active" {
		t.Errorf("the stream that was to be denied is %s", state)
	}
	if counted := g.Exec("ip", "netns", "exec", "web", "nft", "list", "table", "inet", "count"); !strings.Contains(counted, "counter packets 0 ") {
		t.Errorf("what is denied came through:\n%s", counted)
	}
}
