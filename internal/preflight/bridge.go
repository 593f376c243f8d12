package preflight

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/source/cni"
)

// podAddresses are those that the table in the kernel takes for pods'.
func (h *Host) podAddresses() ([]netip.Addr, error) {
	t, err := h.kernelTable()
	if err != nil || t == nil {
		return nil, err
	}
	var list []netip.Addr
	for name, s := range t.Sets {
		if !strings.HasPrefix(name, "pods_v") {
			continue
		}
		for _, e := range s.Elements {
			if a, ok := netip.AddrFromSlice([]byte(e.Key)); ok {
				list = append(list, a)
			}
		}
	}
	return list, nil
}

// bridges are those that carry pods, by the routes of the addresses in the table and
// by the CNI configuration, as far as they are there.
func (h *Host) bridges(ctx context.Context) ([]string, error) {
	addresses, err := h.podAddresses()
	if err != nil {
		return nil, err
	}
	links, err := gateway.Links(ctx, addresses)
	if err != nil {
		return nil, asRoot(err)
	}
	names := map[string]bool{}
	for _, l := range links {
		if l.Bridge {
			names[l.Interface] = true
		}
	}
	reports, err := h.read(ctx)
	if err != nil {
		return nil, err
	}
	there, err := gateway.Interfaces(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range reports[cni.Name].Network.Bridges {
		if there[b].Kind == "bridge" {
			names[b] = true
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

func lookAtBridgeModule(ctx context.Context, h *Host) ([]problem, error) {
	bridges, err := h.bridges(ctx)
	if err != nil || len(bridges) == 0 {
		return nil, err
	}
	if _, err := os.Stat(h.path("proc/sys/net/bridge")); err == nil {
		return nil, nil
	}
	state := h.module("br_netfilter")
	what := fmt.Sprintf("br_netfilter is %s, and bridge %s carries pods", state, strings.Join(bridges, ", "))
	t, err := h.kernelTable()
	switch {
	case err != nil:
		return nil, err
	case state == loadable && t == nil:
		return nil, nil // the daemon loads it when it starts
	case state == loadable || state == unknown:
		return []problem{{what: what}}, nil
	}
	return []problem{{what: what, command: "a kernel with CONFIG_BRIDGE_NETFILTER, or its package of extra modules; or routed pods"}}, nil
}

// lookAtBridges finds bridges that the daemon has switched on, and that are off now.
// Before there is a table there is nothing for them to show packets to.
func lookAtBridges(ctx context.Context, h *Host) ([]problem, error) {
	t, err := h.kernelTable()
	if err != nil || t == nil {
		return nil, err
	}
	bridges, err := h.bridges(ctx)
	if err != nil {
		return nil, err
	}
	var found []problem
	for _, b := range bridges {
		ip4, ip6, err := gateway.BridgeFilter(b)
		if err != nil {
			return nil, asRoot(err)
		}
		var off []string
		if on, _ := h.sysctl("net/bridge/bridge-nf-call-iptables"); !ip4 && on == 0 {
			off = append(off, "IPv4")
		}
		if on, _ := h.sysctl("net/bridge/bridge-nf-call-ip6tables"); !ip6 && on == 0 {
			off = append(off, "IPv6")
		}
		if len(off) > 0 {
			found = append(found, problem{
				what: fmt.Sprintf("bridge %s carries pods and does not show %s packets between them to the table", b, strings.Join(off, " and ")),
				fill: []string{"BRIDGE", b},
			})
		}
	}
	return found, nil
}
