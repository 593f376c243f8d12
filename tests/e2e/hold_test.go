package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

// S35: the agent that would deliver the repair does not wait for a kubelet that
// refuses us; who else has just come does, and status says why.
func TestNeverIsolateIsNeverHeld(t *testing.T) {
	w := newCNIWorld(t, "bridge", kubeletSource, "neverIsolate: [kube-system]\n")
	w.startKubelet().Fail(401, "Unauthorized")
	w.must(w.Start())
	w.add("kube-system/agent", "default/other")
	w.waitFor("the agent is known", func() bool { s, _ := w.status(); return s.Pods == 1 })
	w.see("with a kubelet that refuses us", "agent outside 80 yes\nother outside 80 no\ngateway other 80 yes")
	w.waitFor("it is said who waits", func() bool {
		s, _ := w.status()
		return strings.Contains(strings.Join(s.Reasons, "\n"), "pod default/other ([10.88.0.3 fd88::3]) is held")
	})
}

// A range that is mistyped so that it holds another program's bridge is refused, and
// containers there are let alone.
func TestContainersBesideArePassedBy(t *testing.T) {
	w := newCNIWorld(t, "bridge", "", "podRanges: [172.16.0.0/12]\nholdUnknownPods: on\n")
	for _, line := range []string{
		"link add docker0 type bridge", "link add d0 type veth peer name d1", "link set d0 master docker0",
		"addr add 172.17.0.1/16 dev docker0", "link set docker0 up", "link set d0 up",
	} {
		w.gw("ip", strings.Fields(line)...)
	}
	container := fmt.Sprintf("epd-container-%d", os.Getpid())
	w.gw("ip", "netns", "add", container)
	t.Cleanup(func() { w.gw("ip", "netns", "del", container) })
	w.gw("ip", "link", "set", "d1", "netns", container)
	for _, line := range []string{"addr add 172.17.0.2/16 dev d1", "link set d1 up"} {
		w.gw("ip", append([]string{"-n", container}, strings.Fields(line)...)...)
	}
	w.must(w.Start())
	w.add("default/pod")
	w.waitFor("the pod is known", func() bool { s, _ := w.status(); return s.Pods == 1 })
	w.degraded("pod range 172.16.0.0/12 is not held: it holds 172.17.0.1, an address of the gateway on docker0")
	if out, err := w.Gateway.Run("ip", "netns", "exec", container, "ping", "-c", "1", "-W", "2", "172.17.0.1"); err != nil {
		t.Errorf("the container is cut off: %v\n%s", err, out)
	}
}

// What is held is counted and named, also between the ports of a bridge.
func TestHeldIsCountedAndNamed(t *testing.T) {
	plugged(t, "", func(t *testing.T, w *cniWorld) {
		w.must(w.Start())
		w.add("default/open")
		w.stranger("default/stranger")
		stranger := w.names["stranger"].Addresses[0].String()
		w.waitFor("the stranger is named", func() bool {
			w.see("held", "stranger open 80 no\nopen outside 80 yes")
			time.Sleep(500 * time.Millisecond)
			s, _ := w.status()
			return s.Hold.On && s.Hold.Packets > 0 && strings.Contains(strings.Join(s.Hold.Addresses, " "), stranger)
		})
		w.waitFor("in the journal too", func() bool { return strings.Contains(w.Log(), stranger+" is held") })
		if s, _ := w.status(); s.Hold.Latency.Pods < 1 || s.Hold.Latency.Last <= 0 || s.Hold.Latency.Most < s.Hold.Latency.Last {
			t.Errorf("latency: %+v", s.Hold.Latency)
		}
	})
}

// What a kubelet lists no more, as its API is away or the manifest is gone, stays
// enforced by its own labels while its sandbox lives: over a restart of the daemon
// and a crash too.
func TestUnlistedPodOverARestart(t *testing.T) {
	for _, hold := range []string{"auto", "off"} {
		t.Run(hold, func(t *testing.T) {
			w := newCNIWorld(t, "bridge", strings.Replace(kubeletSource, "}", ", interval: 1s}", 1), "holdUnknownPods: "+hold+"\n")
			k := w.startKubelet()
			static := stub.Pod{Name: "static", UID: "uid-of-default/static"}
			k.SetPods(static, stub.Pod{Name: "web", UID: "uid-of-default/web", Labels: map[string]string{"app": "web"}})
			w.must(w.Write("web.yaml", policy("web", "podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]")))
			w.must(w.Start())
			w.add("default/static", "default/web")
			const judged = "outside web 80 yes\noutside web 81 no\noutside static 81 yes"
			w.waitFor("both are known", func() bool { s, _ := w.status(); return s.Pods == 2 && s.IsolatedPods == 1 })
			w.see("listed", judged)
			w.waitFor("and saved", func() bool {
				data, err := os.ReadFile(filepath.Join(w.State, "state"))
				return err == nil && strings.Contains(string(data), `"name":"web"`) && strings.Contains(string(data), `"name":"static"`)
			})
			polls := k.Polls()
			k.SetPods(static)
			w.waitFor("the kubelet is believed", func() bool { return k.Polls() > polls+8 })
			w.see("unlisted", judged)
			w.must(w.Stop())
			w.must(w.Start())
			w.waitFor("known again", func() bool { s, _ := w.status(); return s.Pods == 2 })
			w.see("after a restart", judged)
			k.Fail(500, "no")
			w.must(w.Kill())
			w.must(w.Start())
			w.waitFor("known again", func() bool { s, _ := w.status(); return s.Pods == 2 })
			w.see("after a crash, the kubelet away", judged)
		})
	}
}

// While the daemon does not look, the table alone keeps an interface that nobody has
// heard of from sending as a pod, or as nobody yet.
func TestUnheardPortCantForgePods(t *testing.T) {
	plugged(t, "", func(t *testing.T, w *cniWorld) {
		w.must(w.Write("policies.yaml", crowdOfNamespaces))
		w.must(w.Start())
		w.add("web/web", "client/client")
		w.must(w.Reload())
		w.must(syscall.Kill(w.PID(), syscall.SIGSTOP))
		defer syscall.Kill(w.PID(), syscall.SIGCONT)
		w.addAt("default/evil")
		s := w.names["evil"]
		var probes []lab.Probe
		var text []string
		for i := range 2 {
			for who, src := range map[string]string{"its own address": "evil", "the client's": "client"} {
				for to, at := range map[string]string{"web": "web", "outside": "outside"} {
					p := lab.Probe{From: s, Src: w.names[src].Addresses[i], To: w.names[at], Dst: w.addrs(at)[i], Proto: inventory.UDP, DstPort: 80}
					if at == "outside" {
						p.To = w.Outside
					}
					probes, text = append(probes, p), append(text, who+" to "+to)
				}
				p := lab.Probe{From: s, Src: w.names[src].Addresses[i], To: w.Gateway, Dst: parse("10.88.0.1", "fd88::1")[i], Proto: inventory.UDP, DstPort: 80}
				probes, text = append(probes, p), append(text, who+" to the gateway")
			}
		}
		w.none("unheard of", probes, text)
	})
}
