package enforce

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/source"
)

func addrs(list ...string) (all []netip.Addr) {
	for _, a := range list {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

func prefixes(list ...string) (all []netip.Prefix) {
	for _, p := range list {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

// attached is a pod with a CNI result; without an interface it has none.
func attached(name, iface string, addresses ...string) *inventory.Pod {
	p := &inventory.Pod{Head: inventory.Head{Key: inventory.Key{Namespace: "default", Name: name}}, Addresses: addrs(addresses...)}
	if iface != "" {
		p.Attachments = []inventory.Attachment{{Sandbox: name, Addresses: p.Addresses, Interfaces: []string{iface}}}
	}
	return p
}

// gatewayWith has a LAN, a bridge of pods, a bridge with the LAN on it, and a routed
// pod's interface.
func gatewayWith(t *testing.T, hold string, n source.Network, pods ...*inventory.Pod) *Enforcer {
	t.Helper()
	e := New(Config{Table: "t", Options: inventory.DefaultOptions(), Log: slog.New(slog.DiscardHandler), Hold: hold})
	n.Present = true
	e.reports["cni"] = source.Report{Source: "cni", Network: n}
	e.snapshot = &inventory.Snapshot{Pods: pods}
	e.own = addrs("127.0.0.1", "192.168.1.2", "10.42.0.1")
	e.nextHops = addrs("192.168.1.1")
	e.interfaces = map[string]gateway.Interface{
		"lo":        {Name: "lo", Addresses: prefixes("127.0.0.1/8")},
		"eth0":      {Name: "eth0", Addresses: prefixes("192.168.1.2/24")},
		"cni0":      {Name: "cni0", Kind: "bridge", Pods: true, Ports: []string{"v1", "v2", "v3"}, Addresses: prefixes("10.42.0.1/24", "fe80::1/64")},
		"docker0":   {Name: "docker0", Kind: "bridge", Pods: true, Ports: []string{"d1"}, Addresses: prefixes("172.17.0.1/16")},
		"flannel.1": {Name: "flannel.1", Kind: "vxlan", Addresses: prefixes("10.42.0.0/32")},
		"br0":       {Name: "br0", Kind: "bridge", Ports: []string{"eth1", "v9"}},
		"eth1":      {Name: "eth1", Bridge: "br0"},
		"v1":        {Name: "v1", Kind: "veth", Bridge: "cni0"},
		"v2":        {Name: "v2", Kind: "veth", Bridge: "cni0"},
		"v3":        {Name: "v3", Kind: "veth", Bridge: "cni0"},
		"v9":        {Name: "v9", Kind: "veth", Bridge: "br0"},
		"cali1":     {Name: "cali1", Kind: "veth", Pods: true},
		"new":       {Name: "new", Kind: "veth", Pods: true},
	}
	e.links = map[netip.Addr]gateway.PodLink{
		netip.MustParseAddr("10.42.0.7"): {Interface: "cni0", Kind: "bridge", Bridge: true, Ports: []string{"v1", "v2", "v3"}},
	}
	e.wire()
	return e
}

func text(list []ruleset.Source) string {
	var all []string
	for _, s := range list {
		all = append(all, s.Interface+"="+s.Address.String())
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), " ")
}

// Each port and each interface may send as its own pod; a pod that is known by its
// route alone from any port that is nobody else's; and a bridge with the LAN on it is
// no pods' interface.
func TestWiring(t *testing.T) {
	pods := []*inventory.Pod{
		attached("bridged", "v1", "10.42.0.5", "fd42::5"), attached("lan", "v9", "192.168.1.77"), attached("routed", "cali1", "10.42.0.6"),
		attached("written", "", "10.42.0.7"),
	}
	ended := attached("ended", "v2", "10.42.0.8")
	ended.Phase = "Succeeded"
	e := gatewayWith(t, "auto", source.Network{Ranges: prefixes("10.42.0.0/24")}, append(pods, ended)...)
	i := e.compiler.Interfaces
	for what, got := range map[string][2]string{
		"pods":    {fmt.Sprint(i.Pods), "[cali1 cni0]"},
		"sources": {text(i.Sources), "br0=192.168.1.77 cali1=10.42.0.6 cni0=10.42.0.5 cni0=10.42.0.7 cni0=fd42::5"},
		"ports":   {fmt.Sprint(i.Ports), "[v1 v2 v3 v9]"},
		"checked": {fmt.Sprint(i.Checked), "[v1 v2 v3 v9]"},
		"by port": {text(i.PortSources), "v1=10.42.0.5 v1=fd42::5 v2=10.42.0.7 v3=10.42.0.7 v9=192.168.1.77"},
		"others":  {fmt.Sprint(i.Others), "[br0 eth0 eth1 flannel.1 lo v9]"},
		"ranges":  {fmt.Sprint(i.Ranges), "[{10.42.0.0 10.42.0.0} {10.42.0.2 10.42.0.255}]"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %s, want %s", what, got[0], got[1])
		}
	}
	off := gatewayWith(t, "off", source.Network{Ranges: prefixes("10.42.0.0/24")}, pods...).compiler.Interfaces
	if off.Hold || len(off.Ranges) > 0 || fmt.Sprint(off.Checked) != "[v1 v9]" {
		t.Errorf("without hold: %+v", off)
	}
	// The CNI configuration tells the bridge before the first pod is there.
	early := gatewayWith(t, "auto", source.Network{Bridges: []string{"cni0", "cni9", "br0"}}).compiler.Interfaces
	if got := fmt.Sprint(early.Ranges); got != "[{10.42.0.0 10.42.0.0} {10.42.0.2 10.42.0.255}]" {
		t.Errorf("the bridge's subnet is the pods': %s", got)
	}
	if fmt.Sprint(early.Pods) != "[cni0]" || fmt.Sprint(early.Ports) != "[v1 v2 v3]" {
		t.Errorf("before the first pod: %+v", early)
	}
}

// A mistyped range must not cut off the LAN.
func TestRanges(t *testing.T) {
	for text, reason := range map[string]string{
		"192.168.1.0/24": "next hop 192.168.1.1",
		"192.168.1.2/31": "192.168.1.2, an address of the gateway on eth0",
		"172.16.0.0/12":  "172.17.0.1, an address of the gateway on docker0, which is not known to carry pods",
		"0.0.0.0/0":      "next hop",
		"10.42.0.0/24":   "",
		"10.42.0.0/16":   "",
		"127.0.0.0/8":    "127.0.0.1, an address of the gateway on lo",
	} {
		e := gatewayWith(t, "on", source.Network{Ranges: prefixes(text), Bridges: []string{"cni0"}})
		switch {
		case reason == "" && (!slices.Contains(e.ranges, netip.MustParsePrefix(text)) || len(e.refusedRanges) > 0):
			t.Errorf("%s: %v, refused %v", text, e.ranges, e.refusedRanges)
		case reason != "" && (slices.Contains(e.ranges, netip.MustParsePrefix(text)) || len(e.refusedRanges) != 1 || !strings.Contains(e.refusedRanges[0], reason)):
			t.Errorf("%s: %v, refused %v, want %s", text, e.ranges, e.refusedRanges, reason)
		}
	}
	// Pods of other nodes are known, wherever the range of this one ends.
	far := attached("far", "", "10.42.3.9")
	far.Remote = true
	e := gatewayWith(t, "on", source.Network{Ranges: prefixes("10.42.3.8/30")}, far)
	if got := fmt.Sprint(e.compiler.Interfaces.Ranges); got != "[{10.42.3.8 10.42.3.8} {10.42.3.10 10.42.3.11}]" {
		t.Errorf("a remote pod's address is held: %s", got)
	}
}
