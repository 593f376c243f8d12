package api

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

func TestFollowsChanges(t *testing.T) {
	a := filled()
	a.Bookmarks = 2 * time.Millisecond
	f := start(t, a)
	first := f.has(all)
	if first.Confirmed.IsZero() || f.source.Confirmed().IsZero() {
		t.Error("everything was read, and is not confirmed")
	}
	a.Put(policy("web", "two"))
	second := f.has("web:two shop=a web-1@10.1.0.1")
	if first.Objects.Namespaces[0] != second.Objects.Namespaces[0] || first.Objects.Pods[0] != second.Objects.Pods[0] {
		t.Error("objects that did not change are others now")
	}
	a.Put(policy("db", "db"))
	a.Delete("NetworkPolicy", "shop", "web")
	a.Put(namespace("shop", "b"))
	a.Delete("Pod", "shop", "web-1")
	f.has("db:db shop=b")
	a.Put(pod("web-1", "gw", "10.1.0.2"))
	f.has("db:db shop=b web-1@10.1.0.2")
	f.never("a bookmark is no policy", func(r source.Report) bool {
		for _, p := range r.Objects.Policies {
			if p.Key.Name == "" || p.Selector.Empty() {
				return true
			}
		}
		return false
	})
	if n := a.Requests("list networkpolicies"); n != 1 {
		t.Errorf("%d lists, where watching was enough", n)
	}
}

// What is written again, and says the same, keeps its pointer and makes no report.
func TestSameContentKeepsPointers(t *testing.T) {
	a := filled()
	f := start(t, a)
	before := f.has(all)
	a.Put(strings.Replace(policy("web", "one"), `"name"`, `"annotations":{"a":"b"},"name"`, 1))
	a.Put(pod("web-2", "gw", "10.1.0.2"))
	after := f.has(all + " web-2@10.1.0.2")
	if before.Objects.Policies[0] != after.Objects.Policies[0] {
		t.Error("a policy with a new annotation is another")
	}
	a.Put(strings.Replace(policy("web", "one"), `"name"`, `"annotations":{"a":"c"},"name"`, 1))
	r, err := f.source.Refresh(t.Context()) // a list
	must(t, err)
	if r.Objects.Policies[0] != after.Objects.Policies[0] || r.Objects.Namespaces[0] != after.Objects.Namespaces[0] || r.Objects.Pods[1] != after.Objects.Pods[1] {
		t.Error("a list of the same made other objects")
	}
	if !r.Time.Equal(after.Time) {
		t.Error("a report that says the same has a time of its own")
	}
}

// 410 comes as an event of a watch that opened, or instead of the watch.
func TestExpiredWatchIsFollowedByAList(t *testing.T) {
	t.Run("event", func(t *testing.T) {
		a := filled()
		f := start(t, a)
		f.has(all)
		a.Expire()
		a.Put(policy("db", "db"))
		f.has("db:db " + all)
		f.never("something was lost meanwhile", lacks)
	})
	t.Run("status", func(t *testing.T) {
		a := filled()
		gone := section(t, "api-410.txt", "list resourceVersion=214 Exact")
		var expired atomic.Bool
		f := start(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.URL.Query().Has("watch") && expired.Swap(false) {
				w.WriteHeader(gone.Code)
				io.WriteString(w, gone.Body)
				return
			}
			a.ServeHTTP(w, q)
		}))
		f.has(all)
		lists := a.Requests("list pods") + a.Requests("list namespaces") + a.Requests("list networkpolicies")
		expired.Store(true)
		a.EndWatches()
		awaits(t, "a list", func() bool {
			return a.Requests("list pods")+a.Requests("list namespaces")+a.Requests("list networkpolicies") > lists
		})
		a.Put(policy("db", "db"))
		f.has("db:db " + all)
		f.never("something was lost meanwhile", lacks)
	})
}

// A watch that ends cleanly goes on from its last version, without a list.
func TestEndedWatchGoesOn(t *testing.T) {
	a := filled()
	f := start(t, a)
	f.has(all)
	for i := range 4 {
		a.Put(policy("web", fmt.Sprint(i)))
		a.EndWatches()
		f.has(fmt.Sprintf("web:%d shop=a web-1@10.1.0.1", i))
	}
	if n := a.Requests("list networkpolicies"); n != 1 {
		t.Errorf("%d lists", n)
	}
	f.never("that is not being offline", func(r source.Report) bool { return !r.OfflineSince.IsZero() })
}

// The server is away, and comes back with other objects.
func TestServerAwayAndBack(t *testing.T) {
	a := filled()
	address := listen(t, a, "127.0.0.1:0")
	f := run(t, newSource(t, Config{Server: "http://" + address}, nil))
	f.has(all)
	before := time.Now()
	a.Close()
	r := f.until("being offline", func(r source.Report) bool { return strings.Count(fmt.Sprint(r.Diagnostics), "can't be read") == 3 })
	if told(r) != all+" offline" || r.Err != nil || r.OfflineSince.Before(before) || r.OfflineSince.After(time.Now()) {
		t.Errorf("offline: %s, since %v (%v), err %v", told(r), r.OfflineSince, before, r.Err)
	}
	confirmed := f.source.Confirmed()
	if confirmed.IsZero() || confirmed.After(r.OfflineSince) {
		t.Errorf("confirmed at %v, offline since %v", confirmed, r.OfflineSince)
	}
	a.Delete("NetworkPolicy", "shop", "web")
	a.Put(policy("db", "db"))
	a.Put(pod("web-1", "gw", "10.1.0.9"))
	listen(t, a, address)
	f.has("db:db shop=a web-1@10.1.0.9")
	f.never("nothing vanishes while the server is away", lacks)
	if n := len(f.all); n > 12 {
		t.Errorf("%d reports: one for each change of state is enough", n)
	}
	if !f.source.Confirmed().After(confirmed) {
		t.Error("it is back and confirms nothing")
	}
}

// A server that can't watch is polled, and watched again when it can.
func TestPollsWhereNothingCanBeWatched(t *testing.T) {
	a := filled()
	a.NoWatch(0)
	f := start(t, a)
	f.has(all)
	a.Put(policy("web", "two"))
	a.Delete("Pod", "shop", "web-1")
	f.has("web:two shop=a")
	if a.Requests("list pods") < 2 {
		t.Error("how was that known?")
	}
	a.NoWatch(-1)
	a.Bookmarks = 5 * time.Millisecond
	awaits(t, "watches", func() bool {
		before := a.Requests("list networkpolicies")
		time.Sleep(10 * quick.poll)
		return a.Requests("list networkpolicies") == before
	})
	a.Put(policy("web", "three"))
	f.has("web:three shop=a")
	f.never("a cache that can only be polled is not offline", func(r source.Report) bool { return !r.OfflineSince.IsZero() || r.Err != nil })
}

// Watches that open and tell nothing, that never open, and those of caches whose
// lists have no version.
func TestDeafWatchesArePolled(t *testing.T) {
	short := quick
	short.open = 50 * time.Millisecond
	short.watch1 = span{50 * time.Millisecond, 100 * time.Millisecond}
	short.trial = short.watch1
	follow := func(t *testing.T, h http.Handler) *follower {
		s := newSource(t, Config{Server: "http://" + serve(t, h)}, nil)
		s.times = short
		return run(t, s)
	}
	t.Run("silent", func(t *testing.T) {
		a := filled()
		a.Silent(true)
		f := follow(t, a)
		f.has(all)
		a.Put(policy("web", "two"))
		f.has("web:two shop=a web-1@10.1.0.1")
		f.never("silence is not being offline", func(r source.Report) bool { return !r.OfflineSince.IsZero() })
	})
	t.Run("silent once", func(t *testing.T) {
		a := filled()
		a.Silent(true)
		var lists, watches, before atomic.Int32
		follow(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			switch {
			case !strings.HasSuffix(q.URL.Path, "networkpolicies"):
			case q.URL.Query().Has("watch"):
				watches.Add(1)
			case lists.Add(1) == 2:
				before.Store(watches.Load())
			}
			a.ServeHTTP(w, q)
		})).has(all)
		awaits(t, "a second list", func() bool { return lists.Load() > 1 })
		if n := before.Load(); n != 1 {
			t.Errorf("a list after %d silent watches: what one did not tell may be missed", n)
		}
	})
	t.Run("never answered", func(t *testing.T) {
		a := filled()
		a.NoWatch(time.Hour)
		f := follow(t, a)
		f.has(all)
		a.Put(policy("web", "two"))
		f.has("web:two shop=a web-1@10.1.0.1")
	})
	t.Run("no version", func(t *testing.T) {
		var text atomic.Pointer[string]
		one := listOf("NetworkPolicyList", "", policy("web", "one"))
		text.Store(&one)
		f := follow(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			switch {
			case q.URL.Query().Has("watch"):
				t.Errorf("a watch from version %q", q.URL.Query().Get("resourceVersion"))
			case strings.HasSuffix(q.URL.Path, "networkpolicies"):
				io.WriteString(w, *text.Load())
			case strings.HasSuffix(q.URL.Path, "pods"):
				io.WriteString(w, listOf("PodList", ""))
			default:
				io.WriteString(w, listOf("NamespaceList", ""))
			}
		}))
		f.has("web:one")
		two := listOf("NetworkPolicyList", "", policy("web", "two"))
		text.Store(&two)
		f.has("web:two")
	})
}

// The network is gone without a word: connections stay open, nothing is answered.
func TestBlackHole(t *testing.T) {
	a := filled()
	s := newSource(t, Config{Server: "http://" + serve(t, a)}, nil)
	s.times.watch1 = span{100 * time.Millisecond, 150 * time.Millisecond}
	s.times.list, s.times.open = 150*time.Millisecond, 100*time.Millisecond
	f := run(t, s)
	f.has(all)
	a.Drop(true)
	a.Delete("Pod", "shop", "web-1")
	f.has(all + " offline")
	a.Drop(false)
	f.has("web:one shop=a")
	f.never("nothing vanishes in a black hole", func(r source.Report) bool { return len(r.Objects.Policies) == 0 })
}

// A server may ignore the field selector, and limit.
func TestPodsOfOtherNodes(t *testing.T) {
	for _, ignored := range []bool{false, true} {
		a := filled()
		a.IgnoreSelector(ignored)
		a.Put(pod("other", "far", "10.2.0.1"))
		a.Put(pod("pending", "", ""))
		a.Put(pod("unscheduled", "", ""))
		server := "http://" + serve(t, a)
		f := run(t, newSource(t, Config{Server: server}, nil))
		f.has(all)
		a.Put(pod("other-2", "far", "10.2.0.2"))
		a.Put(strings.Replace(pod("broken", "far", "10.2.0.3"), `"Running"`, `"Walking"`, 1))
		a.Put(pod("pending", "gw", "10.1.0.3")) // it was scheduled
		f.has("web:one shop=a pending@10.1.0.3 web-1@10.1.0.1")

		f = run(t, newSource(t, Config{Server: server, AllPods: true}, nil))
		f.has("web:one shop=a other@10.2.0.1(remote) other-2@10.2.0.2(remote) pending@10.1.0.3 web-1@10.1.0.1 !Pod shop/broken")
	}
}

// An invalid object is named, and its last valid version stays.
func TestInvalidObjects(t *testing.T) {
	a := filled()
	f := start(t, a)
	f.has(all)
	bad := strings.Replace(policy("web", "two"), `"Ingress"`, `"Sideways"`, 1)
	a.Put(bad)
	a.Put(strings.Replace(bad, `"web"`, `"new"`, 1))
	r := f.has(all + " !NetworkPolicy shop/new !NetworkPolicy shop/web")
	if r.Rejected[0].Kept || !r.Rejected[1].Kept || !strings.Contains(r.Rejected[1].Reason, "Sideways") && !strings.Contains(r.Rejected[1].Reason, "policyTypes") {
		t.Errorf("rejected: %+v", r.Rejected)
	}
	if r, err := f.source.Refresh(t.Context()); err != nil || !r.Time.Equal(f.now.Time) {
		t.Errorf("a list of the same says something new: %s %v", told(r), err)
	}
	a.Put(policy("web", "three"))
	a.Delete("NetworkPolicy", "shop", "new")
	f.has("web:three shop=a web-1@10.1.0.1")
}

// The first report waits for all three, or says that not all is known.
func TestFirstReport(t *testing.T) {
	hold := func(a *stub.API, release <-chan struct{}) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if strings.HasSuffix(q.URL.Path, "namespaces") {
				<-release
			}
			a.ServeHTTP(w, q)
		})
	}
	t.Run("a slow list", func(t *testing.T) {
		release := make(chan struct{})
		f := start(t, hold(filled(), release))
		select {
		case r := <-f.reports:
			t.Errorf("half of it was reported: %s", told(r))
		case <-time.After(2 * quick.start):
		}
		close(release)
		f.has(all)
		f.never("half of it was reported", lacks)
	})
	t.Run("a list that fails", func(t *testing.T) {
		a := filled()
		a.Status("namespaces", stub.Answer{Code: 500, Body: "no"})
		f := start(t, a)
		r := f.has("web:one web-1@10.1.0.1 offline unknown")
		if len(r.Diagnostics) != 1 || !strings.Contains(r.Diagnostics[0].Message, "namespaces") {
			t.Errorf("what is stale is not told: %v", r.Diagnostics)
		}
		a.Status("namespaces", stub.Answer{})
		f.has(all)
	})
	t.Run("with what was saved", func(t *testing.T) {
		a := filled()
		a.Status("namespaces", stub.Answer{Code: 500, Body: "no"})
		called := 0
		s := newSource(t, Config{Server: "http://" + serve(t, a)}, func() inventory.Objects {
			called++
			return saved(t)
		})
		known, err := s.Known(t.Context())
		must(t, err)
		if got := told(known); got != "old:old shop=saved web-1@10.1.0.7" || !known.Confirmed.IsZero() {
			t.Errorf("known: %s, confirmed %v", got, known.Confirmed)
		}
		f := run(t, s)
		f.has("web:one shop=saved web-1@10.1.0.1 offline")
		a.Status("namespaces", stub.Answer{})
		f.has(all)
		if called != 1 {
			t.Errorf("the saved state was asked for %d times", called)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		a := stub.NewAPI()
		address := listen(t, a, "127.0.0.1:0")
		a.Close()
		f := run(t, newSource(t, Config{Server: "http://" + address}, nil))
		f.has("offline unknown")
	})
}

// saved gives objects as the state has them.
func saved(t *testing.T) inventory.Objects {
	s := newSource(t, Config{Server: "http://127.0.0.1:1", AllPods: true}, nil)
	var o inventory.Objects
	for i, text := range []string{policy("old", "old"), namespace("shop", "saved"), pod("web-1", "gw", "10.1.0.7"), pod("far", "far", "10.2.0.7")} {
		e, err := s.read(s.resources[min(i, 2)], []byte(text))
		must(t, err)
		switch v := e.object.(type) {
		case *inventory.Policy:
			o.Policies = append(o.Policies, v)
		case *inventory.Namespace:
			o.Namespaces = append(o.Namespaces, v)
		case *inventory.Pod:
			o.Pods = append(o.Pods, v)
		}
	}
	return o
}

// Refresh asks now, and does not wait for a server that does not answer.
func TestRefresh(t *testing.T) {
	a := filled()
	a.Silent(true)
	f := start(t, a)
	f.has(all)
	a.Put(policy("web", "two"))
	r, err := f.source.Refresh(t.Context())
	if err != nil || told(r) != "web:two shop=a web-1@10.1.0.1" {
		t.Errorf("refreshed: %s %v", told(r), err)
	}
	f.has(told(r)) // Run reports it too
	a.Drop(true)
	began := time.Now()
	r, err = f.source.Refresh(t.Context())
	if err != nil || told(r) != "web:two shop=a web-1@10.1.0.1" || time.Since(began) > generous {
		t.Errorf("of a black hole: %s %v after %v", told(r), err, time.Since(began))
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.source.Refresh(ended); err != context.Canceled {
		t.Errorf("with a context that ended: %v", err)
	}
}

// Refresh works without Run, as for commands that ask once.
func TestRefreshWithoutRun(t *testing.T) {
	s := newSource(t, Config{Server: "http://" + serve(t, filled())}, nil)
	if r, err := s.Refresh(t.Context()); err != nil || told(r) != all {
		t.Errorf("%s %v", told(r), err)
	}
}

// A burst of events makes few reports.
func TestBurst(t *testing.T) {
	a := filled()
	s := newSource(t, Config{Server: "http://" + serve(t, a)}, nil)
	s.times.gather = 100 * time.Millisecond
	f := run(t, s)
	f.has(all)
	before := len(f.all)
	for i := range 300 {
		a.Put(pod(fmt.Sprintf("p-%03d", i), "gw", netip.AddrFrom4([4]byte{10, 3, byte(i / 250), byte(i%250 + 1)}).String()))
	}
	f.until("300 pods", func(r source.Report) bool { return len(r.Objects.Pods) == 301 })
	if n := len(f.all) - before; n > 100 {
		t.Errorf("%d reports of one burst", n)
	}
}

func TestNewRefusesWhatIsUnclear(t *testing.T) {
	for _, c := range []Config{
		{NodeName: "gw"}, {Kubeconfig: "/k", Server: "http://a", NodeName: "gw"}, {Server: "http://a"},
		{Server: "a:6443", NodeName: "gw"}, {Server: "ftp://a", NodeName: "gw"}, {Server: "http://u:hunter2@a", NodeName: "gw"},
		{Server: "http://hunter2\x7f", NodeName: "gw"},
	} {
		_, err := New(c, nil, slog.New(slog.DiscardHandler))
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// What a watch tells that began before the last list is out of date.
func TestWatchOlderThanTheList(t *testing.T) {
	s := newSource(t, Config{Server: "http://127.0.0.1:1"}, nil)
	r := s.resources[0]
	w := &watching{source: s, resource: r, replaced: r.replaced}
	if err := w.take(&event{"ADDED", []byte(policy("web", "one"))}); err != nil || len(r.entries) != 1 {
		t.Fatalf("%v, %d policies", err, len(r.entries))
	}
	r.replace(map[inventory.Key]*entry{}, "9")
	if err := w.take(&event{"MODIFIED", []byte(policy("web", "two"))}); err != errOutdated || len(r.entries) != 0 || r.version != "9" {
		t.Errorf("%v, %d policies, version %s", err, len(r.entries), r.version)
	}
}

// Who finds the server back wakes the others that wait for it, and nobody else.
func TestBackWakesOthers(t *testing.T) {
	s := newSource(t, Config{Server: "http://127.0.0.1:1"}, nil)
	s.failed(s.resources[0], errSilent)
	s.failed(s.resources[1], errSilent)
	s.current(s.resources[2])
	if len(s.resources[1].wake) != 0 {
		t.Error("woken by one that was never away")
	}
	s.current(s.resources[0])
	if len(s.resources[0].wake) != 0 || len(s.resources[1].wake) != 1 || len(s.resources[2].wake) != 0 {
		t.Errorf("woken: %d %d %d", len(s.resources[0].wake), len(s.resources[1].wake), len(s.resources[2].wake))
	}
}

// A dead network is noticed within a minute, whatever the server speaks: the limits
// that add up to that are the daemon's own.
func TestNoticedWithinAMinute(t *testing.T) {
	const pings = 45 * time.Second // client-go's, see TestPingsNoticeADeadConnection
	d := defaults
	if worst := max(d.watch1.silent, pings+d.open) + d.list; worst >= time.Minute {
		t.Errorf("after %v", worst)
	}
	if worst := d.poll*4/3 + d.open + d.trial.silent; worst > 30*time.Second {
		t.Errorf("a cache that can only be polled is read after %v", worst)
	}
	if d.retry >= 5*time.Second {
		t.Errorf("a server that is back is asked after %v", d.retry)
	}
}

// A node name that the API does not have enforces nothing: it is told.
func TestNobodyOfThisNode(t *testing.T) {
	for _, all := range []bool{true, false} {
		a := filled()
		s := newSource(t, Config{Server: "http://" + serve(t, a), NodeName: "gw-typo", AllPods: all}, nil)
		f := run(t, s)
		r := f.until("a warning", func(r source.Report) bool { return len(r.Objects.Policies) == 1 && len(r.Diagnostics) == 1 })
		if text := r.Diagnostics[0].Message; !strings.Contains(text, "no pod of node gw-typo is listed") {
			t.Errorf("told %q", text)
		}
		a.Put(pod("here", "gw-typo", "10.1.0.9"))
		f.until("no warning", func(r source.Report) bool { return len(r.Diagnostics) == 0 })
	}
}
