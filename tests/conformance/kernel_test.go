package conformance

import (
	"context"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/conntrack"
	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

const tableName = "edgepolicyd"

// court is a lab whose gateway enforces one snapshot after the other, each by
// the difference to the one before.
type court struct {
	*lab.Lab
	t       testing.TB
	own     []netip.Addr // the gateway's addresses
	outside []netip.Addr
	pods    []*lab.Namespace

	options      *inventory.Options
	resolver     *policy.Resolver
	compiler     *ruleset.Compiler
	snapshot     *inventory.Snapshot
	conn         *nft.Conn
	actual       *ruleset.Table
	wiring       wiring
	bridge       *nft.Conn // on a bridge
	bridgeActual *ruleset.Table
	young        bool        // the bridge shows the inet hooks nothing yet
	bumps        int         // since the last sweep of stale stamps
	port         uint16      // the last source port
	since        int         // changes since conntrack was emptied
	carried      []*exchange // from earlier snapshots
}

func newCourt(t testing.TB, kind lab.Kind) *court {
	c := &court{Lab: lab.ForTest(t, lab.Topology{Kind: kind}), t: t}
	c.must(c.AddOutside(addrs("192.168.254.77", "192.0.2.10", "192.0.2.11", "198.51.100.7", "fd00:254::77", "2001:db8::10", "2001:db8::11", "2001:db8:1::7")...))
	for range 10 {
		c.addPod()
	}
	silence(c.t, c.Outside)
	c.outside, c.own = slices.Clone(c.Outside.Addresses), slices.Clone(c.Gateway.Addresses)
	if kind == lab.Routed {
		c.own = append(c.own, netip.MustParseAddr("169.254.1.1")) // what routed pods have as next hop
	}
	_, err := c.Gateway.Run("sysctl", "-wq",
		// Probes acknowledge nothing, and what is open may have to wait for a busy machine.
		"net.netfilter.nf_conntrack_tcp_be_liberal=1",
		"net.netfilter.nf_conntrack_udp_timeout=600", "net.netfilter.nf_conntrack_udp_timeout_stream=600",
		"net.netfilter.nf_conntrack_tcp_timeout_syn_sent=600", "net.netfilter.nf_conntrack_tcp_timeout_syn_recv=600",
		"net.netfilter.nf_conntrack_tcp_timeout_close=600", "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged=600",
		"net.netfilter.nf_conntrack_sctp_timeout_cookie_wait=600", "net.netfilter.nf_conntrack_sctp_timeout_closed=600",
		"net.netfilter.nf_conntrack_icmp_timeout=600", "net.netfilter.nf_conntrack_icmpv6_timeout=600")
	c.must(err)
	c.must(c.Gateway.Do(func() (err error) {
		if kind == lab.Bridge {
			if _, err := gateway.EnableBridgeFilter(lab.BridgeName); err != nil {
				return err
			}
		}
		if kind == lab.Bridge {
			if c.bridge, err = nft.OpenBridge(tableName); err != nil {
				return err
			}
		}
		c.conn, err = nft.Open(tableName)
		return err
	}))
	t.Cleanup(func() {
		c.conn.Close()
		if c.bridge != nil {
			c.bridge.Close()
		}
	})
	c.must(c.conn.Claim())
	return c
}

func addrs(text ...string) []netip.Addr {
	var list []netip.Addr
	for _, a := range text {
		list = append(list, netip.MustParseAddr(a))
	}
	return list
}

func (c *court) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *court) addPod() *lab.Namespace {
	n, err := c.AddPod(fmt.Sprintf("pod%d", len(c.pods)))
	c.must(err)
	silence(c.t, n)
	c.pods = append(c.pods, n)
	return n
}

// silence has a namespace's own stack answer nothing: a TCP reset, for one, would
// end the connection that a probe has begun. Probes are seen before that.
func silence(t testing.TB, n *lab.Namespace) {
	_, err := n.RunInput(`table inet silence {
	chain input {
		type filter hook input priority 0; policy drop
		iif "lo" accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
	}
}
`, "nft", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
}

// place gives each pod of the snapshot a namespace with its addresses, those that
// have ended included, as long as nobody else has their addresses. A pod stays
// where an address of it is.
func (c *court) place(s *inventory.Snapshot) {
	var wanted [][]netip.Addr
	taken := map[netip.Addr]bool{}
	for _, alive := range []bool{true, false} {
		for _, p := range s.Pods {
			if p.HostNetwork || p.Enforceable() != alive {
				continue
			}
			var list []netip.Addr
			for _, a := range p.Addresses {
				if !taken[a] {
					taken[a] = true
					list = append(list, a)
				}
			}
			if len(list) > 0 {
				wanted = append(wanted, list)
			}
		}
	}
	used := map[*lab.Namespace]bool{}
	homes := make([]*lab.Namespace, len(wanted))
	for i, list := range wanted {
		for _, a := range list {
			if n := c.Owner(a); n != nil && !used[n] {
				homes[i], used[n] = n, true
				break
			}
		}
	}
	for i, list := range wanted {
		if homes[i] == nil {
			homes[i] = c.unused(used)
			used[homes[i]] = true
		}
		c.must(c.Readdress(homes[i], list...))
	}
	for _, n := range c.pods {
		if !used[n] && len(n.Addresses) > 0 {
			c.must(c.Readdress(n))
		}
	}
}

func (c *court) unused(used map[*lab.Namespace]bool) *lab.Namespace {
	for _, n := range c.pods {
		if !used[n] {
			return n
		}
	}
	return c.addPod()
}

// configure begins anew with other settings, on the table that is there, as a
// daemon does that is started with another configuration.
func (c *court) configure(o *inventory.Options) {
	if c.options == nil || c.options.MarkMask != o.MarkMask {
		c.forget() // the daemon looks for an epoch that no connection carries
	}
	c.options, c.resolver, c.compiler, c.snapshot = o, policy.NewResolver(o), ruleset.NewCompiler(tableName, o), nil
}

// forget empties conntrack, so that source ports can be used again.
func (c *court) forget() {
	c.must(c.FlushConntrack())
	c.carried, c.port, c.since = nil, 1023, 0
}

// enforce brings pods and table in line with a snapshot.
func (c *court) enforce(s *inventory.Snapshot) {
	keepPointers(c.snapshot, s)
	c.snapshot = s
	if c.since++; c.since > 16 || c.port > 50000 {
		c.forget()
	}
	c.place(s)
	inet, bridge := c.compile(c.compiler, c.resolver, s)
	c.apply(inet)
	c.applyBridge(bridge)
}

// firstMark is used where the table in force has no epoch of this mask.
func (c *court) firstMark() ruleset.Mark {
	m, _ := ruleset.Mark{Mask: c.options.MarkMask}.Next()
	return m
}

// apply brings the kernel in line with a table, and clears stale stamps long
// before their epoch comes again, as the daemon does.
func (c *court) apply(desired *ruleset.Table) {
	change := ruleset.Diff(c.actual, desired)
	c.must(c.conn.Apply(change.Transactions))
	c.actual = change.Target
	if !change.Restricts {
		return
	}
	if c.bumps++; c.bumps >= (1<<bits.OnesCount32(c.options.MarkMask)-1)/2 {
		c.sweep(c.actual.Mark.Epoch)
		c.bumps = 0
	}
}

// sweep clears all stamps but that of one epoch.
func (c *court) sweep(keep uint32) {
	c.must(c.Gateway.Do(func() error {
		_, err := conntrack.Sweep(c.options.MarkMask, keep)
		return err
	}))
	for _, x := range c.carried {
		if x.mark&c.options.MarkMask != keep {
			x.mark &^= c.options.MarkMask
		}
	}
}

// keepPointers gives objects that did not change the pointers that they had, as
// the sources do.
func keepPointers(old, fresh *inventory.Snapshot) {
	if old == nil {
		return
	}
	keep(old.Pods, fresh.Pods, func(p *inventory.Pod) *inventory.Head { return &p.Head })
	keep(old.Namespaces, fresh.Namespaces, func(n *inventory.Namespace) *inventory.Head { return &n.Head })
	keep(old.Policies, fresh.Policies, func(p *inventory.Policy) *inventory.Head { return &p.Head })
}

func keep[T any](old, fresh []*T, head func(*T) *inventory.Head) {
	known := map[inventory.Key]*T{}
	for _, o := range old {
		known[head(o).Key] = o
	}
	for i, f := range fresh {
		if o := known[head(f).Key]; o != nil && string(head(o).JSON) == string(head(f).JSON) {
			fresh[i] = o
		}
	}
}

// judge has the three judges judge packets, in their order.
func (c *court) judge(cells []*cell) {
	probes := make([]lab.Probe, len(cells))
	l := c.law()
	for i, ce := range cells {
		ce.ask(c.snapshot, c.options, l)
		probes[i] = ce.x.probe(ce.reply)
	}
	arrived, err := c.Probe(context.Background(), probes)
	c.must(err)
	for i, ce := range cells {
		ce.kernel = arrived[i]
		if ce.x.open || !ce.reply && ce.kernel {
			ce.x.open, ce.x.mark = true, ce.table.Mark
		}
	}
}

// newExchange begins an exchange with a source port that was not used before.
func (c *court) newExchange(f policy.Flow) *exchange {
	c.port++
	return &exchange{from: f.From.Addr, to: f.To.Addr, protocol: f.Protocol, source: c.port, port: f.Port}
}
