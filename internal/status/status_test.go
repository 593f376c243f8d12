package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/explain"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// fake is a Daemon that remembers what it was asked.
type fake struct {
	reloadErr error
	block     bool // Reload waits for its context
	flushed   atomic.Int64
}

func (f *fake) Status() Status {
	return Status{Version: Version, Health: Degraded, Reasons: []string{"a.yaml:3: rejected"}, Generation: 7,
		Pods: 2, IsolatedPods: 1, Table: "edgepolicyd", TablePresent: true,
		Policies: []PolicyStatus{{Name: "default/web", File: "/etc/edgepolicy.d/a.yaml:1"}},
		Rejected: []Rejected{{Object: "NetworkPolicy default/web", Reason: "bad", Kept: true}}}
}

func (f *fake) Reload(ctx context.Context, _ string) (ReloadResult, error) {
	if f.block {
		<-ctx.Done()
		return ReloadResult{}, ctx.Err()
	}
	return ReloadResult{Generation: 8, Changed: true, Changes: []string{"policy default/web changed"}, Health: Healthy}, f.reloadErr
}

func (f *fake) Flush(_ context.Context, uid uint32) error {
	f.flushed.Store(int64(uid) + 1)
	return nil
}

func (f *fake) Snapshot() (*inventory.Snapshot, inventory.Options, error) {
	pod := func(name, addr string) *inventory.Pod {
		return &inventory.Pod{Head: inventory.Head{Key: inventory.Key{Namespace: "default", Name: name}}, Addresses: []netip.Addr{netip.MustParseAddr(addr)}}
	}
	return &inventory.Snapshot{Pods: []*inventory.Pod{pod("a", "10.0.0.1"), pod("b", "10.0.0.2")}}, inventory.DefaultOptions(), nil
}

func (f *fake) Known() Known { return Known{} }

func (f *fake) Explain(q explain.Question) (explain.Explanation, error) {
	if q.From == "default/none" {
		return explain.Explanation{}, errors.New("no pod default/none")
	}
	return explain.Explanation{Question: q}, nil
}

func (f *fake) Denied(after uint64) []DeniedFlow { return []DeniedFlow{{Seq: after + 1}} }

func (f *fake) Metrics(w io.Writer) error {
	_, err := io.WriteString(w, "edgepolicyd_up 1\n")
	return err
}

func (f *fake) Table(pod string) (string, error) {
	if pod == "default/none" {
		return "", errors.New("no pod default/none")
	}
	return "table inet edgepolicyd # " + pod, nil
}

// serve runs a server until the test ends, or stop is called.
func serve(t *testing.T, socket string, d Daemon) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- listenAndServe(ctx, socket, d) }()
	stop = func() {
		cancel()
		select {
		case err := <-done:
			done <- nil
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Serve did not end")
		}
	}
	t.Cleanup(stop)
	for range 500 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return stop
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatal("the server did not come up")
	return stop
}

// tryToServe is for what must fail at once.
func listenAndServe(ctx context.Context, socket string, d Daemon) error {
	l, err := Listen(socket)
	if err != nil {
		return err
	}
	return l.Serve(ctx, d, slog.New(slog.DiscardHandler))
}

func tryToServe(t *testing.T, socket string) error {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	return listenAndServe(ctx, socket, &fake{})
}

func TestClientAndServer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "d.sock")
	f := &fake{}
	stop := serve(t, socket, f)
	c, ctx := Dial(socket), t.Context()

	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: mode %v, %v; want 0600", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Dir(socket)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("directory: %v, %v; want 0755", info.Mode(), err)
	}
	s, err := c.Status(ctx)
	if err != nil || s.Generation != 7 || s.Health != Degraded || s.Policies[0].Name != "default/web" || !s.Rejected[0].Kept {
		t.Errorf("Status = %+v, %v", s, err)
	}
	r, err := c.Reload(ctx, time.Second)
	if err != nil || r.Generation != 8 || !r.Changed || len(r.Changes) != 1 {
		t.Errorf("Reload = %+v, %v", r, err)
	}
	if err := c.Flush(ctx); err != nil || f.flushed.Load() != int64(os.Getuid())+1 {
		t.Errorf("Flush = %v, uid+1 = %d", err, f.flushed.Load())
	}
	text, err := c.Table(ctx, "default/a b&c")
	if err != nil || text != "table inet edgepolicyd # default/a b&c" {
		t.Errorf("Table = %q, %v", text, err)
	}
	if _, err := c.Table(ctx, "default/none"); err == nil || !strings.Contains(err.Error(), "no pod default/none") {
		t.Errorf("Table of no pod: %v", err)
	}
	request := policy.MatrixRequest{Ports: []policy.MatrixPort{{Protocol: inventory.TCP, Port: 80}}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	cells, err := c.Matrix(ctx, request)
	snapshot, options, _ := f.Snapshot()
	want := policy.Matrix(snapshot, &options, request)
	if err != nil || len(cells) == 0 || fmt.Sprint(cells) != fmt.Sprint(want) {
		t.Errorf("Matrix = %v, %v, want %v", cells, err, want)
	}

	stop()
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there after the end: %v", err)
	}
	if _, err := c.Status(ctx); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "systemctl start") {
		t.Errorf("Status of a stopped daemon: %v", err)
	}
}

func TestReloadErrors(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "d.sock")
	f := &fake{block: true}
	serve(t, socket, f)
	_, err := Dial(socket).Reload(t.Context(), 30*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "not done after 30ms") {
		t.Errorf("late reload: %v", err)
	}
	if _, err := Dial(socket).Reload(t.Context(), time.Hour); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("reload with an hour's timeout: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Dial(socket).Reload(ctx, 5*time.Second); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("client's own deadline: %v", err)
	}
}

// A daemon that is told to stop ends although a caller still waits.
func TestStopDuringReload(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "d.sock")
	stop := serve(t, socket, &fake{block: true})
	answered := make(chan error, 1)
	go func() {
		_, err := Dial(socket).Reload(context.Background(), time.Minute)
		answered <- err
	}()
	time.Sleep(20 * time.Millisecond)
	stop()
	select {
	case err := <-answered:
		if err == nil {
			t.Error("reload succeeded in a daemon that stopped")
		}
	case <-time.After(5 * time.Second):
		t.Error("the caller still waits")
	}
}

func TestBadRequests(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "d.sock")
	serve(t, socket, &fake{})
	c := Dial(socket)
	for _, tt := range []struct {
		name, method, path, body string
		code                     int
	}{
		{"unknown path", "GET", "/v1/nothing", "", 404},
		{"wrong method", "GET", "/v1/flush", "", 405},
		{"no timeout", "POST", "/v1/reload", "", 400},
		{"negative timeout", "POST", "/v1/reload?timeout=-1s", "", 400},
		{"no JSON", "POST", "/v1/matrix", "ports", 400},
		{"unknown field", "POST", "/v1/matrix", `{"Prots":[]}`, 400},
		{"body too large", "POST", "/v1/matrix", `{"Addresses":["` + strings.Repeat(" ", 2<<20) + `"]}`, 400},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, "http://d"+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		w, err := c.http.Do(r)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		body, _ := io.ReadAll(w.Body)
		w.Body.Close()
		if w.StatusCode != tt.code {
			t.Errorf("%s: %d %s, want %d", tt.name, w.StatusCode, body, tt.code)
		}
	}
	if err := c.call(t.Context(), time.Second, "GET", "/v2/status", nil, &Status{}); err == nil || !strings.Contains(err.Error(), "same version") {
		t.Errorf("a path of another version: %v", err)
	}
}

func TestStaleSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "d.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	// A foreign server that holds no lock is alive all the same.
	if err := tryToServe(t, socket); err == nil || !strings.Contains(err.Error(), "another edgepolicyd is running") {
		t.Errorf("a living socket: %v", err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := Dial(socket).Status(t.Context()); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "left its socket") {
		t.Errorf("Status of a dead daemon: %v", err)
	}
	serve(t, socket, &fake{})
	if _, err := Dial(socket).Status(t.Context()); err != nil {
		t.Errorf("after the dead one's socket was replaced: %v", err)
	}
	if err := tryToServe(t, socket); err == nil || !strings.Contains(err.Error(), "another edgepolicyd is running") {
		t.Errorf("a second daemon: %v", err)
	}
	if _, err := Dial(socket).Status(t.Context()); err != nil {
		t.Errorf("after a second daemon was refused: %v", err)
	}
	// Nor does somebody who tidies up make room for a second one.
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	if err := tryToServe(t, socket); err == nil || !strings.Contains(err.Error(), "another edgepolicyd is running") {
		t.Errorf("a second daemon, without the socket: %v", err)
	}
}

func TestSocketIsAFile(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "d.sock")
	if err := os.WriteFile(socket, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tryToServe(t, socket); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("Serve = %v", err)
	}
	if data, _ := os.ReadFile(socket); string(data) != "precious" {
		t.Error("the file was removed")
	}
}

// Another user is refused by who he is, even if the socket lets him in.
func TestOtherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to become another user")
	}
	dir, err := os.MkdirTemp("/tmp", "edgepolicyd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "d.sock")
	f := &fake{}
	serve(t, socket, f)

	if out := asNobody(t, dir, socket); !strings.Contains(out, "ask as root") {
		t.Errorf("socket with mode 0600: %q", out)
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if out := asNobody(t, dir, socket); !strings.Contains(out, "only root") {
		t.Errorf("socket open to everyone: %q", out)
	}
	if f.flushed.Load() != 0 {
		t.Error("nobody flushed the table")
	}
}

// asNobody runs TestMain's client part as another user.
func asNobody(t *testing.T, dir, socket string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	client := filepath.Join(dir, "client") // the test binary's own directory may be closed to nobody
	if err := os.WriteFile(client, data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), client)
	cmd.Env = []string{"STATUS_TEST_FLUSH=" + socket}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("client as nobody: %v: %s", err, out)
	}
	return string(out)
}

func TestMain(m *testing.M) {
	if socket := os.Getenv("STATUS_TEST_FLUSH"); socket != "" {
		fmt.Println(Dial(socket).Flush(context.Background()))
		return
	}
	os.Exit(m.Run())
}

// What is printed with -o json is read by programs: names may be added here,
// never changed or removed.
func TestStatusJSON(t *testing.T) {
	s := (&fake{}).Status()
	s.Started = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s.Policies[0].Since = s.Started
	s.Sources = []SourceStatus{{Name: "directory", Error: "gone"}}
	s.Unenforceable = []Unenforceable{{Pod: "default/mac", Reason: "macvlan"}}
	s.NeverIsolated = []string{"kube-system/agent"}
	got, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"version":1,"health":"degraded","reasons":["a.yaml:3: rejected"],"daemonVersion":"","started":"2026-01-02T03:04:05Z","generation":7,"table":"edgepolicyd","tablePresent":true,"pods":2,"isolatedPods":1,"namespaces":0,` +
		`"offline":false,"hold":{"on":false,"ranges":null,"packets":0,"addresses":null,"latency":{"pods":0,"lastMilliseconds":0.000,"mostMilliseconds":0.000}},` +
		`"policies":[{"name":"default/web","source":"","file":"/etc/edgepolicy.d/a.yaml:1","since":"2026-01-02T03:04:05Z","pods":0}],` +
		`"sources":[{"name":"directory","error":"gone"}],` +
		`"rejected":[{"object":"NetworkPolicy default/web","reason":"bad","kept":true}],` +
		`"unenforceable":[{"pod":"default/mac","reason":"macvlan"}],"neverIsolated":["kube-system/agent"]}`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("POST", "/v1/matrix", `{"Ports":[{"Protocol":6,"Port":80}],"Addresses":["10.0.0.9","fe80::1%eth0"]}`)
	f.Add("POST", "/v1/reload?timeout=5s", "")
	f.Add("GET", "/v1/table?pod=default/a", "")
	handler := routes(&fake{})
	f.Fuzz(func(t *testing.T, method, path, body string) {
		r, err := http.NewRequest(method, "http://d"+path, strings.NewReader(body))
		if err != nil || strings.Contains(path, "flush") {
			return
		}
		w := &recorder{header: http.Header{}}
		handler.ServeHTTP(w, r)
		if w.code == 0 && !json.Valid(w.body) {
			t.Errorf("%s %s: success with %q", method, path, w.body)
		}
	})
}

type recorder struct {
	header http.Header
	code   int
	body   []byte
}

func (r *recorder) Header() http.Header              { return r.header }
func (r *recorder) WriteHeader(code int)             { r.code = code }
func (r *recorder) Write(b []byte) (int, error)      { r.body = append(r.body, b...); return len(b), nil }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }
