package e2e

import (
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
			if out := plan(w.Dir); out != "no difference\n" {
				t.Errorf("the directory itself differs:\n%s", out)
			}
			other := filepath.Join(w.Folder, "other")
			w.must(os.Mkdir(other, 0o755))
			w.must(os.WriteFile(filepath.Join(other, "db.yaml"), []byte(policy("db", "podSelector: {matchLabels: {app: db}}\n")), 0o644))
			out := plan(other)
			for _, line := range []string{"+ chain in-default/db\n", "- chain in-default/web\n"} {
				if !strings.Contains(out, line) {
					t.Errorf("no line %q in\n%s", line, out)
				}
			}
			if strings.Contains(out, "pods_v4") || strings.Contains(out, "hold") || strings.Contains(out, "src_") {
				t.Errorf("the pods themselves differ:\n%s", out)
			}
		})
	}
}
