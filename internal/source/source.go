// Package source says what a source of objects is and merges what several of
// them know into the Snapshot that the rest of the daemon reads.
//
// What always holds: a source reports everything it knows, never a difference.
// What it can't read or understand does not count as gone: the last good version
// stays in force and the report says so (S9). A Snapshot has one object per kind
// and key, and one enforceable pod per address.
package source

import (
	"context"
	"net/netip"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// Report is everything that one source knows, whole, at one moment. It is not
// changed after it was handed on.
type Report struct {
	Source string
	// Objects are in force: what is valid now, and the last valid version of
	// what is not. Unchanged objects keep their pointers from report to report.
	Objects inventory.Objects
	// Diagnostics are the errors and warnings of what was read.
	Diagnostics []manifest.Diagnostic
	// Rejected is what is not in force as it is written.
	Rejected []Rejected
	// Err: the source can't be read (its directory is missing, its server refuses
	// us), and Objects are the last ones that were known. Nil if all is well.
	Err error
	// OfflineSince is since when the source's server has been out of reach, zero if
	// it is not. Objects are the last ones that were known.
	OfflineSince time.Time
	// Confirmed is when the source last said that Objects are all there is; zero:
	// not since the daemon started.
	Confirmed time.Time
	// Unknown: what there is was never known, not even from the saved state. No
	// objects then do not mean that there are none.
	Unknown bool
	// Network is what the CNI source knows of the pods' network beside them.
	Network Network
	// Time is when this was known. Reports of one source are ordered by it: one
	// that is older than another already seen is out of date and to be ignored,
	// which happens when Refresh overtakes Run.
	Time time.Time
}

// Network is what the CNI plugins' configuration says.
type Network struct {
	Present bool           // the folder of results is there: the CNI source knows each pod's address
	Ranges  []netip.Prefix // that pods get their addresses from, sorted
	Bridges []string       // that the plugins attach pods to, sorted
}

// Rejected is a document, or a whole file, that is not in force as written.
type Rejected struct {
	Object string // "NetworkPolicy default/web"; empty if it can't be told, and for whole files
	Origin inventory.Origin
	Reason string
	Kept   bool // an older version of it stays in force
}

// Source follows one place where objects come from.
type Source interface {
	// Name is what Report.Source and Origin.Source say.
	Name() string
	// Known gives what is known without asking anybody who may not answer: what is
	// on this machine's disk, or in the saved state. It is called once, before Run.
	Known(ctx context.Context) (Report, error)
	// Run follows the source until ctx ends, and then returns nil. It sends a
	// Report at the start and whenever anything changed.
	Run(ctx context.Context, reports chan<- Report) error
	// Refresh reads the source now. It may be called while Run runs. A server that
	// does not answer within a second is not waited for. The error is that of ctx;
	// what is wrong with the source is in the Report.
	Refresh(ctx context.Context) (Report, error)
}
