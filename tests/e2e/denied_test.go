package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// deny selects web alone, and lets the client in to port 80.
const onlyClient = `podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]`

func (w *world) deniedFlows() []status.DeniedFlow {
	w.t.Helper()
	out, errOut, code, err := w.Run("denied", "-o", "json")
	w.must(err)
	if code != 0 {
		w.t.Fatalf("denied: exit %d: %s", code, errOut)
	}
	var list []status.DeniedFlow
	w.must(json.Unmarshal([]byte(out), &list))
	return list
}

// flowText is a denied flow as the tests name it.
func flowText(f status.DeniedFlow) string {
	end := func(e status.DeniedEnd) string {
		switch {
		case e.Gateway:
			return "gateway"
		case e.Pod != "":
			return e.Pod
		}
		return "nobody"
	}
	return fmt.Sprintf("%s %s %s: %s -> %s %s/%d by %s", f.Verdict, f.Direction, f.Pod, end(f.From), end(f.To), f.Protocol, f.Port, strings.Join(f.Policies, " "))
}

// Every kind of denied packet is told, in both families, in forward and input,
// dropped or rejected: with the pods at both ends, the policies and the interface.
func TestDeniedFlowsAreTold(t *testing.T) {
	for _, how := range []string{"drop", "reject"} {
		t.Run(how, func(t *testing.T) {
			crowded(t, "denied: "+how+"\n", func(t *testing.T, w *world) {
				w.enforce(policy("web", onlyClient), policy("also", `podSelector: {matchLabels: {app: web}}`))
				var want []string
				for _, family := range []string{".4", ".6"} {
					at := func(name string) netip.Addr { return w.addrs(name + family)[0] }
					icmp := inventory.ICMP
					if family == ".6" {
						icmp = inventory.ICMPv6
					}
					for _, p := range []struct {
						proto inventory.Protocol
						port  uint16
					}{{inventory.TCP, 81}, {inventory.UDP, 53}, {inventory.SCTP, 9}, {icmp, 0}} {
						for _, flow := range []struct{ from, to, text string }{
							{"other", "web", "denied ingress default/web: default/other -> default/web %s/%d by default/also default/web"},
							{"web", "outside", "denied egress default/web: default/web -> nobody %s/%d by default/web"},
							{"outside", "web", "denied ingress default/web: nobody -> default/web %s/%d by default/also default/web"},
							{"web", "gateway", "denied egress default/web: default/web -> gateway %s/%d by default/web"},
						} {
							w.expect(false, flow.from+" to "+flow.to, lab.Probe{Src: at(flow.from), Dst: at(flow.to), Proto: p.proto, DstPort: p.port})
							want = append(want, fmt.Sprintf(flow.text, p.proto, p.port))
						}
					}
				}
				slices.Sort(want)
				slices.Sort(want)
				var got []string
				var all []status.DeniedFlow
				w.eventually("every flow is told", func() bool {
					got, all = nil, w.deniedFlows()
					for _, f := range all {
						got = append(got, flowText(f))
					}
					slices.Sort(got)
					return slices.Equal(got, want)
				})
				if t.Failed() {
					t.Logf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
				for _, f := range all {
					if f.Interface == "" || f.Packets == 0 || f.Last.Before(f.First) {
						t.Errorf("%+v", f)
					}
				}
				w.eventually("and each has its line", func() bool {
					log := w.Log()
					return strings.Contains(log, "denied egress default/web -> "+netip.AddrPortFrom(w.addrs("outside.6")[0], 81).String()+"/TCP: not allowed by default/web (from ") &&
						strings.Contains(log, "event=denied pod=default/web direction=ingress policy=default/also,default/web")
				})
			})
		})
	}
}
