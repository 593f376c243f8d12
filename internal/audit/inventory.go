package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// Hash is the SHA-256 of an object's canonical form, in hex.
func Hash(h *inventory.Head) string {
	sum := sha256.Sum256(h.JSON)
	return hex.EncodeToString(sum[:])
}

// Enforcement is "enforce", or "audit" for a policy that is only tried.
func Enforcement(o *inventory.Options, p *inventory.Policy) string {
	if o.Audits(p) {
		return "audit"
	}
	return "enforce"
}

// Policy gives the attributes of events that are about a policy.
func Policy(o *inventory.Options, p *inventory.Policy) []slog.Attr {
	attrs := []slog.Attr{
		slog.String(KeyPolicy, p.Key.String()), slog.String(KeySource, p.Origin.Source),
		slog.String(KeyHash, Hash(&p.Head)), slog.String(KeyEnforcement, Enforcement(o, p)),
	}
	if p.Origin.File != "" {
		attrs = append(attrs, slog.String(KeyFile, p.Origin.String()))
	}
	return attrs
}

// Inventory logs all policies in force: a line at the beginning, one for each policy,
// and one at the end with a hash over them: of the lines "POLICY HASH ENFORCEMENT",
// sorted as bytes. The time names the inventory.
//
// The first line is in the log when Inventory returns, so that changes of policies
// that are logged later are newer than the inventory, wherever its other lines
// stand. Those are logged beside the caller, and wait where the log is slow, so that
// a long inventory is not lost; the context ends the waiting. Done is closed when all
// of them are logged.
func Inventory(ctx context.Context, log *slog.Logger, o *inventory.Options, policies []*inventory.Policy, now time.Time) (done <-chan struct{}) {
	id := slog.String(KeyInventory, now.UTC().Format(time.RFC3339Nano))
	InventoryStarted.Log(log, fmt.Sprintf("the inventory %s begins: %d policies are in force", id.Value, len(policies)),
		id, slog.Int(KeyTotal, len(policies)))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		inventoryLines(ctx, log, o, policies, id)
	}()
	return ended
}

// settleEvery is after how many lines room is waited for: they are far less than the
// queue takes.
const settleEvery = 64

func inventoryLines(ctx context.Context, log *slog.Logger, o *inventory.Options, policies []*inventory.Policy, id slog.Attr) {
	lines := make([]string, 0, len(policies))
	for i, p := range policies {
		if h, ok := log.Handler().(*Handler); ok && i%settleEvery == 0 {
			h.settle(ctx)
		}
		hash, enforcement := Hash(&p.Head), Enforcement(o, p)
		lines = append(lines, fmt.Sprintf("%s %s %s\n", p.Key, hash, enforcement))
		InventoryEntry.Log(log, fmt.Sprintf("in force: policy %s (%s), sha256 %s, from %s; line %d of %d of the inventory %s",
			p.Key, enforcement, hash, p.Origin, i+1, len(policies), id.Value),
			append(Policy(o, p), id, slog.Int(KeyTotal, len(policies)))...)
	}
	slices.Sort(lines)
	all := sha256.New()
	for _, l := range lines {
		fmt.Fprint(all, l)
	}
	sum := hex.EncodeToString(all.Sum(nil))
	InventoryComplete.Log(log, fmt.Sprintf("the inventory %s is complete: %d policies in force, sha256 %s over its lines", id.Value, len(policies), sum),
		id, slog.Int(KeyCount, len(policies)), slog.String(KeyHash, sum))
}
