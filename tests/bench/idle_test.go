package bench

import (
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/tests/daemon"
)

// BenchmarkIdle reports the processor time that the daemon takes in a minute in
// which nothing happens, by what it asks. Everything is large: 110 pods, 1,000
// policies, 200 namespaces.
func BenchmarkIdle(b *testing.B) {
	e := newEdge(b, pods)
	e.attach(pods)
	e.putAll(pods)
	e.serveAPI()
	inFiles := func(pods int) func(*daemon.Daemon) { return func(d *daemon.Daemon) { e.policyFiles(d, pods, true) } }
	nothing := func(*daemon.Daemon) {}
	for _, mode := range []struct {
		name    string
		cni     bool
		sources string
		files   func(*daemon.Daemon)
		noWatch bool
	}{
		{"directory", false, noKubelet, inFiles(pods), false},
		{"cni", true, noKubelet, inFiles(pods), false},
		{"cni+kubelet", true, withKubelet, inFiles(0), false},
		{"cni+kubelet+api", true, withAPI, nothing, false},
		{"cni+kubelet+polled-api", true, withAPI, nothing, true},
	} {
		b.Run(mode.name, func(b *testing.B) {
			e.b = b
			e.api.NoWatch(-1)
			if mode.noWatch {
				e.api.NoWatch(time.Second)
			}
			d := e.daemon(mode.cni, mode.sources)
			mode.files(d)
			e.must(d.Start())
			e.allInForce(d, pods)
			time.Sleep(10 * time.Second) // what the start leaves to do, and finding out that there is no watch
			var took time.Duration
			for b.Loop() {
				before := processTime(b, d.PID())
				time.Sleep(time.Minute)
				took += processTime(b, d.PID()) - before
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(took.Microseconds())/1000/float64(b.N), "CPU-ms/min")
			b.ReportMetric(statusField(b, d.PID(), "VmRSS"), "MiB")
			e.must(d.Stop())
			_, _, _, err := d.Run("flush")
			e.must(err)
			_, err = e.Gateway.Run("nft", "flush", "ruleset")
			e.must(err)
		})
	}
}
