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

// Listen has the kernel show what the table logs, in the network namespace of the
// calling thread, until ctx ends. An error says that it can't: then the table's Log
// rules would show nothing to anybody.
func (f *Flows) Listen(ctx context.Context) error {
	n, err := nflog.Open(&nflog.Config{Group: ruleset.LogGroup, Copymode: nflog.CopyPacket, Bufsize: ruleset.LogSnaplen, QThresh: ruleset.LogThreshold, Timeout: flushAfter})
	if err != nil {
		return fmt.Errorf("open netlink socket for NFLOG: %w", err)
	}
	// With the capability the limit net.core.rmem_max does not count.
	if err := setReceiveBuffer(n, receiveBuffer); err != nil {
		n.Close()
		return fmt.Errorf("NFLOG: set the receive buffer: %w", err)
	}
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
		if ctx.Err() != nil {
			return 1
		}
		if errors.Is(err, unix.ENOBUFS) { // shown too fast: what is missing is in the counters
			return 0
		}
		f.cfg.Log.Warn("denied packets are not shown any more; opening the socket anew", "error", err)
		n.Con.Close()
		unix.Close(interfaces.socket)
		f.died <- struct{}{}
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

// Run ends windows until ctx ends.
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
		case <-f.died:
			if err := f.Listen(ctx); err != nil {
				f.cfg.Log.Error("denied packets can't be shown", "error", err)
			}
		case <-t.C:
			f.tick(time.Now())
		}
	}
}

func setReceiveBuffer(n *nflog.Nflog, bytes int) error {
	raw, err := n.Con.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes)
	})
	return errors.Join(err, set)
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
