package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

// generous is how long anything that is awaited may take on a busy machine.
const generous = 30 * time.Second

// quick are times for tests: what the daemon waits seconds for takes milliseconds.
var quick = times{
	start: 300 * time.Millisecond, gather: 5 * time.Millisecond, refresh: time.Second,
	list: 5 * time.Second, stall: 5 * time.Second, open: 5 * time.Second,
	watch1: span{20 * time.Second, 20 * time.Second}, watch2: span{20 * time.Second, 20 * time.Second},
	trial: span{time.Second, 2 * time.Second},
	poll:  50 * time.Millisecond, retry: 200 * time.Millisecond, passing: generous, refused: 200 * time.Millisecond,
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func policy(name, app string) string {
	return fmt.Sprintf(`{"kind":"NetworkPolicy","apiVersion":"networking.k8s.io/v1","metadata":{"name":%q,"namespace":"shop"},`+
		`"spec":{"podSelector":{"matchLabels":{"app":%q}},"policyTypes":["Ingress"]}}`, name, app)
}

func namespace(name, team string) string {
	return fmt.Sprintf(`{"kind":"Namespace","apiVersion":"v1","metadata":{"name":%q,"labels":{"team":%q}}}`, name, team)
}

func pod(name, node, address string) string {
	return fmt.Sprintf(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":%q,"namespace":"shop","labels":{"app":"web"}},`+
		`"spec":{"nodeName":%q,"containers":[]},"status":{"phase":"Running","podIP":%q,"podIPs":[{"ip":%q}]}}`, name, node, address, address)
}

// filled gives a server with an object of each kind.
func filled() *stub.API {
	a := stub.NewAPI()
	a.Put(namespace("shop", "a"))
	a.Put(policy("web", "one"))
	a.Put(pod("web-1", "gw", "10.1.0.1"))
	return a
}

// follower is a source that runs, and its reports.
type follower struct {
	*testing.T
	source  *Source
	reports chan source.Report
	now     source.Report
	all     []source.Report
}

func newSource(t testing.TB, c Config, last func() inventory.Objects) *Source {
	t.Helper()
	if c.NodeName == "" {
		c.NodeName = "gw"
	}
	s, err := New(c, last, slog.New(slog.DiscardHandler))
	must(t, err)
	s.times = quick
	return s
}

func run(t *testing.T, s *Source) *follower {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	f := &follower{T: t, source: s, reports: make(chan source.Report)}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, f.reports) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return f
}

// start runs a source against a server.
func start(t *testing.T, h http.Handler) *follower {
	t.Helper()
	return run(t, newSource(t, Config{Server: "http://" + serve(t, h)}, nil))
}

// until waits for a report.
func (f *follower) until(what string, is func(source.Report) bool) source.Report {
	f.Helper()
	limit := time.After(generous)
	for first := true; ; first = false {
		if (!first || len(f.all) > 0) && is(f.now) {
			return f.now
		}
		select {
		case r := <-f.reports:
			if !r.Time.After(f.now.Time) {
				f.Errorf("a report of %v after one of %v", r.Time, f.now.Time)
			}
			f.now = r
			f.all = append(f.all, r)
		case <-limit:
			f.Fatalf("no report of %s; the last is %s", what, told(f.now))
		}
	}
}

// has waits for a report that says this, see told.
func (f *follower) has(want string) source.Report {
	f.Helper()
	return f.until(want, func(r source.Report) bool { return told(r) == want })
}

// told gives a report in short: policies and what they select, namespaces and their
// team, pods and their addresses; ! for rejected, offline, err and unknown.
func told(r source.Report) string {
	var words []string
	for _, p := range r.Objects.Policies {
		words = append(words, p.Key.Name+":"+strings.TrimPrefix(p.Selector.String(), "app="))
	}
	for _, n := range r.Objects.Namespaces {
		words = append(words, n.Key.Name+"="+n.Labels["team"])
	}
	for _, p := range r.Objects.Pods {
		word := p.Key.Name
		for _, a := range p.Addresses {
			word += "@" + a.String()
		}
		if p.Remote {
			word += "(remote)"
		}
		words = append(words, word)
	}
	for _, j := range r.Rejected {
		words = append(words, "!"+j.Object)
	}
	if !r.OfflineSince.IsZero() {
		words = append(words, "offline")
	}
	if r.Err != nil {
		words = append(words, "err")
	}
	if r.Unknown {
		words = append(words, "unknown")
	}
	return strings.Join(words, " ")
}

const all = "web:one shop=a web-1@10.1.0.1" // what filled holds

// awaits waits for something that no report says.
func awaits(t *testing.T, what string, is func() bool) {
	t.Helper()
	for limit := time.Now().Add(generous); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("did not come about: " + what)
		}
	}
}

// never fails if any report so far said what it may not.
func (f *follower) never(what string, is func(source.Report) bool) {
	f.Helper()
	for _, r := range f.all {
		if is(r) {
			f.Errorf("%s: %s", what, told(r))
		}
	}
}

func lacks(r source.Report) bool {
	return len(r.Objects.Policies) == 0 || len(r.Objects.Namespaces) == 0 || len(r.Objects.Pods) == 0
}

// listen serves a stub on a port of its own, or again on the one of before.
func listen(t *testing.T, a *stub.API, address string) string {
	t.Helper()
	var l net.Listener
	awaits(t, "listening on "+address, func() bool {
		var err error
		l, err = net.Listen("tcp", address)
		return err == nil
	})
	a.Serve(l)
	t.Cleanup(a.Close)
	return l.Addr().String()
}

func recorded(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	must(t, err)
	return string(text)
}

// sections gives the parts of a recording, by their titles; a part is what curl -i
// printed.
func sections(t testing.TB, name string) map[string]stub.Answer {
	t.Helper()
	parts := map[string]stub.Answer{}
	for part := range strings.SplitSeq(strings.ReplaceAll(recorded(t, name), "\r\n", "\n"), "## ") {
		title, rest, _ := strings.Cut(part, "\n")
		head, body, _ := strings.Cut(rest, "\n\n")
		lines := strings.Split(head, "\n")
		var proto string
		answer := stub.Answer{Header: http.Header{}}
		if n, _ := fmt.Sscanf(lines[0], "%s %d", &proto, &answer.Code); n != 2 {
			continue
		}
		for _, l := range lines[1:] {
			name, value, _ := strings.Cut(l, ": ")
			if name := http.CanonicalHeaderKey(name); name != "Content-Length" && name != "Date" {
				answer.Header.Set(name, strings.TrimSpace(value))
			}
		}
		body, _, _ = strings.Cut(body, "\nhttp=")
		answer.Body = body
		parts[title] = answer
	}
	return parts
}

// section gives the part whose title begins so.
func section(t testing.TB, name, title string) stub.Answer {
	t.Helper()
	for name, part := range sections(t, name) {
		if strings.HasPrefix(name, title) {
			return part
		}
	}
	t.Fatalf("no part %q in %s", title, name)
	return stub.Answer{}
}

// listOf makes a list of items, in JSON.
func listOf(kind, version string, items ...string) string {
	raw := make([]json.RawMessage, 0, len(items))
	for _, i := range items {
		raw = append(raw, json.RawMessage(i))
	}
	text, err := json.Marshal(map[string]any{"kind": kind, "metadata": map[string]string{"resourceVersion": version}, "items": raw})
	if err != nil {
		panic(err)
	}
	return string(text)
}

// serve serves a handler and gives its address.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.Listener.Addr().String()
}

// inventoryIngress is the index of ingress rules.
const inventoryIngress = inventory.Ingress

// streamOf gives bytes as the body of an answer.
func streamOf(text []byte) *stream {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &stream{ctx: ctx, cancel: cancel, body: io.NopCloser(bytes.NewReader(text)), silent: time.AfterFunc(time.Hour, func() {}), idle: time.Hour, left: maxObject}
}
