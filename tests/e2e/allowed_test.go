package e2e

import (
	"context"
	"net/netip"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
)

// S11: a pod is isolated in a direction if some policy with it selects the pod;
// not isolated means everything. (Held sources and destinations wait for known
// pod interfaces.)
func TestS11Isolated(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		const open = "client other 80 yes\n client other 80/UDP yes\n client other 80/SCTP yes\n client other 1/47 yes\n client other ping yes\n outside other 80 yes\n other outside 80 yes\n other gateway 80 yes\n"
		w.see("nobody", open+"client web 80 yes\n web client 80 yes")
		w.enforce(policy("web", isolateWeb+", policyTypes: [Ingress]"))
		w.see("ingress", open+"client web 80 no\n outside web ping no\n web client 80 yes\n web outside 80 yes\n web gateway 80 yes")
		w.enforce(policy("web", isolateWeb+", policyTypes: [Egress]"))
		w.see("egress", open+"client web 80 yes\n outside web ping yes\n web client 80 no\n web outside 80 no\n web gateway 80 no")
		w.enforce(policy("in", isolateWeb), policy("out", isolateWeb+", policyTypes: [Egress]"))
		w.see("both, by two policies", open+"client web 80 no\n web client 80 no")
	})
}

// S12: what some rule of some policy allows, whatever their order.
func TestS12Union(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client, other, stranger)
	w.must(w.Start())
	a := policy("a", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}, {from: [{podSelector: {matchLabels: {app: other}}}], ports: [{port: 81}]}]")
	b := policy("b", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 82}]}]")
	none := policy("none", isolateWeb)
	const want = "client web 80 yes\n client web 82 yes\n client web 81 no\n other web 81 yes\n other web 80 no\n other web 82 no\n far/stranger web 80 no"
	w.enforce(a, b, none)
	w.see("a, b, none", want)
	w.enforce(none, b, a)
	w.see("none, b, a", want)
}

// S13: peers and ports of different rules never mix.
func TestS13NoCrossProduct(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		const rules = `[{PEERS: [{podSelector: {matchLabels: {app: client}}}, {ipBlock: {cidr: 192.168.254.0/24}}], ports: [{port: 80}, {port: 53, protocol: UDP}]},
			{PEERS: [{podSelector: {matchLabels: {app: other}}}], ports: [{port: 443}]}]`
		w.enforce(policy("web", isolateWeb+", ingress: "+replace(rules, "PEERS", "from")))
		w.see("ingress", `
			client web 80 yes
			client web 53/UDP yes
			client web 53 no
			client web 80/UDP no
			client web 443 no
			other web 443 yes
			other web 80 no
			other web 53/UDP no
			outside.4 web 80 yes
			outside.6 web 80 no
			outside.4 web 443 no`)
		w.enforce(policy("web", isolateWeb+", egress: "+replace(rules, "PEERS", "to")))
		w.enforce(policy("web", isolateWeb+", policyTypes: [Egress], egress: "+replace(rules, "PEERS", "to")))
		w.see("egress", `
			web client 80 yes
			web client 53/UDP yes
			web client 443 no
			web other 443 yes
			web other 80 no
			web outside.4 80 yes
			web outside.4 443 no
			web gateway.4 53/UDP yes
			web gateway.4 443 no
			web gateway.6 80 no`)
	})
}

// S14: an empty or absent list of peers or ports is all; of rules, none.
func TestS14Empty(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		const none = "client web 80 no\n outside web 80 no\n client web ping no\n gateway web 80 yes"
		const all = "client web 80 yes\n client web 80/SCTP yes\n outside web 80/UDP yes\n client web ping yes\n client web 1/47 yes"
		for _, c := range []struct{ ingress, want string }{
			{"", none},
			{", ingress: []", none},
			{", ingress: [{}]", all},
			{", ingress: [{from: []}]", all},
			{", ingress: [{ports: []}]", all},
			{", ingress: [{from: [], ports: []}]", all},
			{", ingress: [{from: [], ports: [{port: 80}]}]", "client web 80 yes\n outside web 80 yes\n client web 81 no\n client web ping no"},
			{", ingress: [{ports: [{port: 80}]}]", "client web 80 yes\n outside web 80 yes\n client web 81 no\n client web ping no"},
			{", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: []}]", "client web 80 yes\n client web ping yes\n client web 1/47 yes\n other web 80 no\n other web ping no"},
		} {
			w.enforce(policy("web", isolateWeb+c.ingress))
			w.see("ingress"+c.ingress, c.want)
		}
		w.enforce(policy("web", isolateWeb+", egress: [{}]"))
		w.see("egress: [{}] isolates and allows all", "web client 80 yes\n web outside ping yes\n web gateway 80 yes")
	})
}

// S15: both ends must allow it.
func TestS15BothEnds(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		in := func(app string) string {
			return policy("web", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: "+app+"}}}]}]")
		}
		out := func(app string) string {
			return policy("client", "podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: "+app+"}}}]}]")
		}
		w.enforce(in("client"), out("web"))
		w.see("both allow", "client web 80 yes\n client other 80 no\n other web 80 no")
		w.enforce(in("other"), out("web"))
		w.see("ingress does not", "client web 80 no\n other web 80 yes")
		w.enforce(in("client"), out("other"))
		w.see("egress does not", "client web 80 no\n client other 80 yes")
		w.enforce(out("web"))
		w.see("only one is isolated", "client web 80 yes\n client other 80 no\n other web 80 yes")
	})
}

// S16: what the selectors of a peer mean, alone, together and in two items.
func TestS16Peers(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		spaces := namespace("far", "team: x") + "---\n" + namespace("default", "team: y")
		for _, c := range []struct{ from, want string }{
			{"[{podSelector: {matchLabels: {app: client}}}]", "client web 80 yes\n far/stranger web 80 no\n other web 80 no"},
			{"[{podSelector: {}}]", "client web 80 yes\n other web 80 yes\n far/stranger web 80 no\n outside web 80 no"},
			{"[{namespaceSelector: {matchLabels: {team: x}}}]", "far/stranger web 80 yes\n client web 80 no"},
			{"[{namespaceSelector: {matchLabels: {team: y}}, podSelector: {matchLabels: {app: client}}}]", "client web 80 yes\n other web 80 no\n far/stranger web 80 no"},
			{"[{namespaceSelector: {matchLabels: {team: x}}}, {podSelector: {matchLabels: {app: other}}}]", "far/stranger web 80 yes\n other web 80 yes\n client web 80 no"},
			{"[{namespaceSelector: {}}]", "client web 80 yes\n far/stranger web 80 yes\n outside web 80 no"},
			{"[{namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}]", "client web 80 yes\n far/stranger web 80 yes\n other web 80 no"},
		} {
			w.enforce(spaces, policy("web", isolateWeb+", ingress: [{from: "+c.from+"}]"))
			w.see(c.from, c.want)
		}
		w.enforce(policy("web", isolateWeb+", policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]"))
		w.see("all pods, and no address that is not a pod's", "web client 80 yes\n web far/stranger 80 yes\n web outside 80 no\n web gateway 80 no")
	})
}

// S17: ipBlock matches addresses, whoever owns them, unless configured otherwise.
func TestS17IPBlockAndPods(t *testing.T) {
	allow := policy("web", isolateWeb+", ingress: [{from: [{ipBlock: {cidr: 10.42.0.0/24}}, {ipBlock: {cidr: 0.0.0.0/0}}]}], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]")
	for _, c := range []struct{ config, want string }{
		{"", "client.4 web.4 80 yes\n web.4 client.4 80 yes\n outside.4 web.4 80 yes\n web.4 outside.4 80 yes\n client.6 web.6 80 no"},
		{"ipBlockMatchesPods: false\n", "client.4 web.4 80 no\n web.4 client.4 80 no\n outside.4 web.4 80 yes\n web.4 outside.4 80 yes"},
	} {
		w := newWorld(t, topologies[1], c.config)
		w.pods(web, client)
		w.must(w.Start())
		w.enforce(allow)
		w.see("config "+c.config, c.want)
	}
}

// S18: except narrows its own block only; overlapping, nested, duplicate and
// touching blocks and ranges are legal.
func TestS18Blocks(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		block := func(rules string) string { return policy("web", isolateWeb+", ingress: "+rules) }
		w.enforce(block("[{from: [{ipBlock: {cidr: 10.42.0.0/24, except: [10.42.0.12/30]}}]}]"))
		w.see("except", "client.4 web.4 80 yes\n other.4 web.4 80 no\n far/stranger.4 web.4 80 no")
		w.enforce(block("[{from: [{ipBlock: {cidr: 10.42.0.0/24, except: [10.42.0.12/30]}}, {podSelector: {matchLabels: {app: other}}}]}]"))
		w.see("another peer may allow it", "client.4 web.4 80 yes\n other.4 web.4 80 yes\n far/stranger.4 web.4 80 no")
		w.enforce(block("[{from: [{ipBlock: {cidr: 10.42.0.0/24, except: [10.42.0.12/30]}}]}, {from: [{ipBlock: {cidr: 10.42.0.13/32}}], ports: [{port: 81}]}]"))
		w.see("another rule, with its ports only", "client.4 web.4 80 yes\n other.4 web.4 80 no\n other.4 web.4 81 yes")
		w.enforce(block("[{from: [{ipBlock: {cidr: 10.42.0.0/24, except: [10.42.0.12/30]}}]}]"), policy("more", isolateWeb+", ingress: [{from: [{ipBlock: {cidr: 10.42.0.14/32}}]}]"))
		w.see("another policy", "other.4 web.4 80 no\n far/stranger.4 web.4 80 yes")
		w.enforce(block(`[{from: [{ipBlock: {cidr: 10.42.0.0/16}}, {ipBlock: {cidr: 10.42.0.0/24}}, {ipBlock: {cidr: 10.42.0.0/24}}, {ipBlock: {cidr: 10.42.0.0/25}}, {ipBlock: {cidr: 10.42.0.128/25}},
			{ipBlock: {cidr: 10.0.0.0/8, except: [10.42.0.13/32, 10.42.0.0/24, 10.42.0.0/28]}}, {ipBlock: {cidr: "fd42::/16"}}, {ipBlock: {cidr: "fd42::/64", except: ["fd42::13/128"]}}],
			ports: [{port: 80, endPort: 90}, {port: 85, endPort: 100}, {port: 101}, {port: 90}, {port: 80, endPort: 90}]}]`))
		w.see("overlapping, nested, duplicate, touching", `
			client web 80 yes
			other web 80 yes      # the wider blocks have it
			other web 90 yes
			other web 100 yes
			other web 101 yes
			other web 79 no
			other web 102 no
			outside web 80 no`)
		w.healthy()
	})
}

// S19: 0.0.0.0/0 is IPv4 only, ::/0 IPv6 only.
func TestS19Families(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		for _, d := range []struct{ spec, table string }{
			{"ingress: [{from: [{ipBlock: {cidr: %s}}]}]", "outside.4 web.4 80 V4\n outside.6 web.6 80 V6\n client.4 web.4 80 V4\n client.6 web.6 80 V6"},
			{"policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: %s}}]}]", "web.4 outside.4 80 V4\n web.6 outside.6 80 V6\n web.4 gateway.4 80 V4\n web.6 gateway.6 80 V6"},
		} {
			w.enforce(policy("web", isolateWeb+", "+replace(d.spec, "%s", "0.0.0.0/0")))
			w.see("0.0.0.0/0", replace(d.table, "V4", "yes", "V6", "no"))
			w.enforce(policy("web", isolateWeb+", "+replace(d.spec, "%s", `"::/0"`)))
			w.see("::/0", replace(d.table, "V4", "no", "V6", "yes"))
		}
	})
}

// S20: a named port is each destination pod's own.
func TestS20NamedPorts(t *testing.T) {
	named := func(p pod, ports string) pod {
		p.spec = "containers: [{name: a, ports: [" + ports + "]}]"
		return p
	}
	both(t, "", func(t *testing.T, w *world) {
		one := named(pod{name: "one", n: 21, labels: "app: web"}, "{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}")
		two := named(pod{name: "two", n: 22, labels: "app: web"}, "{name: http, containerPort: 9090}")
		bare := pod{name: "bare", n: 23, labels: "app: web"}
		sidecar := pod{name: "sidecar", n: 24, labels: "app: web",
			spec: "initContainers: [{name: s, restartPolicy: Always, ports: [{name: http, containerPort: 7070}]}, {name: i, ports: [{name: http2, containerPort: 6060}]}]"}
		w.pods(client, one, two, bare, sidecar)
		w.must(w.Start())
		const want = `
			client one 8080 yes
			client one 9090 no
			client one 8080/UDP no
			client two 9090 yes
			client two 8080 no
			client bare 8080 no       # unresolved is nothing
			client bare 80 no
			client sidecar 7070 yes
			client sidecar 6060 no`
		w.enforce(policy("web", isolateWeb+", ingress: [{ports: [{port: http}, {port: http2}]}]"))
		w.see("ingress: the selected pod's", want)
		w.enforce(policy("web", isolateWeb+", ingress: [{ports: [{port: dns, protocol: UDP}, {port: dns}]}]"))
		w.see("by name and protocol", "client one 53/UDP yes\n client one 53 no\n client two 53/UDP no")
		w.enforce(policy("client", "podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]"))
		w.see("egress: each peer's own, and no address that is no pod's", want+`
			client outside 8080 no
			client outside 80 no
			client gateway 8080 no`)
		w.enforce(policy("client", `podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: "::/0"}}], ports: [{port: http}]}]`))
		w.see("egress to a block", want+"\n client outside 8080 no")
	})
}

// S21: a protocol alone is every port of it; endPort is inclusive.
func TestS21Ports(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.enforce(policy("web", isolateWeb+", ingress: [{ports: [{protocol: UDP}]}]"))
		w.see("UDP", "client web 1/UDP yes\n client web 65535/UDP yes\n client web 80 no\n client web 80/SCTP no\n client web ping no")
		w.enforce(policy("web", isolateWeb+", ingress: [{ports: [{port: 100, endPort: 200}, {port: 300, endPort: 300}, {protocol: SCTP, port: 65000, endPort: 65535}]}]"))
		w.see("ranges", `
			client web 99 no
			client web 100 yes
			client web 200 yes
			client web 201 no
			client web 300 yes
			client web 301 no
			client web 150/UDP no
			client web 64999/SCTP no
			client web 65000/SCTP yes
			client web 65535/SCTP yes
			client web 65535 no`)
	})
}

// S22: protocols without ports pass only where a rule has no ports; and what IP
// needs always passes.
func TestS22Protocols(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.enforce(policy("web", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}, {from: [{podSelector: {matchLabels: {app: other}}}], ports: [{protocol: TCP}, {protocol: UDP}, {protocol: SCTP}]}]"))
		w.see("ingress", `
			client web ping yes
			client web 1/47 yes
			client web 80/SCTP yes
			other web ping no
			other web 1/47 no
			other web 80/SCTP yes
			outside web ping no`)
		w.enforce(policy("web", isolateWeb+", policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: client}}}]}, {ports: [{port: 80}]}]"))
		w.see("egress", "web client ping yes\n web other ping no\n web outside ping no\n web gateway ping no\n web gateway 80 yes")
	})
	t.Run("neighbour discovery", func(t *testing.T) {
		for _, kind := range []lab.Kind{lab.Routed, lab.Bridge} {
			t.Run(kind.String(), func(t *testing.T) { neighbourDiscovery(t, kind) })
		}
	})
}

// neighbourDiscovery has pods that nobody may reach and that may reach nobody but
// one find each other, and the gateway, by ARP and neighbour discovery.
func neighbourDiscovery(t *testing.T, kind lab.Kind) {
	w := newWorld(t, lab.Topology{Kind: kind, Dynamic: true}, "")
	w.pods(web, client)
	w.serve("web", "tcp", 80)
	w.must(w.Start())
	w.enforce(
		policy("web", isolateWeb+", policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]"),
		policy("client", "podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}]"))
	for _, n := range []string{"gateway", "web", "client"} {
		_, err := w.names[n].Run("ip", "neigh", "flush", "all")
		w.must(err)
	}
	w.connects("client", "tcp", "10.42.0.12:80")
	w.connects("client", "tcp", "[fd42::12]:80")
	w.connects("gateway", "tcp", "10.42.0.12:80") // the gateway finds the pod
	w.connects("gateway", "tcp", "[fd42::12]:80")
	w.fails("web", "tcp", "[fd42::11]:80")
}

// S22: a router's words are not a pod's to say, whatever its policy.
func TestS22RouterTypes(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		from := netip.MustParseAddr("fd42::11")
		advert := func(typ byte, to *lab.Namespace, dst string) lab.Probe {
			return lab.Probe{From: w.names["client"], Src: from, To: to, Dst: netip.MustParseAddr(dst), Proto: inventory.ICMPv6, HopLimit: 255,
				ICMP: append([]byte{typ, 0, 0, 0, 64, 0, 0, 30}, make([]byte, 8)...)}
		}
		for _, typ := range []byte{134, 137} {
			got, err := w.Probe(context.Background(), []lab.Probe{
				advert(typ, w.Gateway, "fd00:254::1"), advert(typ, w.names["web"], "fd42::12"), advert(typ, w.Outside, "fd00:254::2"),
				advert(128, w.Gateway, "fd00:254::1"), advert(128, w.names["web"], "fd42::12")})
			w.must(err)
			if got[0] || got[1] || got[2] {
				t.Errorf("ICMPv6 type %d of a pod that is not isolated: to the gateway %v, to a pod %v, outside %v; want none", typ, got[0], got[1], got[2])
			}
			if !got[3] || !got[4] {
				t.Errorf("an echo request of the same pod: to the gateway %v, to a pod %v", got[3], got[4])
			}
		}
	})
}

// S23: a pod can't block itself, also not when it reaches itself through a
// service; somebody who forges its address gains nothing.
func TestS23Itself(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.serve("web", "tcp", 80)
		w.nft(`table inet other {
			chain pre { type nat hook prerouting priority dstnat; ip daddr 192.168.254.1 tcp dport 8080 dnat ip to 10.42.0.12:80; ip6 daddr fd00:254::1 tcp dport 8080 dnat ip6 to [fd42::12]:80; }
			chain post { type nat hook postrouting priority srcnat; ct status dnat ip saddr 10.42.0.12 ip daddr 10.42.0.12 masquerade; ct status dnat ip6 saddr fd42::12 ip6 daddr fd42::12 masquerade; }
		}`)
		if w.Kind == lab.Bridge {
			// What br_netfilter has sent to another address of the same bridge stays
			// in the bridge, which gives nothing back to the port that it came from
			// unless told to, as the bridge plugin does with hairpinMode.
			w.gw("ip", "link", "set", w.names["web"].HostInterface, "type", "bridge_slave", "hairpin", "on")
		}
		w.enforce(policy("web", isolateWeb+", policyTypes: [Ingress, Egress]"))
		for _, at := range []string{"10.42.0.12:80", "[fd42::12]:80", "192.168.254.1:8080", "[fd00:254::1]:8080"} {
			w.connects("web", "tcp", at)
		}
		w.fails("client", "tcp", "192.168.254.1:8080")
		w.fails("client", "tcp", "[fd00:254::1]:8080")
		got, err := w.Probe(context.Background(), []lab.Probe{
			{From: w.names["client"], Src: netip.MustParseAddr("10.42.0.12"), Dst: netip.MustParseAddr("10.42.0.12"), Proto: inventory.UDP, DstPort: 80},
			{From: w.names["client"], Src: netip.MustParseAddr("fd42::12"), Dst: netip.MustParseAddr("fd42::12"), Proto: inventory.UDP, DstPort: 80},
		})
		w.must(err)
		if got[0] || got[1] {
			t.Errorf("packets with the pod's own address as a forged source arrived: %v", got)
		}
	})
}
