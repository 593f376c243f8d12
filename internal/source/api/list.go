package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net/http"
	"net/url"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

const (
	pageSize   = 500     // objects of a list that are asked for at once
	maxObjects = 100_000 // of a resource
)

// list reads a resource whole. Only a list that is complete changes anything. The
// error was noted, unless it is that of ctx.
func (s *Source) list(ctx context.Context, r *resource) error {
	select {
	case r.listing <- struct{}{}:
		defer func() { <-r.listing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	l := &listing{source: s, resource: r, known: r.bySum()}
	s.mu.Unlock()
	err := l.pages(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failed(r, err)
		return err
	}
	if l.version != "" || len(l.entries) > 0 || len(r.entries) == 0 {
		r.emptied = time.Time{}
	} else if r.emptied.IsZero() || time.Since(r.emptied) < s.times.emptied {
		// A cache that has lost what it knew says so too, until it has read it again.
		if r.emptied.IsZero() {
			r.emptied = time.Now()
		}
		err := &answerError{fmt.Sprintf("the list of %s is empty and of no version, where there were %d: believed if it stays so", r.name, len(r.entries))}
		s.failed(r, err)
		return err
	}
	r.http1 = l.http1
	if r.replace(l.entries, l.version) {
		s.touch()
	}
	s.current(r)
	return nil
}

// listing is a list that is being read, page by page and object by object: there
// are never more of a server's bytes in memory than those of one object.
type listing struct {
	source   *Source
	resource *resource
	known    map[uint64]*entry
	entries  map[inventory.Key]*entry
	version  string
	next     string // where the next page begins
	http1    bool
}

// pages reads all pages. A list whose pages have expired meanwhile is read once
// more from the start.
func (l *listing) pages(ctx context.Context) error {
	restarted := false
	l.entries = map[inventory.Key]*entry{}
	for {
		from := l.next
		err := l.page(ctx)
		var status *statusError
		if errors.As(err, &status) && status.code == http.StatusGone && from != "" && !restarted {
			restarted, l.next = true, ""
			l.entries = map[inventory.Key]*entry{}
			continue
		}
		if err != nil || l.next == "" {
			return err
		}
		if l.next == from {
			return &answerError{"the list of " + l.resource.name + " never ends: its pages are all the same"}
		}
	}
}

func (l *listing) page(ctx context.Context) error {
	c, err := l.source.conn.get()
	if err != nil {
		return err
	}
	query := url.Values{"limit": {fmt.Sprint(pageSize)}}
	if l.next != "" {
		query.Set("continue", l.next)
	}
	if l.resource.selector != "" {
		query.Set("fieldSelector", l.resource.selector)
	}
	body, err := c.open(ctx, l.resource.path, query, l.source.times.list, l.source.times.stall)
	if err != nil {
		return err
	}
	defer body.close()
	l.http1, l.next = body.http1, ""
	err = l.decode(body)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	if errors.As(err, &syntax) && !errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &kind) {
		err = &answerError{"what the server sent for " + l.resource.name + " is no list of Kubernetes objects"}
	}
	return err
}

// decode reads a page. A list has a kind and items: what has not is no list,
// though the server said 200. Caches write no items as null; that counts where the
// list has a version, as a server that does not know yet has none.
func (l *listing) decode(body *stream) error {
	d := json.NewDecoder(body)
	if err := expect(d, '{'); err != nil {
		return err
	}
	var kind string
	var meta struct {
		Version  string `json:"resourceVersion"`
		Continue string `json:"continue"`
	}
	items, null := false, false
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}
		switch name {
		case "kind":
			err = d.Decode(&kind)
		case "metadata":
			err = d.Decode(&meta)
		case "items":
			items = true
			null, err = l.items(d, body)
		default:
			err = d.Decode(&json.RawMessage{})
		}
		if err != nil {
			return err
		}
		body.next()
	}
	if err := expect(d, '}'); err != nil {
		return err
	}
	if want := string(l.resource.kind) + "List"; kind != want && kind != "List" || !items || null && meta.Version == "" {
		return &answerError{fmt.Sprintf("asked for %s, the server sent %q, which is no complete %s", l.resource.name, plain(kind), want)}
	}
	l.version, l.next = meta.Version, meta.Continue
	return nil
}

func expect(d *json.Decoder, want json.Delim) error {
	t, err := d.Token()
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	if err == nil && t != want {
		return &answerError{"what the server sent is no JSON object"}
	}
	return err
}

// items reads the objects of a page.
func (l *listing) items(d *json.Decoder, body *stream) (null bool, err error) {
	t, err := d.Token()
	if err != nil || t == nil {
		return err == nil, err
	}
	if t != json.Delim('[') {
		return false, &answerError{"the items of what the server sent are no list"}
	}
	var data json.RawMessage
	for d.More() {
		if err := d.Decode(&data); err != nil {
			return false, err
		}
		body.next()
		e := l.known[maphash.Bytes(seed, data)]
		if e == nil {
			e, err = l.source.read(l.resource, data)
			if err == errElsewhere {
				continue
			}
			if err != nil {
				return false, err
			}
		}
		l.entries[e.key] = e
		if len(l.entries) > maxObjects {
			return false, &answerError{fmt.Sprintf("more than %d %s: that is more than is read", maxObjects, l.resource.name)}
		}
	}
	return false, expect(d, ']')
}

// failed notes that a resource can't be read. The caller holds mu.
func (s *Source) failed(r *resource, err error) {
	if r.failing.IsZero() {
		r.failing = time.Now()
		r.err = err
	} else if class(err) != class(r.err) {
		r.err = err
	}
	s.touch()
}

// current notes that what is known of a resource is what the server has. The
// caller holds mu. If it was not, the server has come back, and the others need
// not wait any longer.
func (s *Source) current(r *resource) {
	r.confirmed = time.Now()
	if !r.failing.IsZero() {
		r.failing, r.err = time.Time{}, nil
		for _, o := range s.resources {
			if !o.failing.IsZero() {
				o.nudge()
			}
		}
		s.touch()
	}
	oldest := r.confirmed
	for _, o := range s.resources {
		if o.confirmed.Before(oldest) {
			oldest = o.confirmed
		}
	}
	if !oldest.IsZero() {
		s.confirmed.Store(&oldest)
	}
}
