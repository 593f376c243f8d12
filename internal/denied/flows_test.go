package denied

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// bench is Flows with pods p0, p1, ..., each isolated for ingress, a clock of its own,
// counters and a log.
type bench struct {
	*Flows
	t        *testing.T
	now      time.Time
	counters map[string]ruleset.Counts
	log      bytes.Buffer
	pods     []*inventory.Pod
}

func newBench(t *testing.T, pods int) *bench {
	b := &bench{t: t, now: time.Unix(1e9, 0), counters: map[string]ruleset.Counts{}}
	var isolations []policy.Isolation
	for i := range pods {
		p := &inventory.Pod{Head: inventory.Head{Key: inventory.Key{Namespace: "default", Name: fmt.Sprintf("p%d", i)}}}
		p.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}
		side := &policy.Side{ID: "1", Policies: []inventory.Key{{Namespace: "default", Name: "deny"}}}
		isolations = append(isolations, policy.Isolation{Pod: p, Sides: [2]*policy.Side{inventory.Ingress: side}})
		b.pods = append(b.pods, p)
	}
	names := NewNames(isolations, &inventory.Snapshot{Pods: b.pods, Gateway: []netip.Addr{netip.MustParseAddr("10.9.9.9")}})
	b.Flows = New(Config{
		Log: slog.New(slog.NewTextHandler(&b.log, nil)), Window: 10 * time.Second,
		Names:    func() []func() *Names { return []func() *Names{func() *Names { return names }} },
		Counters: func() (map[string]ruleset.Counts, error) { return b.counters, nil },
	})
	b.base = map[string]ruleset.Counts{}
	return b
}

func (b *bench) counter(pod int) string {
	return ruleset.CounterName(inventory.Ingress, b.pods[pod].Key, false)
}

func (b *bench) prefix(pod int) string { return ruleset.LogPrefix(b.counter(pod), "1") }

// deny is n packets to a pod's port, of which shown are shown.
func (b *bench) deny(pod int, port uint16, n, shown int) {
	c := b.counters[b.counter(pod)]
	c.Packets += uint64(n)
	fresh := map[string]ruleset.Counts{}
	for k, v := range b.counters {
		fresh[k] = v
	}
	fresh[b.counter(pod)] = c
	b.counters = fresh
	for range shown {
		b.add(packet{from: netip.MustParseAddr("192.168.0.7"), to: b.pods[pod].Addresses[0], protocol: inventory.TCP, fromPort: 999, toPort: port}, b.prefix(pod), "eth0", b.now)
	}
}

// pass lets seconds pass, with the ticks in them.
func (b *bench) pass(seconds int) {
	for range seconds {
		b.now = b.now.Add(time.Second)
		b.tick(b.now)
	}
}

// lines takes the lines that were logged since.
func (b *bench) lines() []string {
	list := strings.Split(strings.TrimSpace(b.log.String()), "\n")
	b.log.Reset()
	if list[0] == "" {
		return nil
	}
	return list
}

func (b *bench) expect(want ...string) {
	b.t.Helper()
	got := b.lines()
	if len(got) != len(want) {
		b.t.Fatalf("%d lines, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for i := range want {
		if !strings.Contains(got[i], want[i]) {
			b.t.Errorf("line %d: %s\nwant %s", i, got[i], want[i])
		}
	}
}

// A flow has its line at once, and then one for each window in which it goes on.
func TestOneLineAWindow(t *testing.T) {
	b := newBench(t, 1)
	b.deny(0, 80, 1, 1)
	b.expect("denied ingress 192.168.0.7 -> 10.0.0.0:80/TCP (default/p0): not allowed by default/deny (from eth0, 1 packet logged)")
	b.deny(0, 80, 4, 4)
	b.pass(9)
	b.expect()
	b.pass(1)
	b.expect("(from eth0, 4 packets logged)")
	b.deny(0, 80, 2, 2)
	b.pass(9)
	b.expect()
	b.pass(1)
	b.expect("(from eth0, 2 packets logged)")
	b.pass(100)
	b.expect()
	b.deny(0, 80, 1, 1) // after a quiet time: at once
	b.expect("1 packet logged)")
	if got := b.After(0); len(got) != 1 || got[0].Packets != 8 || len(b.After(got[0].Seq)) != 0 || len(b.After(got[0].Seq-1)) != 1 {
		t.Errorf("%+v", got)
	}
}

// What the kernel did not show, and what got no line, is said: lines and rests
// together are what the counters counted, also over a counter that is made anew.
func TestWhatGotNoLineIsSaid(t *testing.T) {
	b := newBench(t, 8)
	sum := regexp.MustCompile(`count=(\d+)`)
	total := func() (n int) {
		for _, l := range b.lines() {
			v, err := strconv.Atoi(sum.FindStringSubmatch(l)[1])
			if err != nil {
				t.Fatal(err)
			}
			n += v
		}
		return n
	}
	for pod := range 8 {
		b.deny(pod, 80, 1000+pod, 20)
		for port := range uint16(40) { // more flows than lines
			b.deny(pod, 100+port, 1, 1)
		}
	}
	b.pass(10)
	if got, want := total(), 8*1040+28; got != want {
		t.Errorf("the log tells of %d packets, %d were denied", got, want)
	}
	b.counters = map[string]ruleset.Counts{}
	for pod := range 8 {
		b.counters[b.counter(pod)] = ruleset.Counts{}
	}
	b.deny(3, 80, 5, 2)
	b.pass(20)
	if got := total(); got != 5 {
		t.Errorf("the log tells of %d packets, 5 were denied", got)
	}
	// A packet is shown before it is counted.
	b.add(packet{from: netip.MustParseAddr("192.168.0.7"), to: b.pods[1].Addresses[0], protocol: inventory.TCP, toPort: 80}, b.prefix(1), "eth0", b.now)
	b.pass(10)
	b.deny(1, 80, 4, 0)
	b.deny(2, 80, 1, 1)
	b.pass(20)
	if got := total(); got != 5 {
		t.Errorf("the log tells of %d packets, 5 were denied", got)
	}
}

// A pod that floods the log does not silence another, and the lines of a window are
// bounded, however many flows, pods and packets there are.
func TestFloodIsBounded(t *testing.T) {
	const pods = 150
	b := newBench(t, pods)
	for port := range uint16(3000) {
		b.deny(0, port, 1, 1)
	}
	if n := len(b.lines()); n != linesPerSubject {
		t.Errorf("%d lines of one pod, want %d", n, linesPerSubject)
	}
	for port := range uint16(30) {
		for pod := range pods {
			b.deny(pod, 5000+port, 100, 1)
		}
	}
	lines := b.lines()
	if len(lines) > maxLines+pods {
		t.Errorf("%d lines in a window", len(lines))
	}
	for pod := 1; pod < pods; pod++ {
		if !strings.Contains(strings.Join(lines, "\n"), fmt.Sprintf("(default/p%d)", pod)) {
			t.Errorf("p%d has no line", pod)
		}
	}
	if len(b.flows) > maxFlows {
		t.Errorf("%d flows are remembered", len(b.flows))
	}
	b.pass(10)
	if n := len(b.lines()); n > maxLines+pods+maxRest+1 {
		t.Errorf("%d lines at the window's end", n)
	}
	if got := b.After(0); len(got) == 0 || got[len(got)-1].Pod != "default/p149" {
		t.Error("the last flow is forgotten")
	}
}

// A reply that is denied is told as the flow that it belongs to; a pod that is not
// isolated any more has none; the gateway is named.
func TestWhoIsWho(t *testing.T) {
	b := newBench(t, 2)
	reply := packet{from: b.pods[0].Addresses[0], to: netip.MustParseAddr("10.9.9.9"), protocol: inventory.UDP, fromPort: 53, toPort: 4444}
	b.add(reply, b.prefix(0), "veth0", b.now)
	b.add(reply, "in-default/gone", "", b.now)
	b.expect("denied ingress 10.9.9.9 (the gateway) -> 10.0.0.0:53/UDP (default/p0): not allowed by default/deny (from an unknown interface, 1 packet logged)")
	b.add(packet{from: b.pods[1].Addresses[0], to: b.pods[0].Addresses[0], protocol: inventory.ICMP}, b.prefix(0), "v1", b.now)
	b.expect("denied ingress default/p1 -> 10.0.0.0/ICMP (default/p0)")
}

// Without the counters nothing is said of what they would tell, and later all of it.
func TestCountersFail(t *testing.T) {
	b := newBench(t, 1)
	counters := b.cfg.Counters
	b.cfg.Counters = func() (map[string]ruleset.Counts, error) { return nil, errors.New("no") }
	b.deny(0, 80, 100, 1)
	b.expect("1 packet logged)")
	b.pass(10)
	b.expect()
	b.cfg.Counters = counters
	b.deny(0, 80, 1, 1)
	b.pass(20)
	b.expect("1 packet logged)", "99 denied packets more")
}
