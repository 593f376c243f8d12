package enforce

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// inventoryEvery is how often all policies in force are written to the log.
const inventoryEvery = 24 * time.Hour

// maxNamed is how many changes are named in one message.
const maxNamed = 10

// applied is a change that the kernel has taken and that was not announced yet.
type applied struct {
	transactions int
	took         time.Duration
}

// announce writes to the audit log what has come into force: policies first, then
// the generation that made it so.
func (e *Enforcer) announce() {
	if !e.inForce() {
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

// inForce says that the kernel has what follows from what is known.
func (e *Enforcer) inForce() bool { return e.applyErr == nil && !e.holds && e.flushed == nil }

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
	find := func(s *inventory.Snapshot, k inventory.Key) *inventory.Policy {
		i, _ := slices.BinarySearchFunc(s.Policies, k, func(p *inventory.Policy, k inventory.Key) int { return p.Key.Compare(k) })
		return s.Policies[i]
	}
	differences(before.Policies, after.Policies, func(p *inventory.Policy) *inventory.Head { return &p.Head }, func(old, fresh *inventory.Head) {
		switch {
		case old == nil:
			e.logPolicy(audit.PolicyAdded, "added", find(after, fresh.Key))
		case fresh == nil:
			e.logPolicy(audit.PolicyRemoved, "removed", find(before, old.Key))
		default:
			e.logPolicy(audit.PolicyChanged, "changed", find(after, fresh.Key))
		}
	})
}

func (e *Enforcer) logPolicy(event *audit.Event, what string, p *inventory.Policy) {
	event.Log(e.log, fmt.Sprintf("policy %s %s (%s), sha256 %s, from %s", p.Key, what, audit.Enforcement(&e.cfg.Options, p), audit.Hash(&p.Head), p.Origin),
		audit.Policy(&e.cfg.Options, p)...)
}

// takeInventory writes all policies in force to the log; all but the first line is
// written beside the loop.
func (e *Enforcer) takeInventory() {
	e.inventoried = time.Now()
	policies, now := e.announced.Policies, time.Now()
	e.inventory = audit.Inventory(context.Background(), e.log, &e.cfg.Options, policies, now)
}
