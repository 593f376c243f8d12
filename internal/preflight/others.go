package preflight

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// otherChecks look at other programs and their rules.
var otherChecks = []Check{
	{ID: "others.drop", Severity: Warning, Well: "no other chain drops by its policy what pods send", look: lookAtDrops,
		Why:     "What policies allow has to pass this chain too: accept in one table is no accept in another.",
		Command: "nft list chain FAMILY TABLE CHAIN"},
	{ID: "others.chains", Severity: Note, Well: "no other chains see forwarded packets", look: lookAtOtherChains,
		Why:     "They see the same packets, before the table (a lower priority) or after it: what their rules drop stays dropped. Their rules were not analysed.",
		Command: "nft list ruleset"},
	{ID: "others.mark", Severity: Warning, Well: "no other rules write our bits of the connection mark", look: lookAtMarks,
		Why:     "Our bits say which connections were judged under the rules in force. Who erases them costs time; who restores them lets revoked connections live on.",
		Command: "nft list chain FAMILY TABLE CHAIN  # or another connectionMark.mask in the configuration"},
	{ID: "others.offload", Severity: Impaired, Well: "no interfaces of pods are in flow tables", look: lookAtOffload,
		Why:     "The kernel takes established connections between these interfaces past the table: a policy that changes does not reach them.",
		Command: "nft list flowtables  # take the interface out of its flow table"},
	{ID: "others.kube-router", Severity: Warning, Well: "no chains of another policy enforcer are there", look: lookAtKubeRouter,
		Why:     "Chains that kube-router, or k3s's built-in copy of it, left behind go on dropping, by policies that are out of date; if it runs, two enforce, and what either denies is denied.",
		Command: "for v in ip ip6; do ${v}tables-save | grep -vE 'KUBE-(ROUTER|POD-FW|NWPLCY)' | ${v}tables-restore; done"},
	{ID: "others.legacy", Severity: Note, Well: "iptables-legacy is not in use", look: lookAtLegacy,
		Why:     "Its rules see the same packets, are no part of nftables, and were not looked at: they may drop what policies allow, or write the connection mark.",
		Command: "iptables-legacy-save; ip6tables-legacy-save"},
	{ID: "others.programs", Severity: Note, Well: "no other program that writes firewall rules was found", look: lookAtPrograms,
		Why:     "It writes rules of its own, which forwarded packets have to pass as well.",
		Command: "nft list ruleset"},
	{ID: "log.reader", Severity: Warning, Well: "denied packets are read by the daemon alone", look: lookAtLogReader,
		Why:     "A group of packets that rules show has one reader: if that is not the daemon, denied packets are not told. They are dropped all the same.",
		Command: "cat /proc/net/netfilter/nfnetlink_log  # group, and the reader's process id"},
}

// others is what other programs have in nftables.
type others struct {
	base   []ruleset.BaseChain
	chains []nft.OtherChain
}

func (h *Host) foreign() (others, error) {
	return h.others.get(func() (others, error) {
		base, err := nft.BaseChains(string(h.Config.Table))
		if err != nil {
			return others{}, asRoot(err)
		}
		chains, err := nft.OtherChains(string(h.Config.Table))
		return others{base, chains}, asRoot(err)
	})
}

// onTheWay says whether pods' packets pass a base chain, at the hooks that ours are
// at.
func onTheWay(c ruleset.BaseChain) bool {
	switch c.Family {
	case "inet", "ip", "ip6", "bridge":
		return c.Hook == "forward" || c.Hook == "input"
	}
	return false
}

func describe(c ruleset.BaseChain) string {
	return fmt.Sprintf("%s %s %s (hook %s, priority %d)", c.Family, c.Table, c.Name, c.Hook, c.Priority)
}

func lookAtDrops(_ context.Context, h *Host) ([]problem, error) {
	all, err := h.foreign()
	if err != nil {
		return nil, err
	}
	var found []problem
	for _, c := range all.base {
		if c.Drop && (onTheWay(c) || c.Hook == "prerouting" || c.Hook == "ingress") {
			found = append(found, problem{
				what: fmt.Sprintf("chain %s drops what its rules don't accept: it could still drop allowed traffic", describe(c)),
				fill: []string{"FAMILY", c.Family, "TABLE", c.Table, "CHAIN", c.Name},
			})
		}
	}
	return found, nil
}

func lookAtOtherChains(_ context.Context, h *Host) ([]problem, error) {
	all, err := h.foreign()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range all.base {
		if onTheWay(c) && !c.Drop {
			names = append(names, describe(c))
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	return []problem{{what: "other chains see pods' packets, ours being at priority 0: " + limited(names)}}, nil
}

// limited joins a list of which only the beginning is worth reading.
func limited(list []string) string {
	const most = 8
	if len(list) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
}

func lookAtMarks(_ context.Context, h *Host) ([]problem, error) {
	all, err := h.foreign()
	if err != nil {
		return nil, err
	}
	mask := uint32(h.Config.ConnectionMark.Mask)
	var found []problem
	for _, c := range all.chains {
		if bits := c.MarkBits & mask; bits != 0 {
			found = append(found, problem{
				what: fmt.Sprintf("chain %s %s %s has rules that write the connection mark: 0x%08x of our mask 0x%08x", c.Family, c.Table, c.Name, bits, mask),
				fill: []string{"FAMILY", c.Family, "TABLE", c.Table, "CHAIN", c.Name},
			})
		}
	}
	return found, nil
}

func lookAtOffload(ctx context.Context, h *Host) ([]problem, error) {
	offloaded, err := h.offloaded.get(nft.Offloaded)
	if err != nil {
		return nil, asRoot(err)
	}
	addresses, err := h.podAddresses()
	if err != nil {
		return nil, err
	}
	links, err := gateway.Links(ctx, addresses)
	if err != nil {
		return nil, asRoot(err)
	}
	var found []problem
	for _, device := range slices.Sorted(maps.Keys(offloaded)) {
		p := problem{severity: Note, what: fmt.Sprintf("interface %s is in %s; no pods are known there", device, offloaded[device])}
		for _, l := range links {
			if l.Interface == device {
				p = problem{what: fmt.Sprintf("interface %s of pods is in %s", device, offloaded[device])}
			}
		}
		found = append(found, p)
	}
	return found, nil
}

func lookAtKubeRouter(_ context.Context, h *Host) ([]problem, error) {
	all, err := h.foreign()
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for _, c := range all.chains {
		for _, prefix := range []string{"KUBE-POD-FW-", "KUBE-NWPLCY-", "KUBE-ROUTER-"} {
			if strings.HasPrefix(c.Name, prefix) {
				counts[fmt.Sprintf("%s* in table %s %s", prefix, c.Family, c.Table)]++
			}
		}
	}
	if len(counts) == 0 {
		return nil, nil
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		names = append(names, fmt.Sprintf("%d chains %s", counts[name], name))
	}
	p := problem{what: strings.Join(names, ", ") + "; nobody who makes them runs: they are left over"}
	for name := range h.processes() {
		switch {
		case name == "kube-router":
			p = problem{what: strings.Join(names, ", ") + "; process kube-router runs", command: "kube-router --run-firewall=false --cleanup-config"}
		case strings.HasPrefix(name, "k3s"):
			p = problem{what: strings.Join(names, ", ") + "; process " + name + " runs", command: "k3s server --disable-network-policy  # and restart it"}
		}
	}
	return []problem{p}, nil
}

func lookAtLegacy(_ context.Context, h *Host) ([]problem, error) {
	var found []string
	for _, name := range []string{"ip_tables_names", "ip6_tables_names"} {
		data, err := os.ReadFile(h.path("proc/thread-self/net", name))
		if os.IsNotExist(err) {
			continue // not even in the kernel
		}
		if err != nil {
			return nil, err
		}
		for _, t := range strings.Fields(string(data)) {
			found = append(found, strings.TrimSuffix(name, "_tables_names")+" "+t)
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	return []problem{{what: "tables of iptables-legacy are in use: " + strings.Join(found, ", ")}}, nil
}

// programs are those that write rules which pods' packets pass, by their process, or
// by the names that they give to tables and chains.
var programs = []struct{ name, process, table, chain, why, command string }{
	{"firewalld", "firewalld", "firewalld", "", "Its zones decide about forwarded packets as well, and reject what no zone or policy allows.", "firewall-cmd --permanent --zone=trusted --add-source=POD-RANGE && firewall-cmd --reload"},
	{"docker", "dockerd", "docker-bridges", "DOCKER", "It sets the policy of FORWARD to drop; what is to pass from pods to the outside needs a rule in DOCKER-USER.", "iptables -I DOCKER-USER -s POD-RANGE -j ACCEPT; iptables -I DOCKER-USER -d POD-RANGE -j ACCEPT"},
	{"kube-proxy", "kube-proxy", "kube-proxy", "KUBE-SERVICES", "It translates services' addresses before the table sees them: policies are judged by the pods' own addresses, as they should be.", ""},
	{"ufw", "ufw", "", "ufw-before-forward", "It drops forwarded packets unless DEFAULT_FORWARD_POLICY or a route rule allows them.", "ufw route allow from POD-RANGE; ufw route allow to POD-RANGE"},
}

func lookAtPrograms(_ context.Context, h *Host) ([]problem, error) {
	all, err := h.foreign()
	if err != nil {
		return nil, err
	}
	running := h.processes()
	var found []problem
	for _, p := range programs {
		signs := map[string]bool{}
		if running[p.process] {
			signs["process "+p.process] = true
		}
		for _, c := range all.chains {
			if c.Table == p.table || p.chain != "" && c.Name == p.chain {
				signs[fmt.Sprintf("table %s %s", c.Family, c.Table)] = true
			}
		}
		if len(signs) > 0 {
			found = append(found, problem{what: p.name + " writes firewall rules: " + strings.Join(slices.Sorted(maps.Keys(signs)), ", "), why: p.why, command: p.command})
		}
	}
	return found, nil
}

func lookAtLogReader(ctx context.Context, h *Host) ([]problem, error) {
	if !h.Config.Audit.Denied.Enabled {
		return nil, nil
	}
	data, err := os.ReadFile(h.path("proc/thread-self/net/netfilter/nfnetlink_log"))
	if err != nil {
		return nil, err
	}
	read := false
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		read = read || len(f) > 0 && f[0] == fmt.Sprint(ruleset.LogGroup)
	}
	_, err = h.ask(ctx)
	switch {
	case err == nil && !read:
		return []problem{{what: fmt.Sprintf("the daemon does not read group %d of NFLOG", ruleset.LogGroup), command: "journalctl -u edgepolicyd; systemctl restart edgepolicyd"}}, nil
	case err != nil && read:
		return []problem{{what: fmt.Sprintf("another program reads group %d of NFLOG", ruleset.LogGroup)}}, nil
	}
	return nil, nil
}
