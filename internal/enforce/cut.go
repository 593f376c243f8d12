package enforce

import (
	"fmt"
	"log/slog"
	"time"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/conntrack"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// restriction is a change that can deny what was allowed.
type restriction struct {
	before, after *ruleset.Table
	interfaces    map[string]string // that pods send from, by their address
	generation    uint64
}

// cutEvery is how often connections are looked through at most: a gateway may have
// tens of thousands of them.
const (
	cutEvery = 2 * time.Second
	cutShare = 20 // the processor's share of it, at most: 1 in so many
)

// countCut tells how many established connections each restriction has cut, until the
// channel is closed: the established flows that the new table denies where the old one
// did not. Those that come while it waits count as one.
func (e *Enforcer) countCut(restrictions <-chan restriction) {
	for r := range restrictions {
		begin := time.Now()
		n, err := r.cut()
		switch {
		case err != nil:
			e.log.Debug("the connections that were cut can't be counted", "error", err)
		case n > 0:
			audit.ConnectionsCut.Log(e.log, fmt.Sprintf("%d established connections are allowed no more since generation %d, and are cut", n, r.generation),
				slog.Int(audit.KeyCount, n), slog.Uint64(audit.KeyGeneration, r.generation))
		}
		r = restriction{} // two tables that nobody else may need
		time.Sleep(max(cutEvery, cutShare*time.Since(begin)))
	}
}

// cut counts the flows that a restriction ends.
func (r *restriction) cut() (n int, err error) {
	err = conntrack.Flows(func(f conntrack.Flow) error {
		if !f.Established() {
			return nil
		}
		from, to := f.From(), f.To()
		p := ruleset.Packet{
			Hook: "forward", InInterface: r.interfaces[from.Addr().String()], OutInterface: r.interfaces[to.Addr().String()],
			Source: from.Addr(), Destination: to.Addr(), SourcePort: from.Port(), DestPort: to.Port(),
			Protocol: f.Original.Protocol, DNATed: f.Original.Destination != to.Addr(),
		}
		if r.before.Trace(p).Verdict == ruleset.Accept && r.after.Trace(p).Verdict == ruleset.Drop {
			n++
		}
		return nil
	})
	return n, err
}

// restricted has a change's cut connections counted, beside the loop.
func (e *Enforcer) restricted(before, after *ruleset.Table) {
	r := restriction{before: before, after: after, generation: e.generation, interfaces: map[string]string{}}
	for _, s := range e.compiler.Interfaces.Sources {
		r.interfaces[s.Address.String()] = s.Interface
	}
	select {
	case waiting := <-e.restrictions:
		r.before = waiting.before
	default:
	}
	e.restrictions <- r
}
