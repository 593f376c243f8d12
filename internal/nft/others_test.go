package nft

import (
	"os/exec"
	"slices"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// Base chains of others are found in every family with their hook, priority and
// policy; ours, and chains without a hook, are not among them.
func TestBaseChainsOfOthers(t *testing.T) {
	inNamespace(t)
	nft(t, `
table inet edgepolicyd { chain forward { type filter hook forward priority 0; policy drop; }; }
table bridge edgepolicyd { chain prerouting { type filter hook prerouting priority -300; }; }
table ip edgepolicyd { chain mine { type filter hook forward priority 1; }; }
table ip filter {
	chain FORWARD { type filter hook forward priority filter; policy drop; };
	chain DOCKER { };
}
table ip6 filter { chain INPUT { type filter hook input priority -5; }; }
table bridge b { chain forward { type filter hook forward priority -200; }; }
table arp a { chain output { type filter hook output priority 0; }; }
table netdev n { chain ingress { type filter hook ingress device lo priority 7; policy drop; }; }
table inet nat { chain postrouting { type nat hook postrouting priority srcnat; }; }
`, "-f", "-")
	got, err := BaseChains("edgepolicyd")
	if err != nil {
		t.Fatal(err)
	}
	want := []ruleset.BaseChain{
		{Family: "arp", Table: "a", Name: "output", Type: "filter", Hook: "output"},
		{Family: "bridge", Table: "b", Name: "forward", Type: "filter", Hook: "forward", Priority: -200},
		{Family: "inet", Table: "nat", Name: "postrouting", Type: "nat", Hook: "postrouting", Priority: 100},
		{Family: "ip", Table: "edgepolicyd", Name: "mine", Type: "filter", Hook: "forward", Priority: 1},
		{Family: "ip", Table: "filter", Name: "FORWARD", Type: "filter", Hook: "forward", Drop: true},
		{Family: "ip6", Table: "filter", Name: "INPUT", Type: "filter", Hook: "input", Priority: -5},
		{Family: "netdev", Table: "n", Name: "ingress", Type: "filter", Hook: "ingress", Priority: 7, Drop: true},
	}
	if !slices.Equal(got, want) {
		t.Errorf("base chains:\n%+v\nwant:\n%+v", got, want)
	}
}

func iptables(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("iptables-nft", append([]string{"-w"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("iptables-nft %v: %v\n%s", args, err, out)
	}
}
