package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The table of the bridge family has the name of the inet table, and these:
const (
	bridgeSet   = "ports"
	bridgeChain = "forward"
)

// tagTypes are the EtherTypes of frames with a VLAN tag: 802.1Q and 802.1ad.
var tagTypes = [][]byte{{0x81, 0x00}, {0x88, 0xa8}}

// DropTagged keeps frames with a VLAN tag (802.1Q and 802.1ad, VLAN 0 included)
// from going from the given bridge ports, which are sorted, to other ports:
// br_netfilter shows the inet hooks untagged frames only, so that a tag would lead
// round them. Without ports the table goes. What is for the gateway itself is not
// concerned: the bridge does not forward it.
func DropTagged(table string, ports []string) error {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open netlink socket for nftables: %w", err)
	}
	defer c.CloseLasting()
	t := &nftables.Table{Name: table, Family: nftables.TableFamilyBridge}
	// nft prints names only of a set whose keys are in host order.
	set := &nftables.Set{Table: t, Name: bridgeSet, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	there, err := c.ListTableOfFamily(table, nftables.TableFamilyBridge)
	switch {
	case errors.Is(err, unix.ENOENT) || err == nil && there == nil:
		if len(ports) == 0 {
			return nil
		}
	case err != nil:
		return fmt.Errorf("look for table bridge %s: %w", table, err)
	default:
		have, err := c.GetSetElements(set)
		switch {
		case err != nil && len(ports) == 0:
			return nil // another program's
		case err != nil:
			return fmt.Errorf("table bridge %s: %w", table, ErrForeign)
		}
		if len(ports) == 0 {
			c.DelTable(t)
			return c.Flush()
		}
		rules, err := c.GetRules(t, &nftables.Chain{Table: t, Name: bridgeChain})
		if err == nil && len(rules) == len(tagTypes) && slices.Equal(interfaceNames(have), ports) {
			return nil
		}
		c.FlushSet(set)
	}
	c.AddTable(t)
	if err := c.AddSet(set, nil); err != nil {
		return err
	}
	var elements []nftables.SetElement
	for _, name := range ports {
		elements = append(elements, nftables.SetElement{Key: interfaceName(name)})
	}
	if err := c.SetAddElements(set, elements); err != nil {
		return err
	}
	accept := nftables.ChainPolicyAccept
	// Priority -200 is that of the bridge family's own filters; nothing here
	// depends on the order.
	chain := c.AddChain(&nftables.Chain{
		Table: t, Name: bridgeChain, Type: nftables.ChainTypeFilter, Policy: &accept,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(-200),
	})
	c.FlushChain(chain)
	for _, ethertype := range tagTypes {
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Lookup{SourceRegister: 1, SetName: bridgeSet},
			&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 12, Len: 2},
			equal(ethertype),
			&expr.Counter{},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("drop tagged frames of bridge ports: %w (does the kernel have nf_tables for bridges?)", err)
	}
	return nil
}

// interfaceName is a name as the kernel keeps it.
func interfaceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func interfaceNames(list []nftables.SetElement) []string {
	var names []string
	for _, e := range list {
		names = append(names, unix.ByteSliceToString(e.Key))
	}
	slices.Sort(names)
	return names
}
