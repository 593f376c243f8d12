package traffic

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// The pods that traffic runs between. Each has a namespace in the lab for the
// whole test; what the policies know of it changes.
var podNumbers = map[string]int{"a": 11, "b": 12, "c": 13, "d": 14, "e": 15, "f": 16, "g": 17, "h": 18}

func address4(n int) string { return fmt.Sprintf("10.42.0.%d", n) }
func address6(n int) string { return fmt.Sprintf("fd42::%d", n) }

// means are the ways to allow a port of a peer. A slot's value is an index.
var means = []string{"none", "exact", "label", "named namespace", "pod range", "host block", "block", "block range", "any", "any range"}

// A slot is a port that one side of a pod may allow. Its value is the means.
type slot struct {
	pod       string
	direction inventory.Direction
	peer      string // a pod, "outside" or "gateway"
	port      int    // the first of ten
}

var slots = []slot{
	{"a", inventory.Egress, "b", 8000}, {"a", inventory.Egress, "b", 9000},
	{"b", inventory.Ingress, "a", 8000}, {"b", inventory.Ingress, "a", 9000},
	{"c", inventory.Egress, "outside", 8020}, {"c", inventory.Egress, "outside", 9020},
	{"c", inventory.Egress, "gateway", 8030}, {"c", inventory.Egress, "gateway", 9030},
	{"d", inventory.Ingress, "outside", 8010}, {"d", inventory.Ingress, "outside", 9010},
	{"e", inventory.Egress, "f", 8040}, {"e", inventory.Egress, "f", 9040},
	{"f", inventory.Ingress, "e", 8040}, {"f", inventory.Ingress, "e", 9040},
	{"g", inventory.Egress, "h", 8050}, {"g", inventory.Egress, "h", 9050},
	{"h", inventory.Ingress, "g", 8050}, {"h", inventory.Ingress, "g", 9050},
}

// state is everything that updates change. Its zero value has no policies.
type state struct {
	means  [18]int  // by slot
	own    [18]bool // the slot's rule is in a policy of its own
	open   [8]bool  // the pod's side is not isolated: no policy selects it
	twin   [2]bool  // e and f go by another name: their addresses were handed over
	absent [2]bool  // g and h are not known
	crowd  int      // pods that share a's label, so that exact sets grow
	others int      // which of 8 other policies there are, as bits
	blocks int      // CIDRs that another rule of b allows
	ports  int      // ports that another rule of b allows
	team   int      // label of the namespace of the pods
	moving int      // which of two other pods has an address
}

const sides = "abcdefgh"

func (st *state) isOpen(pod string) bool { return st.open[strings.Index(sides, pod)] }

// mutate changes one thing at random, with a name for it.
func (st *state) mutate(rng *rand.Rand) string {
	switch k := rng.IntN(20); {
	case k < 8:
		i := rng.IntN(len(slots))
		st.means[i] = rng.IntN(len(means))
		return fmt.Sprintf("%s %s port %d: %s", slots[i].pod, slots[i].direction, slots[i].port, means[st.means[i]])
	case k < 9: // a pair that denies on one side only changes sides
		i := 1 + 2*rng.IntN(len(slots)/2)
		for j := range slots {
			if j != i && slots[j].port == slots[i].port && (st.means[i] == 0) != (st.means[j] == 0) {
				st.means[i], st.means[j] = st.means[j], st.means[i]
			}
		}
		return fmt.Sprintf("port %d is denied at the other end", slots[i].port)
	case k < 10:
		i := rng.IntN(len(slots))
		st.own[i] = !st.own[i]
		return fmt.Sprintf("%s %s port %d in its own policy: %v", slots[i].pod, slots[i].direction, slots[i].port, st.own[i])
	case k < 12:
		i := rng.IntN(len(st.open))
		st.open[i] = !st.open[i]
		return fmt.Sprintf("pod %c not isolated: %v", sides[i], st.open[i])
	case k < 13:
		i := rng.IntN(2)
		st.twin[i] = !st.twin[i]
		return fmt.Sprintf("the address of %c changes hands", "ef"[i])
	case k < 14:
		i := rng.IntN(2)
		st.absent[i] = !st.absent[i]
		return fmt.Sprintf("pod %c absent: %v", "gh"[i], st.absent[i])
	case k < 15:
		st.crowd = []int{0, 3, 9, 20, 60}[rng.IntN(5)]
		return fmt.Sprintf("%d pods like a", st.crowd)
	case k < 16:
		st.others ^= 1 << rng.IntN(8)
		return fmt.Sprintf("other policies %b", st.others)
	case k < 17:
		st.blocks = []int{0, 1, 30, 31, 200}[rng.IntN(5)]
		return fmt.Sprintf("%d other blocks", st.blocks)
	case k < 18:
		st.ports = rng.IntN(30)
		return fmt.Sprintf("%d other ports", st.ports)
	case k < 19:
		st.team = rng.IntN(3)
		return fmt.Sprintf("namespace label %d", st.team)
	default:
		st.moving = rng.IntN(4)
		return fmt.Sprintf("the other address is at %d", st.moving)
	}
}

func podDoc(name, labels string, addrs ...string) string {
	var ips []string
	for _, a := range addrs {
		ips = append(ips, fmt.Sprintf("{ip: %q}", a))
	}
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {%s}}\nstatus: {podIPs: [%s]}\n", name, labels, strings.Join(ips, ", "))
}

// policyDoc makes a policy; from is "from" or "to".
func policyDoc(name, selector string, d inventory.Direction, rules []string) string {
	kind, field := "Ingress", "ingress"
	if d == inventory.Egress {
		kind, field = "Egress", "egress"
	}
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s}\nspec:\n  podSelector: {matchLabels: {%s}}\n  policyTypes: [%s]\n  %s: [%s]\n",
		name, selector, kind, field, strings.Join(rules, ", "))
}

// rule renders a slot by its means, as one entry of ingress or egress.
func (st *state) rule(i int) string {
	s := slots[i]
	from := "from"
	if s.direction == inventory.Egress {
		from = "to"
	}
	one := fmt.Sprintf("ports: [{protocol: UDP, port: %d}, {protocol: TCP, port: %d}]", s.port, s.port)
	many := fmt.Sprintf("ports: [{protocol: UDP, port: %d, endPort: %d}, {protocol: TCP, port: %d, endPort: %d}]", s.port, s.port+9, s.port, s.port+9)
	peer := fmt.Sprintf("{podSelector: {matchLabels: {peer: %s}}}", s.peer)
	n := podNumbers[s.peer]
	host := fmt.Sprintf("{ipBlock: {cidr: %s/32}}, {ipBlock: {cidr: %q}}", address4(n), address6(n)+"/128")
	wide := "{ipBlock: {cidr: 10.42.0.0/24, except: [10.42.0.128/25]}}, {ipBlock: {cidr: \"fd42::/64\"}}"
	switch s.peer {
	case "outside":
		host = `{ipBlock: {cidr: 192.168.254.2/32}}, {ipBlock: {cidr: "fd00:254::2/128"}}`
		wide = `{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}, {ipBlock: {cidr: "::/0", except: ["fd42::/16"]}}`
	case "gateway":
		host = `{ipBlock: {cidr: 192.168.254.1/32}}, {ipBlock: {cidr: "fd00:254::1/128"}}`
		wide = `{ipBlock: {cidr: 192.168.254.0/24}}, {ipBlock: {cidr: "fd00::/8", except: ["fd42::/16"]}}`
	}
	peers, ports := "", one
	switch means[st.means[i]] {
	case "none":
		return ""
	case "exact":
		peers = peer
	case "label":
		peers = fmt.Sprintf("{podSelector: {matchExpressions: [{key: peer, operator: In, values: [%s, nobody]}]}}", s.peer)
	case "named namespace":
		peers = fmt.Sprintf("{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [red]}]}, podSelector: {matchLabels: {peer: %s}}}", s.peer)
	case "pod range":
		peers, ports = peer, many
	case "host block":
		peers = host
	case "block":
		peers = wide
	case "block range":
		peers, ports = wide, many
	case "any":
	case "any range":
		ports = many
	}
	if peers != "" {
		peers = fmt.Sprintf("%s: [%s], ", from, peers)
	}
	return "{" + peers + ports + "}"
}

// docs renders the state, one document for each object.
func (st *state) docs() []string {
	list := []string{fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {team: %s}}\n", []string{"blue", "green", "red"}[st.team])}
	list = append(list, st.podDocs()...)
	rules := map[string][]string{}
	for i, s := range slots {
		text := st.rule(i)
		switch {
		case text == "" || st.isOpen(s.pod):
		case st.own[i]:
			list = append(list, policyDoc(fmt.Sprintf("%s-%d", s.pod, s.port), "pod: "+s.pod, s.direction, []string{text}))
		default:
			rules[s.pod] = append(rules[s.pod], text)
		}
	}
	for _, s := range slots {
		if rules[s.pod] == nil {
			rules[s.pod] = []string{}
		}
	}
	rules["b"] = append(rules["b"], st.otherRules()...)
	for i := range sides {
		pod := sides[i : i+1]
		if st.open[i] {
			continue
		}
		d := inventory.Egress
		if strings.Contains("bdfh", pod) {
			d = inventory.Ingress
		}
		list = append(list, policyDoc(pod, "pod: "+pod, d, rules[pod]))
	}
	for i := range 8 {
		if st.others&(1<<i) != 0 {
			list = append(list, policyDoc(fmt.Sprintf("other-%d", i), fmt.Sprintf("group: x%d", i%3), inventory.Direction(i%2),
				[]string{fmt.Sprintf("{%s: [{podSelector: {matchLabels: {group: x%d}}}], ports: [{port: %d}]}", []string{"from", "to"}[i%2], i%4, 7000+st.ports)}))
		}
	}
	// The address of e or f under another name is selected by policies of its own:
	// the same rules, but other sets and chains.
	for i, pod := range []string{"e", "f"} {
		if st.twin[i] && !st.isOpen(pod) {
			d := inventory.Direction(1 - i)
			list = append(list, policyDoc(pod+"-twin", "twin: "+pod, d, nil))
		}
	}
	return list
}

func (st *state) podDocs() []string {
	var list []string
	for _, pod := range strings.Split(sides, "") {
		name, label := pod, ""
		if i := strings.Index("ef", pod); i >= 0 && st.twin[i] {
			name, label = pod+"-twin", ", twin: "+pod
		}
		if i := strings.Index("gh", pod); i >= 0 && st.absent[i] {
			continue
		}
		n := podNumbers[pod]
		list = append(list, podDoc(name, fmt.Sprintf("pod: %s, peer: %s%s", pod, pod, label), address4(n), address6(n)))
	}
	for i := range st.crowd {
		list = append(list, podDoc(fmt.Sprintf("crowd-%d", i), fmt.Sprintf("peer: a, group: x%d", i%4), fmt.Sprintf("10.42.1.%d", i+1), fmt.Sprintf("fd42:0:0:1::%d", i+1)))
	}
	for i := range 2 {
		addrs := []string{fmt.Sprintf("10.42.2.%d", i+1)}
		if st.moving>>i&1 != 0 {
			addrs = append(addrs, fmt.Sprintf("fd42:0:0:2::%d", i+1))
		} else {
			addrs = append(addrs, fmt.Sprintf("10.42.2.%d", i+11))
		}
		if st.moving == i {
			addrs = append(addrs, "10.42.2.99")
		}
		list = append(list, podDoc(fmt.Sprintf("moving-%d", i), fmt.Sprintf("group: x%d", i), addrs...))
	}
	return list
}

func (st *state) otherRules() []string {
	var rules []string
	if st.blocks > 0 {
		var peers []string
		for i := range st.blocks {
			peers = append(peers, fmt.Sprintf("{ipBlock: {cidr: 172.16.%d.0/25}}, {ipBlock: {cidr: \"fd99:%x::/33\"}}", i, i+1))
		}
		rules = append(rules, fmt.Sprintf("{from: [%s], ports: [{protocol: UDP, port: 8000}, {protocol: TCP, port: 8000}]}", strings.Join(peers, ", ")))
	}
	if st.ports > 0 {
		var ports []string
		for i := range st.ports {
			ports = append(ports, fmt.Sprintf("{port: %d}", 6000+i))
		}
		rules = append(rules, fmt.Sprintf("{from: [{podSelector: {matchLabels: {peer: a}}}], ports: [%s]}", strings.Join(ports, ", ")))
	}
	return rules
}

// firstState is one in which every flow has the verdict that it always has.
func firstState() state {
	var st state
	for i, s := range slots {
		st.means[i] = 1
		if s.port >= 9000 {
			st.means[i] = 0
		}
		if s.peer == "outside" || s.peer == "gateway" {
			st.means[i] *= 5
		}
	}
	return st
}

// flow is one kind of traffic, allowed or denied in every state.
type flow struct {
	src, dst string
	port     uint16
	allowed  bool
}

// flows lists the traffic: each pair of ends, both families.
func flows() []flow {
	var list []flow
	add := func(from, to string, port uint16) {
		for _, six := range []bool{false, true} {
			list = append(list, flow{end(from, six), end(to, six), port, port < 9000})
		}
	}
	for _, p := range []uint16{0, 1000} {
		add("a", "b", 8000+p)
		add("outside", "d", 8010+p)
		add("c", "outside", 8020+p)
		add("c", "gateway", 8030+p)
		add("e", "f", 8040+p)
		add("g", "h", 8050+p)
	}
	return list
}

func end(name string, six bool) string {
	n := podNumbers[name]
	switch {
	case name == "outside" && six:
		return "fd00:254::2"
	case name == "outside":
		return "192.168.254.2"
	case name == "gateway" && six:
		return "fd00:254::1"
	case name == "gateway":
		return "192.168.254.1"
	case six:
		return address6(n)
	}
	return address4(n)
}

// traffic makes the lab's flows of some flows, each over UDP and TCP.
func traffic(list []flow) []lab.Flow {
	var out []lab.Flow
	for _, f := range list {
		expect := lab.Denied
		if f.allowed {
			expect = lab.Allowed
		}
		for _, proto := range []inventory.Protocol{inventory.UDP, inventory.TCP} {
			out = append(out, lab.Flow{Probe: lab.Probe{
				Src: netip.MustParseAddr(f.src), Dst: netip.MustParseAddr(f.dst), Proto: proto, DstPort: f.port,
			}, Expect: expect})
		}
	}
	return out
}

// judge says whether the evaluator gives every flow the verdict that it must
// always have.
func judge(s *inventory.Snapshot, o *inventory.Options, list []flow) bool {
	for _, f := range list {
		from, to := policy.EndpointAt(s, netip.MustParseAddr(f.src)), policy.EndpointAt(s, netip.MustParseAddr(f.dst))
		for _, proto := range []inventory.Protocol{inventory.UDP, inventory.TCP} {
			v := policy.Evaluate(s, o, policy.Flow{From: from, To: to, Protocol: proto, Port: f.port})
			if v.Allowed != f.allowed {
				return false
			}
		}
	}
	return true
}

// way says by what means the flows to a port have their verdict.
func (st *state) way(port uint16) string {
	text := ""
	for i, s := range slots {
		if s.port != int(port) {
			continue
		}
		if text += " " + s.pod + " " + means[st.means[i]]; st.isOpen(s.pod) {
			text += ", not isolated"
		}
	}
	return fmt.Sprint(text, st.twin, st.absent)
}

// pods makes the pods of the model in a lab.
func (w *world) pods() {
	for _, name := range strings.Split(sides, "") {
		w.pod(name, address4(podNumbers[name]), address6(podNumbers[name]))
	}
}

// complain tells what was lost and leaked, and what was going on at the time.
func complain(t testing.TB, r lab.Report, list []lab.Flow, during func(e lab.Event) string) {
	t.Helper()
	t.Logf("%d packets sent, %d arrived", sum(r.Sent), sum(r.Arrived))
	if r.Lost+r.Leaked == 0 {
		return
	}
	t.Errorf("%d lost, %d leaked", r.Lost, r.Leaked)
	for _, e := range r.Wrong[:min(len(r.Wrong), 10)] {
		p := list[e.Flow].Probe
		t.Errorf("%s to %s %d/%s, number %d, arrived %v, sent %s, done %s later\n%s", p.Src, p.Dst, p.DstPort, p.Proto, e.Seq, e.Arrived,
			e.Sent.Format("15:04:05.000000"), e.Done.Sub(e.Sent), during(e))
	}
}

func sum(list []int) (n int) {
	for _, k := range list {
		n += k
	}
	return n
}
