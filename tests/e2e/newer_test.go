package e2e

import (
	"regexp"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/status"
)

// After a step back to an older program the tables of the newer stay as they are, in
// force, and it says what to do.
func TestNewerTable(t *testing.T) {
	w := newWorld(t, topologies[1], "")
	w.pods(web, client)
	w.must(w.Write("web.yaml", policy("web", isolateWeb)))
	w.must(w.Start())
	w.must(w.Kill())
	w.nft("add counter inet edgepolicyd format-9; delete counter inet edgepolicyd format-1")
	tables := func() string {
		text := w.gw("nft", "list", "table", "inet", "edgepolicyd") + w.gw("nft", "list", "table", "bridge", "edgepolicyd")
		return regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(text, "")
	}
	before := tables()
	w.must(w.Write("web.yaml", policy("web", "podSelector: {}, ingress: [{}]")))
	started := make(chan error, 1)
	go func() { started <- w.Start() }()
	w.eventually("the daemon refuses it", func() bool {
		return strings.Contains(w.Log(), "was made by a later version of edgepolicyd (format 9, this one knows 1)")
	})
	if s, code := w.status(); code != 1 || s.Health != status.Failed {
		t.Errorf("status: exit code %d, %s", code, s.Health)
	}
	w.see("what is in force stays", "client web 80 no")
	w.must(w.Kill())
	<-started
	if after := tables(); after != before {
		t.Errorf("the tables were changed:\n%s\nbefore:\n%s", after, before)
	}
	if _, errs, code, err := w.Run("flush"); err != nil || code != 0 {
		t.Errorf("flush: %d %v %s", code, err, errs)
	}
	w.must(w.Start())
	w.see("after a flush it enforces", "client web 80 yes")
}
