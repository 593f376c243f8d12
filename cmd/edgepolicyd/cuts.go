package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/conntrack"
	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// noDifference is what ruleset.CompareText says of equal tables.
const noDifference = "no difference\n"

// mostCuts is how many connections plan --diff names; the others are counted.
const mostCuts = 100

// cuts are the established connections that a change would cut.
type cuts struct {
	Count       int          `json:"count"`
	Connections []connection `json:"connections"`       // mostCuts at most
	Unknown     string       `json:"unknown,omitempty"` // why nobody can tell; then Count is 0
}

// connection is one of them.
type connection struct {
	From     connectionEnd `json:"from"` // who began it
	To       connectionEnd `json:"to"`
	Protocol string        `json:"protocol"` // "TCP", "ICMP", or a number
	Policies []string      `json:"policies"` // that isolate an end and do not allow it, "namespace/name"
	Reason   string        `json:"reason"`
}

// connectionEnd is one end as the pods see it: after DNAT, before SNAT.
type connectionEnd struct {
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port,omitempty"` // of protocols that have ports
	Pod     string     `json:"pod,omitempty"`  // "namespace/name"
	Gateway bool       `json:"gateway,omitempty"`
}

// connectionsCut judges the gateway's connections by what the daemon enforces and by
// what is planned; of is the pod that one end must be, or the zero Key.
func connectionsCut(ctx context.Context, client *status.Client, known status.Known, planned *inventory.Snapshot, o inventory.Options, of inventory.Key) (cuts, error) {
	c := cuts{Connections: []connection{}}
	st, err := client.Status(ctx)
	if err != nil {
		return c, err
	}
	if st.Health == status.Failed {
		c.Unknown = "what is known is not enforced: " + st.Reasons[0]
		return c, nil
	}
	now, err := inForce(ctx, known)
	if err != nil {
		return c, err
	}
	then := *planned
	then.Gateway = now.Gateway
	o.NeverIsolate = append(o.NeverIsolate[:len(o.NeverIsolate):len(o.NeverIsolate)], outside(st)...)
	err = conntrack.Flows(func(f conntrack.Flow) error {
		if ctx.Err() == nil && f.Established() {
			c.judge(f, now, &then, &o, of)
		}
		return ctx.Err()
	})
	switch {
	case ctx.Err() != nil:
		return c, ctx.Err()
	case errors.Is(err, os.ErrPermission):
		return cuts{Connections: []connection{}, Unknown: err.Error() + ": ask as root (sudo)"}, nil
	case err != nil:
		return cuts{Connections: []connection{}, Unknown: err.Error()}, nil
	}
	return c, nil
}

// inForce is the snapshot that the daemon enforces, with the gateway's addresses as
// they are now.
func inForce(ctx context.Context, known status.Known) (*inventory.Snapshot, error) {
	all, err := objects(known)
	if err != nil {
		return nil, err
	}
	facts, err := gateway.Read(ctx)
	if err != nil {
		return nil, err
	}
	return &inventory.Snapshot{Pods: all.Pods, Namespaces: all.Namespaces, Policies: all.Policies, Gateway: facts.Addresses}, nil
}

// outside are the pods whose traffic does not pass the table (S34): no policy cuts
// them off.
func outside(s status.Status) (keys []inventory.Key) {
	for _, u := range s.Unenforceable {
		namespace, name, _ := strings.Cut(u.Pod, "/")
		keys = append(keys, inventory.Key{Namespace: namespace, Name: name})
	}
	return keys
}

// judge adds a flow that is allowed now and denied then.
func (c *cuts) judge(f conntrack.Flow, now, then *inventory.Snapshot, o *inventory.Options, of inventory.Key) {
	if !policy.Evaluate(now, o, flowIn(now, f)).Allowed {
		return // cut already
	}
	flow := flowIn(then, f)
	v := policy.Evaluate(then, o, flow)
	if v.Allowed {
		return
	}
	from, to := endIn(now, flow.From, f.From()), endIn(now, flow.To, f.To())
	if of != (inventory.Key{}) && from.Pod != of.String() && to.Pod != of.String() {
		return
	}
	if c.Count++; c.Count > mostCuts {
		return
	}
	n := connection{From: from, To: to, Protocol: f.Original.Protocol.String()}
	var reasons []string
	for d, side := range [2]policy.Decision{inventory.Ingress: v.Ingress, inventory.Egress: v.Egress} {
		if side.Allowed {
			continue
		}
		reasons = append(reasons, fmt.Sprintf("%s: %s", inventory.Direction(d), side.Reason))
		for _, k := range side.Policies {
			n.Policies = append(n.Policies, k.String())
		}
	}
	n.Reason = strings.Join(reasons, "; ")
	c.Connections = append(c.Connections, n)
}

// flowIn is a connection as a snapshot's policies judge it. What the gateway sends
// itself has one of its addresses: what it only forwards has its first source.
func flowIn(s *inventory.Snapshot, f conntrack.Flow) policy.Flow {
	return policy.Flow{
		From: policy.EndpointAt(s, f.From().Addr()), To: policy.EndpointAt(s, f.To().Addr()),
		Protocol: f.Original.Protocol, Port: f.To().Port(),
	}
}

// endIn names an end by who it is now, or else will be.
func endIn(now *inventory.Snapshot, then policy.Endpoint, at netip.AddrPort) connectionEnd {
	is := policy.EndpointAt(now, at.Addr())
	if is.Pod == nil {
		is.Pod = then.Pod
	}
	e := connectionEnd{Address: at.Addr(), Port: at.Port(), Gateway: is.Gateway}
	if is.Pod != nil {
		e.Pod = is.Pod.Key.String()
	}
	return e
}

// text is what follows the difference of the tables. Where there is none and nothing
// is cut, that is nothing.
func (c cuts) text(differs bool) string {
	switch {
	case c.Unknown != "" && differs:
		return "\nwhich established connections would be cut can't be told: " + c.Unknown + "\n"
	case c.Count == 0 && differs:
		return "\nno established connection would be cut\n"
	case c.Count == 0:
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s would be cut:\n", count(c.Count, "established connection"))
	for _, n := range c.Connections {
		fmt.Fprintf(&b, "  %s -> %s: %s\n", n.From.text(""), n.To.text("/"+n.Protocol), n.Reason)
	}
	if more := c.Count - len(c.Connections); more > 0 {
		fmt.Fprintf(&b, "  and %d more\n", more)
	}
	return b.String()
}

// text gives "10.42.0.12:80/TCP (default/web)".
func (e connectionEnd) text(protocol string) string {
	text := e.Address.String()
	if e.Port != 0 {
		text = netip.AddrPortFrom(e.Address, e.Port).String()
	}
	text += protocol
	switch {
	case e.Pod != "":
		text += " (" + e.Pod + ")"
	case e.Gateway:
		text += " (" + policy.GatewayName + ")"
	}
	return text
}
