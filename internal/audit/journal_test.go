package audit

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// equal compares an entry with what it must be, but for what all entries have.
func equal(t *testing.T, got, want map[string]string) {
	t.Helper()
	if got["SYSLOG_IDENTIFIER"] != "edgepolicyd" {
		t.Errorf("identifier %q", got["SYSLOG_IDENTIFIER"])
	}
	delete(got, "SYSLOG_IDENTIFIER")
	if !maps.Equal(got, want) {
		t.Errorf("journald got\n%q, want\n%q", got, want)
	}
}

func TestLinesBecomeEntries(t *testing.T) {
	j := newJournald(t)
	log, _ := open(t, "journal", slog.LevelDebug, &buffer{}, j.path)
	at := time.Date(2026, 3, 1, 12, 0, 0, 7, time.UTC)
	log.With("source", "kubelet").WithGroup("pod").With("uid", 7).Warn("odd pod",
		"address", netip.MustParseAddr("10.0.0.1"), "error", errors.New("no such thing"), "since", at, "took", 1500*time.Millisecond,
		slog.Group("cni", "network", "net a", "if-name", "eth=0"), "empty", "", "lines", "a\nb")
	equal(t, j.entry(), map[string]string{
		"MESSAGE": `odd pod source=kubelet pod.uid=7 pod.address=10.0.0.1 pod.error="no such thing" pod.since=2026-03-01T12:00:00.000000007Z` +
			` pod.took=1.5s pod.cni.network="net a" pod.cni.if-name="eth=0" pod.empty="" pod.lines="a\nb"`,
		"PRIORITY": "4", "EDGEPOLICY_SOURCE": "kubelet", "EDGEPOLICY_POD_UID": "7", "EDGEPOLICY_POD_ADDRESS": "10.0.0.1",
		"EDGEPOLICY_POD_ERROR": "no such thing", "EDGEPOLICY_POD_SINCE": "2026-03-01T12:00:00.000000007Z", "EDGEPOLICY_POD_TOOK": "1.5s",
		"EDGEPOLICY_POD_CNI_NETWORK": "net a", "EDGEPOLICY_POD_CNI_IF_NAME": "eth=0", "EDGEPOLICY_POD_EMPTY": "", "EDGEPOLICY_POD_LINES": "a\nb",
	})
}

func TestEventsBecomeEntries(t *testing.T) {
	j := newJournald(t)
	log, _ := open(t, "journal", slog.LevelInfo, &buffer{}, j.path)
	PolicyAdded.Log(log, "policy default/web added", slog.String(KeyPolicy, "default/web"), slog.Int(KeyCount, 3))
	equal(t, j.entry(), map[string]string{
		"MESSAGE": "policy default/web added", "MESSAGE_ID": PolicyAdded.ID, "PRIORITY": "5",
		"EDGEPOLICY_EVENT": "policy-added", "EDGEPOLICY_POLICY": "default/web", "EDGEPOLICY_COUNT": "3",
	})
}

func TestLevelsBecomePriorities(t *testing.T) {
	j := newJournald(t)
	level := &slog.LevelVar{}
	level.Set(slog.LevelDebug)
	h, err := NewHandler("journal", level, &buffer{}, j.path)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(limit)
	log := slog.New(h)
	for level, want := range map[slog.Level]string{slog.LevelDebug: "7", slog.LevelInfo: "6", LevelNotice: "5", slog.LevelWarn: "4", slog.LevelError: "3", 12: "3"} {
		log.Log(t.Context(), level, "x")
		if got := j.entry()["PRIORITY"]; got != want {
			t.Errorf("level %v has priority %s, want %s", level, got, want)
		}
	}
	level.Set(LevelNotice)
	log.Info("hidden")
	PolicyAdded.Log(log, "shown")
	if got := j.entry()["MESSAGE"]; got != "shown" {
		t.Errorf("at the level notice %q was told", got)
	}
}

// hostile are values as a file's name or a document can have them.
var hostile = []string{
	"a\nMESSAGE_ID=0123456789abcdef0123456789abcdef", "a\nEDGEPOLICY_EVENT=flush\n", "\n\x08\x00\x00\x00\x00\x00\x00\x00forged!!\n",
	"\x1b[2J\x1b]0;title\x07", "a\r\nb", "a\x00b", "\xff\xfe", "\u202egnp.exe", "a\u2028b", "\n", "",
}

func TestValuesForgeNothing(t *testing.T) {
	for _, value := range hostile {
		t.Run(fmt.Sprintf("%q", value), func(t *testing.T) {
			j := newJournald(t)
			log, _ := open(t, "journal", slog.LevelInfo, &buffer{}, j.path)
			log.With(value, "x").Info(value, KeyFile, value)
			got := j.entry()
			if len(got) != 5 || got["MESSAGE_ID"] != "" || got["EDGEPOLICY_EVENT"] != "" {
				t.Errorf("fields were forged: %q", got)
			}
			if escape(got["MESSAGE"], "") != got["MESSAGE"] {
				t.Errorf("a message that is no text: %q", got["MESSAGE"])
			}
			if got := got["EDGEPOLICY_FILE"]; escape(got, "\n\t") != got {
				t.Errorf("a field that is no text: %q", got)
			}
			PolicyAdded.Log(log, value, slog.String(KeyFile, value))
			if got := j.entry(); len(got) != 6 || got["MESSAGE_ID"] != PolicyAdded.ID || got["EDGEPOLICY_EVENT"] != "policy-added" || strings.Contains(got["MESSAGE"], "\n") {
				t.Errorf("an event was forged: %q", got)
			}
		})
	}
}

func TestLargeEntriesGoAsFiles(t *testing.T) {
	j := newJournald(t)
	log, _ := open(t, "journal", slog.LevelInfo, &buffer{}, j.path)
	for _, size := range []int{100, 100 << 10, 3 << 20, 100} {
		value := strings.Repeat("x", size)
		log.Info("large", "value", value)
		data, file := j.datagram()
		fields, err := parse(data)
		if err != nil || fields["EDGEPOLICY_VALUE"] != value {
			t.Errorf("of a value of %d bytes %d came: %v", size, len(fields["EDGEPOLICY_VALUE"]), err)
		}
		if file != (size > 1<<20) {
			t.Errorf("an entry of %d bytes as a file: %v", size, file)
		}
	}
}

func TestAnotherJournaldIsFound(t *testing.T) {
	first := newJournald(t)
	stderr := &buffer{}
	log, _ := open(t, "journal", slog.LevelInfo, stderr, first.path)
	log.Info("one")
	if got := first.entry()["MESSAGE"]; got != "one" {
		t.Fatal(got)
	}
	first.conn.Close()
	if err := os.Remove(first.path); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	log.Info("two")
	within(t, "told on stderr", func() bool { return strings.Contains(stderr.String(), "msg=two") })
	second := listen(t, first.path)
	log.Info("three")
	if got := second.entry()["MESSAGE"]; got != "three" {
		t.Fatal(got)
	}
	log.Info("four")
	if got := second.entry()["MESSAGE"]; got != "four" {
		t.Fatal(got)
	}
	if got := stderr.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "the journal does not take messages") {
		t.Errorf("stderr got\n%s", got)
	}
}

func TestWithoutJournaldStandardErrorHasAll(t *testing.T) {
	stderr := &buffer{}
	log, h := open(t, "journal", slog.LevelInfo, stderr, t.TempDir()+"/none")
	log.Info("one", "key", "a b")
	PolicyAdded.Log(log, "policy added", slog.String(KeyPolicy, "default/web"))
	if err := h.Close(limit); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(stderr.String(), "\n")
	if len(lines) != 4 || !strings.Contains(lines[0], "no such file") || !strings.HasSuffix(lines[1], `level=INFO msg="one key=\"a b\""`) ||
		!strings.HasSuffix(lines[2], `level=NOTICE msg="policy added"`) {
		t.Errorf("stderr got %q", lines)
	}
}

// TestStuckJournald: what a journald that does not read takes is little; the rest is
// told on stderr, and when it reads again it has the messages again.
func TestStuckJournald(t *testing.T) {
	j := newJournald(t)
	stderr := &buffer{}
	log, _ := open(t, "journal", slog.LevelInfo, stderr, j.path)
	const n = 2000
	for i := range n {
		log.Info("message", "i", i)
	}
	last := fmt.Sprintf("message i=%d", n-1)
	within(t, "all told on stderr", func() bool { return strings.Contains(stderr.String(), last) })
	taken := n - strings.Count(stderr.String(), "message i=")
	for i := range taken {
		if got, want := j.entry()["MESSAGE"], fmt.Sprintf("message i=%d", i); got != want {
			t.Fatalf("journald got %q, want %q", got, want)
		}
	}
	log.Info("again")
	if got := j.entry()["MESSAGE"]; got != "again" {
		t.Errorf("journald got %q", got)
	}
}

// FuzzEntry: whatever is logged, journald reads the fields that were meant, and no
// others.
func FuzzEntry(f *testing.F) {
	for _, h := range hostile {
		f.Add(h, h, h)
	}
	f.Add("message", "KEY", "a plain value")
	f.Fuzz(func(t *testing.T, message, key, value string) {
		var got line
		log := slog.New(&journalHandler{level: slog.LevelInfo, put: func(l line) { got = l }})
		log.Info(message, "k"+key, value)
		fields, err := parse(got.data)
		if err != nil {
			t.Fatal(err)
		}
		if name := fieldName("k" + key); len(fields) != 4 || fields[name] != escape(value, "\n\t") {
			t.Errorf("%q = %q became %q", key, value, fields)
		}
		if m := fields["MESSAGE"]; m != escape(m, "") || !strings.HasPrefix(m, escape(message, "")) {
			t.Errorf("message %q became %q", message, m)
		}
	})
}
