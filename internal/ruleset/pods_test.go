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

// TestForgedAsThePodThatComes: without hold, a packet of one pod that is forged with
// the address of a pod which comes in that moment is neither one that the old table
// lets in nor one that the new lets through.
func TestForgedAsThePodThatComes(t *testing.T) {
	pod := func(name, addr, app string) *inventory.Pod {
		return &inventory.Pod{Head: inventory.Head{Key: inventory.Key{Namespace: "default", Name: name}}, Addresses: []netip.Addr{netip.MustParseAddr(addr)}, Labels: labels.Set{"app": app}}
	}
	from := func(app string) *inventory.Policy {
		p := &inventory.Policy{Head: inventory.Head{Key: inventory.Key{Namespace: "default", Name: "web"}}, Selector: labels.SelectorFromSet(labels.Set{"app": "web"}), Isolates: [2]bool{true, false}}
		p.Rules[inventory.Ingress] = []inventory.Rule{{Peers: []inventory.Peer{{Pods: labels.SelectorFromSet(labels.Set{"app": app})}}}}
		return p
	}
	o := inventory.DefaultOptions()
	compile := func(pods ...*inventory.Pod) *Table {
		c := NewCompiler("t", &o)
		for _, p := range pods {
			name := "v-" + p.Key.Name
			c.Interfaces.Pods = append(c.Interfaces.Pods, name)
			c.Interfaces.Sources = append(c.Interfaces.Sources, Source{Interface: name, Address: p.Addresses[0]})
		}
		s := &inventory.Snapshot{Pods: pods, Policies: []*inventory.Policy{from("friend")}}
		return c.Compile(policy.NewResolver(&o).Update(s), Mark{Mask: o.MarkMask, Epoch: 1 << 24})
	}
	friend, other, web := pod("friend", "10.42.0.4", "friend"), pod("other", "10.42.0.5", "other"), pod("web", "10.42.0.6", "web")
	old := compile(pod("a", "10.42.0.2", "friend"), other, web)
	states := []*Table{old}
	change := Diff(old, compile(pod("a", "10.42.0.2", "friend"), friend, other, web))
	for _, tx := range change.Transactions {
		next, err := kernel(states[len(states)-1], tx)
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, next)
	}
	forged := Packet{Hook: "forward", InInterface: "v-other", OutInterface: "v-web", Source: friend.Addresses[0], Destination: web.Addresses[0], Protocol: inventory.UDP, DestPort: 53, HopLimit: 63}
	if text := followed(states, forged, false); text != "" {
		t.Error(text)
	}
	forged.InInterface = "v-friend"
	if got := states[len(states)-1].Trace(forged); got.Verdict != Accept {
		t.Errorf("what the pod that came sends itself: %v", got)
	}
}
