package directory

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
)

// policy is a valid NetworkPolicy that can be told by its port.
func policy(name string, port int) string {
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s}\nspec:\n  podSelector: {}\n  ingress:\n  - ports:\n    - {port: %d}\n", name, port)
}

func pod(name, address string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {nodeName: elsewhere}\nstatus: {phase: Running, podIP: %s}\n", name, address)
}

// told names everything in force: "web:80" for a policy of namespace default.
func told(r source.Report) string {
	var all []string
	for _, n := range r.Objects.Namespaces {
		all = append(all, "namespace/"+n.Key.Name)
	}
	for _, p := range r.Objects.Pods {
		all = append(all, "pod/"+p.Key.Name)
	}
	for _, p := range r.Objects.Policies {
		all = append(all, fmt.Sprintf("%s:%d", p.Key.Name, port(p)))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func port(p *inventory.Policy) uint16 {
	if rules := p.Rules[inventory.Ingress]; len(rules) > 0 && len(rules[0].Ports) > 0 {
		return rules[0].Ports[0].First
	}
	return 0
}

// rejections names what was rejected: "default/web+" if an older version is kept.
func rejections(r source.Report) string {
	var all []string
	for _, x := range r.Rejected {
		name := x.Object
		if name == "" {
			name = filepath.Base(x.Origin.File)
		}
		name = strings.TrimPrefix(name, "NetworkPolicy default/")
		if x.Kept {
			name += "+"
		}
		all = append(all, name)
	}
	return strings.Join(all, " ")
}

// follow is a source that runs.
type follow struct {
	t       *testing.T
	source  *Source
	reports chan source.Report
	last    source.Report
	seen    []source.Report
}

func start(t *testing.T, dir string, last func() inventory.Objects) *follow {
	t.Helper()
	f := &follow{t: t, source: New(dir, last, slog.New(slog.DiscardHandler)), reports: make(chan source.Report)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.source.Run(ctx, f.reports) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Run did not end")
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
	limit := time.After(8 * time.Second)
	for {
		select {
		case r := <-f.reports:
			if r.Source != "directory" || !r.Time.After(f.last.Time) {
				f.t.Fatalf("report of %q at %v after one at %v", r.Source, r.Time, f.last.Time)
			}
			f.last = r
			f.seen = append(f.seen, r)
			if ok(r) {
				return r
			}
		case <-limit:
			f.t.Fatalf("no report with %s; in force: %q, rejected: %v, err: %v, diagnostics: %v", what, told(f.last), f.last.Rejected, f.last.Err, f.last.Diagnostics)
		}
	}
}

// has waits until exactly this is in force, in good order.
func (f *follow) has(want string) source.Report {
	f.t.Helper()
	return f.until(fmt.Sprintf("%q in force", want), func(r source.Report) bool {
		return told(r) == want && len(r.Rejected) == 0 && r.Err == nil
	})
}

// still makes sure that nothing is reported for a while.
func (f *follow) still() {
	f.t.Helper()
	select {
	case r := <-f.reports:
		f.t.Fatalf("unexpected report: in force %q, rejected %v, err %v", told(r), r.Rejected, r.Err)
	case <-time.After(5 * quiet):
	}
}

func write(t *testing.T, path string, content ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(content, "---\n")), 0o644); err != nil {
		t.Fatal(err)
	}
}

// must is for steps that can't fail.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// saved gives what a report had in force to a source that starts.
func saved(r source.Report) func() inventory.Objects {
	return func() inventory.Objects { return r.Objects }
}

// read reads a directory once.
func read(t *testing.T, dir string, last func() inventory.Objects) source.Report {
	t.Helper()
	r, err := New(dir, last, slog.New(slog.DiscardHandler)).Refresh(t.Context())
	must(t, err)
	return r
}

func TestNames(t *testing.T) {
	dir := t.TempDir()
	names := map[string]bool{
		"a.yaml": true, "b.yml": true, "c.json": true, "with space.yaml": true, "d.e.yaml": true,
		"x.txt": false, "yaml": false, "x.YAML": false, "x.yaml.bak": false, "README": false,
		".hidden.yaml": false, "x.yaml~": false, "x.yaml.dpkg-old": false, "x.dpkg-new.yaml": false,
		"x.yaml.dpkg-dist": false, "x.yaml.rpmsave": false, ".x.yaml.swp": false, "x.yaml.swp": false, "x.swp": false,
	}
	var want []string
	i := 0
	for name, ok := range names {
		i++
		content := policy(fmt.Sprintf("p%d", i), i)
		if filepath.Ext(name) == ".json" {
			content = fmt.Sprintf(`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p%d"},"spec":{"podSelector":{},"ingress":[{"ports":[{"port":%d}]}]}}`, i, i)
		}
		write(t, filepath.Join(dir, name), content)
		if ok {
			want = append(want, fmt.Sprintf("p%d:%d", i, i))
		}
	}
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	write(t, filepath.Join(dir, "sub", "deep.yaml"), policy("deep", 1))
	slices.Sort(want)
	if r := read(t, dir, nil); told(r) != strings.Join(want, " ") || len(r.Rejected) > 0 {
		t.Errorf("in force %q, rejected %v; want %q", told(r), r.Rejected, want)
	}
}

func TestDocuments(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "many.yaml"), policy("a", 1), pod("one", "10.0.0.1"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: prod}\n", "")
	write(t, filepath.Join(dir, "list.yaml"), `apiVersion: v1
kind: List
items:
- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: b}, spec: {podSelector: {}, ingress: [{ports: [{port: 2}]}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: two}, spec: {nodeName: "00000000000000000000000000000001"}, status: {podIP: 10.0.0.2}}
`)
	r := read(t, dir, nil)
	if want := "a:1 b:2 namespace/prod pod/one pod/two"; told(r) != want || len(r.Rejected) > 0 {
		t.Errorf("in force %q, rejected %v; want %q", told(r), r.Rejected, want)
	}
	o := r.Objects.Policies[1].Origin
	if o.Source != "directory" || o.File != filepath.Join(dir, "many.yaml") || o.Line != 1 {
		t.Errorf("origin of a: %+v", o)
	}
}

// Files that can't be trusted or read are refused by name, and others apply.
// What a file holds now, and what is in force when it held something else
// before: the heart of S9.
func TestLastValidVersion(t *testing.T) {
	const noName = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nspec: {podSelector: {}}\n"
	broken := policy("a", 99) + "  - from\n      podSelector: x\n"
	bad := func(name string) string { return strings.Replace(policy(name, 99), "port: 99", "port: 70000", 1) }
	files := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	join := func(docs ...string) string { return strings.Join(docs, "---\n") }
	for name, tt := range map[string]struct {
		before, after  map[string]string
		want, rejected string
	}{
		"changed":                      {files("f", policy("a", 1)), files("f", policy("a", 2)), "a:2", ""},
		"file gone":                    {files("f", policy("a", 1), "g", policy("b", 1)), files("g", policy("b", 1)), "b:1", ""},
		"directory emptied":            {files("f", policy("a", 1)), files(), "", ""},
		"file emptied":                 {files("f", policy("a", 1)), files("f", ""), "", ""},
		"document gone":                {files("f", join(policy("a", 1), policy("b", 1))), files("f", policy("b", 1)), "b:1", ""},
		"not parsed: all of it stays":  {files("f", join(policy("a", 1), policy("b", 1))), files("f", broken), "a:1 b:1", "f.yaml+"},
		"not parsed, never valid":      {files(), files("f", broken, "g", policy("b", 1)), "b:1", "f.yaml"},
		"not valid: its own version":   {files("f", policy("a", 1)), files("f", bad("a")), "a:1", "a+"},
		"not valid, siblings apply":    {files("f", join(policy("a", 1), policy("b", 1))), files("f", join(bad("a"), policy("b", 2), policy("c", 3))), "a:1 b:2 c:3", "a+"},
		"not valid, sibling gone":      {files("f", join(policy("a", 1), policy("b", 1))), files("f", bad("a")), "a:1", "a+"},
		"not valid, never was":         {files("f", policy("b", 1)), files("f", join(bad("a"), policy("b", 1))), "b:1", "a"},
		"no name: what is gone stays":  {files("f", join(policy("a", 1), policy("b", 1))), files("f", join(noName, policy("b", 2))), "a:1 b:2", "f.yaml+"},
		"no name, all present":         {files("f", policy("a", 1)), files("f", join(noName, policy("a", 2))), "a:2", "f.yaml"},
		"no name, moved elsewhere":     {files("f", join(policy("a", 1), policy("b", 1))), files("f", noName, "g", policy("a", 2)), "a:2 b:1", "f.yaml+"},
		"impossible name":              {files("f", policy("a", 1)), files("f", policy("a_b", 2)), "a:1", "a_b+"},
		"misspelt kind":                {files("f", policy("a", 1)), files("f", strings.Replace(policy("a", 2), "NetworkPolicy", "networkPolicy", 1)), "a:1", "networkPolicy default/a+"},
		"wrong apiVersion":             {files("f", policy("a", 1)), files("f", strings.Replace(policy("a", 2), "k8s.io/v1", "k8s.io/v1beta1", 1)), "a:1", "a+"},
		"no object at all":             {files("f", policy("a", 1)), files("f", "- a\n- b\n"), "a:1", "f.yaml+"},
		"moved and not valid":          {files("f", policy("a", 1)), files("g", bad("a")), "a:1", "a+"},
		"not valid beside a valid one": {files("f", policy("a", 1)), files("f", policy("a", 2), "g", bad("a")), "a:2", "a+"},
		"not valid in the winner":      {files("f", policy("a", 1), "g", policy("b", 1)), files("f", bad("a"), "g", policy("a", 2)), "a:1", "a a+"},
		"two of a name":                {files(), files("f", policy("a", 1), "g", policy("a", 2)), "a:1", "a"},
		"two of a name in one file":    {files(), files("f", join(policy("a", 1), policy("a", 2))), "a:1", "a"},
		"new first of a name":          {files("g", policy("a", 2)), files("f", policy("a", 1), "g", policy("a", 2)), "a:1", "a"},
		"the first of a name gone":     {files("f", policy("a", 1), "g", policy("a", 2)), files("g", policy("a", 2)), "a:2", ""},
		"a kind for others":            {files("f", policy("a", 1)), files("f", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n"), "", ""},
		"list with one not valid": {files("f", policy("a", 1)), files("f", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: p}}\n"+
			"- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, spec: {podSelectr: {}}}\n"), "a:1 pod/p", "a+"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put := func(files map[string]string) {
				for name, content := range files {
					write(t, filepath.Join(dir, name+".yaml"), content)
				}
			}
			put(tt.before)
			s := New(dir, nil, slog.New(slog.DiscardHandler))
			before, err := s.Refresh(t.Context())
			must(t, err)
			for name := range tt.before {
				if _, ok := tt.after[name]; !ok {
					must(t, os.Remove(filepath.Join(dir, name+".yaml")))
				}
			}
			put(tt.after)
			after, err := s.Refresh(t.Context())
			must(t, err)
			check := func(how string, r source.Report) {
				t.Helper()
				if told(r) != tt.want || rejections(r) != tt.rejected {
					t.Errorf("%s: in force %q, want %q; rejected %q, want %q (%v)", how, told(r), tt.want, rejections(r), tt.rejected, r.Diagnostics)
				}
			}
			check("at once", after)
			again, err := s.Refresh(t.Context())
			must(t, err)
			check("looked at again", again)
			if again.Time != after.Time {
				t.Error("nothing changed, and yet there is a new report")
			}
			check("changed while the daemon was away", read(t, dir, saved(before)))
			check("after a restart", read(t, dir, saved(after)))
		})
	}
}

// The saved state costs nothing where it is not needed.
func TestSavedStateIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), policy("a", 1))
	asked := 0
	last := func() inventory.Objects { asked++; return inventory.Objects{} }
	s := New(dir, last, slog.New(slog.DiscardHandler))
	for i, want := range []int{0, 0} {
		if _, err := s.Refresh(t.Context()); err != nil || asked != want {
			t.Errorf("refresh %d: asked %d times, %v", i, asked, err)
		}
		write(t, filepath.Join(dir, "b.yaml"), "bad") // too late to have been in force
	}
	s = New(dir, last, slog.New(slog.DiscardHandler))
	for range 2 {
		if _, err := s.Refresh(t.Context()); err != nil || asked != 1 {
			t.Errorf("something bad: asked %d times, %v", asked, err)
		}
	}
}

// The same object keeps its pointer: what follows is computed from what changed.
func TestPointers(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")
	write(t, a, policy("a", 1), policy("x", 5))
	write(t, b, policy("b", 1))
	s := New(dir, nil, slog.New(slog.DiscardHandler))
	second, err := s.Refresh(t.Context())
	must(t, err)
	write(t, a, policy("a", 2), policy("x", 5)) // as long as before
	third, err := s.Refresh(t.Context())
	must(t, err)
	if told(third) != "a:2 b:1 x:5" || third.Objects.Policies[0] == second.Objects.Policies[0] ||
		third.Objects.Policies[1] != second.Objects.Policies[1] || third.Objects.Policies[2] != second.Objects.Policies[2] {
		t.Errorf("in force %q; want a changed alone", told(third))
	}
	write(t, a, "# moved\n"+policy("a", 2), policy("x", 5))
	fourth, err := s.Refresh(t.Context())
	must(t, err)
	if o := fourth.Objects.Policies[1].Origin; o.Line != 11 {
		t.Errorf("x moved to line %d, want 11", o.Line)
	}
}

// A file that did not change is not decoded again: a change costs what changed.
func TestUnchangedFileIsNotRead(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")
	write(t, a, "kind: Service\napiVersion: v1\n") // a warning, which every decoding makes anew
	write(t, b, "kind: Service\napiVersion: v1\n")
	s := New(dir, nil, slog.New(slog.DiscardHandler))
	warning := func(name string) *manifest.Diagnostic {
		t.Helper()
		_, err := s.Refresh(t.Context())
		must(t, err)
		if len(s.files[name].diagnostics) != 1 {
			t.Fatalf("diagnostics of %s: %v", name, s.files[name].diagnostics)
		}
		return &s.files[name].diagnostics[0]
	}
	first, other := warning("a.yaml"), warning("b.yaml")
	must(t, os.Chtimes(b, time.Unix(1, 0), time.Unix(1, 0)))
	if warning("a.yaml") != first {
		t.Error("a.yaml was decoded again")
	}
	if warning("b.yaml") == other {
		t.Error("b.yaml was not decoded again")
	}
}

// Whatever a file held and holds: what is valid now is in force, and nothing is
// that neither held.
func FuzzTake(f *testing.F) {
	f.Add(policy("a", 1), policy("a", 2)+"---\n"+policy("b", 1))
	f.Add(policy("a", 1)+"---\n"+pod("p", "10.0.0.1"), "kind: NetworkPolicy\n---\n"+policy("b", 1))
	f.Add(policy("a", 1), "a: [")
	f.Add(pod("p", "10.0.0.1"), "apiVersion: v1\nkind: List\nitems:\n- {kind: Pod, metadata: {name: p}}\n- {}\n")
	f.Fuzz(func(t *testing.T, before, after string) {
		s := New("/d", nil, slog.New(slog.DiscardHandler))
		x := &file{}
		s.files["x.yaml"] = x
		var held, valid []id
		for _, content := range []string{before, after} {
			read := manifest.Decode(Name, "/d/x.yaml", []byte(content))
			valid = nil
			for _, d := range read.Documents {
				if d.Valid {
					valid = append(valid, idOf(&d))
				}
			}
			held = append(held, valid...)
			x.take(read)
			s.dirty = true
			s.assemble(time.Now())
			if read.Parsed {
				for _, i := range valid {
					if d := s.inForce[i]; d == nil || d.Origin.File != "/d/x.yaml" {
						t.Errorf("%s is valid and not in force", i)
					}
				}
			} else if len(s.report.Rejected) != 1 {
				t.Errorf("not parsed: rejected %v", s.report.Rejected)
			}
		}
		for i := range s.inForce {
			if !slices.Contains(held, i) {
				t.Errorf("%s is in force and in no version", i)
			}
		}
		o := s.report.Objects
		if len(o.Pods)+len(o.Namespaces)+len(o.Policies) != len(s.inForce) {
			t.Errorf("%d in force, reported %q", len(s.inForce), told(s.report))
		}
	})
}
