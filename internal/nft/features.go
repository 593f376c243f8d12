package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// Scratch runs f in a network namespace of its own, on a thread of its own: both
// are gone when it returns, with all that f made. It needs CAP_SYS_ADMIN.
func Scratch(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a scratch network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Try makes a table as the daemon would, in the calling thread's network namespace,
// which is to be a Scratch one: the table stays. The error is the kernel's, ENOENT
// where it lacks an expression, and says nothing of where.
func Try(t *ruleset.Table) error {
	c, err := openTable(t)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Claim(); err != nil {
		return errno(err)
	}
	var all ruleset.Transaction
	for _, name := range sorted(t.Counters) {
		all = append(all, ruleset.Op{Kind: ruleset.AddCounter, Name: name})
	}
	for _, name := range sorted(t.Sets) {
		all = append(all, ruleset.Op{Kind: ruleset.AddSet, Set: t.Sets[name]})
	}
	for _, name := range sorted(t.Chains) {
		all = append(all, ruleset.Op{Kind: ruleset.AddChain, Chain: t.Chains[name]})
	}
	return errno(c.apply(all))
}

// TryOwner makes an inet table that belongs to its socket and outlives it, likewise.
func TryOwner() error {
	c, err := Open("owned")
	if err != nil {
		return err
	}
	defer c.Close()
	c.table.Flags = nftables.TableFlagOwner | nftables.TableFlagPersist
	c.conn.AddTable(c.table)
	return errno(c.conn.Flush())
}

// TryLogReader asks the kernel for the packets of an NFLOG group (nfnetlink_log),
// likewise.
func TryLogReader(group uint16) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return errno(err)
	}
	defer c.Close()
	const (
		config       = unix.NFNL_SUBSYS_ULOG<<8 | 1 // NFULNL_MSG_CONFIG
		command      = 1                            // NFULA_CFG_CMD
		bind    byte = 1                            // NFULNL_CFG_CMD_BIND
	)
	ae := netlink.NewAttributeEncoder()
	ae.Uint8(command, bind)
	b, err := ae.Encode()
	if err != nil {
		return err
	}
	head := make([]byte, 4) // struct nfgenmsg: family, version, res_id in network order
	binary.BigEndian.PutUint16(head[2:], group)
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: config, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(head, b...),
	})
	return errno(err)
}

func openTable(t *ruleset.Table) (*Conn, error) {
	if t.Family == ruleset.FamilyBridge {
		return OpenBridge(t.Name)
	}
	return Open(t.Name)
}

// errno gives the kernel's own error out of what is wrapped around it.
func errno(err error) error {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
