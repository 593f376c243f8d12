package nft

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Commit is a transaction that some program gave the kernel.
type Commit struct {
	Generation uint32 // of the ruleset, after it
	Thread     int    // that did it, as the kernel counts threads: of a program with one, the process
	Program    string // its name (comm), 15 bytes of it
}

// newGeneration is the message that ends each transaction's notifications.
const newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN

// Watch tells of every commit to nftables in the calling thread's network namespace,
// until ctx ends; then it returns nil. Those that came too fast are left out.
func Watch(ctx context.Context, told func(Commit)) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer func() {
		if stop() {
			c.Close()
		}
	}()
	if err := c.SetBPF(onlyType(newGeneration)); err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	for {
		messages, err := c.Receive()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch nftables: %w", err)
		}
		for _, m := range messages {
			if commit, ok := parseCommit(m); ok {
				told(commit)
			}
		}
	}
}

// onlyType lets messages of one type through: the elements of large changes are not
// worth waking for. The header's type is in the machine's byte order (netlink(7)),
// what a filter loads in the network's.
func onlyType(t uint16) []bpf.RawInstruction {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], t)
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(binary.BigEndian.Uint16(b[:])), SkipFalse: 1},
		bpf.RetConstant{Val: 1 << 18},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		panic(err) // it is constant
	}
	return program
}

func parseCommit(m netlink.Message) (Commit, bool) {
	const header = 4 // struct nfgenmsg
	if m.Header.Type != newGeneration || len(m.Data) < header {
		return Commit{}, false
	}
	d, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err != nil {
		return Commit{}, false
	}
	d.ByteOrder = binary.BigEndian
	var c Commit
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_GEN_ID:
			c.Generation = d.Uint32()
		case unix.NFTA_GEN_PROC_PID:
			c.Thread = int(d.Uint32())
		case unix.NFTA_GEN_PROC_NAME:
			c.Program = d.String()
		}
	}
	return c, d.Err() == nil
}
