package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	beaconTick = time.Millisecond
	beaconMost = 60_000 // rounds: what nobody stops ends after a minute
	beaconLen  = 16     // magic and number
	beaconWord = 0xed6ebeac0ed6ebea
)

// Beacon is a process of a pod that talks from its first instant: each
// millisecond it sends a UDP datagram to each of its targets, also while there
// is no address and no route yet, so that the first that can leave does.
type Beacon struct {
	number  uint64
	targets []unix.Sockaddr
	fds     [2]int // IPv4, IPv6
	stop    sync.Once
	quit    chan struct{}
	done    chan struct{}
	sent    atomic.Int64
}

var beacons atomic.Uint64

// StartBeacon starts a beacon in the namespace. It ends with Stop, with the
// namespace, or after a minute.
func (n *Namespace) StartBeacon(targets ...netip.AddrPort) (*Beacon, error) {
	b := &Beacon{number: beacons.Add(1), fds: [2]int{-1, -1}, quit: make(chan struct{}), done: make(chan struct{})}
	for _, t := range targets {
		if t.Addr().Is4() {
			b.targets = append(b.targets, &unix.SockaddrInet4{Port: int(t.Port()), Addr: t.Addr().As4()})
		} else {
			b.targets = append(b.targets, &unix.SockaddrInet6{Port: int(t.Port()), Addr: t.Addr().As16()})
		}
	}
	err := n.Do(func() (err error) {
		for i, family := range []int{unix.AF_INET, unix.AF_INET6} {
			if b.fds[i], err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.close()
		return nil, fmt.Errorf("open a beacon's sockets in %s: %w", n.Name, err)
	}
	go b.run()
	n.onClose(func() error { b.Stop(); return nil })
	return b, nil
}

func (b *Beacon) run() {
	defer close(b.done)
	defer b.close()
	msg := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, beaconWord), b.number)
	tick := time.NewTicker(beaconTick)
	defer tick.Stop()
	for range beaconMost {
		for _, to := range b.targets {
			fd := b.fds[0]
			if _, ok := to.(*unix.SockaddrInet6); ok {
				fd = b.fds[1]
			}
			// What fails (no route yet, no buffer) is tried again in the next round.
			if unix.Sendto(fd, msg, 0, to) == nil {
				b.sent.Add(1)
			}
		}
		select {
		case <-b.quit:
			return
		case <-tick.C:
		}
	}
}

func (b *Beacon) close() {
	for _, fd := range b.fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// Sent is how many datagrams the pod's stack has taken so far.
func (b *Beacon) Sent() int { return int(b.sent.Load()) }

// Stop ends the beacon.
func (b *Beacon) Stop() {
	b.stop.Do(func() { close(b.quit) })
	<-b.done
}

// Ear counts what beacons send to a namespace.
type Ear struct {
	mu    sync.Mutex
	heard map[heardKey]*Heard
}

type heardKey struct {
	beacon uint64
	at     netip.AddrPort
}

// Heard is what one ear heard of one beacon.
type Heard struct {
	Count       int
	First, Last time.Time
}

// Hear starts to count what beacons send to addresses of the namespace, until the
// namespace goes.
func (n *Namespace) Hear(at ...netip.AddrPort) (*Ear, error) {
	e := &Ear{heard: map[heardKey]*Heard{}}
	for _, a := range at {
		var u *net.UDPConn
		err := n.Do(func() (err error) {
			if u, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(a)); err != nil {
				return err
			}
			return control(u, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) })
		})
		if err != nil {
			return nil, fmt.Errorf("listen for beacons on %s in %s: %w", a, n.Name, err)
		}
		n.onClose(func() error { u.Close(); return nil })
		go e.listen(u, a)
	}
	return e, nil
}

func control(c syscall.Conn, f func(fd int) error) (err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

func (e *Ear) listen(u *net.UDPConn, at netip.AddrPort) {
	buf := make([]byte, 2048)
	for {
		k, err := u.Read(buf)
		if err != nil {
			return
		}
		now := time.Now()
		if k != beaconLen || binary.BigEndian.Uint64(buf) != beaconWord {
			continue
		}
		key := heardKey{beacon: binary.BigEndian.Uint64(buf[8:]), at: at}
		e.mu.Lock()
		h := e.heard[key]
		if h == nil {
			h = &Heard{First: now}
			e.heard[key] = h
		}
		h.Count++
		h.Last = now
		e.mu.Unlock()
	}
}

// Heard is what was heard of a beacon at one of the addresses so far.
func (e *Ear) Heard(b *Beacon, at netip.AddrPort) Heard {
	e.mu.Lock()
	defer e.mu.Unlock()
	if h := e.heard[heardKey{beacon: b.number, at: at}]; h != nil {
		return *h
	}
	return Heard{}
}
