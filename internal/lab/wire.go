package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// wire sends packets from any namespace of a lab and tells which arrived. It
// is used by one goroutine at a time.
//
// It knows when a packet that has not arrived never will: all packets are sent
// by one thread on one CPU, and what a veth end sends is queued on that CPU
// and dealt with there in order, hop by hop. A datagram that goes over a
// loopback interface takes its turn in the same queue; each time it comes
// through, every earlier packet is a hop further.
type wire struct {
	lab   *Lab
	magic uint32
	id    uint64
	cpu   int
	echo  int // UDP socket, connected to itself, on the outside's lo
	taps  map[*Namespace]*tap
	frame []byte
}

// hops is more than any packet makes: into the gateway, out of it, and a
// question and answer of ARP or neighbour discovery on the way.
const hops = 6

// burstLen is the most packets that are sent before the wire waits: each CPU's
// queue holds 1,000 (net.core.netdev_max_backlog).
const burstLen = 256

// tap is a namespace's end of the wire.
type tap struct {
	send     int // AF_PACKET, bound to eth0; in pods and the outside
	raw      [2]int
	received []int
}

func newWire(l *Lab) (*wire, error) {
	w := &wire{lab: l, magic: rand.Uint32(), echo: -1, taps: map[*Namespace]*tap{}, frame: make([]byte, 0, 2048)}
	err := l.Outside.Do(func() (err error) {
		if w.echo, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.Bind(w.echo, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		self, err := unix.Getsockname(w.echo)
		if err != nil {
			return err
		}
		if err := unix.Connect(w.echo, self); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(w.echo, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000})
	})
	if err != nil {
		w.close()
		return nil, fmt.Errorf("make the wire's loopback: %w", err)
	}
	return w, nil
}

func (w *wire) close() {
	for n := range w.taps {
		w.forget(n)
	}
	if w.echo >= 0 {
		unix.Close(w.echo)
	}
}

func (w *wire) forget(n *Namespace) {
	t := w.taps[n]
	if t == nil {
		return
	}
	delete(w.taps, n)
	for _, fd := range append(t.received, t.send, t.raw[0], t.raw[1]) {
		if fd > 0 {
			unix.Close(fd)
		}
	}
}

func (w *wire) tap(n *Namespace) (*tap, error) {
	if t := w.taps[n]; t != nil {
		return t, nil
	}
	t := &tap{}
	w.taps[n] = t
	open := w.openPacket
	if n == w.lab.Gateway {
		open = w.openRaw
	}
	if err := n.Do(func() error { return open(t) }); err != nil {
		w.forget(n)
		return nil, fmt.Errorf("open packet sockets in %s: %w", n.Name, err)
	}
	return t, nil
}

// openPacket opens a pod's or the outside's sockets, which see packets before
// the stack of that namespace does.
func (w *wire) openPacket(t *tap) (err error) {
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // network byte order
	if t.send, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if err := unix.Bind(t.send, &unix.SockaddrLinklayer{Ifindex: eth0Index}); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	t.received = append(t.received, fd)
	if err := w.prepare(fd, true); err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: eth0Index, Protocol: all})
}

// openRaw opens the gateway's sockets: to send through its output hook, and to
// receive what passed its input hook.
func (w *wire) openRaw(t *tap) (err error) {
	const raw = unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	for i, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if t.raw[i], err = unix.Socket(family, raw, unix.IPPROTO_RAW); err != nil {
			return err
		}
		icmp := inventory.ICMP
		if family == unix.AF_INET6 {
			icmp = inventory.ICMPv6
		}
		for _, proto := range []inventory.Protocol{inventory.TCP, inventory.UDP, inventory.SCTP, icmp} {
			fd, err := unix.Socket(family, raw, int(proto))
			if err != nil {
				return err
			}
			t.received = append(t.received, fd)
			if err := w.prepare(fd, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// prepare has a socket take only packets that end with the wire's number, and
// only those that were sent to this namespace.
func (w *wire) prepare(fd int, packet bool) error {
	prog := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: trailerLen, SkipTrue: 5},
		bpf.ALUOpConstant{Op: bpf.ALUOpSub, Val: trailerLen},
		bpf.TAX{},
		bpf.LoadIndirect{Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: w.magic, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	}
	if packet {
		prog = append([]bpf.Instruction{
			bpf.LoadExtension{Num: bpf.ExtType},
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: unix.PACKET_MULTICAST, SkipTrue: uint8(len(prog) - 1)},
		}, prog...)
	}
	rawProg, err := bpf.Assemble(prog)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(rawProg))
	for i, in := range rawProg {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
}

// pinned runs f on one CPU.
func (w *wire) pinned(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("read cpu affinity: %w", err)
	}
	w.cpu = int(w.magic>>1) % before.Count() // the wire's n-th CPU of those allowed
	for i, n := 0, w.cpu; ; i++ {
		if before.IsSet(i) {
			if n == 0 {
				w.cpu = i
				break
			}
			n--
		}
	}
	one.Set(w.cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("set cpu affinity: %w", err)
	}
	return errors.Join(f(), unix.SchedSetaffinity(0, &before))
}

// burst sends up to burstLen probes, complete ones, and says which arrived. It
// runs inside pinned.
func (w *wire) burst(probes []*Probe, arrived []bool) error {
	todo := make([]int, len(probes))
	for i := range todo {
		todo[i], arrived[i] = i, false
	}
	for range 10 {
		lost, err := w.lost()
		if err != nil {
			return err
		}
		first := w.id
		for _, i := range todo {
			if err := w.send(probes[i]); err != nil {
				return err
			}
		}
		settled, err := w.settle()
		if err != nil {
			return err
		}
		if err := w.collect(probes, todo, first, arrived); err != nil {
			return err
		}
		after, err := w.lost()
		if err != nil {
			return err
		}
		if settled && lost == after {
			return nil
		}
		rest := todo[:0]
		for _, i := range todo {
			if !arrived[i] {
				rest = append(rest, i)
			}
		}
		todo = rest
	}
	return fmt.Errorf("cpu %d drops packets again and again: the machine is too busy to probe", w.cpu)
}

func (w *wire) send(p *Probe) error {
	t, err := w.tap(p.From)
	if err != nil {
		return err
	}
	id := w.id
	w.id++
	if p.From != w.lab.Gateway {
		w.frame = p.appendIP(p.appendFrame(w.frame[:0], w.lab.nextMAC(p), p.From.mac), w.magic, id)
		_, err = unix.Write(t.send, w.frame)
	} else if w.frame = p.appendIP(w.frame[:0], w.magic, id); p.Dst.Is4() {
		err = unix.Sendto(t.raw[0], w.frame, 0, &unix.SockaddrInet4{Addr: p.Dst.As4()})
	} else {
		err = unix.Sendto(t.raw[1], w.frame, 0, &unix.SockaddrInet6{Addr: p.Dst.As16()})
	}
	if refused(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("send %s from %s to %s: %w", p.Proto, p.From.Name, p.Dst, err)
	}
	return nil
}

// refused says whether an error of send is one of a packet's fates: dropped or
// rejected in the gateway's output hook, no route any more, a pod removed.
func refused(err error) bool {
	switch err {
	case unix.EPERM, unix.EACCES, unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ENETDOWN, unix.ENXIO, unix.ENODEV:
		return true
	}
	return false
}

// settle returns when every packet sent so far has arrived or is gone; false
// if its own datagram got lost.
func (w *wire) settle() (bool, error) {
	var b [8]byte
	for range hops {
		w.id++
		be.PutUint64(b[:], w.id)
		if _, err := unix.Write(w.echo, b[:]); err != nil {
			return false, fmt.Errorf("send over the wire's loopback: %w", err)
		}
		for {
			n, err := unix.Read(w.echo, b[:])
			if err == unix.EINTR {
				continue
			}
			if err == unix.EAGAIN {
				return false, nil
			}
			if err != nil {
				return false, fmt.Errorf("receive over the wire's loopback: %w", err)
			}
			if n == len(b) && be.Uint64(b[:]) == w.id {
				break
			}
		}
	}
	return true, nil
}

// collect reads what arrived of the packets that were numbered from first on.
func (w *wire) collect(probes []*Probe, sent []int, first uint64, arrived []bool) error {
	var buf [2048]byte
	seen := map[*Namespace]bool{}
	for _, i := range sent {
		if seen[probes[i].To] {
			continue
		}
		seen[probes[i].To] = true
		t, err := w.tap(probes[i].To)
		if err != nil {
			return err
		}
		for _, fd := range t.received {
			for {
				n, err := unix.Read(fd, buf[:])
				if err == unix.EAGAIN {
					break
				}
				if err == unix.EINTR || err == unix.ENETDOWN { // the latter once, when the pod is removed
					continue
				}
				if err != nil {
					return fmt.Errorf("receive in %s: %w", probes[i].To.Name, err)
				}
				id := be.Uint64(buf[n-8 : n])
				if at := id - first; at < uint64(len(sent)) && probes[sent[at]].To == probes[i].To {
					arrived[sent[at]] = true
				}
			}
		}
	}
	return nil
}

// lost is how many packets the wire's CPU dropped since boot because its queue
// was full (/proc/net/softnet_stat, second column).
func (w *wire) lost() (uint64, error) {
	b, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 13 {
			return 0, fmt.Errorf("/proc/net/softnet_stat: %d columns, want 13 or more", len(f))
		}
		if cpu, err := strconv.ParseUint(f[12], 16, 32); err == nil && int(cpu) == w.cpu {
			return strconv.ParseUint(f[1], 16, 64)
		}
	}
	return 0, fmt.Errorf("/proc/net/softnet_stat: no cpu %d", w.cpu)
}

// nextMAC is where a pod's or the outside's stack would send a packet.
func (l *Lab) nextMAC(p *Probe) [6]byte {
	switch {
	case p.Dst.IsMulticast() && p.Dst.Is4():
		a := p.Dst.As4()
		return [6]byte{0x01, 0, 0x5e, a[1] & 0x7f, a[2], a[3]}
	case p.Dst.IsMulticast():
		a := p.Dst.As16()
		return [6]byte{0x33, 0x33, a[12], a[13], a[14], a[15]}
	case p.Dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	case l.Kind == Bridge && p.From != l.Outside && p.To.onBridge(l) && p.To != p.From:
		return p.To.mac
	case l.Kind == Bridge && p.From != l.Outside:
		return l.Gateway.hostMAC
	}
	return p.From.hostMAC
}

func (n *Namespace) onBridge(l *Lab) bool { return n != l.Gateway && n != l.Outside }
