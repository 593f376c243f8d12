package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/status"
	"edgepolicy.io/edgepolicyd/tests/daemon"
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

// --suggest prints policies that allow what was denied, both ways where both ends
// deny, and nothing else: pasted into the folder they do.
func TestDeniedSuggest(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.enforce(policy("web", onlyClient), policy("other", `podSelector: {matchLabels: {app: other}}, policyTypes: [Egress]`))
		w.see("denied before", "other web 81 no\nweb outside 53/UDP no\nfar/stranger web 81 no\n")
		w.eventually("all of them are remembered", func() bool { return len(w.deniedFlows()) >= 6 })
		out, errOut, code, err := w.Run("denied", "--suggest")
		w.must(err)
		if code != 0 {
			t.Fatalf("exit %d: %s", code, errOut)
		}
		w.apply("suggested.yaml", out)
		w.healthy()
		w.see("allowed by what was suggested", "other web 81 yes\nweb outside 53/UDP yes\nother web 82 no\nother outside 81 no\n")
	})
}

// --follow prints a flow when it is denied, and again when it goes on.
func TestDeniedFollow(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	w.must(w.Start())
	w.enforce(denyWeb)
	w.expect(false, "before", tcp("10.42.0.11", "10.42.0.12", 79))
	var out daemon.Output
	cmd := exec.Command(w.Binary, "denied", "--follow", "--config", w.Config)
	cmd.Stdout = &out
	w.must(w.Gateway.Start(cmd))
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("denied --follow ends with %v", err)
		}
	}()
	for _, port := range []uint16{80, 81} {
		w.expect(false, "now", tcp("10.42.0.11", "10.42.0.12", port))
		w.eventually("it is printed", func() bool {
			return strings.Contains(out.String(), fmt.Sprintf("denied ingress default/client -> 10.42.0.12:%d/TCP (default/web)", port))
		})
	}
	if !strings.Contains(out.String(), "10.42.0.12:79/TCP") {
		t.Errorf("what was denied before is missing:\n%s", out.String())
	}
}

// tried is a policy that is only audited.
func tried(name, spec string) string {
	return strings.Replace(policy(name, spec), "metadata: {", "metadata: {annotations: {edgepolicy.io/enforcement: audit}, ", 1)
}

// What a policy that is only tried would deny passes, is told and is counted; where
// another isolates the pod it means nothing; and enforced, it cuts what it denies.
func TestAuditedPolicy(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.serve("web", "tcp", 81)
		w.enforce(tried("web", onlyClient))
		c := w.connects("other", "tcp", w.addrs("web.4")[0].String()+":81")
		w.works("a connection that would be denied", c)
		w.see("everything passes", "client web 80 yes\nother web 82 yes\nweb outside 82 yes\nweb other ping yes\nweb gateway 82 yes\n")
		w.eventually("and is told", func() bool {
			return strings.Contains(w.Log(), "would deny ingress default/other -> 10.42.0.12:82/TCP (default/web): not allowed by default/web") &&
				strings.Contains(w.Log(), "would deny egress default/web -> ") && strings.Contains(w.Log(), "event=would-deny pod=default/web")
		})
		if strings.Contains(w.Log(), "default/client ->") {
			t.Error("what the policy allows is told as denied")
		}
		for _, want := range []string{`would_deny_packets_total{namespace="default",pod="web",direction="ingress"} `, `would_deny_packets_total{namespace="default",pod="web",direction="egress"} `} {
			if w.metric(want) == 0 {
				t.Errorf("%s is 0", want)
			}
		}
		if s, _ := w.status(); s.IsolatedPods != 0 {
			t.Errorf("%d pods are isolated by a policy that is only tried", s.IsolatedPods)
		}

		w.enforce(tried("web", onlyClient), policy("base", `podSelector: {}, ingress: [{ports: [{port: 82}]}]`))
		w.see("the other policy counts alone", "other web 82 yes\nclient web 80 no\nweb outside 83 yes\n")
		w.works("as it would be if enforced", w.connects("web", "tcp", w.addrs("web.4")[0].String()+":81"))

		w.enforce(policy("web", onlyClient))
		w.cut("enforced", c)
		w.see("enforced", "client web 80 yes\nother web 82 no\nweb outside 82 no\n")
		w.eventually("the connection that was cut is told", func() bool { return strings.Contains(w.Log(), "event=connections-cut count=") })
	})
}

// enforcement: audit makes it so for all policies.
func TestAuditMode(t *testing.T) {
	crowded(t, "enforcement: audit\n", func(t *testing.T, w *world) {
		w.enforce(denyWeb)
		w.see("everything passes", "client web 80 yes\noutside web 80 yes\nweb outside 80 yes\n")
		w.eventually("and is told", func() bool { return len(w.deniedFlows()) >= 6 })
		for _, f := range w.deniedFlows() {
			if f.Verdict != "would deny" {
				t.Errorf("%+v", f)
			}
		}
		if w.metric(`edgepolicyd_denied_packets_total{`) != 0 {
			t.Error("something was denied")
		}
	})
}

// metric is the value of the series that begins so, 0 if there is none.
func (w *world) metric(series string) int {
	w.t.Helper()
	for _, l := range strings.Split(w.gw("curl", "-sS", "--unix-socket", filepath.Join(w.Folder, "edgepolicyd.sock"), "http://edgepolicyd/metrics"), "\n") {
		if strings.Contains(l, series) && !strings.HasPrefix(l, "#") {
			n, err := strconv.Atoi(l[strings.LastIndex(l, " ")+1:])
			w.must(err)
			return n
		}
	}
	return 0
}

// The totals of packets and bytes are exact, also of what no line tells, and on the
// loopback address there are metrics and nothing else.
func TestMetrics(t *testing.T) {
	crowded(t, "audit: {denied: {perPodRate: 1}}\nmetrics: {listen: 127.0.0.1:9469}\n", func(t *testing.T, w *world) {
		w.enforce(policy("web", onlyClient))
		const n = 50
		for range n {
			w.expect(false, "denied", lab.Probe{Src: w.addrs("other.4")[0], Dst: w.addrs("web.4")[0], Proto: inventory.UDP, DstPort: 81})
		}
		web := `{namespace="default",pod="web",direction="ingress"} `
		if got := w.metric("denied_packets_total" + web); got != n {
			t.Errorf("%d packets were denied, the metric says %d", n, got)
		}
		if got := w.metric("denied_bytes_total" + web); got == 0 || got%n != 0 {
			t.Errorf("%d bytes in %d packets of one size", got, n)
		}
		for path, want := range map[string]string{"metrics": "200", "v1/status": "404", "v1/flush": "404", "": "404"} {
			if got := w.gw("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:9469/"+path); got != want {
				t.Errorf("/%s: %s, want %s", path, got, want)
			}
		}
		parsed := w.gw("curl", "-sS", "http://127.0.0.1:9469/metrics")
		line := regexp.MustCompile(`^(# (HELP|TYPE) edgepolicyd_[a-z_]+ .+|edgepolicyd_[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+)$`)
		for _, l := range strings.Split(strings.TrimSpace(parsed), "\n") {
			if !line.MatchString(l) {
				t.Errorf("no line of Prometheus' format: %q", l)
			}
		}
	})
}

// A packet is put to the policies that denied it, also if others have come in their
// place by the time it is told: at worst one that allows it.
func TestDeniedByThePoliciesOfThen(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, other)
	w.must(w.Start())
	for i := range 5 {
		w.enforce(policy("old", "podSelector: {matchLabels: {app: web}}"))
		port := uint16(100 + i)
		w.expect(false, "denied by old", tcp("10.42.0.13", "10.42.0.12", port))
		w.enforce(policy("new", "podSelector: {matchLabels: {app: web}}, ingress: [{}]"))
		w.expect(true, "allowed by new", tcp("10.42.0.13", "10.42.0.12", port))
		w.eventually("it is told", func() bool {
			return strings.Contains(w.Log(), fmt.Sprintf("10.42.0.12:%d/TCP (default/web): not allowed by ", port))
		})
	}
	if strings.Contains(w.Log(), "not allowed by default/new") {
		t.Error("a policy that allows everything is said to have denied something")
	}
}

// All connections that a change cuts are counted, those first that go on talking.
func TestConnectionsCutAreCounted(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, other)
	w.serve("web", "tcp", 81)
	w.must(w.Start())
	const n = 12
	stop := make(chan struct{})
	for range n {
		c := w.connects("other", "tcp", "10.42.0.12:81")
		w.works("before", c)
		go func() { // goes on talking, whatever comes of it
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
					c.Write([]byte("x"))
				}
			}
		}()
	}
	defer close(stop)
	w.enforce(denyWeb)
	w.eventually("it is told", func() bool { return len(w.events("connections-cut")) > 0 })
	if got := w.events("connections-cut"); len(got) != 1 || got[0]["count"] != fmt.Sprint(n) {
		t.Errorf("%d connections were cut: %v", n, got)
	}
}
