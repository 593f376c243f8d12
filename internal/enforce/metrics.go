package enforce

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"edgepolicy.io/edgepolicyd/internal/denied"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// maxSeries is how many pods and directions have a series, so that a scraper's memory is
// bounded too. A kubelet runs 110 pods.
const maxSeries = 512

// latencies counts how long changes took, by upper bounds in seconds.
type latencies struct {
	mu     sync.Mutex
	counts [len(latencyBounds) + 1]uint64
	sum    time.Duration
}

var latencyBounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1}

func (l *latencies) add(took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := 0
	for i < len(latencyBounds) && took.Seconds() > latencyBounds[i] {
		i++
	}
	l.counts[i]++
	l.sum += took
}

// exposition writes Prometheus' text format.
type exposition struct{ strings.Builder }

// family begins the series of one name.
func (x *exposition) family(name, kind, help string) {
	fmt.Fprintf(x, "# HELP edgepolicyd_%s %s\n# TYPE edgepolicyd_%s %s\n", name, help, name, kind)
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// series writes one value; labels are names and values in turn.
func (x *exposition) series(name string, value any, labels ...string) {
	x.WriteString("edgepolicyd_" + name)
	for i := 0; i+1 < len(labels); i += 2 {
		x.WriteString([...]string{",", "{"}[bit(i == 0)] + labels[i] + `="` + labelEscapes.Replace(labels[i+1]) + `"`)
	}
	if len(labels) > 0 {
		x.WriteByte('}')
	}
	fmt.Fprintf(x, " %v\n", value)
}

// single writes a family of one series.
func (x *exposition) single(name, kind, help string, value any) {
	x.family(name, kind, help)
	x.series(name, value)
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Metrics writes what Prometheus asks for. Its series are those of this gateway's
// isolated pods and of the sources.
func (e *Enforcer) Metrics(w io.Writer) error {
	all, err := counters(e.cfg.Table)
	if err != nil {
		return err
	}
	s := e.Status()
	x := &exposition{}
	x.family("info", "gauge", "The daemon's version.")
	x.series("info", 1, "version", s.DaemonVersion)
	x.family("health", "gauge", "1 for the state that it is in.")
	for _, state := range []string{status.Healthy, status.Degraded, status.Failed} {
		x.series("health", bit(s.Health == state), "state", state)
	}
	x.single("generation", "gauge", "Changes that reached the kernel since the daemon started.", s.Generation)
	x.single("policies", "gauge", "Policies that are known and valid.", len(s.Policies))
	x.single("pods", "gauge", "Pods of this gateway that policies can apply to.", s.Pods)
	x.single("isolated_pods", "gauge", "Pods that policies isolate in at least one direction.", s.IsolatedPods)
	x.single("unenforceable_pods", "gauge", "Pods whose traffic does not pass the table.", len(s.Unenforceable))
	x.single("rejected_documents", "gauge", "Documents and objects that are not in force as written.", len(s.Rejected))
	x.single("table_repairs_total", "counter", "How often the table was put right after another program had changed it.", e.repairs.Load())
	x.single("held_packets_total", "counter", "Packets dropped from or to addresses that are no known pod's, or forged.", s.Hold.Packets)
	x.single("pod_latency_seconds", "gauge", "From the newest pod's CNI result to the kernel.", time.Duration(s.Hold.Latency.Last).Seconds())
	x.latencies(&e.latencies)
	x.sources(s.Sources)
	x.denied(e.names()[0](), all)
	_, err = io.WriteString(w, x.String())
	return err
}

func (x *exposition) latencies(l *latencies) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x.family("apply_seconds", "histogram", "How long the kernel took for a change.")
	sum := uint64(0)
	for i, bound := range latencyBounds {
		sum += l.counts[i]
		x.series("apply_seconds_bucket", sum, "le", fmt.Sprint(bound))
	}
	sum += l.counts[len(latencyBounds)]
	x.series("apply_seconds_bucket", sum, "le", "+Inf")
	x.series("apply_seconds_sum", l.sum.Seconds())
	x.series("apply_seconds_count", sum)
}

func (x *exposition) sources(list []status.SourceStatus) {
	x.family("source_ok", "gauge", "1 if the source can be read.")
	for _, s := range list {
		x.series("source_ok", bit(s.Error == "" && s.OfflineSince.IsZero()), "source", s.Name)
	}
	x.family("source_age_seconds", "gauge", "How long ago the source's server confirmed what it serves.")
	for _, s := range list {
		if s.AgeSeconds != nil {
			x.series("source_age_seconds", *s.AgeSeconds, "source", s.Name)
		}
	}
}

// denied writes what the table's counters hold, by pod and direction.
func (x *exposition) denied(names *denied.Names, all map[string]ruleset.Counts) {
	subjects := slices.SortedFunc(maps.Values(names.Subjects), func(a, b *denied.Subject) int { return cmp.Compare(a.Counter, b.Counter) })
	for _, f := range []struct {
		name, help string
		audited    bool
	}{
		{"denied", "that policies denied", false},
		{"would_deny", "that passed, and that policies which are only tried would deny", true},
	} {
		mine := slices.DeleteFunc(slices.Clone(subjects), func(s *denied.Subject) bool { return s.Audited != f.audited })
		for _, unit := range []string{"packets", "bytes"} {
			name := f.name + "_" + unit + "_total"
			x.family(name, "counter", strings.ToUpper(unit[:1])+unit[1:]+" "+f.help+".")
			for _, s := range mine[:min(len(mine), maxSeries)] {
				value := all[s.Counter].Packets
				if unit == "bytes" {
					value = all[s.Counter].Bytes
				}
				x.series(name, value, "namespace", s.Pod.Key.Namespace, "pod", s.Pod.Key.Name, "direction", s.Direction.String())
			}
		}
	}
}
