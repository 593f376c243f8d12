package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"
)

// times are what the source waits for. Tests have others.
type times struct {
	start, gather, refresh time.Duration // before the first report, for more events, for a server in Refresh
	list, stall            time.Duration // for a list to begin, and to go on
	open                   time.Duration // for a watch to begin; from then on it may be silent:
	watch1, watch2         span          // over HTTP/1.1, over HTTP/2
	trial                  span          // when it is tried whether a polled resource can be watched now
	poll                   time.Duration // between lists where there is no watch; up to a third more
	retry                  time.Duration // between attempts at most; down to three quarters
	passing                time.Duration // for which a refusal may be the trouble of a server that starts
	refused                time.Duration // as retry, when the server refuses us for longer
	emptied                time.Duration // for which lists must be empty that are of no version
}

// span is how long a watch is asked for, and may be silent.
type span struct{ length, silent time.Duration }

var defaults = times{
	start: 2 * time.Second, gather: 20 * time.Millisecond, refresh: time.Second,
	list: 8 * time.Second, stall: 15 * time.Second, open: 5 * time.Second,
	watch1: span{35 * time.Second, 40 * time.Second},
	watch2: span{5 * time.Minute, 90 * time.Second},
	trial:  span{5 * time.Second, 5 * time.Second},
	poll:   15 * time.Second, retry: 4 * time.Second, passing: 30 * time.Second, refused: 30 * time.Second,
	emptied: time.Minute,
}

const (
	badWatches = 3 // in a row, after which a resource is polled
	trialEvery = 3 // polls
)

// follow keeps a resource current until ctx ends.
func (s *Source) follow(ctx context.Context, r *resource) {
	failures := 0
	for ctx.Err() == nil {
		begun := time.Now()
		if err := s.list(ctx, r); err != nil {
			failures++
			r.bad = 0 // watches are no worse than lists
			s.pause(ctx, r, s.backoff(r, err, failures)-time.Since(begun))
			continue
		}
		failures = 0
		s.stay(ctx, r)
	}
}

// backoff gives the time from one attempt to the next. A server that is away is
// tried every few seconds for as long as it takes: it is to be used as soon as it
// is back.
func (s *Source) backoff(r *resource, err error, failures int) time.Duration {
	limit := s.times.retry
	s.mu.Lock()
	if _, atOnce := lasting(err); !atOnce && s.refused(r) {
		limit = s.times.refused
	}
	s.mu.Unlock()
	d := min(limit, s.times.retry/16<<min(failures-1, 10))
	d -= time.Duration(rand.Int64N(int64(d/4) + 1))
	return max(d, retryAfter(err))
}

// refused says whether a resource can't be read until somebody does something
// about it. The caller holds mu.
func (s *Source) refused(r *resource) bool {
	is, atOnce := lasting(r.err)
	return is && (atOnce || time.Since(r.failing) >= s.times.passing)
}

// pause waits, for a moment at least, or until there is reason to ask now.
func (s *Source) pause(ctx context.Context, r *resource, d time.Duration) {
	timer := time.NewTimer(max(d, s.times.retry/64))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-r.wake:
	}
}

// stay follows a resource from the list that was just read, until another one is
// needed.
func (s *Source) stay(ctx context.Context, r *resource) {
	if r.polled {
		s.pause(ctx, r, s.times.poll+rand.N(s.times.poll/3+1))
		if r.polls++; r.polls%trialEvery != 0 {
			return
		}
		// What happened since the list comes with the watch or with the next list.
		if s.watch(ctx, r, s.times.trial); r.bad == 0 {
			r.polled = false
			s.log.Info("the API server can be watched again", "resource", r.name)
		}
		return
	}
	for ctx.Err() == nil {
		s.mu.Lock()
		span, followable := s.times.watch2, r.version != "" && r.version != "0"
		if r.http1 {
			span = s.times.watch1
		}
		s.mu.Unlock()
		begun := time.Now()
		next := poll
		if followable {
			next = s.watch(ctx, r, span)
		}
		if ctx.Err() != nil {
			return
		}
		if next == poll || r.bad >= badWatches {
			r.polled, r.polls, r.bad = true, 0, 0
			s.log.Info("the API server can't be watched, the list is polled instead", "resource", r.name)
			return
		}
		if r.bad > 1 && time.Since(begun) < time.Second {
			s.pause(ctx, r, s.times.retry/4-rand.N(s.times.retry/16+1))
		}
		if next == relist {
			return
		}
	}
}

// outcome says what to do after a watch.
type outcome int

const (
	again  outcome = iota // watch on from the last version
	relist                // what was missed, if anything was, only a list can tell
	poll                  // the server can't watch
)

// watch follows a resource until the watch ends. It counts watches without a sign
// of life in r.bad.
func (s *Source) watch(ctx context.Context, r *resource, span span) outcome {
	begun := time.Now()
	c, err := s.conn.get()
	if err != nil {
		return relist
	}
	s.mu.Lock()
	w := &watching{source: s, resource: r, version: r.version, replaced: r.replaced}
	s.mu.Unlock()
	query := url.Values{
		"watch": {"1"}, "allowWatchBookmarks": {"true"}, "resourceVersion": {w.version},
		"timeoutSeconds": {fmt.Sprint(max(1, int(span.length.Seconds())))},
	}
	if r.selector != "" {
		query.Set("fieldSelector", r.selector)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	r.stop.Store(&stop)
	defer r.stop.Store(nil)
	r.bad++ // unless there is a sign of life
	body, err := c.open(ctx, r.path, query, s.times.open, span.silent)
	if err != nil {
		return s.unopened(ctx, r, err)
	}
	defer body.close()
	err = w.events(body)
	var status *statusError
	var answer *answerError
	var syntax *json.SyntaxError
	switch {
	case ctx.Err() != nil:
		r.bad = 0
		return relist
	case errors.As(err, &status), errors.As(err, &answer), errors.As(err, &syntax) && !errors.Is(err, io.ErrUnexpectedEOF):
		return relist // Expired, in most cases
	case err == errOutdated:
		return again
	case err == errSilent, r.bad > 0 && time.Since(begun) >= span.length/2:
		// Silent for its whole time: what happened meanwhile, if anything did, was not told.
		return relist
	}
	return again // it ended as watches do: from its last version on nothing is lost
}

// unopened says what to do when a watch did not begin.
func (s *Source) unopened(ctx context.Context, r *resource, err error) outcome {
	var status *statusError
	switch {
	case ctx.Err() != nil:
		r.bad--
		return relist
	case err == errSilent:
		return relist
	case errors.As(err, &status):
		switch status.code {
		case http.StatusGone:
			return relist
		case http.StatusUnauthorized, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			s.pause(ctx, r, status.retryAfter)
			return relist
		}
		return poll
	}
	r.bad-- // not the watch's fault: the server is not there
	s.mu.Lock()
	s.failed(r, err)
	s.mu.Unlock()
	return relist
}

// watching is a watch that is open.
type watching struct {
	source   *Source
	resource *resource
	version  string
	replaced int // of the list that it began with
}

// errOutdated: a newer list was read meanwhile.
var errOutdated = errors.New("a newer list was read")

// event is one line of a watch.
type event struct {
	Type   string          `json:"type"`
	Object json.RawMessage `json:"object"`
}

// events takes what a watch tells until it ends. The error is nil when the server
// ended it.
func (w *watching) events(body *stream) error {
	d := json.NewDecoder(body)
	var e event
	for {
		e.Type, e.Object = "", e.Object[:0]
		if err := d.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		body.next()
		if err := w.take(&e); err != nil {
			return err
		}
	}
}

// take does what an event says. An event of an unknown type is none; it is no
// sign of life either.
func (w *watching) take(ev *event) error {
	var head struct {
		Metadata struct {
			Version string `json:"resourceVersion"`
		} `json:"metadata"`
		Code    int    `json:"code"`
		Message string `json:"message"`
	}
	switch ev.Type {
	case "ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR":
		if err := json.Unmarshal(ev.Object, &head); err != nil {
			return &answerError{"an event of " + w.resource.name + " that is no object"}
		}
	default:
		return nil
	}
	if ev.Type == "ERROR" {
		return &statusError{code: head.Code, message: plain(head.Message)}
	}
	w.resource.bad = 0
	if ev.Type == "BOOKMARK" {
		// Its object is an empty one, which of a NetworkPolicy would deny everything.
		return w.advance(head.Metadata.Version, nil, false)
	}
	e, err := w.source.read(w.resource, ev.Object)
	if err != nil && err != errElsewhere {
		return err
	}
	return w.advance(head.Metadata.Version, e, ev.Type == "DELETED" || err == errElsewhere)
}

// advance brings the resource to a version, with an object changed or gone.
func (w *watching) advance(version string, e *entry, gone bool) error {
	s, r := w.source, w.resource
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.replaced != w.replaced {
		return errOutdated
	}
	if version != "" {
		r.version = version
	}
	s.current(r)
	if e == nil {
		return nil
	}
	before := r.entries[e.key]
	if gone {
		delete(r.entries, e.key)
		if before != nil {
			s.touch()
		}
		return nil
	}
	r.entries[e.key] = e.after(before)
	if before == nil || !same(before, e) {
		s.touch()
	}
	return nil
}

// ready says whether the first report can be made: everything was read, or what
// was not has failed and was given its time.
func (s *Source) ready(late bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	listed, failing := 0, 0
	for _, r := range s.resources {
		if r.listed {
			listed++
		} else if !r.failing.IsZero() {
			failing++
		}
	}
	all := len(s.resources)
	return listed == all || late && (listed+failing == all || listed == 0 || s.remembered)
}
