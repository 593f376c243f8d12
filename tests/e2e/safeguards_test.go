package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// S33: an address that is never a pod's is refused by name, whatever a policy
// would do with it, and its siblings are enforced.
func TestS33NeverAPodsAddress(t *testing.T) {
	both(t, "neverPods: [192.168.254.64/26, \"fd00:254::40/122\"]\n", func(t *testing.T, w *world) {
		w.pods(web, client)
		w.must(w.AddOutside(parse("192.168.254.77", "fd00:254::77")...)) // the operator
		w.must(w.Start())
		w.enforce(policy("all", "podSelector: {}, policyTypes: [Ingress, Egress]"))
		const whole = `
			outside gateway 22 yes
			gateway outside 443 yes
			192.168.254.77 gateway 22 yes
			fd00:254::77 gateway 22 yes
			gateway 192.168.254.77 443 yes
			client web 80 no
			web client 80 no`
		cases := map[string]string{
			"192.168.254.1":      "gateway's own",
			"fd00:254::1":        "gateway's own",
			"127.0.0.1":          "loopback",
			"127.8.8.8":          "loopback",
			"::1":                "loopback",
			"224.0.0.251":        "multicast",
			"ff02::1":            "multicast",
			"255.255.255.255":    "broadcast",
			"192.168.254.2":      "next hop",
			"fd00:254::2":        "next hop",
			"192.168.254.77":     "neverPods",
			"fd00:254::77":       "neverPods",
			"::ffff:127.0.0.1":   "loopback",
			w.gatewayLinkLocal(): "gateway's own",
		}
		for addr, why := range cases {
			w.must(w.Write("typo.yaml", pod{name: "typo"}.at(addr)))
			w.must(w.Reload())
			s, _ := w.status()
			named := slices.ContainsFunc(s.Rejected, func(r status.Rejected) bool {
				return r.Object == "Pod default/typo" && strings.Contains(r.File, "typo.yaml:1") && strings.Contains(r.Reason, why)
			})
			if !named {
				w.t.Errorf("a pod with the address %s is not refused as %q: %+v", addr, why, s.Rejected)
			}
			if s.Health != status.Degraded {
				w.t.Errorf("with %s: %s, want degraded", addr, s.Health)
			}
			w.see("with a pod at "+addr, whole)
		}
		// Refused whole: its good address is not half a pod.
		w.must(w.Write("typo.yaml", pod{name: "typo"}.at("10.42.0.77", "192.168.254.1")))
		w.must(w.Reload())
		w.see("one wrong address of two", whole)
		w.degraded("typo.yaml:1", "Pod default/typo", "192.168.254.1")
		w.must(w.Remove("typo.yaml"))
		w.must(w.Reload())
		w.healthy()
	})
}

// gatewayLinkLocal is a link-local address of the gateway itself.
func (w *world) gatewayLinkLocal() string {
	w.t.Helper()
	for _, f := range strings.Fields(w.gw("ip", "-6", "-o", "addr", "show", "dev", lab.UplinkName, "scope", "link")) {
		if a, ok := strings.CutSuffix(f, "/64"); ok {
			return a
		}
	}
	w.t.Fatal("the uplink has no link-local address")
	return ""
}

// S33: what is the gateway's own is kept current: an address that is added later
// is a pod's no more, one that goes may become one.
func TestS33AddressAddedLater(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	late := pod{name: "late", labels: "app: late"}
	w.pod("late", "10.42.0.99", "fd42::99")
	w.must(w.Write("late.yaml", late.at("10.42.0.99", "fd42::99")))
	w.must(w.Start())
	w.enforce(policy("all", "podSelector: {}, policyTypes: [Ingress, Egress]"))
	w.healthy()
	w.see("a pod", "client late 80 no")
	refused := func() bool {
		s, _ := w.status()
		return s.Health == status.Degraded && strings.Contains(strings.Join(s.Reasons, "\n"), "Pod default/late")
	}
	for _, a := range []string{"10.42.0.99", "fd42::99"} {
		w.gw("ip", "addr", "add", a, "dev", lab.UplinkName)
		w.eventually("refused with "+a+" on the gateway", refused)
		w.gw("ip", "addr", "del", netip.PrefixFrom(netip.MustParseAddr(a), netip.MustParseAddr(a).BitLen()).String(), "dev", lab.UplinkName)
		w.eventually("a pod again", func() bool { s, _ := w.status(); return s.Health == status.Healthy })
	}
	w.see("a pod again", "client late 80 no")
	w.gw("ip", "route", "add", "198.51.100.0/24", "via", "10.42.0.99", "dev", w.names["late"].HostInterface, "onlink")
	w.eventually("refused as a next hop", refused)
	w.degraded("next hop")
	w.gw("ip", "route", "del", "198.51.100.0/24")
	w.eventually("a pod again", func() bool { s, _ := w.status(); return s.Health == status.Healthy })
}

// unenforceable fails unless these pods, and no others, are named with a reason.
func (w *world) unenforceable(want map[string]string) {
	w.t.Helper()
	s := w.degraded()
	if len(s.Unenforceable) != len(want) {
		w.t.Errorf("not enforceable: %+v, want %v", s.Unenforceable, want)
	}
	for _, u := range s.Unenforceable {
		if why, ok := want[u.Pod]; !ok || !strings.Contains(u.Reason, why) {
			w.t.Errorf("%s: %q, want %q", u.Pod, u.Reason, why)
		}
		if !strings.Contains(strings.Join(s.Reasons, "\n"), u.Pod) {
			w.t.Errorf("%s is not among the reasons %q", u.Pod, s.Reasons)
		}
	}
}

// S34: a pod whose traffic does not pass our hooks is named and never counted as
// isolated: here macvlan pods, which reach each other on their parent's network.
// (ipvlan and flow tables are not in every kernel that runs these tests.)
func TestS34Macvlan(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	// A network card stand-in, and the gateway's own interface to its macvlans.
	w.gw("sh", "-c", `ip link add nic0 type veth peer name nic0far && ip link set nic0 up && ip link set nic0far up &&
		ip link add shim0 link nic0 type macvlan mode bridge && ip addr add 10.77.0.1/24 dev shim0 && ip link set shim0 up`)
	var docs []string
	for i, name := range []string{"cam1", "cam2"} {
		n := w.pod(name)
		w.gw("ip", "link", "add", "mac0", "link", "nic0", "netns", n.NetNS, "type", "macvlan", "mode", "bridge")
		_, err := n.Run("sh", "-c", fmt.Sprintf("ip addr add 10.77.0.%d/24 dev mac0 && ip link set mac0 up", 5+i))
		w.must(err)
		docs = append(docs, pod{name: name, labels: "app: camera"}.at(fmt.Sprintf("10.77.0.%d", 5+i)))
	}
	w.must(w.Write("cameras.yaml", documents(docs...)))
	w.must(w.Start())
	w.enforce(policy("all", "podSelector: {}, policyTypes: [Ingress, Egress]"))
	_, err := w.names["cam1"].Listen("tcp", netip.MustParseAddrPort("10.77.0.5:80"))
	w.must(err)
	w.connects("cam2", "tcp", "10.77.0.5:80") // denied, and nobody can enforce that
	w.see("the others", "client web 80 no")
	w.unenforceable(map[string]string{"default/cam1": "macvlan", "default/cam2": "macvlan"})
	if s, _ := w.status(); s.Pods != 4 || s.IsolatedPods != 2 {
		w.t.Errorf("%d pods, %d isolated; want 4 and 2", s.Pods, s.IsolatedPods)
	}
	w.must(w.Remove("cameras.yaml"))
	w.must(w.Reload())
	w.healthy()
}

// S34: pods that are out on the network, behind a router, or nowhere.
func TestS34ElsewhereByRoute(t *testing.T) {
	both(t, "", func(t *testing.T, w *world) {
		w.pods(web, client)
		w.gw("ip", "route", "add", "10.99.0.0/24", "via", "192.168.254.2", "dev", lab.UplinkName)
		w.gw("ip", "route", "add", "unreachable", "10.98.0.0/24")
		w.must(w.Write("odd.yaml", documents(
			pod{name: "host-device"}.at("192.168.254.40"),
			pod{name: "far"}.at("10.99.0.5"),
			pod{name: "internet"}.at("203.0.113.80"),
			pod{name: "nowhere"}.at("10.98.0.5"),
			pod{name: "half"}.at("10.42.0.40", "2001:db8::40"))))
		w.must(w.Start())
		w.enforce(policy("all", "podSelector: {}, policyTypes: [Ingress, Egress]"))
		want := map[string]string{
			"default/host-device": "uplink",
			"default/far":         "router 192.168.254.2",
			"default/internet":    "router 192.168.254.2",
			"default/nowhere":     "no route",
			"default/half":        "2001:db8::40",
		}
		if w.Kind == lab.Routed {
			want["default/half"] = "10.42.0.40" // no such pod: its address goes to the default route too
		}
		w.unenforceable(want)
		if s, _ := w.status(); s.Pods != 7 || s.IsolatedPods != 2 {
			w.t.Errorf("%d pods, %d isolated; want 7 and 2 (web and client)", s.Pods, s.IsolatedPods)
		}
		w.see("those that are here", "client web 80 no\n outside gateway 80 yes\n gateway outside 80 yes")

		// Found as soon as the route changes, without a reload.
		w.gw("ip", "route", "del", "unreachable", "10.98.0.0/24")
		w.pod("nowhere", "10.98.0.5")
		if w.Kind == lab.Bridge {
			w.gw("ip", "route", "replace", "10.98.0.0/24", "dev", lab.BridgeName)
		}
		w.eventually("the pod with a route is enforced", func() bool {
			s, _ := w.status()
			return s.IsolatedPods == 3 && !slices.ContainsFunc(s.Unenforceable, func(u status.Unenforceable) bool { return u.Pod == "default/nowhere" })
		})
	})
}

// S35: what neverIsolate names no policy cuts off; it is reported, and others are
// judged as if nothing had been said.
func TestS35NeverIsolate(t *testing.T) {
	both(t, "neverIsolate: [cloud, default/agent]\n", func(t *testing.T, w *world) {
		w.pods(web, client, pod{name: "agent", n: 40, labels: "app: client"}, pod{name: "cloud/sync", n: 41, labels: "app: client"}, pod{name: "far/agent", n: 42})
		w.must(w.Start())
		w.enforce(
			policy("all", "podSelector: {}, policyTypes: [Ingress, Egress]"),
			policy("cloud/all", "podSelector: {}, policyTypes: [Ingress, Egress]"),
			policy("far/all", "podSelector: {}, policyTypes: [Ingress, Egress]"),
			policy("web", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]"))
		w.see("exempt", `
			outside agent 80 yes
			agent outside 443 yes
			agent gateway 22 yes
			outside cloud/sync 80 yes
			cloud/sync outside ping yes
			agent cloud/sync 80 yes
			agent web 80 yes        # by the policy of web
			agent web 81 no
			cloud/sync web 80 no    # of another namespace
			web agent 80 no         # by web's own isolation
			outside web 80 no
			outside far/agent 80 no # of another namespace than the one that is named
			client web 80 no`) // its egress is denied
		s, _ := w.status()
		if got := fmt.Sprint(s.NeverIsolated); got != "[cloud/sync default/agent]" {
			w.t.Errorf("reported as never isolated: %s", got)
		}
		if s.Pods != 5 || s.IsolatedPods != 3 {
			w.t.Errorf("%d pods, %d isolated; want 5 and 3", s.Pods, s.IsolatedPods)
		}
		w.healthy()
	})
}
