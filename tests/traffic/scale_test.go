package traffic

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// Sizes of a large gateway.
const (
	scalePods     = 110
	scalePolicies = 1000
	scaleBlocks   = 10_000
	scalePorts    = 240 // of each of the pods, in both families: 52,800 elements
)

// scalePolicy is one of many: it isolates the pods of one app in both directions.
func scalePolicy(i, port int) string {
	return fmt.Sprintf(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: policy-%04d}
spec:
  podSelector: {matchLabels: {app: "%d"}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: "%d"}}}], ports: [{port: %d}]}]
  egress: [{to: [{ipBlock: {cidr: 192.168.%d.0/24}}], ports: [{port: 443}]}, {to: [{podSelector: {}}]}]
`, i, i%50, (i+1+i/50)%50, port, i%250)
}

// scaleDocs is the gateway: the first pods are also in the lab.
func scaleDocs() []string {
	var docs []string
	for i := range scalePods {
		docs = append(docs, podDoc(fmt.Sprintf("pod-%03d", i), fmt.Sprintf(`app: "%d", number: "%d"`, i%50, i), scaleAddress(i, false), scaleAddress(i, true)))
	}
	for i := range scalePolicies {
		docs = append(docs, scalePolicy(i, 8000+i%7))
	}
	var blocks, ports []string
	for i := range scaleBlocks { // with gaps, so that none can be merged
		blocks = append(blocks, fmt.Sprintf("{ipBlock: {cidr: %s}}", scaleBlock(i)))
	}
	for i := range scalePorts {
		ports = append(ports, fmt.Sprintf("{port: %d, protocol: UDP}", 20_000+2*i))
	}
	return append(docs,
		policyDoc("blocks", `number: "0"`, inventory.Ingress, []string{"{from: [" + strings.Join(blocks, ", ") + "], ports: [{port: 8010}]}"}),
		policyDoc("ports", `number: "1"`, inventory.Ingress, []string{"{from: [{podSelector: {}}], ports: [" + strings.Join(ports, ", ") + "]}"}))
}

func scaleAddress(i int, six bool) string {
	if six {
		return fmt.Sprintf("fd42::1:%x", i+1)
	}
	return fmt.Sprintf("10.42.0.%d", 11+i)
}

// scaleBlock is the first half of the i-th /29 of a range.
func scaleBlock(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + i>>13), byte(i >> 5), byte(i << 3)}), 30)
}

// TestScale loads a large gateway through the daemon, reads it back, probes it,
// and changes one policy of it.
func TestScale(t *testing.T) {
	w := withDaemon(t, lab.Bridge, "")
	for i := range 5 {
		w.pod(fmt.Sprintf("pod-%03d", i), scaleAddress(i, false), scaleAddress(i, true))
	}
	docs := scaleDocs()
	w.must(w.Write("gateway.yaml", strings.Join(docs[:scalePods+1], "---\n")+"---\n"+strings.Join(docs[scalePods+2:], "---\n")))
	w.must(w.Write("policy-1.yaml", docs[scalePods+1]))
	w.must(w.Start())
	w.converged()
	elements := 0
	for _, s := range readTable(t, w.Lab).Sets {
		elements += len(s.Elements)
	}
	if elements < 60_000 {
		t.Errorf("%d elements in the table: the test proves less than it says", elements)
	}
	p := newJudge(t, w.Lab)
	w.scaleProbes(p, docs)
	w.oneChange(docs)
	for _, text := range []string{"ENOBUFS", "no buffer space", "EMSGSIZE", "message too long", "trying again"} {
		if strings.Contains(w.Log(), text) {
			t.Errorf("the daemon's log says %q", text)
		}
	}
	t.Logf("%d elements", elements)
}

// scaleProbes holds the kernel against the evaluator in a sample of flows.
func (w *world) scaleProbes(p *pipeline, docs []string) {
	w.t.Helper()
	s := p.snapshot(docs)
	rng := rand.New(rand.NewPCG(5, 5))
	var probes []lab.Probe
	var want []bool
	add := func(from *lab.Namespace, src, dst string, proto inventory.Protocol, port uint16) {
		f := policy.Flow{From: policy.EndpointAt(s, parse(src)), To: policy.EndpointAt(s, parse(dst)), Protocol: proto, Port: port}
		probes = append(probes, lab.Probe{From: from, Src: parse(src), Dst: parse(dst), Proto: proto, DstPort: port})
		want = append(want, policy.Evaluate(s, &p.opts, f).Allowed)
	}
	for range 2000 {
		inside := scaleBlock(rng.IntN(scaleBlocks)).Addr()
		for range rng.IntN(8) {
			inside = inside.Next()
		}
		add(w.Outside, inside.String(), scaleAddress(0, false), inventory.TCP, 8010)
		six := rng.IntN(2) == 0
		add(nil, scaleAddress(2+rng.IntN(3), six), scaleAddress(1, six), inventory.UDP, uint16(20_000+rng.IntN(2*scalePorts+2)))
		add(nil, scaleAddress(rng.IntN(5), six), scaleAddress(rng.IntN(5), six), inventory.TCP, uint16(8000+rng.IntN(8)))
	}
	got, err := w.Probe(context.Background(), probes)
	w.must(err)
	allowed := 0
	for i, pr := range probes {
		allowed += truth(want[i])
		if got[i] != want[i] && pr.Src != pr.Dst {
			w.t.Errorf("%s to %s %d/%s: arrived %v, want %v", pr.Src, pr.Dst, pr.DstPort, pr.Proto, got[i], want[i])
		}
	}
	if allowed < len(probes)/10 || allowed > len(probes)*9/10 {
		w.t.Errorf("%d of %d probes are allowed: the sample is poor", allowed, len(probes))
	}
}

// oneChange changes a port in one policy: the kernel hears of few operations,
// and the counters of all pods keep what they counted.
func (w *world) oneChange(docs []string) {
	w.t.Helper()
	before := w.counters()
	if !strings.Contains(before, "packets") || strings.Count(before, "packets 0 ") == strings.Count(before, "packets") {
		w.t.Fatalf("nothing was counted:\n%.1000s", before)
	}
	events := w.heard(func() {
		w.must(w.Write("policy-1.yaml", scalePolicy(1, 9999)))
		w.must(w.Reload())
	})
	total := 0
	for _, n := range events {
		total += n
	}
	w.t.Logf("one changed policy: %v", events)
	if events["transaction"] == 0 || total > 60 {
		w.t.Errorf("one changed policy made %d events: %v", total, events)
	}
	if after := w.counters(); after != before {
		w.t.Errorf("counters changed with the policy")
	}
	w.converged()
}

// heard counts what the kernel tells those who listen for changes of nftables
// (NFNLGRP_NFTABLES) while something is done: the messages by type.
func (w *world) heard(do func()) map[string]int {
	w.t.Helper()
	var c *netlink.Conn
	w.must(w.Gateway.Do(func() (err error) {
		c, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	}))
	defer c.Close()
	w.must(c.SetReadBuffer(8 << 20))
	w.must(c.JoinGroup(unix.NFNLGRP_NFTABLES))
	do()
	w.must(c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))) // all was told before do returned
	events := map[string]int{}
	for {
		list, err := c.Receive()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return events
		}
		w.must(err)
		for _, m := range list {
			events[messageName(m)]++
		}
	}
}

// messageName names a message by its type.
func messageName(m netlink.Message) string {
	kind := uint16(m.Header.Type) & 0xff
	if kind == unix.NFT_MSG_NEWGEN {
		return "transaction"
	}
	names := map[uint16]string{
		unix.NFT_MSG_NEWRULE: "new rule", unix.NFT_MSG_DELRULE: "delete rule", unix.NFT_MSG_NEWSETELEM: "new element", unix.NFT_MSG_DELSETELEM: "delete element",
		unix.NFT_MSG_NEWSET: "new set", unix.NFT_MSG_DELSET: "delete set", unix.NFT_MSG_NEWCHAIN: "new chain", unix.NFT_MSG_DELCHAIN: "delete chain",
		unix.NFT_MSG_NEWOBJ: "new object", unix.NFT_MSG_DELOBJ: "delete object",
	}
	if names[kind] == "" {
		return fmt.Sprint("message ", kind)
	}
	return names[kind]
}

// counters lists what the pods' counters have counted.
func (w *world) counters() string {
	w.t.Helper()
	out, err := w.Gateway.Run("nft", "list", "counters", "table", "inet", "edgepolicyd")
	w.must(err)
	return out
}
