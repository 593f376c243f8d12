package audit

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
)

func TestTextIsALineEach(t *testing.T) {
	stderr := &buffer{}
	log, h := open(t, "text", slog.LevelInfo, stderr, "")
	log.Debug("hidden")
	log.Info("plain", "key", "value")
	PolicyAdded.Log(log.With("source", "directory"), "policy default/web added", slog.String(KeyFile, "a\nb\x1b\xff"))
	if err := h.Close(limit); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(stderr.String(), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "time=") || !strings.HasSuffix(lines[0], " level=INFO msg=plain key=value") ||
		!strings.HasSuffix(lines[1], ` level=NOTICE msg="policy default/web added" source=directory event=policy-added file="a\nb\x1b\xff"`) {
		t.Errorf("stderr got %q", lines)
	}
}

func TestJSONIsALineEach(t *testing.T) {
	stderr := &buffer{}
	log, h := open(t, "json", slog.LevelInfo, stderr, "")
	for _, value := range hostile {
		PolicyAdded.Log(log, value, slog.String(KeyFile, value), slog.Int(KeyCount, 3))
	}
	if err := h.Close(limit); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(stderr.String(), "\n"), "\n")
	if len(lines) != len(hostile) {
		t.Fatalf("%d lines of %d messages", len(lines), len(hostile))
	}
	for i, l := range lines {
		var got map[string]any
		if err := json.Unmarshal([]byte(l), &got); err != nil {
			t.Fatal(err)
		}
		want := strings.ToValidUTF8(hostile[i], "�")
		if hostile[i] == "\xff\xfe" {
			want = "��"
		}
		if len(got) != 6 || got["level"] != "NOTICE" || got["event"] != "policy-added" || got["file"] != want || got["msg"] != want || got["count"] != 3.0 {
			t.Errorf("%q was written as %s", hostile[i], l)
		}
	}
}

func TestAutoTakesTheJournalWhereItIs(t *testing.T) {
	j := newJournald(t)
	stderr := &buffer{}
	log, _ := open(t, "auto", slog.LevelInfo, stderr, j.path)
	log.Info("one")
	if got := j.entry()["MESSAGE"]; got != "one" {
		t.Errorf("journald got %q", got)
	}
	log, h := open(t, "auto", slog.LevelInfo, stderr, j.path+".none")
	log.Info("two")
	if err := h.Close(limit); err != nil {
		t.Fatal(err)
	}
	if got := stderr.String(); !strings.HasSuffix(got, " level=INFO msg=two\n") {
		t.Errorf("stderr got %q", got)
	}
}

// TestAutoWritesToATerminal: who starts the daemon by hand wants to see what it says.
func TestAutoWritesToATerminal(t *testing.T) {
	master, terminal := pty(t)
	j := newJournald(t)
	log, _ := open(t, "auto", slog.LevelInfo, terminal, j.path)
	log.Info("seen")
	got, err := bufio.NewReader(master).ReadString('\n')
	if err != nil || !strings.Contains(got, "msg=seen") {
		t.Errorf("the terminal shows %q: %v", got, err)
	}
}

func TestUnknownFormat(t *testing.T) {
	if _, err := NewHandler("xml", slog.LevelInfo, &buffer{}, ""); err == nil || !strings.Contains(err.Error(), "auto, journal, text or json") {
		t.Errorf("the error is %v", err)
	}
}

// TestFullPipe: standard error is a pipe that nobody reads. To log does not wait, and
// when the pipe is read every message is there or was counted.
func TestFullPipe(t *testing.T) {
	for _, format := range []string{"text", "json", "journal"} {
		t.Run(format, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			log, h := open(t, format, slog.LevelInfo, w, t.TempDir()+"/none")
			const n = 40_000
			for i := range n {
				log.Info("message", "i", i, "text", strings.Repeat("x", 100))
			}
			if err := h.Close(time.Millisecond); err == nil || !strings.Contains(err.Error(), "messages were not written") {
				t.Errorf("closed while nobody reads: %v", err)
			}
			go func() {
				h.Close(limit)
				w.Close()
			}()
			got, lost, last := 0, 0, -1
			for s := bufio.NewScanner(r); s.Scan(); {
				_, rest, found := strings.Cut(strings.ReplaceAll(s.Text(), `"i":`, "i="), "i=")
				if _, said, ok := strings.Cut(strings.ReplaceAll(s.Text(), `"msg":"`, `msg="`), `msg="`); ok && strings.Contains(said, " messages were lost") {
					k := 0
					fmt.Sscan(said, &k)
					lost += k
				} else if found {
					i := -1
					fmt.Sscanf(rest, "%d", &i)
					if i <= last {
						t.Fatalf("%d after %d", i, last)
					}
					got, last = got+1, i
				}
			}
			if got+lost != n || lost == 0 || got == 0 {
				t.Errorf("of %d messages %d came, and %d are told to be lost", n, got, lost)
			}
		})
	}
}

// TestCloseWritesWhatWaits, and what is logged after it does not hang.
func TestCloseWritesWhatWaits(t *testing.T) {
	stderr := &buffer{}
	log, h := open(t, "text", slog.LevelInfo, stderr, "")
	for i := range 1000 {
		log.Info("message", "i", i)
	}
	if err := h.Close(limit); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(stderr.String(), "\n"); got != 1000 {
		t.Errorf("%d lines", got)
	}
	log.Info("too late")
	if err := h.Close(limit); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

// TestManyLog: from everywhere at once, nothing is lost or mixed while there is room.
func TestManyLog(t *testing.T) {
	stderr := &buffer{}
	log, h := open(t, "json", slog.LevelInfo, stderr, "")
	done := make(chan bool)
	for g := range 8 {
		go func() {
			log := log.With("g", g)
			for i := range 200 {
				log.Info("message", "i", i)
			}
			done <- true
		}()
	}
	for range 8 {
		<-done
	}
	if err := h.Close(limit); err != nil {
		t.Fatal(err)
	}
	next := map[int]int{}
	for l := range strings.Lines(stderr.String()) {
		var m struct{ G, I int }
		if err := json.Unmarshal([]byte(l), &m); err != nil || m.I != next[m.G] {
			t.Fatalf("%s: want message %d: %v", l, next[m.G], err)
		}
		next[m.G]++
	}
	for g, n := range next {
		if n != 200 {
			t.Errorf("%d messages of %d", n, g)
		}
	}
}
