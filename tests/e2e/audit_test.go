package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// event is a line of the audit log: its fields by their keys.
type event map[string]string

var attribute = regexp.MustCompile(`([a-z_]+)=("(?:[^"\\]|\\.)*"|\S*)`)

// events reads the events of a name from the daemon's log, as an auditor would.
func (w *world) events(names ...string) []event {
	var list []event
	for _, l := range strings.Split(w.Log(), "\n") {
		e := event{}
		for _, m := range attribute.FindAllStringSubmatch(l, -1) {
			e[m[1]] = strings.Trim(m[2], `"`)
		}
		if slices.Contains(names, e["event"]) {
			list = append(list, e)
		}
	}
	return list
}

// hashOf is that of a policy's content.
func hashOf(t *testing.T, yaml string) string {
	t.Helper()
	f := manifest.Decode("directory", "x.yaml", []byte(yaml))
	if len(f.Documents) != 1 || f.Documents[0].Policy == nil {
		t.Fatalf("%v", f.Diagnostics)
	}
	sum := sha256.Sum256(f.Documents[0].Policy.JSON)
	return hex.EncodeToString(sum[:])
}

// inForce works out from the log alone which policies are in force, and with which
// content: the last inventory, and what came after it.
func (w *world) inForce() map[string]string {
	w.t.Helper()
	all := w.events("inventory", "inventory-complete", "policy-added", "policy-changed", "policy-removed")
	policies, last := map[string]string{}, ""
	for _, e := range all {
		if e["event"] == "inventory-complete" {
			last = e["inventory"]
		}
	}
	var lines []string
	begun := false
	for _, e := range all {
		switch e["event"] {
		case "inventory":
			if e["inventory"] == last {
				begun = true
				policies[e["policy"]] = e["hash"] + " " + e["enforcement"]
				lines = append(lines, fmt.Sprintf("%s %s %s\n", e["policy"], e["hash"], e["enforcement"]))
			}
		case "inventory-complete":
			if e["inventory"] != last {
				continue
			}
			begun = true
			slices.Sort(lines)
			sum := sha256.Sum256([]byte(strings.Join(lines, "")))
			if e["count"] != fmt.Sprint(len(lines)) || e["hash"] != hex.EncodeToString(sum[:]) {
				w.t.Errorf("the inventory %s is not what its last line says: %v, %d lines", last, e, len(lines))
			}
		case "policy-removed":
			if begun {
				delete(policies, e["policy"])
			}
		default:
			if begun {
				policies[e["policy"]] = e["hash"] + " " + e["enforcement"]
			}
		}
	}
	return policies
}

// From the log alone one can tell at any moment which policies are in force: over
// changes, a restart, and what changed while nothing ran.
func TestAuditorsView(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	a, b, other := policy("a", "podSelector: {}"), policy("b", onlyClient), policy("b", "podSelector: {matchLabels: {app: other}}")
	c := tried("c", "podSelector: {}")
	w.must(w.Write("a.yaml", a))
	w.must(w.Start())
	check := func(why string, want map[string]string) {
		t.Helper()
		w.eventually(why, func() bool { return fmt.Sprint(w.inForce()) == fmt.Sprint(want) })
	}
	enforced := func(yaml string) string { return hashOf(t, yaml) + " enforce" }
	check("the inventory at the start", map[string]string{"default/a": enforced(a)})
	w.apply("b.yaml", b)
	w.apply("c.yaml", c)
	check("added", map[string]string{"default/a": enforced(a), "default/b": enforced(b), "default/c": hashOf(t, c) + " audit"})
	w.apply("b.yaml", other+"# with a comment\n")
	w.must(w.Remove("a.yaml"))
	w.must(w.Reload())
	check("changed and removed", map[string]string{"default/b": enforced(other), "default/c": hashOf(t, c) + " audit"})
	changed := w.events("policy-changed")
	if len(changed) != 1 || changed[0]["source"] != "directory" || changed[0]["file"] != filepath.Join(w.Dir, "b.yaml")+":1" {
		t.Errorf("changes: %v", changed)
	}
	applied := w.events("generation-applied")
	if last := applied[len(applied)-1]; last["changes"] != "policy default/a removed, policy default/b changed" && last["changes"] != "policy default/a removed" {
		t.Errorf("the last generation: %v", last)
	}
	w.must(w.Stop())
	w.must(w.Remove("c.yaml"))
	w.must(w.Start())
	check("another inventory after a restart", map[string]string{"default/b": enforced(other)})
	w.eventually("both starts are told", func() bool { return len(w.events("start")) == 2 })
}

// What goes wrong, and that it is over, are events with their fields.
func TestAuditEvents(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	w.must(w.Start())
	one := func(name string, want event) {
		t.Helper()
		w.eventually(name, func() bool { return len(w.events(name)) > 0 })
		got := w.events(name)
		if len(got) != 1 {
			t.Errorf("%d events %s", len(got), name)
		}
		for k, v := range want {
			if got[0][k] != v {
				t.Errorf("%s: %s is %q, want %q", name, k, got[0][k], v)
			}
		}
	}
	w.must(w.Write("bad.yaml", policy("bad", "podSelectr: {}")))
	w.Run("reload")
	one("document-rejected", event{"object": "NetworkPolicy default/bad", "kept": "nothing", "file": filepath.Join(w.Dir, "bad.yaml") + ":4:8"})
	w.Run("reload") // it is not told again
	w.must(w.Remove("bad.yaml"))
	w.must(w.Reload())
	one("document-rejected", event{})
	one("rejection-ended", event{"object": "NetworkPolicy default/bad"})
	one("healthy", event{})

	w.must(os.Rename(w.Dir, w.Dir+".away"))
	w.eventually("the source is lost", func() bool { _, _, code, _ := w.Run("reload"); return code == 3 })
	one("source-lost", event{"source": "directory"})
	w.must(os.Rename(w.Dir+".away", w.Dir))
	w.must(w.Reload())
	one("source-found", event{"source": "directory"})

	if _, errOut, code, err := w.Run("flush"); err != nil || code != 0 {
		t.Fatalf("flush: %d %v %s", code, err, errOut)
	}
	one("flush", event{"uid": "0"})
	w.must(w.Stop())
	one("stop", event{"version": w.events("start")[0]["version"]})
}

// Where the kernel gives tables no owner others can change ours: that is put right,
// and the journal says who it was.
func TestAuditDrift(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	w.nft("table inet edgepolicyd { }") // made by another: the daemon can't own it
	w.must(w.Write("policies.yaml", denyWeb))
	w.must(w.Start())
	w.see("enforced", "client web 80 no\n")
	changes := []string{"flush chain inet edgepolicyd in-default/web", "flush set inet edgepolicyd pods_v4", "flush chain inet edgepolicyd forward", "flush ruleset"} // after the last it is made anew, and owned
	begin := time.Now()
	for i, change := range changes {
		w.nft(change)
		w.eventually("it is put right after "+change, func() bool { return len(w.events("table-repaired")) == i+1 })
		w.see("enforced again after "+change, "client web 80 no\n")
	}
	if took := time.Since(begin); took > 10*time.Second { // looking every five seconds it would be 20
		t.Errorf("%d changes were put right in %s", len(changes), took)
	}
	for _, drift := range w.events("table-drift") {
		if drift["program"] != "nft" || drift["pid"] == "" || drift["pid"] == fmt.Sprint(w.PID()) {
			t.Errorf("who did it: %v", drift)
		}
	}
	if n := w.metric("table_repairs_total "); n != len(changes) {
		t.Errorf("%d repairs are counted", n)
	}
	w.nft("table inet other { chain c { type filter hook forward priority 0; }; }")
	w.nft("delete table inet other")
	w.see("others' tables are no drift", "client web 80 no\n")
}

// A document that stays rejected in other words, or that moves in its file, has not
// ended to be; nor is a source found that is lost in another way.
func TestAuditSameMatter(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	w.must(w.Start())
	bad := policy("bad", "podSelectr: {}, policyTypes: [Ingres]")
	for _, text := range []string{bad, strings.Replace(bad, "Ingres]", "Ingress]", 1), "# moved\n" + strings.Replace(bad, "Ingres]", "Ingress]", 1)} {
		w.must(w.Write("bad.yaml", text))
		w.Run("reload")
	}
	w.must(w.Remove("bad.yaml"))
	w.must(w.Reload())
	w.eventually("the end is told", func() bool { return len(w.events("rejection-ended")) > 0 })
	var names []string
	for _, e := range w.events("document-rejected", "rejection-ended") {
		names = append(names, e["event"])
	}
	if got := strings.Join(slices.Compact(names), " "); got != "document-rejected rejection-ended" {
		t.Errorf("told: %s", got)
	}

	w.must(os.Rename(w.Dir, w.Dir+".away"))
	w.eventually("lost", func() bool { return len(w.events("source-lost")) == 1 })
	w.must(os.WriteFile(w.Dir, nil, 0o644))
	w.eventually("lost in another way", func() bool { w.Run("reload"); return len(w.events("source-lost")) == 2 })
	if n := len(w.events("source-found")); n != 0 {
		t.Errorf("%d times found", n)
	}
	w.must(os.Remove(w.Dir))
	w.must(os.Rename(w.Dir+".away", w.Dir))
	w.must(w.Reload())
	w.eventually("found", func() bool { return len(w.events("source-found")) == 1 })
}

// Without a daemon, too, it is told who took the table away.
func TestAuditFlushWithoutDaemon(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	w.must(w.Write("policies.yaml", denyWeb))
	w.must(w.Start())
	w.must(w.Kill())
	_, errOut, code, err := w.Run("flush")
	if err != nil || code != 0 || !strings.Contains(errOut, "event=flush uid=0") {
		t.Errorf("flush: %d %v %q", code, err, errOut)
	}
	w.must(w.Start())
}

// What comes from a file can't write to the terminal of who asks for the status.
func TestAuditEscapes(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.must(w.Start())
	w.must(w.Write("bad.yaml", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: \"x\\e[31mred\\nfake: line\"}\nspec: {}\n"))
	for _, command := range []string{"reload", "status"} {
		out, errOut, _, err := w.Run(command)
		w.must(err)
		if strings.ContainsAny(out+errOut+w.Log(), "\x1b") || !strings.Contains(out, `\x1b[31mred\nfake: line`) {
			t.Errorf("%s: %q %q", command, out, errOut)
		}
	}
}

// A program that changes the table again and again is named as what it is: a reason
// to be degraded.
func TestAuditFight(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	w.nft("table inet edgepolicyd { }") // the daemon can't own it
	w.must(w.Write("policies.yaml", denyWeb))
	w.must(w.Start())
	for i := range 10 {
		w.nft("flush chain inet edgepolicyd in-default/web")
		w.eventually("it is put right", func() bool { return len(w.events("table-repaired")) == i+1 })
	}
	w.degraded("another program changes table edgepolicyd again and again")
	w.see("enforced all the same", "client web 80 no\n")
}
