package nft

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/google/nftables"

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
			Family: familyName(ch.Table.Family), Table: ch.Table.Name, Name: ch.Name,
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
