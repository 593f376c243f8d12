package lab

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Expect is what should become of a flow.
type Expect int

const (
	Either  Expect = iota // the verdict changes meanwhile; Report.Changes says when it did
	Allowed               // one that does not arrive is lost
	Denied                // one that arrives is leaked
)

// Flow is one kind of connection of Traffic. Each of its packets begins a new
// one, with the next source port, unless Probe.SrcPort is given.
type Flow struct {
	Probe  Probe
	Expect Expect
}

// Event is one packet of Traffic. What happened to it happened between Sent
// and Done.
type Event struct {
	Flow       int // index
	Seq        int // of the flow, from 0
	Sent, Done time.Time
	Arrived    bool
}

// Report is what became of Traffic.
type Report struct {
	Sent, Arrived []int   // per flow
	Lost, Leaked  int     // of the flows that are Allowed and Denied
	Wrong         []Event // the lost and leaked ones, the first maxEvents
	Changes       []Event // of the flows that are Either: the first packet, and each with another fate than the one before; the first maxEvents
}

const (
	maxEvents   = 10_000
	trafficTick = time.Millisecond
)

// StartTraffic sends new flows at a constant rate (packets a second, over all
// flows, taken in turn) until stop is called or ctx ends. A flow sends at most
// 12,000 a second, or its source ports come again too soon. It runs beside
// Probe, and while pods come and go.
func (l *Lab) StartTraffic(ctx context.Context, rate int, flows []Flow) (stop func() (Report, error), err error) {
	w, err := newWire(l)
	if err != nil {
		return nil, err
	}
	t := traffic{wire: w, rate: rate, flows: make([]Flow, len(flows)), last: make([]*bool, len(flows)), port: make([]uint16, len(flows))}
	t.report.Sent, t.report.Arrived = make([]int, len(flows)), make([]int, len(flows))
	for i := range flows {
		t.flows[i] = flows[i]
		err := l.complete(&t.flows[i].Probe)
		if err == nil {
			err = w.open([]*Probe{&t.flows[i].Probe})
		}
		if err != nil {
			w.close()
			return nil, fmt.Errorf("flow %d: %w", i, err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- w.pinned(func() error { return t.run(ctx) }) }()
	stop = sync.OnceValues(func() (Report, error) {
		cancel()
		err := <-done
		w.close()
		return t.report, err
	})
	l.Outside.onClose(func() error { _, err := stop(); return err })
	return stop, nil
}

type traffic struct {
	wire   *wire
	rate   int
	flows  []Flow
	next   int // flow
	port   []uint16
	last   []*bool
	report Report
}

func (t *traffic) run(ctx context.Context) error {
	if t.rate <= 0 || len(t.flows) == 0 {
		return errors.New("traffic needs a rate and flows")
	}
	tick := time.NewTicker(trafficTick)
	defer tick.Stop()
	begin, sent := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		due := int(time.Since(begin).Seconds() * float64(t.rate))
		n := min(due-sent, burstLen)
		sent = due // what a busy machine did not send in time is left out
		if n <= 0 {
			continue
		}
		if err := t.burst(n); err != nil {
			return err
		}
	}
}

func (t *traffic) burst(n int) error {
	probes, flow, arrived := make([]*Probe, n), make([]int, n), make([]bool, n)
	for i := range n {
		f := t.next
		t.next = (f + 1) % len(t.flows)
		p := t.flows[f].Probe
		if p.SrcPort == 0 {
			t.port[f] = nextPort(t.port[f])
			p.SrcPort = t.port[f]
		}
		probes[i], flow[i] = &p, f
	}
	start := time.Now()
	if err := t.wire.burst(probes, arrived); err != nil {
		return err
	}
	done := time.Now()
	for i, f := range flow {
		t.record(Event{Flow: f, Seq: t.report.Sent[f], Sent: start, Done: done, Arrived: arrived[i]})
	}
	return nil
}

func (t *traffic) record(e Event) {
	r := &t.report
	r.Sent[e.Flow]++
	if e.Arrived {
		r.Arrived[e.Flow]++
	}
	switch expect := t.flows[e.Flow].Expect; {
	case expect == Either:
		if last := t.last[e.Flow]; (last == nil || *last != e.Arrived) && len(r.Changes) < maxEvents {
			r.Changes = append(r.Changes, e)
		}
		t.last[e.Flow] = &e.Arrived
		return
	case expect == Allowed && !e.Arrived:
		r.Lost++
	case expect == Denied && e.Arrived:
		r.Leaked++
	default:
		return
	}
	if len(r.Wrong) < maxEvents {
		r.Wrong = append(r.Wrong, e)
	}
}
