package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// fill makes the results of n pods, two files each as container runtimes do, and
// has them read when they are old enough to be known again.
func fill(b *testing.B, n int) *gateway {
	g := newGateway(b)
	for i := range n {
		x := g.of(fmt.Sprintf("pod%d", i), fmt.Sprint(i), fmt.Sprintf("10.1.%d.%d/16", i/250, 2+i%250), fmt.Sprintf("fd00::%x/64", 2+i))
		lo := x
		lo.network, lo.ifName = "cni-loopback", "lo"
		g.write(x, lo)
	}
	time.Sleep(racy) // not a matter of right or wrong
	if r := g.look(); len(r.Objects.Pods) != n {
		b.Fatalf("%d pods", len(r.Objects.Pods))
	}
	return g
}

// Nothing changed: the price of the safety net, twice a minute.
func BenchmarkUnchanged110(b *testing.B) {
	g := fill(b, 110)
	s := g.Source
	last := s.report
	for b.Loop() {
		s.results.all, s.configs.all, s.dirty = true, true, true
		now := time.Now()
		s.work(now)
		s.assemble(b.Context(), now, false)
	}
	if s.report.Time != last.Time {
		b.Fatal("something changed")
	}
}

// The interfaces changed, and with that nothing: the price of a poke.
func BenchmarkPoke110(b *testing.B) {
	g := fill(b, 110)
	for b.Loop() {
		g.Source.dirty = true
		g.Source.assemble(b.Context(), time.Now(), false)
	}
}

// One more pod: from its file's event to the report.
func BenchmarkOneMore110(b *testing.B) {
	g := fill(b, 110)
	s := g.Source
	x := g.of("one-more", "more", "10.1.9.9/16", "fd00::9999/64")
	g.look()
	for b.Loop() {
		b.StopTimer()
		g.write(x)
		before := s.report.Time
		b.StartTimer()
		now := time.Now()
		s.results.pending[x.file()] = now
		s.work(now)
		s.assemble(b.Context(), now, false)
		b.StopTimer()
		if s.report.Time == before || len(s.report.Objects.Pods) != 111 {
			b.Fatal("the pod was not seen")
		}
		g.remove(x)
		now = time.Now()
		s.results.pending[x.file()] = now
		s.work(now)
		s.assemble(b.Context(), now, false)
		b.StartTimer()
	}
}

// The same with the kernel's events, from the file's close to the report on the
// channel.
func BenchmarkLatency110(b *testing.B) {
	g := fill(b, 110)
	f := g.run()
	f.last = <-f.reports
	x := g.of("one-more", "more", "10.1.9.9/16", "fd00::9999/64")
	path := filepath.Join(g.results, x.file())
	for b.Loop() {
		g.write(x)
		for f.last = range f.reports {
			if len(f.last.Objects.Pods) == 111 {
				break
			}
		}
		b.StopTimer()
		if err := os.Remove(path); err != nil {
			b.Fatal(err)
		}
		for f.last = range f.reports {
			if len(f.last.Objects.Pods) == 110 {
				break
			}
		}
		b.StartTimer()
	}
}
