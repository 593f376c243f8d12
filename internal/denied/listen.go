package denied

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/florianl/go-nflog/v2"
	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// receiveBuffer is that of the netlink socket, in bytes: hundreds of thousands of
// packets a second came through without loss.
const receiveBuffer = 8 << 20

// flushAfter bounds how long the kernel keeps a packet back for others to come, in
// 1/100 s.
const flushAfter = 10

// listenAgain is how long it takes until Run tries again to listen, after it could not.
const listenAgain = 30 * time.Second

// Listen has the kernel show what the table logs, in the network namespace of the
// calling thread, until ctx ends. If it can't, Err says why, and Run tries again.
func (f *Flows) Listen(ctx context.Context) {
	err := f.listen(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listening, f.err, f.tried = err == nil, err, time.Now()
}

// Err says why nothing is shown, or nil.
func (f *Flows) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *Flows) listen(ctx context.Context) error {
	n, err := nflog.Open(&nflog.Config{Group: ruleset.LogGroup, Copymode: nflog.CopyPacket, Bufsize: ruleset.LogSnaplen, QThresh: ruleset.LogThreshold, Timeout: flushAfter})
	if err != nil {
		return fmt.Errorf("open netlink socket for NFLOG: %w", err)
	}
	setReceiveBuffer(n, receiveBuffer) // with less it works too
	interfaces, err := newInterfaceNames()
	if err != nil {
		n.Close()
		return err
	}
	err = n.RegisterWithErrorFunc(ctx, func(a nflog.Attribute) int {
		if a.Payload == nil || a.Prefix == nil {
			return 0
		}
		if p, ok := parse(*a.Payload); ok {
			f.add(p, *a.Prefix, interfaces.name(a), time.Now())
		}
		return 0
	}, func(err error) int {
		if errors.Is(err, unix.ENOBUFS) { // shown too fast: what is missing is in the counters
			return 0
		}
		n.Con.Close()
		unix.Close(interfaces.socket)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.listening, f.err = false, fmt.Errorf("the NFLOG socket failed: %w", err)
		return 1
	})
	if err != nil {
		n.Close()
		unix.Close(interfaces.socket)
		return fmt.Errorf("NFLOG group %d can't be read: %w: does the kernel have nfnetlink_log (modprobe nfnetlink_log), and does nobody else listen to that group?", ruleset.LogGroup, err)
	}
	context.AfterFunc(ctx, func() { n.Close() })
	return nil
}

// Run ends windows until ctx ends, and listens again where that failed.
func (f *Flows) Run(ctx context.Context) {
	if base, err := f.cfg.Counters(); err == nil {
		f.mu.Lock()
		f.base = base
		f.mu.Unlock()
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			f.tick(time.Now())
		}
		f.mu.Lock()
		again := !f.listening && !f.tried.IsZero() && time.Since(f.tried) >= listenAgain
		f.mu.Unlock()
		if again {
			f.Listen(ctx)
		}
	}
}

// setReceiveBuffer makes it as large; with CAP_NET_ADMIN net.core.rmem_max does not
// count.
func setReceiveBuffer(n *nflog.Nflog, bytes int) {
	if raw, err := n.Con.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes)
		})
	}
}

// interfaceNames finds the names of interfaces by their numbers, as the kernel knows
// them at that moment.
type interfaceNames struct{ socket int }

func newInterfaceNames() (*interfaceNames, error) {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a socket to name interfaces: %w", err)
	}
	return &interfaceNames{s}, nil
}

// name gives that of the interface a packet came in by: on a filtered bridge, its
// port. What a pod sends to the gateway and what the gateway forwards has one.
func (i *interfaceNames) name(a nflog.Attribute) string {
	index := a.PhysInDev
	if index == nil {
		index = a.InDev
	}
	if index == nil {
		return ""
	}
	request, err := unix.NewIfreq("")
	if err != nil {
		return ""
	}
	request.SetUint32(*index)
	if unix.IoctlIfreq(i.socket, unix.SIOCGIFNAME, request) != nil {
		return fmt.Sprintf("interface %d", *index) // it is gone
	}
	return request.Name()
}
