package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/config"
	"edgepolicy.io/edgepolicyd/internal/enforce"
	"edgepolicy.io/edgepolicyd/internal/state"
	"edgepolicy.io/edgepolicyd/internal/status"
)

func (a *app) runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the daemon",
		Long: `Run the daemon: read the policies, enforce them, and follow every change.

It logs to standard error, tells systemd when it is ready (NOTIFY_SOCKET) and
that it is alive (WATCHDOG_USEC), and reads its sources anew on SIGHUP. When it
ends, for whatever reason, what it enforces stays in force.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config()
			if err != nil {
				return err
			}
			return a.daemon(cmd.Context(), cfg)
		},
	}
}

// reloadTimeout bounds a reload that SIGHUP asks for.
const reloadTimeout = 30 * time.Second

func (a *app) daemon(ctx context.Context, cfg config.Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log, flush, err := a.logger(cfg.Log)
	if err != nil {
		return err
	}
	defer flush()
	starting, started := context.WithCancel(ctx)
	defer started()
	go startMemory(starting)
	log.Info("starting", "version", version, "pid", os.Getpid(), "directory", string(cfg.Sources.Directory.Path), "table", string(cfg.Table))

	socket, err := status.Listen(string(cfg.Socket))
	if err != nil {
		return fmt.Errorf("status socket: %w", err)
	}
	store := state.New(string(cfg.StateDir), log)
	saved, err := store.Load()
	if err != nil {
		log.Error("the saved state can't be used; going on with what the sources give", "error", err)
	}
	e, err := newEnforcer(ctx, cfg, store, saved, log)
	if err != nil {
		return err
	}
	notify := status.NewNotifier(os.Getenv)
	failed := make(chan error, 2)
	go func() {
		if err := socket.Serve(ctx, e, log); err != nil {
			failed <- fmt.Errorf("status socket: %w", err)
			cancel()
		}
	}()
	go func() {
		if err := notify.Watchdog(ctx, e.Alive); err != nil {
			log.Error("the watchdog can't be told", "error", err)
		}
	}()
	if address := string(cfg.Metrics.Listen); address != "" {
		go func() {
			if err := status.ServeMetrics(ctx, address, e, log); err != nil {
				log.Error("metrics can't be served on the loopback address; they are on the socket still", "error", err)
			}
		}()
	}
	go reloadOnHangup(ctx, e, notify, log)
	err = e.Run(ctx, func() {
		audit.Start.Log(log, fmt.Sprintf("edgepolicyd %s enforces (%s): %s", version, cfg.Enforcement, statusLine(e)),
			slog.String(audit.KeyVersion, version), slog.String(audit.KeyEnforcement, string(cfg.Enforcement)), slog.Uint64(audit.KeyGeneration, e.Status().Generation))
		started()
		if err := notify.Ready(statusLine(e)); err != nil {
			log.Error("systemd can't be told", "error", err)
		}
	})
	if stopErr := notify.Stopping(); stopErr != nil {
		log.Error("systemd can't be told", "error", stopErr)
	}
	select {
	case e := <-failed:
		err = errors.Join(err, e)
	default:
	}
	reason := "it was told to"
	if err != nil {
		reason = err.Error()
	}
	audit.Stop.Log(log, fmt.Sprintf("edgepolicyd %s stops (%s); what was enforced stays in force", version, reason), slog.String(audit.KeyVersion, version), slog.String(audit.KeyReason, reason))
	return err
}

// flushLog bounds how long the end of the daemon waits for the last lines of its log.
const flushLog = 2 * time.Second

// logger makes the daemon's log. Flush writes what is left.
func (a *app) logger(c config.Log) (log *slog.Logger, flush func(), err error) {
	h, err := audit.NewHandler(string(c.Format), slog.Level(c.Level), a.stderr, audit.JournalSocket)
	if err != nil {
		return nil, nil, err
	}
	return slog.New(h), func() {
		if err := h.Close(flushLog); err != nil {
			fmt.Fprintf(a.stderr, "edgepolicyd: %v\n", err)
		}
	}, nil
}

// newEnforcer makes the enforcer that a configuration and a saved state describe.
func newEnforcer(ctx context.Context, cfg config.Config, store *state.Store, saved state.Saved, log *slog.Logger) (*enforce.Enforcer, error) {
	list, node, err := sources(ctx, cfg, saved, store != nil, log)
	if err != nil {
		return nil, err
	}
	c := enforce.Config{
		Table: string(cfg.Table), Options: cfg.Options(), Sources: list, Store: store, Log: log, Version: version,
		StateLost: saved.Empty(), Hold: string(cfg.HoldUnknownPods), NodeName: node,
		DeniedWindow: time.Duration(cfg.Audit.Denied.Window),
		Restoring:    store == nil, Ranges: saved.Ranges,
	}
	for _, r := range cfg.PodRanges {
		c.PodRanges = append(c.PodRanges, r.Prefix)
	}
	return enforce.New(c), nil
}

// statusLine is what systemctl status shows.
func statusLine(e *enforce.Enforcer) string {
	s := e.Status()
	return fmt.Sprintf("%s: %d policies, %d of %d pods isolated", s.Health, len(s.Policies), s.IsolatedPods, s.Pods)
}

// reloadOnHangup does on SIGHUP what the command reload does.
func reloadOnHangup(ctx context.Context, e *enforce.Enforcer, notify status.Notifier, log *slog.Logger) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
		if err := notify.Reloading(); err != nil {
			log.Error("systemd can't be told", "error", err)
		}
		bounded, cancel := context.WithTimeout(ctx, reloadTimeout)
		r, err := e.Reload(bounded, "SIGHUP")
		cancel()
		if err != nil {
			log.Error("reload failed", "error", err)
		} else {
			log.Info("reloaded", "generation", r.Generation, "changes", r.Changes, "health", r.Health)
		}
		if err := notify.Ready(statusLine(e)); err != nil {
			log.Error("systemd can't be told", "error", err)
		}
	}
}
