package directory

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/source"
)

func appendTo(t *testing.T, path, content string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	must(t, err)
	_, err = f.WriteString(content)
	must(t, err)
	must(t, f.Close())
}

// Every way of writing is followed, by a source that runs all the while.
func TestWaysOfWriting(t *testing.T) {
	dir := t.TempDir()
	a := filepath.Join(dir, "a.yaml")
	f := start(t, dir, nil)
	f.has("")

	write(t, a, policy("a", 1)) // new
	f.has("a:1")
	write(t, a, policy("a", 2)) // in place, of the same length
	f.has("a:2")
	appendTo(t, a, "---\n"+policy("b", 1))
	f.has("a:2 b:1")
	temp := filepath.Join(dir, ".a.yaml.tmp") // renamed over, as rsync and editors do
	write(t, temp, policy("a", 3))
	must(t, os.Rename(temp, a))
	f.has("a:3")
	must(t, os.Rename(a, a+"~")) // moved away and written anew, as vi does
	write(t, a, policy("a", 4))
	f.has("a:4")
	must(t, os.Remove(a+"~"))
	must(t, os.Link(a, filepath.Join(dir, "copy.yaml")))
	f.until("a duplicate", func(r source.Report) bool { return rejections(r) == "a" })
	must(t, os.Remove(filepath.Join(dir, "copy.yaml")))
	f.has("a:4")
	must(t, os.Rename(a, filepath.Join(dir, "b.yml"))) // a new name
	f.until("its new name", func(r source.Report) bool {
		return told(r) == "a:4" && r.Objects.Policies[0].Origin.File == filepath.Join(dir, "b.yml")
	})
	must(t, os.Chmod(filepath.Join(dir, "b.yml"), 0o666))
	f.until("a refusal", func(r source.Report) bool { return rejections(r) == "b.yml+" && told(r) == "a:4" })
	must(t, os.Chmod(filepath.Join(dir, "b.yml"), 0o644))
	f.has("a:4")
	must(t, os.Truncate(filepath.Join(dir, "b.yml"), 0))
	f.has("")
	write(t, a, policy("a", 5))
	f.has("a:5")
	must(t, os.Remove(a))
	f.has("")
	f.still()
	for _, r := range f.seen {
		if r.Err != nil {
			t.Errorf("the directory was there all the time: %v", r.Err)
		}
	}
}

// Kubernetes volumes: a.yaml -> ..data/a.yaml, ..data -> ..1, swapped by rename.
func TestSymlinkSwap(t *testing.T) {
	dir := t.TempDir()
	version := func(n int, files ...string) {
		to := filepath.Join(dir, fmt.Sprintf("..%d", n))
		must(t, os.Mkdir(to, 0o755))
		for i := 0; i < len(files); i += 2 {
			write(t, filepath.Join(to, files[i]), files[i+1])
		}
		must(t, os.Symlink(filepath.Base(to), filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	version(1, "a.yaml", policy("a", 1), "b.yaml", policy("b", 1))
	for _, name := range []string{"a.yaml", "b.yaml"} {
		must(t, os.Symlink("..data/"+name, filepath.Join(dir, name)))
	}
	f := start(t, dir, nil)
	f.has("a:1 b:1")
	for i := 2; i < 5; i++ {
		version(i, "a.yaml", policy("a", i), "b.yaml", policy("b", i))
		f.has(fmt.Sprintf("a:%d b:%d", i, i))
		must(t, os.RemoveAll(filepath.Join(dir, fmt.Sprintf("..%d", i-1))))
	}
	write(t, filepath.Join(dir, "..4", "a.yaml"), policy("a", 9)) // behind the links
	f.has("a:9 b:4")
	version(5, "a.yaml", policy("a", 5)) // b's link leads nowhere now: that is not its deletion
	f.until("b as before", func(r source.Report) bool { return told(r) == "a:5 b:4" && rejections(r) == "b.yaml+" })
	must(t, os.Remove(filepath.Join(dir, "b.yaml")))
	f.has("a:5")
}

// A link to a file elsewhere is followed there.
func TestLinkElsewhere(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	write(t, filepath.Join(other, "target"), policy("a", 1))
	f := start(t, dir, nil)
	f.has("")
	must(t, os.Symlink(filepath.Join(other, "target"), filepath.Join(dir, "a.yaml")))
	f.has("a:1")
	write(t, filepath.Join(other, "target"), policy("a", 2))
	f.has("a:2")
}

// S9: a directory that is missing takes nothing away; one that is empty does.
func TestDirectoryComesAndGoes(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "etc", "edgepolicy.d")
	f := start(t, dir, nil)
	missing := func(want string) {
		t.Helper()
		f.until("the directory missing", func(r source.Report) bool { return r.Err != nil && told(r) == want })
	}
	missing("")
	must(t, os.MkdirAll(dir, 0o755)) // with its parent
	write(t, filepath.Join(dir, "a.yaml"), policy("a", 1))
	f.has("a:1")
	must(t, os.RemoveAll(dir))
	missing("a:1")
	f.still()
	must(t, os.Mkdir(dir, 0o755))
	f.has("")
	write(t, filepath.Join(dir, "a.yaml"), policy("a", 2))
	f.has("a:2")
	must(t, os.RemoveAll(filepath.Dir(dir))) // with its parent
	missing("a:2")
	must(t, os.MkdirAll(dir, 0o755))
	write(t, filepath.Join(dir, "a.yaml"), policy("a", 3))
	f.until("a:3", func(r source.Report) bool { return told(r) == "a:3" && r.Err == nil })

	must(t, os.Rename(dir, dir+".old")) // moved away
	missing("a:3")
	must(t, os.Rename(dir+".old", dir)) // and back
	f.has("a:3")
	write(t, filepath.Join(dir, "a.yaml"), policy("a", 4))
	f.has("a:4")
	must(t, os.Mkdir(dir+".new", 0o755)) // replaced by another
	write(t, filepath.Join(dir+".new", "b.yaml"), policy("b", 1))
	must(t, os.Rename(dir, dir+".old"))
	must(t, os.Rename(dir+".new", dir))
	f.has("b:1")
	write(t, filepath.Join(dir+".old", "a.yaml"), policy("a", 9)) // no longer ours
	f.still()
	write(t, filepath.Join(dir, "b.yaml"), policy("b", 2))
	f.has("b:2")

	must(t, os.RemoveAll(dir)) // a file instead
	write(t, dir, "x")
	missing("b:2")
	must(t, os.Remove(dir))
	must(t, os.Rename(dir+".old", filepath.Join(top, "one"))) // a link instead, which is turned
	must(t, os.Mkdir(filepath.Join(top, "two"), 0o755))
	write(t, filepath.Join(top, "two", "c.yaml"), policy("c", 2))
	must(t, os.Symlink(filepath.Join(top, "one"), dir))
	f.has("a:9")
	must(t, os.Symlink(filepath.Join(top, "two"), dir+".tmp"))
	must(t, os.Rename(dir+".tmp", dir))
	f.has("c:2")
	write(t, filepath.Join(top, "two", "c.yaml"), policy("c", 3))
	f.has("c:3")
	must(t, os.Rename(filepath.Join(top, "two"), filepath.Join(top, "gone"))) // what the link means is replaced
	missing("c:3")
	must(t, os.Mkdir(filepath.Join(top, "two"), 0o755))
	f.has("")
	write(t, filepath.Join(top, "two", "d.yaml"), policy("d", 1))
	f.has("d:1")
}

// S9: the saved state is in force from the first report on, if there is nothing
// to read.
func TestMissingAtStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	must(t, os.Mkdir(dir, 0o755))
	write(t, filepath.Join(dir, "a.yaml"), policy("a", 1), pod("p", "10.0.0.1"))
	last := read(t, dir, nil)
	must(t, os.RemoveAll(dir))
	f := start(t, dir, saved(last))
	if r := f.until("anything", func(source.Report) bool { return true }); told(r) != "a:1 pod/p" || r.Err == nil {
		t.Errorf("first report: %q, err %v", told(r), r.Err)
	}
	must(t, os.Mkdir(dir, 0o755))
	f.has("")
}

// The first report already has what was written just before the start.
func TestFirstReport(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), policy("a", 1))
	f := start(t, dir, nil)
	if r := f.until("anything", func(source.Report) bool { return true }); told(r) != "a:1" {
		t.Errorf("first report: %q", told(r))
	}
}

// A half-written file is never enforced, however its writer goes about it. Each
// half here is a valid file by itself, with fewer policies.
func TestHalfWritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	write(t, path, policy("a", 1), policy("b", 1), policy("c", 1))
	f := start(t, dir, nil)
	f.has("a:1 b:1 c:1")
	for i, pause := range []time.Duration{0, 2 * time.Millisecond, 60 * time.Millisecond} {
		// A slow writer that keeps the file open, with pauses longer than quiet.
		w, err := os.Create(path)
		must(t, err)
		for _, name := range []string{"a", "b", "c"} {
			time.Sleep(pause)
			_, err := w.WriteString("---\n" + policy(name, i+2))
			must(t, err)
		}
		if i == 2 { // others don't wait for it
			write(t, filepath.Join(dir, "d.yaml"), policy("d", 1))
			f.until("d:1", func(r source.Report) bool { return strings.Contains(told(r), "d:1") })
		}
		must(t, w.Close())
		if i < 2 {
			f.has(fmt.Sprintf("a:%d b:%d c:%d", i+2, i+2, i+2))
		}
	}
	f.has("a:4 b:4 c:4 d:1")
	// One that opens it again and again, and never leaves it quiet.
	must(t, os.Truncate(path, 0))
	refreshed := make(chan source.Report, 1)
	for _, name := range []string{"a", "b", "c"} {
		if name == "b" { // not even one who asks for it now gets the half
			go func() {
				r, _ := f.source.Refresh(t.Context())
				refreshed <- r
			}()
		}
		for _, line := range strings.SplitAfter("---\n"+policy(name, 5), "\n") {
			appendTo(t, path, line)
			time.Sleep(2 * time.Millisecond)
		}
	}
	f.has("a:5 b:5 c:5 d:1")
	for _, r := range append(f.seen, <-refreshed) {
		var ports []string
		for _, name := range strings.Fields(told(r)) {
			if name != "d:1" {
				ports = append(ports, name[2:])
			}
		}
		if len(ports) != 3 || len(slices.Compact(ports)) != 1 || len(r.Rejected) > 0 {
			t.Errorf("a half-written file was reported: %q, rejected %v", told(r), r.Rejected)
		}
	}
}

// An editor moves the file away and writes a new one: it was never gone, not even
// for one who asks just then.
func TestMovedAwayAndWritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	write(t, path, policy("a", 1))
	f := start(t, dir, nil)
	f.has("a:1")
	must(t, os.Rename(path, path+"~"))
	refreshed := make(chan source.Report, 1)
	go func() {
		r, _ := f.source.Refresh(t.Context())
		refreshed <- r
	}()
	time.Sleep(quiet / 4)
	write(t, path, policy("a", 2))
	f.has("a:2")
	for _, r := range append(f.seen, <-refreshed) {
		if told(r) != "a:1" && told(r) != "a:2" {
			t.Errorf("reported: %q", told(r))
		}
	}
}

// Without any quiet, between open and close of a writer that never rests, a
// reading is of the whole file or none; and writers are never refused.
func TestReadWhileWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yaml")
	content := strings.Repeat(policy("a", 1), 20)
	write(t, path, content)
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
			for i := 0; err == nil && i < len(content); i += len(content) / 4 {
				_, err = f.WriteString(content[i:min(i+len(content)/4, len(content))])
			}
			if err != nil || f.Close() != nil {
				done <- fmt.Errorf("the writer was disturbed: %w", err)
				return
			}
		}
	}()
	whole, busy := 0, 0
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		switch data, _, err := readFile(path); {
		case err == nil && string(data) == content:
			whole++
		case err != nil && err.Error() == errBusy.Error():
			busy++
		default:
			t.Fatalf("%d bytes of %d, %v", len(data), len(content), err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if whole == 0 || busy == 0 {
		t.Errorf("%d whole, %d busy: this test proves nothing", whole, busy)
	}
}

// A file that somebody holds open for writing is named in the end.
func TestHeldOpen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	w, err := os.Create(path)
	must(t, err)
	defer w.Close()
	_, err = w.WriteString(policy("a", 1))
	must(t, err)
	s := New(dir, nil, slog.New(slog.DiscardHandler))
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now().Add(time.Second)
	if wait := s.look("a.yaml", now); wait <= 0 || s.files["a.yaml"].whole {
		t.Errorf("open for writing: wait %v, %+v", wait, s.files["a.yaml"])
	}
	now = now.Add(busyLimit)
	if wait := s.look("a.yaml", now); wait <= 0 {
		t.Errorf("still open: wait %v", wait)
	}
	s.assemble(now)
	if rejections(s.report) != "a.yaml" || !strings.Contains(s.report.Rejected[0].Reason, "open for writing") {
		t.Errorf("rejected %+v", s.report.Rejected)
	}
	must(t, w.Close())
	if wait := s.look("a.yaml", now); wait != 0 {
		t.Errorf("closed: wait %v", wait)
	}
	s.assemble(now)
	if told(s.report) != "a:1" || len(s.report.Rejected) > 0 {
		t.Errorf("closed: %q, rejected %v", told(s.report), s.report.Rejected)
	}
}

// Refresh has what was written just before, with and without Run, and Run tells
// it too.
func TestRefresh(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	f := start(t, dir, nil)
	f.has("")
	for i := 1; i <= 10; i++ {
		write(t, path, policy("a", i))
		r, err := f.source.Refresh(t.Context())
		must(t, err)
		want := fmt.Sprintf("a:%d", i)
		if told(r) != want {
			t.Fatalf("refresh %d: %q", i, told(r))
		}
		if i%2 == 0 { // nobody takes the other reports for a while
			if ran := f.has(want); ran.Time != r.Time {
				t.Errorf("Run reports %v, Refresh reported %v", ran.Time, r.Time)
			}
		}
	}
	f.still()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	write(t, path, policy("a", 99))
	if r, err := f.source.Refresh(ctx); err == nil || told(r) != "a:10" {
		t.Errorf("refresh without time: %q, %v", told(r), err)
	}
	f.has("a:99")
}

// A lost event costs time, not truth: when the kernel's queue overflows, all is
// read anew.
func TestOverflow(t *testing.T) {
	data, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	must(t, err)
	limit, err := strconv.Atoi(strings.TrimSpace(string(data)))
	must(t, err)
	dir := t.TempDir()
	lost := make(lostEvents, 10)
	f := start(t, dir, nil)
	f.has("")
	f.source.mu.Lock() // Run can't take events
	f.source.log = slog.New(lost)
	names := []string{filepath.Join(dir, ".x"), filepath.Join(dir, ".y")}
	for i := range limit/2 + 5000 { // fsnotify holds 4096 in its own hands
		write(t, names[i%2], "x")
		must(t, os.Remove(names[i%2]))
	}
	write(t, filepath.Join(dir, "a.yaml"), policy("a", 1))
	f.source.mu.Unlock()
	f.has("a:1")
	select {
	case <-lost:
	default:
		t.Fatal("no event was lost: this test proves nothing")
	}
	write(t, filepath.Join(dir, "a.yaml"), policy("a", 2))
	f.has("a:2")
}

// lostEvents is a log that hears of lost events only.
type lostEvents chan string

func (l lostEvents) Enabled(context.Context, slog.Level) bool { return true }
func (l lostEvents) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l lostEvents) WithGroup(string) slog.Handler            { return l }
func (l lostEvents) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "lost") {
		l <- r.Message
	}
	return nil
}

// Where the kernel gives no watches the directory is looked at every second. The
// test runs itself in a user namespace that may have none.
func TestWithoutInotify(t *testing.T) {
	const marker = "DIRECTORY_TEST_WITHOUT_INOTIFY"
	if os.Getenv(marker) == "" {
		self, err := os.Executable()
		must(t, err)
		cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestWithoutInotify$", "-test.v")
		cmd.Env = append(os.Environ(), marker+"=1")
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		return
	}
	must(t, os.WriteFile("/proc/sys/user/max_inotify_instances", []byte("0"), 0o644))
	if fd, err := syscall.InotifyInit(); err == nil {
		syscall.Close(fd)
		t.Fatal("inotify works all the same")
	}
	dir := t.TempDir()
	f := start(t, dir, nil)
	f.has("")
	write(t, filepath.Join(dir, "a.yaml"), policy("a", 1))
	f.has("a:1")
	must(t, os.Remove(filepath.Join(dir, "a.yaml")))
	f.has("")
}
