package preflight

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/config"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// tripped are the checks that a test has made find something.
var tripped = map[string]bool{}

// TestMain also sees to it that every check has been made to find something, if all
// tests were run.
func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if run := flag.Lookup("test.run").Value.String(); code == 0 && run == "" && flag.Lookup("test.list").Value.String() == "" {
		for _, c := range Checks() {
			if !tripped[c.ID] && !strings.HasPrefix(c.ID, "kernel.") {
				fmt.Printf("no test makes check %s find anything\n", c.ID)
				code = 1
			}
		}
	}
	os.Exit(code)
}

// fakeDaemon answers as it is told.
type fakeDaemon struct {
	status status.Status
	err    error
	table  func() string
}

func (d fakeDaemon) Status(context.Context) (status.Status, error) { return d.status, d.err }
func (d fakeDaemon) Table(context.Context, string) (string, error) { return d.table(), d.err }

// tree makes a machine of files; their names are paths from its root.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// host is a machine of files without a daemon.
func host(t *testing.T, files map[string]string) *Host {
	t.Helper()
	return &Host{
		Root: tree(t, files), Config: config.Default(), ConfigPath: "/etc/edgepolicyd/config.yaml",
		Daemon: fakeDaemon{err: status.ErrNotRunning}, Now: time.Now,
	}
}

// check makes one check.
func check(t *testing.T, h *Host, id string) []Finding {
	t.Helper()
	for _, c := range Checks() {
		if c.ID == id {
			return c.run(t.Context(), h)
		}
	}
	t.Fatalf("there is no check %s", id)
	return nil
}

// finds says that a check finds one thing, of this severity, and that what and command
// hold these texts.
func finds(t *testing.T, h *Host, id string, severity Severity, what, command string) {
	t.Helper()
	found := check(t, h, id)
	if len(found) != 1 || found[0].Severity != severity || found[0].Unseen || !strings.Contains(found[0].What, what) || !strings.Contains(found[0].Command, command) {
		t.Errorf("%s: %+v, want one %s with %q and %q", id, found, severity, what, command)
	}
	for _, f := range found {
		if f.Severity != OK && f.Why == "" {
			t.Errorf("%s does not say why", id)
		}
	}
	if !t.Failed() && severity != OK {
		tripped[id] = true
	}
}

// fine says that a check finds nothing.
func fine(t *testing.T, h *Host, id string) {
	t.Helper()
	finds(t, h, id, OK, "", "")
}

// unseen says that a check can't be made, and why.
func unseen(t *testing.T, h *Host, id, why string) {
	t.Helper()
	if found := check(t, h, id); len(found) != 1 || !found[0].Unseen || found[0].Severity != Note || !strings.Contains(found[0].What, why) {
		t.Errorf("%s: %+v, want that it can't be looked at: %s", id, found, why)
	}
}
