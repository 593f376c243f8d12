// Package preflight looks for what keeps policies from being enforced: in the
// kernel, in its settings, in other programs' rules, and in the daemon's own
// surroundings.
//
// What always holds: it changes nothing on the machine. What the kernel can do is
// tried in a network namespace of its own, which may have the kernel load a module.
// Everything happens in the calling thread's network namespace, one check after the
// other; a check that can't be made is a finding, never an error.
package preflight

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/config"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// Severity says how bad a finding is.
type Severity string

// The severities, the worst last.
const (
	OK       Severity = "ok"
	Note     Severity = "note"     // worth knowing
	Warning  Severity = "warning"  // enforced, but something will or may go wrong
	Impaired Severity = "impaired" // policies are not enforced, or not all
)

var severities = []Severity{OK, Note, Warning, Impaired}

// Finding is what one check found.
type Finding struct {
	ID       string   `json:"id"` // of the check; stays the same from version to version
	Severity Severity `json:"severity"`
	What     string   `json:"what"`
	Why      string   `json:"why,omitempty"`     // it matters
	Command  string   `json:"command,omitempty"` // that mends it
	// Unseen: the check could not be made, What says why.
	Unseen bool `json:"unseen,omitempty"`
}

// Check looks at one thing.
type Check struct {
	ID       string
	Severity Severity // of what it finds, unless a problem says otherwise
	Well     string   // what is so if it finds nothing
	Why      string   // what it finds matters
	Command  string   // that mends it; words in capitals stand for what is found

	look func(ctx context.Context, h *Host) ([]problem, error)
}

// problem is something that a check found.
type problem struct {
	what     string
	severity Severity // empty: the check's
	why      string   // empty: the check's
	command  string   // empty: the check's
	fill     []string // pairs: a word of the command, and what it stands for
}

// Daemon is the running daemon as its socket answers; status.Client is one.
type Daemon interface {
	Status(ctx context.Context) (status.Status, error)
	Table(ctx context.Context, pod string) (string, error)
}

// Host is the machine that is looked at.
type Host struct {
	Root       string // "/", or where tests have a proc, a sys and a lib
	ConfigPath string
	Config     config.Config
	ConfigErr  error // why Config can't be used; it is the default then
	Daemon     Daemon
	Sources    []source.Source // as configured
	SourcesErr error           // why they can't be asked
	Now        func() time.Time

	features  once[map[string]error]
	status    once[status.Status]
	table     once[*ruleset.Table]
	reports   once[map[string]source.Report]
	others    once[others]
	offloaded once[map[string]string]
}

// once keeps what was found out the first time.
type once[T any] struct {
	done  bool
	value T
	err   error
}

func (o *once[T]) get(f func() (T, error)) (T, error) {
	if !o.done {
		o.value, o.err = f()
		o.done = true
	}
	return o.value, o.err
}

// Checks are all checks, in the order in which they are made.
func Checks() []Check { return slices.Concat(daemonChecks, featureChecks(), hostChecks, otherChecks) }

// Run makes all checks and gives what they found, the worst first, else in their
// order. A check that finds nothing gives one finding that is OK.
func Run(ctx context.Context, h *Host) []Finding {
	var all []Finding
	for _, c := range Checks() {
		all = append(all, c.run(ctx, h)...)
	}
	slices.SortStableFunc(all, func(a, b Finding) int {
		return cmp.Compare(slices.Index(severities, b.Severity), slices.Index(severities, a.Severity))
	})
	return all
}

func (c Check) run(ctx context.Context, h *Host) []Finding {
	found, err := c.look(ctx, h)
	if err != nil {
		f := Finding{ID: c.ID, Severity: Note, Unseen: true, What: printable(err.Error())}
		if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
			f.What, f.Command = "only root may look there", "sudo edgepolicyd doctor"
		}
		return []Finding{f}
	}
	if len(found) == 0 {
		return []Finding{{ID: c.ID, Severity: OK, What: c.Well}}
	}
	list := make([]Finding, len(found))
	for i, p := range found {
		fill := slices.Clone(p.fill)
		for j := 1; j < len(fill); j += 2 {
			fill[j] = word(fill[j])
		}
		list[i] = Finding{
			ID: c.ID, Severity: cmp.Or(p.severity, c.Severity), What: printable(p.what), Why: printable(cmp.Or(p.why, c.Why)),
			Command: strings.NewReplacer(fill...).Replace(cmp.Or(p.command, c.Command)),
		}
	}
	return list
}

// Worst gives the worst severity of findings.
func Worst(list []Finding) Severity {
	worst := OK
	for _, f := range list {
		if slices.Index(severities, f.Severity) > slices.Index(severities, worst) {
			worst = f.Severity
		}
	}
	return worst
}

// printable makes one line of a text that others had a hand in: names of tables,
// interfaces and processes may hold what a terminal obeys.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ' '
		case !unicode.IsPrint(r):
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// word makes one word of a text for a shell.
func word(text string) string {
	text = printable(text)
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("_-./:@%+,", r)
	}
	if text != "" && !strings.ContainsFunc(text, func(r rune) bool { return !plain(r) }) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// asRoot makes a permission error of what says so in other words.
func asRoot(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fs.ErrPermission
	}
	return err
}
