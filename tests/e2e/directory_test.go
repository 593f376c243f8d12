package e2e

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/status"
)

// lone is a routed world with web and client, whose daemon runs.
func lone(t *testing.T) *world {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client, other)
	w.must(w.Start())
	return w
}

// reaches says whether a packet of client to web arrives.
func (w *world) reaches() bool { return w.reach(tcp("10.42.0.11", "10.42.0.12", 80)) }

func (w *world) open() bool   { return w.reaches() }
func (w *world) closed() bool { return !w.reaches() }

// Any way of writing is followed, without a reload.
func TestDirectoryIsFollowed(t *testing.T) {
	w := lone(t)
	path := filepath.Join(w.Dir, "p.yaml")
	deny := policy("web", isolateWeb)
	allow := policy("web", isolateWeb+", ingress: [{}]")

	w.must(os.WriteFile(path, []byte(deny), 0o644))
	w.eventually("a new file", w.closed)
	w.must(os.WriteFile(path, []byte(allow), 0o644))
	w.eventually("written in place", w.open)
	w.must(w.Write("p.yaml", deny))
	w.eventually("renamed over", w.closed)
	w.must(os.Remove(path))
	w.eventually("removed", w.open)

	elsewhere := filepath.Join(t.TempDir(), "p.yaml")
	w.must(os.WriteFile(elsewhere, []byte(deny), 0o644))
	w.must(os.Symlink(elsewhere, path))
	w.eventually("a link to a file elsewhere", w.closed)
	w.must(os.WriteFile(elsewhere, []byte(allow), 0o644))
	w.eventually("which is written", w.open)
	w.healthy()
}

// As Kubernetes fills a volume: the files are links through ..data, which is
// swapped for a new folder.
func TestDirectoryDataLink(t *testing.T) {
	w := lone(t)
	version := func(n, content string) {
		w.t.Helper()
		folder := "..2026_" + n
		w.must(os.Mkdir(filepath.Join(w.Dir, folder), 0o755))
		w.must(os.WriteFile(filepath.Join(w.Dir, folder, "p.yaml"), []byte(content), 0o644))
		w.must(os.Symlink(folder, filepath.Join(w.Dir, "..data_tmp")))
		w.must(os.Rename(filepath.Join(w.Dir, "..data_tmp"), filepath.Join(w.Dir, "..data")))
	}
	version("1", policy("web", isolateWeb))
	w.must(os.Symlink("..data/p.yaml", filepath.Join(w.Dir, "p.yaml")))
	w.eventually("the first version", w.closed)
	version("2", policy("web", isolateWeb+", ingress: [{}]"))
	w.must(os.RemoveAll(filepath.Join(w.Dir, "..2026_1")))
	w.eventually("the second", w.open)
	version("3", policy("web", isolateWeb))
	w.must(os.RemoveAll(filepath.Join(w.Dir, "..2026_2")))
	w.must(w.Reload())
	w.see("the third, at once by a reload", "client web 80 no")
	if s, _ := w.status(); len(s.Policies) != 1 || s.Health != status.Healthy {
		t.Errorf("policies %+v, %s: each is to be read once", s.Policies, s.Health)
	}
}

// A half-written file is never enforced, also if its half would be valid.
func TestDirectoryHalfWritten(t *testing.T) {
	w := lone(t)
	whole := documents(policy("web", isolateWeb), policy("more", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]"))
	half := policy("web", isolateWeb) // denies all: valid, and wrong
	w.apply("p.yaml", documents(policy("web", isolateWeb), policy("more", isolateWeb+", ingress: [{}]")))
	const before = "client web 80 yes\n other web 80 yes"

	f, err := os.OpenFile(filepath.Join(w.Dir, "p.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
	w.must(err)
	stays := func(why string) {
		w.t.Helper()
		for deadline := time.Now().Add(300 * time.Millisecond); time.Now().Before(deadline) && !t.Failed(); {
			w.see(why, before)
		}
	}
	stays("emptied")
	_, err = io.WriteString(f, half+"---\n")
	w.must(err)
	stays("half")
	w.must(w.Reload())
	w.see("a reload does not take it either", before)
	_, err = io.WriteString(f, strings.TrimPrefix(whole, half+"---\n"))
	w.must(err)
	w.must(f.Close())
	w.eventually("whole", func() bool { return !w.reach(tcp("10.42.0.13", "10.42.0.12", 80)) })
	w.see("whole", "client web 80 yes\n other web 80 no")
	w.healthy()

	// One that was cut off, and closed: what it had stays, as it does not parse.
	w.apply("p.yaml", whole[:strings.LastIndex(whole, "podSelector")])
	w.see("cut off", "client web 80 yes\n other web 80 no")
	w.degraded("p.yaml")
}

// The directory removed and made again, or missing at start.
func TestDirectoryMadeAgain(t *testing.T) {
	w := lone(t)
	w.apply("p.yaml", policy("web", isolateWeb))
	w.must(os.RemoveAll(w.Dir))
	w.eventually("missing is told", func() bool { s, _ := w.status(); return s.Health == status.Degraded })
	w.see("everything stays", "client web 80 no")
	w.must(os.Mkdir(w.Dir, 0o755))
	w.eventually("empty means deleted", w.open)
	w.must(w.Write("pods.yaml", documents(web.yaml(), client.yaml(), other.yaml())))
	w.must(w.Write("p.yaml", policy("web", isolateWeb)))
	w.eventually("followed again", w.closed)

	w.must(w.Stop())
	w.must(os.RemoveAll(w.Dir))
	w.must(w.Start())
	w.see("from the saved state", "client web 80 no\n web client 80 yes")
	w.degraded(w.Dir)
	w.must(os.Mkdir(w.Dir, 0o755))
	w.eventually("made later", w.open)
	w.healthy()
}

// Files that others may write are refused by name, and what is no policy file is
// not looked at.
func TestDirectoryForeignFiles(t *testing.T) {
	w := lone(t)
	deny := policy("web", isolateWeb)
	for _, name := range []string{".p.yaml", "p.yaml~", "p.yaml.swp", "p.dpkg-old.yaml", "p.yaml.dpkg-new", "p.yaml.rpmsave", "p.txt"} {
		w.must(os.WriteFile(filepath.Join(w.Dir, name), []byte(deny), 0o644))
	}
	w.must(os.Mkdir(filepath.Join(w.Dir, "sub"), 0o755))
	w.must(os.WriteFile(filepath.Join(w.Dir, "sub", "p.yaml"), []byte(deny), 0o644))
	w.must(w.Reload())
	w.see("none of them is read", "client web 80 yes")
	w.healthy()

	path := filepath.Join(w.Dir, "p.yaml")
	w.must(os.WriteFile(path, []byte(deny), 0o644))
	w.must(os.Chmod(path, 0o664))
	w.must(w.Reload())
	w.see("writable by the group", "client web 80 yes")
	w.degraded("p.yaml", "0664", "chmod")
	w.must(os.Chmod(path, 0o644))
	w.must(w.Reload())
	w.see("mended", "client web 80 no")
	w.healthy()
	w.must(os.WriteFile(path, []byte(policy("web", isolateWeb+", ingress: [{}]")), 0o644))
	w.must(os.Chown(path, 65534, 65534))
	w.must(w.Reload())
	w.see("of another user: what it had stays", "client web 80 no")
	w.degraded("p.yaml", "65534")
}

// The saved state: a restart with an invalid document keeps its last valid
// version; a damaged state file is set aside, told, and neither trusted nor fatal.
func TestStateFile(t *testing.T) {
	w := lone(t)
	broken := policy("web", isolateWeb+", ingress: [{from: [{podSelectr: {}}]}]")
	w.apply("p.yaml", policy("web", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: other}}}]}]"))
	w.must(w.Stop())
	w.must(w.Write("p.yaml", broken))
	w.must(w.Write("q.yaml", policy("client", "podSelector: {matchLabels: {app: client}}")))
	w.must(w.Start())
	const last = "client web 80 no\n other web 80 yes\n"
	w.see("its last valid version, and the new sibling", last+"web client 80 no")
	w.degraded("p.yaml", "spec.ingress[0].from[0]", "last valid version stays")

	w.must(w.Stop())
	file := filepath.Join(w.State, "state")
	before, err := os.Stat(file)
	w.must(err)
	w.gw("nft", "flush", "ruleset") // nothing but the state knows it now
	w.must(w.Start())
	w.see("also with an empty kernel", last+"web client 80 no")
	w.must(w.Stop())
	after, err := os.Stat(file)
	w.must(err)
	if !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Error("the state file was written although nothing changed")
	}

	data, err := os.ReadFile(file)
	w.must(err)
	data[len(data)/2] ^= 0x20
	w.must(os.WriteFile(file, data, 0o600))
	w.must(w.Start())
	w.see("nobody knows the last valid version: the table that was found stays", last+"web client 80 no")
	w.degraded("p.yaml", "spec.ingress[0].from[0]", "the table that was found in the kernel is left as it is")
	aside, err := os.ReadFile(filepath.Join(w.State, "state.damaged-1"))
	if err != nil || string(aside) != string(data) {
		t.Errorf("the damaged state file was not set aside: %v", err)
	}
	if !strings.Contains(w.Log(), "state.damaged-1") {
		t.Error("the log does not say that the state file is damaged, and where it is now")
	}
	w.apply("p.yaml", policy("web", isolateWeb))
	w.see("mended", "client web 80 no\n other web 80 no")
	w.healthy()
}

// A power cut that damages the state, and a directory that is not there: what is
// in the kernel is all that is known, and stays until the directory is back.
func TestStateAndDirectoryLost(t *testing.T) {
	w := lone(t)
	w.apply("p.yaml", policy("web", isolateWeb))
	w.must(w.Stop())
	file := filepath.Join(w.State, "state")
	data, err := os.ReadFile(file)
	w.must(err)
	w.must(os.WriteFile(file, data[:len(data)-1], 0o600))
	w.must(os.Rename(w.Dir, w.Dir+".away"))
	w.must(w.Start())
	w.see("nothing is known but the table", "client web 80 no\n other web 80 no")
	w.degraded("the table that was found in the kernel is left as it is")
	w.must(w.Stop())
	w.must(w.Start())
	w.see("another start knows no more", "client web 80 no\n other web 80 no")
	w.degraded("the table that was found in the kernel is left as it is")
	w.must(os.Rename(w.Dir+".away", w.Dir))
	w.must(w.Reload())
	w.see("known again", "client web 80 no\n other web 80 no")
	w.healthy()
	w.must(w.Remove("p.yaml"))
	w.must(w.Reload())
	w.see("and changes are followed", "client web 80 yes")
}
