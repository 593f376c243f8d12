package preflight

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// daemonChecks look at the daemon and its table.
var daemonChecks = []Check{
	{ID: "config.valid", Severity: Impaired, Well: "the configuration is valid", look: lookAtConfig,
		Why:     "The daemon does not start with it. Here the defaults were looked at in its place.",
		Command: "edgepolicyd check --config FILE"},
	{ID: "privileges.own", Severity: Note, Well: "doctor may look at everything", look: lookAtOwnPrivileges,
		Why:     "What it can't look at it can't find: an exit code of 0 says less then.",
		Command: "sudo edgepolicyd doctor"},
	{ID: "daemon.running", Severity: Warning, Well: "the daemon runs and answers", look: lookAtDaemon,
		Why:     "A table that is in the kernel stays in force, but follows no change: new pods and policies are not known.",
		Command: "systemctl start edgepolicyd; journalctl -u edgepolicyd"},
	{ID: "daemon.health", Severity: Warning, Well: "the daemon is healthy", look: lookAtHealth,
		Why:     "The daemon says so itself: something is not in force as it is written.",
		Command: "edgepolicyd status"},
	{ID: "daemon.privileges", Severity: Impaired, Well: "the daemon may write nftables", look: lookAtPrivileges,
		Why:     "Without CAP_NET_ADMIN the kernel refuses every change of the table; without CAP_SYS_MODULE the daemon can't load br_netfilter.",
		Command: "systemctl edit edgepolicyd  # CapabilityBoundingSet, AmbientCapabilities"},
	{ID: "table.present", Severity: Impaired, Well: "the table is in the kernel", look: lookAtTable,
		Why:     "Nothing is enforced without it.",
		Command: "systemctl restart edgepolicyd"},
	{ID: "table.equal", Severity: Impaired, Well: "the table is as the daemon wrote it", look: compareTable,
		Why:     "Another program changed it. The daemon finds that within five seconds; if it stays so, the two are fighting.",
		Command: "edgepolicyd reload; nft monitor  # shows who writes"},
}

func lookAtConfig(ctx context.Context, h *Host) ([]problem, error) {
	if h.ConfigErr == nil {
		return nil, nil
	}
	if errors.Is(h.ConfigErr, fs.ErrPermission) {
		return nil, h.ConfigErr
	}
	p := problem{what: h.ConfigErr.Error(), fill: []string{"FILE", h.ConfigPath}}
	if _, err := h.ask(ctx); err == nil {
		p.severity, p.why = Warning, "The daemon that runs has read another one; it does not start again with this. Here the defaults were looked at in its place."
	}
	return []problem{p}, nil
}

func lookAtOwnPrivileges(_ context.Context, h *Host) ([]problem, error) {
	set, err := h.capabilities("self")
	if err != nil {
		return nil, err
	}
	var lacks []string
	for _, c := range []struct {
		number int
		name   string
	}{{netAdmin, "CAP_NET_ADMIN (nftables, bridges)"}, {sysAdmin, "CAP_SYS_ADMIN (a scratch network namespace)"}} {
		if !has(set, c.number) {
			lacks = append(lacks, c.name)
		}
	}
	if len(lacks) == 0 {
		return nil, nil
	}
	return []problem{{what: "doctor runs without " + strings.Join(lacks, " and ") + ": not everything could be looked at"}}, nil
}

// ask gives the daemon's status.
func (h *Host) ask(ctx context.Context) (status.Status, error) {
	return h.status.get(func() (status.Status, error) {
		s, err := h.Daemon.Status(ctx)
		if err != nil && !errors.Is(err, status.ErrNotRunning) && os.Geteuid() != 0 {
			err = fmt.Errorf("%w: %w", fs.ErrPermission, err)
		}
		return s, err
	})
}

// What a check needs that is not there.
var (
	errNoDaemon = errors.New("there is no daemon that answers")
	errNoTable  = errors.New("there is no table in the kernel")
)

// answered gives the daemon's status, or why a check that needs it can't be made.
func (h *Host) answered(ctx context.Context) (status.Status, error) {
	s, err := h.ask(ctx)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		err = errNoDaemon
	}
	return s, err
}

func lookAtDaemon(ctx context.Context, h *Host) ([]problem, error) {
	_, err := h.ask(ctx)
	switch {
	case err == nil:
		return nil, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, err
	}
	return []problem{{what: err.Error()}}, nil
}

// maxReasons is how many of the daemon's reasons are told.
const maxReasons = 10

func lookAtHealth(ctx context.Context, h *Host) ([]problem, error) {
	s, err := h.answered(ctx)
	if err != nil {
		return nil, err
	}
	severity := Warning
	if s.Health == status.Failed || len(s.Unenforceable) > 0 {
		severity = Impaired
	}
	var found []problem
	for i, reason := range s.Reasons {
		if i == maxReasons {
			return append(found, problem{what: fmt.Sprintf("%d reasons more", len(s.Reasons)-i)}), nil
		}
		p := problem{what: s.Health + ": " + reason, severity: severity}
		if i == 0 && s.Health == status.Failed && !s.TablePresent {
			p.command = "edgepolicyd reload" // the first is why it failed, which this ends, or says why not
		}
		found = append(found, p)
	}
	return found, nil
}

// peer gives the process that serves a unix socket.
func peer(socket string) (pid int32, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return 0, err
	}
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return c.Pid, nil
}

func lookAtPrivileges(_ context.Context, h *Host) ([]problem, error) {
	pid, err := peer(string(h.Config.Socket))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, errNoDaemon
	}
	if err != nil {
		return nil, err
	}
	set, err := h.capabilities(fmt.Sprint(pid))
	if err != nil {
		return nil, fmt.Errorf("read the capabilities of the daemon, process %d: %w", pid, err)
	}
	var found []problem
	if !has(set, netAdmin) {
		found = append(found, problem{what: fmt.Sprintf("the daemon, process %d, has no CAP_NET_ADMIN", pid)})
	}
	if state := h.module("br_netfilter"); !has(set, sysModule) && state == loadable {
		found = append(found, problem{severity: Warning, what: fmt.Sprintf("the daemon, process %d, has no CAP_SYS_MODULE, and br_netfilter is %s", pid, state), command: "modprobe br_netfilter"})
	}
	return found, nil
}

// kernelTable reads the table, nil if there is none.
func (h *Host) kernelTable() (*ruleset.Table, error) {
	return h.table.get(func() (*ruleset.Table, error) {
		c, err := nft.Open(string(h.Config.Table))
		if err != nil {
			return nil, asRoot(err)
		}
		defer c.Close()
		t, err := c.Read()
		return t, asRoot(err)
	})
}

func lookAtTable(ctx context.Context, h *Host) ([]problem, error) {
	t, err := h.kernelTable()
	switch {
	case err != nil:
		return nil, err
	case t == nil:
		p := problem{what: fmt.Sprintf("there is no table inet %s: nothing is enforced", h.Config.Table)}
		switch _, err := h.ask(ctx); {
		case err == nil: // it was flushed, or the kernel refused the table
			p.command = "edgepolicyd reload"
		case errors.Is(err, status.ErrNotRunning):
			p.command = "systemctl start edgepolicyd"
		}
		return []problem{p}, nil
	case !t.Ours():
		return []problem{{
			what:    fmt.Sprintf("table inet %s was not made by edgepolicyd: nothing is enforced", h.Config.Table),
			why:     "Another program's table is never written.",
			command: "nft list table inet NAME  # whose is it? Or give `table:` another name in the configuration",
			fill:    []string{"NAME", string(h.Config.Table)},
		}}, nil
	}
	return nil, nil
}

// compareTable compares what the kernel holds with what the daemon wrote last,
// between two answers of the same generation.
func compareTable(ctx context.Context, h *Host) ([]problem, error) {
	before, err := h.answered(ctx)
	if err != nil {
		return nil, err
	}
	if t, err := h.kernelTable(); err != nil || t == nil {
		return nil, cmp.Or(err, errNoTable)
	}
	for range 5 {
		wrote, err := h.Daemon.Table(ctx, "")
		if err != nil {
			return nil, fmt.Errorf("ask for the table: %w", err)
		}
		h.table = once[*ruleset.Table]{}
		t, err := h.kernelTable()
		if err != nil {
			return nil, err
		}
		after, err := h.Daemon.Status(ctx)
		if err != nil {
			return nil, err
		}
		if before.Generation != after.Generation {
			before = after
			continue
		}
		if t == nil {
			return nil, errNoTable
		}
		if t.Text(nil) == wrote {
			return nil, nil
		}
		return []problem{{what: "the table in the kernel is not what the daemon wrote: " + firstDifference(wrote, t.Text(nil))}}, nil
	}
	return nil, errors.New("the table changes all the time")
}

// firstDifference names the first line in which two texts differ.
func firstDifference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(a), len(b)) {
		switch {
		case i >= len(b):
			return fmt.Sprintf("missing %q", strings.TrimSpace(a[i]))
		case i >= len(a):
			return fmt.Sprintf("too much %q", strings.TrimSpace(b[i]))
		case a[i] != b[i]:
			return fmt.Sprintf("%q in place of %q", strings.TrimSpace(b[i]), strings.TrimSpace(a[i]))
		}
	}
	return "nothing"
}
