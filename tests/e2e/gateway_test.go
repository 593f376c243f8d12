package e2e

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
)

const isolateWebBothWays = isolateWeb + ", policyTypes: [Ingress, Egress]"

// S24: the gateway's own processes always reach its pods, and are answered; that
// is so by the hook, never by the source address.
func TestS24GatewayToPod(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.enforce(policy("web", isolateWebBothWays))
		w.see("probes", "gateway web 80 yes\n gateway web 80/UDP yes\n gateway web ping yes\n gateway web 80/SCTP yes")
		w.serve("web", "tcp", 80)
		w.serve("web", "udp", 53)
		for _, a := range []string{"10.42.0.12", "[fd42::12]"} {
			w.connects("gateway", "tcp", a+":80")
			w.connects("gateway", "udp", a+":53")
		}
		_, err := w.Gateway.Run("ping", "-c1", "-W5", "10.42.0.12")
		w.must(err)

		// The kernel itself refuses IPv4 packets with its own source address; let it
		// not be the one that drops them here.
		w.gw("sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/accept_local; do echo 1 > $f; done")
		var probes []lab.Probe
		for _, from := range []string{"client", "outside"} {
			for _, a := range [][2]string{{"192.168.254.1", "10.42.0.12"}, {"fd00:254::1", "fd42::12"}} {
				probes = append(probes, lab.Probe{From: w.names[from], Src: netip.MustParseAddr(a[0]), Dst: netip.MustParseAddr(a[1]), Proto: inventory.UDP, DstPort: 80})
			}
		}
		got, err := w.Probe(context.Background(), probes)
		w.must(err)
		for i, ok := range got {
			if ok {
				t.Errorf("a packet of %s with the gateway's address %s as its source arrived", probes[i].From.Name, probes[i].Src)
			}
		}
	})
}

// S24, S27: traffic from outside that the gateway masquerades towards its pods
// is not the gateway's own.
func TestS24MasqueradedIsNotTheGateway(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.serve("web", "tcp", 80)
		w.serve("web", "tcp", 81)
		w.nft(`table inet other { chain post { type nat hook postrouting priority srcnat; ip saddr 192.168.254.2 masquerade; ip6 saddr fd00:254::2 masquerade; }
		}`)
		w.enforce(policy("web", isolateWeb+`, ingress: [{from: [{ipBlock: {cidr: 192.168.254.2/32}}, {ipBlock: {cidr: "fd00:254::2/128"}}], ports: [{port: 80}]}]`))
		for _, a := range []string{"10.42.0.12", "[fd42::12]"} {
			w.connects("outside", "tcp", a+":80")
			w.fails("outside", "tcp", a+":81")
		}
	})
}

// S25: what a pod sends to the gateway's own addresses, all of them, is subject
// to its egress policy.
func TestS25PodToGateway(t *testing.T) {
	own := func(w *world) string {
		if w.Kind == lab.Bridge {
			return "\n web 10.42.0.1 53/UDP WANT\n web fd42::1 53/UDP WANT\n"
		}
		return "\n web 169.254.1.1 53/UDP WANT\n"
	}
	t.Run("enforce", func(t *testing.T) {
		crowded(t, "", func(t *testing.T, w *world) {
			w.enforce(policy("web", isolateWeb+", policyTypes: [Egress]"))
			w.see("isolated", "web gateway 53/UDP no\n web gateway 80 no\n web gateway ping no\n client gateway 53/UDP yes\n gateway web 80 yes"+replace(own(w), "WANT", "no"))
			w.enforce(policy("web", isolateWeb+`, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.168.254.1/32}}, {ipBlock: {cidr: "fd00:254::1/128"}}], ports: [{port: 53, protocol: UDP}]}]`))
			w.see("one address allowed", "web gateway 53/UDP yes\n web gateway 53 no"+replace(own(w), "WANT", "no"))
			w.enforce(policy("web", isolateWeb))
			w.see("ingress isolation is another thing", "web gateway 80 yes"+replace(own(w), "WANT", "yes"))
		})
	})
	t.Run("allow", func(t *testing.T) {
		crowded(t, "gateway: {egress: allow}\n", func(t *testing.T, w *world) {
			w.enforce(policy("web", isolateWeb+", policyTypes: [Egress]"))
			w.see("allowed", "web gateway 53/UDP yes\n web gateway ping yes\n web client 80 no\n web outside 80 no"+replace(own(w), "WANT", "yes"))
		})
	})
	t.Run("allowFromPods", func(t *testing.T) {
		crowded(t, "gateway: {allowFromPods: [53/UDP, 53/TCP]}\n", func(t *testing.T, w *world) {
			w.enforce(policy("web", isolateWeb+", policyTypes: [Egress]"))
			w.see("two ports", "web gateway 53/UDP yes\n web gateway 53 yes\n web gateway 54 no\n web gateway ping no\n web outside 53/UDP no\n web client 53/UDP no"+replace(own(w), "WANT", "yes"))
		})
	})
}

// flags gives a bridge's netfilter flags.
func (w *world) flags(bridge string) string {
	w.t.Helper()
	f := strings.Fields(w.gw("ip", "-d", "link", "show", bridge))
	var all []string
	for _, name := range []string{"nf_call_iptables", "nf_call_ip6tables"} {
		all = append(all, f[slices.Index(f, name)+1])
	}
	return strings.Join(all, " ")
}

// S26: pods on one bridge are separated; the bridge's own flags are set, those
// of others and the sysctls are not, and they are watched.
func TestS26Bridge(t *testing.T) {
	w := newWorld(t, topologies[1], "")
	w.gw("ip", "link", "add", "br-lan", "type", "bridge")
	w.gw("ip", "link", "add", "br-on", "type", "bridge", "nf_call_iptables", "1")
	w.pods(web, client)
	if got := w.flags("cni0"); got != "0 0" {
		t.Fatalf("flags of cni0 before the daemon: %s", got)
	}
	w.must(w.Start())
	w.enforce(policy("web", isolateWeb))
	for bridge, want := range map[string]string{"cni0": "1 1", "br-lan": "0 0", "br-on": "1 0"} {
		if got := w.flags(bridge); got != want {
			t.Errorf("flags of %s: %s, want %s", bridge, got, want)
		}
	}
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		if got := strings.TrimSpace(w.gw("cat", "/proc/sys/net/bridge/bridge-nf-call-"+name)); got != "0" {
			t.Errorf("sysctl bridge-nf-call-%s is %s, want 0", name, got)
		}
	}
	const separated = "client web 80 no\n web client 80 yes"
	w.see("on one bridge", separated)
	w.healthy()

	for _, off := range [][]string{{"nf_call_iptables", "0", "nf_call_ip6tables", "0"}, {"nf_call_ip6tables", "0"}, {"nf_call_iptables", "0"}} {
		w.gw("ip", append(strings.Fields("link set cni0 type bridge"), off...)...)
		w.eventually("cni0 filters again after somebody switched that off", func() bool { return w.flags("cni0") == "1 1" })
		w.see("again", separated)
	}

	w.must(w.Stop())
	w.see("the daemon has ended", separated)
	if got := w.flags("cni0"); got != "1 1" {
		t.Errorf("flags of cni0 after the daemon: %s", got)
	}
}

// S26: a bridge that another program makes anew carries pods again only with the
// filter on.
func TestS26BridgeMadeAnew(t *testing.T) {
	w := newWorld(t, topologies[1], "")
	w.pods(web, client)
	w.must(w.Start())
	w.enforce(policy("web", isolateWeb))
	w.gw("ip", "link", "del", "cni0")
	w.gw("sh", "-c", "ip link add cni0 type bridge && ip addr add 10.42.0.1/24 dev cni0 && ip addr add fd42::1/64 dev cni0 && ip link set cni0 up")
	for _, n := range []string{"web", "client"} {
		w.gw("ip", "link", "set", w.names[n].HostInterface, "master", "cni0")
	}
	w.eventually("the new cni0 filters", func() bool { return w.flags("cni0") == "1 1" })
	w.eventually("its ports forward again", func() bool { return w.reach(tcp("10.42.0.12", "10.42.0.11", 80)) })
	w.see("the new bridge", "client web 80 no\n web client 80 yes")
}

// hostPorts is what the portmap plugin does, in a table of its own.
const hostPorts = `table inet portmap {
	chain pre { type nat hook prerouting priority dstnat; ip daddr 192.168.254.1 tcp dport 8080 dnat ip to 10.42.0.12:80; ip6 daddr fd00:254::1 tcp dport 8080 dnat ip6 to [fd42::12]:80; }
	chain out { type nat hook output priority -100; ip daddr 192.168.254.1 tcp dport 8080 dnat ip to 10.42.0.12:80; ip6 daddr fd00:254::1 tcp dport 8080 dnat ip6 to [fd42::12]:80; }
	chain post { type nat hook postrouting priority srcnat; oifname "uplink" ip saddr 10.42.0.0/24 masquerade; oifname "uplink" ip6 saddr fd42::/64 masquerade; }
}`

// S27: traffic is judged by its address after DNAT at the destination, and
// before SNAT at the source.
func TestS27NAT(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.nft(hostPorts)
		w.serve("web", "tcp", 80)
		w.serve("outside", "tcp", 443)
		hostPort := []string{"192.168.254.1:8080", "[fd00:254::1]:8080"}
		each := func(from string, ok bool, to ...string) {
			w.t.Helper()
			for _, at := range to {
				if ok {
					w.connects(from, "tcp", at)
				} else {
					w.fails(from, "tcp", at)
				}
			}
		}
		outside := `[{ipBlock: {cidr: 192.168.254.0/24}}, {ipBlock: {cidr: "fd00:254::/64"}}]`
		w.run("hostPort", func() {
			each("outside", true, hostPort...)
			w.enforce(policy("web", isolateWeb+", ingress: [{from: "+outside+", ports: [{port: 80}]}]"))
			each("outside", true, hostPort...)
			each("client", false, hostPort...)
			w.enforce(policy("web", isolateWeb+", ingress: [{from: "+outside+", ports: [{port: 8080}]}]"))
			each("outside", false, hostPort...) // it is the pod's port that counts
			w.enforce(policy("web", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]"))
			each("outside", false, hostPort...)
			each("client", true, hostPort...)
			each("gateway", true, hostPort...)
		})
		w.run("egress through a hostPort", func() {
			w.enforce(policy("client", "podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}]"))
			each("client", true, hostPort...)
			w.enforce(policy("client", "podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: "+outside+"}]"))
			each("client", false, hostPort...) // the address that it asked for is the gateway's, and allowed; the pod's is not
		})
		w.run("masquerade", func() {
			out := []string{"192.168.254.2:443", "[fd00:254::2]:443"}
			w.enforce(policy("web", isolateWeb+", policyTypes: [Egress], egress: [{to: "+outside+", ports: [{port: 443}]}]"))
			each("web", true, out...)
			w.enforce(policy("web", isolateWeb+", policyTypes: [Egress], egress: [{to: "+outside+", ports: [{port: 444}]}]"))
			each("web", false, out...)
			each("client", true, out...)
		})
	})
}
