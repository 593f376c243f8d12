// Package cni learns from the result cache of the CNI library which address and
// which interface belong to which pod, and from the CNI configuration which
// ranges and bridges are the pods'.
//
// What always holds: a result counts only while what it describes exists, as the
// files survive a power cut and their sandboxes do not. What is half written,
// broken or of doubtful ownership replaces nothing that was known; only a file
// that is gone, or a sandbox or interface that is, takes a pod away. What is
// reported depends on what is there, not on the order in which it was heard of.
package cni

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/source"
)

const (
	settleWait = 100 * time.Millisecond // for files that are being written, before Known and Refresh answer
	rescan     = 30 * time.Second       // everything is looked at so often even if nothing is heard
	poll       = time.Second            // instead of rescan while something can't be watched or read
	linksWait  = time.Second            // for the kernel to list the interfaces
)

// Config says where the source looks.
type Config struct {
	ResultsDir string // libcni's result cache; "" is /var/lib/cni/results. It need not exist.
	ConfigDir  string // the CNI configuration; "" is /etc/cni/net.d. It need not exist.
	// Interfaces gives the interfaces in the gateway's namespace and their kind as
	// rtnetlink knows it (IFLA_INFO_KIND): "veth", "bridge", "" for hardware.
	Interfaces func(context.Context) (map[string]string, error)
}

// Source is the CNI source.
type Source struct {
	interfaces func(context.Context) (map[string]string, error)
	log        *slog.Logger
	poke       chan struct{} // links of the gateway changed
	wake       chan struct{} // Refresh found something that Run has not seen

	mu        sync.Mutex
	results   folder[*entry]
	configs   folder[*network]
	links     map[string]string // the interfaces, as last known
	linksErr  error             // why they could not be listed the last time
	dirty     bool              // what counts is to be looked at again
	confirmed time.Time         // when that last went well
	report    source.Report
}

// New gives the source. It reads nothing yet.
func New(c Config, log *slog.Logger) *Source {
	if c.ResultsDir == "" {
		c.ResultsDir = "/var/lib/cni/results"
	}
	if c.ConfigDir == "" {
		c.ConfigDir = "/etc/cni/net.d"
	}
	s := &Source{interfaces: c.Interfaces, log: log, poke: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
	s.results = newFolder(c.ResultsDir, isResult, true, func(data []byte, st *unix.Stat_t) (*entry, error) {
		return parseResult(data, time.Unix(st.Mtim.Unix()))
	})
	s.configs = newFolder(c.ConfigDir, isConfig, false, func(data []byte, _ *unix.Stat_t) (*network, error) {
		return parseConfig(data)
	})
	return s
}

// Name is the name of the source.
const Name = "cni"

// Name gives Name; see source.Source.
func (s *Source) Name() string { return Name }

// Known is Refresh: all of it is on this machine's disk and in its kernel.
func (s *Source) Known(ctx context.Context) (source.Report, error) { return s.Refresh(ctx) }

// Poke says that links of the gateway changed, so that other results may count
// than did. It does not wait; Run looks.
func (s *Source) Poke() { signal(s.poke) }

// signal makes one that waits on a channel of one place go on, now or later.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run follows the folders and the interfaces until ctx ends; see source.Source.
func (s *Source) Run(ctx context.Context, reports chan<- source.Report) error {
	w := &watcher{log: s.log}
	defer w.close()
	w.update(s.watches()) // before looking, so that nothing happens in between
	var sent source.Report
	var looked time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	for interval := time.Duration(0); ; {
		if now := time.Now(); now.Sub(looked) >= interval {
			looked = now
			s.lookAtAll()
		}
		report, next := s.step(ctx, w)
		if interval = w.interval(); report.Err != nil {
			interval = poll
		}
		var out chan<- source.Report
		if !report.Time.IsZero() && report.Time != sent.Time {
			out = reports
		}
		if tick := looked.Add(interval); next.IsZero() || tick.Before(next) {
			next = tick
		}
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return nil
		case out <- report:
			sent = report
		case event, ok := <-w.events():
			s.note(w, event, ok)
		case err := <-w.errors():
			s.log.Warn("events of the CNI folders were lost, looking at all of them", "err", err)
			w.stale = true
			s.lookAtAll()
		case <-s.poke:
			s.lookAtLinks()
		case <-timer.C:
		case <-s.wake:
		}
	}
}

// Refresh looks at everything now. Files that are being written are given a
// tenth of a second to become whole.
func (s *Source) Refresh(ctx context.Context) (source.Report, error) {
	defer signal(s.wake)
	s.lookAtAll()
	for deadline := time.Now().Add(settleWait); ; {
		s.mu.Lock()
		now := time.Now()
		next := s.work(now)
		if next.IsZero() || next.After(deadline) || ctx.Err() != nil {
			defer s.mu.Unlock()
			s.assemble(ctx, now, true)
			return s.report, ctx.Err()
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(next)):
		}
	}
}

func (s *Source) lookAtAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.results.all, s.configs.all, s.dirty = true, true, true
}

func (s *Source) lookAtLinks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty = true
}

// step does what is due, keeps the watches where they must be, and gives the
// report and the time at which there is more to do (zero: no such time).
func (s *Source) step(ctx context.Context, w *watcher) (source.Report, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	scanned := s.results.all || s.configs.all
	next := s.work(now)
	// What happened before a watch was there is found by looking once more. A
	// folder that is replaced all the time is left to the next event.
	for range 3 {
		if !scanned && !w.stale || !w.update(s.watches()) {
			break
		}
		s.results.all, s.configs.all = true, true
		next = s.work(now)
	}
	s.assemble(ctx, now, false)
	return s.report, next
}

// work reads what is due and says when there is more to read (zero: no such time).
func (s *Source) work(now time.Time) time.Time {
	a, b := s.results.work(now), s.configs.work(now)
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
