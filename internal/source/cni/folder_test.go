package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// Whoever can write here dictates who is who.
func TestUntrusted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to make files of other users")
	}
	for name, tt := range map[string]struct {
		make func(path string) error
		want string
	}{
		"group may write":  {func(p string) error { return os.Chmod(p, 0o660) }, "mode is 0660"},
		"others may write": {func(p string) error { return os.Chmod(p, 0o602) }, "mode is 0602"},
		"another's":        {func(p string) error { return os.Chown(p, 4711, 0) }, "owner is user 4711"},
		"too large":        {func(p string) error { return os.Truncate(p, maxSize+1) }, "1048576 are the most"},
		"empty":            {func(p string) error { return os.Truncate(p, 0) }, "no CNI result: unexpected end"},
		"link to itself":   {func(p string) error { os.Remove(p); return os.Symlink(filepath.Base(p), p) }, "too many levels"},
		"no file":          {func(p string) error { os.Remove(p); return os.Symlink("/dev/null", p) }, "no regular file"},
		"another version": {func(p string) error {
			return os.WriteFile(p, []byte(`{"kind":"cniCacheV2"}`), 0o600)
		}, `kind is "cniCacheV2"`},
		"no address": {func(p string) error {
			return os.WriteFile(p, spec{pod: "bad", namespace: "default", sandbox: "1", network: "n", result: `{"ips":[{"address":"10.1.0.2"}]}`}.json(), 0o600)
		}, `result.ips[0].address "10.1.0.2" must be`},
		"no name of a pod": {func(p string) error {
			return os.WriteFile(p, spec{pod: "Bad", namespace: "default", sandbox: "1", network: "n", result: `{}`}.json(), 0o600)
		}, "metadata.name"},
		"no container": {func(p string) error {
			return os.WriteFile(p, spec{pod: "bad", namespace: "default", network: "n", result: `{}`}.json(), 0o600)
		}, "containerId"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			bad, good := g.of("bad", "1", "10.1.0.2/24"), g.of("good", "2", "10.1.0.3/24")
			path := filepath.Join(g.results, bad.file())
			g.write(bad, good)
			g.has("default/bad[10.1.0.2] 1/edgenet(veth1) default/good[10.1.0.3] 2/edgenet(veth2)")
			must(t, tt.make(path))
			check := func(wantTold, wantRejected string) {
				t.Helper()
				r := g.look()
				if told(r) != wantTold || rejections(r) != wantRejected || r.Err != nil || !strings.Contains(r.Rejected[0].Reason, tt.want) ||
					len(r.Diagnostics) != 1 || r.Diagnostics[0].File != path || r.Diagnostics[0].Severity != manifest.Error {
					t.Errorf("in force %q, rejected %+v, diagnostics %v, err %v; want %q", told(r), r.Rejected, r.Diagnostics, r.Err, tt.want)
				}
			}
			// What was known while it could be believed stays, as long as it exists.
			check("default/bad[10.1.0.2] 1/edgenet(veth1) default/good[10.1.0.3] 2/edgenet(veth2)", bad.file()+"+")
			g.unlink(bad.veth)
			check("default/good[10.1.0.3] 2/edgenet(veth2)", bad.file())
			g.link("veth", bad.veth)
			g.restart()
			check("default/good[10.1.0.3] 2/edgenet(veth2)", bad.file())
			must(t, os.Remove(path))
			g.write(bad)
			g.has("default/bad[10.1.0.2] 1/edgenet(veth1) default/good[10.1.0.3] 2/edgenet(veth2)")
		})
	}
}

// A folder in which others may remove files is warned of.
func TestDoubtfulFolder(t *testing.T) {
	g := newGateway(t)
	g.write(g.of("a", "1", "10.1.0.2/24"))
	for _, tt := range []struct {
		mode  os.FileMode
		owner int
		want  string
	}{{0o700, 0, ""}, {0o770, 0, "its mode is 0770: "}, {0o777 | os.ModeSticky, 0, ""}, {0o700, 4711, "its owner is user 4711"}, {0o755, 0, ""}} {
		must(t, os.Chmod(g.results, tt.mode))
		must(t, os.Chown(g.results, tt.owner, 0))
		r := g.has("default/a[10.1.0.2] 1/edgenet(veth1)")
		if tt.want == "" {
			if len(r.Diagnostics) > 0 {
				t.Errorf("%v: %v", tt.mode, r.Diagnostics)
			}
			continue
		}
		if len(r.Diagnostics) != 1 || r.Diagnostics[0].Severity != manifest.Warning || r.Diagnostics[0].File != g.results || !strings.HasPrefix(r.Diagnostics[0].Message, tt.want) {
			t.Errorf("%v: %v", tt.mode, r.Diagnostics)
		}
	}
}

// The folder that is not there is no error and has no pods; what is not a folder
// can't be read, and takes nothing away.
func TestFolder(t *testing.T) {
	g := newGateway(t)
	a := g.of("a", "1", "10.1.0.2/24")
	g.write(a)
	r := g.has("default/a[10.1.0.2] 1/edgenet(veth1)")
	must(t, os.Rename(g.results, g.results+"-away"))
	must(t, os.WriteFile(g.results, nil, 0o600))
	broken := g.look()
	if broken.Err == nil || !strings.Contains(broken.Err.Error(), g.results) || !slices.Equal(broken.Objects.Pods, r.Objects.Pods) || !broken.Confirmed.Equal(r.Confirmed) {
		t.Errorf("a file in the folder's place: %q, err %v, confirmed %v, before %v", told(broken), broken.Err, broken.Confirmed, r.Confirmed)
	}
	must(t, os.Remove(g.results))
	must(t, os.Symlink(filepath.Base(g.results), g.results)) // a link to itself
	if r := g.look(); r.Err == nil || !slices.Equal(r.Objects.Pods, broken.Objects.Pods) || len(r.Rejected)+len(r.Diagnostics) > 0 {
		t.Errorf("a link in the folder's place: %+v", r)
	}
	must(t, os.Remove(g.results))
	if r := g.has(""); r.Network.Present || len(r.Diagnostics) > 0 {
		t.Errorf("no folder: %+v", r)
	}
	must(t, os.Rename(g.results+"-away", g.results))
	if r := g.has("default/a[10.1.0.2] 1/edgenet(veth1)"); !r.Network.Present || !r.Confirmed.After(broken.Confirmed) {
		t.Errorf("the folder is back: %+v", r)
	}
}

// Too many files: what is known stays, and the error says what is the matter.
func TestTooManyFiles(t *testing.T) {
	g := newGateway(t)
	a := g.of("a", "1", "10.1.0.2/24")
	g.write(a)
	g.has("default/a[10.1.0.2] 1/edgenet(veth1)")
	var names []string
	for i := range maxFiles {
		names = append(names, filepath.Join(g.results, fmt.Sprintf("old-%d-eth0", i)))
		must(t, os.WriteFile(names[i], []byte("{}"), 0o600))
	}
	r := g.look()
	if told(r) != "default/a[10.1.0.2] 1/edgenet(veth1)" || r.Err == nil || !strings.Contains(r.Err.Error(), "more than 4096 files") {
		t.Errorf("in force %q, err %v", told(r), r.Err)
	}
	must(t, os.Remove(names[0]))
	g.has("default/a[10.1.0.2] 1/edgenet(veth1)")
	// And one too many that an event tells of.
	b := g.of("b", "2", "10.1.0.3/24")
	g.write(b)
	s := g.Source
	s.results.pending[b.file()] = time.Now()
	for next := s.work(time.Now()); !next.IsZero(); next = s.work(next) {
	}
	s.assemble(t.Context(), time.Now(), false)
	if s.report.Err == nil || len(s.results.files) > maxFiles {
		t.Errorf("%d files, err %v", len(s.results.files), s.report.Err)
	}
}

// Reports are told apart by their times, also where the clock's steps are coarse.
func TestTimeIncreases(t *testing.T) {
	g := newGateway(t)
	now := time.Now()
	last := now.Add(-1)
	for i := range 3 {
		x := g.of(fmt.Sprint("p", i), fmt.Sprint(i), "10.1.0.2/24")
		g.write(x)
		g.Source.results.pending[x.file()] = now
		g.Source.work(now)
		g.Source.assemble(t.Context(), now, false)
		if r := g.Source.report; !r.Time.After(last) || len(r.Objects.Pods) != i+1 {
			t.Errorf("%q at %v after %v", told(r), r.Time, last)
		}
		last = g.Source.report.Time
	}
}
