package enforce

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/source"
)

// network is what the CNI source says of the pods' network.
func (e *Enforcer) network() source.Network {
	for _, r := range e.reports {
		if r.Network.Present || len(r.Network.Ranges)+len(r.Network.Bridges) > 0 {
			return r.Network
		}
	}
	return source.Network{}
}

// holding says whether addresses that are not known yet are held.
func (e *Enforcer) holding() bool {
	return e.cfg.Hold == "on" || e.cfg.Hold == "auto" && e.network().Present
}

// wire finds out which interfaces carry pods, who may send from there, and what is
// held: the part of the table that CNI results make possible.
func (e *Enforcer) wire() {
	n := e.network()
	w := wiring{
		interfaces: e.interfacesOf(), pods: e.snapshot.Pods, links: e.links, bridges: map[string]bool{},
		out: ruleset.Interfaces{Hold: e.holding()},
	}
	for _, name := range n.Bridges {
		w.bridges[name] = true
	}
	w.attach()
	w.carry()
	w.routed()
	for _, i := range w.interfaces {
		if !i.Pods && !w.interfaces[i.Bridge].Pods {
			w.out.Others = append(w.out.Others, i.Name)
		}
	}
	e.ranges, e.refusedRanges = nil, nil
	if w.out.Hold {
		e.chooseRanges(slices.Concat(e.cfg.PodRanges, n.Ranges, w.subnets()), &w)
		w.out.Ranges = policy.Ranges(e.ranges, append(remote(e.snapshot), e.own...))
	}
	for _, list := range []*[]string{&w.out.Pods, &w.out.Others, &w.out.Ports, &w.out.Checked, &w.out.Known} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	if w.out.Hold && len(w.out.Ranges) == 0 && len(w.bridges) == 0 && (e.cfg.Hold == "on" || len(e.seen) > 0 || len(w.out.Pods) > 0) {
		e.refusedRanges = append(e.refusedRanges, "addresses that are not known yet are held only where pods are known to be: no range of pods' addresses is known; name it in podRanges")
	}
	e.wiring, e.compiler.Interfaces = w, w.out
}

// remote gives the addresses of pods on other nodes: they are known, and not ours to
// hold.
func remote(s *inventory.Snapshot) (list []netip.Addr) {
	for _, p := range s.Pods {
		if p.Remote && p.Enforceable() {
			list = append(list, p.Addresses...)
		}
	}
	return list
}

// interfacesOf lists the gateway's interfaces; anew if they changed, or if a CNI
// result names one that is younger than the list.
func (e *Enforcer) interfacesOf() map[string]gateway.Interface {
	missing := slices.ContainsFunc(e.snapshot.Pods, func(p *inventory.Pod) bool {
		return slices.ContainsFunc(p.Attachments, func(a inventory.Attachment) bool {
			return slices.ContainsFunc(a.Interfaces, func(name string) bool { return e.interfaces[name].Name == "" })
		})
	})
	if e.interfaces != nil && !e.interfacesOld && !missing {
		return e.interfaces
	}
	ctx, cancel := context.WithTimeout(context.Background(), kernelTimeout)
	defer cancel()
	all, err := gateway.Interfaces(ctx)
	if e.interfacesErr = err; err == nil { // else what was known last stays
		e.interfaces, e.interfacesOld = all, false
	}
	return e.interfaces
}

// wiring is where the pods hang.
type wiring struct {
	interfaces map[string]gateway.Interface
	pods       []*inventory.Pod
	links      map[netip.Addr]gateway.PodLink
	bridges    map[string]bool // that carry pods by the CNI configuration or by a result
	owner      map[string]bool // ports of bridges that a pod is known to have
	out        ruleset.Interfaces
}

// attach goes through the interfaces that CNI results name.
func (w *wiring) attach() {
	w.owner = map[string]bool{}
	for _, p := range w.pods {
		if !p.Enforceable() {
			continue
		}
		for _, a := range p.Attachments {
			for _, name := range a.Interfaces {
				i := w.interfaces[name]
				switch {
				case i.Bridge != "":
					w.bridges[i.Bridge], w.owner[name] = true, true
					w.out.Ports = append(w.out.Ports, name)
					w.out.Checked, w.out.Known = append(w.out.Checked, name), append(w.out.Known, name)
					w.allow(&w.out.PortSources, name, p)
					w.allow(&w.out.Sources, i.Bridge, p)
				case i.Pods:
					w.out.Pods = append(w.out.Pods, name)
					w.allow(&w.out.Sources, name, p)
				}
			}
		}
	}
}

func (w *wiring) allow(list *[]ruleset.Source, name string, p *inventory.Pod) {
	for _, a := range p.Addresses {
		*list = append(*list, ruleset.Source{Interface: name, Address: a})
	}
}

// carry goes through the bridges that are known to carry pods.
func (w *wiring) carry() {
	for _, name := range slices.Sorted(maps.Keys(w.bridges)) {
		b := w.interfaces[name]
		if b.Name == "" || !b.Pods {
			continue // the LAN is on it: only ports that are known to be pods' are checked
		}
		w.out.Pods = append(w.out.Pods, name)
		w.out.Ports = append(w.out.Ports, b.Ports...)
		if w.out.Hold {
			w.out.Checked = append(w.out.Checked, b.Ports...)
		}
	}
}

// subnets are those of the gateway's addresses on bridges that carry pods: plugins
// such as flannel's take their ranges from elsewhere than the CNI configuration.
func (w *wiring) subnets() (list []netip.Prefix) {
	for name := range w.bridges {
		if b := w.interfaces[name]; b.Pods {
			for _, a := range b.Addresses {
				if !a.Addr().IsLinkLocalUnicast() && !a.IsSingleIP() {
					list = append(list, a.Masked())
				}
			}
		}
	}
	return list
}

// routed goes through the pods that are known by their routes alone. On a bridge
// they may send from any port that is not known to be another's, and only tags are
// dropped there.
func (w *wiring) routed() {
	for _, p := range w.pods {
		if len(p.Attachments) > 0 || !p.Enforceable() {
			continue
		}
		for _, a := range p.Addresses {
			l := w.links[a]
			if l.Interface == "" {
				continue
			}
			w.out.Sources = append(w.out.Sources, ruleset.Source{Interface: l.Interface, Address: a})
			if !l.Bridge {
				continue
			}
			w.out.Ports = append(w.out.Ports, l.Ports...)
			for _, port := range w.interfaces[l.Interface].Ports {
				if !w.owner[port] {
					w.out.PortSources = append(w.out.PortSources, ruleset.Source{Interface: port, Address: a})
				}
			}
		}
	}
}

// chooseRanges keeps the ranges whose addresses can be held without cutting off the
// LAN. Before the network is up nobody can tell: then only those count that a
// daemon has found to be good.
func (e *Enforcer) chooseRanges(all []netip.Prefix, w *wiring) {
	if e.cfg.Restoring {
		e.ranges = e.cfg.Ranges
		return
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	for _, r := range slices.Compact(all) {
		if reason := e.refuseRange(r, w); reason != "" {
			e.refusedRanges = append(e.refusedRanges, fmt.Sprintf("pod range %s is not held: %s; correct podRanges or the CNI configuration", r, reason))
			continue
		}
		e.ranges = append(e.ranges, r)
	}
}

func (e *Enforcer) refuseRange(r netip.Prefix, w *wiring) string {
	for _, hop := range e.nextHops {
		if r.Contains(hop) {
			return fmt.Sprintf("it holds the next hop %s of a route", hop)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.interfaces)) {
		i := w.interfaces[name]
		why := "which is not known to carry pods"
		if w.bridges[name] {
			why = "a bridge with pods and the LAN on it"
		}
		for _, a := range i.Addresses {
			// A single address is no network: flannel gives its tunnel one of the range.
			if r.Contains(a.Addr()) && !a.IsSingleIP() && !slices.Contains(w.out.Pods, name) {
				return fmt.Sprintf("it holds %s, an address of the gateway on %s, %s", a.Addr(), name, why)
			}
		}
	}
	return ""
}
