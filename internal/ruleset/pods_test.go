package ruleset

import (
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// TestOnePodComesAnotherGoes: a flow that the ingress of a pod denies, which goes
// in the same change in which the pod at the other end comes and denies it too.
func TestOnePodComesAnotherGoes(t *testing.T) {
	pod := func(name, addr string) *inventory.Pod {
		return &inventory.Pod{Head: inventory.Head{Key: inventory.Key{Namespace: "default", Name: name}}, Addresses: []netip.Addr{netip.MustParseAddr(addr)}}
	}
	all := &inventory.Policy{Head: inventory.Head{Key: inventory.Key{Namespace: "default", Name: "all"}}, Selector: labels.Everything(), Isolates: [2]bool{true, true}}
	flow := policy.Flow{
		From: policy.Endpoint{Addr: netip.MustParseAddr("10.42.0.17")}, To: policy.Endpoint{Addr: netip.MustParseAddr("10.42.0.18")},
		Protocol: inventory.UDP, Port: 9050,
	}
	o := inventory.DefaultOptions()
	compile := func(p *inventory.Pod) *Table {
		s := &inventory.Snapshot{Pods: []*inventory.Pod{p}, Policies: []*inventory.Policy{all}}
		return NewCompiler("t", &o).Compile(policy.NewResolver(&o).Update(s), Mark{Mask: o.MarkMask, Epoch: 1 << 24})
	}
	for _, ends := range [][2]*inventory.Pod{
		{pod("h", "10.42.0.18"), pod("g", "10.42.0.17")},
		{pod("g", "10.42.0.17"), pod("h", "10.42.0.18")},
	} {
		states := []*Table{compile(ends[0])}
		for _, tx := range Diff(states[0], compile(ends[1])).Transactions {
			next, err := kernel(states[len(states)-1], tx)
			if err != nil {
				t.Fatal(err)
			}
			states = append(states, next)
		}
		for _, p := range flowPackets(flow) {
			if text := followed(states, p, true); text != "" {
				t.Errorf("%s goes, %s comes: %s", ends[0].Key, ends[1].Key, text)
			}
		}
	}
}
