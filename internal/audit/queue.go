package audit

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// maxQueued bounds what waits to be written, in bytes: some thousand messages. The
// writer has as much again in hand at most.
const maxQueued = 1 << 20

// line is a message, ready to be written.
type line struct {
	data []byte
	// record is what can be told of it elsewhere, if journald does not take it.
	record slog.Record
}

// queue stands between those who log, who never wait, and the writer, who may.
type queue struct {
	write func(line)    // called by run alone
	lost  func(n int)   // as well: tells that messages are missing
	total atomic.Uint64 // messages that were lost and told
	wake  chan struct{}
	ended chan struct{}

	mu      sync.Mutex
	lines   []line
	bytes   int // of lines
	missing int // not taken since lost was called
	writing int // lines that the writer has in hand
	closed  bool
}

func newQueue(write func(line), lost func(int)) *queue {
	return &queue{write: write, lost: lost, wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

// put takes a line if there is room. A line that alone is larger than the queue is
// taken if nothing else waits.
func (q *queue) put(l line) {
	q.mu.Lock()
	switch {
	case q.closed, q.bytes > 0 && q.bytes+len(l.data) > maxQueued:
		q.missing++
	default:
		q.lines = append(q.lines, l)
		q.bytes += len(l.data)
	}
	q.mu.Unlock()
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default: // it is awake, or will be
	}
}

// run writes until the queue is closed and empty.
func (q *queue) run() {
	defer close(q.ended)
	for range q.wake {
		for q.batch() {
		}
		q.mu.Lock()
		done := q.closed && len(q.lines) == 0 && q.missing == 0
		q.mu.Unlock()
		if done {
			return
		}
	}
}

// batch writes all that waits, and tells of what found no room while it waited:
// that is newer than what is written here, and older than what comes then. It
// says whether there was anything.
func (q *queue) batch() bool {
	q.mu.Lock()
	lines, missing := q.lines, q.missing
	q.lines, q.bytes, q.missing, q.writing = nil, 0, 0, len(lines)
	q.mu.Unlock()
	for i := range lines {
		q.write(lines[i])
		lines[i] = line{}
		q.mu.Lock()
		q.writing--
		q.mu.Unlock()
	}
	if missing > 0 {
		q.lost(missing)
		q.total.Add(uint64(missing))
	}
	return len(lines) > 0 || missing > 0
}

// settle waits until half of the room is free and the writer has written what it
// took, or the context ends.
func (q *queue) settle(ctx context.Context) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		q.mu.Lock()
		free := q.writing == 0 && q.bytes < maxQueued/2
		q.mu.Unlock()
		if free {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (q *queue) close(timeout time.Duration) error {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
	select {
	case <-q.ended:
		return nil
	case <-time.After(timeout):
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return fmt.Errorf("log: %d messages were not written within %s", len(q.lines)+q.writing+q.missing, timeout)
}
