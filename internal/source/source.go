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
	// Err: the source can't be read (its directory is missing, say), and Objects
	// are the last ones that were known. Nil if all is well.
	Err error
	// Time is when this was known. Reports of one source are ordered by it: one
	// that is older than another already seen is out of date and to be ignored,
	// which happens when Refresh overtakes Run.
	Time time.Time
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
	// Run follows the source until ctx ends, and then returns nil. It sends a
	// Report at the start and whenever anything changed.
	Run(ctx context.Context, reports chan<- Report) error
	// Refresh reads the source now. It may be called while Run runs. The error is
	// that of ctx; what is wrong with the source is in the Report.
	Refresh(ctx context.Context) (Report, error)
}
