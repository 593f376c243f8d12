package conformance

import (
	"fmt"
	"net/netip"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// exchange is a conversation between two addresses, as conntrack knows it.
type exchange struct {
	from, to     netip.Addr
	protocol     inventory.Protocol
	source, port uint16 // source is the identifier of an ICMP echo

	sender, receiver *lab.Namespace // of a first packet, if they do not have from and to

	open bool   // a packet of from has come through, so that conntrack has it
	mark uint32 // the connection mark, as the table's judge has it
}

func (x *exchange) String() string {
	return fmt.Sprintf("%s:%d -> %s:%d %s", x.from, x.source, x.to, x.port, x.protocol)
}

// flow is what the evaluator is asked about a packet of from, or of to with
// reply. A reply that nobody has asked for is a flow of its own; and what the
// gateway answers goes on when its pod may not ask any more (S24, S29).
func (x *exchange) flow(s *inventory.Snapshot, reply bool) policy.Flow {
	f := policy.Flow{From: policy.EndpointAt(s, x.from), To: policy.EndpointAt(s, x.to), Protocol: x.protocol, Port: x.port}
	if reply && (!x.open || f.To.Gateway) {
		f.From, f.To, f.Port = f.To, f.From, x.source
	}
	return f
}

// packet is the same for the table.
func (x *exchange) packet(s *inventory.Snapshot, reply bool) ruleset.Packet {
	from, to := policy.EndpointAt(s, x.from), policy.EndpointAt(s, x.to)
	p := ruleset.Packet{Protocol: x.protocol, SourcePort: x.source, DestPort: x.port, HopLimit: 63, Mark: x.mark}
	if !x.protocol.HasPorts() {
		p.SourcePort, p.DestPort, p.ICMPv6Type = 0, 0, 128
	}
	if reply {
		from, to = to, from
		p.SourcePort, p.DestPort, p.Reply = p.DestPort, p.SourcePort, x.open
		if p.ICMPv6Type != 0 {
			p.ICMPv6Type = 129
		}
	}
	p.Source, p.Destination = from.Addr, to.Addr
	switch {
	case to.Gateway:
		p.Hook, p.InInterface = "input", "veth"
	case from.Gateway:
		p.Hook = "output"
	default:
		p.Hook, p.InInterface = "forward", "veth"
	}
	return p
}

const (
	tcpACK    = 0x10
	tcpSYNACK = 0x12
)

// probe is the same for the kernel.
func (x *exchange) probe(reply bool) lab.Probe {
	if !reply {
		return lab.Probe{From: x.sender, To: x.receiver, Src: x.from, Dst: x.to, Proto: x.protocol, SrcPort: x.source, DstPort: x.port}
	}
	p := lab.Probe{Src: x.to, Dst: x.from, Proto: x.protocol, SrcPort: x.port, DstPort: x.source}
	switch x.protocol {
	case inventory.TCP:
		p.TCPFlags = tcpSYNACK
		if !x.open && x.source%2 == 0 { // conntrack takes it for a connection that it has missed the beginning of
			p.TCPFlags = tcpACK
		}
	case inventory.ICMP:
		p.ICMP = []byte{0, 0, 0, 0, byte(x.source >> 8), byte(x.source), 0, 1}
	case inventory.ICMPv6:
		p.ICMP = []byte{129, 0, 0, 0, byte(x.source >> 8), byte(x.source), 0, 1}
	}
	return p
}

// The kinds of cells.
const (
	firstPacket = "first packet"         // of a new connection
	reply       = "reply"                // to a packet just sent
	unsolicited = "unsolicited reply"    // with nothing before it
	again       = "packet after changes" // of an exchange from before the last change
	lateReply   = "reply after changes"  // the first packet of an exchange after the last change
)

// cell is one packet and what each judge says of it.
type cell struct {
	kind      string
	x         *exchange
	reply     bool
	open      bool        // the exchange was open before
	flow      policy.Flow // that the packet is of
	evaluator policy.Verdict
	held      bool // whatever the evaluator says: it knows nothing of interfaces
	table     ruleset.Outcome
	kernel    bool
	mirror    *ruleset.Outcome // of a first packet: the table's verdict of its reply, if that had to be judged
}

// ask has the two judges judge that need no kernel.
func (c *cell) ask(s *inventory.Snapshot, o *inventory.Options, l law) {
	c.open, c.flow = c.x.open, c.x.flow(s, c.reply)
	c.evaluator = policy.Evaluate(s, o, c.flow)
	p, port := c.x.packet(s, c.reply), ""
	if l.port != nil {
		if port = l.port(p.Source); c.x.sender != nil && !c.reply {
			port = c.x.sender.HostInterface
		}
	}
	c.table, c.held = l.trace(p, port), l.held(s, p, port)
	if l.port != nil && l.unseen(p, port) {
		c.evaluator.Allowed = true // nobody asks about policies yet
	}
	c.mirror = nil
	if c.x.sender != nil {
		return
	}
	if c.kind == firstPacket && !c.flow.From.Gateway && !c.flow.To.Gateway {
		asked := *c.x
		asked.open = true
		p, port := asked.packet(s, true), ""
		if l.port != nil {
			port = l.port(p.Source)
		}
		m := l.trace(p, port)
		c.mirror = &m
	}
}

// agreed says whether the evaluator and the table agree.
func (c *cell) agreed() bool {
	want := c.want()
	return (c.table.Verdict == ruleset.Accept) == want && (c.mirror == nil || (c.mirror.Verdict == ruleset.Accept) == want)
}

// unanimous says whether all three do.
func (c *cell) unanimous() bool { return c.agreed() && c.kernel == c.want() }

// want is what all judges must say.
func (c *cell) want() bool { return c.evaluator.Allowed && !c.held }

// String tells the cell with the verdicts of the judges that need no kernel.
func (c *cell) String() string {
	var b strings.Builder
	state := "not open before"
	if c.open {
		state = "open before"
	}
	fmt.Fprintf(&b, "%s of %s, %s; judged as %s -> %s\n", c.kind, c.x, state, name(c.flow.From), name(c.flow.To))
	fmt.Fprintf(&b, "  evaluator: %s (egress: %s; ingress: %s)\n", verdict(c.evaluator.Allowed), c.evaluator.Egress.Reason, c.evaluator.Ingress.Reason)
	if c.held {
		b.WriteString("  held, whatever the evaluator says\n")
	}
	writeOutcome(&b, "table", c.table)
	if c.mirror != nil {
		writeOutcome(&b, "table, of the reply", *c.mirror)
	}
	return b.String()
}

func writeOutcome(b *strings.Builder, judge string, o ruleset.Outcome) {
	fmt.Fprintf(b, "  %s: %s\n", judge, verdict(o.Verdict == ruleset.Accept))
	for _, step := range o.Steps {
		fmt.Fprintf(b, "    %s: %s\n", step.Chain, step.Rule.Text())
	}
}

func verdict(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "denied"
}

func name(e policy.Endpoint) string {
	switch {
	case e.Gateway:
		return fmt.Sprintf("gateway (%s)", e.Addr)
	case e.Pod != nil:
		return fmt.Sprintf("%s (%s)", e.Pod.Key, e.Addr)
	}
	return e.Addr.String()
}
