package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// ask has the loop do something and waits for it.
func (e *Enforcer) ask(ctx context.Context, do func() ([]string, error)) ([]string, error) {
	q := request{do: do, done: make(chan answer, 1)}
	select {
	case e.requests <- q:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case a := <-q.done:
		return a.changes, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Alive says within a second whether the loop still turns, for the watchdog.
func (e *Enforcer) Alive() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := e.ask(ctx, func() ([]string, error) { return nil, nil })
	return err == nil
}

// Reload reads the sources now and returns when the kernel has the result on
// every processor. It ends a flush. The changes are those since the last reload or
// the start: the directory is watched, and what somebody has just written there is
// often in force before he asks. By is who asked, such as "uid 0".
func (e *Enforcer) Reload(ctx context.Context, by string) (status.ReloadResult, error) {
	var who []slog.Attr
	if uid, ok := strings.CutPrefix(by, "uid "); ok {
		who = append(who, slog.String(audit.KeyUID, uid))
	}
	audit.Reload.Log(e.log, "reload asked for by "+by, who...)
	_, err := e.ask(ctx, func() ([]string, error) { // whatever becomes of the rest, enforcement goes on
		if e.flushed != nil {
			e.flushed = nil
			e.update()
		}
		return nil, nil
	})
	if err != nil {
		return status.ReloadResult{}, err
	}
	fresh := make([]source.Report, len(e.cfg.Sources))
	errs := make([]error, len(fresh))
	var all sync.WaitGroup
	for i, s := range e.cfg.Sources {
		all.Go(func() {
			if fresh[i], errs[i] = s.Refresh(ctx); errs[i] != nil {
				errs[i] = fmt.Errorf("source %s: %w", s.Name(), errs[i])
			}
		})
	}
	if all.Wait(); errors.Join(errs...) != nil {
		return status.ReloadResult{}, errors.Join(errs...)
	}
	changes, err := e.ask(ctx, func() ([]string, error) {
		before := e.reloaded
		for _, r := range fresh {
			e.take(r)
		}
		e.readGateway()
		e.update()
		everywhere()
		e.reloaded = e.snapshot
		return changesBetween(before, e.snapshot), e.applyErr
	})
	if err != nil {
		return status.ReloadResult{}, err
	}
	s := e.Status()
	return status.ReloadResult{
		Generation: s.Generation, Changed: len(changes) > 0, Changes: changes,
		Health: s.Health, Reasons: s.Reasons,
	}, nil
}

// everywhere returns when no processor evaluates rules from before any more
// (membarrier(2), MEMBARRIER_CMD_GLOBAL: a grace period of RCU). A kernel without
// it has nothing to wait with.
func everywhere() {
	const commandGlobal = 1
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, commandGlobal, 0, 0)
}

// Flush takes the table away and stops enforcing until a reload or restart.
func (e *Enforcer) Flush(ctx context.Context, uid uint32) error {
	_, err := e.ask(ctx, func() ([]string, error) {
		if err := e.openKernel(); err != nil {
			return nil, err
		}
		_, err := e.kernel.Delete()
		e.closeBridge()
		err = errors.Join(err, nft.DeleteBridge(e.cfg.Table))
		e.closeKernel()
		if err != nil {
			e.applyErr = err // the retry takes the table over again
			e.updates++
			return nil, err
		}
		if e.flushed != nil {
			return nil, nil
		}
		e.flushed = &flushed{uid: uid, at: time.Now()}
		e.generation++
		audit.Flush.Log(e.log, fmt.Sprintf("flushed by uid %d: table %s was taken away and nothing is enforced until a reload or restart", uid, e.cfg.Table), slog.Uint64(audit.KeyUID, uint64(uid)))
		e.publish()
		return nil, nil
	})
	return err
}
