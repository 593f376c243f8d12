// Package explain says why a flow passes or not: what each end's policies say, what
// the table does with it, and what else could stop it.
//
// What always holds: it changes nothing that it is given; the verdict is that of
// policy.Evaluate, unless the table holds the packet, and where the two disagree the
// explanation says so; and it knows no kernel.
package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// Question is what is asked, as it was typed.
type Question struct {
	From string `json:"from"` // "namespace/pod", "pod" of the namespace default, an address, or "gateway"
	To   string `json:"to"`
	Port string `json:"port,omitempty"` // "5432/TCP", "5432" (of TCP), "ICMP"; empty: everything that the ends' policies tell apart
}

// Input is what the answer is made from. It is not changed.
type Input struct {
	Snapshot   *inventory.Snapshot
	Options    *inventory.Options
	Table      *ruleset.Table // in force, or what files would give
	Interfaces ruleset.Interfaces
	Counters   map[string]ruleset.Counts // of the table, by name; nil where nothing runs
	Others     []ruleset.BaseChain       // of other programs
	Outside    map[inventory.Key]string  // pods whose traffic does not pass the table, and why (S34)
	Waiting    []*inventory.Pod          // pods whose labels no source has told yet
}

// The verdicts.
const (
	Allowed = "allowed"
	Denied  = "denied"
	Held    = "held"   // whatever the policies say: an end is not known to be what it claims (S11)
	Partly  = "partly" // allowed in one family, or to one address or port, and not in another
)

// Explanation is the answer.
type Explanation struct {
	Question Question `json:"question"`
	Verdict  string   `json:"verdict"`
	Allowed  bool     `json:"allowed"` // the verdict is allowed
	Flows    []Flow   `json:"flows"`   // one for each address of the destination that the source has the family of
	Notes    []string `json:"notes,omitempty"`
}

// Flow is the answer for one pair of addresses.
type Flow struct {
	From   string `json:"from"` // namespace/name of a pod, "gateway", or an address
	FromIP string `json:"fromIP,omitempty"`
	To     string `json:"to"`
	ToIP   string `json:"toIP,omitempty"`
	Port   string `json:"port"` // "80/TCP", "ICMP", or "any traffic"

	Verdict   string `json:"verdict"`
	Allowed   bool   `json:"allowed"`
	WouldDeny bool   `json:"wouldDeny,omitempty"` // allowed only because policies are audited
	// Where no port is asked about: what passes, what would be denied by audited
	// policies and passes, and what does not.
	Passes []string `json:"passes,omitempty"`
	Would  []string `json:"would,omitempty"`
	Stays  []string `json:"stays,omitempty"`

	Reasoning policy.Reasoning `json:"reasoning"`
	Table     *Trace           `json:"table,omitempty"` // nil: the packet does not meet the table, or none is known
	Warnings  []string         `json:"warnings,omitempty"`
	Notes     []string         `json:"notes,omitempty"`
}

// Trace is a packet's way through the table.
type Trace struct {
	Hook     string    `json:"hook"`    // forward or input
	Verdict  string    `json:"verdict"` // accept or drop
	Rules    []Rule    `json:"rules"`   // those that matched, in order
	Counters []Counter `json:"counters,omitempty"`
}

// Rule is a rule of the table, as nft text.
type Rule struct {
	Chain string `json:"chain"`
	Text  string `json:"text"`
}

// Counter is a counter that one of the rules counts in, and what it holds of all
// packets so far; Known is false where nothing runs.
type Counter struct {
	Name    string `json:"name"`
	Known   bool   `json:"known"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Explain answers. It is an error if an end is not known, or has no family in
// common with the other, and if the port is none.
func Explain(in Input, q Question) (Explanation, error) {
	e := Explanation{Question: q}
	from, err := in.end(q.From)
	if err != nil {
		return e, fmt.Errorf("from %q: %w", q.From, err)
	}
	to, err := in.end(q.To)
	if err != nil {
		return e, fmt.Errorf("to %q: %w", q.To, err)
	}
	port, err := parsePort(q.Port)
	if err != nil {
		return e, err
	}
	for _, pair := range in.pairs(from, to) {
		f := policy.Flow{From: pair[0], To: pair[1], Protocol: port.Protocol, Port: port.Port}
		v6 := f.From.Addr.Is6() || f.To.Addr.Is6()
		switch {
		case f.Protocol == inventory.ICMP && v6:
			f.Protocol = inventory.ICMPv6
		case f.Protocol == inventory.ICMPv6 && !v6:
			continue
		}
		e.Flows = append(e.Flows, in.flow(f))
	}
	if len(e.Flows) == 0 {
		return e, fmt.Errorf("%s (%s) and %s (%s) have no address family in common that has %s",
			from.name, addressText(from.addresses), to.name, addressText(to.addresses), orElse(q.Port, "any traffic"))
	}
	e.Verdict = e.Flows[0].Verdict
	for _, f := range e.Flows {
		if f.Verdict != e.Verdict {
			e.Verdict = Partly
		}
	}
	e.Allowed = e.Verdict == Allowed
	e.Notes = append(slices.Concat(from.notes, to.notes), "this is about new connections; what answers one that is allowed passes with it")
	return e, nil
}

// end is one end of the question.
type end struct {
	name      string
	pod       *inventory.Pod
	gateway   bool
	addresses []netip.Addr // those to ask about; the zero address alone for a pod that has none
	notes     []string
}

// end finds what was named.
func (in Input) end(text string) (end, error) {
	if text == policy.GatewayName {
		return in.gatewayEnd()
	}
	if a, err := netip.ParseAddr(text); err == nil {
		if a.Zone() != "" {
			return end{}, fmt.Errorf("policies know no interfaces: name it as %s", a.WithZone(""))
		}
		p := policy.EndpointAt(in.Snapshot, a)
		e := end{name: in.nameOf(p), pod: p.Pod, gateway: p.Gateway, addresses: []netip.Addr{p.Addr}}
		return e, nil
	}
	namespace, name, found := strings.Cut(text, "/")
	if !found {
		namespace, name = "default", text
	}
	key := inventory.Key{Namespace: namespace, Name: name}
	pod, waits := in.Snapshot.Pod(key), in.waitsAs(key)
	switch {
	case len(waits) > 0 && (pod == nil || !pod.Selectable()): // an earlier one of the name
		return end{name: key.String(), addresses: waits}, nil
	case pod == nil:
		return end{}, fmt.Errorf("it is no address, not %q, and no pod of this name is known in namespace %q%s", policy.GatewayName, namespace, in.near(name))
	case pod.HostNetwork:
		e, err := in.gatewayEnd()
		e.notes = append(e.notes, fmt.Sprintf("%s has the gateway's network: for policies it is the gateway", pod.Key))
		return e, err
	case !pod.Selectable():
		return end{}, fmt.Errorf("the pod has ended (%s): no policy is about it", pod.Phase)
	}
	e := end{name: pod.Key.String(), pod: pod, addresses: slices.Concat(pod.Addresses, waits)}
	if len(e.addresses) == 0 {
		e.addresses = []netip.Addr{{}}
		e.notes = append(e.notes, pod.Key.String()+" has no address yet: it is judged by its labels")
	}
	return e, nil
}

// gatewayEnd is the gateway, by one address of each family that others can reach.
func (in Input) gatewayEnd() (end, error) {
	e := end{name: policy.GatewayName, gateway: true}
	had := map[bool]bool{}
	left := 0
	for _, a := range in.Snapshot.Gateway {
		switch {
		case a.IsLoopback() || a.IsLinkLocalUnicast():
		case had[a.Is4()]:
			left++
		default:
			had[a.Is4()] = true
			e.addresses = append(e.addresses, a)
		}
	}
	if len(e.addresses) == 0 {
		return e, fmt.Errorf("the gateway's own addresses are not known here: ask the running daemon, or name an address")
	}
	if left > 0 {
		e.notes = append(e.notes, fmt.Sprintf("the gateway has %d more addresses: name one to ask about it", left))
	}
	return e, nil
}

// near lists pods with a similar name, as the end of a sentence.
func (in Input) near(name string) string {
	var list []string
	for _, p := range in.Snapshot.Pods {
		similar := strings.Contains(p.Key.Name, name) || distance(name, p.Key.Name) <= 1+len(name)/3
		if name != "" && similar && len(list) < 5 {
			list = append(list, p.Key.String())
		}
	}
	if len(list) == 0 {
		return fmt.Sprintf(" (%d pods are known)", len(in.Snapshot.Pods))
	}
	return "; did you mean " + strings.Join(list, ", ") + "?"
}

// distance counts the bytes to insert, drop or replace. Long names are never near,
// which bounds the work.
func distance(a, b string) int {
	if len(a) > 300 || len(b) > 300 {
		return 300
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// pairs gives the ends' addresses that can speak to each other: of the source the
// first of the family.
func (in Input) pairs(from, to end) (list [][2]policy.Endpoint) {
	for _, dst := range to.addresses {
		for _, src := range from.addresses {
			if !src.IsValid() || !dst.IsValid() || src.Is4() == dst.Is4() {
				list = append(list, [2]policy.Endpoint{
					in.endpoint(from, src), in.endpoint(to, dst),
				})
				break
			}
		}
	}
	return list
}

// endpoint is an end by one of its addresses.
func (in Input) endpoint(e end, a netip.Addr) policy.Endpoint {
	if in.waitsAt(a) != nil {
		return policy.Endpoint{Addr: a} // also where one of the name is known by another address
	}
	return policy.Endpoint{Addr: a, Pod: e.pod, Gateway: e.gateway}
}

// waitsAs gives the addresses at which a pod of this name waits for its labels.
func (in Input) waitsAs(key inventory.Key) (list []netip.Addr) {
	for _, p := range in.Waiting {
		if p.Key == key {
			list = append(list, p.Addresses...)
		}
	}
	return list
}

// waitsAt gives the pod that waits for its labels with an address, or nil.
func (in Input) waitsAt(a netip.Addr) *inventory.Pod {
	for _, p := range in.Waiting {
		if slices.Contains(p.Addresses, a) {
			return p
		}
	}
	return nil
}

// parsePort reads what was asked about; nothing gives protocol 0.
func parsePort(s string) (policy.MatrixPort, error) {
	switch strings.ToUpper(s) {
	case "":
		return policy.MatrixPort{}, nil
	case "ICMP":
		return policy.MatrixPort{Protocol: inventory.ICMP}, nil
	case "ICMPV6":
		return policy.MatrixPort{Protocol: inventory.ICMPv6}, nil
	}
	p, err := policy.ParseMatrixPort(s)
	if err != nil {
		return p, fmt.Errorf("%w; nor ICMP", err)
	}
	return p, nil
}

// nameOf names an end: a pod, the gateway or an address.
func (in Input) nameOf(e policy.Endpoint) string {
	waits := in.waitsAt(e.Addr)
	switch {
	case waits != nil:
		return waits.Key.String()
	case e.Gateway:
		return policy.GatewayName
	case e.Pod != nil:
		return e.Pod.Key.String()
	}
	return e.Addr.String()
}

func addressText(list []netip.Addr) string {
	var names []string
	for _, a := range list {
		names = append(names, a.String())
	}
	return strings.Join(names, ", ")
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
