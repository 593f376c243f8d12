package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"edgepolicy.io/edgepolicyd/internal/config"
	"edgepolicy.io/edgepolicyd/internal/preflight"
	"edgepolicy.io/edgepolicyd/internal/state"
	"edgepolicy.io/edgepolicyd/internal/status"
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Find what keeps policies from being enforced",
		Long: `Look for what keeps policies from being enforced: what the kernel lacks, modules,
bridges, connection tracking, forwarding, other programs' rules, and the daemon
with its folders and sources. Each finding says what it is, why it matters, and
the command that mends it. The list of all checks is in docs/doctor.md.

It works with and without a running daemon, and changes nothing: what the kernel
can do is tried in a network namespace that is thrown away, which may have the
kernel load the module that it is in. Ask as root: what can't be looked at is
named, and says nothing.

Exit codes: 0, 3 if enforcement is impaired; warnings alone are 0.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context()) },
	}
}

func (a *app) doctor(ctx context.Context) error {
	found := preflight.Run(ctx, a.host(ctx))
	if a.output == "json" {
		if err := a.printJSON(found); err != nil {
			return err
		}
	} else {
		printFindings(a.stdout, found)
	}
	if preflight.Worst(found) == preflight.Impaired {
		return errDegraded
	}
	return nil
}

// host is this machine, with the configuration, or with the default where that can't
// be used. The saved state is left alone: reading it sets a damaged one aside.
func (a *app) host(ctx context.Context) *preflight.Host {
	h := &preflight.Host{Root: "/", ConfigPath: a.configPath, Now: time.Now}
	if h.Config, h.ConfigErr = a.config(); h.ConfigErr != nil {
		h.Config = config.Default()
	}
	h.Daemon = status.Dial(string(h.Config.Socket))
	h.Sources, _, h.SourcesErr = sources(ctx, h.Config, state.Saved{}, true, slog.New(slog.DiscardHandler))
	return h
}

// printFindings prints what is wrong, one paragraph each, then what could not be
// looked at, and what is well.
func printFindings(w io.Writer, found []preflight.Finding) {
	var well []string
	unseen := map[string][]string{} // by the reason
	var reasons []preflight.Finding // one of each reason
	missed := 0
	counts := map[preflight.Severity]int{}
	for _, f := range found {
		switch {
		case f.Unseen:
			if unseen[f.What] == nil {
				reasons = append(reasons, f)
			}
			unseen[f.What] = append(unseen[f.What], f.ID)
			missed++
			continue
		case f.Severity == preflight.OK:
			well = append(well, f.ID)
		default:
			printFinding(w, f)
		}
		counts[f.Severity]++
	}
	for _, f := range reasons {
		fmt.Fprintf(w, "%s%s", paragraph("not looked at: ", f.What), paragraph("  ", strings.Join(unseen[f.What], ", ")))
		printCommand(w, f)
	}
	if len(well) > 0 {
		fmt.Fprintf(w, "ok\n%s\n", paragraph("  ", strings.Join(well, ", ")))
	}
	var totals []string
	if n := counts[preflight.Impaired]; n > 0 {
		totals = append(totals, fmt.Sprintf("%d impaired", n))
	}
	for _, s := range []preflight.Severity{preflight.Warning, preflight.Note} {
		if counts[s] > 0 {
			totals = append(totals, count(counts[s], string(s)))
		}
	}
	totals = append(totals, fmt.Sprintf("%d ok", len(well)))
	if missed > 0 {
		totals = append(totals, fmt.Sprintf("%d not looked at", missed))
	}
	fmt.Fprintln(w, strings.Join(totals, ", "))
}

func printFinding(w io.Writer, f preflight.Finding) {
	fmt.Fprintf(w, "%s  %s\n%s%s", f.Severity, f.ID, paragraph("  ", f.What), paragraph("  why: ", f.Why))
	printCommand(w, f)
}

// printCommand ends a paragraph. The command is never broken, so that it can be
// copied.
func printCommand(w io.Writer, f preflight.Finding) {
	if f.Command != "" {
		fmt.Fprintf(w, "  do:  %s\n", f.Command)
	}
	fmt.Fprintln(w)
}

// paragraph breaks a text at 80 columns, with a first line that begins with head and
// others as far to the right.
func paragraph(head, text string) string {
	if text == "" {
		return ""
	}
	var b strings.Builder
	line := head
	empty := true
	for _, word := range strings.Fields(text) {
		if !empty && len(line)+1+len(word) > 80 {
			b.WriteString(line + "\n")
			line, empty = strings.Repeat(" ", len(head)), true
		}
		if !empty {
			line += " "
		}
		line += word
		empty = false
	}
	return b.String() + line + "\n"
}
