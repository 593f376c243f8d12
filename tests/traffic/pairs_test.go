package traffic

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/lab"
)

// pair is an established connection, with both its ends in this test's hand.
type pair struct {
	client, server net.Conn
	text           string
}

var tokens atomic.Uint64

// reuse lets many connected UDP sockets share a server's port.
func reuse(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }), err)
}

// connect opens a connection between two ends of the model and proves that it
// works in both directions.
func (w *world) connect(network, from, to string, port uint16, six bool) *pair {
	w.t.Helper()
	src, dst := netip.MustParseAddr(end(from, six)), netip.MustParseAddr(end(to, six))
	p := &pair{text: fmt.Sprintf("%s %s to %s %d", network, src, dst, port)}
	var err error
	if network == "tcp" {
		p.client, p.server, err = w.dialTCP(src, netip.AddrPortFrom(dst, port))
	} else {
		p.client, p.server, err = w.dialUDP(src, netip.AddrPortFrom(dst, port))
	}
	if err != nil {
		w.t.Fatalf("%s: %v", p.text, err)
	}
	w.t.Cleanup(func() { p.client.Close(); p.server.Close() })
	for _, ends := range [][2]net.Conn{{p.client, p.server}, {p.server, p.client}} {
		if err := pass(ends[0], ends[1], 5*time.Second); err != nil {
			w.t.Fatalf("%s: %v", p.text, err)
		}
	}
	return p
}

func (w *world) dialTCP(src netip.Addr, dst netip.AddrPort) (client, server net.Conn, err error) {
	var ln *net.TCPListener
	err = w.Owner(dst.Addr()).Do(func() error {
		config := net.ListenConfig{Control: reuse}
		l, err := config.Listen(context.Background(), "tcp", dst.String())
		if err == nil {
			ln = l.(*net.TCPListener)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	if err := ln.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, nil, err
	}
	err = w.Owner(src).Do(func() error {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), Timeout: 5 * time.Second}
		client, err = d.Dial("tcp", dst.String())
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	server, err = ln.Accept()
	return client, server, err
}

func (w *world) dialUDP(src netip.Addr, dst netip.AddrPort) (client, server net.Conn, err error) {
	dial := func(from, to netip.AddrPort) (c net.Conn, err error) {
		err = w.Owner(from.Addr()).Do(func() error {
			d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(from), Control: reuse}
			c, err = d.Dial("udp", to.String())
			return err
		})
		return c, err
	}
	if client, err = dial(netip.AddrPortFrom(src, 0), dst); err != nil {
		return nil, nil, err
	}
	server, err = dial(dst, client.LocalAddr().(*net.UDPAddr).AddrPort())
	return client, server, err
}

// pass sends a number from one end and waits for it at the other. It is sent
// once: over UDP a lost packet is an error.
func pass(from, to net.Conn, timeout time.Duration) error {
	want := binary.BigEndian.AppendUint64(nil, tokens.Add(1))
	if err := errors.Join(from.SetDeadline(time.Now().Add(timeout)), to.SetDeadline(time.Now().Add(timeout))); err != nil {
		return err
	}
	if _, err := from.Write(want); err != nil {
		return err
	}
	got := make([]byte, len(want))
	for {
		if _, err := io.ReadFull(to, got); err != nil {
			return fmt.Errorf("number %d from %s to %s: %w", binary.BigEndian.Uint64(want), from.LocalAddr(), to.LocalAddr(), err)
		}
		if bytes.Equal(got, want) {
			return nil
		}
		if from.LocalAddr().Network() == "udp" {
			return fmt.Errorf("%s got number %d, want %d", to.LocalAddr(), binary.BigEndian.Uint64(got), binary.BigEndian.Uint64(want))
		}
	}
}

// silent says that nothing passes any of the connections, in either direction,
// although all ends send. What TCP holds back is read when it may pass again.
func silent(t testing.TB, when string, pairs []*pair) {
	t.Helper()
	var group sync.WaitGroup
	for _, p := range pairs {
		for _, ends := range [][2]net.Conn{{p.client, p.server}, {p.server, p.client}} {
			group.Go(func() {
				ends[0].SetWriteDeadline(time.Now().Add(time.Second))
				for range 3 {
					if _, err := ends[0].Write(binary.BigEndian.AppendUint64(nil, tokens.Add(1))); err != nil {
						t.Errorf("%s: %s: send: %v", when, p.text, err)
					}
				}
				ends[1].SetReadDeadline(time.Now().Add(150 * time.Millisecond))
				if n, err := ends[1].Read(make([]byte, 64)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s: %s: %d bytes came to %s, error %v", when, p.text, n, ends[1].LocalAddr(), err)
				}
			})
		}
	}
	group.Wait()
}

// pump keeps connections busy in both directions until stop is called, and
// fails the test if a single packet of UDP is lost or a connection ends.
func pump(t testing.TB, pairs []*pair) (stop func()) {
	var done atomic.Bool
	var group sync.WaitGroup
	var passed atomic.Int64
	for _, p := range pairs {
		group.Go(func() {
			for !done.Load() {
				err := pass(p.client, p.server, 10*time.Second)
				if err == nil {
					err = pass(p.server, p.client, 10*time.Second)
				}
				if err != nil {
					t.Errorf("an allowed connection was disturbed at %s: %s: %v", time.Now().Format("15:04:05.000"), p.text, err)
					return
				}
				passed.Add(2)
				time.Sleep(time.Millisecond)
			}
		})
	}
	return sync.OnceFunc(func() {
		done.Store(true)
		group.Wait()
		t.Logf("%d packets over %d connections that stay allowed", passed.Load(), len(pairs))
	})
}

// patient has a pod's TCP send again only what is really lost, so that its
// counter tells.
func (w *world) patient(n *lab.Namespace) {
	w.t.Helper()
	_, err := n.Run("sysctl", "-qw", "net.ipv4.tcp_early_retrans=0")
	w.must(err)
}

// retransmitted is how many TCP segments a namespace has sent again.
func (w *world) retransmitted(n *lab.Namespace) string {
	w.t.Helper()
	out, err := n.Run("nstat", "-asz", "TcpRetransSegs")
	w.must(err)
	var count string
	for _, line := range bytes.Split([]byte(out), []byte("\n")) {
		if f := bytes.Fields(line); len(f) > 1 && string(f[0]) == "TcpRetransSegs" {
			count = string(f[1])
		}
	}
	if count == "" {
		w.t.Fatalf("nstat says %q", out)
	}
	return count
}
