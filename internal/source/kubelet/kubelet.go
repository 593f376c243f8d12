// Package kubelet reads the gateway's pods from its kubelet: labels, named
// ports, phases and, later than the CNI source, addresses.
//
// What always holds: a kubelet that does not answer, that refuses us, or that has
// just started and does not know its own pods yet takes nothing away (see belief
// for what is believed when). A pod that is wrong keeps no other from being
// known. The token is in no error, log or report.
package kubelet

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
)

const (
	interval    = 10 * time.Second // of polls, where Config does not say
	refreshWait = time.Second      // for an answer, in Refresh
	restartWait = 3 * time.Second  // out of reach for less may be a restart, which is no error
)

// Config is where the kubelet is and who we are there.
type Config struct {
	// URL is the kubelet's: https://127.0.0.1:10250, or http://127.0.0.1:10255 for
	// its read-only port. /pods is asked for below it.
	URL *url.URL
	// CA is a file of the CAs, in PEM, that the kubelet's certificate must be of;
	// empty: those of the system. ServerName is the name that it must be for;
	// empty: the one in URL.
	CA, ServerName string
	// Certificate and Key are files, in PEM, of a client certificate; empty: none.
	Certificate, Key string
	// TokenFile holds a bearer token; empty: none. This and the files above are
	// read again when they change.
	TokenFile string
	// Interval is the time between polls while nothing happens; 0: 10 s.
	Interval time.Duration
	// PolicyAnnotation: pods may carry policies for themselves (Annotation).
	PolicyAnnotation bool
}

func (c *Config) check() error {
	switch {
	case c.URL == nil || c.URL.Host == "" || c.URL.Scheme != "https" && c.URL.Scheme != "http":
		return errors.New("url must be that of a kubelet, such as https://127.0.0.1:10250 or http://127.0.0.1:10255")
	case c.URL.User != nil:
		return errors.New("url may hold no password: use tokenFile, or certificate and key")
	case c.URL.RawQuery != "" || c.URL.Fragment != "":
		return errors.New("url may end in no ?query or #fragment")
	case c.URL.Scheme == "http" && cmp.Or(c.CA, c.ServerName, c.Certificate, c.Key, c.TokenFile) != "":
		return errors.New("url is without TLS: ca, serverName, certificate, key and tokenFile need https://")
	case (c.Certificate == "") != (c.Key == ""):
		return errors.New("certificate and key need each other: set both or none")
	case c.Interval < 0:
		return fmt.Errorf("interval %v must not be negative", c.Interval)
	}
	return nil
}

// Source is the kubelet source.
type Source struct {
	cfg  Config
	log  *slog.Logger
	poke chan struct{}
	wake chan struct{} // Refresh found something that Run has not seen

	turn      chan struct{} // taken by who polls; guards client and buf
	client    client
	buf       bytes.Buffer
	confirmed atomic.Pointer[time.Time]

	mu      sync.Mutex
	last    func() inventory.Objects // nil once it was called
	belief  belief
	offline time.Time // since when the kubelet is out of reach
	err     error
	doubt   []manifest.Diagnostic // about the files of Config
	report  source.Report
}

// New gives the source for a kubelet. last gives what was known when the daemon
// ended, from the saved state; it is called once at most; nil if nothing is known.
// The error says which field of the configuration can't be.
func New(cfg Config, last func() inventory.Objects, log *slog.Logger) (*Source, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("sources.kubelet: %w", err)
	}
	cfg.Interval = cmp.Or(cfg.Interval, interval)
	s := &Source{
		cfg: cfg, log: log, last: last, belief: newBelief(),
		poke: make(chan struct{}, 1), wake: make(chan struct{}, 1), turn: make(chan struct{}, 1),
	}
	s.client = client{cfg: &s.cfg, close: func() {}, wait: answerWait}
	return s, nil
}

// Name is the name of the source.
const Name = "kubelet"

// Name gives Name; see source.Source.
func (s *Source) Name() string { return Name }

// Known gives what was known before the daemon started; nobody is asked.
func (s *Source) Known(ctx context.Context) (source.Report, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recall()
	return s.report, ctx.Err()
}

// Confirmed is when the kubelet last said that what is known is all there is;
// zero: not since the daemon started. A report is not sent for it alone, so that
// Report.Confirmed can be older.
func (s *Source) Confirmed() time.Time {
	if t := s.confirmed.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

// Poke says that something happened to a pod (a CNI result, an interface): Run
// polls at once, and then quickly until the list has changed and is complete.
// It does not wait.
func (s *Source) Poke() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// Run follows the kubelet until ctx ends; see source.Source.
func (s *Source) Run(ctx context.Context, reports chan<- source.Report) error {
	var sent source.Report
	plan := schedule{interval: s.cfg.Interval, due: time.Now()}
	polled := make(chan bool)
	polling, poked := false, false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		report, confirm := s.current()
		var out chan<- source.Report
		if report.Time != sent.Time {
			out = reports
		}
		due := plan.due
		if !confirm.IsZero() && confirm.Before(due) {
			due = latest(confirm, plan.started.Add(apart))
		}
		var tick <-chan time.Time
		if !polling {
			timer.Reset(time.Until(due))
			tick = timer.C
		}
		select {
		case <-ctx.Done():
			if polling {
				<-polled
			}
			return nil
		case out <- report:
			sent = report
		case <-s.poke:
			plan.poke(time.Now(), report.Time)
			poked = polling
		case <-s.wake:
		case <-tick:
			plan.started, polling = time.Now(), true
			go func() { polled <- s.poll(ctx) }()
		case ok := <-polled:
			polling = false
			s.mu.Lock()
			complete, version := s.belief.complete(), s.report.Time
			s.mu.Unlock()
			if poked { // that was asked before it happened
				poked = false
				plan.poke(time.Now(), plan.version)
				continue
			}
			plan.polled(time.Now(), !ok, complete, version)
		}
	}
}

// current gives the report, and when a doubt may be settled.
func (s *Source) current() (source.Report, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recall()
	return s.report, s.belief.confirm()
}

// Refresh polls now and waits for the answer for a second.
func (s *Source) Refresh(ctx context.Context) (source.Report, error) {
	limited, cancel := context.WithTimeout(ctx, refreshWait)
	defer cancel()
	s.poll(limited)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	report, _ := s.current()
	return report, ctx.Err()
}

// poll asks the kubelet and takes over what it says, unless ctx ends before it
// says anything. It says whether it answered with a list.
func (s *Source) poll(ctx context.Context) bool {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	defer func() { <-s.turn }()
	a := s.client.pods(ctx, &s.buf)
	if a.err != nil && ctx.Err() != nil {
		return false // that was us, not the kubelet
	}
	var items [][]byte
	if a.err == nil {
		if items, a.err = split(a.body); a.err != nil {
			a.err = s.client.failure(a.err.Error())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recall()
	s.doubt = nil
	if s.client.stale != nil {
		s.doubt = []manifest.Diagnostic{{Severity: manifest.Warning, Object: "sources.kubelet", Message: s.client.stale.Error() + ": the connection made before goes on"}}
	}
	s.take(time.Now(), a, items)
	if s.buf.Cap() > 1<<20 {
		s.buf = bytes.Buffer{}
	}
	return a.err == nil
}

// take takes over an answer.
func (s *Source) take(now time.Time, a answer, items [][]byte) {
	switch {
	case a.err == nil:
		s.err, s.offline = nil, time.Time{}
		s.belief.list(now, items, a.fresh, s.decode)
		if s.belief.whole() {
			s.confirmed.Store(&now)
		}
	case a.away:
		s.belief.failed()
		if s.offline.IsZero() {
			s.offline, s.err = now, nil
		}
		if now.Sub(s.offline) >= restartWait {
			s.err = a.err
		}
	default:
		s.belief.failed()
		s.err, s.offline = a.err, time.Time{}
	}
	s.assemble(now)
}

// recall brings back what was known before the daemon started.
func (s *Source) recall() {
	if !s.report.Time.IsZero() {
		return
	}
	if s.last != nil {
		s.belief.recall(s.last(), s.cfg.PolicyAnnotation)
		s.last = nil
	}
	s.assemble(time.Now())
}

// assemble makes the report anew if something changed since the last.
func (s *Source) assemble(now time.Time) {
	r := source.Report{Source: Name, Err: s.err, OfflineSince: s.offline, Confirmed: s.Confirmed(), Time: now}
	r.Diagnostics = append(r.Diagnostics, s.doubt...)
	s.belief.tell(&r)
	if !s.report.Time.IsZero() && equal(&r, &s.report) {
		return
	}
	if !r.Time.After(s.report.Time) {
		r.Time = s.report.Time.Add(1)
	}
	s.report = r
}

// equal says whether a report has nothing new. That it was confirmed again is
// not new, that it was confirmed at all is.
func equal(a, b *source.Report) bool {
	text := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	return text(a.Err) == text(b.Err) && a.OfflineSince.Equal(b.OfflineSince) && a.Unknown == b.Unknown &&
		a.Confirmed.IsZero() == b.Confirmed.IsZero() &&
		slices.Equal(a.Objects.Pods, b.Objects.Pods) && slices.Equal(a.Objects.Policies, b.Objects.Policies) &&
		slices.Equal(a.Rejected, b.Rejected) && slices.Equal(a.Diagnostics, b.Diagnostics)
}
