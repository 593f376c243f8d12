// Package directory reads Kubernetes YAML from a watched directory.
//
// What always holds: nothing that is half written, unreadable, invalid or of
// doubtful ownership replaces what was in force. Only what is whole, quiet and
// valid does; and only a directory that is there and can be read may take
// objects away (S9). One file or document that is wrong keeps no other from
// being applied.
package directory

import (
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
)

const (
	quiet      = 20 * time.Millisecond  // a file is read when nobody wrote to it for so long
	startWait  = 100 * time.Millisecond // for files that are being written, before the first report goes without them
	reloadWait = time.Second            // likewise, before Refresh answers
	rescan     = 30 * time.Second       // everything is looked at so often even if nothing is heard
	poll       = time.Second            // instead of rescan where the kernel refuses to tell about changes
	maxSize    = 8 << 20                // bytes of a file
)

// Source is the directory source: Kubernetes YAML and JSON in files ending in
// .yaml, .yml or .json, directly in one directory.
type Source struct {
	path string
	log  *slog.Logger
	wake chan struct{} // Refresh found something that Run has not seen

	mu      sync.Mutex
	last    func() inventory.Objects // nil once it is known whether it is needed
	quiet   time.Duration
	files   map[string]*file          // by name
	names   []string                  // of files, sorted; empty when files got another
	pending map[string]time.Time      // names to look at, and when
	ahead   map[string]loaded         // files that the first look has read already, by path
	full    time.Time                 // when to look at everything; zero: no need to
	rewatch bool                      // directories to be watched may have changed
	err     error                     // the directory can't be read
	doubt   []manifest.Diagnostic     // about the directory
	dirty   bool                      // files or err changed since report was made
	inForce map[id]*manifest.Document // what report has
	spare   map[id]*manifest.Document // to be inForce next: making it anew costs more than all else
	report  source.Report
}

// New gives the source for a directory. last gives what was in force when the
// daemon ended, from the saved state; Origin.File says which file it came from.
// It is called once at most, and only if something can't be read now; nil if
// nothing is known.
func New(path string, last func() inventory.Objects, log *slog.Logger) *Source {
	return &Source{
		path: path, log: log, last: last, wake: make(chan struct{}, 1), quiet: quiet,
		files: map[string]*file{}, pending: map[string]time.Time{},
		inForce: map[id]*manifest.Document{}, spare: map[id]*manifest.Document{},
	}
}

// Name is the name of the source.
const Name = "directory"

// Name gives Name; see source.Source.
func (s *Source) Name() string { return Name }

// Known is Refresh: files are there or they are not.
func (s *Source) Known(ctx context.Context) (source.Report, error) { return s.Refresh(ctx) }

// Run follows the directory until ctx ends; see source.Source.
func (s *Source) Run(ctx context.Context, reports chan<- source.Report) error {
	w := &watcher{log: s.log}
	defer w.close()
	s.mu.Lock()
	w.update(s.watches()) // before looking, so that nothing happens in between
	s.mu.Unlock()
	s.lookAtAll()
	if s.settle(ctx, startWait) != nil {
		return nil
	}
	var sent source.Report
	looked := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if time.Since(looked) >= w.interval() {
			looked, w.stale = time.Now(), true
			s.lookAtAll()
		}
		report, next := s.step(w)
		var out chan<- source.Report
		if report.Time != sent.Time {
			out = reports
		}
		if tick := looked.Add(w.interval()); next.IsZero() || tick.Before(next) {
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
			s.log.Warn("events of the directory were lost, reading all of it", "directory", s.path, "err", err)
			w.stale = true
			s.lookAtAll()
		case <-timer.C:
		case <-s.wake:
		}
	}
}

// Refresh reads the directory now. Files that are being written are given a
// second to become quiet.
func (s *Source) Refresh(ctx context.Context) (source.Report, error) {
	s.lookAtAll()
	err := s.settle(ctx, reloadWait)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.assemble(time.Now())
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return s.report, err
}

func (s *Source) lookAtAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = time.Now()
}

// settle works until nothing is left to wait for, or the limit is reached. The
// error is that of ctx.
func (s *Source) settle(ctx context.Context, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		s.mu.Lock()
		next := s.work(time.Now())
		done := next.IsZero() || next.After(deadline)
		if done && s.recall() {
			done, next = false, s.work(time.Now())
		}
		if done {
			s.ahead = nil
		}
		s.mu.Unlock()
		if done || ctx.Err() != nil {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(next)):
		}
	}
}

// recall brings back what was in force before the daemon started, if the first
// look at the directory found anything that this is needed for. It says whether
// there is something to look at again.
func (s *Source) recall() bool {
	last := s.last
	s.last = nil
	if last == nil || s.err == nil && !slices.ContainsFunc(slices.Collect(maps.Values(s.files)), (*file).lacking) {
		return false
	}
	s.dirty = true
	for _, d := range documents(last()) {
		s.inForce[idOf(d)] = d
		name := filepath.Base(d.Origin.File)
		f := s.files[name]
		if f == nil {
			f = &file{}
			s.files[name], s.names = f, nil
		}
		if f.lacking() {
			f.content = append(f.content, entry{d, kept})
			f.stamp = stamp{}
			s.pending[name] = time.Time{}
		}
	}
	return true
}

// step does what is due, keeps the watches where they must be, and gives the
// report and the time at which there is more to do (zero: no such time).
func (s *Source) step(w *watcher) (source.Report, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	next := s.work(now)
	// What happened before a watch was there is found by looking once more. A
	// directory that is replaced all the time is left to the next event.
	for range 3 {
		if !s.rewatch && !w.stale || !w.update(s.watches()) {
			break
		}
		s.full = now
		next = s.work(now)
	}
	s.rewatch = false
	s.assemble(now)
	return s.report, next
}

// work does what is due and says when there is more to do.
func (s *Source) work(now time.Time) (next time.Time) {
	if !s.full.IsZero() && !s.full.After(now) {
		s.full = time.Time{}
		s.scan(now)
	}
	next = s.full
	for name, due := range s.pending {
		if !due.After(now) {
			delete(s.pending, name)
			wait := s.look(name, now)
			if wait == 0 {
				continue
			}
			due = now.Add(wait)
			s.pending[name] = due
		}
		if next.IsZero() || due.Before(next) {
			next = due
		}
	}
	return next
}

// eligible says whether a name is that of a file to be read.
func eligible(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
	default:
		return false
	}
	// The endings of editors' and packagers' leftovers (~, .swp, .rpmsave) are
	// not among those read; dpkg's (a.dpkg-old.yaml) need not be the last.
	return !strings.HasPrefix(name, ".") && !strings.Contains(name, ".dpkg-")
}
