package explain

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/tests/cluster"
)

// inputOf compiles a snapshot's table.
func inputOf(s *inventory.Snapshot, o *inventory.Options, i ruleset.Interfaces) Input {
	c := ruleset.NewCompiler("edgepolicyd", o)
	c.Interfaces = i
	return Input{Snapshot: s, Options: o, Interfaces: i, Table: c.Compile(policy.NewResolver(o).Update(s), ruleset.Mark{Mask: o.MarkMask, Epoch: 1 << 24})}
}

// On generated clusters the verdict is the judge's, the table agrees, and of what
// is denied the counter is the one of the end that denies it, or of audited ends
// before it.
func TestExplanationsOfGeneratedClusters(t *testing.T) {
	for seed := range uint64(30) {
		c := cluster.Generate(cluster.Config{Seed: seed})
		s, err := c.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		o := inventory.DefaultOptions()
		o.IPBlockMatchesPods, o.Reject, o.Audit = seed%3 != 0, seed%4 == 0, seed%10 == 0
		in := inputOf(s, &o, ruleset.Interfaces{})
		any := map[[2]netip.Addr]Flow{}
		for _, f := range cluster.Flows(s, c.Outside, rand.New(rand.NewPCG(seed, 9)), 200) {
			where := fmt.Sprintf("seed %d, %s -> %s %s", seed, f.From.Addr, f.To.Addr, f.PortText())
			e, err := Explain(in, Question{From: f.From.Addr.String(), To: f.To.Addr.String(), Port: f.PortText()})
			if err != nil || len(e.Flows) != 1 {
				t.Fatalf("%s: %v, %d flows", where, err, len(e.Flows))
			}
			v, got := policy.Evaluate(s, &o, f), e.Flows[0]
			if e.Allowed != v.Allowed || got.Allowed != v.Allowed || got.WouldDeny != v.WouldDeny() || len(got.Warnings) > 0 {
				t.Fatalf("%s: explained %+v, judged %+v", where, got, v)
			}
			var want []string
			for i, d := range []policy.Decision{v.Egress, v.Ingress} {
				end := []policy.Endpoint{f.From, f.To}[i]
				direction := []inventory.Direction{inventory.Egress, inventory.Ingress}[i]
				if !d.Allowed || d.WouldDeny {
					want = append(want, ruleset.CounterName(direction, end.Pod.Key, d.WouldDeny))
				}
				if !d.Allowed {
					break // dropped
				}
			}
			var counted []string
			if got.Table != nil {
				for _, c := range got.Table.Counters {
					counted = append(counted, c.Name)
				}
			}
			if strings.Join(counted, " ") != strings.Join(want, " ") {
				t.Fatalf("%s: counters %v, want %v\n%s", where, counted, want, e.Text())
			}
			pair := [2]netip.Addr{f.From.Addr, f.To.Addr}
			if _, found := any[pair]; !found {
				e, err := Explain(in, Question{From: f.From.Addr.String(), To: f.To.Addr.String()})
				if err != nil {
					t.Fatal(err)
				}
				any[pair] = e.Flows[0]
			}
			if class := listed(any[pair], f); class != in.verdict(f) {
				t.Fatalf("%s: listed as %q, judged %+v\n%+v", where, class, v, any[pair])
			}
		}
	}
}

// listed finds a flow in the lists of what passes; it must be in one of them.
func listed(e Flow, f policy.Flow) (class string) {
	for name, list := range map[string][]string{"allowed": e.Passes, "would": e.Would, "denied": e.Stays} {
		for _, text := range list {
			if has(text, f) {
				class += name
			}
		}
	}
	return class
}

// has says whether "80-90/TCP", "UDP" or the like has a flow's port.
func has(text string, f policy.Flow) bool {
	ports, protocol, found := strings.Cut(text, "/")
	switch {
	case text == "everything":
		return true
	case !f.Protocol.HasPorts():
		return strings.HasPrefix(text, "ICMP")
	case !found:
		return text == f.Protocol.String()
	}
	first, last, ranged := strings.Cut(ports, "-")
	if !ranged {
		last = first
	}
	a, _ := strconv.Atoi(first)
	b, _ := strconv.Atoi(last)
	return protocol == f.Protocol.String() && a <= int(f.Port) && int(f.Port) <= b
}

const pairYAML = `
{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}, status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, labels: {app: db}}, status: {podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: six}, status: {podIP: "fd00::3"}}
---
{apiVersion: v1, kind: Pod, metadata: {name: new, labels: {app: web}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: done}, status: {phase: Succeeded, podIP: 10.0.0.7}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: kube-system}, spec: {hostNetwork: true}, status: {podIP: 10.0.0.254}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24}}, {podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}, {from: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{port: 5432}]}]
`

func pairInput(t *testing.T, i ruleset.Interfaces) Input {
	s, o := snapshotOf(t, pairYAML, "10.0.0.254", "10.9.9.9", "127.0.0.1", "fe80::1", "fd00::fe"), inventory.DefaultOptions()
	return inputOf(s, &o, i)
}

func ask(t *testing.T, in Input, from, to, port string) Explanation {
	t.Helper()
	e, err := Explain(in, Question{From: from, To: to, Port: port})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEachFamilyHasItsVerdict(t *testing.T) {
	in := pairInput(t, ruleset.Interfaces{})
	for _, tc := range []struct {
		from, to, port string
		verdict        string
		flows          string
	}{
		{"web", "db", "80", Allowed, "10.0.0.1>10.0.0.2 80/TCP allowed, fd00::1>fd00::2 80/TCP allowed"},
		{"default/web", "default/db", "5432/tcp", Partly, "10.0.0.1>10.0.0.2 5432/TCP allowed, fd00::1>fd00::2 5432/TCP denied"},
		{"web", "db", "icmp", Denied, "10.0.0.1>10.0.0.2 ICMP denied, fd00::1>fd00::2 ICMPv6 denied"},
		{"web", "db", "ICMPv6", Denied, "fd00::1>fd00::2 ICMPv6 denied"},
		{"six", "db", "80", Denied, "fd00::3>fd00::2 80/TCP denied"},
		{"web", "db", "", Partly, "10.0.0.1>10.0.0.2 any traffic partly, fd00::1>fd00::2 any traffic partly"},
		{"db", "web", "", Allowed, "10.0.0.2>10.0.0.1 any traffic allowed, fd00::2>fd00::1 any traffic allowed"},
		{"gateway", "db", "1", Allowed, "10.0.0.254>10.0.0.2 1/TCP allowed, fd00::fe>fd00::2 1/TCP allowed"},
		{"kube-system/host", "10.0.0.2", "1", Allowed, "10.0.0.254>10.0.0.2 1/TCP allowed"},
		{"new", "db", "80", Allowed, "> 80/TCP"},
		{"192.168.1.1", "web", "53/UDP", Allowed, "192.168.1.1>10.0.0.1 53/UDP allowed"},
		{"::ffff:10.0.0.1", "db", "5432", Allowed, "10.0.0.1>10.0.0.2 5432/TCP allowed"},
	} {
		e := ask(t, in, tc.from, tc.to, tc.port)
		var flows []string
		for _, f := range e.Flows {
			flows = append(flows, fmt.Sprintf("%s>%s %s %s", f.FromIP, f.ToIP, f.Port, f.Verdict))
		}
		if got := strings.Join(flows, ", "); e.Verdict != tc.verdict || got != tc.flows && tc.from != "new" {
			t.Errorf("%s -> %s %s: %s, %s", tc.from, tc.to, tc.port, e.Verdict, got)
		}
	}
}

func TestWhatCanNotBeAsked(t *testing.T) {
	in := pairInput(t, ruleset.Interfaces{})
	for _, tc := range []struct{ from, to, port, want string }{
		{"wbe", "db", "", `from "wbe": it is no address, not "gateway", and no pod of this name is known in namespace "default"; did you mean default/db, default/web?`},
		{"web", "host", "", `; did you mean kube-system/host?`},
		{"zzz", "db", "", `(6 pods are known)`},
		{"web", "fe80::1%eth0", "", `policies know no interfaces: name it as fe80::1`},
		{"web", "done", "", `to "done": the pod has ended (Succeeded)`},
		{"web", "db", "0", `port "0": not a port from 1 to 65535, alone or followed by /TCP, /UDP or /SCTP; nor ICMP`},
		{"six", "10.0.0.2", "80", `default/six (fd00::3) and default/db (10.0.0.2) have no address family in common`},
		{"10.0.0.1", "db", "ICMPv6", `no address family in common that has ICMPv6`},
		{"a\x1b[31m", "db", "", `"a\x1b[31m"`},
		{"", "db", "", `no pod of this name`},
	} {
		e, err := Explain(in, Question{From: tc.from, To: tc.to, Port: tc.port})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s -> %s %s: %v, want %q\n%+v", tc.from, tc.to, tc.port, err, tc.want, e)
		}
	}
	in.Snapshot.Gateway = nil
	if _, err := Explain(in, Question{From: "gateway", To: "db"}); err == nil || !strings.Contains(err.Error(), "ask the running daemon") {
		t.Errorf("gateway without addresses: %v", err)
	}
}

// holding is where web and db are, with their range held.
func holding() ruleset.Interfaces {
	return ruleset.Interfaces{
		Pods: []string{"veth1", "veth2", "veth3"}, Hold: true, Others: []string{"lo", "eth0"},
		Ranges: policy.Ranges([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, nil),
		Sources: []ruleset.Source{
			{Interface: "veth1", Address: netip.MustParseAddr("10.0.0.1")}, {Interface: "veth2", Address: netip.MustParseAddr("10.0.0.2")},
			{Interface: "veth1", Address: netip.MustParseAddr("fd00::1")}, {Interface: "veth2", Address: netip.MustParseAddr("fd00::2")},
		},
	}
}

func TestHeldAddressesAreToldAsHeld(t *testing.T) {
	in := pairInput(t, holding())
	in.Counters = map[string]ruleset.Counts{ruleset.HoldCounter: {Packets: 7, Bytes: 700}}
	if e := ask(t, in, "web", "db", "80"); e.Verdict != Allowed {
		t.Errorf("%s", e.Text())
	}
	for _, tc := range [][3]string{{"web", "10.0.0.77", "80"}, {"10.0.0.77", "web", "80"}, {"web", "10.0.0.77", ""}} {
		text := ask(t, in, tc[0], tc[1], tc[2]).Text()
		for _, want := range []string{"held: ", "! held: 10.0.0.77 is in the pods' ranges and no known pod's", "counter hold: 7 packets, 700 bytes so far"} {
			if !strings.Contains(text, want) {
				t.Errorf("%v lacks %q:\n%s", tc, want, text)
			}
		}
	}
	if f := ask(t, in, "web", "10.0.0.77", "").Flows[0]; len(f.Passes)+len(f.Would)+len(f.Stays) > 0 || f.WouldDeny {
		t.Errorf("held, and still said to pass: %+v", f)
	}
	// A pod that no source places is held by the table, whatever the policies say.
	if e := ask(t, in, "six", "web", "80"); e.Verdict != Held {
		t.Errorf("%s", e.Text())
	}
}

// Addresses of the link lead to the interface of the pod that they are used from, and
// are held there; where that is not known nothing is claimed.
func TestAddressesOfTheLink(t *testing.T) {
	for _, tc := range []struct{ from, to, why string }{
		{"web", "224.0.0.251", "224.0.0.251 is no pod's: it leads to all neighbours"},
		{"web", "255.255.255.255", "255.255.255.255 is no pod's"},
		{"web", "ff02::fb", "to ff02::fb a pod sends from its link-local address, not from fd00::1"},
		{"web", "ff05::2", "ff05::2 is no pod's"},
		{"web", "fe80::77", "to fe80::77 a pod sends from its link-local address"},
		{"web", "fe80::1", "to fe80::1 a pod sends from its link-local address"}, // the gateway's
		{"fe80::77", "web", "fe80::77 is a link's address"},
	} {
		for _, port := range []string{"", "80", "ICMP"} {
			if text := ask(t, pairInput(t, holding()), tc.from, tc.to, port).Text(); !strings.HasPrefix(text, "held: ") || !strings.Contains(text, "! held: "+tc.why) {
				t.Errorf("%s -> %s %s lacks %q:\n%s", tc.from, tc.to, port, tc.why, text)
			}
			open := holding()
			open.Hold = false
			if e := ask(t, pairInput(t, open), tc.from, tc.to, port); e.Verdict != Held {
				t.Errorf("not holding, %s", e.Text())
			}
			if e := ask(t, pairInput(t, ruleset.Interfaces{}), tc.from, tc.to, port); e.Verdict != Allowed || len(e.Flows[0].Warnings) > 0 {
				t.Errorf("nobody knows where the pods are, %s", e.Text())
			}
		}
	}
	if e := ask(t, pairInput(t, holding()), "web", "169.254.169.254", "80"); e.Verdict != Allowed {
		t.Errorf("IPv4's are routed: %s", e.Text())
	}
}

// A pod that waits for its labels is held by its addresses, also where an earlier one
// of its name is known by others.
func TestPodThatWaitsIsHeld(t *testing.T) {
	in := pairInput(t, holding())
	waits := func(name, address string) *inventory.Pod {
		return &inventory.Pod{Head: inventory.Head{Key: inventory.Key{Namespace: "default", Name: name}}, Addresses: []netip.Addr{netip.MustParseAddr(address)}}
	}
	in.Waiting = []*inventory.Pod{waits("late", "10.0.0.20"), waits("web", "10.0.0.21"), waits("done", "10.0.0.22")}
	for _, tc := range []struct{ from, to, verdict, why string }{
		{"late", "db", Held, "! held: default/late (10.0.0.20) waits for its labels"},
		{"db", "late", Held, "Ingress of default/late: its labels are not known yet"},
		{"db", "10.0.0.20", Held, "held: default/late"},
		{"late", "10.0.0.254", Held, "default/late (10.0.0.20)"},
		{"gateway", "late", Allowed, "pass the hook output"},
		{"db", "web", Partly, "! held: default/web (10.0.0.21) waits"},
		{"done", "db", Held, "default/done (10.0.0.22) waits"},
		{"late", "late", Allowed, "does not leave the pod"},
	} {
		if e := ask(t, in, tc.from, tc.to, "80"); e.Verdict != tc.verdict || !strings.Contains(e.Text(), tc.why) {
			t.Errorf("%s -> %s: %s, want %s and %q\n%s", tc.from, tc.to, e.Verdict, tc.verdict, tc.why, e.Text())
		}
	}
	// Where no range of addresses is held, nothing is that no rule holds.
	in = pairInput(t, ruleset.Interfaces{})
	in.Waiting = []*inventory.Pod{waits("late", "10.0.0.20")}
	if e := ask(t, in, "late", "web", "80"); e.Verdict != Allowed {
		t.Errorf("%s", e.Text())
	}
}

func TestTranslatedAddressesAreWarnedOf(t *testing.T) {
	in := pairInput(t, holding())
	in.Others = []ruleset.BaseChain{
		{Family: "ip", Table: "nat", Name: "POST", Type: "nat", Hook: "postrouting"},
		{Family: "ip", Table: "raw", Name: "PRE", Type: "filter", Hook: "prerouting"},
		{Family: "ip6", Table: "nat", Name: "PRE", Type: "nat", Hook: "prerouting"},
	}
	const warning = "is a hostPort or service address, policies see the address behind it: ask about that"
	warned := func(from, to string, want bool) {
		t.Helper()
		if text := ask(t, in, from, to, "80").Text(); strings.Contains(text, warning) != want {
			t.Errorf("%s -> %s, want a warning: %v\n%s", from, to, want, text)
		}
	}
	warned("web", "10.0.0.254", false)
	warned("web", "2001:db8::1", true)
	in.Others[2].Family = "inet"
	warned("web", "10.0.0.254", true)
	warned("192.168.1.1", "10.9.9.9", true)
	warned("web", "10.96.0.1", true)
	warned("web", "db", false)
	warned("gateway", "10.96.0.1", false)
	warned("web", "10.0.0.77", false) // held
}

func TestWhatElseCouldStopAFlow(t *testing.T) {
	in := pairInput(t, ruleset.Interfaces{})
	in.Others = []ruleset.BaseChain{
		{Family: "inet", Table: "firewalld", Name: "filter_FORWARD", Hook: "forward", Priority: 10, Drop: true},
		{Family: "inet", Table: "mine", Name: "in", Hook: "input", Drop: true},
		{Family: "inet", Table: "open", Name: "fwd", Hook: "forward"},
		{Family: "ip", Table: "old", Name: "PRE", Hook: "prerouting", Priority: -300, Drop: true},
		{Family: "inet", Table: "mine", Name: "out", Hook: "output", Drop: true},
	}
	for _, tc := range []struct {
		from, to  string
		want, not []string
	}{
		{"10.0.0.1", "db", []string{"table inet firewalld has chain filter_FORWARD (hook forward, priority 10) with policy drop", "table ip old has chain PRE"}, []string{"mine", "open"}},
		{"fd00::1", "db", []string{"firewalld"}, []string{"old", "mine", "open"}},
		{"10.0.0.1", "10.0.0.254", []string{"table inet mine has chain in ", "old"}, []string{"firewalld", "chain out", "open"}},
		{"gateway", "10.0.0.1", []string{"table inet mine has chain out ", "pass the hook output"}, []string{"firewalld", "chain in ", "old", "chain forward"}},
	} {
		text := ask(t, in, tc.from, tc.to, "80").Text()
		for _, want := range tc.want {
			if strings.Count(text, want) != 1 {
				t.Errorf("%s -> %s lacks %q:\n%s", tc.from, tc.to, want, text)
			}
		}
		for _, not := range tc.not {
			if strings.Contains(text, not) {
				t.Errorf("%s -> %s has %q:\n%s", tc.from, tc.to, not, text)
			}
		}
	}
	in.Outside = map[inventory.Key]string{{Namespace: "default", Name: "web"}: "it is on macvlan"}
	if text := ask(t, in, "web", "db", "80").Text(); !strings.Contains(text, "! not enforced: the traffic of default/web does not pass the table: it is on macvlan") || strings.Contains(text, "Table,") {
		t.Errorf("outside:\n%s", text)
	}
}

func TestDisagreementIsSaidLoudly(t *testing.T) {
	in := pairInput(t, ruleset.Interfaces{})
	in.Table = inputOf(&inventory.Snapshot{Pods: in.Snapshot.Pods}, in.Options, ruleset.Interfaces{}).Table // not there yet
	e := ask(t, in, "10.0.0.1", "db", "81")
	if text := e.Text(); e.Verdict != Denied || !strings.Contains(text, "! THE TABLE DISAGREES: its rules below accept what the policies deny") {
		t.Errorf("%s", text)
	}
}

// The answer goes through JSON to the command, and its text must not suffer; nor
// may a name write to the terminal.
func TestTextAfterJSON(t *testing.T) {
	in := pairInput(t, ruleset.Interfaces{})
	in.Others = []ruleset.BaseChain{{Family: "inet", Table: "a\x1b[31m\n", Name: "x", Hook: "forward", Drop: true}}
	for _, port := range []string{"", "5432", "ICMP"} {
		e := ask(t, in, "web", "db", port)
		j, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var again Explanation
		if err := json.Unmarshal(j, &again); err != nil || again.Text() != e.Text() {
			t.Errorf("%v\n%s\nwant\n%s", err, again.Text(), e.Text())
		}
		if strings.Contains(e.Text(), "\x1b") || !strings.Contains(e.Text(), `a\x1b[31m\n has chain x`) {
			t.Errorf("not escaped:\n%s", e.Text())
		}
	}
}

func FuzzQuestion(f *testing.F) {
	f.Add("web", "db", "80/TCP")
	f.Add("gateway", "fd00::1", "ICMP")
	f.Add("10.0.0.1%x", "/", "")
	f.Fuzz(func(t *testing.T, from, to, port string) {
		e, err := Explain(pairInput(t, ruleset.Interfaces{}), Question{From: from, To: to, Port: port})
		if err == nil && (len(e.Flows) == 0 || e.Text() == "") {
			t.Errorf("%+v", e)
		}
	})
}
