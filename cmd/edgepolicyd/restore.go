package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/state"
	"edgepolicy.io/edgepolicyd/internal/status"
)

func (a *app) restoreCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "restore",
		Short: "Enforce what was saved, and exit",
		Long: `Enforce what was in force before the machine was switched off, and exit: the
saved state and the directory, without asking a kubelet or an API, and before the
network is up. It is for the boot, so that policies are in force before any pod
runs; the daemon takes the table over. Addresses of pods that were known in an
earlier boot are not believed: others can have them. What closes the gap until the
daemon knows this boot's is the hold of addresses that are not known (onBoot).

A daemon that runs is not disturbed: then this is an error.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.restore(cmd.Context()) },
	}
}

func (a *app) restore(ctx context.Context) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	if _, err := status.Dial(string(cfg.Socket)).Status(ctx); err == nil {
		return errors.New("a daemon is running and enforces already: nothing to restore")
	}
	log, flush, err := a.logger(cfg.Log)
	if err != nil {
		return err
	}
	defer flush()
	begin := time.Now()
	saved, err := state.New(string(cfg.StateDir), log).Load()
	if err != nil {
		log.Error("the saved state can't be used; going on with what the directory gives", "error", err)
	}
	if cfg.OnBoot == "open" {
		cfg.HoldUnknownPods = "off"
	}
	e, err := newEnforcer(ctx, cfg, nil, saved, log)
	if err != nil {
		return err
	}
	if err := e.Restore(ctx); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("%w: ask as root (sudo)", err)
		}
		return err
	}
	s := e.Status()
	took := time.Since(begin)
	audit.Restored.Log(log, fmt.Sprintf("restored: %d policies are in force before the network is up, after %s", len(s.Policies), took.Round(time.Millisecond)),
		slog.Uint64(audit.KeyGeneration, s.Generation), slog.Int(audit.KeyCount, len(s.Policies)), slog.Int64(audit.KeyDuration, took.Microseconds()))
	if a.output == "json" {
		if err := a.printJSON(s); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.stdout, "restored: policies %d, namespaces %d, pods with addresses %d; %s\n", len(s.Policies), s.Namespaces, s.Pods, s.Health)
		for _, r := range s.Reasons {
			fmt.Fprintf(a.stdout, "  %s\n", r)
		}
	}
	if s.Health != status.Healthy {
		return errDegraded
	}
	return nil
}
