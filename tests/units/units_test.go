package units

import (
	"strings"
	"testing"
)

// TestUnits: systemd understands every line of the units, and what they may do is
// little.
func TestUnits(t *testing.T) {
	g := newGateway(t)
	for _, unit := range []string{"edgepolicyd.service", "edgepolicyd-restore.service"} {
		// Its warnings are no errors to it.
		if out, err := g.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify %s: %v\n%s", unit, err, out)
		}
		out, err := g.Command("systemd-analyze", "security", "--no-pager", "--threshold=22", unit).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze security %s: more than 2.2: %v\n%s", unit, err, out)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Log(lines[len(lines)-1])
	}
}

// TestReady: systemd takes the daemon for started when the rules are in the kernel,
// and not before.
func TestReady(t *testing.T) {
	g := newGateway(t)
	g.Exec("nft", "add table inet edgepolicyd; add chain inet edgepolicyd other") // another program's: nothing of it is touched
	g.Exec("systemctl", "start", "--no-block", "edgepolicyd")
	g.eventually("the daemon tells that it can't enforce", func() bool {
		return len(g.Journal("--unit=edgepolicyd", "PRIORITY=3")) > 0
	})
	if state := g.show("edgepolicyd", "ActiveState"); state != "activating" {
		t.Errorf("without rules in the kernel the unit is %s", state)
	}
	g.Exec("nft", "delete", "table", "inet", "edgepolicyd")
	g.Exec("systemctl", "start", "edgepolicyd") // waits for the job
	if !strings.Contains(g.table(), "chain forward") {
		t.Errorf("the unit is started, and the table is:\n%s", g.table())
	}
	if text := g.show("edgepolicyd", "StatusText"); !strings.Contains(text, "policies") {
		t.Errorf("its status is %q", text)
	}
}

const more = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: more}
spec: {podSelector: {matchLabels: {app: client}}, ingress: [{ports: [{port: 4711}]}]}
`

// TestReload: a file that is dropped in is in the kernel and in the journal, at once
// after a reload, which is done though something is rejected.
func TestReload(t *testing.T) {
	g := newGateway(t)
	g.plug()
	g.Exec("systemctl", "start", "edgepolicyd")
	g.Write("/etc/edgepolicy.d/more.yaml", []byte(more), 0o644)
	g.eventually("the new policy is in the journal", func() bool {
		entries := g.Journal("--unit=edgepolicyd", "EDGEPOLICY_EVENT=policy-added", "EDGEPOLICY_POLICY=default/more")
		return len(entries) == 1 && entries[0]["EDGEPOLICY_HASH"] != ""
	})
	if !strings.Contains(g.table(), "4711") {
		t.Errorf("the new policy is in the journal and not in the kernel:\n%s", g.table())
	}

	g.Write("/etc/edgepolicy.d/more.yaml", []byte(strings.Replace(more, "4711", "4712", 1)), 0o644)
	g.Write("/etc/edgepolicy.d/broken.yaml", []byte("kind: NetworkPolicy\nspec: ["), 0o644)
	pid := g.show("edgepolicyd", "MainPID")
	g.Exec("systemctl", "reload", "edgepolicyd")
	if table := g.table(); strings.Contains(table, "4711") || !strings.Contains(table, "4712") {
		t.Errorf("after the reload the kernel has:\n%s", table)
	}
	if state := g.show("edgepolicyd", "ActiveState"); state != "active" || g.show("edgepolicyd", "MainPID") != pid {
		t.Errorf("after the reload the unit is %s", state)
	}
}
