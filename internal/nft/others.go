package nft

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"

	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// BaseChains gives the base chains of all tables of the calling thread's network
// namespace, but for the inet and the bridge table named except, which are ours:
// in the order of their families, tables and names. What iptables-nft makes is
// among them; what iptables-legacy makes is no part of nftables.
func BaseChains(except string) ([]ruleset.BaseChain, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open netlink socket for nftables: %w", err)
	}
	all, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list the chains of all nftables tables: %w%s", err, remedy(err))
	}
	var out []ruleset.BaseChain
	for _, ch := range all {
		if ch.Hooknum == nil || ch.Priority == nil || ours(ch.Table, except) {
			continue
		}
		out = append(out, ruleset.BaseChain{
			Family: familyName(ch.Table.Family), Table: ch.Table.Name, Name: ch.Name, Type: string(ch.Type),
			Hook: hookName(ch.Table.Family, *ch.Hooknum), Priority: int32(*ch.Priority),
			Drop: ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop,
		})
	}
	slices.SortFunc(out, func(a, b ruleset.BaseChain) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Table, b.Table), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

// ours says whether a table is one of the two of our name.
func ours(t *nftables.Table, name string) bool {
	return t.Name == name && (t.Family == nftables.TableFamilyINet || t.Family == nftables.TableFamilyBridge)
}

// familyName is nft's name of a family, or its number.
func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyARP:
		return "arp"
	case nftables.TableFamilyBridge:
		return "bridge"
	case nftables.TableFamilyNetdev:
		return "netdev"
	}
	return fmt.Sprintf("family %d", f)
}

// hookNames are those of the NF_INET_ hooks, by number (linux/netfilter.h); the
// bridge's are the same.
var hookNames = []string{"prerouting", "input", "forward", "output", "postrouting", "ingress"}

// hookName is nft's name of a family's hook, or its number.
func hookName(f nftables.TableFamily, hook nftables.ChainHook) string {
	names := hookNames
	switch f {
	case nftables.TableFamilyNetdev: // NF_NETDEV_
		names = []string{"ingress", "egress"}
	case nftables.TableFamilyARP: // NF_ARP_
		names = []string{"input", "output", "forward"}
	}
	if int(hook) < len(names) {
		return names[hook]
	}
	return fmt.Sprintf("hook %d", hook)
}

// OtherChain is any chain of another program's table.
type OtherChain struct {
	Family, Table, Name string
	MarkBits            uint32 // of the connection mark, which its rules may change
}

// OtherChains gives all chains of all tables but ours, in the kernel's order; except
// is as for BaseChains. A rule that takes the mark from elsewhere than the connection
// mark itself may change all its bits. Of a chain with an extension of iptables that
// can't be read the bits are 0.
func OtherChains(except string) ([]OtherChain, error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open netlink socket for nftables: %w", err)
	}
	defer c.CloseLasting()
	all, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list the chains of all nftables tables: %w%s", err, remedy(err))
	}
	var out []OtherChain
	for _, ch := range all {
		if ours(ch.Table, except) {
			continue
		}
		o := OtherChain{Family: familyName(ch.Table.Family), Table: ch.Table.Name, Name: ch.Name}
		if rules, err := c.GetRules(ch.Table, ch); err == nil {
			for _, r := range rules {
				o.MarkBits |= markBits(r.Exprs)
			}
		}
		out = append(out, o)
	}
	return out, nil
}

// kept says what a register holds of the connection mark: its bits in keep, with
// those in set turned over.
type kept struct{ keep, set uint32 }

// markBits says which bits of the connection mark a rule may change.
func markBits(list []expr.Any) (bits uint32) {
	mark := map[uint32]kept{} // by register; one that is not there may hold anything
	for _, e := range list {
		switch e := e.(type) {
		case *expr.Ct:
			switch {
			case e.Key == expr.CtKeyMARK && e.SourceRegister:
				bits |= ^mark[e.Register].keep | mark[e.Register].set
			case e.Key == expr.CtKeyMARK:
				mark[e.Register] = kept{keep: ^uint32(0)}
			default:
				delete(mark, e.Register)
			}
		case *expr.Bitwise:
			k, ok := mark[e.SourceRegister]
			delete(mark, e.DestRegister)
			if ok && len(e.Mask) == 4 && len(e.Xor) == 4 {
				m, x := binaryutil.NativeEndian.Uint32(e.Mask), binaryutil.NativeEndian.Uint32(e.Xor)
				mark[e.DestRegister] = kept{keep: k.keep & m, set: k.set&m ^ x}
			}
		case *expr.Target:
			bits |= targetMarkBits(e)
		default:
			clear(mark) // it may write to any register
		}
	}
	return bits
}

// targetMarkBits is markBits of an iptables target. The data of CONNMARK are the
// mark, its mask, that of the packet's mark, from revision 2 on two bytes that tell a
// shift, and a mode: 0 sets, 1 takes the packet's mark over, 2 gives it to the packet
// (linux/netfilter/xt_connmark.h).
func targetMarkBits(t *expr.Target) uint32 {
	data, ok := t.Info.(*xt.Unknown)
	if !ok || t.Name != "CONNMARK" || len(*data) < 16 {
		return 0
	}
	mode := (*data)[12]
	if t.Rev >= 2 {
		mode = (*data)[14]
	}
	word := func(i int) uint32 { return binaryutil.NativeEndian.Uint32((*data)[i:]) }
	switch mode {
	case 0:
		return word(0) | word(4)
	case 1:
		return word(4) | word(8)
	}
	return 0
}
