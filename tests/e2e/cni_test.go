package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// cniWorld is a world whose pods are made by CNI plugins.
type cniWorld struct {
	*world
	cni *lab.CNI
}

// newCNIWorld makes a gateway with a CNI network of a plugin and a daemon, not
// yet started. sources and config are added to its configuration, under sources
// and at the top.
func newCNIWorld(t testing.TB, plugin, sources, config string) *cniWorld {
	t.Helper()
	kind := lab.Routed
	if plugin == "bridge" {
		kind = lab.Bridge
	}
	w := newWorld(t, lab.Topology{Kind: kind, Dynamic: true}, "")
	c, err := w.CNI(filepath.Join(w.Folder, "cni"), plugin)
	w.must(err)
	cw := &cniWorld{w, c}
	cw.configure(sources, config)
	return cw
}

// configure writes the daemon's configuration file.
func (w *cniWorld) configure(sources, config string) {
	w.t.Helper()
	text := fmt.Sprintf("sources:\n  directory: {path: %s}\n  cni: {resultsDir: %s, configDir: %s}\n%sstateDir: %s\nsocket: %s\n%s",
		w.Dir, w.cni.ResultsDir, w.cni.ConfigDir, sources, w.State, filepath.Join(w.Folder, "edgepolicyd.sock"), config)
	w.must(os.WriteFile(w.Config, []byte(text), 0o644))
}

// plugged runs a test with routed and with bridged pods.
func plugged(t *testing.T, config string, test func(t *testing.T, w *cniWorld)) {
	for _, plugin := range []string{"ptp", "bridge"} {
		t.Run(plugin, func(t *testing.T) { test(t, newCNIWorld(t, plugin, "", config)) })
	}
}

// add makes pods, "namespace/name", and names them by their last part.
func (w *cniWorld) add(pods ...string) {
	w.t.Helper()
	for _, p := range pods {
		w.addAt(p)
	}
}

// addAt makes a pod with these addresses, or the next that are free.
func (w *cniWorld) addAt(pod string, addrs ...netip.Addr) {
	w.t.Helper()
	n, err := w.cni.AddPod(context.Background(), pod, "uid-of-"+pod, addrs...)
	w.must(err)
	_, name, _ := strings.Cut(pod, "/")
	w.names[name] = n
}

// del takes pods away.
func (w *cniWorld) del(names ...string) {
	w.t.Helper()
	for _, name := range names {
		w.must(w.cni.Del(context.Background(), w.names[name]))
		delete(w.names, name)
	}
}

// none fails if a packet arrives; text names each.
func (w *cniWorld) none(why string, probes []lab.Probe, text []string) {
	w.t.Helper()
	got, err := w.Probe(context.Background(), probes)
	w.must(err)
	arrived := 0
	for i, p := range probes {
		if !got[i] {
			continue
		}
		if arrived++; arrived <= 10 {
			w.t.Errorf("%s: %s: %s from %s to %s arrived in %s", why, text[i], p.Src, p.From.Name, p.Dst, p.To.Name)
		}
	}
	if arrived > 10 {
		w.t.Errorf("%s: %d of %d packets arrived", why, arrived, len(probes))
	}
}

// same is the address of the list that is of the family of a.
func same(a netip.Addr, list []netip.Addr) netip.Addr {
	for _, b := range list {
		if a.Is4() == b.Is4() {
			return b
		}
	}
	return netip.Addr{}
}

// crowdOfNamespaces: web is reached by pods of namespace client, evil may do
// nothing, nobody else is isolated.
const crowdOfNamespaces = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: web}
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: client}}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: evil, namespace: evil}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
`

// forgeries are packets of a pod that are not its own to send, with a word on
// each. Each goes to every place that could be fooled.
func (w *cniWorld) forgeries(from string) (probes []lab.Probe, text []string) {
	w.t.Helper()
	sender := w.names[from]
	places := map[string]*lab.Namespace{"web": w.names["web"], "client": w.names["client"], "outside": w.Outside, "gateway": w.Gateway}
	sources := map[string][]netip.Addr{
		"a free address of the range": parse("10.88.0.250", "fd88::250"),
		"an address of nobody":        parse("203.0.113.9", "2001:db8::9"),
		"the gateway's address":       parse("10.88.0.1", "fd88::1"),
		"the outside's address":       parse("192.168.254.2", "fd00:254::2"),
		"the uplink's address":        parse("192.168.254.1", "fd00:254::1"),
		"no address":                  parse("0.0.0.0", "::"),
		"loopback":                    parse("127.0.0.1", "::1"),
		"an IPv4-mapped address":      {netip.MustParseAddr("::ffff:10.88.0.3")},
		"its link-local address":      {sender.LinkLocal},
	}
	for _, other := range []string{"web", "client", "evil", "open"} {
		if other != from {
			sources[other+"'s address"] = w.names[other].Addresses
		}
	}
	for what, addrs := range sources {
		for place, to := range places {
			if place == from {
				continue
			}
			for _, src := range addrs {
				dst := same(src, w.addrs(place))
				for _, vlan0 := range []bool{false, true} {
					for _, proto := range []inventory.Protocol{inventory.UDP, inventory.TCP, inventory.ICMP} {
						probes = append(probes, lab.Probe{From: sender, Src: src, To: to, Dst: dst, Proto: proto, DstPort: 80, VLAN0: vlan0})
						text = append(text, fmt.Sprintf("%s, %s, VLAN 0 %v", what, proto, vlan0))
					}
				}
			}
		}
	}
	return probes, text
}

// S11, hole 6: what a pod sends under an address that is not its own arrives
// nowhere: neither in a pod, nor outside, nor in the gateway itself. Isolated or
// not: nobody's policy is for those packets.
func TestForgedSourcesArriveNowhere(t *testing.T) {
	plugged(t, "", func(t *testing.T, w *cniWorld) {
		w.must(w.Write("policies.yaml", crowdOfNamespaces))
		w.must(w.Start())
		w.add("web/web", "client/client", "evil/evil", "default/open")
		w.must(w.Reload())
		const lawful = `
			client web 80 yes
			client web 80/UDP yes
			client web ping yes
			open web 80 no
			evil web 80 no
			evil client 80 no
			evil outside 80 no
			evil gateway 80 no
			web client ping yes
			open client 80 yes
			open outside 80 yes
			open gateway 80 yes
			open 10.88.0.1 53/UDP yes
			open fd88::1 53/UDP yes
			client outside ping yes
			outside client 80 yes
			outside web 80 no
			gateway web 80 yes`
		w.see("before", lawful)
		for _, from := range []string{"evil", "open", "client"} {
			probes, text := w.forgeries(from)
			w.none("from "+from, probes, text)
		}
		w.see("after", lawful)
		w.healthy()
	})
}

// Holes 3 and 4, S7: link-local addresses, multicast and broadcast, and frames
// with a VLAN tag are no way round a policy, neither to a neighbour nor to the
// gateway.
func TestNoWayAroundOverTheLink(t *testing.T) {
	plugged(t, "", func(t *testing.T, w *cniWorld) {
		w.must(w.Write("policies.yaml", crowdOfNamespaces))
		w.must(w.Start())
		w.add("web/web", "client/client", "evil/evil", "default/open")
		w.must(w.Reload())
		groups := parse("224.0.0.1", "224.0.0.251", "239.1.2.3", "255.255.255.255", "10.88.0.255", "ff02::1", "ff02::fb", "ff05::2")
		for _, from := range []string{"evil", "open"} {
			var probes []lab.Probe
			var text []string
			sender := w.names[from]
			try := func(what string, p lab.Probe) {
				for _, vlan0 := range []bool{false, true} {
					p.From, p.VLAN0 = sender, vlan0
					for _, proto := range []inventory.Protocol{inventory.UDP, inventory.TCP, inventory.ICMP} {
						p.Proto, p.DstPort = proto, 80
						probes, text = append(probes, p), append(text, fmt.Sprintf("%s, %s, VLAN 0 %v", what, proto, vlan0))
					}
				}
			}
			for _, to := range []string{"web", "client"} {
				try("link-local", lab.Probe{Src: sender.LinkLocal, To: w.names[to], Dst: w.names[to].LinkLocal})
				try("own address to link-local", lab.Probe{Src: same(netip.IPv6Loopback(), sender.Addresses), To: w.names[to], Dst: w.names[to].LinkLocal})
				try("link-local to its address", lab.Probe{Src: sender.LinkLocal, To: w.names[to], Dst: same(netip.IPv6Loopback(), w.names[to].Addresses)})
				for _, g := range groups {
					try("group", lab.Probe{Src: same(g, sender.Addresses), To: w.names[to], Dst: g})
					if g.Is6() {
						try("link-local to group", lab.Probe{Src: sender.LinkLocal, To: w.names[to], Dst: g})
					}
				}
			}
			for _, a := range w.gatewaySide(from) {
				try("link-local to the gateway", lab.Probe{Src: sender.LinkLocal, To: w.Gateway, Dst: a})
			}
			w.none("from "+from, probes, text)
		}
		// An allowed pod's tagged frame is no frame of its own (S26); routed, the
		// kernel takes the tag off before anything looks, and the packet is judged.
		tagged := lab.Probe{From: w.names["evil"], Dst: w.addrs("web.4")[0], Proto: inventory.UDP, DstPort: 80, VLAN0: true}
		w.expect(false, "tagged, evil to web", tagged)
		tagged.From = w.names["client"]
		w.expect(w.Kind == lab.Routed, "tagged, client to web", tagged)
	})
}

// gatewaySide gives the gateway's link-local address on the interface that a pod
// hangs on.
func (w *cniWorld) gatewaySide(pod string) []netip.Addr {
	w.t.Helper()
	link := lab.BridgeName
	if w.Kind == lab.Routed {
		link = w.names[pod].HostInterface
	}
	for _, f := range strings.Fields(w.gw("ip", "-6", "-o", "addr", "show", "dev", link, "scope", "link")) {
		if a, ok := strings.CutSuffix(f, "/64"); ok {
			return parse(a)
		}
	}
	w.t.Fatalf("%s has no link-local address", link)
	return nil
}

// S22: what the source checks leave alone: ARP, neighbour discovery, ping and
// real connections, from empty neighbour tables.
func TestNeighboursFindEachOtherUnderSourceChecks(t *testing.T) {
	plugged(t, "", func(t *testing.T, w *cniWorld) {
		w.must(w.Write("policies.yaml", crowdOfNamespaces))
		w.must(w.Start())
		w.add("web/web", "client/client", "evil/evil", "default/open")
		w.must(w.Reload())
		w.serve("web", "tcp", 80)
		w.serve("client", "udp", 80)
		w.serve("outside", "tcp", 80)
		for round := range 2 {
			for _, n := range []string{"web", "client", "open", "gateway"} {
				for _, family := range []string{"-4", "-6"} {
					_, err := w.names[n].Run("ip", family, "neigh", "flush", "all")
					w.must(err)
				}
			}
			for _, a := range w.addrs("web") {
				w.connects("client", "tcp", netip.AddrPortFrom(a, 80).String())
				w.connects("gateway", "tcp", netip.AddrPortFrom(a, 80).String())
				if round == 0 {
					w.fails("open", "tcp", netip.AddrPortFrom(a, 80).String())
				}
			}
			for _, a := range w.addrs("client") {
				w.connects("open", "udp", netip.AddrPortFrom(a, 80).String())
				w.connects("outside", "udp", netip.AddrPortFrom(a, 80).String())
				if round == 0 {
					w.fails("evil", "udp", netip.AddrPortFrom(a, 80).String())
				}
			}
			for _, a := range w.addrs("outside") {
				w.connects("open", "tcp", netip.AddrPortFrom(a, 80).String())
				_, err := w.names["client"].Run("ping", "-c", "1", "-W", "5", a.String())
				w.must(err)
			}
		}
		w.healthy()
	})
}

// A packet inside the five-tuple of a connection of others, which the fast path
// would let pass, is dropped at its wrong interface, and the connection goes on.
func TestForgedPacketsOfAConnectionDoNotPass(t *testing.T) {
	plugged(t, "", func(t *testing.T, w *cniWorld) {
		w.must(w.Write("policies.yaml", crowdOfNamespaces))
		w.must(w.Start())
		w.add("web/web", "client/client", "evil/evil", "default/open")
		w.must(w.Reload())
		w.serve("web", "udp", 53)
		w.serve("outside", "udp", 53)
		for _, target := range []string{"web", "outside"} {
			for _, a := range w.addrs(target) {
				c := w.connects("client", "udp", netip.AddrPortFrom(a, 53).String())
				if c == nil {
					continue
				}
				local := netip.MustParseAddrPort(c.LocalAddr().String())
				forged := lab.Probe{Src: local.Addr(), To: w.names[target], Dst: a, Proto: inventory.UDP, SrcPort: local.Port(), DstPort: 53}
				back := lab.Probe{Src: a, To: w.names["client"], Dst: local.Addr(), Proto: inventory.UDP, SrcPort: 53, DstPort: local.Port()}
				for _, from := range []string{"evil", "open"} {
					forged.From, back.From = w.names[from], w.names[from]
					w.fate(from+" inside client's flow to "+target, []bool{false, false, false, false}, forged, back, forged, back)
				}
				w.works("the flow itself", c)
			}
		}
	})
}

// S32: who gets the address of a pod that is gone gets neither its policy nor its
// connections, from the first packet on; and the other way round.
func TestAddressOfADeletedPodIsJudgedAnew(t *testing.T) {
	plugged(t, "", func(t *testing.T, w *cniWorld) {
		w.must(w.Write("policies.yaml", crowdOfNamespaces))
		w.must(w.Start())
		w.add("web/web", "client/client")
		w.must(w.Reload())
		w.serve("web", "udp", 53)
		w.serve("outside", "udp", 53)
		mine := slices.Clone(w.addrs("client"))
		var old []lab.Probe
		for _, target := range []string{"web", "outside"} {
			for _, a := range w.addrs(target) {
				c := w.connects("client", "udp", netip.AddrPortFrom(a, 53).String())
				if c == nil {
					return
				}
				local := netip.MustParseAddrPort(c.LocalAddr().String())
				old = append(old,
					lab.Probe{Src: local.Addr(), Dst: a, Proto: inventory.UDP, SrcPort: local.Port(), DstPort: 53},
					lab.Probe{From: w.names[target], Src: a, Dst: local.Addr(), Proto: inventory.UDP, SrcPort: 53, DstPort: local.Port()})
			}
		}
		w.fate("the flows of client", slices.Repeat(yes, len(old)), old...)
		w.del("client")
		w.addAt("evil/evil", mine...)
		w.fate("at once after the ADD of evil", slices.Repeat(no, len(old)), old...)
		w.must(w.Reload())
		w.fate("evil is known", slices.Repeat(no, len(old)), old...)
		w.del("evil")
		w.addAt("client/next", mine...)
		w.must(w.Reload())
		w.gw("ip", "neigh", "flush", "all") // else the gateway sends to the last owner's MAC address for a while
		w.see("the next client", `
			next web 80 yes
			next outside 80 yes
			outside next 80 yes`)
	})
}

// stranger makes a pod that the daemon does not know: it is there, its result is
// not.
func (w *cniWorld) stranger(pod string, addrs ...netip.Addr) {
	w.t.Helper()
	w.addAt(pod, addrs...)
	_, name, _ := strings.Cut(pod, "/")
	w.must(os.Remove(w.cni.ResultFile(w.names[name])))
	w.must(w.Reload())
}

// A result outlives its pod when the power is cut. Its address is nobody's then:
// whoever has it is held, and not taken for the pod of the file.
func TestResultsOfAnEarlierBootAreNotBelieved(t *testing.T) {
	plugged(t, "", func(t *testing.T, w *cniWorld) {
		w.must(w.Write("policies.yaml", crowdOfNamespaces))
		w.must(w.Start())
		w.add("web/web", "client/client")
		w.must(w.Reload())
		w.see("before", "client web 80 yes")
		n := w.names["client"]
		mine, file := slices.Clone(n.Addresses), w.cni.ResultFile(n)
		left, err := os.ReadFile(file)
		w.must(err)
		w.must(w.cni.Lose(n))
		for _, a := range mine {
			w.must(os.Remove(filepath.Join(w.Folder, "cni", "networks", "edgenet", a.String())))
		}
		w.stranger("evil/evil", mine...)
		if now, err := os.ReadFile(file); err != nil || string(now) != string(left) {
			w.t.Fatalf("the old result changed: %v", err)
		}
		const nothing = `
			evil web 80 no
			evil outside 80 no
			evil gateway 80 no
			outside evil 80 no
			web evil 80 no`
		w.see("with the file of the old pod", nothing)
		w.must(w.Stop())
		w.must(w.Start())
		w.see("after a restart", nothing)
		if s, _ := w.status(); s.Pods != 1 {
			w.t.Errorf("%d pods are known, want web alone", s.Pods)
		}
	})
}

// A mistyped range must not cut off the LAN: one that holds the router, or an
// address of the gateway outside the pods' interfaces, is refused and named.
func TestAWrongPodRangeIsRefused(t *testing.T) {
	for _, r := range []string{"192.168.254.0/24", "192.168.0.0/16", "0.0.0.0/0", "fd00:254::/64", "192.168.254.2/32"} {
		t.Run(r, func(t *testing.T) {
			w := newCNIWorld(t, "bridge", "", fmt.Sprintf("podRanges: [%q, 10.88.0.0/24]\nholdUnknownPods: on\n", r))
			w.must(w.Write("policies.yaml", crowdOfNamespaces))
			w.must(w.Start())
			w.add("web/web", "client/client")
			w.must(w.Reload())
			w.degraded(r)
			w.must(w.AddOutside(parse("192.168.254.77", "fd00:254::77")...))
			w.see("with the range "+r, `
				outside gateway 22 yes
				192.168.254.77 gateway 22 yes
				fd00:254::77 gateway 22 yes
				gateway outside 443 yes
				gateway 192.168.254.77 443 yes
				client outside 443 yes
				client 192.168.254.77 443 yes
				outside client 80 yes
				client web 80 yes
				outside web 80 no`)
			// The range that is right holds.
			w.stranger("default/stranger")
			w.see("nobody knows the stranger", "stranger.4 outside 80 no\noutside stranger.4 80 no\nstranger.4 gateway 80 no")
		})
	}
}

// S34: a macvlan pod's packets leave by the network card's queue, past our hooks.
func TestS34MacvlanPodIsNamed(t *testing.T) {
	w := newWorld(t, lab.Topology{Dynamic: true}, "")
	c, err := w.CNI(filepath.Join(w.Folder, "cni"), "macvlan")
	w.must(err)
	cw := &cniWorld{w, c}
	cw.configure("", "")
	w.must(w.Write("policies.yaml", documents(policy("lan/all", "podSelector: {}, policyTypes: [Ingress, Egress]"))))
	w.must(w.Start())
	cw.add("lan/camera")
	named := func() bool {
		s, _ := w.status()
		return slices.ContainsFunc(s.Unenforceable, func(u status.Unenforceable) bool { return u.Pod == "lan/camera" })
	}
	w.eventually("named as not enforceable", named)
	w.degraded("lan/camera")
	if s, _ := w.status(); s.IsolatedPods != 0 {
		w.t.Errorf("%d pods are said to be isolated", s.IsolatedPods)
	}
	cw.del("camera")
	w.eventually("forgotten with its pod", func() bool { return !named() })
	w.healthy()
}

// waitFor waits for something that should come, however busy the machine is, and
// gives the time it took.
func (w *world) waitFor(what string, ok func() bool) time.Duration {
	w.t.Helper()
	start := time.Now()
	for ; !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 60*time.Second {
			w.t.Fatalf("within a minute: not %s", what)
		}
	}
	return time.Since(start)
}
