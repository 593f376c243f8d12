package lab

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// bothCNI runs a test with each kind of plugin.
func bothCNI(t *testing.T, test func(t *testing.T, l *Lab, c *CNI)) {
	for kind, plugin := range map[Kind]string{Routed: "ptp", Bridge: "bridge"} {
		t.Run(plugin, func(t *testing.T) {
			l := ForTest(t, Topology{Kind: kind, Dynamic: true})
			c, err := l.CNI(t.TempDir(), plugin)
			if err != nil {
				t.Fatal(err)
			}
			test(t, l, c)
		})
	}
}

func cniPod(t *testing.T, c *CNI, name string, addrs ...netip.Addr) *Namespace {
	t.Helper()
	n, err := c.AddPod(context.Background(), name, "uid-of-"+name, addrs...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Pods that real plugins made can be probed like the lab's own: each sees each,
// the gateway and the outside, and packets between ports of the bridge stay there.
func TestCNIPodsCanBeProbed(t *testing.T) {
	bothCNI(t, func(t *testing.T, l *Lab, c *CNI) {
		pods := []*Namespace{cniPod(t, c, "default/a"), cniPod(t, c, "default/b")}
		probes := everyone(l, pods)
		if len(probes) < 24 {
			t.Fatalf("only %d probes", len(probes))
		}
		mustAllArrive(t, l, probes)
		if l.Kind == Bridge {
			rules(t, l, `table inet lab { chain f { type filter hook forward priority 0; policy drop; } }`)
			a, b := pods[0], pods[1]
			mustAllArrive(t, l, []Probe{{From: a, Dst: b.Addresses[0], Proto: inventory.UDP, DstPort: 9}, {From: a, Src: a.LinkLocal, To: b, Dst: b.LinkLocal, Proto: inventory.UDP, DstPort: 9}})
		}
	})
}

// The result is in the cache as libcni writes it, names the pod, and goes with it;
// a power cut leaves it, and the address stays reserved.
func TestCNIResults(t *testing.T) {
	bothCNI(t, func(t *testing.T, l *Lab, c *CNI) {
		n := cniPod(t, c, "shop/web")
		text, err := os.ReadFile(c.ResultFile(n))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"K8S_POD_NAME","web"`, `"K8S_POD_NAMESPACE","shop"`, `"K8S_POD_UID","uid-of-shop/web"`, n.NetNS, n.HostInterface, n.Addresses[0].String()} {
			if !strings.Contains(string(text), want) {
				t.Errorf("the result does not hold %s:\n%s", want, text)
			}
		}
		file, first := c.ResultFile(n), n.Addresses
		if err := c.Del(context.Background(), n); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(file); !os.IsNotExist(err) {
			t.Errorf("after the DEL: %v", err)
		}
		n = cniPod(t, c, "shop/web", first...)
		if n.Addresses[0] != first[0] || n.Addresses[1] != first[1] {
			t.Errorf("asked for %s, got %s", first, n.Addresses)
		}
		file = c.ResultFile(n)
		if err := c.PowerCut(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(file); err != nil {
			t.Errorf("after the power cut: %v", err)
		}
		if out, err := l.Gateway.Run("ip", "-br", "link"); err != nil || strings.Contains(out, "veth") || strings.Contains(out, BridgeName) {
			t.Errorf("after the power cut: %v\n%s", err, out)
		}
		if n := cniPod(t, c, "shop/web"); n.Addresses[0] == first[0] {
			t.Errorf("%s was given out twice", first[0])
		}
	})
}

// A beacon speaks from before the plugins run, and is heard from the first packet
// that can pass.
func TestBeaconIsHeard(t *testing.T) {
	bothCNI(t, func(t *testing.T, l *Lab, c *CNI) {
		neighbour := cniPod(t, c, "default/neighbour")
		var at []netip.AddrPort
		var ears []*Ear
		for _, n := range []*Namespace{neighbour, l.Outside, l.Gateway} {
			var own []netip.AddrPort
			for _, a := range n.Addresses {
				own = append(own, netip.AddrPortFrom(a, 9999))
			}
			ear, err := n.Hear(own...)
			if err != nil {
				t.Fatal(err)
			}
			for range own {
				ears = append(ears, ear)
			}
			at = append(at, own...)
		}
		n, err := c.Sandbox("default/speaker", "")
		if err != nil {
			t.Fatal(err)
		}
		b, err := n.StartBeacon(at...)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := c.Add(context.Background(), n); err != nil {
			t.Fatal(err)
		}
		added := time.Now()
		for i := range at {
			for deadline := time.Now().Add(10 * time.Second); ears[i].Heard(b, at[i]).Count < 20; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s heard %+v", at[i], ears[i].Heard(b, at[i]))
				}
			}
			t.Logf("%s: first heard %s after the start, %s after the ADD", at[i], ears[i].Heard(b, at[i]).First.Sub(start), ears[i].Heard(b, at[i]).First.Sub(added))
		}
		b.Stop()
		if b.Sent() == 0 {
			t.Error("heard, but nothing sent")
		}
	})
}

// macvlan has no end in the gateway.
func TestCNIMacvlan(t *testing.T) {
	l := ForTest(t, Topology{Dynamic: true})
	c, err := l.CNI(t.TempDir(), "macvlan")
	if err != nil {
		t.Fatal(err)
	}
	n := cniPod(t, c, "default/lan")
	if n.HostInterface != "" || len(n.Addresses) != 1 {
		t.Errorf("host interface %q, addresses %s", n.HostInterface, n.Addresses)
	}
}
