package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func recorded(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	must(t, err)
	return data
}

// wire carries requests to a stub without a network, so that time can be a
// bubble's. What the stub's port would do is in its fields.
type wire struct {
	*stub.Kubelet
	mu      sync.Mutex
	refuse  bool
	fresh   bool        // the next connection is a new one
	asked   []time.Time // when
	answers func()      // called before each answer
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	w.asked = append(w.asked, time.Now())
	refuse, fresh, before := w.refuse, w.fresh || w.refuse, w.answers
	w.fresh = refuse
	w.mu.Unlock()
	if before != nil {
		before()
	}
	if refuse {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", errRefused)}
	}
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil {
		trace.GotConn(httptrace.GotConnInfo{Reused: !fresh})
	}
	answered := httptest.NewRecorder()
	done := make(chan struct{})
	go func() {
		w.ServeHTTP(answered, r)
		close(done)
	}()
	select {
	case <-done:
		return answered.Result(), r.Context().Err()
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

func (w *wire) set(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

func (w *wire) polls() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.asked)
}

// wired gives a source whose kubelet is a stub behind a wire.
func wired(t testing.TB, cfg Config, last func() inventory.Objects) (*Source, *wire) {
	t.Helper()
	cfg.URL = &url.URL{Scheme: "http", Host: "kubelet:10255"}
	s, err := New(cfg, last, slog.New(slog.DiscardHandler))
	must(t, err)
	w := &wire{Kubelet: stub.NewKubelet(), fresh: true}
	s.client.rt, s.client.fixed = w, true
	s.client.wait = time.Minute // on a busy machine
	return s, w
}

// running is a source that runs, and what it reports.
type running struct {
	t    testing.TB
	mu   sync.Mutex
	seen []source.Report
}

// run runs a source until the test ends.
func run(t testing.TB, s *Source) *running {
	r := &running{t: t}
	reports, done := make(chan source.Report), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		if err := s.Run(ctx, reports); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	go func() {
		for {
			select {
			case report := <-reports:
				r.mu.Lock()
				if n := len(r.seen); n > 0 && !report.Time.After(r.seen[n-1].Time) {
					t.Errorf("a report of %v after one of %v", report.Time, r.seen[n-1].Time)
				}
				r.seen = append(r.seen, report)
				r.mu.Unlock()
			case <-done:
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

func (r *running) all() []source.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen)
}

func (r *running) last() source.Report {
	all := r.all()
	if len(all) == 0 {
		return source.Report{}
	}
	return all[len(all)-1]
}

// until waits for a report.
func (r *running) until(what string, ok func(source.Report) bool) source.Report {
	r.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if got := r.last(); !got.Time.IsZero() && ok(got) {
			return got
		}
	}
	r.t.Fatalf("no report with %s; the last: %s", what, describe(r.last()))
	return source.Report{}
}

// names tells a report's pods and their addresses: "shop/web=10.0.0.1,fd00::1".
func names(r source.Report) string {
	var all []string
	for _, p := range r.Objects.Pods {
		text := p.Key.String()
		for i, a := range p.Addresses {
			text += "=,"[min(i, 1):][:1] + a.String()
		}
		all = append(all, text)
	}
	return strings.Join(all, " ")
}

func describe(r source.Report) string {
	return fmt.Sprintf("pods %q, err %v, offline %v, confirmed %v, unknown %v, rejected %v", names(r), r.Err, r.OfflineSince, r.Confirmed, r.Unknown, r.Rejected)
}

func podOf(r source.Report, key string) *inventory.Pod {
	for _, p := range r.Objects.Pods {
		if p.Key.String() == key {
			return p
		}
	}
	return nil
}

// refresh polls once, and waits for as long as it takes.
func refresh(t testing.TB, s *Source) source.Report {
	t.Helper()
	s.poll(context.Background())
	r, _ := s.current()
	return r
}

const recordedPods = "default/client-gw=10.88.0.35,fd88::23 infra/hostnet-gw shop/badimage-gw=10.88.0.32,fd88::20 " +
	"shop/crash-gw=10.88.0.34,fd88::22 shop/job-done-gw=10.88.0.36,fd88::24 shop/job-failed-gw=10.88.0.37,fd88::25 " +
	"shop/notready-gw=10.88.0.33,fd88::21 shop/web-gw=10.88.0.31,fd88::1f"

// What a real kubelet lists: static pods, without creationTimestamp, ended ones as
// they are.
func TestRecordedList(t *testing.T) {
	for _, name := range []string{"kubelet-pods-10250.json", "kubelet-pods-10255.json"} {
		s, w := wired(t, Config{}, nil)
		w.SetList(recorded(t, name))
		r := refresh(t, s)
		if names(r) != recordedPods || r.Err != nil || r.Unknown || len(r.Rejected)+len(r.Diagnostics) > 0 || r.Confirmed.IsZero() {
			t.Errorf("%s: %s %v", name, describe(r), r.Diagnostics)
		}
		web := podOf(r, "shop/web-gw")
		if web.UID != "842fa7798907e4253e2130f9a5bb9af4" || web.Labels["tier"] != "front" || len(web.Ports) != 5 || web.Node != "gw" {
			t.Errorf("web-gw: %+v", web)
		}
		if p := podOf(r, "shop/job-done-gw"); p.Phase != "Succeeded" || p.Enforceable() {
			t.Errorf("job-done-gw: %+v", p)
		}
		if p := podOf(r, "infra/hostnet-gw"); !p.HostNetwork {
			t.Errorf("hostnet-gw: %+v", p)
		}
	}
}

// The order is random, and most polls change nothing: the same pods in another
// order are the same report, pointers and all.
func TestUnchangedIsNoReport(t *testing.T) {
	s, w := wired(t, Config{}, nil)
	w.SetList(recorded(t, "kubelet-pods-10255.json"))
	first := refresh(t, s)
	for range 20 {
		if r := refresh(t, s); r.Time != first.Time || &r.Objects.Pods[0] != &first.Objects.Pods[0] {
			t.Fatalf("a new report: %s", describe(r))
		}
	}
	if !s.Confirmed().After(first.Confirmed) {
		t.Error("the later polls confirmed nothing")
	}
}

// A change in what is not read keeps the pointer; one in what is, only that
// pod's changes.
func TestPointersOfUnchangedPods(t *testing.T) {
	s, w := wired(t, Config{}, nil)
	list := string(recorded(t, "kubelet-pods-10255.json"))
	w.SetList([]byte(list))
	first := refresh(t, s)
	w.SetList([]byte(strings.ReplaceAll(list, `"restartCount":0`, `"restartCount":1`)))
	if r := refresh(t, s); r.Time != first.Time {
		t.Errorf("a new report: %s", describe(r))
	}
	w.SetList([]byte(strings.ReplaceAll(list, `"tier":"front"`, `"tier":"back"`)))
	r := refresh(t, s)
	for i, p := range r.Objects.Pods {
		if changed := p != first.Objects.Pods[i]; changed != (p.Key.Name == "web-gw") {
			t.Errorf("%s: changed is %t", p.Key, changed)
		}
	}
	if podOf(r, "shop/web-gw").Labels["tier"] != "back" {
		t.Error("the label has not changed")
	}
}

// A pod of the API that is being deleted counts until it is gone (S6).
func TestTerminatingPodCounts(t *testing.T) {
	s, w := wired(t, Config{}, nil)
	w.SetList(recorded(t, "kubelet-pods-10255-with-api-server.json"))
	before := refresh(t, s)
	w.SetList(recorded(t, "kubelet-pods-10255-terminating-api-pod.json"))
	if r := refresh(t, s); podOf(r, "shop/apipod") != podOf(before, "shop/apipod") || podOf(r, "shop/apipod") == nil {
		t.Errorf("%s", describe(r))
	}
}

// One invalid item keeps its last valid version, and the others count (S9).
func TestInvalidItem(t *testing.T) {
	s, w := wired(t, Config{}, nil)
	a, b := stub.Pod{Name: "a", IPs: []string{"10.0.0.1"}}, stub.Pod{Name: "b", IPs: []string{"10.0.0.2"}}
	bad := a
	bad.Labels = map[string]string{"app": "no spaces here"}
	w.SetPods(bad, b)
	r := refresh(t, s)
	if names(r) != "default/b=10.0.0.2" || len(r.Rejected) != 1 || r.Rejected[0].Kept || r.Rejected[0].Object != "Pod default/a" ||
		!strings.Contains(r.Rejected[0].Reason, "no spaces here") || len(r.Diagnostics) == 0 {
		t.Errorf("new and invalid: %s", describe(r))
	}
	w.SetPods(a, b)
	if r = refresh(t, s); names(r) != "default/a=10.0.0.1 default/b=10.0.0.2" || len(r.Rejected)+len(r.Diagnostics) > 0 {
		t.Errorf("valid now: %s", describe(r))
	}
	w.SetPods(bad, b)
	if r = refresh(t, s); names(r) != "default/a=10.0.0.1 default/b=10.0.0.2" || len(r.Rejected) != 1 || !r.Rejected[0].Kept {
		t.Errorf("invalid again: %s", describe(r))
	}
	if again := refresh(t, s); again.Time != r.Time {
		t.Error("the same problem was reported twice")
	}
	w.SetPods(a, b)
	if r = refresh(t, s); len(r.Rejected)+len(r.Diagnostics) > 0 {
		t.Errorf("valid again: %s", describe(r))
	}
}

// While a list holds an item that may be any pod, no pod is gone.
func TestNamelessItemTakesNothingAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := wired(t, Config{}, nil)
		a, b := stub.Pod{Name: "a", IPs: []string{"10.0.0.1"}}, stub.Pod{Name: "b", IPs: []string{"10.0.0.2"}}
		w.SetPods(a, b)
		refresh(t, s)
		time.Sleep(time.Minute)
		w.SetItems(b.JSON(), json.RawMessage(`{"metadata":{"name":7}}`))
		refresh(t, s)
		time.Sleep(time.Minute)
		r := refresh(t, s)
		if names(r) != "default/a=10.0.0.1 default/b=10.0.0.2" || len(r.Rejected) != 1 || r.Rejected[0].Object != "" {
			t.Errorf("%s", describe(r))
		}
		w.SetPods(b)
		if r = refresh(t, s); names(r) != "default/b=10.0.0.2" || len(r.Rejected) > 0 {
			t.Errorf("without it: %s", describe(r))
		}
	})
}

// Two items of one name, as while a pod is replaced: always the same one counts.
func TestTwoOfOneName(t *testing.T) {
	ended := stub.Pod{Name: "a", UID: "1", IPs: []string{"10.0.0.1"}, Phase: "Failed"}
	waiting := stub.Pod{Name: "a", UID: "2", Phase: "Pending"}
	lives := stub.Pod{Name: "a", UID: "3", IPs: []string{"10.0.0.3"}}
	for range 20 {
		s, w := wired(t, Config{}, nil)
		w.SetPods(ended, waiting, lives)
		if r := refresh(t, s); names(r) != "default/a=10.0.0.3" {
			t.Fatalf("%s", describe(r))
		}
	}
}

// Known answers from the saved state, and asks nobody; what it gave keeps its
// pointers when the kubelet says the same.
func TestKnown(t *testing.T) {
	s, w := wired(t, Config{}, nil)
	w.SetList(recorded(t, "kubelet-pods-10255.json"))
	saved := refresh(t, s).Objects

	calls := 0
	s, w = wired(t, Config{}, func() inventory.Objects { calls++; return saved })
	w.SetList(recorded(t, "kubelet-pods-10255.json"))
	r, err := s.Known(context.Background())
	must(t, err)
	if names(r) != recordedPods || r.Unknown || !r.Confirmed.IsZero() || w.polls() != 0 || r.Source != "kubelet" {
		t.Errorf("%d polls: %s", w.polls(), describe(r))
	}
	now := refresh(t, s)
	if !slices.Equal(now.Objects.Pods, saved.Pods) || now.Confirmed.IsZero() || !now.Time.After(r.Time) || calls != 1 {
		t.Errorf("%d calls: %s", calls, describe(now))
	}

	s, _ = wired(t, Config{}, nil)
	if r, err = s.Known(context.Background()); err != nil || !r.Unknown || len(r.Objects.Pods) > 0 {
		t.Errorf("nothing was saved: %s, %v", describe(r), err)
	}
}

// A kubelet that is not there when the daemon starts: what was saved stays, and is
// not taken for a list of it.
func TestAwayAtTheStart(t *testing.T) {
	s, w := wired(t, Config{}, nil)
	w.SetList(recorded(t, "kubelet-pods-10255.json"))
	saved := refresh(t, s).Objects
	for _, p := range saved.Pods {
		p.Addresses = nil // of an earlier boot
		p.JSON = manifest.PodJSON(p)
	}
	s, w = wired(t, Config{}, func() inventory.Objects { return saved })
	w.Fail(http.StatusServiceUnavailable, "starting")
	r := run(t, s)
	r.until("the kubelet out of reach", func(r source.Report) bool { return !r.OfflineSince.IsZero() && len(r.Objects.Pods) == 8 && !r.Unknown })
	w.Fail(0, "")
	w.SetList(recorded(t, "kubelet-pods-10255.json"))
	s.Poke()
	r.until("its pods", func(r source.Report) bool { return names(r) == recordedPods && r.OfflineSince.IsZero() })
}

// What the configuration can't be.
func TestConfig(t *testing.T) {
	for _, c := range []struct {
		url  string
		cfg  Config
		want string
	}{
		{"", Config{}, "url must be"},
		{"ftp://x", Config{}, "url must be"},
		{"https://u:p@x", Config{}, "no password"},
		{"https://x/?a=b", Config{}, "?query"},
		{"http://x", Config{TokenFile: "/t"}, "https://"},
		{"https://x", Config{Key: "/k"}, "both or none"},
		{"https://x", Config{Interval: -1}, "negative"},
		{"https://x:10250", Config{Certificate: "/c", Key: "/k", TokenFile: "/t", CA: "/ca", ServerName: "gw"}, ""},
		{"http://127.0.0.1:10255/", Config{}, ""},
	} {
		u, err := url.Parse(c.url)
		must(t, err)
		c.cfg.URL = u
		_, err = New(c.cfg, nil, slog.New(slog.DiscardHandler))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.url, err, c.want)
		}
	}
}
