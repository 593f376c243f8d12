package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// The commands that talk to the running daemon: reload, status, flush.

func (a *app) client() (*status.Client, error) {
	cfg, err := a.config()
	if err != nil {
		return nil, err
	}
	return status.Dial(string(cfg.Socket)), nil
}

// healthError turns a health into an exit code.
func healthError(health string) error {
	switch health {
	case status.Healthy:
		return nil
	case status.Degraded:
		return errDegraded
	}
	return errPrinted
}

func (a *app) reloadCommand() *cobra.Command {
	timeout := 5 * time.Second
	c := &cobra.Command{
		Use:   "reload",
		Short: "Have the daemon read its sources now",
		Long: `Have the running daemon read its sources now (not its configuration), and
return when the kernel has the result: prints the generation and what changed.
A daemon that was flushed enforces again.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 || timeout > status.MaxReload {
				return fmt.Errorf("%w: --timeout %s: it is more than 0 and at most %s, such as 5s", errUsage, timeout, status.MaxReload)
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			r, err := client.Reload(cmd.Context(), timeout)
			if err != nil {
				return err
			}
			return a.printReload(r)
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait for the kernel to have the result, at most 10m")
	complete(c, "timeout")
	return c
}

func (a *app) printReload(r status.ReloadResult) error {
	if a.output == "json" {
		if err := a.printJSON(r); err != nil {
			return err
		}
		return healthError(r.Health)
	}
	fmt.Fprintf(a.stdout, "generation %d", r.Generation)
	if len(r.Changes) == 0 {
		fmt.Fprint(a.stdout, ": nothing changed since the last reload")
	}
	fmt.Fprintln(a.stdout)
	for _, c := range r.Changes {
		fmt.Fprintln(a.stdout, c)
	}
	if r.Health != status.Healthy {
		fmt.Fprintf(a.stdout, "%s\n", r.Health)
		for _, reason := range r.Reasons {
			fmt.Fprintf(a.stdout, "  %s\n", reason)
		}
	}
	return healthError(r.Health)
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say how the daemon is, and why",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			s, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			if a.output == "json" {
				if err := a.printJSON(s); err != nil {
					return err
				}
			} else {
				a.printStatus(s)
			}
			return healthError(s.Health)
		},
	}
}

func (a *app) printStatus(s status.Status) {
	fmt.Fprintln(a.stdout, s.Health)
	for _, r := range s.Reasons {
		fmt.Fprintf(a.stdout, "  %s\n", r)
	}
	if s.Offline {
		fmt.Fprintln(a.stdout, "offline: what was known last is enforced")
	}
	there := "present"
	if !s.TablePresent {
		there = "not there"
	}
	fmt.Fprintf(a.stdout, "table inet %s: %s, generation %d%s\n", s.Table, there, s.Generation, since(", last change %s ago", s.LastApply))
	fmt.Fprintf(a.stdout, "pods: %d, of which %d isolated\n", s.Pods, s.IsolatedPods)
	for _, n := range s.NeverIsolated {
		fmt.Fprintf(a.stdout, "  %s is never isolated (neverIsolate)\n", n)
	}
	fmt.Fprintf(a.stdout, "policies: %d\n", len(s.Policies))
	for _, p := range s.Policies {
		tried := ""
		if p.Audited {
			tried = ", only tried (audit)"
		}
		fmt.Fprintf(a.stdout, "  %s  %s, selects %s%s%s\n", p.Name, p.File, count(p.Pods, "pod"), since(", in force for %s", p.Since), tried)
	}
	for _, src := range s.Sources {
		fmt.Fprintf(a.stdout, "source %s: %s\n", src.Name, freshness(src))
		for _, w := range src.Warnings {
			fmt.Fprintf(a.stdout, "  warning: %s\n", w)
		}
	}
	if h := s.Hold; h.On {
		fmt.Fprintf(a.stdout, "unknown addresses are held: %s; %s so far%s\n", strings.Join(h.Ranges, ", "), count(int(h.Packets), "packet"), latency(h.Latency))
		for _, held := range h.Addresses {
			fmt.Fprintf(a.stdout, "  held: %s\n", held)
		}
	}
	if s.NodeName != "" {
		fmt.Fprintf(a.stdout, "node %s\n", s.NodeName)
	}
	fmt.Fprintf(a.stdout, "edgepolicyd %s%s\n", s.DaemonVersion, since(", running for %s", s.Started))
}

// freshness says how old what a source serves is.
func freshness(s status.SourceStatus) string {
	text := "not confirmed since the start"
	switch {
	case s.AgeSeconds != nil:
		text = fmt.Sprintf("confirmed %s ago", time.Duration(*s.AgeSeconds)*time.Second)
	case s.Unknown:
		text = "nothing is known of it yet"
	case s.OfflineSince.IsZero() && s.Error == "":
		text = strings.TrimPrefix(since(", read %s ago", s.LastRead), ", ")
	}
	if !s.OfflineSince.IsZero() {
		text += since(", offline for %s", s.OfflineSince) + s.OfflineSince.Format(" (since 2006-01-02 15:04:05)")
	}
	return text
}

// latency says how fast new pods were enforced.
func latency(l status.Latency) string {
	if l.Pods == 0 {
		return ""
	}
	return fmt.Sprintf("; from CNI result to kernel %.1f ms for the last of %s, %.1f ms at most", l.Last.Float(), count(l.Pods, "new pod"), l.Most.Float())
}

// since puts the time that has passed into a phrase; nothing for no time.
func since(phrase string, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := time.Since(t)
	unit := time.Second
	if d < 10*time.Second {
		unit = time.Millisecond
	}
	return fmt.Sprintf(phrase, d.Round(unit))
}

func (a *app) flushCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "flush",
		Short: "Stop enforcing: take the table out of the kernel",
		Long: `Stop enforcing. A running daemon is asked: it takes its table away and does not
enforce until a reload or restart. Without a daemon the table is removed here.
Nothing there is success. Only our own table is touched.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.flush(cmd.Context()) },
	}
}

func (a *app) flush(ctx context.Context) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	err = status.Dial(string(cfg.Socket)).Flush(ctx)
	switch {
	case err == nil:
		return a.printFlushed("the daemon took its table away and enforces nothing until `edgepolicyd reload` or a restart", true)
	case !errors.Is(err, status.ErrNotRunning):
		return err
	}
	c, err := nft.Open(string(cfg.Table))
	if err != nil {
		return err
	}
	defer c.Close()
	there, err := c.Delete()
	err = errors.Join(err, nft.DeleteBridge(string(cfg.Table)))
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: ask as root (sudo)", err)
	}
	if err != nil {
		return err
	}
	if there {
		log, flushed, err := a.logger(cfg.Log)
		if err != nil {
			return err
		}
		uid := os.Getuid()
		audit.Flush.Log(log, fmt.Sprintf("flushed by uid %d while no daemon ran: table %s was taken away and nothing is enforced until the daemon starts", uid, cfg.Table), slog.Int(audit.KeyUID, uid))
		flushed()
	} else {
		return a.printFlushed(fmt.Sprintf("no daemon is running and there is no table inet %s: nothing to do", cfg.Table), false)
	}
	return a.printFlushed(fmt.Sprintf("no daemon is running; table inet %s was removed", cfg.Table), true)
}

func (a *app) printFlushed(text string, removed bool) error {
	if a.output == "json" {
		return a.printJSON(map[string]any{"removed": removed, "message": text})
	}
	_, err := fmt.Fprintln(a.stdout, text)
	return err
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.output == "json" {
				return a.printJSON(map[string]string{"version": version})
			}
			_, err := fmt.Fprintln(a.stdout, "edgepolicyd", version)
			return err
		},
	}
}
