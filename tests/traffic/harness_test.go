// Package traffic proves, with real packets and the real kernel, what the
// enforcement promises while it changes: no denied packet passes, no allowed one
// is lost, established flows are cut or left alone, whatever dies meanwhile.
package traffic

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/tests/daemon"
)

// longer multiplies the number of updates, kills and steps: EDGEPOLICY_LONGER=20
// for a run of about an hour.
func longer(t testing.TB, n int) int {
	t.Helper()
	text := os.Getenv("EDGEPOLICY_LONGER")
	if text == "" {
		return n
	}
	factor, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatalf("EDGEPOLICY_LONGER=%q: want a number", text)
	}
	return int(float64(n) * factor)
}

// world is a lab with a daemon in it, or with a pipeline in the daemon's place.
type world struct {
	*lab.Lab
	*daemon.Daemon
	t testing.TB
}

// both runs a test on both topologies.
func both(t *testing.T, test func(t *testing.T, kind lab.Kind)) {
	for _, kind := range []lab.Kind{lab.Routed, lab.Bridge} {
		t.Run(kind.String(), func(t *testing.T) { test(t, kind) })
	}
}

// withDaemon makes a lab and a daemon, not yet started.
func withDaemon(t testing.TB, kind lab.Kind, config string) *world {
	t.Helper()
	w := &world{Lab: lab.ForTest(t, lab.Topology{Kind: kind}), t: t}
	var err error
	w.Daemon, err = daemon.New(w.Lab, t.TempDir(), config)
	w.must(err)
	t.Cleanup(func() {
		if err := w.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			text := w.Log()
			t.Logf("the end of the daemon's log:\n%s", text[max(0, len(text)-8000):])
		}
	})
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) pod(name string, addrs ...string) *lab.Namespace {
	w.t.Helper()
	var list []netip.Addr
	for _, a := range addrs {
		list = append(list, netip.MustParseAddr(a))
	}
	n, err := w.AddPod(name, list...)
	w.must(err)
	return n
}

// apply writes the whole cluster as one file and has the daemon take it.
func (w *world) apply(yaml string) {
	w.t.Helper()
	w.must(w.Write("cluster.yaml", yaml))
	w.must(w.Reload())
}

// converged says that the kernel holds what a fresh compile of the files gives,
// and that the daemon says so too.
func (w *world) converged() {
	w.t.Helper()
	out, errs, code, err := w.Run("plan", "--diff")
	w.must(err)
	if code != 0 || out != "no difference\n" {
		w.t.Errorf("plan --diff: exit code %d\n%s%s", code, out, errs)
	}
	plan, errs, code, err := w.Run("plan")
	w.must(err)
	if code != 0 {
		w.t.Fatalf("plan: exit code %d\n%s", code, errs)
	}
	if text := ruleset.CompareText(w.inKernel(), plan); text != "no difference\n" {
		w.t.Errorf("the kernel holds something else than the files give:\n%s", text)
	}
}

// inKernel reads the table in the gateway.
func (w *world) inKernel() string {
	w.t.Helper()
	table := readTable(w.t, w.Lab)
	if table == nil {
		w.t.Fatal("there is no table in the kernel")
	}
	return table.Text(nil)
}

func readTable(t testing.TB, l *lab.Lab) *ruleset.Table {
	t.Helper()
	var table *ruleset.Table
	err := l.Gateway.Do(func() error {
		c, err := nft.Open("edgepolicyd")
		if err != nil {
			return err
		}
		defer c.Close()
		table, err = c.Read()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// eventually polls for up to 20 s.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("not within 20 s: %s", what)
}

// pipeline is what the daemon does between a snapshot and the kernel, in this
// process: as fast as it goes.
type pipeline struct {
	t        testing.TB
	opts     inventory.Options
	resolver *policy.Resolver
	compiler *ruleset.Compiler
	conn     *nft.Conn
	actual   *ruleset.Table
	own      []netip.Addr
	decoded  map[string]manifest.Document // by text: what did not change keeps its pointer
}

// newJudge makes a pipeline without a kernel: it resolves and judges.
func newJudge(t testing.TB, l *lab.Lab) *pipeline {
	t.Helper()
	p := &pipeline{t: t, opts: inventory.DefaultOptions(), decoded: map[string]manifest.Document{}}
	p.resolver, p.compiler = policy.NewResolver(&p.opts), ruleset.NewCompiler("edgepolicyd", &p.opts)
	err := l.Gateway.Do(func() error {
		facts, err := gateway.Read(context.Background())
		p.own = facts.Addresses
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newPipeline(t testing.TB, l *lab.Lab) *pipeline {
	t.Helper()
	p := newJudge(t, l)
	err := l.Gateway.Do(func() (err error) {
		if l.Kind == lab.Bridge {
			if _, err := gateway.EnableBridgeFilter(lab.BridgeName); err != nil {
				return err
			}
		}
		if p.conn, err = nft.Open("edgepolicyd"); err != nil {
			return err
		}
		return p.conn.Claim()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.conn.Close() })
	return p
}

// snapshot decodes objects, one document each.
func (p *pipeline) snapshot(docs []string) *inventory.Snapshot {
	p.t.Helper()
	s := &inventory.Snapshot{Gateway: p.own}
	for _, text := range docs {
		d, ok := p.decoded[text]
		if !ok {
			f := manifest.Decode("directory", "cluster.yaml", []byte(text))
			if len(f.Documents) != 1 || !f.Documents[0].Valid {
				p.t.Fatalf("%v\n%s", f.Diagnostics, text)
			}
			d = f.Documents[0]
			p.decoded[text] = d
		}
		switch {
		case d.Pod != nil:
			s.Pods = append(s.Pods, d.Pod)
		case d.Namespace != nil:
			s.Namespaces = append(s.Namespaces, d.Namespace)
		case d.Policy != nil:
			s.Policies = append(s.Policies, d.Policy)
		}
	}
	slices.SortFunc(s.Gateway, netip.Addr.Compare)
	slices.SortFunc(s.Pods, func(a, b *inventory.Pod) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(s.Namespaces, func(a, b *inventory.Namespace) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(s.Policies, func(a, b *inventory.Policy) int { return a.Key.Compare(b.Key) })
	return s
}

// apply brings the kernel in line with a snapshot and says how.
func (p *pipeline) apply(s *inventory.Snapshot) ruleset.Change {
	p.t.Helper()
	mark := ruleset.Mark{Mask: p.opts.MarkMask, Epoch: 1 << 24}
	if p.actual != nil {
		mark = p.actual.Mark
	}
	change := ruleset.Diff(p.actual, p.compiler.Compile(p.resolver.Update(s), mark))
	if err := p.conn.Apply(change.Transactions); err != nil {
		p.t.Fatalf("%v\n%s", err, operations(change))
	}
	p.actual = change.Target
	return change
}

// operations lists a change for a person who looks for a leak.
func operations(c ruleset.Change) string {
	kinds := [...]string{"add counter", "add set", "add chain", "edit chain", "delete elements", "add elements", "delete chain", "delete set", "delete counter"}
	var b strings.Builder
	for i, t := range c.Transactions {
		fmt.Fprintf(&b, "  transaction %d:", i+1)
		for _, op := range t {
			name := op.Name
			if op.Set != nil {
				name = op.Set.Name
			}
			if op.Chain != nil {
				name = op.Chain.Name
			}
			fmt.Fprintf(&b, " %s %s", kinds[op.Kind], name)
			if len(op.Elements) > 0 {
				fmt.Fprintf(&b, " (%d)", len(op.Elements))
			}
			b.WriteByte(';')
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// holds says that the kernel has what a fresh compile of the snapshot gives.
func (p *pipeline) holds(s *inventory.Snapshot) {
	p.t.Helper()
	got, err := p.conn.Read()
	if err != nil {
		p.t.Fatal(err)
	}
	fresh := ruleset.NewCompiler("edgepolicyd", &p.opts).Compile(policy.NewResolver(&p.opts).Update(s), ruleset.Mark{Mask: p.opts.MarkMask, Epoch: 1 << 24})
	if text := ruleset.CompareText(got.Text(nil), fresh.Text(nil)); text != "no difference\n" {
		p.t.Errorf("the kernel holds something else than a fresh compile gives:\n%s", text)
	}
}

func parse(a string) netip.Addr { return netip.MustParseAddr(a) }
