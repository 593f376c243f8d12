package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

// beaconPort is where beacons are heard.
const beaconPort = 9999

// station is an address at which beacons are listened for.
type station struct {
	ear *lab.Ear
	at  netip.AddrPort
	who string
}

// stations has these listen on all their addresses.
func (w *cniWorld) stations(names ...string) (list []station) {
	w.t.Helper()
	for _, name := range names {
		var at []netip.AddrPort
		for _, a := range w.addrs(name) {
			at = append(at, netip.AddrPortFrom(a, beaconPort))
		}
		if name == "gateway" {
			at = append(at, netip.MustParseAddrPort("10.88.0.1:9999"), netip.MustParseAddrPort("[fd88::1]:9999"))
		}
		ear, err := w.names[name].Hear(at...)
		w.must(err)
		for _, a := range at {
			list = append(list, station{ear, a, name})
		}
	}
	return list
}

func targets(list []station) (at []netip.AddrPort) {
	for _, s := range list {
		at = append(at, s.at)
	}
	return at
}

// heardAll waits until a beacon was heard at all stations.
func (w *cniWorld) heardAll(b *lab.Beacon, list []station) {
	w.t.Helper()
	for _, s := range list {
		w.waitFor(fmt.Sprintf("heard by %s at %s", s.who, s.at), func() bool { return s.ear.Heard(b, s.at).Count > 0 })
	}
}

// A pod that a deny-all policy selects gets not one packet out from the first
// instant of its namespace on, and none from the outside reaches it: a hundred
// pods in a row, four at a time. The same is heard of a pod that nothing selects.
func TestNoPacketOfANewPodPrecedesItsPolicy(t *testing.T) {
	plugged(t, "", func(t *testing.T, w *cniWorld) {
		w.must(w.Write("policies.yaml", policy("secret/all", "podSelector: {}, policyTypes: [Ingress, Egress]")))
		w.must(w.Start())
		w.add("default/neighbour")
		list := w.stations("outside", "neighbour", "gateway")
		w.must(w.newborns(100, 4, list))

		s, err := w.cni.Sandbox("default/free", "")
		w.must(err)
		b, err := s.StartBeacon(targets(list)...)
		w.must(err)
		start := time.Now()
		w.must(w.cni.Add(context.Background(), s))
		result, err := os.Stat(w.cni.ResultFile(s))
		w.must(err)
		w.heardAll(b, list)
		b.Stop()
		for _, s := range list {
			at := s.ear.Heard(b, s.at).First
			t.Logf("a pod that nothing selects, first heard by %s at %s: %s after the start of ADD, %s after its result was written",
				s.who, s.at, at.Sub(start), at.Sub(result.ModTime()))
		}
		w.healthy()
	})
}

// newborns makes pods that may not talk, with a beacon each, some at a time, and
// fails if one was heard.
func (w *cniWorld) newborns(count, atOnce int, list []station) error {
	numbers := make(chan int)
	var group sync.WaitGroup
	var mu sync.Mutex
	var failed error
	sent := 0
	for range atOnce {
		group.Go(func() {
			for i := range numbers {
				n, err := w.newborn(i, list)
				mu.Lock()
				sent += n
				if failed == nil {
					failed = err
				}
				mu.Unlock()
			}
		})
	}
	for i := range count {
		numbers <- i
	}
	close(numbers)
	group.Wait()
	w.t.Logf("%d pods sent %d datagrams", count, sent)
	if failed == nil && len(list) > 0 && sent < count*len(list) {
		return fmt.Errorf("%d pods sent %d datagrams only: nothing is proven", count, sent)
	}
	return failed
}

// newborn is the life of one such pod.
func (w *cniWorld) newborn(i int, list []station) (sent int, err error) {
	ctx := context.Background()
	n, err := w.cni.Sandbox(fmt.Sprintf("secret/p%d", i), fmt.Sprint("uid-", i))
	if err != nil {
		return 0, err
	}
	own := []netip.AddrPort{
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 88, 0, byte(100 + i)}), beaconPort),
		netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("fd88::%x", 100+i)), beaconPort),
	}
	b, err := n.StartBeacon(targets(list)...)
	if err != nil {
		return 0, err
	}
	ear, err := n.Hear(netip.MustParseAddrPort("[::]:9999"))
	if err != nil {
		return 0, err
	}
	outside, err := w.Outside.StartBeacon(own...)
	if err != nil {
		return 0, err
	}
	if err := w.cni.Add(ctx, n, own[0].Addr(), own[1].Addr()); err != nil {
		return 0, err
	}
	time.Sleep(50 * time.Millisecond) // the beacons talk on
	b.Stop()
	outside.Stop()
	for _, s := range list {
		if h := s.ear.Heard(b, s.at); h.Count > 0 {
			err = fmt.Errorf("pod %d was heard by %s at %s: %+v", i, s.who, s.at, h)
		}
	}
	if h := ear.Heard(outside, netip.MustParseAddrPort("[::]:9999")); h.Count > 0 {
		err = fmt.Errorf("pod %d was reached from outside: %+v", i, h)
	}
	sent = b.Sent()
	if e := w.cni.Del(ctx, n); err == nil {
		err = e
	}
	return sent, err
}

// holdUnknownPods: what nobody knows is held where that is on, and let pass where
// it is off. auto is on with the CNI source.
func TestHoldUnknownPods(t *testing.T) {
	for mode, want := range map[string]string{"auto": "no", "on": "no", "off": "yes"} {
		t.Run(mode, func(t *testing.T) {
			plugged(t, "holdUnknownPods: "+mode+"\n", func(t *testing.T, w *cniWorld) {
				w.must(w.Write("policies.yaml", crowdOfNamespaces))
				w.must(w.Start())
				w.add("web/web", "client/client")
				w.stranger("default/stranger")
				w.see("nobody knows the stranger", replace(`
					stranger client 80 WANT
					stranger outside 80 WANT
					stranger gateway 80 WANT
					outside stranger 80 WANT
					client stranger 80 WANT
					stranger web 80 no
					gateway stranger 80 yes
					client web 80 yes
					client outside ping yes
					outside client 80 yes
					gateway client 80 yes`, "WANT", want))
			})
		})
	}
}

// The first pods of a gateway bring the bridge with them, for which netfilter is
// off: no packet passes between its first two ports before it is on.
func TestFirstPodsOfABridgeLeaveNoGap(t *testing.T) {
	for i := range 5 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			w := newCNIWorld(t, "bridge", "", "")
			w.must(w.Write("policies.yaml", policy("secret/all", "podSelector: {}, policyTypes: [Ingress, Egress]")))
			w.must(w.Start())
			secret, err := w.cni.Sandbox("secret/first", "")
			w.must(err)
			open, err := w.cni.Sandbox("default/second", "")
			w.must(err)
			atOpen, atSecret := parse("10.88.0.20", "fd88::20"), parse("10.88.0.21", "fd88::21")
			everywhere := netip.MustParseAddrPort("[::]:9999")
			hears := map[*lab.Namespace]*lab.Ear{}
			for _, n := range []*lab.Namespace{secret, open} {
				hears[n], err = n.Hear(everywhere)
				w.must(err)
			}
			out, err := secret.StartBeacon(netip.AddrPortFrom(atOpen[0], beaconPort), netip.AddrPortFrom(atOpen[1], beaconPort))
			w.must(err)
			in, err := open.StartBeacon(netip.AddrPortFrom(atSecret[0], beaconPort), netip.AddrPortFrom(atSecret[1], beaconPort))
			w.must(err)
			var group sync.WaitGroup
			errs := make([]error, 2)
			group.Go(func() { errs[0] = w.cni.Add(context.Background(), secret, atSecret...) })
			group.Go(func() { errs[1] = w.cni.Add(context.Background(), open, atOpen...) })
			group.Wait()
			w.must(errors.Join(errs...))
			time.Sleep(200 * time.Millisecond) // the beacons talk on
			if h := hears[open].Heard(out, everywhere); h.Count > 0 {
				w.t.Errorf("the isolated pod was heard by its neighbour: %+v", h)
			}
			if h := hears[secret].Heard(in, everywhere); h.Count > 0 {
				w.t.Errorf("the isolated pod was reached by its neighbour: %+v", h)
			}
			if out.Sent() == 0 || in.Sent() == 0 {
				w.t.Errorf("%d and %d datagrams were sent: nothing is proven", out.Sent(), in.Sent())
			}
		})
	}
}

// listen opens a port of the gateway.
func (w *world) listen(address string) (l net.Listener) {
	w.t.Helper()
	w.must(w.Gateway.Do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}))
	return l
}

// startKubelet has a kubelet serve in the gateway until the test ends.
func (w *world) startKubelet() *stub.Kubelet {
	w.t.Helper()
	k := stub.NewKubelet()
	k.Serve(w.listen("127.0.0.1:10255"))
	w.t.Cleanup(k.Close)
	return k
}

const kubeletSource = "  kubelet: {url: http://127.0.0.1:10255}\n"

// Policies select by labels, which the kubelet knows later than CNI the address:
// until it does the pod is held, and judged by its own policy from then on.
func TestPodIsHeldUntilItsLabelsAreKnown(t *testing.T) {
	for _, plugin := range []string{"ptp", "bridge"} {
		t.Run(plugin, func(t *testing.T) {
			w := newCNIWorld(t, plugin, kubeletSource, "")
			k := w.startKubelet()
			neighbour := stub.Pod{Name: "neighbour", UID: "uid-of-default/neighbour"}
			k.SetPods(neighbour)
			w.must(w.Write("policies.yaml", policy("web", isolateWebBothWays)))
			w.must(w.Start())
			w.add("default/neighbour")
			list := w.stations("outside", "neighbour", "gateway")
			beacons := map[string]*lab.Beacon{}
			for _, name := range []string{"web", "free"} {
				n, err := w.cni.Sandbox("default/"+name, "uid-of-default/"+name)
				w.must(err)
				w.names[name] = n
				beacons[name], err = n.StartBeacon(targets(list)...)
				w.must(err)
				w.must(w.cni.Add(context.Background(), n))
			}
			silent := func(why string, names ...string) {
				time.Sleep(300 * time.Millisecond) // the beacons talk on
				for _, name := range names {
					for _, s := range list {
						if h := s.ear.Heard(beacons[name], s.at); h.Count > 0 {
							w.t.Errorf("%s: %s was heard by %s at %s: %+v", why, name, s.who, s.at, h)
						}
					}
				}
			}
			silent("the kubelet does not list them", "web", "free")
			w.see("held", "outside web 80 no\nneighbour web 80 no\noutside free 80 no\nneighbour free 80 no")
			known := func(name string) stub.Pod {
				return stub.Pod{Name: name, UID: "uid-of-default/" + name, Labels: map[string]string{"app": name}}
			}
			k.SetPods(neighbour, known("web"), known("free"))
			w.heardAll(beacons["free"], list)
			silent("the kubelet lists them", "web")
			w.see("judged", "outside web 80 no\nneighbour web 80 no\noutside free 80 yes\nneighbour free 80 yes")
			w.healthy()
		})
	}
}
