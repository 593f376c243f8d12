package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/tests/stub"
)

// plan --diff compares what files would give in the place of the directory: pods and
// policies of other sources stay.
func TestPlanDiffAmongOtherSources(t *testing.T) {
	for _, plugin := range []string{"ptp", "bridge"} {
		t.Run(plugin, func(t *testing.T) {
			w := newCNIWorld(t, plugin, kubeletSource, "")
			k := w.startKubelet()
			k.SetPods(stub.Pod{Name: "web", UID: "uid-of-default/web", Labels: map[string]string{"app": "web"}}, stub.Pod{Name: "db", UID: "uid-of-default/db", Labels: map[string]string{"app": "db"}})
			w.must(w.Write("web.yaml", policy("web", isolateWebBothWays)))
			w.must(w.Start())
			w.add("default/web", "default/db")
			w.waitFor("both are known", func() bool { s, _ := w.status(); return s.Pods == 2 })
			plan := func(dir string) string {
				out, errs, code, err := w.Run("plan", "--diff", dir)
				if err != nil || code != 0 {
					t.Fatalf("plan --diff: %v, exit code %d: %s%s", err, code, out, errs)
				}
				return out
			}
			// Which interfaces are whose settles a moment after the pods are known.
			w.waitFor("the directory itself does not differ", func() bool { return plan(w.Dir) == "no difference\n" })
			other := filepath.Join(w.Folder, "other")
			w.must(os.Mkdir(other, 0o755))
			w.must(os.WriteFile(filepath.Join(other, "db.yaml"), []byte(policy("db", "podSelector: {matchLabels: {app: db}}\n")), 0o644))
			out := plan(other)
			for _, line := range []string{"+ chain in-default/db\n", "- chain in-default/web\n"} {
				if !strings.Contains(out, line) {
					t.Errorf("no line %q in\n%s", line, out)
				}
			}
			if strings.Contains(out, "pods_v4") || strings.Contains(out, " hold") || strings.Contains(out, "src_") {
				t.Errorf("the pods themselves differ:\n%s", out)
			}
		})
	}
}

// planned is what plan --diff -o json says of connections.
type planned struct {
	Plan string
	Cut  struct {
		Count       int
		Unknown     string
		Connections []struct {
			From, To struct {
				Address, Pod string
				Port         uint16
				Gateway      bool
			}
			Protocol, Reason string
			Policies         []string
		}
	}
}

// plan asks what the files of a folder would change.
func (w *world) plan(dir string, args ...string) (p planned) {
	w.t.Helper()
	out, errs, code, err := w.Run(append([]string{"plan", "--diff", "-o", "json", dir}, args...)...)
	if err != nil || code != 0 {
		w.t.Fatalf("plan --diff: %v, exit code %d: %s%s", err, code, out, errs)
	}
	w.must(json.Unmarshal([]byte(out), &p))
	return p
}

// names are the connections as the test names them: by their first end, as two to the
// same place differ in nothing else.
func (p planned) names() map[string]bool {
	all := map[string]bool{}
	for _, c := range p.Cut.Connections {
		all[strings.ToLower(c.Protocol)+" "+net.JoinHostPort(c.From.Address, fmt.Sprint(c.From.Port))] = true
	}
	return all
}

// copyDir makes a folder with what the daemon's has, to be changed.
func (w *world) copyDir(name string) string {
	w.t.Helper()
	dir := filepath.Join(w.Folder, name)
	w.must(os.CopyFS(dir, os.DirFS(w.Dir)))
	return dir
}

// plan --diff names the connections that a change would cut. When it is made, exactly
// those are cut.
func TestPlanNamesWhatIsCut(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.nft("table ip nat {\nchain d {\ntype nat hook prerouting priority dstnat\nip daddr 192.168.254.1 tcp dport 8080 dnat to 10.42.0.12:7\n}\n" +
			"chain s {\ntype nat hook postrouting priority srcnat\noifname uplink masquerade\n}\n}\n")
		w.enforce(policy("web", "podSelector: {matchLabels: {app: web}}, ingress: [{}]"))
		for _, network := range []string{"tcp", "udp"} {
			w.serve("web", network, 7)
			w.serve("outside", network, 7)
			w.serve("gateway", network, 7)
		}
		var all []net.Conn
		dial := func(from, network, to string) {
			t.Helper()
			c, err := w.dial(from, network, to, patience)
			w.must(err)
			all = append(all, c)
		}
		for _, network := range []string{"tcp", "udp"} {
			for _, from := range []string{"client", "other", "far/stranger", "outside", "gateway"} {
				dial(from, network, "10.42.0.12:7")
				dial(from, network, "[fd42::12]:7")
			}
			dial("web", network, "192.168.254.2:7") // masqueraded
			dial("web", network, "[fd00:254::2]:7")
			dial("other", network, "192.168.254.1:7") // the gateway
		}
		dial("outside", "tcp", "192.168.254.1:8080") // sent to web

		dir := w.copyDir("planned")
		if p := w.plan(dir); p.Plan != "no difference\n" || p.Cut.Count != 0 || p.Cut.Unknown != "" {
			t.Errorf("the same: %+v", p)
		}
		docs := documents(
			policy("web", isolateWebBothWays+", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}, {from: [{ipBlock: {cidr: 192.168.254.0/24}}], ports: [{port: 7}]}]"),
			policy("other", "podSelector: {matchLabels: {app: other}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.168.254.1/32}}], ports: [{port: 7}]}]"))
		w.must(os.WriteFile(filepath.Join(dir, "policies.yaml"), []byte(docs), 0o644))
		p := w.plan(dir)
		out, _, _, err := w.Run("plan", "--diff", dir)
		w.must(err)

		w.enforce(docs)
		cut := p.names()
		if p.Cut.Unknown != "" || p.Cut.Count != len(cut) || len(cut) < 10 || len(cut) > len(all)-10 {
			t.Errorf("planned: %s, %d of %d flows: that proves little", p.Cut.Unknown, p.Cut.Count, len(all))
		}
		for _, c := range all {
			name := c.LocalAddr().Network() + " " + c.LocalAddr().String()
			if cut[name] {
				w.cut("planned to be cut", c)
			} else {
				w.works("not planned to be cut", c)
			}
			delete(cut, name)
		}
		if len(cut) > 0 {
			t.Errorf("flows that are not ours would be cut: %v", cut)
		}
		for _, line := range []string{
			"(default/other) -> 10.42.0.12:7/TCP (default/web): ingress: not allowed by default/web; egress: not allowed by default/other\n",
			"(far/stranger) -> [fd42::12]:7/UDP (default/web): ingress: not allowed by default/web\n",
			"(default/web) -> 192.168.254.2:7/TCP: egress: not allowed by default/web\n",
			"(default/other) -> 192.168.254.1:7/UDP (gateway): egress: not allowed by default/other\n",
			fmt.Sprintf("\n%d established connections would be cut:\n", p.Cut.Count),
		} {
			if !strings.Contains(out, line) {
				t.Errorf("no %q in\n%s", line, out)
			}
		}
	})
}

// Only of one pod, of whichever end; many are counted; without the right to look
// nothing is told of connections but why.
func TestPlanOfConnectionsIsBounded(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client, other)
	w.must(w.Start())
	w.enforce(policy("web", "podSelector: {matchLabels: {app: web}}, ingress: [{}]"))
	w.serve("web", "udp", 7)
	for range 120 {
		_, err := w.dial("client", "udp", "10.42.0.12:7", patience)
		w.must(err)
	}
	_, err := w.dial("other", "udp", "10.42.0.12:7", patience)
	w.must(err)
	dir := w.copyDir("planned")
	w.must(os.WriteFile(filepath.Join(dir, "policies.yaml"), []byte(denyWeb), 0o644))
	if p := w.plan(dir); p.Cut.Count != 121 || len(p.Cut.Connections) != 100 {
		t.Errorf("%d, of which %d are named; want 121 and 100", p.Cut.Count, len(p.Cut.Connections))
	}
	if p := w.plan(dir, "--pod", "default/other"); p.Cut.Count != 1 || p.Cut.Connections[0].From.Pod != "default/other" {
		t.Errorf("of one pod: %+v", p.Cut)
	}
	if out, _, _, err := w.Run("plan", "--diff", dir); err != nil || !strings.Contains(out, "\n121 established connections would be cut:\n") || !strings.HasSuffix(out, "\n  and 21 more\n") {
		t.Errorf("%v\n%s", err, out)
	}
	out, err := w.Gateway.Run("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", w.Binary, "plan", "--diff", "--config", w.Config, dir)
	if err != nil || !strings.Contains(out, "- ") || !strings.Contains(out, "\nwhich established connections would be cut can't be told: list the connections: ") || !strings.HasSuffix(out, "ask as root (sudo)\n") {
		t.Errorf("without CAP_NET_ADMIN: %v\n%s", err, out)
	}
}
