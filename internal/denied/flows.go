// Package denied tells of the packets that policies deny: it reads what the table
// shows to NFLOG, puts the packets of a flow together, and gives each flow a line in
// the log.
//
// What always holds: it is never in the packets' way; whatever floods it, memory and
// lines stay within bounds, a pod is not silenced by others, and what got no line is
// counted and said.
package denied

import (
	"cmp"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// The bounds. Of each pod and direction the first line in a window always passes, so
// that the lines of a window are at most maxLines and one for each of those.
const (
	maxFlows        = 1024 // that are remembered
	maxLines        = 100  // in a window
	linesPerSubject = 10   // in a window
)

// Config is what Flows work with.
type Config struct {
	Log    *slog.Logger
	Window time.Duration // for which the packets of a flow are put into one line
	// Names says who is who, by the newest table first and then by those before it: a
	// packet is shown some time after it was denied.
	Names func() []func() *Names
	// Counters reads the table's counters, which know of all packets.
	Counters func() (map[string]ruleset.Counts, error)
}

// Flows are the flows that were denied lately.
type Flows struct {
	cfg Config

	mu        sync.Mutex
	listening bool
	tried     time.Time // to listen; zero: never
	err       error     // of that

	seq   uint64
	flows map[flowKey]*flow

	// The window.
	id     uint64
	opened time.Time // zero: nothing was shown since the last
	shown  bool      // anything, in this window
	lines  int
	bySubj map[string]int
	told   map[string]uint64         // packets that lines told of since base, by counter
	base   map[string]ruleset.Counts // nil: not known yet
}

type flowKey struct {
	counter  string
	from, to netip.Addr
	protocol uint8
	port     uint16
}

type flow struct {
	status.DeniedFlow
	counter string
	untold  uint64
	window  uint64 // in which it got its last line
}

// New makes Flows without any.
func New(cfg Config) *Flows {
	// Seq goes on over a restart, so that who follows misses nothing.
	return &Flows{cfg: cfg, seq: uint64(time.Now().UnixMicro()), flows: map[flowKey]*flow{}, bySubj: map[string]int{}, told: map[string]uint64{}}
}

// add takes a packet that was shown with a prefix.
func (f *Flows) add(p packet, prefix, interfaceName string, now time.Time) {
	names, s := f.find(prefix)
	if s == nil {
		return // nobody knows that table any more
	}
	own, other := p.to, p.from
	if s.Direction == inventory.Egress {
		own, other = other, own
	}
	if slices.Contains(s.Pod.Addresses, other) && !slices.Contains(s.Pod.Addresses, own) {
		p, interfaceName = p.turned(), "" // a reply: the flow is the other way round
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	k := flowKey{s.Counter, p.from, p.to, uint8(p.protocol), p.toPort}
	it := f.flows[k]
	if it == nil {
		f.makeRoom()
		it = &flow{counter: s.Counter, DeniedFlow: status.DeniedFlow{
			Verdict: "denied", Direction: s.Direction.String(), Pod: s.Pod.Key.String(),
			Protocol: p.protocol.String(), Port: p.toPort, First: now, Stray: true,
		}}
		if s.Audited {
			it.Verdict = "would deny"
		}
		f.flows[k] = it
	}
	f.seq++
	it.From, it.To, it.Policies = names.end(p.from), names.end(p.to), s.Policies
	it.Stray = it.Stray && p.stray
	it.Seq, it.Last, it.Interface = f.seq, now, interfaceName
	it.Packets++
	it.untold++
	if f.opened.IsZero() {
		f.open(now)
	}
	f.shown = true
	f.tell(it)
}

// find says whose packet was shown with a prefix, and who was who then.
func (f *Flows) find(prefix string) (*Names, *Subject) {
	for _, names := range f.cfg.Names() {
		n := names()
		if s := n.Subjects[prefix]; s != nil {
			return n, s
		}
	}
	return nil, nil
}

func (f *Flows) open(now time.Time) {
	f.id++
	f.opened, f.shown, f.lines = now, false, 0
	clear(f.bySubj)
}

// tell gives a flow its line in this window, if it has not had it and there is room
// for it.
func (f *Flows) tell(it *flow) {
	mine := f.bySubj[it.counter]
	if it.untold == 0 || it.window == f.id || mine >= linesPerSubject || f.lines >= maxLines && mine > 0 {
		return
	}
	f.lines++
	f.bySubj[it.counter]++
	f.told[it.counter] += it.untold
	f.logFlow(&it.DeniedFlow, it.untold)
	it.window, it.untold = f.id, 0
}

// makeRoom forgets flows of the pod and direction that has the most of them: the older
// half, so that who scans ports does not push out the others'.
func (f *Flows) makeRoom() {
	if len(f.flows) < maxFlows {
		return
	}
	seqs, most := map[string][]uint64{}, ""
	for _, it := range f.flows {
		seqs[it.counter] = append(seqs[it.counter], it.Seq)
		if n := len(seqs[it.counter]); n > len(seqs[most]) {
			most = it.counter
		}
	}
	slices.Sort(seqs[most])
	middle := seqs[most][len(seqs[most])/2]
	maps.DeleteFunc(f.flows, func(_ flowKey, it *flow) bool { return it.counter == most && it.Seq <= middle })
}

// tick ends a window whose time is over: flows with packets beyond their line get
// another, in the next window, and the rest is said as a number.
func (f *Flows) tick(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.opened.IsZero() || now.Sub(f.opened) < f.cfg.Window {
		return
	}
	again := f.shown
	if f.open(now); !again {
		f.opened = time.Time{}
		return
	}
	for _, it := range f.sorted(0) {
		f.tell(it)
		it.untold = 0 // what found no room is among the rest
	}
	f.sayRest()
}

// rest is what was denied of a subject and got no line.
type rest struct {
	subject *Subject
	packets uint64
}

// sayRest compares what the counters say with what lines told.
func (f *Flows) sayRest() {
	counters, err := f.cfg.Counters()
	if err != nil {
		f.cfg.Log.Debug("counters can't be read", "error", err)
		return
	}
	var all []rest
	for _, s := range f.cfg.Names()[0]().Subjects {
		before, now, told := f.base[s.Counter].Packets, counters[s.Counter].Packets, f.told[s.Counter]
		if now < before {
			before = 0 // it was made anew
		}
		if now-before > told {
			all = append(all, rest{s, now - before - told})
			delete(f.told, s.Counter)
		} else {
			f.told[s.Counter] = told - (now - before) // a packet is shown before it is counted
		}
	}
	maps.DeleteFunc(f.told, func(name string, n uint64) bool { _, known := counters[name]; return n == 0 || !known })
	slices.SortFunc(all, func(a, b rest) int {
		return cmp.Or(cmp.Compare(b.packets, a.packets), strings.Compare(a.subject.Counter, b.subject.Counter))
	})
	if f.base != nil && len(all) > 0 {
		f.logRest(all)
	}
	f.base = counters
}

// After gives the flows whose Seq is higher, in its order.
func (f *Flows) After(seq uint64) []status.DeniedFlow {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := []status.DeniedFlow{}
	for _, it := range f.sorted(seq) {
		list = append(list, it.DeniedFlow)
	}
	return list
}

func (f *Flows) sorted(after uint64) []*flow {
	var list []*flow
	for _, it := range f.flows {
		if it.Seq > after {
			list = append(list, it)
		}
	}
	slices.SortFunc(list, func(a, b *flow) int { return cmp.Compare(a.Seq, b.Seq) })
	return list
}
