package lab

import (
	"context"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// Traffic sees a single packet that was lost or leaked, and when a verdict
// changed; and none where there was none.
func TestTraffic(t *testing.T) {
	both(t, func(t *testing.T, k Kind) {
		l, pods := cluster(t, Topology{Kind: k}, 3)
		if k == Bridge {
			if _, err := l.Gateway.Run("ip", "link", "set", BridgeName, "type", "bridge", "nf_call_iptables", "1", "nf_call_ip6tables", "1"); err != nil {
				t.Fatal(err)
			}
		}
		const base = `table inet lab {
			chain f { type filter hook forward priority 0; th dport 81 drop; %; ct state new accept; } }`
		load := func(extra string) { rules(t, l, strings.Replace(base, "%;", extra+";", 1)) }
		load("")
		var flows []Flow
		for _, proto := range []inventory.Protocol{inventory.UDP, inventory.TCP} {
			for _, dst := range pods[1].Addresses {
				flows = append(flows,
					Flow{Probe{From: pods[0], Dst: dst, Proto: proto, DstPort: 80}, Allowed},
					Flow{Probe{From: l.Outside, Dst: dst, Proto: proto, DstPort: 81}, Denied},
					Flow{Probe{From: pods[2], Dst: dst, Proto: proto, DstPort: 82}, Either})
			}
		}
		stop, err := l.StartTraffic(t.Context(), 5000, flows)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		change := time.Now()
		if _, err := l.Gateway.Run("nft", "insert rule inet lab f th dport 82 drop"); err != nil {
			t.Fatal(err)
		}
		changed := time.Now()
		mustAllArrive(t, l, everyone(l, pods[:2])) // Probe works beside it
		time.Sleep(300 * time.Millisecond)
		r, err := stop()
		if err != nil {
			t.Fatal(err)
		}
		if r.Lost+r.Leaked != 0 {
			t.Errorf("lost %d, leaked %d with fixed rules: %v", r.Lost, r.Leaked, r.Wrong[0])
		}
		for i, n := range r.Sent {
			if n < 100 {
				t.Errorf("flow %d: only %d sent", i, n)
			}
		}
		dropped := 0
		for _, e := range r.Changes {
			if e.Seq > 0 {
				dropped++
				if e.Arrived || e.Done.Before(change) || e.Sent.After(changed.Add(time.Second)) {
					t.Errorf("change %+v, rule was set between %s and %s", e, change, changed)
				}
			}
		}
		if want := len(flows) / 3; dropped != want {
			t.Errorf("%d changes, want %d", dropped, want)
		}

		// the same with the rules the other way round: all wrong
		load("th dport 80 drop; th dport 82 accept")
		if _, err := l.Gateway.Run("nft", "insert rule inet lab f th dport 81 accept"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if stop, err = l.StartTraffic(ctx, 2000, flows); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		if r, err = stop(); err != nil {
			t.Fatal(err)
		}
		if r.Lost < 50 || r.Leaked < 50 || len(r.Wrong) != r.Lost+r.Leaked {
			t.Errorf("lost %d, leaked %d, wrong %d", r.Lost, r.Leaked, len(r.Wrong))
		}
	})
}

func BenchmarkProbe(b *testing.B) {
	l, pods := cluster(b, Topology{}, 10)
	probes := everyone(l, pods)[:1000]
	for b.Loop() {
		if _, err := l.Probe(b.Context(), probes); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "probes/s")
}

func BenchmarkAddPod(b *testing.B) {
	l := ForTest(b, Topology{})
	for b.Loop() {
		if _, err := l.AddPod("p", addrs("10.42.0.2", "fd42::2")...); err != nil {
			b.Fatal(err)
		}
	}
}
