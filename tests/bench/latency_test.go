package bench

import (
	"bytes"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/tests/daemon"
)

// newPods is how many pods come, one after the other, beside those that are there.
const newPods = 60

// BenchmarkCNIToKernel reports how long it takes from the close of a new pod's CNI
// result to the kernel's commit, heard by nftables' own notifications. The pod's
// labels are known from the start, or the kubelet, which lists it already, has to be
// asked first.
func BenchmarkCNIToKernel(b *testing.B) {
	e := newEdge(b, pods+newPods)
	e.putAll(0)
	e.serveAPI()
	for _, mode := range []struct {
		name    string
		sources string
		files   func(*daemon.Daemon)
	}{
		{"labels-known", noKubelet, func(d *daemon.Daemon) { e.policyFiles(d, pods+newPods, false) }},
		{"kubelet", withKubelet, func(d *daemon.Daemon) { e.policyFiles(d, 0, false) }},
		{"kubelet+api", withAPI, func(*daemon.Daemon) {}},
	} {
		b.Run(mode.name, func(b *testing.B) {
			e.b = b
			e.attach(pods)
			e.list(pods, 0)
			d := e.daemon(true, mode.sources)
			mode.files(d)
			e.must(d.Start())
			e.waitFor(d, "everything is in force", func() bool { s := e.status(d); return s.IsolatedPods >= pods && len(s.Policies) == policies })
			time.Sleep(6 * time.Second) // what the start leaves to do
			heard := e.hearPods()
			var took []time.Duration
			for b.Loop() {
				for i := pods; i < pods+newPods; i++ {
					e.list(i+1, 1)
					time.Sleep(200 * time.Millisecond) // not all in one burst
					text := e.result(i)
					e.must(os.WriteFile(e.resultFile(i), text, 0o600))
					written := time.Now()
					took = append(took, heard(podAddresses(i)[0]).Sub(written))
					e.list(i+1, 0)
				}
				for i := pods; i < pods+newPods; i++ {
					e.must(os.Remove(e.resultFile(i)))
				}
				e.list(pods, 0)
			}
			slices.Sort(took)
			b.ReportMetric(0, "ns/op")
			for what, at := range map[string]int{"ms-median": len(took) / 2, "ms-p99": len(took) * 99 / 100, "ms-least": 0} {
				b.ReportMetric(took[at].Seconds()*1000, what)
			}
			b.ReportMetric(e.status(d).Hold.Latency.Most, "ms-most-by-status")
			e.must(d.Stop())
			_, err := e.Gateway.Run("nft", "flush", "ruleset")
			e.must(err)
		})
	}
}

// hearPods gives a function that waits until the kernel tells of a commit in which
// an address came to the known pods, and says when that was heard.
func (e *edge) hearPods() func(netip.Addr) time.Time {
	e.b.Helper()
	var c *netlink.Conn
	e.must(e.Gateway.Do(func() (err error) {
		c, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
		return err
	}))
	e.b.Cleanup(func() { c.Close() })
	e.must(c.SetReadBuffer(8 << 20))
	return func(a netip.Addr) time.Time {
		e.must(c.SetReadDeadline(time.Now().Add(10 * time.Second)))
		for set := []byte("\x00pods_v4"); ; {
			messages, err := c.Receive()
			now := time.Now()
			e.must(err)
			for _, m := range messages {
				const newElements = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWSETELEM
				if m.Header.Type == newElements && bytes.Contains(m.Data, set) && bytes.Contains(m.Data, a.AsSlice()) {
					return now
				}
			}
		}
	}
}
