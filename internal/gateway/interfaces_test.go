package gateway

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/lab"
)

// Which interfaces can carry nothing but pods: routed ends, and bridges of such ends,
// also empty ones; not the LAN's, nor what a default route leaves by.
func TestInterfaces(t *testing.T) {
	l := lab.ForTest(t, lab.Topology{Kind: lab.Bridge})
	pod(t, l, "default/a", "10.42.0.5")
	ip(t, l, `link add routed type veth peer name routed1
		link add empty type bridge
		link add lan type bridge
		link add port type veth peer name port1
		link set port master lan
		link add link uplink name mac0 type macvlan
		link set mac0 master lan
		link add vpn type veth peer name vpn1
		addr add 10.9.0.1/24 dev vpn
		link set vpn up
		link set vpn1 up
		route add default via 10.9.0.2 dev vpn table 77
	`)
	var all map[string]Interface
	inside(t, l.Gateway, func() (err error) {
		all, err = Interfaces(context.Background())
		return err
	})
	for name, pods := range map[string]bool{
		"routed": true, "empty": true, "cni0": true, "lan": false, "port": false, "mac0": false, "lo": false, "uplink": false, "vpn": false,
	} {
		if i := all[name]; i.Name != name || i.Pods != pods {
			t.Errorf("%s: %+v, want pods %v", name, i, pods)
		}
	}
	if i := all["cni0"]; i.Kind != "bridge" || len(i.Ports) != 1 || all[i.Ports[0]].Bridge != "cni0" || !slices.Contains(i.Addresses, netip.MustParsePrefix("10.42.0.1/24")) {
		t.Errorf("cni0: %+v", i)
	}
	if got := fmt.Sprint(all["lan"].Ports); got != "[mac0 port]" {
		t.Errorf("lan's ports: %s", got)
	}
}
