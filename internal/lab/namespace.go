package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 looks for named namespaces, so that a person can
// look into a lab with "ip netns exec".
const netnsDir = "/run/netns"

// Namespace is a network namespace of a lab: the gateway, a pod, or the
// outside.
type Namespace struct {
	// Name is the pod's name as given to AddPod, "gateway" or "outside".
	Name string
	// NetNS is the name under /run/netns.
	NetNS string
	// HostInterface is the gateway's end of the pod's veth pair. Empty for the
	// gateway; the uplink for the outside.
	HostInterface string
	// LinkLocal is the IPv6 link-local address that the kernel gave its eth0; of
	// a gateway with a bridge, that of cni0.
	LinkLocal netip.Addr
	// Addresses are those that the lab configured in it, sorted.
	Addresses []netip.Addr

	id      int // unique in the lab; makes the MAC addresses
	fd      int // of the namespace
	hostMAC [6]byte
	mac     [6]byte
	rtnl    *netlink.Conn

	mu      sync.Mutex
	started []*os.Process
	closers []func() error
}

var labs atomic.Int64 // numbers the labs of this process

// newNamespace makes a namespace, binds it to a name and brings lo up.
func newNamespace(name, netns string) (*Namespace, error) {
	n := &Namespace{Name: name, NetNS: netns, fd: -1}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace (needs root): %w", err)
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open network namespace: %w", err)
		}
		n.fd = fd
		if n.rtnl, err = dialRoute(); err != nil {
			return err
		}
		return bindNetNS(netns)
	})
	if err == nil {
		err = n.Do(quiet)
	}
	if err == nil {
		err = setUp(n.rtnl, 1)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make namespace %s: %w", netns, err), n.close())
	}
	return n, nil
}

// bindNetNS keeps the thread's namespace alive under a name.
func bindNetNS(name string) error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(netnsDir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
}

func unbindNetNS(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// quiet switches off what would delay or add packets: duplicate address
// detection, router solicitation, reverse path filters, rate limits of errors,
// redirects.
func quiet() error {
	return sysctls(
		"net/ipv4/conf/all/rp_filter", "0",
		"net/ipv4/conf/default/rp_filter", "0",
		"net/ipv4/conf/all/send_redirects", "0",
		"net/ipv4/conf/default/send_redirects", "0",
		"net/ipv4/conf/default/promote_secondaries", "1",
		"net/ipv4/icmp_ratelimit", "0",
		"net/ipv6/icmp/ratelimit", "0",
		"net/ipv6/conf/all/accept_dad", "0",
		"net/ipv6/conf/default/accept_dad", "0",
		"net/ipv6/conf/default/accept_ra", "0",
		"net/ipv6/conf/default/router_solicitations", "0",
	)
}

// sysctls writes settings of the calling thread's namespace, given as pairs.
func sysctls(pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		if err := os.WriteFile("/proc/sys/"+pairs[i], []byte(pairs[i+1]), 0); err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", pairs[i], pairs[i+1], err)
		}
	}
	return nil
}

// onThread runs f on a locked OS thread and brings the thread back to the
// network namespace that it had, also when f panics or ends the goroutine.
func onThread(f func() error) error {
	runtime.LockOSThread()
	before, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open network namespace of the thread: %w", err)
	}
	defer func() {
		err := unix.Setns(before, unix.CLONE_NEWNET)
		unix.Close(before)
		if err != nil { // the thread stays locked, so that it ends with its goroutine
			panic(fmt.Sprintf("lab: leave the network namespace: %v", err))
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// Do runs f on a locked OS thread inside the namespace: sockets that f opens
// and processes that it starts are in there. Goroutines that f starts are not.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", n.NetNS, err)
		}
		return f()
	})
}

// Start starts a process inside the namespace. It is killed at the lab's end,
// or when this process dies; who started it waits for it.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := n.Do(cmd.Start); err != nil {
		return fmt.Errorf("start %s in %s: %w", cmd.Path, n.Name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.started = append(n.started, cmd.Process)
	return nil
}

// Run runs a command inside the namespace to its end and returns its standard
// output. The error of one that fails holds what it wrote to standard error.
func (n *Namespace) Run(name string, args ...string) (string, error) {
	return n.RunInput("", name, args...)
}

// RunInput is Run with a standard input.
func (n *Namespace) RunInput(stdin, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := n.Start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return stdout.String(), fmt.Errorf("%s in %s: %w: %s", strings.Join(cmd.Args, " "), n.Name, err, stderr.String())
	}
	return stdout.String(), nil
}

// onClose has f called when the namespace goes.
func (n *Namespace) onClose(f func() error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closers = append(n.closers, f)
}

// close ends the namespace with all that the lab had in it.
func (n *Namespace) close() error {
	n.mu.Lock()
	started, closers := n.started, n.closers
	n.started, n.closers = nil, nil
	n.mu.Unlock()
	var errs []error
	for _, p := range started {
		if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
	}
	for _, f := range closers {
		errs = append(errs, f())
	}
	if n.rtnl != nil {
		errs = append(errs, n.rtnl.Close())
	}
	if n.fd >= 0 {
		errs = append(errs, unbindNetNS(n.NetNS), unix.Close(n.fd))
	}
	return errors.Join(errs...)
}

// Sweep removes the namespaces that labs of processes which have died left
// behind, one that had our pid included. New calls it.
func Sweep() error {
	left, err := filepath.Glob(filepath.Join(netnsDir, "epd-*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range left {
		parts := strings.SplitN(filepath.Base(path), "-", 3)
		pid, err := strconv.Atoi(parts[1])
		earlier := pid == os.Getpid() && labs.Load() == 0
		if err != nil || !earlier && unix.Kill(pid, 0) != unix.ESRCH {
			continue
		}
		errs = append(errs, unbindNetNS(filepath.Base(path)))
	}
	return errors.Join(errs...)
}
