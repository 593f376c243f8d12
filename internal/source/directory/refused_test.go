package directory

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
)

func TestRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to make files of other users and devices")
	}
	for name, tt := range map[string]struct {
		make func(path string) error
		want string
	}{
		"group may write":  {func(p string) error { return os.Chmod(p, 0o664) }, "mode is 0664"},
		"others may write": {func(p string) error { return os.Chmod(p, 0o602) }, "mode is 0602"},
		"another's":        {func(p string) error { return os.Chown(p, 4711, 0) }, "owner is user 4711"},
		"directory":        {func(p string) error { os.Remove(p); return os.Mkdir(p, 0o755) }, "is a directory"},
		"fifo":             {func(p string) error { os.Remove(p); return mknod(p, fifo) }, "no regular file"},
		"device":           {func(p string) error { os.Remove(p); return mknod(p, null) }, "no regular file"},
		"link to nothing":  {func(p string) error { os.Remove(p); return os.Symlink("nothing", p) }, "link to nothing"},
		"link to itself":   {func(p string) error { os.Remove(p); return os.Symlink(filepath.Base(p), p) }, "too many levels"},
		"link to another's": {func(p string) error {
			target := filepath.Join(filepath.Dir(p), "target")
			must(t, os.Rename(p, target))
			must(t, os.Chown(target, 4711, 0))
			return os.Symlink(target, p)
		}, "owner is user 4711"},
		"too large": {func(p string) error { return os.Truncate(p, maxSize+1) }, "are the most"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "bad.yaml")
			write(t, path, policy("bad", 1))
			write(t, filepath.Join(dir, "good.yaml"), policy("good", 2))
			last := read(t, dir, nil)
			must(t, tt.make(path))
			if r := read(t, dir, nil); told(r) != "good:2" || rejections(r) != "bad.yaml" || !strings.Contains(r.Rejected[0].Reason, tt.want) ||
				len(r.Diagnostics) != 1 || r.Diagnostics[0].File != path {
				t.Errorf("new file: in force %q, rejected %+v, diagnostics %v; want %q", told(r), r.Rejected, r.Diagnostics, tt.want)
			}
			// What was in force while it could be believed stays.
			if r := read(t, dir, saved(last)); told(r) != "bad:1 good:2" || rejections(r) != "bad.yaml+" {
				t.Errorf("known file: in force %q, rejected %+v", told(r), r.Rejected)
			}
		})
	}
}

// Who asks before the daemon does is told the same, and of owner and mode apart.
func TestReadAndUntrusted(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name+".yaml") }
	for _, name := range []string{"good", "open", "other", "large"} {
		write(t, path(name), policy(name, 1))
	}
	must(t, os.Chmod(path("open"), 0o664))
	must(t, os.Chown(path("other"), 4711, 0))
	must(t, os.Truncate(path("large"), maxSize+1))
	must(t, mknod(path("fifo"), fifo))
	must(t, os.Mkdir(path("folder"), 0o777))
	must(t, os.Symlink("nothing", path("link")))
	for name, want := range map[string]string{
		"good": "", "open": "", "other": "",
		"large": "are the most", "fifo": "no regular file", "folder": "is a directory", "link": "link to nothing", "none": "no such file",
	} {
		done := make(chan manifest.File, 1)
		go func() { done <- Read(path(name)) }()
		select {
		case f := <-done:
			got := fmt.Sprint(f.Diagnostics)
			if want == "" && (!f.Parsed || len(f.Diagnostics) > 0 || len(f.Documents) != 1) ||
				want != "" && (f.Parsed || len(f.Diagnostics) != 1 || f.Diagnostics[0].File != path(name) || !strings.Contains(got, "not read: ") || !strings.Contains(got, want)) {
				t.Errorf("%s: parsed %v, %v; want %q", name, f.Parsed, got, want)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: still being read", name)
		}
	}
	found := Untrusted(dir)
	if len(found) != 2 || found[0].File != path("open") || found[1].File != path("other") || found[0].Severity != manifest.Warning ||
		!strings.Contains(found[0].Message, "chmod go-w") || !strings.Contains(found[1].Message, "chown root") {
		t.Errorf("untrusted: %v", found)
	}
}

// What is rejected is said at the line and column of what is wrong with it.
func TestRejectedPlace(t *testing.T) {
	dir := t.TempDir()
	bad := strings.Replace(policy("bad", 1), "port: 1", "port: 70000", 1)
	write(t, filepath.Join(dir, "f.yaml"), policy("a", 1), bad,
		strings.Replace(policy("worse", 70000), "podSelector", "podSelectr", 1), "metadata: {name: x}\n")
	write(t, filepath.Join(dir, "g.yaml"), policy("b", 1)+"  - from\n    x: y\n")
	var got []string
	for _, x := range read(t, dir, nil).Rejected {
		if x.Origin.Source != Name {
			t.Errorf("%+v: not from the directory", x)
		}
		got = append(got, fmt.Sprintf("%s:%d:%d: %s", filepath.Base(x.Origin.File), x.Origin.Line, x.Origin.Column, x.Reason))
	}
	for i, want := range []string{
		"f.yaml:17:14: spec.ingress[0].ports[0].port: 70000: must be",
		"f.yaml:23:3: spec.podSelectr: unknown field: did you mean podSelector? (and ",
		"f.yaml:28:1: ",
		"g.yaml:10:0: not YAML: ",
	} {
		if i >= len(got) || !strings.HasPrefix(got[i], want) {
			t.Errorf("rejected %q; want %q at %d", got, want, i)
		}
	}
}

// The error about a second object of a name says where both are.
func TestDuplicateNamesBothPlaces(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "10-a.yaml"), policy("web", 1))
	write(t, filepath.Join(dir, "9-b.yaml"), pod("p", "10.0.0.1"), policy("web", 2))
	r := read(t, dir, nil)
	if told(r) != "pod/p web:1" {
		t.Errorf("in force %q", told(r))
	}
	if len(r.Diagnostics) != 1 || len(r.Rejected) != 1 {
		t.Fatalf("diagnostics %v, rejected %v", r.Diagnostics, r.Rejected)
	}
	text := r.Diagnostics[0].String()
	for _, want := range []string{filepath.Join(dir, "9-b.yaml") + ":7:1: metadata.name: web: ", filepath.Join(dir, "10-a.yaml") + ":1 defines it too"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q lacks %q", text, want)
		}
	}
}

// A directory whose files others may remove is warned of, as long as it is one.
func TestSharedDirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), policy("a", 1))
	f := start(t, dir, nil)
	f.has("a:1")
	for _, tt := range []struct {
		mode os.FileMode
		want string
	}{
		{0o775, "its mode is 0775: "}, {0o757, "its mode is 0757: "}, {0o755, ""}, {0o777, "its mode is 0777: "}, {0o777 | os.ModeSticky, ""},
	} {
		must(t, os.Chmod(dir, tt.mode))
		r := f.until(fmt.Sprintf("%q of mode %v", tt.want, tt.mode), func(r source.Report) bool {
			if tt.want == "" {
				return len(r.Diagnostics) == 0
			}
			return len(r.Diagnostics) == 1 && strings.HasPrefix(r.Diagnostics[0].Message, tt.want)
		})
		if told(r) != "a:1" || len(r.Rejected) > 0 || r.Err != nil {
			t.Errorf("%v: in force %q, rejected %v, err %v", tt.mode, told(r), r.Rejected, r.Err)
		}
		if d := Untrusted(dir); !slices.Equal(d, r.Diagnostics) {
			t.Errorf("%v: untrusted %v, report %v", tt.mode, d, r.Diagnostics)
		}
		if tt.want == "" {
			continue
		}
		if d := r.Diagnostics[0]; d.Severity != manifest.Warning || d.File != dir || !strings.HasSuffix(d.Message, "chmod go-w") {
			t.Errorf("%v: %+v", tt.mode, d)
		}
	}
}
