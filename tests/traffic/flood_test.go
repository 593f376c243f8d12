package traffic

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
)

const (
	floodRate  = 100_000 // denied packets a second
	floodTime  = 10      // seconds
	floodPorts = 64      // destination ports, each a flow
	floodBatch = 64
)

// flood sends denied packets from the pod of the socket's side, at the rate if the
// machine can, and gives the time that it took.
func flood(t *testing.T, from *lab.Namespace, to netip.Addr, packets int) time.Duration {
	t.Helper()
	var sockets []*ipv4.PacketConn
	for i := range floodPorts {
		c, err := from.Dial(context.Background(), "udp", netip.Addr{}, netip.AddrPortFrom(to, uint16(7000+i)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		sockets = append(sockets, ipv4.NewPacketConn(c.(net.PacketConn)))
	}
	batch := make([]ipv4.Message, floodBatch)
	for i := range batch {
		batch[i].Buffers = [][]byte{[]byte("flood")}
	}
	begin := time.Now()
	for sent, turn := 0, 0; sent < packets; turn++ {
		for done := 0; done < floodBatch; {
			n, err := sockets[turn%floodPorts].WriteBatch(batch[done:], 0)
			if err != nil {
				t.Fatal(err)
			}
			done += n
		}
		sent += floodBatch
		time.Sleep(time.Until(begin.Add(time.Duration(sent) * time.Second / floodRate)))
	}
	return time.Since(begin)
}

// A million denied packets of one pod harm nothing: what is allowed passes and what is
// denied does not, another pod's single packet has its line, the log stays within its
// bounds, and the totals are exact.
func TestDeniedFlood(t *testing.T) {
	w := withDaemon(t, lab.Routed, "")
	web, flooder := w.pod("web", "10.42.0.12"), w.pod("flooder", "10.42.0.13")
	w.pod("client", "10.42.0.11")
	w.pod("quiet", "10.42.0.14")
	var docs []string
	for i, name := range []string{"client", "web", "flooder", "quiet"} {
		docs = append(docs, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %s}}\nstatus: {podIP: 10.42.0.%d}\n", name, name, 11+i))
	}
	docs = append(docs, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\nspec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]}\n",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: quiet}\nspec: {podSelector: {matchLabels: {app: quiet}}, policyTypes: [Egress]}\n")
	w.must(w.Write("cluster.yaml", strings.Join(docs, "---\n")))
	w.must(w.Start())
	// Another program's counter, before ours, says how many came to the gateway.
	_, err := w.Gateway.RunInput(`table ip witness { counter flood { }; chain forward { type filter hook forward priority -10; ip saddr 10.42.0.13 counter name flood; }; }`, "nft", "-f", "-")
	w.must(err)

	stop, err := w.StartTraffic(context.Background(), 1000, []lab.Flow{
		{Probe: lab.Probe{Src: netip.MustParseAddr("10.42.0.11"), Dst: web.Addresses[0], Proto: inventory.TCP, DstPort: 80}, Expect: lab.Allowed},
		{Probe: lab.Probe{Src: netip.MustParseAddr("10.42.0.11"), Dst: web.Addresses[0], Proto: inventory.TCP, DstPort: 81}, Expect: lab.Denied},
	})
	w.must(err)
	took := make(chan time.Duration)
	go func() {
		defer close(took)
		took <- flood(t, flooder, web.Addresses[0], floodRate*floodTime)
	}()
	time.Sleep(floodTime * time.Second / 2) // in the middle of it
	arrived, err := w.Probe(context.Background(), []lab.Probe{{Src: netip.MustParseAddr("10.42.0.14"), Dst: web.Addresses[0], Proto: inventory.TCP, DstPort: 9999}})
	w.must(err)
	if arrived[0] {
		t.Error("what quiet may not send arrived")
	}
	t.Logf("%d packets in %s", floodRate*floodTime, <-took)
	report, err := stop()
	w.must(err)
	if report.Lost > 0 || report.Leaked > 0 {
		t.Errorf("beside the flood %d packets were lost and %d leaked, of %v", report.Lost, report.Leaked, report.Sent)
	}
	w.eventually("the quiet pod's packet has its line", func() bool {
		return strings.Contains(w.Log(), "denied egress default/quiet -> 10.42.0.12:9999/TCP (default/web): not allowed by default/quiet")
	})
	w.boundedAndExact(report.Sent[1])
}

// boundedAndExact says that the log is short, and that lines, rests and counters agree
// with what came to the gateway, and with others' packets that web's policy denied.
func (w *world) boundedAndExact(others int) {
	w.t.Helper()
	out, err := w.Gateway.Run("nft", "list", "counter", "ip", "witness", "flood")
	w.must(err)
	came, err := strconv.Atoi(regexp.MustCompile(`packets (\d+)`).FindStringSubmatch(out)[1])
	w.must(err)
	if came < floodRate*floodTime/2 {
		w.t.Errorf("only %d packets came to the gateway", came)
	}
	denied := regexp.MustCompile(`denied_packets_total\{namespace="default",pod="web",direction="ingress"\} (\d+)`)
	out, err = w.Gateway.Run("curl", "-sS", "--unix-socket", filepath.Join(w.Folder, "edgepolicyd.sock"), "http://edgepolicyd/metrics")
	w.must(err)
	if got := denied.FindStringSubmatch(out)[1]; got != strconv.Itoa(came+others) {
		w.t.Errorf("%s packets are counted as denied, it were %d of the flood and %d others", got, came, others)
	}
	told := func() (lines, packets int) {
		for _, l := range strings.Split(w.Log(), "\n") {
			if m := regexp.MustCompile(`event=denied(?:-suppressed)? pod=default/web .*count=(\d+)`).FindStringSubmatch(l); m != nil {
				n, err := strconv.Atoi(m[1])
				w.must(err)
				lines, packets = lines+1, packets+n
			}
		}
		return lines, packets
	}
	w.eventually("the log tells of all of them", func() bool { _, n := told(); return n == came+others })
	lines, packets := told()
	w.t.Logf("%d packets came, %d lines of %d bytes in all tell of %d", came+others, lines, len(w.Log()), packets)
	if lines > 4*11 { // windows, each with ten flows and the rest
		w.t.Errorf("%d lines", lines)
	}
}
