package preflight

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// This kernel has what the table needs.
func TestFeaturesOfThisKernel(t *testing.T) {
	results, err := tryAll(features)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range features {
		if results[f.id] != nil {
			t.Errorf("%s: %v", f.id, results[f.id])
		}
	}
}

// What the kernel refuses is told of the feature that needs it, and of no other; what
// stands on a family that it lacks is not tried.
func TestMissingFeatureIsNamedAlone(t *testing.T) {
	broken := func(f ruleset.Family) *ruleset.Table { // a set that is not there is refused as an expression that is not there
		m := matching(ruleset.Lookup{Key: address4, Set: "none"})
		m.Family = f
		return m
	}
	results, err := tryAll([]feature{
		{id: "a", base: true, table: &ruleset.Table{}},
		{id: "b", table: broken(ruleset.FamilyINet)},
		{id: "c", table: matching(ruleset.Related)},
		{id: "d", base: true, table: broken(ruleset.FamilyBridge)},
		{id: "e", table: hooked(ruleset.FamilyBridge, "forward")},
		{id: "f", table: matching(ruleset.Reply)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]error{"a": nil, "b": unix.ENOENT, "c": nil, "d": unix.ENOENT, "e": errNotTried, "f": nil} {
		if !errors.Is(results[id], want) {
			t.Errorf("%s: %v, want %v", id, results[id], want)
		}
	}
	results, err = tryAll([]feature{{id: "a", base: true, table: broken(ruleset.FamilyINet)}, {id: "b", table: matching(ruleset.Reply)}, {id: "c", base: true, table: hooked(ruleset.FamilyBridge, "forward")}})
	if err != nil || !errors.Is(results["a"], unix.ENOENT) || results["b"] != errNotTried || results["c"] != errNotTried {
		t.Errorf("without tables: %v, %v", results, err)
	}
}

// A missing feature says which module has it and how to get it, and is as bad as what
// is configured needs it.
func TestMissingFeatureSaysWhatMendsIt(t *testing.T) {
	files := map[string]string{"proc/modules": "", "proc/sys/kernel/osrelease": "6", "lib/modules/6/modules.dep": "kernel/net/nft_ct.ko:\n"}
	lacking := func(id string) *Host {
		h := host(t, files)
		h.features.done, h.features.value = true, map[string]error{id: unix.ENOENT}
		return h
	}
	fine(t, lacking("sets"), "kernel.ct-state")
	finds(t, lacking("ct-state"), "kernel.ct-state", Impaired, "lacks matches of a connection's state: no such file or directory (module nft_ct is not loaded)", "modprobe nft_ct")
	finds(t, lacking("limit"), "kernel.limit", Impaired, "nft_limit is not installed", "CONFIG_NFT_LIMIT")
	quiet := lacking("limit")
	quiet.Config.Audit.Denied.Enabled = false
	finds(t, quiet, "kernel.limit", Note, "lacks limits", "")
	finds(t, lacking("reject"), "kernel.reject", Note, "ICMP error", "")
	reject := lacking("reject")
	reject.Config.Denied = "reject"
	finds(t, reject, "kernel.reject", Impaired, "ICMP error", "")
	finds(t, lacking("owner"), "kernel.owner", Note, "belong to one program", "Linux 6.9")
	h := lacking("")
	h.features.value["meta"] = errNotTried
	unseen(t, h, "kernel.meta", "what it stands on is missing")
}

// uses lists what a table needs of the kernel.
func uses(t *ruleset.Table) map[string]bool {
	all := map[string]bool{}
	common := func(format string, args ...any) { all[fmt.Sprintf(format, args...)] = true } // the same code for all families
	add := func(format string, args ...any) { all[t.Family.String()+" "+fmt.Sprintf(format, args...)] = true }
	for _, s := range t.Sets {
		common("set interval=%v fields=%v verdicts=%v timeout=%v", s.Interval, len(s.Key) > 1, s.Verdicts, s.Timeout > 0)
		for _, k := range s.Key {
			common("key %s", k)
		}
	}
	for _, c := range t.Chains {
		if c.Hook != nil {
			add("hook %s", c.Hook.Name)
		}
		for _, r := range c.Rules {
			for _, e := range r.Exprs {
				switch e := e.(type) {
				case ruleset.Match:
					add("match %s", e.Field)
				case ruleset.Lookup:
					for _, f := range e.Key {
						if f != "" {
							add("lookup %s", f)
						}
					}
				case ruleset.FlowIs:
					add("%s", e)
				case ruleset.Reject:
					add("reject %v", e.Reset)
				case ruleset.Verdict:
					common("%s", e.Kind)
				case ruleset.Count, ruleset.Note, ruleset.VerdictMap:
					common("%T", e)
				default:
					add("%T", e)
				}
			}
		}
	}
	return all
}

func selector(t *testing.T, text string) labels.Selector {
	t.Helper()
	parsed, err := metav1.ParseToLabelSelector(text)
	if err != nil {
		t.Fatal(err)
	}
	s, err := metav1.LabelSelectorAsSelector(parsed)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pod(name string, addresses ...string) *inventory.Pod {
	p := &inventory.Pod{Labels: labels.Set{"app": name}}
	p.Key = inventory.Key{Namespace: "default", Name: name}
	for _, a := range addresses {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	return p
}

// compiled are the tables of a gateway that uses everything.
func compiled(t *testing.T, o inventory.Options) []*ruleset.Table {
	t.Helper()
	p := &inventory.Policy{Selector: selector(t, "app=web"), Isolates: [2]bool{true, true}}
	p.Key = inventory.Key{Namespace: "default", Name: "web"}
	tcp := func(first, last uint16) inventory.Port {
		return inventory.Port{Protocol: inventory.TCP, First: first, Last: last}
	}
	peers := []inventory.Peer{{Pods: selector(t, "app=client")}, {Block: &inventory.IPBlock{CIDR: netip.MustParsePrefix("10.0.0.0/8")}}, {Block: &inventory.IPBlock{CIDR: netip.MustParsePrefix("fd00::/8")}}}
	for d := range p.Rules {
		p.Rules[d] = []inventory.Rule{{Peers: peers, Ports: []inventory.Port{tcp(80, 80), tcp(8000, 8080)}}, {Ports: []inventory.Port{tcp(22, 22), tcp(1, 9)}}, {Peers: peers}}
	}
	s := &inventory.Snapshot{Pods: []*inventory.Pod{pod("web", "10.42.0.12", "fd42::12"), pod("client", "10.42.0.11", "fd42::11")}, Policies: []*inventory.Policy{p}}
	o.GatewayPorts = []inventory.Port{{Protocol: inventory.UDP, First: 53, Last: 53}}
	c := ruleset.NewCompiler("edgepolicyd", &o)
	c.Interfaces = ruleset.Interfaces{
		Pods: []string{"cni0"}, Hold: true, Others: []string{"eth0"}, Ports: []string{"v1", "v2"}, Checked: []string{"v1"}, Known: []string{"v1"},
		Sources:     []ruleset.Source{{Interface: "cni0", Address: netip.MustParseAddr("10.42.0.11")}, {Interface: "cni0", Address: netip.MustParseAddr("fd42::11")}},
		PortSources: []ruleset.Source{{Interface: "v1", Address: netip.MustParseAddr("10.42.0.11")}, {Interface: "v1", Address: netip.MustParseAddr("fd42::11")}},
		Ranges:      policy.Ranges([]netip.Prefix{netip.MustParsePrefix("10.42.0.0/24"), netip.MustParsePrefix("fd42::/64")}, nil),
	}
	return []*ruleset.Table{c.Compile(policy.NewResolver(&o).Update(s), ruleset.Mark{Mask: o.MarkMask, Epoch: 1 << 24}), c.Interfaces.CompileBridge("edgepolicyd")}
}

// All that the compiler makes is among the features that are tried.
func TestAllThatTablesNeedIsTried(t *testing.T) {
	tried := map[string]bool{}
	for _, f := range features {
		if f.table != nil {
			for use := range uses(f.table) {
				tried[use] = true
			}
		}
	}
	for _, reject := range []bool{false, true} {
		o := inventory.DefaultOptions()
		o.Reject, o.Log = reject, true
		for _, table := range compiled(t, o) {
			for use := range uses(table) {
				if !tried[use] {
					t.Errorf("the compiler uses %q, which no feature tries", use)
				}
			}
		}
	}
}
