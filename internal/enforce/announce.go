package enforce

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// inventoryEvery is how often all policies in force are written to the log.
const inventoryEvery = 24 * time.Hour

// maxNamed is how many changes are named in one message.
const maxNamed = 10

// applied is a change that the kernel has taken and that was not announced yet.
type applied struct {
	transactions int
	restricts    bool
	took         time.Duration
}

// announce writes to the audit log what has come into force: policies first, then
// the generation that made it so.
func (e *Enforcer) announce() {
	if e.applyErr != nil || e.holds || e.flushed != nil {
		return
	}
	before := e.announced
	e.announced = e.snapshot
	if before == nil {
		e.takeInventory()
	} else if before != e.snapshot {
		e.announcePolicies(before, e.snapshot)
	}
	a := e.applied
	if e.applied = nil; a == nil {
		return
	}
	what := "start"
	if before != nil {
		what = named(changesBetween(before, e.snapshot))
	}
	audit.GenerationApplied.Log(e.log, fmt.Sprintf("generation %d is in force: %s; %d transactions in %s", e.generation, what, a.transactions, a.took.Round(time.Microsecond)),
		slog.Uint64(audit.KeyGeneration, e.generation), slog.String(audit.KeyChanges, what), slog.Int64(audit.KeyDuration, a.took.Microseconds()))
}

// named joins changes, the first few by name.
func named(changes []string) string {
	switch n := len(changes); {
	case n == 0:
		return "addresses or interfaces of the gateway"
	case n > maxNamed:
		return fmt.Sprintf("%s, and %d more", strings.Join(changes[:maxNamed], ", "), n-maxNamed)
	}
	return strings.Join(changes, ", ")
}

func (e *Enforcer) announcePolicies(before, after *inventory.Snapshot) {
	head := func(p *inventory.Policy) *inventory.Head { return &p.Head }
	old, fresh := heads(before.Policies, head), heads(after.Policies, head)
	for _, p := range after.Policies {
		h := old[p.Key]
		switch {
		case h == nil:
			e.logPolicy(audit.PolicyAdded, "added", p)
		case h != &p.Head && !bytes.Equal(h.JSON, p.JSON):
			e.logPolicy(audit.PolicyChanged, "changed", p)
		}
	}
	for _, p := range before.Policies {
		if fresh[p.Key] == nil {
			e.logPolicy(audit.PolicyRemoved, "removed", p)
		}
	}
}

func (e *Enforcer) logPolicy(event *audit.Event, what string, p *inventory.Policy) {
	event.Log(e.log, fmt.Sprintf("policy %s %s (%s), sha256 %s, from %s", p.Key, what, audit.Enforcement(&e.cfg.Options, p), audit.Hash(&p.Head), p.Origin),
		audit.Policy(&e.cfg.Options, p)...)
}

// takeInventory writes all policies in force to the log; all but the first line is
// written beside the loop.
func (e *Enforcer) takeInventory() {
	if e.cfg.Restoring {
		return
	}
	e.inventoried = time.Now()
	policies, now := e.announced.Policies, time.Now()
	audit.Inventory(context.Background(), e.log, &e.cfg.Options, policies, now)
}

// commits remembers who changed nftables lately, for drift to be put to somebody's
// name.
type commits []nft.Commit

// maxCommits is how many are remembered.
const maxCommits = 32

func (c *commits) add(n nft.Commit) {
	if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", n.Thread)); err == nil {
		return // one of our own
	}
	*c = append(*c, n)
	if len(*c) > maxCommits {
		*c = slices.Delete(*c, 0, len(*c)-maxCommits)
	}
}

// since gives the programs that changed something after a generation.
func (c commits) since(generation uint32) (programs, pids []string) {
	for _, n := range c {
		if pid := fmt.Sprint(n.Thread); int32(n.Generation-generation) > 0 && !slices.Contains(pids, pid) {
			programs, pids = append(programs, n.Program), append(pids, pid)
		}
	}
	return programs, pids
}

// logDrift says that the table is not as it was left, and who did it.
func (e *Enforcer) logDrift(got, want *ruleset.Table, err error) {
	what := "it can't be read"
	switch {
	case err != nil:
		what += ": " + err.Error()
	case got == nil:
		what = "it is gone"
	case want != nil:
		what = "rules, sets or elements differ"
	}
	programs, pids := e.commits.since(e.gen)
	who := "nobody knows by which program"
	if len(programs) > 0 {
		who = fmt.Sprintf("by %s (process %s)", strings.Join(programs, ", "), strings.Join(pids, ", "))
	}
	audit.TableDrift.Log(e.log, fmt.Sprintf("table inet %s was changed %s: %s; putting it right", e.cfg.Table, who, what),
		slog.String(audit.KeyChanges, what), slog.String(audit.KeyProgram, strings.Join(programs, ",")), slog.String(audit.KeyPID, strings.Join(pids, ",")))
}
