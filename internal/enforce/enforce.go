// Package enforce is the one loop that brings the kernel in line with what the
// sources know: merge, resolve, compile, compare, apply. It is the single
// writer of the table, and it answers questions about what is in force.
//
// What always holds: the loop runs in one goroutine; what others may read is
// published whole, after the kernel has it. When anything fails, what the kernel
// enforces stays, and the loop tries again.
package enforce

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync/atomic"
	"time"

	"edgepolicy.io/edgepolicyd/internal/denied"
	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/internal/state"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// Config is what an Enforcer works with.
type Config struct {
	Table   string // name of the inet table
	Options inventory.Options
	Sources []source.Source // in the order of their precedence (S10)
	Store   *state.Store    // nil: nothing is kept
	Log     *slog.Logger
	Version string // of the daemon, for status
	// StateLost: no saved state can be used.
	StateLost bool
	// Hold is holdUnknownPods: auto, on or off. PodRanges are what is held beside the
	// ranges of the CNI configuration.
	Hold      string
	PodRanges []netip.Prefix
	// Restoring: the network may not be up yet, and Ranges, which a daemon found good
	// before, are what is held.
	Restoring bool
	Ranges    []netip.Prefix
	NodeName  string // for status
	// DeniedWindow is for how long packets of a denied flow are put into one line.
	DeniedWindow time.Duration
}

// Enforcer is the loop's state. Only Run's goroutine touches it, but for
// published and requests.
type Enforcer struct {
	cfg       Config
	log       *slog.Logger
	started   time.Time
	requests  chan request
	published atomic.Pointer[published]
	denied    *denied.Flows
	commits   commits // of other programs
	drift     drift
	tables    atomic.Pointer[[]func() *denied.Names] // the newest first
	latencies latencies
	repairs   atomic.Uint64 // of the table, after another program changed it

	reports  map[string]source.Report // the newest of each source
	own      []netip.Addr             // the gateway's addresses
	nextHops []netip.Addr
	merger   source.Merger
	resolver *policy.Resolver
	compiler *ruleset.Compiler
	showing  inventory.Options // what the compiler goes by

	kernel *nft.Conn      // nil: to be opened
	actual *ruleset.Table // what the kernel holds; meaningless without kernel
	gen    uint32         // the kernel's ruleset generation after our last change
	bumps  int64          // epochs used since stale stamps were swept

	bridgeConn    *nft.Conn // for the table of the bridge family; nil: to be opened
	bridgeActual  *ruleset.Table
	bridgeClaimed bool
	bridgeErr     error

	snapshot      *inventory.Snapshot
	reloaded      *inventory.Snapshot // as of the last reload, or the start
	isolations    []policy.Isolation
	problems      []source.Problem
	unenforceable []status.Unenforceable
	waiting       []waiting                    // pods that have waited long for their labels
	notes         []string                     // what sources say differently
	bridges       []string                     // problems with bridges (S26)
	look          bool                         // the gateway's links changed, or pods came
	interfaces    map[string]gateway.Interface // as last read
	interfacesOld bool                         // they may have changed since
	interfacesErr error                        // they can't be read
	wiring        wiring
	ranges        []netip.Prefix // that are held
	refusedRanges []string
	heldPackets   uint64
	held          map[netip.Addr]held
	heldTold      map[netip.Addr]bool
	waits         map[inventory.Key]time.Time
	outside       map[inventory.Key]time.Time // pods that may be gone, since when
	seen          map[string]bool             // sandboxes and networks that are in force
	latency       status.Latency
	links         map[netip.Addr]gateway.PodLink // as last read
	linksOld      bool                           // they may have changed since
	offloaded     map[string]string              // interfaces in other programs' flow tables
	since         map[inventory.Key]version
	updates       int // how often update ran
	generation    uint64
	lastApply     time.Time
	applyErr      error
	holds         bool                   // a table that was found is left as it is, see tableIsAllThatIsKnown
	gatewayErr    error                  // the gateway's addresses or next hops can't be read
	logErr        error                  // the kernel has no rules that show denied packets
	deniedErr     error                  // it does not show them to us
	lost          uint64                 // messages of the log
	announced     *inventory.Snapshot    // what the audit log says is in force; nil before the first
	applied       *applied               // and not announced yet
	inventoried   time.Time              // when the last inventory was made
	inventory     <-chan struct{}        // closed when all of it is logged
	waitingPods   []*inventory.Pod       // for their labels, held
	degradedSince time.Time              // zero: healthy
	linksErr      error                  // the pods' routes, or other programs' flow tables, can't be read
	stateErr      atomic.Pointer[string] // of the last save, empty if it went well
	toSave        chan state.State       // at most one, the newest
	restrictions  chan restriction       // likewise
	flushed       *flushed
	told          map[string]reason // what was logged, by its text
}

type flushed struct {
	uid uint32
	at  time.Time
}

// request is a question that the loop must answer itself. The result is what
// changed.
type request struct {
	do   func() ([]string, error)
	done chan answer
}

type answer struct {
	changes []string
	err     error
}

// New makes an Enforcer; Run makes it work.
func New(cfg Config) *Enforcer {
	e := &Enforcer{
		cfg: cfg, log: cfg.Log, started: time.Now(),
		requests: make(chan request),
		toSave:   make(chan state.State, 1),

		restrictions: make(chan restriction, 1),
		reports:      map[string]source.Report{},
		since:        map[inventory.Key]version{},
		snapshot:     &inventory.Snapshot{},
		heldTold:     map[netip.Addr]bool{},
	}
	e.resolver = policy.NewResolver(&e.cfg.Options)
	e.show(cfg.Options.Log)
	e.nameTable()
	e.denied = denied.New(denied.Config{
		Log: cfg.Log, Window: cfg.DeniedWindow,
		Names:    e.names,
		Counters: func() (map[string]ruleset.Counts, error) { return counters(cfg.Table) },
	})
	e.published.Store(&published{
		status:   status.Status{Version: status.Version, Health: status.Failed, Reasons: []string{"starting: nothing was applied yet"}, Table: cfg.Table, Started: e.started, DaemonVersion: cfg.Version},
		snapshot: e.snapshot,
	})
	return e
}

// retryAfter bounds how long the loop waits before it tries again what failed.
const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
)

// kernelTimeout bounds one round of questions to rtnetlink.
const kernelTimeout = 5 * time.Second

// checkEvery is how often the loop looks whether another program changed
// nftables.
const checkEvery = 5 * time.Second

// Run reads the sources, enforces what they say, calls ready once when the kernel
// has the first result, and goes on until ctx ends. The table stays (S31).
func (e *Enforcer) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reports := make(chan source.Report)
	if err := e.startSources(ctx, reports); err != nil {
		return err
	}
	facts := make(chan struct{}, 1)
	go e.watchGateway(ctx, facts)
	foreign := make(chan nft.Commit, maxCommits)
	go e.watchCommits(ctx, foreign)
	if e.cfg.Options.Log {
		e.denied.Listen(ctx)
		e.deniedErr = e.denied.Err()
	}
	go e.denied.Run(ctx)
	go e.countCut(e.restrictions)
	defer close(e.restrictions)
	defer e.closeBridge()
	written := make(chan struct{})
	go func() {
		e.writeState()
		close(written)
	}()
	defer func() {
		close(e.toSave)
		<-written
	}()
	defer e.closeKernel()
	e.readGateway()
	e.update()
	e.reloaded = e.snapshot

	e.drift.timer = time.NewTimer(checkEvery)
	defer e.drift.timer.Stop()
	r := newRetry()
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	for {
		if e.applyErr == nil && ready != nil {
			ready()
			ready = nil
		}
		r.after(e.updates, e.applyErr == nil && e.gatewayErr == nil && e.linksErr == nil && e.interfacesErr == nil)
		select {
		case <-ctx.Done():
			return nil
		case report := <-reports:
			if e.take(report) {
				e.update()
			}
			if len(report.Objects.Pods) > 0 && report.Network.Present {
				e.poke(report.Source)
			}
		case <-facts:
			before := e.interfaces
			e.readGateway()
			e.update()
			if !maps.EqualFunc(before, e.interfaces, func(a, b gateway.Interface) bool { return a.Bridge == b.Bridge }) {
				e.poke("")
			}
		case c := <-foreign:
			e.changed(c)
		case <-e.drift.timer.C:
			e.drift.waiting = false
			e.check()
		case q := <-e.requests:
			changes, err := q.do()
			q.done <- answer{changes, err}
		case <-check.C:
			e.check()
			e.lookAtHeld()
			e.lookAtLog()
			if e.inForce() && e.announced != nil && time.Since(e.inventoried) >= inventoryEvery {
				e.takeInventory()
			}
			if len(e.waits)+len(e.outside) > 0 {
				e.update()
			}
		case <-r.timer.C:
			e.update()
		}
	}
}

// Restore enforces what is known without asking anybody, and returns: the saved
// state, the directory, and the CNI results of pods that run. It is the beginning of
// Run, before the network is up.
func (e *Enforcer) Restore(ctx context.Context) error {
	defer e.closeKernel()
	defer e.closeBridge()
	if err := e.known(ctx); err != nil {
		return err
	}
	e.readGateway()
	if e.update(); e.inventory != nil {
		select {
		case <-e.inventory:
		case <-ctx.Done():
		case <-time.After(time.Second): // a slow log must not keep the boot waiting
		}
	}
	return e.applyErr
}

// known learns what each source knows without asking anybody.
func (e *Enforcer) known(ctx context.Context) error {
	for _, s := range e.cfg.Sources {
		r, err := s.Known(ctx)
		if err != nil {
			return fmt.Errorf("source %s: %w", s.Name(), err)
		}
		e.take(r)
	}
	return nil
}

// poke has the sources that can't watch look now, but for the one that said so:
// pods come or go.
func (e *Enforcer) poke(but string) {
	for _, s := range e.cfg.Sources {
		if p, ok := s.(interface{ Poke() }); ok && s.Name() != but {
			p.Poke()
		}
	}
}

// startSources has all sources followed.
func (e *Enforcer) startSources(ctx context.Context, reports chan<- source.Report) error {
	if err := e.known(ctx); err != nil {
		return err
	}
	for _, s := range e.cfg.Sources {
		go func() {
			if err := s.Run(ctx, reports); err != nil && ctx.Err() == nil {
				e.log.Error("source stopped; what it knew stays in force", "source", s.Name(), "error", err)
			}
		}()
	}
	return nil
}

// retry is when to try again what failed: soon at first, then less often.
type retry struct {
	timer *time.Timer
	wait  time.Duration
	seen  int // of Enforcer.updates
}

func newRetry() *retry {
	r := &retry{timer: time.NewTimer(retryMost)}
	r.timer.Stop()
	return r
}

// after sets the timer by how the last update went. A question to the loop, which
// updated nothing, does not put a retry off.
func (r *retry) after(updates int, well bool) {
	switch {
	case updates == r.seen:
	case well:
		r.wait = 0
		r.timer.Stop()
	default:
		r.wait = min(max(retryFirst, 2*r.wait), retryMost)
		r.timer.Reset(r.wait)
	}
	r.seen = updates
}

// take keeps a report if it is newer than the one that is known.
func (e *Enforcer) take(r source.Report) bool {
	if old, ok := e.reports[r.Source]; ok && !r.Time.After(old.Time) {
		return false
	}
	e.reports[r.Source] = r
	return true
}

func (e *Enforcer) openKernel() error {
	if e.kernel != nil {
		return nil
	}
	k, err := nft.Open(e.cfg.Table)
	if err != nil {
		return err
	}
	e.kernel = k
	return nil
}

func (e *Enforcer) closeKernel() {
	if e.kernel == nil {
		return
	}
	if err := e.kernel.Close(); err != nil {
		e.log.Debug("close netlink socket", "error", err)
	}
	e.kernel, e.actual = nil, nil
}
