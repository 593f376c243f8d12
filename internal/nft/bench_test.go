package nft

import (
	"fmt"
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// gatewayOf makes a large gateway: each policy isolates the pods of one app in
// both directions and lets those of another app reach them.
func gatewayOf(b testing.TB, pods, policies int) *inventory.Snapshot {
	s := &inventory.Snapshot{}
	for i := range pods {
		s.Pods = append(s.Pods, pod(fmt.Sprintf("pod-%03d", i), labels.Set{"app": fmt.Sprint(i % 50)},
			netip.AddrFrom4([4]byte{10, 42, byte(i >> 8), byte(i)}).String(), fmt.Sprintf("fd42::%x", i+1)))
	}
	for i := range policies {
		s.Policies = append(s.Policies, policyNumber(b, i, 8000))
	}
	return s
}

func policyNumber(b testing.TB, i int, port uint16) *inventory.Policy {
	p := &inventory.Policy{Selector: selector(b, fmt.Sprintf("app=%d", i%50)), Isolates: [2]bool{true, true}}
	p.Key = inventory.Key{Namespace: "default", Name: fmt.Sprintf("policy-%04d", i)}
	p.Rules[inventory.Ingress] = []inventory.Rule{{
		Peers: []inventory.Peer{{Pods: selector(b, fmt.Sprintf("app=%d", (i+1+i/50)%50))}},
		Ports: []inventory.Port{{Protocol: inventory.TCP, First: port + uint16(i%7), Last: port + uint16(i%7)}},
	}}
	p.Rules[inventory.Egress] = []inventory.Rule{{
		Peers: []inventory.Peer{{Block: &inventory.IPBlock{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i), 0}), 24)}}},
		Ports: []inventory.Port{{Protocol: inventory.TCP, First: 443, Last: 443}},
	}}
	return p
}

type pipeline struct {
	resolver *policy.Resolver
	compiler *ruleset.Compiler
	conn     *Conn
	actual   *ruleset.Table
	opts     inventory.Options
}

func newPipeline(b testing.TB) *pipeline {
	p := &pipeline{opts: inventory.DefaultOptions()}
	p.resolver, p.compiler = policy.NewResolver(&p.opts), ruleset.NewCompiler("edgepolicyd", &p.opts)
	// The namespace belongs to a thread; its socket may be used from any, as the
	// daemon does: a goroutine locked to a thread is slow to wait for netlink.
	opened := make(chan error)
	go func() {
		inNamespace(b)
		var err error
		p.conn, err = Open("edgepolicyd")
		opened <- err
	}()
	if err := <-opened; err != nil {
		b.Fatal(err)
	}
	if err := p.conn.Claim(); err != nil {
		b.Fatal(err)
	}
	return p
}

func (p *pipeline) apply(b testing.TB, s *inventory.Snapshot) {
	d := ruleset.Diff(p.actual, p.compiler.Compile(p.resolver.Update(s), ruleset.Mark{Mask: p.opts.MarkMask, Epoch: 1 << 24}))
	if err := p.conn.Apply(d.Transactions); err != nil {
		b.Fatal(err)
	}
	p.actual = d.Target
}

func BenchmarkFullApply(b *testing.B) {
	s := gatewayOf(b, 110, 1000)
	for b.Loop() {
		p := newPipeline(b)
		p.apply(b, s)
		b.StopTimer()
		if _, err := p.conn.Delete(); err != nil {
			b.Fatal(err)
		}
		p.conn.Close()
		b.StartTimer()
	}
}

func BenchmarkOnePolicyChanged(b *testing.B) {
	s := gatewayOf(b, 110, 1000)
	p := newPipeline(b)
	p.apply(b, s)
	i := 0
	for b.Loop() {
		i++
		n := *s
		n.Policies = append([]*inventory.Policy(nil), s.Policies...)
		n.Policies[i%1000] = policyNumber(b, i%1000, uint16(8000+100*(i/1000+1)))
		s = &n
		p.apply(b, s)
	}
}

func BenchmarkReadBack(b *testing.B) {
	p := newPipeline(b)
	p.apply(b, gatewayOf(b, 110, 1000))
	for b.Loop() {
		if _, err := p.conn.Read(); err != nil {
			b.Fatal(err)
		}
	}
}
