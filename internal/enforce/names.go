package enforce

import (
	"sync"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/denied"
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

// lookAtLog finds out whether packets are shown, and has all policies in force told
// anew where messages of the log were lost.
func (e *Enforcer) lookAtLog() {
	err := e.denied.Err()
	if changed := (err == nil) != (e.deniedErr == nil); changed {
		e.deniedErr = err
		e.publish()
	}
	if lost := audit.Lost(e.log); lost != e.lost && e.announced != nil && e.inForce() {
		e.lost = lost
		e.takeInventory()
	}
}
