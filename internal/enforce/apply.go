package enforce

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/conntrack"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/internal/state"
)

// update brings the kernel in line with the reports and publishes the result.
func (e *Enforcer) update() {
	e.updates++
	if e.gatewayErr != nil {
		e.readGateway()
	}
	var list []source.Report
	for _, s := range e.cfg.Sources {
		list = append(list, e.reports[s.Name()])
	}
	e.merger.Wait = e.holding()
	merged := e.merger.Merge(list, e.own, e.nextHops, &e.cfg.Options)
	e.snapshot, e.problems, e.notes = merged.Snapshot, merged.Problems, merged.Notes
	e.waiting, e.waitingPods = e.waitingSince(merged.Waiting), merged.Waiting
	e.lookAtPods()
	e.wire()
	if e.look {
		e.filterBridges()
	}
	e.isolations = e.resolver.Update(e.snapshot)
	e.nameTable()
	if e.flushed == nil {
		if e.applyErr = e.apply(); !errors.Is(e.applyErr, errNewer) {
			e.applyBridgeTable()
		}
	}
	e.measure()
	e.publish()
	e.announce()
	e.save()
}

// attempts is how often apply begins anew at once when the kernel's answer was
// lost or something else changed the table meanwhile.
const attempts = 3

// apply compiles the table and applies the difference. It finds out first what
// the kernel holds, where that is not known.
func (e *Enforcer) apply() error {
	var errs []error
	for range attempts {
		err := e.applyOnce()
		if err == nil {
			return nil
		}
		errs = append(errs, err)
		e.closeKernel() // the socket may be in any state: read everything anew
		if e.showing.Log && len(errs) > 1 && refused(err) {
			// It is refused though the kernel's table was read anew, so that it is not
			// another program's change: the kernel may lack what it needs to show packets
			// (nft_log, nft_limit, nfnetlink_log). Enforcement comes first.
			e.show(false)
			if e.applyOnce() == nil {
				e.logErr = fmt.Errorf("the kernel refuses the rules that show them: %w: it needs nft_log, nft_limit and nfnetlink_log (edgepolicyd doctor)", err)
				return nil
			}
			e.show(true)
			e.closeKernel()
		}
	}
	return errs[0] // what comes of its socket's state afterwards says less
}

// show has the table compiled with or without the rules that show packets.
func (e *Enforcer) show(log bool) {
	e.showing = e.cfg.Options
	e.showing.Log = log
	e.compiler = ruleset.NewCompiler(e.cfg.Table, &e.showing)
	e.compiler.Interfaces = e.wiring.out
}

// refused says that the kernel does not know what it was sent.
func refused(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

func (e *Enforcer) applyOnce() error {
	e.holds = false
	if err := e.adopt(); err != nil {
		return err
	}
	mark := e.actual.Mark
	if mark.Mask != e.cfg.Options.MarkMask || mark.Epoch == 0 {
		epoch, err := e.freshEpoch()
		if err != nil {
			return err
		}
		mark = ruleset.Mark{Mask: e.cfg.Options.MarkMask, Epoch: epoch}
	}
	desired := e.compiler.Compile(e.isolations, mark)
	change := ruleset.Diff(e.actual, desired)
	if change.Empty() {
		return nil
	}
	if e.holds = len(e.actual.Chains) > 0 && e.tableIsAllThatIsKnown(); e.holds {
		return nil
	}
	before, err := e.kernel.Generation()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := e.kernel.Apply(change.Transactions); err != nil {
		return err
	}
	took := time.Since(begin)
	e.latencies.add(took)
	if largest(change.Transactions) > verifyAbove {
		if err := e.verify(change.Target); err != nil {
			return err
		}
	}
	old := e.actual
	e.actual = change.Target
	e.generation++
	e.lastApply = time.Now()
	e.noteGeneration(before + uint32(len(change.Transactions)))
	e.applied = &applied{transactions: len(change.Transactions), took: took}
	if change.Restricts {
		if len(old.Chains) > 0 && !e.cfg.Restoring {
			e.restricted(old, change.Target)
		}
		e.bumps++
		e.sweep()
	}
	return nil
}

// adopt opens the socket, takes over the table that is there or makes one, and
// reads what it holds (S31).
func (e *Enforcer) adopt() error {
	if e.kernel != nil && e.actual != nil {
		return nil
	}
	if err := e.openKernel(); err != nil {
		return err
	}
	actual, err := e.kernel.Read()
	switch {
	case err != nil:
		return err
	case actual == nil:
		actual = &ruleset.Table{Name: e.cfg.Table}
	case !actual.Ours():
		return fmt.Errorf("table inet %s: %w", e.cfg.Table, nft.ErrForeign)
	case actual.FormatInForce() > ruleset.Format:
		return fmt.Errorf("table inet %s %w (format %d, this one knows %d) and is left as it is, in force: install that version again, or take the table away with `edgepolicyd flush`", e.cfg.Table, errNewer, actual.FormatInForce(), ruleset.Format)
	}
	if err := e.kernel.Claim(); err != nil {
		return err
	}
	e.actual = actual
	e.bumps = 0
	if len(actual.Chains) > 0 {
		e.bumps = epochs(e.cfg.Options.MarkMask) // nobody knows which stamps are about
		e.log.Info("adopted the table that was in force", "table", e.cfg.Table, "chains", len(actual.Chains), "sets", len(actual.Sets))
	}
	return nil
}

// errNewer says that the kernel has a table of a format that is not known here.
var errNewer = errors.New("was made by a later version of edgepolicyd")

// epochs is how many epochs a mask has room for.
func epochs(mask uint32) int64 { return 1<<bits.OnesCount32(mask) - 1 }

// freshEpoch chooses an epoch that no connection carries: another program, or an
// earlier table, may have left marks behind.
func (e *Enforcer) freshEpoch() (uint32, error) {
	mask := e.cfg.Options.MarkMask
	stamps, err := conntrack.Stamps(mask)
	if err != nil {
		return 0, fmt.Errorf("read the connections' marks: %w", err)
	}
	m := ruleset.Mark{Mask: mask}
	for range epochs(mask) {
		m, _ = m.Next()
		if stamps[m.Epoch] == 0 {
			return m.Epoch, nil
		}
	}
	m, _ = ruleset.Mark{Mask: mask}.Next()
	if _, err := conntrack.Sweep(mask, 0); err != nil {
		return 0, fmt.Errorf("clear the connections' marks: %w", err)
	}
	return m.Epoch, nil
}

// sweep clears stale stamps long before their epoch comes again: every stamp that
// is about is then younger than half the epochs.
func (e *Enforcer) sweep() {
	if e.bumps < epochs(e.cfg.Options.MarkMask)/2 {
		return
	}
	n, err := conntrack.Sweep(e.cfg.Options.MarkMask, e.actual.Mark.Epoch)
	if err != nil {
		e.log.Error("clearing stale connection marks failed; trying again with the next change", "error", err)
		return
	}
	e.bumps = 0
	e.log.Debug("cleared stale connection marks", "connections", n)
}

// verifyAbove is the number of elements in one operation from which on the
// kernel's table is read back: loads of more than one netlink message have been
// seen to lose elements silently.
const verifyAbove = 250

// largest gives the number of elements in the largest operation.
func largest(list []ruleset.Transaction) int {
	n := 0
	for _, t := range list {
		for _, op := range t {
			n = max(n, len(op.Elements))
			if op.Kind == ruleset.AddSet {
				n = max(n, len(op.Set.Elements))
			}
		}
	}
	return n
}

func (e *Enforcer) verify(target *ruleset.Table) error {
	got, err := e.kernel.Read()
	if err != nil {
		return err
	}
	if got == nil {
		return fmt.Errorf("table inet %s is gone", e.cfg.Table)
	}
	if change := ruleset.Diff(got, target); !change.Empty() {
		return fmt.Errorf("the kernel holds something else than was sent (%d transactions apart): %w", len(change.Transactions), nft.ErrUncertain)
	}
	return nil
}

// noteGeneration remembers the kernel's ruleset generation after our change: each
// transaction is one step. If it is another than that, somebody else changed
// something in between, and check has to look.
func (e *Enforcer) noteGeneration(want uint32) {
	gen, err := e.kernel.Generation()
	if err != nil || gen != want {
		gen = 0
	}
	e.gen = gen
}

// tableIsAllThatIsKnown says that something is not in force as written, nobody
// knows what was in force before, as the saved state is lost, and nothing was
// applied yet: what is found in the kernel is the best that is known (S9, S31).
func (e *Enforcer) tableIsAllThatIsKnown() bool {
	if !e.cfg.StateLost || e.generation > 0 {
		return false
	}
	for _, r := range e.reports {
		if r.Unknown || r.Err != nil && r.Confirmed.IsZero() || slices.ContainsFunc(r.Rejected, func(x source.Rejected) bool { return !x.Kept }) {
			return true
		}
	}
	return false
}

// save hands what the sources know to the goroutine that writes it: a slow disk
// must not keep the kernel waiting. Only the newest matters.
func (e *Enforcer) save() {
	if e.holds {
		return // what the table holds is more than what is known
	}
	s := state.State{Boot: state.Boot(), Ranges: e.ranges, Sources: map[string]inventory.Objects{}}
	remembered := e.merger.Remembered()
	for name, r := range e.reports {
		if name != "cni" && !r.Unknown { // CNI results are on the disk themselves
			s.Sources[name] = source.With(r.Objects, remembered[name])
		}
	}
	select {
	case <-e.toSave:
	default:
	}
	e.toSave <- s
}

// writeEvery bounds how often the state is written: flash wears out.
const writeEvery = 5 * time.Second

// writeState writes what save hands over until the channel is closed: at once after
// a quiet time, else what is newest when the time comes.
func (e *Enforcer) writeState() {
	var last time.Time
	for s := range e.toSave {
		for wait := true; wait; {
			select {
			case newer, open := <-e.toSave:
				if !open {
					e.write(s)
					return
				}
				s = newer
			case <-time.After(time.Until(last.Add(writeEvery))):
				wait = false
			}
		}
		if e.write(s) {
			last = time.Now()
		}
	}
}

// write saves a state and says whether the disk was written to.
func (e *Enforcer) write(s state.State) bool {
	if e.cfg.Store == nil {
		return false
	}
	wrote, err := e.cfg.Store.Save(s)
	text := ""
	if err != nil {
		text = err.Error()
	}
	file := slog.String(audit.KeyFile, e.cfg.Store.Path())
	switch old := e.stateErr.Swap(&text); {
	case err != nil && (old == nil || *old != text):
		audit.StateUnsaved.Log(e.log, "the last good input can't be saved, a restart without the sources would not know it: "+text, file, slog.String(audit.KeyReason, text))
	case err == nil && old != nil && *old != "":
		audit.StateSaved.Log(e.log, "the last good input is saved again", file)
	}
	return wrote
}
