package preflight

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// feature is something that the daemon's tables need of the kernel.
type feature struct {
	id, what       string
	option, module string // of the kernel, as of 6.1
	base           bool   // without it nothing of the same family can be tried
	table          *ruleset.Table
	try            func() error                                   // in place of the table
	needed         func(context.Context, *Host) (Severity, error) // nil: always
}

// table makes the smallest table with a chain of rules.
func table(rules ...ruleset.Rule) *ruleset.Table {
	return &ruleset.Table{
		Counters: map[string]bool{}, Sets: map[string]*ruleset.Set{},
		Chains: map[string]*ruleset.Chain{"c": {Name: "c", Rules: rules}},
	}
}

func rule(list ...ruleset.Expr) ruleset.Rule { return ruleset.Rule{Exprs: list} }

// matching is a table with a rule for each expression.
func matching(list ...ruleset.Expr) *ruleset.Table {
	t := table()
	for _, e := range list {
		t.Chains["c"].Rules = append(t.Chains["c"].Rules, rule(e))
	}
	return t
}

// looking is a table with a set, and a rule for each key that is looked up in it.
func looking(s ruleset.Set, keys ...ruleset.Fields) *ruleset.Table {
	s.Name = "s"
	t := table()
	t.Sets["s"] = &s
	for _, k := range keys {
		t.Chains["c"].Rules = append(t.Chains["c"].Rules, rule(ruleset.Lookup{Key: k, Set: "s"}), rule(ruleset.Lookup{Key: k, Set: "s", Not: true}))
	}
	return t
}

func types(list ...ruleset.Type) []ruleset.Type { return list }

// hooked is a table with base chains, all at priority 0, of a family.
func hooked(f ruleset.Family, hooks ...string) *ruleset.Table {
	t := &ruleset.Table{Family: f, Chains: map[string]*ruleset.Chain{}}
	for _, h := range hooks {
		t.Chains[h] = &ruleset.Chain{Name: h, Hook: &ruleset.Hook{Name: h}}
	}
	return t
}

// bridged makes a table one of the bridge family.
func bridged(t *ruleset.Table) *ruleset.Table {
	t.Family = ruleset.FamilyBridge
	return t
}

var (
	address4 = ruleset.Fields{ruleset.IPSource}
	address6 = ruleset.Fields{ruleset.IP6Source}
	range4   = []ruleset.Element{{Key: "\x0a\x00\x00\x00", Last: "\x0a\x00\x00\xff"}}
)

// verdicts is a table in which a map and rules lead to other chains.
func verdicts(rules ...ruleset.Rule) *ruleset.Table {
	t := table(rules...)
	t.Chains["to"] = &ruleset.Chain{Name: "to", Rules: []ruleset.Rule{rule(ruleset.Verdict{Kind: ruleset.Return})}}
	t.Sets["m"] = &ruleset.Set{Name: "m", Key: types(ruleset.TypeIPv4), Verdicts: true, Size: 8, Elements: []ruleset.Element{{Key: "\x0a\x00\x00\x01", Jump: "to"}}}
	return t
}

// features are tried in this order. All that the compiler makes is among them, which
// a test sees to.
var features = []feature{
	{id: "nf_tables", what: "nftables tables", option: "NF_TABLES", module: "nf_tables", base: true, table: &ruleset.Table{}},
	{id: "inet", what: "base chains of the inet family", option: "NF_TABLES_INET", module: "nf_tables", base: true, table: hooked(ruleset.FamilyINet, "forward", "input")},
	{id: "counters", what: "named counters", option: "NFT_COUNTER", module: "nft_counter", table: func() *ruleset.Table {
		t := matching(ruleset.Count{Counter: "n"})
		t.Counters["n"] = true
		return t
	}()},
	{id: "payload", what: "matches of addresses and hop limits", option: "NF_TABLES", module: "nf_tables", table: matching(
		ruleset.Match{Field: ruleset.IPSource, Value: "10.0.0.1"}, ruleset.Match{Field: ruleset.IPDestination, Value: "10.0.0.1"},
		ruleset.Match{Field: ruleset.IP6Source, Value: "fd00::1"}, ruleset.Match{Field: ruleset.IP6Destination, Value: "ff00::/8"},
		ruleset.Match{Field: ruleset.HopLimit, Value: "255"})},
	{id: "meta", what: "matches of interfaces, families and protocols", option: "NF_TABLES", module: "nft_meta", table: matching(
		ruleset.Match{Field: ruleset.InInterface, Value: "lo"}, ruleset.Match{Field: ruleset.OutInterface, Value: "lo"},
		ruleset.Match{Field: ruleset.NFProto, Value: "ipv6"}, ruleset.Match{Field: ruleset.L4Proto, Value: "tcp"})},
	{id: "verdicts", what: "accept, drop, return, jump and goto", option: "NF_TABLES", module: "nf_tables", table: verdicts(
		rule(ruleset.Verdict{Kind: ruleset.Accept}), rule(ruleset.Verdict{Kind: ruleset.Drop}),
		rule(ruleset.Verdict{Kind: ruleset.Jump, Chain: "to"}), rule(ruleset.Verdict{Kind: ruleset.Goto, Chain: "to"}))},
	{id: "sets", what: "sets with a size", option: "NF_TABLES", module: "nf_tables_set", table: looking(ruleset.Set{Key: types(ruleset.TypeIPv4), Size: 8}, address4, ruleset.Fields{ruleset.IPDestination})},
	{id: "sets-ipv6", what: "sets of IPv6 addresses", option: "NF_TABLES", module: "nf_tables_set", table: looking(ruleset.Set{Key: types(ruleset.TypeIPv6), Size: 8}, address6, ruleset.Fields{ruleset.IP6Destination})},
	{id: "interface-sets", what: "sets of interfaces", option: "NF_TABLES", module: "nf_tables_set", table: looking(ruleset.Set{Key: types(ruleset.TypeInterface), Size: 8}, ruleset.Fields{ruleset.InInterface}, ruleset.Fields{ruleset.OutInterface})},
	{id: "icmp-sets", what: "sets of ICMPv6 types", option: "NF_TABLES", module: "nf_tables_set", table: looking(ruleset.Set{Key: types(ruleset.TypeICMPv6), Size: 8}, ruleset.Fields{ruleset.ICMPv6Type})},
	{id: "intervals", what: "sets of ranges", option: "NF_TABLES", module: "nf_tables_set", table: looking(ruleset.Set{Key: types(ruleset.TypeIPv4), Interval: true, Elements: range4}, address4, ruleset.Fields{ruleset.IPDestination})},
	{id: "concatenations", what: "sets of addresses with protocols and ports, and of interfaces with addresses", option: "NF_TABLES", module: "nf_tables_set", table: looking(
		ruleset.Set{Key: types(ruleset.TypeIPv4, ruleset.TypeProtocol, ruleset.TypePort), Size: 8},
		ruleset.Fields{ruleset.IPSource, ruleset.L4Proto, ruleset.DestPort}, ruleset.Fields{ruleset.IPDestination, ruleset.L4Proto, ruleset.SourcePort})},
	{id: "range-concatenations", what: "sets of protocols with ranges of ports (Linux 5.6)", option: "NF_TABLES", module: "nf_tables_set", table: looking(
		ruleset.Set{Key: types(ruleset.TypeProtocol, ruleset.TypePort), Interval: true, Elements: []ruleset.Element{{Key: "\x06\x00\x00\x00\x00\x50\x00\x00", Last: "\x06\x00\x00\x00\x00\x60\x00\x00"}}},
		ruleset.Fields{ruleset.L4Proto, ruleset.DestPort})},
	{id: "timeouts", what: "sets that rules add to, and that forget", option: "NF_TABLES", module: "nft_dynset", table: func() *ruleset.Table {
		t := matching(ruleset.Note{Field: ruleset.IPSource, Set: "s"})
		t.Sets["s"] = &ruleset.Set{Name: "s", Key: types(ruleset.TypeIPv4), Size: 8, Timeout: 30}
		return t
	}()},
	{id: "verdict-maps", what: "verdict maps", option: "NF_TABLES", module: "nf_tables", table: verdicts(rule(ruleset.VerdictMap{Field: ruleset.IPSource, Map: "m"}))},
	{id: "ct-state", what: "matches of a connection's state", option: "NFT_CT", module: "nft_ct", table: matching(ruleset.Related, ruleset.Valid)},
	{id: "ct-direction", what: "matches of a connection's direction", option: "NFT_CT", module: "nft_ct", table: matching(ruleset.Reply)},
	{id: "ct-status", what: "matches of a connection's status", option: "NFT_CT", module: "nft_ct", table: matching(ruleset.DNATed)},
	{id: "ct-mark", what: "matches of the connection mark", option: "NF_CONNTRACK_MARK", module: "nft_ct", table: matching(ruleset.MarkIs{Mask: 0xff, Value: 1}, ruleset.MarkIs{Mask: 0xff, Not: true})},
	{id: "ct-mark-set", what: "rules that write the connection mark", option: "NF_CONNTRACK_MARK", module: "nft_ct", table: matching(ruleset.SetMark{Mask: 0xff, Value: 1})},
	{id: "limit", what: "limits", option: "NFT_LIMIT", module: "nft_limit", table: matching(ruleset.Limit{Rate: 10}), needed: forLog},
	{id: "log", what: "rules that show packets to a reader", option: "NFT_LOG", module: "nft_log", table: matching(ruleset.Log{Prefix: "p"}), needed: forLog},
	{id: "log-reader", what: "a reader for what rules show", option: "NETFILTER_NETLINK_LOG", module: "nfnetlink_log", try: func() error { return nft.TryLogReader(ruleset.LogGroup) }, needed: forLogReader},
	{id: "reject", what: "rules that answer with an ICMP error", option: "NFT_REJECT_INET", module: "nft_reject_inet", table: matching(ruleset.Reject{}), needed: forReject},
	{id: "reject-tcp", what: "rules that answer with a TCP reset", option: "NFT_REJECT_INET", module: "nft_reject_inet", table: table(rule(ruleset.Match{Field: ruleset.L4Proto, Value: "tcp"}, ruleset.Reject{Reset: true})), needed: forReject},
	{id: "bridge", what: "base chains of the bridge family", option: "NF_TABLES_BRIDGE", module: "nf_tables", base: true, table: hooked(ruleset.FamilyBridge, "prerouting", "forward"), needed: forBridge},
	{id: "bridge-matches", what: "matches of frames' types, ports and addresses", option: "NF_TABLES_BRIDGE", module: "nft_meta", table: bridged(matching(
		ruleset.Match{Field: ruleset.EtherType, Value: "8021q"}, ruleset.Match{Field: ruleset.InInterface, Value: "lo"},
		ruleset.Match{Field: ruleset.IP6Destination, Value: "ff00::/8"}, ruleset.Match{Field: ruleset.HopLimit, Value: "255"})), needed: forBridge},
	{id: "bridge-ports-ipv6", what: "sets of bridge ports with IPv6 addresses", option: "NF_TABLES_BRIDGE", module: "nf_tables_set", table: bridged(looking(
		ruleset.Set{Key: types(ruleset.TypeInterface, ruleset.TypeIPv6), Size: 8}, ruleset.Fields{ruleset.InInterface, ruleset.IP6Source})), needed: forBridge},
	{id: "bridge-ports-ipv4", what: "sets of bridge ports with IPv4 addresses", option: "NF_TABLES_BRIDGE", module: "nf_tables_set", table: bridged(looking(
		ruleset.Set{Key: types(ruleset.TypeInterface, ruleset.TypeIPv4), Size: 8}, ruleset.Fields{ruleset.InInterface, ruleset.IPSource})), needed: forBridge},
	{id: "bridge-icmp", what: "sets of ICMPv6 types, in frames", option: "NF_TABLES_BRIDGE", module: "nf_tables_set", table: bridged(looking(
		ruleset.Set{Key: types(ruleset.TypeICMPv6), Size: 8}, ruleset.Fields{ruleset.ICMPv6Type})), needed: forBridge},
	{id: "owner", what: "tables that belong to one program and outlive it (Linux 6.9)", try: nft.TryOwner, needed: func(context.Context, *Host) (Severity, error) { return Note, nil }},
}

// What is needed only by some configurations is a note in others.
func forLog(_ context.Context, h *Host) (Severity, error) {
	if h.Config.Audit.Denied.Enabled {
		return Impaired, nil
	}
	return Note, nil
}

func forLogReader(_ context.Context, h *Host) (Severity, error) {
	if h.Config.Audit.Denied.Enabled {
		return Warning, nil
	}
	return Note, nil
}

func forReject(_ context.Context, h *Host) (Severity, error) {
	if h.Config.Denied == "reject" {
		return Impaired, nil
	}
	return Note, nil
}

func forBridge(ctx context.Context, h *Host) (Severity, error) {
	bridges, err := h.bridges(ctx)
	if err != nil || len(bridges) == 0 {
		return Note, asRoot(err)
	}
	return Warning, nil
}

const (
	whyFeature = "The daemon's table is made of it: without it the kernel refuses the table whole, and nothing is enforced."
	whyOwner   = "Without it any program can flush the table; the daemon repairs that within five seconds, and nothing is enforced until then."
	whyLog     = "Only what is told of denied packets needs it."
	whyReject  = "Only `denied: reject` needs it."
	whyBridge  = "Without it pods on one bridge can send as each other, and past the filter with VLAN tags."
)

// feature gives the check of one feature.
func (f feature) check() Check {
	c := Check{
		ID: "kernel." + f.id, Severity: Impaired, Well: "the kernel has " + f.what, Why: whyFeature,
		Command: "modprobe MODULE, or a kernel with CONFIG_" + f.option, look: f.look,
	}
	switch {
	case f.id == "owner":
		c.Severity, c.Why, c.Command = Note, whyOwner, "a kernel from Linux 6.9 on"
	case f.id == "log-reader":
		c.Severity, c.Why = Warning, whyLog
	case f.table.Family == ruleset.FamilyBridge:
		c.Severity, c.Why = Warning, whyBridge
	}
	return c
}

func featureChecks() (list []Check) {
	for _, f := range features {
		list = append(list, f.check())
	}
	return list
}

// errNotTried says that a feature stands on one that is missing.
var errNotTried = errors.New("not tried")

// tryAll tries features in one scratch namespace, each with a table of its own.
func tryAll(list []feature) (map[string]error, error) {
	result := map[string]error{}
	err := nft.Scratch(func() error {
		lacks := map[ruleset.Family]bool{}
		for _, f := range list {
			family := ruleset.FamilyINet
			if f.table != nil {
				family = f.table.Family
			}
			if lacks[family] || lacks[ruleset.FamilyINet] && f.base {
				result[f.id] = errNotTried
				continue
			}
			result[f.id] = f.attempt()
			lacks[family] = lacks[family] || f.base && result[f.id] != nil
		}
		return nil
	})
	return result, asRoot(err)
}

func (f feature) attempt() error {
	if f.try != nil {
		return f.try()
	}
	t := *f.table
	t.Name = "try-" + f.id
	return nft.Try(&t)
}

func (f feature) look(ctx context.Context, h *Host) ([]problem, error) {
	results, err := h.features.get(func() (map[string]error, error) { return tryAll(features) })
	if err != nil {
		return nil, err
	}
	refused := results[f.id]
	switch {
	case refused == nil:
		return nil, nil
	case errors.Is(refused, errNotTried):
		return nil, errors.New("it can't be tried: what it stands on is missing")
	case errors.Is(refused, unix.EPERM):
		return nil, asRoot(refused)
	}
	p := problem{what: fmt.Sprintf("the kernel lacks %s: %v", f.what, refused)}
	if f.needed != nil {
		if p.severity, err = f.needed(ctx, h); err != nil {
			return nil, err
		}
	}
	if p.severity == Note && f.option != "" {
		p.why = map[string]string{"limit": whyLog, "log": whyLog, "log-reader": whyLog, "reject": whyReject, "reject-tcp": whyReject}[f.id]
	}
	if f.option == "" {
		return []problem{p}, nil
	}
	state := h.module(f.module)
	p.what += fmt.Sprintf(" (module %s is %s)", f.module, state)
	switch state {
	case loadable:
		p.command = "modprobe MODULE"
	case absent, noModules:
		p.command = "a kernel with CONFIG_" + f.option + ", or its package of extra modules"
	}
	p.fill = []string{"MODULE", f.module}
	return []problem{p}, nil
}
