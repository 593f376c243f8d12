package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

// What a server answers when it starts, is overloaded or broken takes nothing away,
// and passes when the server is well.
func TestPassingErrors(t *testing.T) {
	_, forbidden, _ := strings.Cut(strings.Split(recorded(t, "api-startup-codes.txt"), "\n")[1], " 403 0 ")
	for name, answer := range map[string]stub.Answer{
		"403 of a server that starts": {Code: 403, Body: forbidden},
		"401":                         section(t, "api-auth-and-errors.txt", "bad bearer token"),
		"500":                         section(t, "api-auth-and-errors.txt", "watch with malformed resourceVersion"),
		"503":                         {Code: 503, Body: "apiserver not ready"},
		"504 as a text":               section(t, "api-faults.txt", "etcd frozen: list (default"),
		"504 with Retry-After":        section(t, "api-410.txt", "list resourceVersion from the future"),
		"429":                         {Code: 429, Body: "too many", Header: http.Header{"Retry-After": {"1"}}},
		"410 of a list":               section(t, "api-410.txt", "list resourceVersion=214 Exact"),
		"HTML with 200":               {Code: 200, Body: "<html><body>Please log in</body></html>"},
		"a Status with 200":           {Code: 200, Body: `{"kind":"Status","status":"Failure","code":500}`},
		"nothing with 200":            {Code: 200},
		"items null, no version":      {Code: 200, Body: `{"kind":"NetworkPolicyList","metadata":{},"items":null}`},
		"no items":                    {Code: 200, Body: `{"kind":"NetworkPolicyList","metadata":{"resourceVersion":"7"}}`},
		"items that are none":         {Code: 200, Body: `{"kind":"NetworkPolicyList","metadata":{"resourceVersion":"7"},"items":{}}`},
		"another kind":                {Code: 200, Body: listOf("PodList", "7")},
		"an object without a name":    {Code: 200, Body: listOf("NetworkPolicyList", "7", `{"spec":{}}`)},
		"half a list":                 {Code: 200, Body: listOf("NetworkPolicyList", "7", policy("web", "x"))[:200]},
		"a redirect":                  {Code: 302, Header: http.Header{"Location": {"http://127.0.0.1:1/"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := filled()
			f := start(t, a)
			f.has(all)
			a.Status("networkpolicies", answer)
			a.EndWatches()
			if _, err := f.source.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			r := f.has(all + " offline")
			if len(r.Diagnostics) != 1 || !strings.HasPrefix(r.Diagnostics[0].Message, "networkpolicies can't be read") {
				t.Errorf("what is stale is not told: %v", r.Diagnostics)
			}
			a.Put(pod("web-2", "gw", "10.1.0.2"))
			f.has(all + " web-2@10.1.0.2 offline") // the others go on
			a.Delete("NetworkPolicy", "shop", "web")
			a.Put(policy("db", "db"))
			a.Status("networkpolicies", stub.Answer{})
			f.has("db:db shop=a web-1@10.1.0.1 web-2@10.1.0.2")
			f.never("policies were lost", func(r source.Report) bool { return len(r.Objects.Policies) == 0 })
		})
	}
}

// A refusal that lasts is an error that says what to do; the rest goes on.
func TestLastingRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		answer stub.Answer
		says   string
	}{
		"403": {section(t, "api-auth-and-errors.txt", "pods list forbidden"), "allow our user to list and watch pods"},
		"401": {section(t, "api-auth-and-errors.txt", "client cert of unknown CA"), "give a kubeconfig with valid ones"},
		"404": {stub.Answer{Code: 404, Body: "404 page not found"}, "does not serve pods"},
		"200": {stub.Answer{Code: 200, Body: "<html>"}, "no list of Kubernetes objects"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := filled()
			a.Status("pods", c.answer)
			s := newSource(t, Config{Server: "http://" + serve(t, a)}, nil)
			s.times.passing = 500 * time.Millisecond
			f := run(t, s)
			f.has("web:one shop=a offline unknown")
			r := f.has("web:one shop=a err") // pods that nobody lets us read need not be known
			if text := r.Err.Error(); !strings.Contains(text, c.says) || !strings.Contains(text, "pods") || strings.Contains(text, "namespaces:") || !strings.Contains(text, "http://127.0.0.1") {
				t.Errorf("err: %v", r.Err)
			}
			a.Put(policy("web", "two"))
			f.has("web:two shop=a err")
			a.Status("pods", stub.Answer{})
			f.has("web:two shop=a web-1@10.1.0.1")
		})
	}
}

// Without the policies nothing is known, however long they are refused.
func TestPoliciesRefusedForGood(t *testing.T) {
	a := filled()
	a.Status("networkpolicies", section(t, "api-auth-and-errors.txt", "good token, no RBAC"))
	s := newSource(t, Config{Server: "http://" + serve(t, a)}, nil)
	s.times.passing = 0
	run(t, s).has("shop=a web-1@10.1.0.1 err unknown")
}

// How long a server may ask us to wait is bounded.
func TestRetryAfterIsBounded(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 0, "7": 7 * time.Second, "86400": maxWait, "99999999999999999999": 0, "-1": 0, "Fri, 20 Nov 2026 11:45:20 GMT": 0} {
		err := refusalOf(&http.Response{StatusCode: 429, Header: http.Header{"Retry-After": {text}}}, strings.NewReader(""))
		if got := retryAfter(err); got != want {
			t.Errorf("Retry-After %q: %v, want %v", text, got, want)
		}
	}
	s := newSource(t, Config{Server: "http://127.0.0.1:1"}, nil)
	s.times = defaults
	r := s.resources[0]
	if d := s.backoff(r, &statusError{code: 429, retryAfter: 20 * time.Second}, 1); d != 20*time.Second {
		t.Errorf("429 with Retry-After 20: %v", d)
	}
	for failures := 1; failures < 100; failures++ {
		if d := s.backoff(r, io.ErrUnexpectedEOF, failures); d <= 0 || d > 4*time.Second || failures > 6 && d < 3*time.Second {
			t.Errorf("attempt %d of a server that is away after %v", failures, d)
		}
	}
	r.failing, r.err = time.Now().Add(-time.Hour), &statusError{code: 403}
	if d := s.backoff(r, r.err, 50); d < 20*time.Second || d > 30*time.Second {
		t.Errorf("refused for an hour, and asked again after %v", d)
	}
}

// Pages: an object in several of them, and lists that break off.
func TestPages(t *testing.T) {
	many := func(a *stub.API) {
		for i := range pageSize * 2 {
			a.Put(policy(fmt.Sprintf("p-%04d", i), "x"))
		}
	}
	t.Run("three", func(t *testing.T) {
		a := filled()
		many(a)
		f := start(t, a)
		f.until("all", func(r source.Report) bool { return len(r.Objects.Policies) == 2*pageSize+1 && !r.Unknown })
		if n := a.Requests("list networkpolicies"); n != 3 {
			t.Errorf("%d pages", n)
		}
	})
	t.Run("expired between pages", func(t *testing.T) {
		a := filled()
		many(a)
		var once atomic.Bool
		s := newSource(t, Config{Server: "http://" + serve(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.URL.Query().Has("continue") && !once.Swap(true) {
				a.Expire()
			}
			a.ServeHTTP(w, q)
		}))}, nil)
		s.times.refresh = generous
		if r, err := s.Refresh(t.Context()); err != nil || len(r.Objects.Policies) != 2*pageSize+1 || !r.OfflineSince.IsZero() {
			t.Errorf("%d policies, %v, offline since %v", len(r.Objects.Policies), err, r.OfflineSince)
		}
	})
	t.Run("the second fails", func(t *testing.T) {
		a := filled()
		var broken atomic.Bool
		f := start(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if broken.Load() && q.URL.Query().Has("continue") {
				http.Error(w, "no", http.StatusInternalServerError)
				return
			}
			a.ServeHTTP(w, q)
		}))
		f.has(all)
		broken.Store(true)
		a.Silent(true) // only lists tell
		a.Delete("NetworkPolicy", "shop", "web")
		many(a)
		if _, err := f.source.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		r := f.has(all + " offline")
		if r.Objects.Policies[0] != f.all[0].Objects.Policies[0] {
			t.Error("half a list changed something")
		}
		broken.Store(false)
		f.until("all", func(r source.Report) bool { return len(r.Objects.Policies) == 2*pageSize })
	})
	t.Run("without end", func(t *testing.T) {
		f := start(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			io.WriteString(w, `{"kind":"List","metadata":{"resourceVersion":"1","continue":"x"},"items":[]}`)
		}))
		r := f.has("offline unknown")
		if !strings.Contains(r.Diagnostics[0].Message, "never ends") {
			t.Errorf("%v", r.Diagnostics)
		}
	})
}

// What a server sends is bounded.
func TestLargeObject(t *testing.T) {
	f := start(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		io.WriteString(w, `{"kind":"List","metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"`)
		for chunk := bytes.Repeat([]byte("x"), 1<<20); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}))
	r := f.has("offline unknown")
	if !strings.Contains(r.Diagnostics[0].Message, "4 MiB") {
		t.Errorf("%v", r.Diagnostics)
	}
}

// replay answers lists with texts, and one watch of each resource with events. The
// other watches stay open.
type replay struct {
	lists  map[string]string
	events map[string]string
	asked  atomic.Int64 // watches of policies
	from   atomic.Pointer[string]
}

func (p *replay) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	name := q.URL.Path[strings.LastIndex(q.URL.Path, "/")+1:]
	if !q.URL.Query().Has("watch") {
		text := p.lists[name]
		if text == "" {
			text = listOf("List", "1")
		}
		io.WriteString(w, text)
		return
	}
	if name == "networkpolicies" {
		from := q.URL.Query().Get("resourceVersion")
		p.from.Store(&from)
		if p.asked.Add(1) == 1 {
			io.WriteString(w, p.events[name])
			return
		}
	}
	w.(http.Flusher).Flush()
	<-q.Context().Done()
}

// The recorded watches, from an empty list: the version that is watched on from is
// the last bookmark's.
func TestRecordedWatches(t *testing.T) {
	for file, c := range map[string]struct{ want, from string }{
		"api-np-watch.jsonl":              {"default-deny: web-allow:web", "231"},
		"api-np-watchlist.jsonl":          {"default-deny: web-allow:web", "231"},
		"api-np-watchlist-nonempty.jsonl": {"default-deny: web-allow:web", "219"},
	} {
		unknown := `{"type":"WHATEVER","object":{"kind":"NetworkPolicy","metadata":{"name":"no","namespace":"no","resourceVersion":"9"},"spec":{}}}` + "\n" +
			`{"type":"NOTHING"}` + "\n"
		p := &replay{lists: map[string]string{"networkpolicies": recorded(t, "api-np-list-empty.json")},
			events: map[string]string{"networkpolicies": unknown + recorded(t, file)}}
		f := start(t, p)
		r := f.has(c.want)
		awaits(t, "another watch", func() bool { return p.asked.Load() > 1 })
		if from := *p.from.Load(); from != c.from {
			t.Errorf("%s: watched on from %s, want %s", file, from, c.from)
		}
		if len(r.Objects.Policies[1].Rules[inventoryIngress]) == 0 {
			t.Errorf("%s: the rules are not those that were recorded", file)
		}
		f.never("neither offline nor refused", func(r source.Report) bool { return r.Err != nil || !r.OfflineSince.IsZero() || len(r.Rejected) > 0 })
	}
}

// The recorded lists: policies in two pages, namespaces, and pods with mirror pods.
func TestRecordedLists(t *testing.T) {
	p := &replay{lists: map[string]string{
		"namespaces": recorded(t, "api-ns-list.json"), "pods": recorded(t, "api-pods-with-mirror-pods.json"),
		"networkpolicies": recorded(t, "api-np-list.json"),
	}}
	whole := start(t, p).until("everything", func(r source.Report) bool { return !lacks(r) })
	pages := start(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		switch query := q.URL.Query(); {
		case !strings.HasSuffix(q.URL.Path, "networkpolicies") || query.Has("watch"):
			p.ServeHTTP(w, q)
		case query.Has("continue"):
			io.WriteString(w, recorded(t, "api-np-list-page2.json"))
		default:
			io.WriteString(w, recorded(t, "api-np-list-page1.json"))
		}
	})).until("everything", func(r source.Report) bool { return !lacks(r) })
	if told(whole) != told(pages) || len(whole.Objects.Pods) != 9 {
		t.Errorf("whole: %s\npages: %s", told(whole), told(pages))
	}
	for _, pod := range whole.Objects.Pods {
		if pod.Key.Name == "client-gw" && pod.UID != "4f31067efe2a6b39180ea7248eebf4c3" {
			t.Errorf("a mirror pod's uid is %s, not the kubelet's", pod.UID)
		}
	}
}

// A server that is terminated says GOAWAY; its watch had said nothing.
func TestRecordedErrorEvent(t *testing.T) {
	event := section(t, "api-410.txt", "after apiserver restart").Body
	if !strings.Contains(event, `"ERROR"`) {
		t.Fatal("the recording has no such event")
	}
	p := &replay{lists: map[string]string{"networkpolicies": recorded(t, "api-np-list.json")}, events: map[string]string{"networkpolicies": event}}
	f := start(t, p)
	f.has("default-deny: web-allow:web")
	awaits(t, "another watch", func() bool { return p.asked.Load() > 1 })
	if from := *p.from.Load(); from != "221" && from != jsonVersion(t, p.lists["networkpolicies"]) {
		t.Errorf("watched on from %s", from)
	}
	f.never("that is no trouble", func(r source.Report) bool { return r.Err != nil || !r.OfflineSince.IsZero() })
}

func jsonVersion(t *testing.T, list string) string {
	var l struct {
		Metadata struct{ ResourceVersion string }
	}
	must(t, json.Unmarshal([]byte(list), &l))
	return l.Metadata.ResourceVersion
}

// Errors of the server are one printable line.
func TestMessagesAreTame(t *testing.T) {
	for body, want := range map[string]string{
		`{"message":"a\nb\u001b[31mc"}`: "500 Internal Server Error: a b [31mc",
		"<html>":                        "500 Internal Server Error",
		"line one\nline two":            "500 Internal Server Error: line one",
		`{"message":"` + strings.Repeat("é", 999) + `"}`: "500 Internal Server Error: " + strings.Repeat("é", maxMessage/2) + "...",
	} {
		err := refusalOf(&http.Response{StatusCode: 500, Header: http.Header{}}, strings.NewReader(body))
		if err.Error() != want {
			t.Errorf("%.40q: %q", body, err)
		}
	}
}

// Whatever a server sends as a list, or as events, is read or refused, and half of
// it never counts.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(recorded(f, "api-np-list-page1.json")), []byte(recorded(f, "api-np-watch.jsonl")))
	f.Add([]byte(`{"kind":"List","items":[{"metadata":{"name":"a"},"spec":{}}],"metadata":{"resourceVersion":"1"}}`), []byte(`{"type":"DELETED","object":{"metadata":{"name":"a"}}}`))
	f.Add([]byte(`{"items":null}`), []byte(`{"type":"ERROR","object":{"code":410}}{"type":"BOOKMARK"`))
	f.Fuzz(func(t *testing.T, list, events []byte) {
		s, err := New(Config{Server: "http://127.0.0.1:1", NodeName: "gw"}, nil, nil)
		must(t, err)
		r := s.resources[0]
		l := &listing{source: s, resource: r}
		l.entries = r.entries
		err = l.decode(streamOf(list))
		if err == nil && !json.Valid(firstValue(list)) {
			t.Errorf("taken for a list: %q", list)
		}
		w := &watching{source: s, resource: r}
		_ = w.events(streamOf(events)) // whatever it is
		for key, e := range r.entries {
			if key.Name == "" || e.object == nil && e.invalid == "" {
				t.Errorf("an object %q that is nothing", key)
			}
		}
		s.assemble()
	})
}

func firstValue(text []byte) []byte {
	var first json.RawMessage
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&first); err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	return first
}

// A cache that has lost what it knew serves an empty list of no version: nothing is
// taken away for it, unless it stays so.
func TestEmptyListOfNoVersion(t *testing.T) {
	a := filled()
	f := start(t, a)
	f.until("all", func(r source.Report) bool { return len(r.Objects.Policies) == 1 && r.OfflineSince.IsZero() })
	f.source.mu.Lock()
	f.source.times.emptied = generous
	f.source.mu.Unlock()
	a.NoWatch(0)
	a.Status("networkpolicies", stub.Answer{Code: 200, Body: `{"kind":"NetworkPolicyList","metadata":{},"items":[]}`})
	a.EndWatches()
	f.until("doubt", func(r source.Report) bool {
		if len(r.Objects.Policies) != 1 {
			t.Fatalf("the policies are gone: %s", told(r))
		}
		return !r.OfflineSince.IsZero() || r.Err != nil
	})
	f.source.mu.Lock()
	f.source.times.emptied = 0
	f.source.mu.Unlock()
	f.until("belief", func(r source.Report) bool { return len(r.Objects.Policies) == 0 && r.OfflineSince.IsZero() })
}
