package explain

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/policy"
)

// text gathers lines. What is not printable is escaped, as names and labels come
// from files and the network.
type text struct{ b strings.Builder }

func (t *text) line(indent int, format string, args ...any) {
	t.b.WriteString(strings.Repeat("  ", indent))
	for _, r := range fmt.Sprintf(format, args...) {
		if strconv.IsPrint(r) {
			t.b.WriteRune(r)
		} else {
			t.b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
	}
	t.b.WriteByte('\n')
}

// Text gives the explanation for a terminal: the verdict in the first line, then
// the reasoning for each pair of addresses.
func (e Explanation) Text() string {
	var t text
	var notes []string
	for i, f := range e.Flows {
		if i == 0 {
			t.line(0, "%s: %s -> %s %s", verdictText(e.Verdict, f.WouldDeny && !f.any()), f.From, f.To, f.Port)
		} else {
			t.line(0, "")
		}
		f.write(&t)
		for _, n := range f.Notes {
			if !slices.Contains(notes, n) {
				notes = append(notes, n)
			}
		}
	}
	t.line(0, "")
	t.line(0, "Also:")
	for _, n := range append(notes, e.Notes...) {
		t.line(1, "%s", n)
	}
	return t.b.String()
}

func verdictText(verdict string, wouldDeny bool) string {
	switch {
	case verdict == Partly:
		return "partly allowed"
	case verdict == Allowed && wouldDeny:
		return "allowed (would be denied if the audited policies were enforced)"
	}
	return verdict
}

// any says whether no port was asked about.
func (f Flow) any() bool { return f.Port == policy.Flow{}.PortText() }

func (f Flow) write(t *text) {
	if f.FromIP+f.ToIP != "" {
		t.line(0, "%s -> %s: %s", orElse(f.FromIP, "no address"), orElse(f.ToIP, "no address"), verdictText(f.Verdict, f.WouldDeny && !f.any()))
	}
	for _, list := range []struct {
		name  string
		ports []string
	}{{"passes", f.Passes}, {"passes, though audited policies would deny it", f.Would}, {"denied", f.Stays}} {
		if len(list.ports) > 0 {
			t.line(1, "%s: %s", list.name, strings.Join(list.ports, ", "))
		}
	}
	for _, w := range f.Warnings {
		t.line(1, "! %s", w)
	}
	writeSide(t, "Egress of "+f.From, f.Reasoning.Egress, f.any())
	writeSide(t, "Ingress of "+f.To, f.Reasoning.Ingress, f.any())
	if f.Table != nil {
		f.Table.write(t)
	}
}

// sideText sums up one end's part, of any traffic without a verdict.
func sideText(s policy.SideReasoning, any bool) string {
	exempt := s.Isolated && s.Allowed && !strings.HasPrefix(s.Reason, Allowed)
	switch {
	case s.Reason == unlabelledReason:
		return s.Reason
	case any && s.Isolated && !exempt:
		return "isolated, what the rules below allow passes"
	case any && s.WouldDeny:
		return "not isolated, and what the audited rules below do not allow would be denied"
	case s.Allowed && strings.HasPrefix(s.Reason, Allowed):
		return s.Reason
	case s.Allowed:
		return Allowed + ", " + s.Reason
	}
	return Denied + ", " + s.Reason
}

// writeSide writes one end's reasoning.
func writeSide(t *text, heading string, s policy.SideReasoning, any bool) {
	t.line(0, "")
	t.line(0, "%s: %s", heading, sideText(s, any))
	for _, p := range s.Policies {
		audited := ""
		if p.Audited {
			audited = ", audited"
		}
		t.line(1, "%s (%s%s) selects it", p.Policy, p.Origin, audited)
		if len(p.Rules) == 0 {
			t.line(2, "it has no rules here, and allows nothing")
		}
		for _, r := range p.Rules {
			writeRule(t, r, any)
		}
	}
	for i, o := range s.Others {
		if i == maxOthers {
			t.line(1, "and %d more policies are not about it", len(s.Others)-i)
			break
		}
		t.line(1, "%s is not about it: %s", o.Policy, o.Why)
	}
}

// maxOthers is how many policies that are not about an end are named in text.
const maxOthers = 5

func writeRule(t *text, r policy.RuleReasoning, any bool) {
	switch {
	case r.Matches:
		t.line(2, "rule %d matches:", r.Index)
	case any && r.PeerMatches:
		t.line(2, "rule %d matches some:", r.Index)
	default:
		t.line(2, "rule %d does not match:", r.Index)
	}
	if len(r.Peers) == 0 {
		t.line(3, "+ no peers are named, which is everyone")
	}
	for _, p := range r.Peers {
		if r.PeerMatches && !p.Holds {
			continue // one that matches is enough
		}
		t.line(3, "%s %s", mark(p.Holds), p.Text)
	}
	switch {
	case !any || r.PortMatches:
		t.line(3, "%s %s", mark(r.PortMatches), r.Ports)
	case r.PeerMatches:
		t.line(3, "+ %s", r.Ports)
	}
}

func mark(holds bool) string {
	if holds {
		return "+"
	}
	return "-"
}

func (tr *Trace) write(t *text) {
	t.line(0, "")
	t.line(0, "Table, hook %s: %s", tr.Hook, tr.Verdict)
	chain := ""
	for _, r := range tr.Rules {
		if r.Chain != chain {
			chain = r.Chain
			t.line(1, "chain %s", chain)
		}
		t.line(2, "%s", r.Text)
	}
	for _, c := range tr.Counters {
		if c.Known {
			t.line(1, "counter %s: %d packets, %d bytes so far", c.Name, c.Packets, c.Bytes)
		}
	}
}
