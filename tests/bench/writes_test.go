package bench

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"edgepolicy.io/edgepolicyd/tests/daemon"
)

// BenchmarkStateWrites reports how often and how much the daemon writes to the flash
// in a minute in which everything changes all the time: policies in the
// directory, or pods alone, come and gone in turn.
func BenchmarkStateWrites(b *testing.B) {
	e := newEdge(b, pods+1)
	for _, churn := range []struct {
		name   string
		change func(d *daemon.Daemon, i int)
	}{
		{"policies", func(d *daemon.Daemon, i int) {
			e.must(d.Write("policy-0000.yaml", policyJSON(0, 8100+10*i)))
		}},
		{"pods", func(d *daemon.Daemon, i int) {
			if i%2 == 0 {
				e.list(pods+1, 1)
				e.must(os.WriteFile(e.resultFile(pods), e.result(pods), 0o600))
			} else {
				e.list(pods, 0)
				e.must(os.Remove(e.resultFile(pods)))
			}
		}},
	} {
		b.Run(churn.name, func(b *testing.B) {
			e.b = b
			e.attach(pods)
			e.list(pods, 0)
			d := e.daemon(true, withKubelet)
			e.policyFiles(d, 0, false)
			e.must(d.Start())
			e.allInForce(d, pods)
			time.Sleep(7 * time.Second) // the start is written
			before := e.status(d).Generation
			var writes, bytes int64
			for b.Loop() {
				writes, bytes = written(b, d, func() {
					for i, begin := 0, time.Now(); time.Since(begin) < time.Minute; i++ {
						churn.change(d, i)
						time.Sleep(250 * time.Millisecond)
					}
				})
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(e.status(d).Generation-before), "changes")
			b.ReportMetric(float64(writes), "writes")
			b.ReportMetric(float64(bytes)/1000, "kB")
			e.must(d.Stop())
			os.Remove(e.resultFile(pods))
			_, err := e.Gateway.Run("nft", "flush", "ruleset")
			e.must(err)
		})
	}
}

// written counts, while something goes on, how often the state file is replaced, and
// the bytes that it has each time.
func written(b *testing.B, d *daemon.Daemon, during func()) (writes, bytes int64) {
	b.Helper()
	w, err := fsnotify.NewWatcher()
	if err == nil {
		err = w.Add(d.State)
	}
	if err != nil {
		b.Fatal(err)
	}
	var n, size atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event := range w.Events {
			if filepath.Base(event.Name) != "state" || !event.Has(fsnotify.Create) {
				continue
			}
			if info, err := os.Stat(event.Name); err == nil {
				n.Add(1)
				size.Add(info.Size())
			}
		}
	}()
	during()
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	<-done
	return n.Load(), size.Load()
}
