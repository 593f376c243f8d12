package bench

import (
	"fmt"
	"os"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/tests/daemon"
)

// BenchmarkSourcesMemory reports what the daemon has resident with the API, the
// kubelet and CNI together: some seconds after its start, after the API server has
// asked for all lists anew, and after each policy changed; and at most up to then,
// from one to the next.
func BenchmarkSourcesMemory(b *testing.B) {
	e := newEdge(b, pods)
	e.attach(pods)
	e.putAll(pods)
	e.serveAPI()
	d := e.daemon(true, withAPI)
	e.must(d.Start())
	e.allInForce(d, pods)
	memory := map[string]float64{}
	e.memory(d, "start", memory)

	lists := e.api.Requests("list networkpolicies")
	e.api.Expire()
	e.waitFor(d, "the list is read again", func() bool { return e.api.Requests("list networkpolicies") >= lists+2 })
	e.memory(d, "relist", memory)

	before := e.status(d).Generation
	for i := range policies {
		e.api.Put(policyJSON(i, 8100))
		time.Sleep(5 * time.Millisecond)
	}
	e.allInForce(d, pods)
	b.Logf("1,000 changes of policies reached the kernel in %d steps", e.status(d).Generation-before)
	e.memory(d, "churn", memory)
	for b.Loop() {
	}
	b.ReportMetric(0, "ns/op")
	for what, mib := range memory {
		b.ReportMetric(mib, what)
	}
}

// memory waits until garbage is given back, and starts to look for the next
// peak.
func (e *edge) memory(d *daemon.Daemon, when string, to map[string]float64) {
	e.b.Helper()
	time.Sleep(7 * time.Second) // the table is read back once after the start, within 5 s
	to["MiB-"+when], to["MiB-peak-"+when] = statusField(e.b, d.PID(), "VmRSS"), statusField(e.b, d.PID(), "VmHWM")
	e.must(os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.PID()), []byte("5"), 0)) // VmHWM
}
