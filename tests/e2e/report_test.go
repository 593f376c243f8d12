package e2e

import (
	"encoding/json"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	tags    = regexp.MustCompile(`<[^>]*>`)
	styling = regexp.MustCompile(`(?s)<style>.*?</style>`)
	hashes  = regexp.MustCompile(`\b[0-9a-f]{64}\b`)
)

// page writes a report and gives its text, without markup.
func (w *world) page() string {
	w.t.Helper()
	file := filepath.Join(w.Folder, "report.html")
	if out, errs, code, err := w.Run("report", "--html", file); err != nil || code != 0 {
		w.t.Fatalf("report: %v, exit code %d: %s%s", err, code, out, errs)
	}
	data, err := os.ReadFile(file)
	w.must(err)
	text := styling.ReplaceAllString(string(data), "")
	text = regexp.MustCompile(`</(td|th|li|p|dd|dt)>`).ReplaceAllString(text, " $0")
	return strings.Join(strings.Fields(html.UnescapeString(tags.ReplaceAllString(text, ""))), " ")
}

// The report tells what the daemon has: its pods, policies, verdicts, findings, and
// what it saw denied.
func TestReport(t *testing.T) {
	w := newWorld(t, topologies[0], "neverIsolate: [default/other]\n")
	w.pods(web, client, other, stranger)
	w.must(w.Start())
	w.apply("policies.yaml", documents(allowClient, policy("typing", "podSelector: {matchLabels: {app: wbe}}")))
	w.apply("wrong.yaml", strings.Replace(policy("wrong", "podSelector: {}"), "podSelector", "podSelectr", 1))

	text := w.page()
	want := []string{
		"degraded rejected: ", "spec.podSelectr",
		"default/web app=web 10.42.0.12 fd42::12 isolated by default/web isolated by default/web",
		"default/client app=client 10.42.0.11 fd42::11 open open",
		"far/stranger", "not isolated neverIsolate names it",
		"pods with app = web in namespace default: default/web",
		"From pods with app = client in namespace default On every port and protocol",
		"Nothing may go out by this policy.", "none at present",
		w.Dir + "/policies.yaml:1", "directory fine",
	}
	for _, p := range want {
		if !strings.Contains(text, p) {
			t.Errorf("no %q in\n%s", p, text)
		}
	}
	sums := hashes.FindAllString(text, -1)
	if len(sums) != 2 {
		t.Errorf("%d hashes of 2 policies", len(sums))
	}
	for _, sum := range sums {
		if !strings.Contains(w.Log(), sum) {
			t.Errorf("hash %s is not in the audit log:\n%s", sum, w.Log())
		}
	}

	// The verdicts are those that matrix gives.
	out, _, _, err := w.Run("matrix", "-o", "json")
	w.must(err)
	var cells []struct {
		From, To string
		Allowed  bool
	}
	w.must(json.Unmarshal([]byte(out), &cells))
	yes, no := 0, 0
	pairs := map[[2]string]bool{}
	for _, c := range cells {
		if c.From != c.To && !pairs[[2]string{c.From, c.To}] {
			pairs[[2]string{c.From, c.To}] = true
			if c.Allowed {
				yes++
			} else {
				no++
			}
		}
	}
	_, table, _ := strings.Cut(text, "from ↓ to →")
	table, _, _ = strings.Cut(table, "A pod that policies isolate")
	found := map[string]int{}
	for _, word := range strings.Fields(table) {
		found[word]++
	}
	if found["yes"] != yes || found["no"] != no || no == 0 {
		t.Errorf("%d times yes and %d times no, want %d and %d: %s", found["yes"], found["no"], yes, no, table)
	}

	// A flow that was really denied is told.
	w.see("denied", "other.4 web.4 80 no")
	w.eventually("told as denied", func() bool {
		return strings.Contains(w.page(), "default/other 10.42.0.13 → default/web 10.42.0.12 80/TCP denied ingress of default/web default/web")
	})
}
