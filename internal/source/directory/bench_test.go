package directory

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// fill makes n files with a policy each and gives a source that has read them.
func fill(b *testing.B, n int) (*Source, string) {
	dir := b.TempDir()
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d.yaml", i)), []byte(policy(fmt.Sprintf("p%04d", i), 1+i)), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	s := New(dir, nil, slog.New(slog.DiscardHandler))
	r, err := s.Refresh(b.Context())
	if err != nil || len(r.Objects.Policies) != n {
		b.Fatalf("%d policies, %v", len(r.Objects.Policies), err)
	}
	return s, dir
}

// One file of a thousand changes: from its being quiet to the report.
func BenchmarkOneOfThousand(b *testing.B) {
	s, dir := fill(b, 1000)
	s.quiet = 0
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		if err := os.WriteFile(filepath.Join(dir, "0500.yaml"), []byte(policy("p0500", 1+i%1000)), 0o644); err != nil {
			b.Fatal(err)
		}
		before := s.report.Time
		b.StartTimer()
		now := time.Now()
		s.pending["0500.yaml"] = now
		s.work(now)
		s.assemble(now)
		b.StopTimer()
		if s.report.Time == before {
			b.Fatal("the change was not seen")
		}
		b.StartTimer()
	}
}

// Nothing changed in a thousand files: the safety net's price, twice a minute.
func BenchmarkRescanThousand(b *testing.B) {
	s, _ := fill(b, 1000)
	for b.Loop() {
		now := time.Now()
		s.full = now
		s.work(now)
		s.assemble(now)
	}
}

// The first reading of a thousand files.
func BenchmarkReadThousand(b *testing.B) {
	_, dir := fill(b, 1000)
	for b.Loop() {
		s := New(dir, nil, slog.New(slog.DiscardHandler))
		if _, err := s.Refresh(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
