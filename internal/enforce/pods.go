package enforce

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// lookAtPods finds each pod's interface by its route, has the bridges among them
// filter (S26), and names the pods whose traffic does not pass the table (S34).
func (e *Enforcer) lookAtPods() {
	fresh := e.links == nil || e.linksOld || e.linksErr != nil // addresses, links or routes of the gateway changed
	known := e.links
	if fresh {
		known = map[netip.Addr]gateway.PodLink{}
	}
	var missing []netip.Addr
	for _, p := range e.snapshot.Pods {
		if !p.Enforceable() || p.Remote {
			continue
		}
		for _, a := range p.Addresses {
			if _, ok := known[a]; !ok {
				missing = append(missing, a)
			}
		}
	}
	if len(missing) > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), kernelTimeout)
		links, err := gateway.Links(ctx, missing)
		cancel()
		if e.linksErr = err; err != nil {
			return // what was switched on and known last stays; health says why
		}
		for i, l := range links {
			known[missing[i]] = l
		}
	}
	e.links, e.linksOld, e.linksErr = known, false, nil
	if e.look = fresh || len(missing) > 0; e.look {
		offloaded, err := nft.Offloaded()
		if e.linksErr = err; err != nil {
			return
		}
		e.offloaded = offloaded
	}
	e.unenforceable = nil
	interfaces, outside := e.interfacesOf(), map[inventory.Key]time.Time{}
	for _, p := range e.snapshot.Pods {
		if !p.Enforceable() || p.Remote || leaving(p, interfaces) {
			continue
		}
		for _, a := range p.Addresses {
			if why := e.unenforceableBy(e.links[a]); why != "" && !e.mayBeGone(p, outside) {
				e.unenforceable = append(e.unenforceable, status.Unenforceable{
					Pod: p.Key.String(), Reason: fmt.Sprintf("%s: %s", a, why),
				})
				break
			}
		}
	}
	e.outside = outside
}

// goneWithin is how long a kubelet, or an API, may list a pod that has gone.
const goneWithin = 3 * time.Second

// mayBeGone says that a pod which only a kubelet or an API tells of, where CNI
// results tell of those that run, has been where it can't be enforced for a moment
// only: its interface went before its entry in a list.
func (e *Enforcer) mayBeGone(p *inventory.Pod, outside map[inventory.Key]time.Time) bool {
	if len(p.Attachments) > 0 || p.Origin.Source == "directory" || !e.network().Present {
		return false
	}
	since, ok := e.outside[p.Key]
	if !ok {
		since = time.Now()
	}
	outside[p.Key] = since
	return time.Since(since) < goneWithin
}

// leaving says that a pod's CNI result names an interface that is gone: it is being
// deleted, and its addresses may lead anywhere already.
func leaving(p *inventory.Pod, interfaces map[string]gateway.Interface) bool {
	return slices.ContainsFunc(p.Attachments, func(a inventory.Attachment) bool {
		return slices.ContainsFunc(a.Interfaces, func(name string) bool { return interfaces[name].Name == "" })
	})
}

// unenforceableBy says why a pod's traffic there does not pass the table.
func (e *Enforcer) unenforceableBy(l gateway.PodLink) string {
	if by := e.offloaded[l.Interface]; by != "" {
		return fmt.Sprintf("its interface %s is in %s, which takes established flows past the filter: take it out of there", l.Interface, by)
	}
	return l.Unenforceable()
}

// filterBridges switches netfilter on for the bridges that carry pods (S26), by the
// pods' routes, their CNI results, or the CNI configuration. It looks at them after
// each change of the gateway's links, so that a bridge that was made anew, or that
// someone changed, is found.
func (e *Enforcer) filterBridges() {
	carry := maps.Clone(e.wiring.bridges)
	for _, p := range e.snapshot.Pods {
		for _, a := range p.Addresses {
			if l := e.links[a]; l.Bridge {
				carry[l.Interface] = true
			}
		}
	}
	e.bridges = nil
	for _, name := range slices.Sorted(maps.Keys(carry)) {
		if e.interfaces[name].Name == "" {
			continue // the CNI plugin makes it with the first pod
		}
		changed, err := gateway.EnableBridgeFilter(name)
		switch {
		case err != nil:
			e.bridges = append(e.bridges, fmt.Sprintf("pods on bridge %s are not separated from each other: %v", name, err))
		case changed:
			e.log.Info("switched netfilter on for a bridge that carries pods", "bridge", name)
		}
	}
}

// applyBridgeTable has the kernel check frames by the port of a bridge that they
// come from, which the inet hooks don't see: forged sources, and VLAN tags, which
// would lead round them. On a bridge with a network card tags are the LAN's business,
// but for ports that are known to be pods'.
func (e *Enforcer) applyBridgeTable() {
	if e.bridgeErr = e.bridgeTable(); e.bridgeErr != nil {
		e.closeBridge()
	}
}

func (e *Enforcer) bridgeTable() error {
	if e.holds {
		return nil // as the other table
	}
	desired := e.wiring.out.CompileBridge(e.cfg.Table)
	enforceable := slices.ContainsFunc(e.snapshot.Pods, (*inventory.Pod).Enforceable)
	if desired == nil && (enforceable || e.tableIsAllThatIsKnown()) && len(e.links) == 0 {
		return nil // pods whose routes can't be read, or that nobody can tell of now, may be there still
	}
	if e.bridgeConn == nil {
		c, err := nft.OpenBridge(e.cfg.Table)
		if err != nil {
			return err
		}
		e.bridgeConn = c
		if e.bridgeActual, err = c.Read(); err != nil {
			return err
		}
	}
	switch {
	case desired == nil && e.bridgeActual == nil:
		return nil
	case e.bridgeActual != nil && !e.bridgeActual.Ours():
		if desired == nil {
			return nil
		}
		return fmt.Errorf("table bridge %s: %w", e.cfg.Table, nft.ErrForeign)
	case desired == nil:
		_, err := e.bridgeConn.Delete()
		e.bridgeActual, e.gen = nil, 0
		return err
	case e.bridgeActual == nil || !e.bridgeClaimed:
		if err := e.bridgeConn.Claim(); err != nil {
			return fmt.Errorf("%w (does the kernel have nf_tables for bridges?)", err)
		}
		e.bridgeClaimed = true
		e.gen = 0 // see check
	}
	change := ruleset.Diff(e.bridgeActual, desired)
	if err := e.bridgeConn.Apply(change.Transactions); err != nil {
		return fmt.Errorf("table bridge %s: %w", e.cfg.Table, err)
	}
	e.bridgeActual = change.Target
	if e.gen != 0 {
		e.noteGeneration(e.gen + uint32(len(change.Transactions)))
	}
	return nil
}

func (e *Enforcer) closeBridge() {
	if e.bridgeConn == nil {
		return
	}
	if err := e.bridgeConn.Close(); err != nil {
		e.log.Debug("close netlink socket", "error", err)
	}
	e.bridgeConn, e.bridgeActual, e.bridgeClaimed = nil, nil, false
}
