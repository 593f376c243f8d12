package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
)

// The holes that designs of this table had, each a test. Those that can only be
// closed where the pods' interfaces are known wait for a source that knows them:
//
//   - on a bridge, link-local to link-local, multicast and broadcast to a pod;
//   - a pod's link-local address to the gateway's, past egress;
//   - traffic of pods that nobody knows yet (hold), and its place before the
//     verdict maps;
//   - forged sources: another pod's address, or an address that is no pod's; but
//     for the pod's own address and the gateway's, which are here and in S23, S24.

func flowOf(src, dst string) lab.Probe {
	return lab.Probe{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Proto: inventory.UDP, SrcPort: 7000, DstPort: 53}
}

// fate probes and fails unless each packet has the fate that is written beside it.
func (w *world) fate(why string, want []bool, probes ...lab.Probe) {
	w.t.Helper()
	got, err := w.Probe(context.Background(), probes)
	w.must(err)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		w.t.Errorf("%s: arrived %v, want %v", why, got, want)
	}
}

var yes, no = []bool{true}, []bool{false}

// Hole 1: an ICMP error about a flow that was revoked, forged by either end or by
// a third party, must not revive it.
func TestHoleForgedErrorRevivesNothing(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.serve("web", "udp", 53)
		for _, a := range [][3]string{{"10.42.0.11", "10.42.0.12", "192.168.254.2"}, {"fd42::11", "fd42::12", "fd00:254::2"}} {
			flow := flowOf(a[0], a[1])
			reply := lab.Probe{Src: flow.Dst, Dst: flow.Src, Proto: flow.Proto, SrcPort: flow.DstPort, DstPort: flow.SrcPort}
			byClient := lab.Probe{From: w.names["client"], Src: flow.Src, Dst: flow.Dst, Proto: inventory.ICMP, ICMP: icmpError(true, reply)}
			byServer := lab.Probe{From: w.names["web"], Src: flow.Dst, Dst: flow.Src, Proto: inventory.ICMP, ICMP: icmpError(true, flow)}
			byRouter := lab.Probe{From: w.Outside, Src: netip.MustParseAddr(a[2]), Dst: flow.Dst, Proto: inventory.ICMP, ICMP: icmpError(false, reply)}
			w.enforce(allowClient)
			w.fate("allowed", []bool{true, true, true, true, true}, flow, reply, byClient, byServer, byRouter)
			w.enforce(denyWeb)
			// Before any packet of the flow was judged anew, an error may still pass:
			// the flow's mark says that it was allowed. But it must not renew the mark.
			_, err := w.Probe(context.Background(), []lab.Probe{byClient, byServer, byRouter})
			w.must(err)
			for range 3 {
				w.fate("revoked", []bool{false, false, false, false, false}, flow, reply, byClient, byServer, byRouter)
			}
			w.enforce(allowClient)
			w.fate("allowed again", []bool{true, true}, flow, reply)

			// The third party may itself send anything to the pod.
			third := `{ipBlock: {cidr: 192.168.254.2/32}}, {ipBlock: {cidr: "fd00:254::2/128"}}`
			w.enforce(policy("web", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}, "+third+"]}]"))
			w.fate("allowed", []bool{true, true}, flow, reply)
			w.enforce(policy("web", isolateWeb+", ingress: [{from: ["+third+"]}]"))
			for range 3 {
				w.fate("revoked", []bool{false, false}, flow, reply)
				for _, about := range []lab.Probe{flow, reply} {
					byRouter.ICMP = icmpError(false, about)
					w.fate("allowed by itself", yes, byRouter)
				}
			}
		}
	})
}

// Hole 2: a pod that becomes known, or isolated, cuts the flows that its address
// had until then.
func TestHolePodAddedUnderEstablishedFlow(t *testing.T) {
	both(t, "", func(t *testing.T, w *world) {
		w.pods(web, client)
		w.pod("other", other.addresses()...)
		w.serve("other", "udp", 53)
		w.must(w.Start())
		w.enforce(policy("other", "podSelector: {matchLabels: {app: other}}, policyTypes: [Ingress, Egress]"))
		var flows, replies []lab.Probe
		for _, a := range [][2]string{{"10.42.0.11", "10.42.0.13"}, {"fd42::11", "fd42::13"}, {"192.168.254.2", "10.42.0.13"}, {"fd00:254::2", "fd42::13"}} {
			f := flowOf(a[0], a[1])
			flows = append(flows, f)
			replies = append(replies, lab.Probe{Src: f.Dst, Dst: f.Src, Proto: f.Proto, SrcPort: f.DstPort, DstPort: f.SrcPort})
		}
		w.fate("nobody knows the pod", []bool{true, true, true, true}, flows...)
		w.apply("other.yaml", other.yaml())
		// The gateway's conntrack has the replies of the echo server: the flows are
		// established.
		w.fate("the pod is known", []bool{false, false, false, false}, flows...)
		w.fate("and in the other direction", []bool{false, false, false, false}, replies...)
		w.apply("other.yaml", pod{name: "other", n: 13, labels: "app: open"}.yaml())
		w.fate("not isolated", []bool{true, true, true, true}, flows...)
	})
}

// Hole 2: an address that changes hands takes no established flow along.
func TestHoleAddressChangesHands(t *testing.T) {
	both(t, "", func(t *testing.T, w *world) {
		w.pods(client, other)
		open, closed := pod{name: "open", labels: "app: open"}, pod{name: "closed", labels: "app: web"}
		w.pod("open", "10.42.0.21", "fd42::21")
		w.pod("closed", "10.42.0.22", "fd42::22")
		first := documents(open.at("10.42.0.21", "fd42::21"), closed.at("10.42.0.22", "fd42::22"))
		swapped := documents(open.at("10.42.0.22", "fd42::22"), closed.at("10.42.0.21", "fd42::21"))
		w.must(w.Write("two.yaml", first))
		w.must(w.Start())
		w.enforce(policy("web", isolateWebBothWays+", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]"))
		swap := func(a, b string) {
			w.t.Helper()
			list := parse("10.42.0.21", "fd42::21", "10.42.0.22", "fd42::22")
			w.must(w.Readdress(w.names["open"]))
			w.must(w.Readdress(w.names["closed"]))
			w.must(w.Readdress(w.names[a], list[:2]...))
			w.must(w.Readdress(w.names[b], list[2:]...))
		}
		at21 := []lab.Probe{flowOf("10.42.0.13", "10.42.0.21"), flowOf("fd42::13", "fd42::21")}
		ofClient := []lab.Probe{flowOf("10.42.0.11", "10.42.0.21"), flowOf("fd42::11", "fd42::21")}
		for range 5 {
			w.fate("of the open pod", []bool{true, true}, at21...)
			w.fate("of the open pod", []bool{true, true}, ofClient...)
			swap("closed", "open")
			w.apply("two.yaml", swapped)
			w.fate("of the closed one", []bool{false, false}, at21...)
			w.fate("of the closed one, allowed", []bool{true, true}, ofClient...)
			swap("open", "closed")
			w.apply("two.yaml", first)
		}
	})
}

// Hole 7: what passes for IPv6's sake is only what can't come from afar and can't
// go there: routed ICMPv6 of those types carries no data.
func TestHoleNeighbourDiscoveryCarriesNothing(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.enforce(
			policy("web", isolateWebBothWays),
			policy("client", "podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress]"))
		message := func(typ, hops byte, to *lab.Namespace, dst string) lab.Probe {
			m := append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr(dst).AsSlice()...)
			return lab.Probe{From: w.names["client"], Src: netip.MustParseAddr("fd42::11"), To: to, Dst: netip.MustParseAddr(dst), Proto: inventory.ICMPv6, ICMP: m, HopLimit: hops}
		}
		for _, typ := range []byte{130, 131, 132, 133, 135, 136, 143} {
			for _, hops := range []byte{2, 64, 254, 255} {
				why := fmt.Sprintf("ICMPv6 type %d, hop limit %d", typ, hops)
				// Routed, 255 is 254 by the time that it is judged.
				w.fate(why+", routed outside", no, message(typ, hops, w.Outside, "fd00:254::2"))
				onLink := hops == 255
				w.fate(why+", to a pod", []bool{onLink && w.Kind == lab.Bridge}, message(typ, hops, w.names["web"], "fd42::12"))
				w.fate(why+", to the gateway", []bool{onLink}, message(typ, hops, w.Gateway, "fd00:254::1"))
			}
			if w.Kind == lab.Bridge { // of MLD, only what goes to multicast
				w.fate(fmt.Sprintf("ICMPv6 type %d, hop limit 1, to multicast", typ), yes, message(typ, 1, w.names["web"], "ff02::16"))
				w.fate(fmt.Sprintf("ICMPv6 type %d, hop limit 1, to a pod", typ), no, message(typ, 1, w.names["web"], "fd42::12"))
			}
			w.fate(fmt.Sprintf("ICMPv6 type %d, hop limit 1, to the gateway", typ), no, message(typ, 1, w.Gateway, "fd00:254::1"))
		}
		// Other types pass by neither hop limit.
		w.fate("echo request, hop limit 255", []bool{false, false}, message(128, 255, w.names["web"], "fd42::12"), message(128, 255, w.Gateway, "fd00:254::1"))
	})
}

// Hole 8: packets that conntrack calls invalid pass to pods that are not isolated,
// and are judged like others where a pod is.
func TestHoleInvalidIsNoReason(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.nft("table inet other { chain pre { type filter hook prerouting priority -100; ct state invalid tcp flags & (fin | syn) == fin | syn counter name invalid; }\n counter invalid { }\n }\n")
		w.enforce(allowClient)
		invalid := func(src, dst string) lab.Probe {
			p := tcp(src, dst, 80)
			p.TCPFlags = 0x03 // SYN and FIN
			return p
		}
		for _, a := range [][4]string{{"10.42.0.11", "10.42.0.12", "10.42.0.13", "192.168.254.2"}, {"fd42::11", "fd42::12", "fd42::13", "fd00:254::2"}} {
			w.fate("to and from "+a[0], []bool{true, true, true, true, false, false, false},
				invalid(a[0], a[2]), invalid(a[3], a[2]), invalid(a[2], a[3]), // not isolated
				invalid(a[0], a[1]),                                           // allowed
				invalid(a[2], a[1]), invalid(a[3], a[1]), invalid(a[1], a[2])) // denied
		}
		if got := w.counters("other")["invalid"]; got != 14 {
			w.t.Errorf("conntrack called %d of the 14 packets invalid: the test does not test it", got)
		}
	})
}

// Hole 3: a VLAN tag, with which a frame passes the bridge unseen by the inet
// hooks. It is dropped between the ports of a bridge that carries pods, and on
// no other.
func TestHoleVLANTags(t *testing.T) {
	w := newWorld(t, topologies[1], "")
	w.pods(web, client)
	tagged := func(src, dst string) lab.Probe {
		p := flowOf(src, dst)
		p.VLAN0 = true
		return p
	}
	probes := []lab.Probe{tagged("10.42.0.11", "10.42.0.12"), tagged("fd42::11", "fd42::12")}
	w.fate("without the daemon", []bool{true, true}, probes...)
	w.must(w.Start())
	w.enforce(denyWeb)
	w.fate("with it", []bool{false, false}, probes...)
	w.healthy()
	if listed := w.gw("nft", "list", "table", "bridge", "edgepolicyd"); !strings.Contains(listed, w.names["web"].HostInterface) {
		t.Errorf("a person can't read which ports these are:\n%s", listed)
	}

	for _, command := range []string{"delete table bridge edgepolicyd", "flush chain bridge edgepolicyd prerouting"} {
		if _, err := w.Gateway.Run("nft", strings.Fields(command)...); err == nil {
			t.Errorf("nft %s succeeded", command)
		}
		w.must(w.Kill()) // nobody owns it any more
		w.gw("nft", strings.Fields(command)...)
		w.must(w.Start())
		w.fate("after nft "+command, []bool{false, false}, probes...)
	}

	// A network card makes it a bridge of the LAN, where tags are others' business.
	w.gw("ip", "link", "add", "link", lab.UplinkName, "name", "mac0", "type", "macvlan")
	w.gw("ip", "link", "set", "mac0", "master", "cni0")
	w.eventually("tags pass on a bridge with other ports", func() bool { return w.reach(probes[0]) })
	w.gw("ip", "link", "del", "mac0")
	w.eventually("and not without them", func() bool { return !w.reach(probes[0]) })

	w.must2(w.Run("flush"))
	if got := w.tables(); got != "" {
		t.Errorf("after flush: %s", got)
	}
	w.must(w.Reload())
	w.fate("after flush and reload", []bool{false, false}, probes...)
	w.must(w.Kill())
	w.fate("after the daemon's death", []bool{false, false}, probes...)

	// Neither state nor directory: the tables are all that is known.
	w.must(os.RemoveAll(w.State))
	w.must(os.Rename(w.Dir, w.Dir+".away"))
	w.must(w.Start())
	w.fate("nobody knows of the pods", []bool{false, false}, probes...)
	if out, errs, code, err := w.Run("matrix"); err != nil || code != 1 || !strings.Contains(errs, "not enforced") {
		t.Errorf("matrix of what nobody knows: %v, exit code %d: %s%s", err, code, out, errs)
	}
	w.must(os.Rename(w.Dir+".away", w.Dir))
	w.must(w.Reload())
	w.healthy()
	w.fate("known again", []bool{false, false}, probes...)
	w.must(w.Kill())
	w.must2(w.Run("flush"))
	if got := w.tables(); got != "" {
		t.Errorf("after flush without a daemon: %s", got)
	}
}
