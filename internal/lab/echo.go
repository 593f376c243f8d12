package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// Listen starts an echo server in the namespace, of network "tcp" or "udp",
// which sends back all that it gets, until it or the lab is closed.
func (n *Namespace) Listen(network string, at netip.AddrPort) (io.Closer, error) {
	var c io.Closer
	err := n.Do(func() error {
		if network == "udp" {
			u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			if err != nil {
				return err
			}
			c = u
			go echoUDP(u)
			return nil
		}
		ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		c = ln
		go n.echoTCP(ln)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s in %s: %w", at, n.Name, err)
	}
	n.onClose(func() error { c.Close(); return nil })
	return c, nil
}

func echoUDP(u *net.UDPConn) {
	buf := make([]byte, 65536)
	for {
		k, from, err := u.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // else an ICMP error about an earlier answer
			u.WriteToUDPAddrPort(buf[:k], from)
		}
	}
}

func (n *Namespace) echoTCP(ln *net.TCPListener) {
	for {
		c, err := ln.AcceptTCP()
		if err != nil {
			return
		}
		n.onClose(func() error { c.Close(); return nil })
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

// Dial connects from inside the namespace, over network "tcp" or "udp". A zero
// from leaves the source address to the kernel. The lab's end closes the
// connection.
func (n *Namespace) Dial(ctx context.Context, network string, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	if from.IsValid() && network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	} else if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = d.DialContext(ctx, network, to.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("in %s: %w", n.Name, err)
	}
	n.onClose(func() error { c.Close(); return nil })
	return c, nil
}

var exchanges atomic.Uint64

// Exchange sends a number over a connection to an echo server and waits for
// it to come back. Over UDP it is sent again every 50 ms; what comes late from
// an earlier Exchange is skipped.
func Exchange(c net.Conn, timeout time.Duration) error {
	want := binary.BigEndian.AppendUint64(nil, exchanges.Add(1))
	got := make([]byte, len(want))
	udp := c.LocalAddr().Network() == "udp"
	for start, send := time.Now(), true; ; {
		left := timeout - time.Since(start)
		if left <= 0 {
			return fmt.Errorf("%s to %s: no echo within %s", c.LocalAddr(), c.RemoteAddr(), timeout)
		}
		if udp {
			left = min(left, 50*time.Millisecond)
		}
		if err := c.SetDeadline(time.Now().Add(left)); err != nil {
			return err
		}
		if send {
			if _, err := c.Write(want); err != nil && !udp {
				return err
			}
			send = false
		}
		_, err := io.ReadFull(c, got)
		switch {
		case err == nil && bytes.Equal(got, want):
			return nil
		case err == nil:
		case udp:
			send = true
			if !isTimeout(err) { // port unreachable comes at once
				time.Sleep(5 * time.Millisecond)
			}
		case !isTimeout(err):
			return err
		}
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
