package status

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Notifier tells systemd how the daemon is (sd_notify(3)). The zero Notifier,
// where no systemd asks, tells nobody.
type Notifier struct {
	socket   string
	watchdog time.Duration
}

// NewNotifier reads the environment: NOTIFY_SOCKET, a path or an abstract
// address beginning with @; WATCHDOG_USEC and WATCHDOG_PID (sd_watchdog_enabled(3)).
func NewNotifier(getenv func(string) string) Notifier {
	n := Notifier{socket: getenv("NOTIFY_SOCKET")}
	usec, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	pid := getenv("WATCHDOG_PID")
	if err == nil && usec > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		n.watchdog = time.Duration(usec) * time.Microsecond
	}
	return n
}

// Ready says that what the sources gave at the start is enforced, or that a
// reload is done.
func (n Notifier) Ready(status string) error { return n.send("READY=1\nSTATUS=" + line(status)) }

// Reloading says that the sources are read anew; Ready ends it.
func (n Notifier) Reloading() error {
	// systemd wants to know when the reload began, by CLOCK_MONOTONIC.
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return n.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

// Status gives systemctl status its line.
func (n Notifier) Status(status string) error { return n.send("STATUS=" + line(status)) }

// Stopping says that the daemon ends because it was told to.
func (n Notifier) Stopping() error { return n.send("STOPPING=1") }

// Watchdog tells systemd, twice in the time it allows, that the daemon is
// alive, as long as alive says so, until ctx ends. Where systemd does not watch
// it returns at once.
func (n Notifier) Watchdog(ctx context.Context, alive func() bool) error {
	if n.socket == "" || n.watchdog <= 0 {
		return nil
	}
	tick := time.NewTicker(n.watchdog / 2)
	defer tick.Stop()
	for {
		if alive() {
			if err := n.send("WATCHDOG=1"); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// line makes the text fit the protocol, in which a line is an assignment.
func line(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' {
			b[i] = ' '
		}
	}
	return string(b)
}

func (n Notifier) send(message string) error {
	if n.socket == "" {
		return nil
	}
	// Package net takes a leading @ for the abstract name space, as systemd does.
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(message)); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
