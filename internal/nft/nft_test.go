package nft

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// inNamespace moves the test to a network namespace of its own, which ends with
// its thread.
func inNamespace(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes a network namespace and an nftables table")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
}

func selector(t testing.TB, s string) labels.Selector {
	t.Helper()
	ls, err := metav1.ParseToLabelSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	sel, err := metav1.LabelSelectorAsSelector(ls)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

func pod(name string, l labels.Set, addrs ...string) *inventory.Pod {
	p := &inventory.Pod{Labels: l}
	p.Key = inventory.Key{Namespace: "default", Name: name}
	for _, a := range addrs {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	return p
}

// sample is a snapshot that makes every kind of set and rule.
func sample(t testing.TB) *inventory.Snapshot {
	t.Helper()
	p := &inventory.Policy{Selector: selector(t, "app=web"), Isolates: [2]bool{true, true}}
	p.Key = inventory.Key{Namespace: "default", Name: "web"}
	block := func(cidr string, except ...string) inventory.Peer {
		b := &inventory.IPBlock{CIDR: netip.MustParsePrefix(cidr)}
		for _, e := range except {
			b.Except = append(b.Except, netip.MustParsePrefix(e))
		}
		return inventory.Peer{Block: b}
	}
	tcp := func(first, last uint16) inventory.Port {
		return inventory.Port{Protocol: inventory.TCP, First: first, Last: last}
	}
	p.Rules[inventory.Ingress] = []inventory.Rule{
		{Peers: []inventory.Peer{{Pods: selector(t, "app=client")}}, Ports: []inventory.Port{tcp(80, 80), tcp(443, 443)}},
		{Peers: []inventory.Peer{block("192.168.0.0/16", "192.168.3.0/24"), block("192.168.128.0/17"), block("0.0.0.0/0", "10.0.0.0/8")}, Ports: []inventory.Port{tcp(8000, 8080)}},
		{Peers: []inventory.Peer{block("fd00::/8"), block("::/0", "fe80::/10")}, Ports: []inventory.Port{{Protocol: inventory.UDP, First: 0, Last: 65535}}},
		{Peers: []inventory.Peer{{Pods: selector(t, "app=client")}}},
		{Ports: []inventory.Port{tcp(22, 22)}},
	}
	p.Rules[inventory.Egress] = []inventory.Rule{{Peers: []inventory.Peer{block("255.255.255.0/24"), block("1.2.3.4/32")}}}
	return &inventory.Snapshot{
		Pods: []*inventory.Pod{
			pod("client", labels.Set{"app": "client"}, "10.42.0.11", "fd42::11"),
			pod("web", labels.Set{"app": "web"}, "10.42.0.12", "fd42::12"),
		},
		Policies: []*inventory.Policy{p},
	}
}

func compile(t testing.TB, s *inventory.Snapshot, o inventory.Options) *ruleset.Table {
	t.Helper()
	list := policy.NewResolver(&o).Update(s)
	return ruleset.NewCompiler("edgepolicyd", &o).Compile(list, ruleset.Mark{Mask: o.MarkMask, Epoch: 1 << 24})
}

func mustOpen(t testing.TB) *Conn {
	t.Helper()
	c, err := Open("edgepolicyd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func nft(t testing.TB, input string, args ...string) string {
	t.Helper()
	cmd := exec.Command("nft", args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("nft %v: %v\n%s\n%s", args, err, out, input)
	}
	return string(out)
}

func TestTableReadsBackEqual(t *testing.T) {
	for name, set := range map[string]func(*inventory.Options){
		"default": func(*inventory.Options) {},
		"reject":  func(o *inventory.Options) { o.Reject = true },
		"gateway ports": func(o *inventory.Options) {
			o.GatewayPorts = []inventory.Port{{Protocol: inventory.UDP, First: 53, Last: 53}, {Protocol: inventory.TCP, First: 53, Last: 53}}
		},
		"tried":      func(o *inventory.Options) { o.Audit = true },
		"not shown":  func(o *inventory.Options) { o.Log = false },
		"small mask": func(o *inventory.Options) { o.MarkMask = 0x00f00000 },
	} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t)
			o := inventory.DefaultOptions()
			set(&o)
			want := compile(t, sample(t), o)
			nft(t, want.Text(nil), "-c", "-f", "-")
			c := mustOpen(t)
			if err := c.Claim(); err != nil {
				t.Fatal(err)
			}
			change := ruleset.Diff(nil, want)
			if err := c.Apply(change.Transactions); err != nil {
				t.Fatal(err)
			}
			got, err := c.Read()
			if err != nil {
				t.Fatal(err)
			}
			if g, w := got.Text(nil), change.Target.Text(nil); g != w {
				t.Errorf("read back:\n%s\nwant:\n%s\nnft says:\n%s", g, w, nft(t, "", "list", "ruleset"))
			}
			if d := ruleset.Diff(got, want); !d.Empty() {
				t.Errorf("a table that was just read back differs: %+v", d.Transactions)
			}
			listed := nft(t, "", "list", "table", "inet", "edgepolicyd")
			// nft 1.0.6 does not know the flag persist and can't read it back.
			listed = strings.ReplaceAll(listed, "flags owner", "")
			lines := strings.Split(listed, "\n")
			for i, l := range lines {
				if strings.HasPrefix(strings.TrimSpace(l), "flags") && i < 3 || strings.HasPrefix(l, "table inet edgepolicyd {") && i == 0 {
					if i > 0 {
						lines[i] = ""
					}
				}
			}
			nft(t, strings.Replace(strings.Join(lines, "\n"), "table inet edgepolicyd", "table inet copy", 1), "-c", "-f", "-")
		})
	}
}

// An address that goes from one isolated pod to another leads to other chains:
// the old ones go, and so may the map that led to them.
func TestAddressChangesHands(t *testing.T) {
	inNamespace(t)
	o := inventory.DefaultOptions()
	first := sample(t)
	second := *first
	heir := *first.Pods[1]
	heir.Key.Name = "web-2"
	second.Pods = []*inventory.Pod{first.Pods[0], &heir}
	c := mustOpen(t)
	if err := c.Claim(); err != nil {
		t.Fatal(err)
	}
	var actual *ruleset.Table
	for i, s := range []*inventory.Snapshot{first, &second, first, &second} {
		change := ruleset.Diff(actual, compile(t, s, o))
		if err := c.Apply(change.Transactions); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		actual = change.Target
		got, err := c.Read()
		if err != nil {
			t.Fatal(err)
		}
		if g, w := got.Text(nil), actual.Text(nil); g != w {
			t.Errorf("step %d: read back:\n%s\nwant:\n%s", i, g, w)
		}
	}
}

// A first load that the kernel refuses, or that is ended half way, leaves a table that
// is known to be ours.
func TestRefusedFirstLoadIsOurs(t *testing.T) {
	inNamespace(t)
	o := inventory.DefaultOptions()
	want := compile(t, sample(t), o)
	for i := range 3 * batchSize { // counters come first
		want.Counters[fmt.Sprintf("a%03d", i)] = true
	}
	bad := &ruleset.Chain{Name: "zz-bad", Rules: []ruleset.Rule{{Exprs: []ruleset.Expr{ruleset.Lookup{Key: ruleset.Fields{ruleset.IPSource}, Set: "not-there"}, ruleset.Verdict{Kind: ruleset.Drop}}}}}
	want.Chains[bad.Name] = bad
	c := mustOpen(t)
	if err := c.Claim(); err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(ruleset.Diff(nil, want).Transactions); err == nil {
		t.Fatal("the kernel took a rule that looks into a set that is not there")
	}
	c.Close()
	c = mustOpen(t)
	got, err := c.Read()
	if err != nil || got == nil || len(got.Chains) == 0 {
		t.Fatalf("nothing is left of the load: the test proves nothing: %v, %v", got, err)
	}
	if !got.Ours() {
		t.Errorf("what is left is not known to be ours:\n%s", got.Text(nil))
	}
	if err := c.Claim(); err != nil {
		t.Fatal(err)
	}
	delete(want.Chains, bad.Name)
	if err := c.Apply(ruleset.Diff(got, want).Transactions); err != nil {
		t.Errorf("the load after that: %v", err)
	}
}
