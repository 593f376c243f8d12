// Package journal holds the audit log against a real journald.
package journal

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/tests/journal/container"
)

// TestReadBack: every event of a unit comes back from the journal, field by field,
// and journalctl -x explains it.
func TestReadBack(t *testing.T) {
	emit := filepath.Join(t.TempDir(), "emit")
	cmd := exec.Command("go", "build", "-o", emit, "./emit")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build emit: %v\n%s", err, out)
	}
	c := container.Start(t)
	c.Copy(emit, "/usr/local/bin/emit")
	c.Copy("../../systemd/edgepolicyd.catalog", "/usr/lib/systemd/catalog/edgepolicyd.catalog")
	c.Exec("journalctl", "--update-catalog")
	c.Exec("systemd-run", "--quiet", "--wait", "--unit=emit", "/usr/local/bin/emit")

	examples := map[string]string{}
	for _, f := range audit.Fields {
		examples[f.Key] = f.Example
	}
	for _, e := range audit.Events {
		t.Run(e.Name, func(t *testing.T) {
			entries := c.Journal("--unit=emit", "EDGEPOLICY_EVENT="+e.Name)
			if len(entries) != 1 {
				t.Fatalf("%d entries", len(entries))
			}
			want := map[string]string{
				"MESSAGE": "message of " + e.Name, "MESSAGE_ID": e.ID, "EDGEPOLICY_EVENT": e.Name,
				"PRIORITY":          map[slog.Level]string{audit.LevelNotice: "5", slog.LevelWarn: "4", slog.LevelError: "3"}[e.Level],
				"SYSLOG_IDENTIFIER": "edgepolicyd", "_SYSTEMD_UNIT": "emit.service", "_TRANSPORT": "journal",
			}
			for _, key := range e.Fields {
				want[audit.Field{Key: key}.Name()] = examples[key]
			}
			for name, value := range want {
				if got := entries[0][name]; got != value {
					t.Errorf("%s is %q, want %q", name, got, value)
				}
			}
			for name := range entries[0] {
				if _, known := want[name]; !known && strings.HasPrefix(name, "EDGEPOLICY_") {
					t.Errorf("there is %s too", name)
				}
			}
			explained(t, c, e, entries[0])
		})
	}
	plain := c.Journal("--unit=emit", "PRIORITY=6", "EDGEPOLICY_KEY=a b")
	if len(plain) != 1 || plain[0]["MESSAGE"] != `plain key="a b" lines="one\ntwo" bytes="\x1b[2J\xff"` ||
		plain[0]["EDGEPOLICY_LINES"] != "one\ntwo" || plain[0]["EDGEPOLICY_BYTES"] != `\x1b[2J\xff` || plain[0]["MESSAGE_ID"] != "" {
		t.Errorf("the line that is no event came back as %q", plain)
	}
	large := 0
	for _, e := range c.Journal("--unit=emit") {
		if len(e["EDGEPOLICY_VALUE"]) == 1_000_000 {
			large++
		}
	}
	if large != 1 {
		t.Errorf("the large entry is there %d times", large)
	}
}

// explained checks that journalctl -x shows the catalog's text of an entry, with the
// entry's values in it.
func explained(t *testing.T, c *container.Container, e *audit.Event, entry container.Entry) {
	t.Helper()
	want := regexp.MustCompile(`@[A-Z_]+@`).ReplaceAllStringFunc(e.Subject+"\n"+e.Text, func(name string) string {
		return entry[strings.Trim(name, "@")]
	})
	got := c.Exec("journalctl", "--no-pager", "--catalog", "--unit=emit", "EDGEPOLICY_EVENT="+e.Name)
	for _, l := range strings.Split(want, "\n") {
		if !strings.Contains(got, strings.TrimSpace(l)) {
			t.Errorf("journalctl -x does not say %q:\n%s", l, got)
		}
	}
}
