package enforce

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// lookAtPods finds each pod's interface by its route, has the bridges among them
// filter (S26), and names the pods whose traffic does not pass the table (S34).
func (e *Enforcer) lookAtPods() {
	if e.linksErr != nil {
		e.links, e.linksErr = nil, nil
	}
	fresh := e.links == nil // addresses, links or routes of the gateway changed
	var missing []netip.Addr
	for _, p := range e.snapshot.Pods {
		if !p.Enforceable() {
			continue
		}
		for _, a := range p.Addresses {
			if _, ok := e.links[a]; !ok {
				missing = append(missing, a)
			}
		}
	}
	if fresh {
		e.links = map[netip.Addr]gateway.PodLink{}
	}
	if len(missing) > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), kernelTimeout)
		links, err := gateway.Links(ctx, missing)
		cancel()
		if e.linksErr = err; err != nil {
			return // what was switched on and known last stays; health says why
		}
		for i, l := range links {
			e.links[missing[i]] = l
		}
	}
	if fresh || len(missing) > 0 {
		e.filterBridges()
		offloaded, err := nft.Offloaded()
		if e.linksErr = err; err != nil {
			return
		}
		e.offloaded = offloaded
	}
	e.unenforceable = nil
	for _, p := range e.snapshot.Pods {
		if !p.Enforceable() {
			continue
		}
		for _, a := range p.Addresses {
			if why := e.unenforceableBy(e.links[a]); why != "" {
				e.unenforceable = append(e.unenforceable, status.Unenforceable{
					Pod: p.Key.String(), Reason: fmt.Sprintf("%s: %s", a, why),
				})
				break
			}
		}
	}
}

// unenforceableBy says why a pod's traffic there does not pass the table.
func (e *Enforcer) unenforceableBy(l gateway.PodLink) string {
	if by := e.offloaded[l.Interface]; by != "" {
		return fmt.Sprintf("its interface %s is in %s, which takes established flows past the filter: take it out of there", l.Interface, by)
	}
	return l.Unenforceable()
}

// filterBridges switches netfilter on for the bridges that carry pods, and keeps
// frames with a VLAN tag, which netfilter would not see, from going between their
// ports (S26); on a bridge with a network card tags are the LAN's business. It
// looks at them after each change of the gateway's links, so that a bridge that was
// made anew, or that someone changed, is found.
func (e *Enforcer) filterBridges() {
	carry := map[string]gateway.PodLink{}
	pods := false
	for _, p := range e.snapshot.Pods {
		pods = pods || p.Enforceable()
		for _, a := range p.Addresses {
			if l := e.links[a]; l.Bridge {
				carry[l.Interface] = l
			}
		}
	}
	var failed, ports []string
	for _, name := range slices.Sorted(maps.Keys(carry)) {
		changed, err := gateway.EnableBridgeFilter(name)
		switch {
		case err != nil:
			failed = append(failed, fmt.Sprintf("pods on bridge %s are not separated from each other: %v", name, err))
		case changed:
			e.log.Info("switched netfilter on for a bridge that carries pods", "bridge", name)
		}
		ports = append(ports, carry[name].Ports...)
	}
	// Pods whose route is gone, or that nobody can tell of now, may be there still.
	known := len(carry) > 0 || !pods && !e.tableIsAllThatIsKnown()
	if e.flushed == nil && known {
		slices.Sort(ports)
		if err := nft.DropTagged(e.cfg.Table, ports); err != nil {
			failed = append(failed, fmt.Sprintf("pods on one bridge can reach each other with VLAN tags: %v", err))
		}
	}
	e.bridges = failed
}
