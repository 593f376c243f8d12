package audit

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the catalog and the tables of docs/audit-log.md")

const (
	catalogFile  = "../../systemd/edgepolicyd.catalog"
	documentFile = "../../docs/audit-log.md"
	writtenBy    = "go test ./internal/audit -run Documented -update"
)

// optional are fields that not every message of an event has. journalctl -x would
// show their names for them.
var optional = []string{KeyAddress, KeyDstPod, KeyInterface, KeyPID, KeyPort, KeyProgram, KeySrcPod}

func TestEventsAreComplete(t *testing.T) {
	name, id := regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`), regexp.MustCompile(`^[0-9a-f]{32}$`)
	levels := []slog.Level{LevelNotice, slog.LevelWarn, slog.LevelError}
	seen, used := map[string]bool{}, map[string]bool{KeyEvent: true}
	for _, e := range Events {
		if !name.MatchString(e.Name) || seen[e.Name] {
			t.Errorf("the name %q is none, or there twice", e.Name)
		}
		if !id.MatchString(e.ID) || seen[e.ID] {
			t.Errorf("%s: the ID %q is none, or there twice", e.Name, e.ID)
		}
		seen[e.Name], seen[e.ID] = true, true
		if !slices.Contains(levels, e.Level) {
			t.Errorf("%s: level %v: log shippers would drop it", e.Name, e.Level)
		}
		if e.Meaning == "" || e.Subject == "" || e.Text == "" || strings.Contains(e.Meaning+e.Subject, "\n") {
			t.Errorf("%s is not documented", e.Name)
		}
		for _, key := range e.Fields {
			used[key] = true
		}
		for _, m := range regexp.MustCompile(`@([^@\s]*)@`).FindAllStringSubmatch(e.Subject+e.Text, -1) {
			if !slices.ContainsFunc(e.Fields, func(key string) bool { return fieldName(key) == m[1] && !slices.Contains(optional, key) }) {
				t.Errorf("%s: the catalog speaks of %s, which it does not have always", e.Name, m[1])
			}
		}
	}
	for _, f := range Fields {
		if !used[f.Key] {
			t.Errorf("no event has the field %s", f.Key)
		}
		if delete(used, f.Key); f.Meaning == "" || f.Example == "" || !validName(f.Name()) {
			t.Errorf("field %s is not documented", f.Key)
		}
	}
	for key := range used {
		t.Errorf("field %s is not in the table, or there twice", key)
	}
}

// TestCatalogIsDocumented: the catalog of the package says what the program knows.
func TestCatalogIsDocumented(t *testing.T) {
	same(t, catalogFile, func(string) string { return catalog() })
}

// TestFieldsAreDocumented: the tables of the documentation say what the program
// knows; the text around them is written by hand.
func TestFieldsAreDocumented(t *testing.T) {
	same(t, documentFile, func(text string) string {
		for name, table := range map[string]string{"events": eventTable(), "fields": fieldTable()} {
			begin, end := fmt.Sprintf("<!-- %s: written by %s -->\n", name, writtenBy), fmt.Sprintf("<!-- end of %s -->\n", name)
			before, rest, found := strings.Cut(text, begin)
			_, after, ends := strings.Cut(rest, end)
			if !found || !ends {
				t.Fatalf("%s has no place for the table of %s", documentFile, name)
			}
			text = before + begin + "\n" + table + "\n" + end + after
		}
		return text
	})
}

// same compares a file with what it must be, or writes it.
func same(t *testing.T, file string, want func(string) string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil && !*update {
		t.Fatal(err)
	}
	text := want(string(data))
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if text != string(data) {
		t.Errorf("%s is out of date: %s", file, writtenBy)
	}
}

// catalog gives the events in the format of journald's catalog (systemd.io/CATALOG).
func catalog() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# What the messages of edgepolicyd mean, for journalctl -x.\n# Written by: %s\n", writtenBy)
	for _, e := range Events {
		fmt.Fprintf(&b, "\n-- %s\nSubject: %s\nDefined-By: edgepolicyd\n\n%s\n", e.ID, e.Subject, e.Text)
	}
	return b.String()
}

func eventTable() string {
	var b strings.Builder
	b.WriteString("| event | level | what has happened | fields | `MESSAGE_ID` |\n|---|---|---|---|---|\n")
	for _, e := range Events {
		names := make([]string, len(e.Fields))
		for i, key := range e.Fields {
			names[i] = strings.TrimPrefix(fieldName(key), "EDGEPOLICY_")
		}
		level := map[slog.Level]string{LevelNotice: "notice", slog.LevelWarn: "warning", slog.LevelError: "error"}[e.Level]
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | `%s` |\n", e.Name, level, e.Meaning, strings.Join(names, ", "), e.ID)
	}
	return b.String()
}

func fieldTable() string {
	var b strings.Builder
	b.WriteString("| field | what it holds | for example |\n|---|---|---|\n")
	for _, f := range Fields {
		fmt.Fprintf(&b, "| `%s` | %s | `%s` |\n", f.Name(), f.Meaning, f.Example)
	}
	return b.String()
}
