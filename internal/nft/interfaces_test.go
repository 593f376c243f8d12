package nft

import (
	"net/netip"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

func interfaces(hold bool) ruleset.Interfaces {
	return ruleset.Interfaces{
		Pods: []string{"cni0", "veth-of-a-pod-1"}, Hold: hold,
		Sources: []ruleset.Source{
			{Interface: "cni0", Address: netip.MustParseAddr("10.42.0.11")}, {Interface: "cni0", Address: netip.MustParseAddr("fd42::11")},
			{Interface: "veth-of-a-pod-1", Address: netip.MustParseAddr("10.42.0.12")},
		},
		Ranges: policy.Ranges([]netip.Prefix{netip.MustParsePrefix("10.42.0.0/24"), netip.MustParsePrefix("fd42::/64")}, []netip.Addr{netip.MustParseAddr("10.42.0.1"), netip.MustParseAddr("fd42::1")}),
		Others: []string{"eth0", "wlan0"},
		Ports:  []string{"v1", "v2"}, Checked: []string{"v1"},
		PortSources: []ruleset.Source{{Interface: "v1", Address: netip.MustParseAddr("10.42.0.11")}, {Interface: "v1", Address: netip.MustParseAddr("fd42::11")}},
	}
}

// What depends on interfaces reads back as it was written, in both families, and
// nft takes it as text.
func TestInterfacesReadBackEqual(t *testing.T) {
	for _, hold := range []bool{true, false} {
		inNamespace(t)
		o := inventory.DefaultOptions()
		compiler := ruleset.NewCompiler("edgepolicyd", &o)
		compiler.Interfaces = interfaces(hold)
		inet := compiler.Compile(policy.NewResolver(&o).Update(sample(t)), ruleset.Mark{Mask: o.MarkMask, Epoch: 1 << 24})
		bridge, err := OpenBridge("edgepolicyd")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { bridge.Close() })
		for _, part := range []struct {
			conn *Conn
			want *ruleset.Table
		}{{mustOpen(t), inet}, {bridge, compiler.Interfaces.CompileBridge("edgepolicyd")}} {
			nft(t, part.want.Text(nil), "-c", "-f", "-")
			if err := part.conn.Claim(); err != nil {
				t.Fatal(err)
			}
			change := ruleset.Diff(nil, part.want)
			if err := part.conn.Apply(change.Transactions); err != nil {
				t.Fatal(err)
			}
			got, err := part.conn.Read()
			if err != nil {
				t.Fatal(err)
			}
			if g, w := got.Text(nil), change.Target.Text(nil); g != w {
				t.Errorf("hold %v: read back:\n%s\nwant:\n%s\nnft says:\n%s", hold, g, w, nft(t, "", "list", "ruleset"))
			}
			if d := ruleset.Diff(got, part.want); !d.Empty() || !got.Ours() {
				t.Errorf("hold %v: a table that was just read back differs: %+v", hold, d.Transactions)
			}
		}
		if t.Failed() {
			return
		}
	}
}
