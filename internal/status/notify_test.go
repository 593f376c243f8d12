package status

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// listen plays systemd.
func listen(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func receive(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestNotify(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@edgepolicyd-test-" + strconv.Itoa(os.Getpid())} {
		c := listen(t, name)
		n := NewNotifier(env("NOTIFY_SOCKET", name))
		for _, tt := range []struct {
			send func() error
			want string
		}{
			{func() error { return n.Ready("healthy: 3 pods\nREADY=0") }, "READY=1\nSTATUS=healthy: 3 pods READY=0"},
			{func() error { return n.Status("degraded") }, "STATUS=degraded"},
			{n.Stopping, "STOPPING=1"},
		} {
			if err := tt.send(); err != nil {
				t.Fatal(err)
			}
			if got := receive(t, c); got != tt.want {
				t.Errorf("%s: got %q, want %q", name, got, tt.want)
			}
		}
		if err := n.Reloading(); err != nil {
			t.Fatal(err)
		}
		first, usec, _ := strings.Cut(receive(t, c), "\nMONOTONIC_USEC=")
		if at, err := strconv.ParseInt(usec, 10, 64); first != "RELOADING=1" || err != nil || at <= 0 {
			t.Errorf("%s: reloading: %q %q", name, first, usec)
		}
	}
}

func TestNotifyWithoutSystemd(t *testing.T) {
	n := NewNotifier(env("WATCHDOG_USEC", "1000"))
	if err := n.Ready("x"); err != nil {
		t.Errorf("Ready without a socket: %v", err)
	}
	if err := n.Watchdog(t.Context(), func() bool { return true }); err != nil {
		t.Errorf("Watchdog without a socket: %v", err)
	}
	gone := NewNotifier(env("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none")))
	if err := gone.Ready("x"); err == nil {
		t.Error("a socket that is not there: no error")
	}
}

func TestWatchdog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	c := listen(t, name)
	if n := NewNotifier(env("NOTIFY_SOCKET", name, "WATCHDOG_USEC", "1000", "WATCHDOG_PID", "1")); n.watchdog != 0 {
		t.Error("the watchdog of another process is ours")
	}
	n := NewNotifier(env("NOTIFY_SOCKET", name, "WATCHDOG_USEC", "20000", "WATCHDOG_PID", strconv.Itoa(os.Getpid())))
	if n.watchdog != 20*time.Millisecond {
		t.Fatalf("watchdog = %s", n.watchdog)
	}
	var alive atomic.Bool
	alive.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- n.Watchdog(ctx, alive.Load) }()
	for range 3 {
		if got := receive(t, c); got != "WATCHDOG=1" {
			t.Errorf("got %q", got)
		}
	}
	// A daemon that hangs says nothing, and systemd restarts it.
	alive.Store(false)
	time.Sleep(30 * time.Millisecond)
	b := make([]byte, 64)
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	for n, err := 1, error(nil); n > 0 && err == nil; { // at most one was under way
		n, err = c.Read(b)
	}
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(b); err == nil {
		t.Errorf("not alive, and yet %q", b[:n])
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
