// Package bench measures the daemon: its size, its memory, how fast it starts,
// and how fast a change reaches the kernel. `make bench` prints it. The gateway is
// a large one: 110 pods of both families and 1,000 policies.
package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/tests/daemon"
)

const (
	pods     = 110
	policies = 1000
)

// podYAML is all the pods.
func podYAML() string {
	var b strings.Builder
	for i := range pods {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Pod
metadata: {name: pod-%03d, labels: {app: "app-%d"}}
status: {podIPs: [{ip: 10.42.0.%d}, {ip: "fd42::%x"}]}
`, i, i%50, i+2, i+2)
	}
	return b.String()
}

// policyYAML isolates the pods of one app both ways.
func policyYAML(i, port int) string {
	return fmt.Sprintf(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: policy-%04d}
spec:
  podSelector: {matchLabels: {app: "app-%d"}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: "app-%d"}}}]
    ports: [{port: %d}]
  egress:
  - to: [{ipBlock: {cidr: 192.168.%d.0/24}}]
    ports: [{port: 443}]
`, i, i%50, (i+1+i/50)%50, port+i%7, i%256)
}

// largeGateway makes a lab and a daemon with the large gateway's files.
func largeGateway(b *testing.B) *daemon.Daemon {
	b.Helper()
	l := lab.ForTest(b, lab.Topology{Kind: lab.Bridge})
	d, err := daemon.New(l, b.TempDir(), "")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Stop() })
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(d.Dir, name), []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	write("pods.yaml", podYAML())
	for i := range policies {
		write(fmt.Sprintf("policy-%04d.yaml", i), policyYAML(i, 8000))
	}
	return d
}

// BenchmarkBinarySize builds the stripped binary for each architecture that
// google/nftables compiles for as it is, and reports its size.
func BenchmarkBinarySize(b *testing.B) {
	for _, arch := range []string{"amd64", "arm64"} {
		b.Run(arch, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "edgepolicyd")
			cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "edgepolicy.io/edgepolicyd/cmd/edgepolicyd")
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
			info, err := os.Stat(path)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(info.Size())/1e6, "MB")
		})
	}
}

// BenchmarkResidentMemory reports what the daemon has resident some seconds after
// its start, and at most since then.
func BenchmarkResidentMemory(b *testing.B) {
	d := largeGateway(b)
	if err := d.Start(); err != nil {
		b.Fatal(err)
	}
	time.Sleep(3 * time.Second) // the state is written, garbage given back
	for b.Loop() {
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(statusField(b, d.PID(), "VmRSS"), "MiB")
	b.ReportMetric(statusField(b, d.PID(), "VmHWM"), "MiB-peak")
}

// statusField reads kB from /proc/PID/status and gives MiB.
func statusField(b *testing.B, pid int, field string) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kb / 1024
		}
	}
	b.Fatalf("no %s in /proc/%d/status", field, pid)
	return 0
}

// BenchmarkStart measures from the start of the process to READY=1, when the
// kernel enforces: with an empty kernel, and adopting the table of the daemon
// before.
func BenchmarkStart(b *testing.B) {
	for _, adopt := range []bool{false, true} {
		b.Run(map[bool]string{false: "empty-kernel", true: "adopting"}[adopt], func(b *testing.B) {
			d := largeGateway(b)
			for b.Loop() {
				if err := d.Start(); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := d.Stop(); err != nil {
					b.Fatal(err)
				}
				if !adopt {
					if _, stderr, code, err := d.Run("flush"); err != nil || code != 0 {
						b.Fatal(err, code, stderr)
					}
				}
				b.StartTimer()
			}
		})
	}
}

// pipeline is the daemon's way from a file's bytes to the kernel, without the
// file system and its quiet time.
type pipeline struct {
	report   source.Report
	options  inventory.Options
	resolver *policy.Resolver
	compiler *ruleset.Compiler
	conn     *nft.Conn
	actual   *ruleset.Table
}

func newPipeline(b *testing.B) *pipeline {
	p := &pipeline{options: inventory.DefaultOptions(), report: source.Report{Source: "directory"}}
	p.resolver, p.compiler = policy.NewResolver(&p.options), ruleset.NewCompiler("edgepolicyd", &p.options)
	l := lab.ForTest(b, lab.Topology{})
	err := l.Gateway.Do(func() (err error) {
		p.conn, err = nft.Open("edgepolicyd")
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.conn.Close() })
	if err := p.conn.Claim(); err != nil {
		b.Fatal(err)
	}
	for _, doc := range manifest.Decode("directory", "pods.yaml", []byte(podYAML())).Documents {
		p.report.Objects.Pods = append(p.report.Objects.Pods, doc.Pod)
	}
	for i := range policies {
		p.report.Objects.Policies = append(p.report.Objects.Policies, decode(b, i, policyYAML(i, 8000)))
	}
	p.apply(b)
	return p
}

func decode(b *testing.B, i int, text string) *inventory.Policy {
	f := manifest.Decode("directory", fmt.Sprintf("policy-%04d.yaml", i), []byte(text))
	if len(f.Documents) != 1 || !f.Documents[0].Valid {
		b.Fatal(f.Diagnostics)
	}
	return f.Documents[0].Policy
}

func (p *pipeline) apply(b *testing.B) {
	s, problems := source.Merge([]source.Report{p.report}, nil, nil, &p.options)
	if len(problems) > 0 {
		b.Fatal(problems)
	}
	d := ruleset.Diff(p.actual, p.compiler.Compile(p.resolver.Update(s), ruleset.Mark{Mask: p.options.MarkMask, Epoch: 1 << 24}))
	if d.Empty() {
		b.Fatal("the change changed nothing")
	}
	if err := p.conn.Apply(d.Transactions); err != nil {
		b.Fatal(err)
	}
	p.actual = d.Target
}

// BenchmarkOneChange measures one change from the bytes of its file to the
// kernel's commit.
func BenchmarkOneChange(b *testing.B) {
	b.Run("policy", func(b *testing.B) {
		p := newPipeline(b)
		i := 0
		for b.Loop() {
			i++
			n := i % policies
			p.report.Objects.Policies[n] = decode(b, n, policyYAML(n, 8000+10*(1+i/policies)))
			p.apply(b)
		}
	})
	b.Run("label", func(b *testing.B) {
		p := newPipeline(b)
		i := 0
		for b.Loop() {
			i++
			pod := *p.report.Objects.Pods[0]
			pod.Labels = map[string]string{"app": fmt.Sprintf("app-%d", i%50)}
			p.report.Objects.Pods[0] = &pod
			p.apply(b)
		}
	})
	b.Run("pod", func(b *testing.B) {
		p := newPipeline(b)
		all := p.report.Objects.Pods
		i := 0
		for b.Loop() {
			i++
			p.report.Objects.Pods = all[:pods-i%2]
			p.apply(b)
		}
	})
}
