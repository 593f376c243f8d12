package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/source"
)

// follow is a source that runs.
type follow struct {
	*gateway
	reports chan source.Report
	last    source.Report
	seen    []source.Report
}

func (g *gateway) run() *follow {
	g.t.Helper()
	f := &follow{gateway: g, reports: make(chan source.Report)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	run := g.Source.Run
	go func() { done <- run(ctx, f.reports) }()
	g.t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				g.t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			g.t.Error("Run did not end")
		}
	})
	return f
}

// until waits for a report of which ok holds.
func (f *follow) until(what string, ok func(source.Report) bool) source.Report {
	f.t.Helper()
	if !f.last.Time.IsZero() && ok(f.last) {
		return f.last
	}
	limit := time.After(20 * time.Second) // less than the rescan, so that events are needed
	for {
		select {
		case r := <-f.reports:
			if r.Source != "cni" || !r.Time.After(f.last.Time) {
				f.t.Fatalf("report of %q at %v after one at %v", r.Source, r.Time, f.last.Time)
			}
			f.last = r
			f.seen = append(f.seen, r)
			if ok(r) {
				return r
			}
		case <-limit:
			f.t.Fatalf("no report with %s; in force: %q, network %v, rejected %v, err %v", what, told(f.last), f.last.Network, f.last.Rejected, f.last.Err)
		}
	}
}

// tells waits for what is in force.
func (f *follow) tells(want string) source.Report {
	f.t.Helper()
	return f.until(want, func(r source.Report) bool { return told(r) == want && r.Err == nil && len(r.Rejected) == 0 })
}

// Pods come, change and go, by what libcni does to its files.
func TestFollows(t *testing.T) {
	g := newGateway(t)
	f := g.run()
	first := f.tells("")
	if !first.Network.Present || first.Confirmed.IsZero() {
		t.Errorf("first report %+v", first)
	}
	a, b := g.of("a", "1", "10.1.0.2/24"), g.of("b", "2", "10.1.0.3/24")
	g.write(a)
	f.tells("default/a[10.1.0.2] 1/edgenet(veth1)")
	g.write(b)
	r := f.tells("default/a[10.1.0.2] 1/edgenet(veth1) default/b[10.1.0.3] 2/edgenet(veth2)")
	a.addresses = []string{"10.1.0.9/24"}
	g.write(a)
	if now := f.tells("default/a[10.1.0.9] 1/edgenet(veth1) default/b[10.1.0.3] 2/edgenet(veth2)"); now.Objects.Pods[1] != r.Objects.Pods[1] {
		t.Error("another pod b without a change of it")
	}
	temp := filepath.Join(g.results, ".tmp") // renamed over
	must(t, os.WriteFile(temp, b.json(), 0o600))
	must(t, os.Rename(temp, filepath.Join(g.results, b.file())))
	g.remove(a)
	f.tells("default/b[10.1.0.3] 2/edgenet(veth2)")
	must(t, os.Chmod(filepath.Join(g.results, b.file()), 0o666))
	f.until("a refusal", func(r source.Report) bool {
		return rejections(r) == b.file()+"+" && told(r) == "default/b[10.1.0.3] 2/edgenet(veth2)"
	})
	must(t, os.Chmod(filepath.Join(g.results, b.file()), 0o600))
	f.tells("default/b[10.1.0.3] 2/edgenet(veth2)")
	g.remove(b)
	f.tells("")
}

// A namespace or an interface that goes and comes makes no event in the folder: the
// poke has it looked for.
func TestPoke(t *testing.T) {
	g := newGateway(t)
	a := g.of("a", "1", "10.1.0.2/24")
	g.write(a)
	f := g.run()
	f.tells("default/a[10.1.0.2] 1/edgenet(veth1)")
	g.unlink("veth1")
	g.Poke()
	f.tells("")
	g.Poke() // nothing changed
	g.link("veth", "veth1")
	g.Poke()
	f.tells("default/a[10.1.0.2] 1/edgenet(veth1)")
	must(t, os.Remove(a.netns))
	g.Poke()
	f.tells("")
	g.sandbox("1")
	for range 1000 { // does not wait for anybody
		g.Poke()
	}
	f.tells("default/a[10.1.0.2] 1/edgenet(veth1)")
}

// libcni writes in place: what is half there is no loss of what was known, and is
// read when it is whole.
func TestHalfWritten(t *testing.T) {
	g := newGateway(t)
	a := g.of("a", "1", "10.1.0.2/24")
	g.write(a)
	f := g.run()
	f.tells("default/a[10.1.0.2] 1/edgenet(veth1)")
	n := len(f.seen)
	path := filepath.Join(g.results, a.file())
	for i := range 20 {
		a.addresses = []string{fmt.Sprintf("10.1.0.%d/24", 10+i)}
		data := a.json()
		w, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
		must(t, err)
		for len(data) > 0 {
			k := min(len(data), 200)
			_, err := w.Write(data[:k])
			must(t, err)
			data = data[k:]
		}
		must(t, w.Close())
		f.until("the new address", func(r source.Report) bool {
			return told(r) == fmt.Sprintf("default/a[10.1.0.%d] 1/edgenet(veth1)", 10+i)
		})
	}
	for _, r := range f.seen[n:] {
		if len(r.Objects.Pods) != 1 {
			t.Errorf("the pod was lost: %+v", r)
		}
	}
	// One that stays so is told, and what was known kept.
	data := a.json()
	must(t, os.WriteFile(path, data[:len(data)/2], 0o600))
	r := f.until("a refusal", func(r source.Report) bool { return rejections(r) == a.file()+"+" })
	if told(r) != "default/a[10.1.0.29] 1/edgenet(veth1)" {
		t.Errorf("in force %q", told(r))
	}
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = w.Write(data[len(data)/2:])
	must(t, err)
	must(t, w.Close())
	f.tells("default/a[10.1.0.29] 1/edgenet(veth1)")
}

// What is not whole is read again a few times, at growing intervals, without an
// event; then it is left to the next event.
func TestRetries(t *testing.T) {
	g := newGateway(t)
	a := g.of("a", "1", "10.1.0.2/24")
	path := filepath.Join(g.results, a.file())
	must(t, os.WriteFile(path, nil, 0o600))
	g.Source.results.all = true
	now := time.Now()
	var waits []time.Duration
	for next := g.Source.results.work(now); !next.IsZero(); next = g.Source.results.work(now) {
		waits = append(waits, next.Sub(now))
		if g.Source.results.dirty && len(waits) <= len(retries) && g.Source.results.files[a.file()].err != nil {
			t.Errorf("given up after %v", waits)
		}
		now = next
	}
	if !slices.Equal(waits, retries[:]) || g.Source.results.files[a.file()].err == nil {
		t.Errorf("waited %v, err %v", waits, g.Source.results.files[a.file()].err)
	}
	// And one that becomes whole meanwhile is taken, and starts anew the next time.
	g.restart()
	g.Source.results.all = true
	now = time.Now()
	next := g.Source.results.work(now)
	g.write(a)
	if next = g.Source.results.work(next); !next.IsZero() || g.Source.results.files[a.file()].content == nil || g.Source.results.files[a.file()].tries != 0 {
		t.Errorf("next %v, file %+v", next, g.Source.results.files[a.file()])
	}
}

// The folders need not be there, come later, are removed, made again and replaced.
func TestFoldersComeAndGo(t *testing.T) {
	g := newGateway(t)
	must(t, os.RemoveAll(filepath.Dir(g.results)))
	must(t, os.RemoveAll(filepath.Dir(g.configs)))
	f := g.run()
	network := func(want string) {
		t.Helper()
		f.until("network "+want, func(r source.Report) bool { return fmt.Sprint(r.Network) == want && r.Err == nil })
	}
	network("{false [] []}")
	a, b := g.of("a", "1", "10.1.0.2/24"), g.of("b", "2", "10.1.0.3/24")
	a.config, b.config = "", `{"name":"edgenet","type":"bridge"}` // which names cni0
	g.unlink("cni0")
	must(t, os.MkdirAll(g.configs, 0o755))
	must(t, os.WriteFile(filepath.Join(g.configs, "10-a.conflist"), []byte(conflist("a", "a0", "10.7.0.0/16")), 0o644))
	network("{false [10.7.0.0/16] [a0]}")
	must(t, os.MkdirAll(g.results, 0o700))
	g.write(b)
	f.tells("default/b[10.1.0.3] 2/edgenet(veth2)")
	network("{true [10.7.0.0/16] [a0 cni0]}")
	must(t, os.RemoveAll(g.results))
	network("{false [10.7.0.0/16] [a0]}")
	f.tells("")
	must(t, os.Mkdir(g.results, 0o700))
	network("{true [10.7.0.0/16] [a0]}")
	g.write(b)
	f.tells("default/b[10.1.0.3] 2/edgenet(veth2)")
	must(t, os.RemoveAll(filepath.Dir(g.results)))
	f.tells("")
	other := filepath.Join(g.top, "elsewhere") // a link to what is on another disk, say
	must(t, os.Symlink(other, filepath.Dir(g.results)))
	must(t, os.MkdirAll(filepath.Join(other, "results"), 0o700))
	g.write(b)
	f.tells("default/b[10.1.0.3] 2/edgenet(veth2)")
	g.link("bridge", "cni0")
	g.write(a)
	f.tells("default/a[10.1.0.2] 1/edgenet(veth1) default/b[10.1.0.3] 2/edgenet(veth2)")
	must(t, os.Remove(filepath.Join(g.configs, "10-a.conflist")))
	network("{true [] [cni0]}")
	must(t, os.WriteFile(filepath.Join(g.configs, "20-b.conf"), []byte(`{"name":"b","type":"bridge","bridge":"b0"}`), 0o644))
	network("{true [] [b0 cni0]}")
	must(t, os.RemoveAll(g.configs))
	network("{true [] [cni0]}")
}

// A file in the folder's place takes nothing away; what can't be read is looked at
// again without an event.
func TestUnreadable(t *testing.T) {
	g := newGateway(t)
	a := g.of("a", "1", "10.1.0.2/24")
	g.write(a)
	f := g.run()
	f.tells("default/a[10.1.0.2] 1/edgenet(veth1)")
	must(t, os.Rename(g.results, g.results+"-away"))
	f.tells("")
	must(t, os.Rename(g.results+"-away", g.results))
	r := f.tells("default/a[10.1.0.2] 1/edgenet(veth1)")
	g.fail(errors.New("netlink: no buffer"))
	g.Poke()
	failed := f.until("the error", func(r source.Report) bool { return r.Err != nil })
	if !slices.Equal(failed.Objects.Pods, r.Objects.Pods) || failed.Confirmed.After(failed.Time) || failed.Confirmed.Before(r.Confirmed) {
		t.Errorf("in force %q, confirmed %v", told(failed), failed.Confirmed)
	}
	g.fail(nil)
	f.tells("default/a[10.1.0.2] 1/edgenet(veth1)")
}

// Refresh and Run tell the same, and Run tells what Refresh found.
func TestRefreshBesideRun(t *testing.T) {
	g := newGateway(t)
	f := g.run()
	f.tells("")
	for i := range 10 {
		x := g.of("a", "1", fmt.Sprintf("10.1.0.%d/24", 10+i))
		g.write(x)
		want := fmt.Sprintf("default/a[10.1.0.%d] 1/edgenet(veth1)", 10+i)
		r := g.look()
		if told(r) != want {
			t.Fatalf("refresh %d: %q", i, told(r))
		}
		if i%2 == 0 { // nobody takes the other reports for a while
			if ran := f.tells(want); ran.Objects.Pods[0] != r.Objects.Pods[0] {
				t.Error("Run has another pod than Refresh")
			}
		}
	}
}

// In whatever order things happen, what is told in the end is the same.
func TestOrderDoesNotMatter(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			g := newGateway(t)
			old, young, other, gone := g.of("web", "2", "10.1.0.2/24"), g.of("web", "1", "10.1.0.3/24"), g.of("db", "3", "10.1.0.4/24"), g.of("x", "4", "10.1.0.5/24")
			written := time.Now().Add(-time.Hour).Truncate(time.Second)
			at := func(x spec, age time.Duration) func() {
				return func() {
					g.write(x)
					must(t, os.Chtimes(filepath.Join(g.results, x.file()), written.Add(-age), written.Add(-age)))
				}
			}
			g.unlink("veth1", "veth2", "veth3")
			must(t, os.Remove(young.netns))
			f := g.run()
			f.tells("")
			steps := []func(){
				at(old, time.Minute), at(young, 0), at(other, 0), at(gone, 0),
				func() { g.link("veth", "veth1"); g.Poke() }, func() { g.link("veth", "veth2"); g.Poke() }, func() { g.link("veth", "veth3"); g.Poke() },
				func() { g.sandbox("1"); g.Poke() }, func() { must(t, os.Remove(gone.netns)); g.Poke() },
				func() {
					must(t, os.WriteFile(filepath.Join(g.configs, "10-n.conflist"), []byte(conflist("n", "kube0", "10.1.0.0/16")), 0o644))
				},
			}
			rng.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
			for _, step := range steps {
				step()
				if rng.IntN(3) == 0 {
					select {
					case f.last = <-f.reports:
					case <-time.After(time.Duration(rng.IntN(5)) * time.Millisecond):
					}
				}
			}
			want := "default/db[10.1.0.4] 3/edgenet(veth3) default/web[10.1.0.2 10.1.0.3] 1/edgenet(veth1) 2/edgenet(veth2)"
			// Times are set after the writing: that is an event of its own.
			r := f.until("all of it", func(r source.Report) bool {
				return told(r) == want && fmt.Sprint(r.Network) == "{true [10.1.0.0/16] [cni0 kube0]}" &&
					!slices.ContainsFunc(r.Objects.Pods, func(p *inventory.Pod) bool {
						return slices.ContainsFunc(p.Attachments, func(a inventory.Attachment) bool { return a.Written.After(written) })
					})
			})
			web := r.Objects.Pods[1]
			if web.UID != young.uid || web.Origin.File != filepath.Join(g.results, young.file()) || len(r.Rejected)+len(r.Diagnostics) > 0 || r.Err != nil {
				t.Errorf("pod %+v, report %+v", web, r)
			}
			g.restart()
			fresh := g.look()
			if told(fresh) != want || string(fresh.Objects.Pods[1].JSON) != string(web.JSON) || !slices.EqualFunc(fresh.Objects.Pods[1].Attachments, web.Attachments, same) {
				t.Errorf("read at once: %q", told(fresh))
			}
		})
	}
}

// A change that fits in a tick of the file system's clock is seen all the same.
func TestQuickChanges(t *testing.T) {
	g := newGateway(t)
	f := g.run()
	f.tells("")
	x := g.of("a", "1", "10.1.0.10/24")
	for i := range 200 {
		x.addresses = []string{fmt.Sprintf("10.1.0.%d/24", 10+i%90)}
		g.write(x)
	}
	f.tells(fmt.Sprintf("default/a[10.1.0.%d] 1/edgenet(veth1)", 10+199%90))
}

// Nobody takes reports: the one that is taken then is the newest.
func TestSlowReader(t *testing.T) {
	g := newGateway(t)
	f := g.run()
	f.tells("")
	var specs []string
	for i := range 30 {
		g.write(g.of(fmt.Sprintf("p%02d", i), fmt.Sprintf("%02d", i), fmt.Sprintf("10.1.0.%d/24", 10+i)))
		specs = append(specs, fmt.Sprintf("default/p%02d[10.1.0.%d] %02d/edgenet(veth%02d)", i, 10+i, i, i))
	}
	wait(t, "the source to have seen all", func() bool {
		g.Source.mu.Lock()
		defer g.Source.mu.Unlock()
		return len(g.Source.report.Objects.Pods) == 30
	})
	n := len(f.seen)
	f.tells(strings.Join(specs, " "))
	if len(f.seen)-n > 2 { // the one on offer, and the newest
		t.Errorf("%d reports, of which all but the last are stale", len(f.seen)-n)
	}
}

// Where the kernel gives no watches the folders are looked at every second, and
// that is said once. The test runs itself in a user namespace that may have none.
func TestWithoutInotify(t *testing.T) {
	const marker = "CNI_TEST_WITHOUT_INOTIFY"
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
	g := newGateway(t)
	var said bytes.Buffer
	g.Source.log = slog.New(slog.NewTextHandler(&said, nil))
	ctx, cancel := context.WithCancel(t.Context())
	f := &follow{gateway: g, reports: make(chan source.Report)}
	done := make(chan error)
	go func() { done <- g.Source.Run(ctx, f.reports) }()
	f.tells("")
	a := g.of("a", "1", "10.1.0.2/24")
	g.write(a)
	f.tells("default/a[10.1.0.2] 1/edgenet(veth1)")
	g.remove(a)
	f.tells("")
	cancel()
	must(t, <-done)
	if n := strings.Count(said.String(), "every second"); n != 1 {
		t.Errorf("said %d times: %s", n, said.String())
	}
}
