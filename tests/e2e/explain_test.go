package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/explain"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

// explain asks the daemon as a person does.
func (w *world) explain(from, to string, port ...string) explain.Explanation {
	w.t.Helper()
	out, errs, code, err := w.Run(append([]string{"explain", "-o", "json", from, to}, port...)...)
	w.must(err)
	var e explain.Explanation
	if err := json.Unmarshal([]byte(out), &e); err != nil || code != 0 {
		w.t.Fatalf("explain %s %s %v: exit code %d, %v: %q %q", from, to, port, code, err, out, errs)
	}
	return e
}

// explained says that the answer is this verdict, and that its text holds these.
func (w *world) explained(verdict, from, to, port string, texts ...string) {
	w.t.Helper()
	e := w.explain(from, to, port)
	for _, text := range texts {
		if !strings.Contains(e.Text(), text) {
			w.t.Errorf("%s to %s %s does not say %q:\n%s", from, to, port, text, e.Text())
		}
	}
	if e.Verdict != verdict || strings.Contains(e.Text(), "DISAGREES") {
		w.t.Errorf("%s to %s %s: %s, want %s\n%s", from, to, port, e.Verdict, verdict, e.Text())
	}
}

// What explain says of addresses that lead to a pod's own link is what the kernel
// does.
func TestExplainOverTheLink(t *testing.T) {
	plugged(t, "", func(t *testing.T, w *cniWorld) {
		w.must(w.Write("policies.yaml", crowdOfNamespaces))
		w.must(w.Start())
		w.add("web/web", "client/client", "default/open")
		w.must(w.Reload())
		open, client := w.names["open"], w.names["client"]
		gateway := w.gatewaySide("open")[0]
		var probes []lab.Probe
		var text []string
		for _, dst := range append(parse("224.0.0.251", "255.255.255.255", "10.88.0.255", "ff02::fb", "ff05::2"), client.LinkLocal, gateway) {
			why := "is no pod's: it leads to all neighbours"
			src, to := same(dst, open.Addresses), client
			switch {
			case dst.String() == "10.88.0.255":
				why = "is in the pods' ranges"
			case dst.IsLinkLocalUnicast() || dst.IsLinkLocalMulticast() && dst.Is6():
				src, why = open.LinkLocal, "a pod sends from its link-local address, not from "+src.String()
			}
			if dst == gateway {
				to = w.Gateway
			}
			probes = append(probes, lab.Probe{From: open, Src: src, To: to, Dst: dst, Proto: inventory.UDP, DstPort: 80})
			text = append(text, "as explained")
			w.explained(explain.Held, "default/open", dst.String(), "80/UDP", "! held: ", why, "counter hold")
		}
		w.none("from open", probes, text)
		w.expect(false, "from a link-local address", lab.Probe{From: open, Src: open.LinkLocal, To: client, Dst: same(open.LinkLocal, client.Addresses), Proto: inventory.UDP, DstPort: 80})
		w.explained(explain.Held, open.LinkLocal.String(), "client/client", "80/UDP", "is a link's address")
		// What passes is not said to be held.
		hears := lab.Probe{From: open, Src: w.addrs("open.4")[0], To: w.Gateway, Dst: netip.MustParseAddr("224.0.0.1"), Proto: inventory.UDP, DstPort: 80}
		w.expect(true, "the gateway hears a group", hears)
		w.explained(explain.Held, "default/open", "224.0.0.1", "80/UDP", "programs of the gateway that listen to 224.0.0.1 hear")
		// IPv4's link-local addresses are routed: to a metadata server say.
		metadata := netip.MustParseAddr("169.254.169.254")
		w.must(w.AddOutside(metadata))
		w.gw("ip", "route", "add", "169.254.0.0/16", "via", "192.168.254.2")
		w.expect(true, "a metadata server", lab.Probe{From: open, Src: w.addrs("open.4")[0], To: w.Outside, Dst: metadata, Proto: inventory.TCP, DstPort: 80})
		w.explained(explain.Allowed, "default/open", metadata.String(), "80")
		w.explained(explain.Allowed, "default/open", "client/client", "80")
		w.explained(explain.Denied, "default/open", "web/web", "80")

		// Held, whatever the port: then nothing is said to pass.
		e := w.explain("default/open", "10.88.0.250")
		if f := e.Flows[0]; f.Verdict != explain.Held || f.Allowed || len(f.Passes)+len(f.Would)+len(f.Stays) > 0 {
			w.t.Errorf("without a port: %+v", f)
		}
	})
}

// A hostPort or service address that another program translates is not what policies
// see.
func TestExplainWarnsOfTranslatedAddresses(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.enforce(policy("web", "podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]"))
		const warning = "hostPort or service address, policies see the address behind it"
		if text := w.explain("other", "192.168.254.1", "8080").Text(); strings.Contains(text, warning) {
			w.t.Errorf("nothing is translated:\n%s", text)
		}
		w.nft("table ip nat0 {\nchain pre {\ntype nat hook prerouting priority dstnat\nip daddr 192.168.254.1 tcp dport 8080 dnat ip to 10.42.0.12:80\n}\n}\n")
		w.serve("web", "tcp", 80)
		w.connects("client", "tcp", "192.168.254.1:8080")
		w.fails("other", "tcp", "192.168.254.1:8080")
		w.explained(explain.Allowed, "other", "192.168.254.1", "8080", "! if 192.168.254.1 is a "+warning)
		w.explained(explain.Allowed, "other", "192.168.254.2", "8080", "! if 192.168.254.2 is a "+warning)
		w.explained(explain.Denied, "other", "web", "80")
		for _, tc := range [][3]string{{"other", "web", "80"}, {"other", "fd00:254::1", "8080"}, {"gateway", "192.168.254.2", "80"}} {
			if text := w.explain(tc[0], tc[1], tc[2]).Text(); strings.Contains(text, warning) {
				w.t.Errorf("%v is not translated:\n%s", tc, text)
			}
		}
	})
}

// A pod that waits for its labels is held, and explain says so, by its name and its
// addresses; it is judged once they are known.
func TestExplainPodThatWaitsForItsLabels(t *testing.T) {
	for _, plugin := range []string{"ptp", "bridge"} {
		t.Run(plugin, func(t *testing.T) {
			w := newCNIWorld(t, plugin, kubeletSource, "")
			k := w.startKubelet()
			neighbour := stub.Pod{Name: "neighbour", UID: "uid-of-default/neighbour"}
			k.SetPods(neighbour)
			w.must(w.Start())
			w.add("default/neighbour", "default/new")
			w.waitFor("the neighbour is known", func() bool { s, _ := w.status(); return s.Pods == 1 })
			w.must(w.Reload())
			address := w.addrs("new.4")[0]
			reason := fmt.Sprintf("held: default/new (%s) waits for its labels", address)
			w.see("held", "neighbour new 80 no\nnew neighbour 80 no\noutside new 80 no\nnew gateway 80 no\ngateway new 80 yes")
			for _, ends := range [][2]string{{"neighbour", "new"}, {"new", "neighbour"}, {"192.168.254.2", "new"}, {"new", "gateway"}, {"neighbour", address.String()}} {
				w.explained(explain.Held, ends[0], ends[1], "80", reason, "of default/new: its labels are not known yet")
			}
			w.explained(explain.Allowed, "gateway", "new", "80")
			k.SetPods(neighbour, stub.Pod{Name: "new", UID: "uid-of-default/new"})
			w.waitFor("its labels are known", func() bool { s, _ := w.status(); return s.Pods == 2 })
			w.see("judged", "neighbour new 80 yes")
			w.explained(explain.Allowed, "neighbour", "new", "80")
		})
	}
}
