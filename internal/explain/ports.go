package explain

import (
	"slices"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// ports says of all protocols and ports what passes. Between two ports at which
// some rule begins or ends the verdict is the same, so that one of each has to be
// judged.
func (in Input) ports(e *Flow, f policy.Flow) {
	lists := map[string]*[]string{"allowed": &e.Passes, "would": &e.Would, "denied": &e.Stays}
	same := true // everything gets one verdict
	first := ""
	for _, protocol := range []inventory.Protocol{inventory.TCP, inventory.UDP, inventory.SCTP} {
		f.Protocol = protocol
		starts := in.starts(f)
		from, verdict := 0, ""
		for i, port := range append(starts, 65536) {
			next := ""
			if i < len(starts) {
				f.Port = uint16(port)
				next = in.verdict(f)
			}
			if next == verdict {
				continue
			}
			if verdict != "" {
				r := policy.PortRange{Protocol: protocol, First: uint16(from), Last: uint16(port - 1)}
				if r.First == 1 && r.Last == 65535 {
					r.First = 0 // every port
				}
				*lists[verdict] = append(*lists[verdict], r.String())
			}
			from, verdict = port, next
			if first == "" {
				first = next
			}
			same = same && (next == first || next == "")
		}
	}
	f.Protocol, f.Port = inventory.ICMP, 0
	rest := in.verdict(f)
	*lists[rest] = append(*lists[rest], "ICMP and other protocols")
	if same && rest == first {
		*lists[rest] = []string{"everything"}
	}
	switch {
	case len(e.Stays) == 0:
		e.Verdict = Allowed
	case len(e.Passes)+len(e.Would) == 0:
		e.Verdict = Denied
	default:
		e.Verdict = Partly
	}
	e.WouldDeny = len(e.Would) > 0
}

func (in Input) verdict(f policy.Flow) string {
	switch v := policy.Evaluate(in.Snapshot, in.Options, f); {
	case !v.Allowed:
		return "denied"
	case v.WouldDeny():
		return "would"
	}
	return "allowed"
}

// starts lists the ports at which a rule about the ends begins, or has ended,
// sorted; the first is 1.
func (in Input) starts(f policy.Flow) []int {
	starts := []int{1}
	add := func(p inventory.Port) {
		if p.Protocol == f.Protocol && p.Name == "" {
			starts = append(starts, max(1, int(p.First)), int(p.Last)+1)
		}
	}
	for _, p := range in.Snapshot.Policies {
		for _, d := range inventory.Directions {
			end := [2]policy.Endpoint{inventory.Ingress: f.To, inventory.Egress: f.From}[d]
			if end.Pod == nil || !p.Selects(end.Pod) {
				continue
			}
			for _, r := range p.Rules[d] {
				for _, port := range r.Ports {
					add(port)
				}
			}
		}
	}
	if f.To.Pod != nil { // what names mean there
		for _, n := range f.To.Pod.Ports {
			add(inventory.Port{Protocol: n.Protocol, First: n.Port, Last: n.Port})
		}
	}
	for _, p := range in.Options.GatewayPorts {
		add(p)
	}
	slices.Sort(starts)
	return slices.DeleteFunc(slices.Compact(starts), func(p int) bool { return p > 65535 })
}
