package state

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
)

var quiet = slog.New(slog.DiscardHandler)

// objects decodes YAML as a source would.
func objects(t testing.TB, source, file, yaml string) inventory.Objects {
	t.Helper()
	f := manifest.Decode(source, file, []byte(yaml))
	var o inventory.Objects
	for _, d := range f.Documents {
		switch {
		case !d.Valid:
			t.Fatalf("not valid: %v", f.Diagnostics)
		case d.Pod != nil:
			o.Pods = append(o.Pods, d.Pod)
		case d.Namespace != nil:
			o.Namespaces = append(o.Namespaces, d.Namespace)
		case d.Policy != nil:
			o.Policies = append(o.Policies, d.Policy)
		}
	}
	return o
}

// sample has every kind of thing that an object can hold.
func sample(t testing.TB, port int) State {
	return State{Sources: map[string]inventory.Objects{
		"directory": objects(t, "directory", "/etc/edgepolicy.d/a.yaml", strings.ReplaceAll(everything, "PORT", fmt.Sprint(port))),
		"api":       objects(t, "api", "", "apiVersion: v1\nkind: Namespace\nmetadata: {name: far, labels: {a: b}}\n"),
	}}
}

const everything = `apiVersion: v1
kind: Namespace
metadata: {name: prod, labels: {env: test}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: prod, labels: {app: web, empty: ""}}
spec:
  initContainers:
  - {name: side, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}]}
  containers:
  - {name: c, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec: {hostNetwork: true}
status: {phase: Succeeded}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: prod}
spec:
  podSelector: {matchLabels: {app: web}, matchExpressions: [{key: tier, operator: NotIn, values: [b, a]}]}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    - {podSelector: {}, namespaceSelector: {matchLabels: {env: x}}}
    ports: [{port: PORT, endPort: 65535}, {port: http}, {protocol: SCTP}]
  - {}
  egress: []
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all}
spec: {podSelector: {}}
`

// all decodes everything that was saved.
func all(s Saved) (State, error) {
	state := State{Boot: s.Boot, Ranges: s.Ranges, Sources: map[string]inventory.Objects{}}
	var errs []error
	for name := range s.sources {
		o, err := s.Objects(name)
		state.Sources[name] = o
		errs = append(errs, err)
	}
	return state, errors.Join(errs...)
}

// load has a new store read a directory.
func load(t testing.TB, dir string) State {
	t.Helper()
	saved, err := New(dir, quiet).Load()
	must(t, err)
	s, err := all(saved)
	must(t, err)
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// save has a new store write the state to a directory, and gives the file.
func save(t testing.TB, dir string, s State) string {
	t.Helper()
	if wrote, err := New(dir, quiet).Save(s); err != nil || !wrote {
		t.Fatalf("Save = %v, %v", wrote, err)
	}
	return filepath.Join(dir, fileName)
}

func names(t testing.TB, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func TestSaveAndLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "edgepolicyd")
	if s, err := New(dir, quiet).Load(); err != nil || len(s.sources) != 0 {
		t.Errorf("no file: %v, %v", s, err)
	}
	want := sample(t, 80)
	path := save(t, dir, want)
	if got := load(t, dir); !reflect.DeepEqual(got, want) {
		t.Errorf("loaded %+v\nsaved %+v", got, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("file: %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	if names(t, dir) != fileName {
		t.Errorf("files: %s", names(t, dir))
	}
}

// Flash wears out: what did not change is not written.
func TestWrittenOnlyWhenChanged(t *testing.T) {
	dir := t.TempDir()
	path := save(t, dir, sample(t, 80))
	inode := func() os.FileInfo {
		info, err := os.Stat(path)
		must(t, err)
		return info
	}
	first := inode()
	s := New(dir, quiet)
	saved, err := s.Load()
	must(t, err)
	loaded, err := all(saved)
	must(t, err)
	for range 2 {
		if wrote, err := s.Save(loaded); wrote || err != nil {
			t.Errorf("what was loaded: wrote %v, %v", wrote, err)
		}
		if wrote, err := s.Save(sample(t, 80)); wrote || err != nil {
			t.Errorf("the same again: wrote %v, %v", wrote, err)
		}
	}
	if !os.SameFile(first, inode()) {
		t.Error("the file was replaced")
	}
	if wrote, err := s.Save(sample(t, 81)); !wrote || err != nil {
		t.Errorf("a change: wrote %v, %v", wrote, err)
	}
	if wrote, err := s.Save(sample(t, 81)); wrote || err != nil {
		t.Errorf("no change: wrote %v, %v", wrote, err)
	}
	must(t, os.Remove(path))
	if wrote, err := s.Save(sample(t, 81)); !wrote || err != nil {
		t.Errorf("the file is gone: wrote %v, %v", wrote, err)
	}
}

// A write that fails, or that ended in a crash, leaves what was there.
func TestFailedWrite(t *testing.T) {
	dir := t.TempDir()
	path := save(t, dir, sample(t, 80))
	before, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, tempName), before[:len(before)/2], 0o666)) // a crash
	must(t, os.Mkdir(filepath.Join(dir, "x"), 0o700))
	s := New(dir, quiet)
	if _, err := s.Load(); err != nil || !reflect.DeepEqual(load(t, dir), sample(t, 80)) {
		t.Errorf("after a crash: %v, %v", load(t, dir), err)
	}
	must(t, os.Remove(filepath.Join(dir, tempName)))
	must(t, os.Mkdir(filepath.Join(dir, tempName), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, tempName, "x"), nil, 0o600)) // can't be made
	for range 2 {
		if wrote, err := s.Save(sample(t, 81)); wrote || err == nil {
			t.Errorf("Save = %v, %v", wrote, err)
		}
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file changed: %v", err)
	}
	must(t, os.RemoveAll(filepath.Join(dir, tempName)))
	if wrote, err := s.Save(sample(t, 81)); !wrote || err != nil {
		t.Errorf("Save = %v, %v", wrote, err)
	}
}

// A file cut or changed at any place is no state at all: never half of one, and
// never the excuse of a later version.
func TestDamagedAnywhere(t *testing.T) {
	data, err := encode(sample(t, 80))
	must(t, err)
	for i := range data {
		if s, err := decode(data[:i]); !errors.Is(err, ErrDamaged) || s.sources != nil {
			t.Fatalf("cut at %d: %v, %v", i, s, err)
		}
		for bit := range 8 {
			bad := slices.Clone(data)
			bad[i] ^= 1 << bit
			if s, err := decode(bad); !errors.Is(err, ErrDamaged) || s.sources != nil {
				t.Fatalf("bit %d of byte %d: %v, %v", bit, i, s, err)
			}
		}
	}
	if s, err := decode(append(slices.Clone(data), 'x')); !errors.Is(err, ErrDamaged) || s.sources != nil {
		t.Errorf("with more at its end: %v, %v", s, err)
	}
}

// Damaged files are set aside, the last two, and saving goes on.
func TestDamagedIsSetAside(t *testing.T) {
	dir := t.TempDir()
	for i, content := range []string{"one", "two", "three"} {
		must(t, os.WriteFile(filepath.Join(dir, fileName), []byte(content), 0o600))
		s := New(dir, quiet)
		got, err := s.Load()
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), filepath.Join(dir, fileName)) || len(got.sources) != 0 {
			t.Fatalf("Load = %v, %v", got, err)
		}
		if wrote, err := s.Save(sample(t, 80+i)); !wrote || err != nil {
			t.Fatalf("Save = %v, %v", wrote, err)
		}
		if got := load(t, dir); !reflect.DeepEqual(got, sample(t, 80+i)) {
			t.Fatalf("loaded %v", got)
		}
	}
	if names(t, dir) != "state state.damaged-1 state.damaged-2" {
		t.Errorf("files: %s", names(t, dir))
	}
	for name, want := range map[string]string{damagedName: "three", olderName: "two"} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
}

func TestNotAFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	must(t, os.Mkdir(path, 0o700))
	s := New(dir, quiet)
	if _, err := s.Load(); !errors.Is(err, ErrDamaged) {
		t.Errorf("a directory: %v", err)
	}
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, maxSize+1))
	if _, err := s.Load(); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("a file that is too large: %v", err)
	}
	if wrote, err := s.Save(sample(t, 80)); !wrote || err != nil {
		t.Errorf("Save = %v, %v", wrote, err)
	}
}

// A later version's file is not damaged, not read, and never lost.
func TestNewerVersion(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	payload := []byte("{\"sources\":{},\"new\":1}\n")
	newer := append(fmt.Appendf(nil, "%s %d %s\n", magic, version+1, checksum(version+1, payload)), payload...)
	must(t, os.WriteFile(path, newer, 0o600))
	s := New(dir, quiet)
	if got, err := s.Load(); !errors.Is(err, ErrNewer) || errors.Is(err, ErrDamaged) || len(got.sources) != 0 {
		t.Fatalf("Load = %v, %v", got, err)
	}
	if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, newer) {
		t.Errorf("after Load: %q, %v", data, err)
	}
	for i := range 2 {
		if wrote, err := s.Save(sample(t, 80+i)); !wrote || err != nil {
			t.Fatalf("Save = %v, %v", wrote, err)
		}
	}
	if data, err := os.ReadFile(filepath.Join(dir, newerName)); err != nil || !bytes.Equal(data, newer) {
		t.Errorf("set aside: %q, %v", data, err)
	}
	if got := load(t, dir); !reflect.DeepEqual(got, sample(t, 81)) {
		t.Errorf("loaded %v", got)
	}
}

// A sound file is not believed either: each object is validated as if it had
// just been written, and those that are not valid any more are named.
func TestObjectsAreValidatedAgain(t *testing.T) {
	data, err := encode(sample(t, 80))
	must(t, err)
	_, payload, _ := bytes.Cut(data, []byte("\n"))
	for old, new := range map[string]string{
		`"port":80`:           `"port":99999`,
		`"cidr":"10.0.0.0/8"`: `"cidr":"ten"`,
		`"kind":"NetworkPolicy","metadata":{"name":"web"`: `"kind":"Pod","metadata":{"name":"web"`,
	} {
		bad := bytes.Replace(payload, []byte(old), []byte(new), 1)
		if bytes.Equal(bad, payload) {
			t.Errorf("%s is not in the file: %s", old, payload)
			continue
		}
		saved, err := decode(append(fmt.Appendf(nil, "%s %d %s\n", magic, version, checksum(version, bad)), bad...))
		must(t, err)
		o, err := saved.Objects("directory")
		if err == nil || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "NetworkPolicy") {
			t.Errorf("%s: %v", new, err)
		}
		if len(o.Policies) != 1 || o.Policies[0].Key.Name != "all" || len(o.Pods) != 2 || len(o.Namespaces) != 1 {
			t.Errorf("%s: loaded %+v", new, o)
		}
	}
}

func FuzzDecode(f *testing.F) {
	data, err := encode(sample(f, 80))
	must(f, err)
	_, payload, _ := bytes.Cut(data, []byte("\n"))
	f.Add(data, []byte(""))
	f.Add([]byte("edgepolicyd-state 2 x\n"), payload)
	f.Add([]byte(""), []byte(`{"boot":"x","ranges":["10.42.0.0/24","fd42::/64"],"sources":{"api":[{"kind":"Pod","origin":{"source":"api"},"object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"status":{"podIP":"10.0.0.1"}}}]}}`))
	f.Add([]byte(""), []byte(`{"sources":{"directory":[{"kind":"Pod","origin":{"source":"d","line":-1},"object":null}]}}`))
	f.Fuzz(func(t *testing.T, data, payload []byte) {
		if s, err := decode(data); errors.Is(err, ErrDamaged) && s.sources != nil {
			t.Errorf("damaged, and yet %v", s)
		}
		// Behind a right checksum: whatever is taken can be saved and is the same then.
		saved, err := decode(append(fmt.Appendf(nil, "%s %d %s\n", magic, version, checksum(version, payload)), payload...))
		if err != nil {
			return
		}
		s, err := all(saved)
		if err != nil {
			return
		}
		again, err := encode(s)
		must(t, err)
		saved, err = decode(again)
		must(t, err)
		if back, err := all(saved); err != nil || !reflect.DeepEqual(back, s) {
			t.Errorf("%v is loaded as %v, %v", s, back, err)
		}
	})
}

// A gateway's worth: 110 pods and 1,000 policies.
func gateway(b *testing.B) State {
	var text strings.Builder
	for i := range 110 {
		fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p%d, labels: {app: a%d}}\nstatus: {podIP: 10.0.0.%d}\n", i, i%10, i+1)
	}
	for i := range 1000 {
		fmt.Fprintf(&text, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: n%d}\nspec: {podSelector: {matchLabels: {app: a%d}}, ingress: [{from: [{podSelector: {matchLabels: {app: a%d}}}, {ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: %d}]}]}\n", i, i%10, i%7, i+1)
	}
	return State{Sources: map[string]inventory.Objects{"directory": objects(b, "directory", "/etc/edgepolicy.d/a.yaml", text.String())}}
}

func BenchmarkLoad(b *testing.B) {
	dir := b.TempDir()
	save(b, dir, gateway(b))
	for b.Loop() {
		if _, err := New(dir, quiet).Load(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkObjects(b *testing.B) {
	dir := b.TempDir()
	save(b, dir, gateway(b))
	saved, err := New(dir, quiet).Load()
	must(b, err)
	for b.Loop() {
		if _, err := saved.Objects("directory"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSaveUnchanged(b *testing.B) {
	s, store := gateway(b), New(b.TempDir(), quiet)
	_, err := store.Save(s)
	must(b, err)
	for b.Loop() {
		if wrote, err := store.Save(s); wrote || err != nil {
			b.Fatal(wrote, err)
		}
	}
}
