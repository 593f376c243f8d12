package enforce

import (
	"sync"
	"time"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/denied"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// tablesNamed is of how many tables it is remembered who was who: packets that were
// denied are told of up to a tenth of a second later.
const tablesNamed = 8

// nameTable remembers who is who in the table that is about to be applied. It is worked
// out when a packet asks.
func (e *Enforcer) nameTable() {
	isolations, snapshot := e.isolations, e.snapshot
	tables := []func() *denied.Names{sync.OnceValue(func() *denied.Names { return denied.NewNames(isolations, snapshot) })}
	if old := e.tables.Load(); old != nil {
		tables = append(tables, (*old)[:min(len(*old), tablesNamed-1)]...)
	}
	e.tables.Store(&tables)
}

// names says who is who in the newest tables, the newest first.
func (e *Enforcer) names() []func() *denied.Names { return *e.tables.Load() }

// forgetNames lets go of the tables that were in force before: nothing is told of them
// any more.
func (e *Enforcer) forgetNames() {
	if tables := *e.tables.Load(); len(tables) > 1 && time.Since(e.lastApply) > time.Second {
		e.tables.Store(&[]func() *denied.Names{tables[0]})
	}
}

// lookAtLog finds out whether packets are shown, and whether another program still
// fights over the table, and has all policies in force told
// anew where messages of the log were lost.
func (e *Enforcer) lookAtLog() {
	e.forgetNames()
	err, fight := e.denied.Err(), len(e.drift.recent()) >= maxRepairs
	if (err == nil) != (e.deniedErr == nil) || fight != e.drift.fight {
		e.deniedErr, e.drift.fight = err, fight
		e.publish()
	}
	if lost := audit.Lost(e.log); lost != e.lost && e.announced != nil && e.inForce() {
		e.lost = lost
		e.takeInventory()
	}
}

// Denied gives the flows that were denied lately.
func (e *Enforcer) Denied(after uint64) []status.DeniedFlow { return e.denied.After(after) }
