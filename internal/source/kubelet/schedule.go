package kubelet

import (
	"math/rand/v2"
	"time"
)

// quick are the times between the polls of a burst. A new pod's address is in a
// kubelet's list 0.8-1.3 s after the first sign of it (recorded), a restarted
// sandbox's after 1.6 s.
var quick = [...]time.Duration{
	50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond,
	800 * time.Millisecond, 1600 * time.Millisecond, 3200 * time.Millisecond,
}

const (
	apart   = 50 * time.Millisecond  // between two polls, at least
	backoff = 250 * time.Millisecond // after the first failure; twice as long after each more
)

// schedule says when to poll.
type schedule struct {
	interval time.Duration
	started  time.Time // the last poll; zero: none yet
	due      time.Time // the next
	step     int       // of quick, len(quick) outside of a burst
	version  time.Time // Report.Time when the burst was asked for; zero: it ends when the pods are complete
	failures int       // in a row
}

// poke starts a burst: now, but not too soon after the last poll.
func (s *schedule) poke(now, version time.Time) {
	s.step, s.version = 0, version
	s.due = latest(now, s.started.Add(apart))
}

// polled plans the next poll after one that ended. version is Report.Time now.
// A burst ends when the pods are complete, and something changed since the Poke
// that started it: what it was about may not be in the list yet.
func (s *schedule) polled(now time.Time, failed, complete bool, version time.Time) {
	wait := s.interval
	switch {
	case failed:
		wait = min(backoff<<min(s.failures, 20), s.interval)
		wait -= time.Duration(rand.Int64N(int64(wait)/4 + 1))
		s.failures++
	case s.failures > 0: // back: what it lists now is what it found so far
		s.failures, s.step, s.version = 0, 0, time.Time{}
	}
	if !failed && complete && version != s.version {
		s.step = len(quick)
	}
	if s.step < len(quick) {
		wait = min(wait, quick[s.step])
		s.step++
	}
	s.due = latest(now, s.started.Add(max(wait, apart)))
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
