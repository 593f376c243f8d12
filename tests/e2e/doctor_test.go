package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/preflight"
)

// doctor asks for findings and gives those that are worse than a note, by their ids,
// and the exit code.
func (w *world) doctor() (map[string]preflight.Finding, int) {
	w.t.Helper()
	out, errs, code, err := w.Run("doctor", "-o", "json")
	w.must(err)
	var all []preflight.Finding
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		w.t.Fatalf("doctor -o json: %v: %q %q", err, out, errs)
	}
	if len(all) < len(preflight.Checks()) {
		w.t.Errorf("%d findings of %d checks", len(all), len(preflight.Checks()))
	}
	bad := map[string]preflight.Finding{}
	for _, f := range all {
		if f.Severity == preflight.Impaired || f.Severity == preflight.Warning {
			bad[f.ID] = f
		}
		if f.Unseen && !strings.HasPrefix(f.What, "there is no ") { // daemon, or table
			w.t.Errorf("could not look at %s: %s", f.ID, f.What)
		}
	}
	return bad, code
}

// impaired says that doctor exits with 3 and names a check that found something bad,
// with the command that mends it.
func (w *world) impaired(id string, texts ...string) {
	w.t.Helper()
	bad, code := w.doctor()
	f := bad[id]
	if code != 3 || f.Severity != preflight.Impaired {
		w.t.Errorf("doctor: exit code %d, %s is %q; want 3 and impaired; %+v", code, id, f.Severity, bad)
	}
	for _, text := range texts {
		if !strings.Contains(f.What+f.Command, text) {
			w.t.Errorf("%s does not say %q: %+v", id, text, f)
		}
	}
}

// notImpaired says that doctor exits with 0.
func (w *world) notImpaired() {
	w.t.Helper()
	if bad, code := w.doctor(); code != 0 {
		w.t.Errorf("doctor: exit code %d: %+v", code, bad)
	}
}

func TestDoctorFindsNothingWhereAllIsWell(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.enforce(policy("web", "podSelector: {matchLabels: {app: web}}"))
		w.healthy()
		w.notImpaired()
	})
}

// What impairs enforcement while nobody repairs it is found, and the command that is
// printed mends it.
func TestDoctorFindsWhatImpairsEnforcement(t *testing.T) {
	w := newWorld(t, lab.Topology{Kind: lab.Bridge}, "")
	w.pods(web, client)
	w.impaired("table.present", "nothing is enforced", "systemctl start edgepolicyd")
	w.must(w.Start())
	w.enforce(policy("web", "podSelector: {matchLabels: {app: web}}"))
	w.see("enforced", "client web 80 no")
	w.must(w.Stop())
	bad, code := w.doctor()
	if f := bad["daemon.running"]; code != 0 || f.Severity != preflight.Warning {
		t.Errorf("a daemon that is stopped and whose table is there: exit code %d, %+v", code, f)
	}

	w.gw("ip", "link", "set", "cni0", "type", "bridge", "nf_call_iptables", "0", "nf_call_ip6tables", "0")
	w.see("past the table", "client web 80 yes")
	w.impaired("bridge.filter", "bridge cni0", "IPv4 and IPv6")
	bad, _ = w.doctor()
	w.gw("sh", "-c", bad["bridge.filter"].Command)
	w.see("mended", "client web 80 no")
	w.notImpaired()

	w.gw("nft", "delete", "table", "inet", "edgepolicyd")
	w.see("without a table", "client web 80 yes")
	w.impaired("table.present", "there is no table inet edgepolicyd")
}

// A table that was taken from a running daemon impairs until the daemon has repaired
// it; what doctor prints for people says so too.
func TestDoctorFindsAFlushedDaemon(t *testing.T) {
	w := newWorld(t, lab.Topology{Kind: lab.Routed}, "")
	w.pods(web, client)
	w.must(w.Start())
	w.notImpaired()
	if _, errs, code, err := w.Run("flush"); err != nil || code != 0 {
		t.Fatalf("flush: %d %v %s", code, err, errs)
	}
	w.impaired("table.present", "edgepolicyd reload")
	w.impaired("daemon.health", "flushed by uid 0", "edgepolicyd reload")
	out, _, code, err := w.Run("doctor")
	w.must(err)
	if code != 3 || !strings.HasPrefix(out, "impaired  ") || !strings.Contains(out, "\n  why: Nothing is enforced without it.\n") {
		t.Errorf("doctor: exit code %d:\n%s", code, out)
	}
	w.must(w.Reload())
	w.notImpaired()
}

// Other programs' rules that could still drop what policies allow, or write over the
// connection mark, are warnings: exit code 0.
func TestDoctorNamesOtherPrograms(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.nft("table ip filter {\n chain FORWARD { type filter hook forward priority 5; policy drop; }\n chain KUBE-POD-FW-X { drop; }\n chain m { ct mark set 1; }\n}\n")
		bad, code := w.doctor()
		if code != 0 {
			t.Errorf("exit code %d: %+v", code, bad)
		}
		for id, text := range map[string]string{"others.drop": "ip filter FORWARD (hook forward, priority 5)", "others.kube-router": "KUBE-POD-FW-*", "others.mark": "chain ip filter m"} {
			if f := bad[id]; f.Severity != preflight.Warning || !strings.Contains(f.What, text) {
				t.Errorf("%s: %+v", id, f)
			}
		}
	})
}

// A kubelet that is not there is named, with the command that asks it.
func TestDoctorAsksTheSources(t *testing.T) {
	w := newWorld(t, lab.Topology{Kind: lab.Routed}, "")
	text, err := os.ReadFile(w.Config)
	w.must(err)
	text = []byte(strings.Replace(string(text), "sources:\n", "sources:\n  kubelet: {url: \"http://127.0.0.1:1\"}\n", 1))
	w.must(os.WriteFile(w.Config, text, 0o644))
	bad, _ := w.doctor()
	f := bad["sources.answer"]
	if f.Severity != preflight.Warning || f.What != "source kubelet: its server is out of reach" || !strings.HasPrefix(f.Command, "curl -kSs http://127.0.0.1:1/healthz") {
		t.Errorf("sources.answer: %+v", f)
	}
}
