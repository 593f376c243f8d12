package kubelet

import (
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

const errRefused = syscall.ECONNREFUSED

// settled gives a source that runs, has seen what w lists, and has no doubt.
func settled(t *testing.T, s *Source) *running {
	f := run(t, s)
	time.Sleep(time.Minute + 3*time.Second) // between two polls
	synctest.Wait()
	if r := f.last(); r.Unknown || r.Err != nil || r.Confirmed.IsZero() {
		t.Fatalf("not settled: %s", describe(r))
	}
	return f
}

// never fails if any report says what may not be.
func never(t *testing.T, reports []source.Report, what string, bad func(source.Report) bool) {
	t.Helper()
	for _, r := range reports {
		if bad(r) {
			t.Fatalf("%s: %s", what, describe(r))
		}
	}
}

// The recorded restart: refused, then null, then partial lists, pods without
// addresses among them, then all. Nothing that is there all the while is ever
// missing, or without its address.
func TestRestart(t *testing.T) {
	for _, quick := range []bool{false, true} { // between two polls, or with a refused one
		synctest.Test(t, func(t *testing.T) {
			s, w := wired(t, Config{}, nil)
			w.SetList(recorded(t, "kubelet-pods-restart-3.json"))
			f := settled(t, s)
			before := f.last()
			if !quick {
				w.set(func() { w.refuse = true })
				s.Poke()
				time.Sleep(300 * time.Millisecond)
				w.set(func() { w.refuse = false })
			} else {
				w.set(func() { w.fresh = true })
			}
			step := func(do func(), wait time.Duration) {
				do()
				s.Poke()
				time.Sleep(wait)
				synctest.Wait()
				never(t, f.all()[1:], "a pod lost something", func(r source.Report) bool { return len(r.Objects.Pods) < 8 || names(r) != names(before) })
			}
			step(w.Null, 350*time.Millisecond)
			for _, name := range []string{"kubelet-pods-restart-1.json", "kubelet-pods-restart-2.json", "kubelet-pods-restart-3.json"} {
				step(func() { w.SetList(recorded(t, name)) }, 60*time.Millisecond)
			}
			step(func() {}, time.Minute)
			r := f.last()
			if !r.OfflineSince.IsZero() || r.Err != nil || podOf(r, "shop/job-done-gw").Phase != "Succeeded" {
				t.Errorf("in the end: %s", describe(r))
			}
			if podOf(r, "shop/web-gw") != podOf(before, "shop/web-gw") {
				t.Error("what was in all the lists has changed")
			}
		})
	}
}

// The daemon starts together with the kubelet, and knows the pods of its state.
func TestStartWithState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := wired(t, Config{}, nil)
		w.SetList(recorded(t, "kubelet-pods-restart-3.json"))
		saved := refresh(t, s)
		s, w = wired(t, Config{}, func() inventory.Objects { return saved.Objects })
		w.SetList(recorded(t, "kubelet-pods-restart-1.json"))
		f := run(t, s)
		time.Sleep(time.Second)
		w.SetList(recorded(t, "kubelet-pods-restart-3.json"))
		time.Sleep(time.Minute)
		never(t, f.all(), "a pod was lost", func(r source.Report) bool { return names(r) != names(saved) || r.Unknown })
		synctest.Wait()
		if f.last().Confirmed.IsZero() {
			t.Error("nothing was confirmed")
		}
	})
}

// What is not there any more after a restart goes in the end: some pods after 5 s
// of lists without them, all of them after 15 s.
func TestGoneAfterRestart(t *testing.T) {
	for _, c := range []struct {
		left  []stub.Pod
		after time.Duration
		want  string
	}{
		{[]stub.Pod{{Name: "a", IPs: []string{"10.0.0.1"}}}, settle, "default/a=10.0.0.1"},
		{nil, settleEmpty, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, w := wired(t, Config{}, nil)
			w.SetPods(stub.Pod{Name: "a", IPs: []string{"10.0.0.1"}}, stub.Pod{Name: "b", IPs: []string{"10.0.0.2"}}, stub.Pod{Name: "c", IPs: []string{"10.0.0.3"}})
			f := settled(t, s)
			before, confirmed := f.last(), s.Confirmed()
			w.set(func() { w.fresh = true })
			w.SetPods(c.left...)
			s.Poke()
			time.Sleep(c.after - 10*time.Millisecond)
			synctest.Wait()
			if f.last().Time != before.Time || s.Confirmed() != confirmed {
				t.Errorf("too early: %s", describe(f.last()))
			}
			time.Sleep(20 * time.Millisecond)
			synctest.Wait()
			if r := f.last(); names(r) != c.want || r.Unknown || !s.Confirmed().After(confirmed) {
				t.Errorf("in the end: %s", describe(r))
			}
		})
	}
}

// A list that fills slowly: what comes back gives the rest time anew.
func TestSlowlyFillingList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := stub.Pod{Name: "a", IPs: []string{"10.0.0.1"}}, stub.Pod{Name: "b", IPs: []string{"10.0.0.2"}}, stub.Pod{Name: "c", IPs: []string{"10.0.0.3"}}
		s, w := wired(t, Config{}, nil)
		w.SetPods(a, b, c)
		f := settled(t, s)
		before := f.last()
		w.Null()
		for _, next := range [][]stub.Pod{{a}, {a, b}, {a, b, c}} {
			s.Poke()
			time.Sleep(4 * time.Second)
			w.SetPods(next...)
		}
		s.Poke()
		time.Sleep(time.Minute)
		synctest.Wait()
		if f.last().Time != before.Time {
			t.Errorf("%s", describe(f.last()))
		}
	})
}

// A pod that leaves an otherwise stable list is gone at once; several at a time
// could be a restart.
func TestOnePodLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods := []stub.Pod{{Name: "a", IPs: []string{"10.0.0.1"}}, {Name: "b", IPs: []string{"10.0.0.2"}}, {Name: "c", IPs: []string{"10.0.0.3"}}, {Name: "d", IPs: []string{"10.0.0.4"}}}
		s, w := wired(t, Config{}, nil)
		w.SetPods(pods...)
		f := settled(t, s)
		w.SetPods(pods[:3]...)
		s.Poke()
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if r := f.last(); names(r) != "default/a=10.0.0.1 default/b=10.0.0.2 default/c=10.0.0.3" {
			t.Errorf("one left: %s", describe(r))
		}
		time.Sleep(time.Minute)
		w.SetPods(pods[0])
		s.Poke()
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if r := f.last(); len(r.Objects.Pods) != 3 {
			t.Errorf("two left: %s", describe(r))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if r := f.last(); names(r) != "default/a=10.0.0.1" {
			t.Errorf("two are gone: %s", describe(r))
		}
	})
}

// A gateway without pods, and nothing saved: unknown until that is believed.
func TestEmptyKubelet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := wired(t, Config{}, nil)
		f := run(t, s)
		time.Sleep(settleEmpty - time.Millisecond)
		synctest.Wait()
		if r := f.last(); !r.Unknown || !r.Confirmed.IsZero() {
			t.Errorf("too early: %s", describe(r))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if r := f.last(); r.Unknown || r.Confirmed.IsZero() || r.Err != nil {
			t.Errorf("%s", describe(r))
		}
	})
}

// A static pod keeps its uid over a new sandbox: it has the old address until it
// has the new one. Another pod of its name has not.
func TestAddressIsKept(t *testing.T) {
	s, w := wired(t, Config{}, nil)
	set := func(p stub.Pod) string {
		w.SetPods(p)
		r := refresh(t, s)
		for _, pod := range r.Objects.Pods {
			if len(pod.Addresses) > 0 && !strings.Contains(string(pod.JSON), pod.Addresses[0].String()) {
				t.Errorf("its JSON says otherwise: %s", pod.JSON)
			}
		}
		return names(r)
	}
	for _, step := range []struct {
		pod  stub.Pod
		want string
	}{
		{stub.Pod{Name: "a", UID: "1", IPs: []string{"10.0.0.1", "fd00::1"}}, "default/a=10.0.0.1,fd00::1"},
		{stub.Pod{Name: "a", UID: "1", Phase: "Pending"}, "default/a=10.0.0.1,fd00::1"},
		{stub.Pod{Name: "a", UID: "1", Phase: "Pending", Labels: map[string]string{"new": "label"}}, "default/a=10.0.0.1,fd00::1"},
		{stub.Pod{Name: "a", UID: "1", IPs: []string{"10.0.0.2"}}, "default/a=10.0.0.2"},
		{stub.Pod{Name: "a", UID: "2", Phase: "Pending"}, "default/a"},
		{stub.Pod{Name: "a", UID: "2", IPs: []string{"10.0.0.3"}}, "default/a=10.0.0.3"},
		{stub.Pod{Name: "a", UID: "2", Phase: "Failed"}, "default/a"},
		{stub.Pod{Name: "a", UID: "2", Phase: "Succeeded", IPs: []string{"10.0.0.4"}}, "default/a=10.0.0.4"},
		{stub.Pod{Name: "a", UID: "2", Phase: "Pending"}, "default/a"}, // an ended pod's address may be another's
	} {
		if got := set(step.pod); got != step.want {
			t.Errorf("%+v: %s, want %s", step.pod, got, step.want)
		}
	}
}

// What is only kept yields to who is listed with the address.
func TestKeptAddressYields(t *testing.T) {
	s, w := wired(t, Config{}, nil)
	a, b := stub.Pod{Name: "a", IPs: []string{"10.0.0.1"}}, stub.Pod{Name: "b", IPs: []string{"10.0.0.2"}}
	w.SetPods(a, b)
	refresh(t, s)
	waiting := a
	waiting.IPs, waiting.Phase = nil, "Pending"
	w.SetPods(waiting, b)
	if r := refresh(t, s); names(r) != "default/a=10.0.0.1 default/b=10.0.0.2" {
		t.Errorf("kept: %s", describe(r))
	}
	thief := stub.Pod{Name: "c", IPs: []string{"10.0.0.1"}}
	w.SetPods(waiting, b, thief)
	if r := refresh(t, s); names(r) != "default/a default/b=10.0.0.2 default/c=10.0.0.1" {
		t.Errorf("of a listed pod: %s", describe(r))
	}
	other := stub.Pod{Name: "d", IPs: []string{"10.0.0.2"}}
	w.SetPods(waiting, thief, other) // b is missing, in doubt
	if r := refresh(t, s); names(r) != "default/a default/c=10.0.0.1 default/d=10.0.0.2" {
		t.Errorf("of a missing pod: %s", describe(r))
	}
}

// A kubelet that refuses us, or can't ask its API server whether it should, takes
// nothing away. 5xx is being away, the others are errors.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		want   string // "" for away
	}{
		{http.StatusUnauthorized, "Unauthorized", "tokenFile"},
		{http.StatusForbidden, "Forbidden (user=nobody, verb=get, resource=nodes, subresource(s)=[pods proxy])\n", "nodes/pods"},
		{http.StatusNotFound, "404 page not found\n", "is this the url of a kubelet"},
		{http.StatusBadRequest, "Client sent an HTTP request to an HTTPS server.\n", "use https://"},
		{http.StatusFound, "", "not followed"},
		{http.StatusInternalServerError, "Authorization error (user=lab-admin, verb=get, resource=nodes, subresource=pods)", ""},
		{http.StatusServiceUnavailable, "", ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, w := wired(t, Config{}, nil)
			w.SetList(recorded(t, "kubelet-pods-10255.json"))
			f := settled(t, s)
			before := len(f.all())
			w.Fail(c.status, c.body)
			s.Poke()
			time.Sleep(2 * time.Second)
			synctest.Wait()
			r := f.last()
			if c.want == "" && (r.Err != nil || time.Since(r.OfflineSince) != 2*time.Second) {
				t.Errorf("%d: at first: %s", c.status, describe(r))
			}
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			r = f.last()
			if names(r) != recordedPods || r.Err == nil || !strings.Contains(r.Err.Error(), c.want) || !strings.Contains(r.Err.Error(), "http://kubelet:10255") {
				t.Errorf("%d: %s", c.status, describe(r))
			}
			if r.OfflineSince.IsZero() != (c.want != "") {
				t.Errorf("%d: offline since %v", c.status, r.OfflineSince)
			}
			if n := len(f.all()) - before; n > 2 {
				t.Errorf("%d: %d reports of one trouble", c.status, n)
			}
			w.Fail(0, "")
			time.Sleep(interval)
			synctest.Wait()
			if r = f.last(); names(r) != recordedPods || r.Err != nil || !r.OfflineSince.IsZero() {
				t.Errorf("%d: in the end: %s", c.status, describe(r))
			}
		})
	}
}

// What is no list of pods is no empty list.
func TestNoList(t *testing.T) {
	for _, body := range []string{"", "{}", "null", "[]", "<html>", `{"kind":"Status","items":[]}`, `{"kind":"PodList","items":[`, `{"kind":"PodList","items":{}}`, `{"kind":"PodList","items":null} {}`} {
		s, w := wired(t, Config{}, nil)
		w.SetList(recorded(t, "kubelet-pods-10255.json"))
		refresh(t, s)
		w.Fail(http.StatusOK, body)
		if r := refresh(t, s); names(r) != recordedPods || r.Err == nil || !r.OfflineSince.IsZero() {
			t.Errorf("%s: %s", body, describe(r))
		}
	}
}

// After a failure a shorter list is in doubt, also over the same connection.
func TestShorterAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := stub.Pod{Name: "a", IPs: []string{"10.0.0.1"}}, stub.Pod{Name: "b", IPs: []string{"10.0.0.2"}}
		s, w := wired(t, Config{}, nil)
		w.SetPods(a, b)
		f := settled(t, s)
		before := f.last()
		w.Fail(http.StatusInternalServerError, "")
		s.Poke()
		time.Sleep(time.Second)
		w.Fail(0, "")
		w.SetPods(b)
		s.Poke()
		time.Sleep(settle - time.Millisecond)
		synctest.Wait()
		never(t, f.all()[1:], "too early", func(r source.Report) bool { return names(r) != names(before) })
		time.Sleep(time.Second)
		synctest.Wait()
		if r := f.last(); names(r) != "default/b=10.0.0.2" {
			t.Errorf("in the end: %s", describe(r))
		}
	})
}
