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
}

// wirings take turns from seed to seed.
var wirings = [...]wiring{{}, {known: true, hold: true}, {known: true}, {known: true, hold: true, some: true}}

func wiringOf(seed uint64) wiring { return wirings[seed%uint64(len(wirings))] }

func (w wiring) String() string {
	switch {
	case !w.known:
		return "interfaces unknown"
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
	if i.Hold {
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
			if c.Kind == lab.Bridge {
				i.Sources = append(i.Sources, ruleset.Source{Interface: lab.BridgeName, Address: a})
				i.PortSources = append(i.PortSources, ruleset.Source{Interface: port, Address: a})
			} else {
				i.Sources = append(i.Sources, ruleset.Source{Interface: port, Address: a})
			}
		}
	}
	if c.Kind == lab.Routed {
		i.Pods = slices.Sorted(maps.Keys(owned))
		return i
	}
	i.Pods, i.Checked = []string{lab.BridgeName}, slices.Sorted(maps.Keys(owned))
	for _, n := range c.pods {
		if !c.wiring.some || slices.ContainsFunc(n.Addresses, func(a netip.Addr) bool { return s.PodAt(a) != nil }) {
			i.Ports = append(i.Ports, n.HostInterface)
		}
	}
	slices.Sort(i.Ports)
	if i.Hold {
		i.Checked = i.Ports
	}
	for _, p := range s.Pods {
		if !p.Enforceable() || c.wiring.attached(p) {
			continue
		}
		for _, a := range p.Addresses {
			i.Sources = append(i.Sources, ruleset.Source{Interface: lab.BridgeName, Address: a})
			for _, port := range i.Ports {
				if !owned[port] {
					i.PortSources = append(i.PortSources, ruleset.Source{Interface: port, Address: a})
				}
			}
		}
	}
	return i
}

// law is what the gateway's kernel holds, and where addresses hang.
type law struct {
	inet   *ruleset.Table
	bridge *ruleset.Table                 // of the bridge family, nil for none
	ports  []string                       // of the bridge, that are known, if all are checked
	port   func(netip.Addr) string        // nil: nobody asks for interfaces
	kind   lab.Kind                       // of what pods hang on
	wiring wiring                         // of which the tables know
	pods   map[string]map[netip.Addr]bool // what each attached pod's port may send from
}

// law gives the one in force.
func (c *court) law() law {
	l := law{inet: c.actual, bridge: c.bridgeActual, port: c.end, kind: c.Kind, wiring: c.wiring, pods: map[string]map[netip.Addr]bool{}}
	if c.snapshot == nil {
		return l
	}
	for _, p := range c.snapshot.Pods {
		if c.wiring.hold && p.Enforceable() {
			l.ports = append(l.ports, c.end(p.Addresses[0]))
		}
		if c.wiring.attached(p) {
			own := map[netip.Addr]bool{}
			for _, a := range p.Addresses {
				own[a] = true
			}
			l.pods[c.end(p.Addresses[0])] = own
		}
	}
	return l
}

// trace sends a packet through the tables, from a port.
func (l *law) trace(p ruleset.Packet, port string) ruleset.Outcome {
	if l.port == nil || p.Hook == "output" {
		return l.inet.Trace(p)
	}
	bridged := func(port string) string {
		if l.kind == lab.Bridge && port != lab.UplinkName && port != "" {
			return lab.BridgeName
		}
		return port
	}
	out := ""
	if p.Hook == "forward" {
		if out = l.port(p.Destination); l.kind == lab.Bridge && isLocal(p.Destination) {
			out = lab.BridgeName // some port
		}
	}
	if l.bridge != nil && bridged(port) == lab.BridgeName {
		// Trace knows the hooks of the inet family: the bridge's first takes the place of one.
		first := ruleset.Table{Sets: l.bridge.Sets, Chains: map[string]*ruleset.Chain{
			"forward": {Name: "forward", Hook: &ruleset.Hook{Name: "prerouting"}, Rules: l.bridge.Chains["prerouting"].Rules},
		}}
		frame := p
		frame.Hook, frame.InInterface, frame.OutInterface = "prerouting", port, out
		o := first.Trace(frame)
		if frame.Hook = "forward"; o.Verdict == ruleset.Accept && bridged(out) == lab.BridgeName {
			o = l.bridge.Trace(frame)
		}
		if o.Verdict != ruleset.Accept {
			return o
		}
	}
	p.OutInterface = bridged(out)
	p.InInterface = bridged(port)
	return l.inet.Trace(p)
}

// held says what the evaluator knows nothing of: the exception of S11, and what the
// hold of unknown addresses says. It is not made from the tables.
func (l *law) held(s *inventory.Snapshot, p ruleset.Packet, port string) bool {
	if !l.wiring.known || p.Hook == "output" {
		return false
	}
	between := l.kind == lab.Bridge && port != lab.UplinkName && p.Hook == "forward" && l.port(p.Destination) != lab.UplinkName
	unknown := func(a netip.Addr) bool {
		return (range4.Contains(a) || range6.Contains(a)) && s.PodAt(a) == nil && !slices.Contains(s.Gateway, a)
	}
	pod, own := s.PodAt(p.Source), l.pods[port]
	onBridge := l.kind == lab.Bridge && port != lab.UplinkName
	answer := p.Hook == "input" && p.Reply // to what the gateway asked (S24)
	switch {
	case own != nil && !own[p.Source]: // an attached pod that sends as somebody else
		if pod != nil || isLocal(p.Source) || l.wiring.hold || between {
			return true
		}
	case own == nil && onBridge && l.wiring.hold && !answer: // a port that nobody knows
		fresh := l.wiring.some && !slices.Contains(l.ports, port)
		if pod == nil || l.wiring.attached(pod) && !fresh || between && fresh {
			return true
		}
	}
	if p.Hook == "forward" && (isLocal(p.Destination) || onBridge && isLocal(p.Source)) {
		return true
	}
	return l.wiring.hold && !answer && (port != lab.UplinkName && unknown(p.Source) || p.Hook == "forward" && unknown(p.Destination))
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
