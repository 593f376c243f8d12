package conformance

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// wiring is how much of the pods' interfaces the gateway knows.
type wiring struct {
	known bool // by CNI results
	hold  bool
	some  bool // a third of the pods has none, and ports without pods are too new to be known
	bare  bool // no range of pods' addresses is known
}

// wirings take turns from seed to seed.
var wirings = [...]wiring{{}, {known: true, hold: true}, {known: true}, {known: true, hold: true, some: true}, {known: true, hold: true, some: true, bare: true}}

func wiringOf(seed uint64) wiring { return wirings[seed%uint64(len(wirings))] }

func (w wiring) String() string {
	switch {
	case !w.known:
		return "interfaces unknown"
	case w.bare:
		return "some interfaces known, hold, no ranges"
	case w.some:
		return "some interfaces known, hold"
	case w.hold:
		return "interfaces known, hold"
	}
	return "interfaces known"
}

// attached says whether a CNI result tells of a pod.
func (w wiring) attached(p *inventory.Pod) bool {
	return w.known && p.Enforceable() && !(w.some && p.Key.Name[len(p.Key.Name)-1]%3 == 0)
}

// end is the gateway's end of the namespace that has an address.
func (c *court) end(a netip.Addr) string {
	switch n := c.Owner(a); n {
	case nil, c.Gateway:
		return ""
	default:
		return n.HostInterface
	}
}

// interfaces gives what the daemon knows of them after pods were placed: see wire
// in package enforce.
func (c *court) interfaces(s *inventory.Snapshot) (i ruleset.Interfaces) {
	if !c.wiring.known {
		return i
	}
	i.Hold, i.Others = c.wiring.hold, []string{"lo", lab.UplinkName}
	if i.Hold && !c.wiring.bare {
		i.Ranges = policy.Ranges([]netip.Prefix{range4, range6}, c.own)
	}
	owned := map[string]bool{}
	for _, p := range s.Pods {
		if !c.wiring.attached(p) {
			continue
		}
		port := c.end(p.Addresses[0])
		owned[port] = true
		for _, a := range p.Addresses {
			i.Sources = append(i.Sources, ruleset.Source{Interface: c.via(port), Address: a})
			if c.Kind == lab.Bridge {
				i.PortSources = append(i.PortSources, ruleset.Source{Interface: port, Address: a})
			}
		}
	}
	if c.Kind == lab.Routed {
		i.Pods = slices.Sorted(maps.Keys(owned))
	} else {
		i.Pods, i.Known, i.Ports = []string{lab.BridgeName}, slices.Sorted(maps.Keys(owned)), c.listed(s)
		i.Checked = i.Known
		if i.Hold {
			i.Checked = i.Ports
		}
	}
	c.addRouted(&i, s, owned)
	return i
}

// via is the interface that the inet hooks see for a port.
func (c *court) via(port string) string { return via(c.Kind, port) }

func via(kind lab.Kind, port string) string {
	if kind == lab.Bridge && port != lab.UplinkName && port != "" {
		return lab.BridgeName
	}
	return port
}

// listed gives the bridge's ports that are known of.
func (c *court) listed(s *inventory.Snapshot) (list []string) {
	for _, n := range c.pods {
		if !c.wiring.some || slices.ContainsFunc(n.Addresses, func(a netip.Addr) bool { return s.PodAt(a) != nil }) {
			list = append(list, n.HostInterface)
		}
	}
	slices.Sort(list)
	return list
}

// addRouted adds the pods that are known by their routes alone.
func (c *court) addRouted(i *ruleset.Interfaces, s *inventory.Snapshot, owned map[string]bool) {
	for _, p := range s.Pods {
		if !p.Enforceable() || c.wiring.attached(p) {
			continue
		}
		for _, a := range p.Addresses {
			i.Sources = append(i.Sources, ruleset.Source{Interface: c.via(c.end(a)), Address: a})
			for _, port := range i.Ports {
				if !owned[port] {
					i.PortSources = append(i.PortSources, ruleset.Source{Interface: port, Address: a})
				}
			}
		}
	}
}

// law is what the gateway's kernel holds, and where addresses hang.
type law struct {
	inet   *ruleset.Table
	bridge *ruleset.Table                 // of the bridge family, nil for none
	used   map[string]bool                // interfaces that have pods
	port   func(netip.Addr) string        // nil: nobody asks for interfaces
	kind   lab.Kind                       // of what pods hang on
	wiring wiring                         // of which the tables know
	young  bool                           // what passes between ports meets the bridge's table alone
	pods   map[string]map[netip.Addr]bool // what each attached pod's port may send from
}

// law gives the one in force.
func (c *court) law() law {
	l := law{inet: c.actual, bridge: c.bridgeActual, port: c.end, kind: c.Kind, wiring: c.wiring, young: c.young, used: map[string]bool{}, pods: map[string]map[netip.Addr]bool{}}
	if c.snapshot == nil {
		return l
	}
	for _, p := range c.snapshot.Pods {
		if !p.Enforceable() {
			continue
		}
		port := c.end(p.Addresses[0])
		l.used[port] = true
		if c.wiring.attached(p) {
			own := map[netip.Addr]bool{}
			for _, a := range p.Addresses {
				own[a] = true
			}
			l.pods[port] = own
		}
	}
	return l
}

// trace sends a packet through the tables, from a port.
func (l *law) trace(p ruleset.Packet, port string) ruleset.Outcome {
	if l.port == nil || p.Hook == "output" {
		return l.inet.Trace(p)
	}
	out := l.out(p)
	if l.bridge != nil && via(l.kind, port) == lab.BridgeName {
		// Trace knows the hooks of the inet family: the bridge's first takes the place of one.
		first := ruleset.Table{Sets: l.bridge.Sets, Chains: maps.Clone(l.bridge.Chains)}
		first.Chains["forward"] = &ruleset.Chain{Name: "forward", Hook: &ruleset.Hook{Name: "prerouting"}, Rules: l.bridge.Chains["prerouting"].Rules}
		frame := p
		frame.Hook, frame.InInterface, frame.OutInterface = "prerouting", port, out
		o := first.Trace(frame)
		if frame.Hook = "forward"; o.Verdict == ruleset.Accept && via(l.kind, out) == lab.BridgeName {
			o = l.bridge.Trace(frame)
		}
		if o.Verdict != ruleset.Accept {
			return o
		}
	}
	if l.unseen(p, port) {
		return ruleset.Outcome{Verdict: ruleset.Accept, Mark: p.Mark}
	}
	p.InInterface, p.OutInterface = via(l.kind, port), via(l.kind, out)
	return l.inet.Trace(p)
}

// out is where a packet goes: a port, if it is forwarded.
func (l *law) out(p ruleset.Packet) string {
	switch {
	case p.Hook != "forward":
		return ""
	case l.kind == lab.Bridge && isLocal(p.Destination):
		return lab.BridgeName // some port
	}
	return l.port(p.Destination)
}

// unseen says whether the inet hooks don't see a packet.
func (l *law) unseen(p ruleset.Packet, port string) bool {
	return l.young && via(l.kind, port) == lab.BridgeName && via(l.kind, l.out(p)) == lab.BridgeName
}

// held says what the evaluator knows nothing of: the exception of S11, and what the
// hold of unknown addresses says. It is not made from the tables.
func (l *law) held(s *inventory.Snapshot, p ruleset.Packet, port string) bool {
	if !l.wiring.known || p.Hook == "output" {
		return false
	}
	return l.foreign(s, p, port) || p.Hook == "forward" && !l.unseen(p, port) && l.nobody(s, p.Destination)
}

// nobody says whether what goes to an address is held because no pod is known there.
func (l *law) nobody(s *inventory.Snapshot, to netip.Addr) bool {
	return isLocal(to) || l.wiring.hold && s.PodAt(to) == nil && (l.inRanges(s, to) || via(l.kind, l.port(to)) == lab.BridgeName)
}

// foreign says whether a packet is held because its source is not known to be where
// it comes from.
func (l *law) foreign(s *inventory.Snapshot, p ruleset.Packet, port string) bool {
	if port == lab.UplinkName {
		return false // carries no pods
	}
	pod, own, onBridge := s.PodAt(p.Source), l.pods[port], l.kind == lab.Bridge
	answer := p.Hook == "input" && p.Reply // to what the gateway asked (S24)
	if own != nil {                        // an attached pod's
		return !own[p.Source] && (onBridge || !answer && (l.wiring.hold || pod != nil || isLocal(p.Source)))
	}
	if pod != nil && !l.wiring.attached(pod) && (l.port(p.Source) == port || onBridge && (l.used[port] || !l.wiring.some)) {
		return false // known by its route: on a bridge it may be any port's that is known of
	}
	unseen := l.unseen(p, port)
	if !l.wiring.hold {
		return onBridge && !unseen && !answer && isLocal(p.Source)
	}
	if pod != nil {
		return onBridge || !answer
	}
	return !answer && (onBridge && !(unseen && l.wiring.some && !l.used[port]) || l.inRanges(s, p.Source))
}

// inRanges says whether an address is of the pod ranges that are known, and not the
// gateway's.
func (l *law) inRanges(s *inventory.Snapshot, a netip.Addr) bool {
	return !l.wiring.bare && (range4.Contains(a) || range6.Contains(a)) && !slices.Contains(s.Gateway, a)
}

// isLocal says whether an address belongs to a link, not to a pod.
func isLocal(a netip.Addr) bool {
	return a.IsLinkLocalUnicast() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// compile gives the tables that a snapshot needs, by a compiler.
func (c *court) compile(compiler *ruleset.Compiler, resolver *policy.Resolver, s *inventory.Snapshot) (inet, bridge *ruleset.Table) {
	compiler.Interfaces = c.interfaces(s)
	return compiler.Compile(resolver.Update(s), c.firstMark()), compiler.Interfaces.CompileBridge(tableName)
}

// applyBridge brings the table of the bridge family in line.
func (c *court) applyBridge(desired *ruleset.Table) {
	if c.bridge == nil {
		return
	}
	if desired == nil {
		if c.bridgeActual != nil {
			_, err := c.bridge.Delete()
			c.must(err)
			c.bridgeActual = nil
		}
		return
	}
	if c.bridgeActual == nil {
		c.must(c.bridge.Claim())
	}
	change := ruleset.Diff(c.bridgeActual, desired)
	c.must(c.bridge.Apply(change.Transactions))
	c.bridgeActual = change.Target
}

// readBack holds what the kernel holds against what was sent.
func (c *court) readBack() error {
	got, err := c.conn.Read()
	if err == nil && got.Text(nil) != c.actual.Text(nil) {
		err = fmt.Errorf("the kernel holds another table than was sent:\n%s", ruleset.CompareText(c.actual.Text(nil), got.Text(nil)))
	}
	if err != nil || c.bridgeActual == nil {
		return err
	}
	got, err = c.bridge.Read()
	if err == nil && got.Text(nil) != c.bridgeActual.Text(nil) {
		err = fmt.Errorf("the kernel holds another bridge table than was sent:\n%s", ruleset.CompareText(c.bridgeActual.Text(nil), got.Text(nil)))
	}
	return err
}
