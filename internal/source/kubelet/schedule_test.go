package kubelet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

// since gives when the kubelet was asked, in milliseconds after start.
func (w *wire) since(start time.Time) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, t := range w.asked {
		if !t.Before(start) {
			all = append(all, fmt.Sprint(t.Sub(start).Milliseconds()))
		}
	}
	return strings.Join(all, " ")
}

var (
	whole   = stub.Pod{Name: "a", IPs: []string{"10.0.0.1"}}
	waiting = stub.Pod{Name: "b", Phase: "Pending"}
)

// Rarely, while nothing happens.
func TestIdlePolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := wired(t, Config{Interval: 7 * time.Second}, nil)
		w.SetPods(whole)
		start := time.Now()
		run(t, s)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if got := w.since(start); got != "0 7000 14000 21000 28000" {
			t.Errorf("polled at %s", got)
		}
	})
}

// A Poke polls at once, then quickly; a pod without an address keeps it so, and
// the burst ends all the same.
func TestBurst(t *testing.T) {
	const burst = "0 50 150 350 750 1550 3150 6350"
	for _, c := range []struct {
		what string
		set  []stub.Pod
		want string
	}{
		{"nothing changes", []stub.Pod{whole}, burst + " 16350"},
		{"a pod waits", []stub.Pod{whole, waiting}, burst + " 16350"},
		{"a pod is there, with its address", []stub.Pod{whole, {Name: "b", IPs: []string{"10.0.0.2"}}}, "0 10000"},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, w := wired(t, Config{}, nil)
			w.SetPods(whole)
			settled(t, s)
			w.SetPods(c.set...)
			start := time.Now()
			s.Poke()
			time.Sleep(17 * time.Second)
			synctest.Wait()
			if got := w.since(start); !strings.HasPrefix(c.want+" ", got+" ") && !strings.HasPrefix(got+" ", c.want+" ") {
				t.Errorf("%s: polled at %s, want %s", c.what, got, c.want)
			}
		})
	}
}

// A burst ends when the address is there.
func TestBurstEndsWhenComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := wired(t, Config{}, nil)
		w.SetPods(whole)
		f := settled(t, s)
		w.SetPods(whole, waiting)
		start := time.Now()
		s.Poke()
		time.Sleep(time.Second)
		w.SetPods(whole, stub.Pod{Name: "b", IPs: []string{"10.0.0.2"}})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := w.since(start); got != "0 50 150 350 750 1550" {
			t.Errorf("polled at %s", got)
		}
		if r := f.last(); names(r) != "default/a=10.0.0.1 default/b=10.0.0.2" {
			t.Errorf("%s", describe(r))
		}
	})
}

// A Poke in a burst starts it anew, and a hail of them polls no more often than
// every 50 ms.
func TestPokesInABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := wired(t, Config{}, nil)
		w.SetPods(whole)
		settled(t, s)
		w.SetPods(whole, waiting)
		start := time.Now()
		s.Poke()
		time.Sleep(500 * time.Millisecond)
		s.Poke()
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		if got := w.since(start); got != "0 50 150 350 500 550 650" {
			t.Errorf("polled at %s", got)
		}
		time.Sleep(10 * time.Second)
		start = time.Now()
		for range 1000 {
			s.Poke()
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		if n := len(strings.Fields(w.since(start))); n < 19 || n > 21 {
			t.Errorf("%d polls in a second of Pokes: %s", n, w.since(start))
		}
	})
}

// What happens while an answer is under way is asked about again.
func TestPokeDuringAPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := wired(t, Config{}, nil)
		w.SetPods(whole)
		f := settled(t, s)
		w.Delay(time.Second)
		start := time.Now()
		s.Poke()
		time.Sleep(100 * time.Millisecond) // the list is made
		w.Delay(0)
		w.SetPods(whole, stub.Pod{Name: "b", IPs: []string{"10.0.0.2"}})
		s.Poke()
		time.Sleep(1400 * time.Millisecond)
		synctest.Wait()
		if got := w.since(start); got != "0 1000" {
			t.Errorf("polled at %s", got)
		}
		if r := f.last(); len(r.Objects.Pods) != 2 {
			t.Errorf("%s", describe(r))
		}
	})
}

// Out of reach: no error for 3 s, offline at once and all the while; retries get
// rarer, but a Poke is heard; and back is back.
func TestOffline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := wired(t, Config{}, nil)
		w.SetPods(whole)
		f := settled(t, s)
		before, told := f.last(), len(f.all())
		w.set(func() { w.refuse = true })
		time.Sleep(7 * time.Second) // the next poll is at 70 s
		start := time.Now()
		time.Sleep(time.Second)
		synctest.Wait()
		r := f.last()
		if r.OfflineSince != start || r.Err != nil || names(r) != names(before) {
			t.Errorf("at first: %s", describe(r))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		r = f.last()
		if r.OfflineSince != start || r.Err == nil || !strings.Contains(r.Err.Error(), "dial: connection refused") || names(r) != names(before) {
			t.Errorf("later: %s", describe(r))
		}
		if n := len(f.all()) - told; n != 2 { // offline, error
			t.Errorf("%d reports of it", n)
		}
		asked := strings.Fields(w.since(start))
		if n := len(asked); n < 360 || n > 500 {
			t.Errorf("%d polls in an hour: %v", n, asked[:10])
		}
		n := w.polls()
		s.Poke()
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if w.polls() != n+1 {
			t.Error("a Poke was not heard")
		}
		w.set(func() { w.refuse = false })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if r = f.last(); !r.OfflineSince.IsZero() || r.Err != nil || names(r) != names(before) {
			t.Errorf("back: %s", describe(r))
		}
	})
}

// A kubelet that hangs is given 2 s, and Refresh waits for no more than 1 s.
func TestSilentKubelet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := wired(t, Config{}, nil)
		s.client.wait = answerWait
		w.SetPods(whole)
		f := settled(t, s)
		w.Delay(time.Hour)
		start := time.Now()
		r, err := s.Refresh(context.Background())
		must(t, err)
		if took := time.Since(start); took != time.Second || !r.OfflineSince.IsZero() || names(r) != "default/a=10.0.0.1" {
			t.Errorf("after %v: %s", took, describe(r))
		}
		s.Poke()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if r = f.last(); r.Err == nil || !strings.Contains(r.Err.Error(), "no answer within 2s") || r.OfflineSince != start.Add(3*time.Second) {
			t.Errorf("%s", describe(r))
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := s.Refresh(ctx); err != context.Canceled {
			t.Errorf("Refresh: %v", err)
		}
	})
}

// A reader that is slow gets the newest report, and keeps nobody from polling.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := wired(t, Config{}, nil)
		w.SetPods(whole)
		reports := make(chan source.Report)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { _ = s.Run(ctx, reports); close(done) }()
		time.Sleep(25 * time.Second)
		w.SetPods(whole, stub.Pod{Name: "b", IPs: []string{"10.0.0.2"}})
		time.Sleep(10 * time.Second)
		if r := <-reports; len(r.Objects.Pods) != 2 {
			t.Errorf("%s", describe(r))
		}
		cancel()
		<-done
	})
}

// Everything at once, for the race detector.
func TestAllAtOnce(t *testing.T) {
	s, w := wired(t, Config{Interval: time.Millisecond, PolicyAnnotation: true}, nil)
	w.SetPods(whole)
	f := run(t, s)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 50 {
				switch i {
				case 0:
					s.Poke()
				case 1:
					if _, err := s.Refresh(context.Background()); err != nil {
						t.Error(err)
					}
				case 2:
					w.SetPods(whole, stub.Pod{Name: "b", IPs: []string{fmt.Sprintf("10.0.1.%d", j)}})
				case 3:
					s.Confirmed()
					if _, err := s.Known(context.Background()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	f.until("the last pods", func(r source.Report) bool { return names(r) == "default/a=10.0.0.1 default/b=10.0.1.49" })
	if !slices.IsSortedFunc(f.all(), func(a, b source.Report) int { return a.Time.Compare(b.Time) }) {
		t.Error("reports went back in time")
	}
}
