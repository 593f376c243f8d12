package enforce

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// drift is when to look at the tables after another program changed nftables.
type drift struct {
	timer    *time.Timer // nil before Run
	waiting  bool
	looked   time.Time     // the last time
	cost     time.Duration // of the last time
	repaired []time.Time   // within the last minute
	fight    bool          // maxRepairs of them: told as a reason to be degraded
}

const (
	// settleFor is how long a program has for further transactions of the same change.
	settleFor = 5 * time.Millisecond
	// driftShare bounds the share of time that is spent on looking: 1 in so many.
	driftShare = 10
	// maxRepairs is how often in a minute the tables are put right at once; another
	// program that goes on meets the slower check from then on.
	maxRepairs = 10
)

// changed has the tables looked at soon after another program's change. Where they
// are owned nobody else can change them, and the slower check does for the rest.
func (e *Enforcer) changed(c nft.Commit) {
	if !e.commits.add(c) || e.drift.waiting || e.kernel == nil || e.kernel.Owned() || len(e.drift.recent()) >= maxRepairs {
		return
	}
	e.drift.waiting = true
	e.drift.timer.Reset(max(settleFor, time.Until(e.drift.looked.Add(driftShare*e.drift.cost))))
}

// recent gives the repairs within the last minute.
func (d *drift) recent() []time.Time {
	d.repaired = slices.DeleteFunc(d.repaired, func(t time.Time) bool { return time.Since(t) > time.Minute })
	return d.repaired
}

// check reads the tables back if anything in nftables changed since our last
// change, and mends what differs.
func (e *Enforcer) check() {
	if e.kernel == nil || e.flushed != nil || e.applyErr != nil {
		return
	}
	gen, err := e.kernel.Generation()
	if err == nil && gen == e.gen {
		return
	}
	begin := time.Now()
	bridge := e.bridgeDrift()
	want := e.actual
	got, err := e.kernel.Read()
	same := err == nil && got != nil && want != nil && noDifference(got, want)
	e.drift.looked, e.drift.cost = time.Now(), time.Since(begin)
	if same && !bridge { // other tables changed: look for flow tables there
		e.gen, e.linksOld = gen, true
		e.update()
		return
	}
	if !same {
		e.logDrift("inet", got, want, err)
	}
	e.repairs.Add(1)
	e.drift.repaired = append(e.drift.repaired, time.Now())
	e.drift.fight = len(e.drift.recent()) >= maxRepairs
	if got != nil && got.Ours() && err == nil {
		e.actual, e.bumps = got, epochs(e.cfg.Options.MarkMask) // nobody knows which stamps are about
	} else {
		e.closeKernel()
	}
	if e.update(); e.applyErr == nil {
		took := time.Since(begin)
		audit.TableRepaired.Log(e.log, fmt.Sprintf("table %s is as it should be again, after %s", e.cfg.Table, took.Round(time.Microsecond)),
			slog.Uint64(audit.KeyGeneration, e.generation), slog.Int64(audit.KeyDuration, took.Microseconds()))
	}
}

func noDifference(got, want *ruleset.Table) bool {
	change := ruleset.Diff(got, want)
	return change.Empty()
}

// bridgeDrift reads the bridge family's table back and says whether it is another than
// we left.
func (e *Enforcer) bridgeDrift() bool {
	want := e.bridgeActual
	if e.bridgeConn == nil || want == nil {
		return false
	}
	got, err := e.bridgeConn.Read()
	if e.bridgeActual = got; err != nil || got == nil {
		e.closeBridge()
	}
	if err == nil && got != nil && noDifference(got, want) {
		return false
	}
	e.logDrift("bridge", got, want, err)
	return true
}

// commits remembers who changed nftables lately, for drift to be put to somebody's
// name.
type commits []nft.Commit

// maxCommits is how many are remembered.
const maxCommits = 32

// add remembers one of another program, and says whether it is one.
func (c *commits) add(n nft.Commit) bool {
	if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", n.Thread)); err == nil {
		return false // one of our own
	}
	*c = append(*c, n)
	if len(*c) > maxCommits {
		*c = slices.Delete(*c, 0, len(*c)-maxCommits)
	}
	return true
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
func (e *Enforcer) logDrift(family string, got, want *ruleset.Table, err error) {
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
	audit.TableDrift.Log(e.log, fmt.Sprintf("table %s %s was changed %s: %s; putting it right", family, e.cfg.Table, who, what),
		slog.String(audit.KeyChanges, what), slog.String(audit.KeyProgram, strings.Join(programs, ",")), slog.String(audit.KeyPID, strings.Join(pids, ",")))
}
