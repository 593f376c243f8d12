package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// talk is one TCP connection on which numbers go out at a steady pace and come
// back.
type talk struct {
	name string
	conn net.Conn

	mu      sync.Mutex
	sent    int
	answers []time.Time
	err     error
}

// pace is the time between two numbers.
const pace = 10 * time.Millisecond

// startTalk connects a client to the broker; the connection ends with ctx.
func (s *show) startTalk(ctx context.Context, name string) (*talk, error) {
	for _, p := range s.places {
		if p.Name != name {
			continue
		}
		c, err := p.Dial(ctx, "tcp", p.addrs[0], netip.MustParseAddrPort("10.42.0.10:8181"))
		if err != nil {
			return nil, err
		}
		t := &talk{name: name, conn: c}
		context.AfterFunc(ctx, func() { c.Close() })
		go t.send(ctx)
		go t.receive(ctx)
		return t, nil
	}
	return nil, fmt.Errorf("there is no place %s", name)
}

func (t *talk) send(ctx context.Context) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for n := uint64(0); ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := t.conn.Write(binary.BigEndian.AppendUint64(nil, n)); err != nil {
			t.fail(ctx, err)
			return
		}
		t.mu.Lock()
		t.sent++
		t.mu.Unlock()
	}
}

func (t *talk) receive(ctx context.Context) {
	buf := make([]byte, 8)
	for n := uint64(0); ; n++ {
		if _, err := io.ReadFull(t.conn, buf); err != nil {
			t.fail(ctx, err)
			return
		}
		if got := binary.BigEndian.Uint64(buf); got != n {
			t.fail(ctx, fmt.Errorf("number %d came back, %d was next", got, n))
			return
		}
		t.mu.Lock()
		t.answers = append(t.answers, time.Now())
		t.mu.Unlock()
	}
}

// fail keeps the first error, unless it is our own end.
func (t *talk) fail(ctx context.Context, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil && ctx.Err() == nil {
		t.err = fmt.Errorf("%s: %w", t.name, err)
	}
}

// heard gives how many numbers have come back, and when the last one did.
func (t *talk) heard() (int, time.Time, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.answers) == 0 {
		return 0, time.Time{}, t.err
	}
	return len(t.answers), t.answers[len(t.answers)-1], t.err
}

// pause gives the longest time without an answer since a moment.
func (t *talk) pause(since time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	longest, last := time.Duration(0), since
	for _, a := range t.answers {
		if a.After(since) {
			longest, last = max(longest, a.Sub(last)), a
		}
	}
	return longest
}

// until waits for a condition, at most for a while.
func (s *show) until(what string, limit time.Duration, met func() (bool, error)) error {
	for end := time.Now().Add(limit); ; {
		ok, err := met()
		if err != nil || ok {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: not within %s", what, limit)
		}
		select {
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-time.After(pace):
		}
	}
}

// more waits until a talk has had some more answers.
func (s *show) more(t *talk, answers int) error {
	before, _, _ := t.heard()
	return s.until(t.name+" goes on", 20*time.Second, func() (bool, error) {
		now, _, err := t.heard()
		return now >= before+answers, err
	})
}

// silence is how long nothing may come any more of a connection that is cut.
const silence = 2 * time.Second

// liveChange changes a policy while publisher and subscriber talk to the broker,
// so that one of them is cut off, and changes it back.
func (s *show) liveChange() error {
	s.title("A change cuts the open connection that it denies, and no other")
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	publisher, err := s.startTalk(ctx, "publisher")
	if err != nil {
		return err
	}
	subscriber, err := s.startTalk(ctx, "subscriber")
	if err != nil {
		return err
	}
	for _, t := range []*talk{publisher, subscriber} {
		if err := s.more(t, 50); err != nil {
			return err
		}
	}
	s.say("Publisher and subscriber each have a TCP connection to broker:8181 and send a")
	s.say("number every %d ms, which comes back. Now the broker's policy is changed:", pace.Milliseconds())
	s.say("")
	s.quote("  - from:\n    - podSelector:\n        matchLabels:\n          app: subscriber      # was: role: message-client")
	s.say("")

	changed := time.Now()
	if err := s.apply(strings.Replace(policiesYAML, "role: message-client\n    ports", "app: subscriber\n    ports", 1)); err != nil {
		return err
	}
	inForce := time.Now()
	if err := s.more(subscriber, int(silence/pace)); err != nil {
		return fmt.Errorf("the connection that is still allowed: %w", err)
	}
	count, last, err := publisher.heard()
	if err != nil {
		return err
	}
	if last.After(inForce.Add(silence / 4)) { // what was on its way may have come a little later
		return fmt.Errorf("the publisher still gets answers %s after the change was in force", last.Sub(inForce))
	}
	s.say("%5d ms  the file is renamed into place", 0)
	s.say("%5d ms  the publisher's last answer; none in the %.1f s since", max(0, last.Sub(changed).Milliseconds()), time.Since(last).Seconds())
	s.say("%5d ms  edgepolicyd reload returned: it is in force", inForce.Sub(changed).Milliseconds())
	s.say("          the subscriber goes on; its longest pause was %d ms", subscriber.pause(changed).Milliseconds())
	return s.changeBack(publisher, subscriber, count)
}

// changeBack allows again what was cut off after so many answers.
func (s *show) changeBack(publisher, subscriber *talk, count int) error {
	if err := s.apply(policiesYAML); err != nil {
		return err
	}
	back := time.Now()
	if err := s.until("the publisher's connection resumes", 30*time.Second, func() (bool, error) {
		now, _, err := publisher.heard()
		return now > count, err
	}); err != nil {
		return err
	}
	s.say("")
	s.say("The policy is put back: the publisher's same connection resumes %d ms later, when", time.Since(back).Milliseconds())
	s.say("TCP tries again, and no number is missing.")
	return s.more(subscriber, 10)
}
