package ruleset

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// Text prints the table as nft text, or only the counters, sets and chains that
// the given chains need, and the map elements that lead to them.
func (t *Table) Text(chains []string) string {
	var b strings.Builder
	var part map[string]bool
	if chains != nil {
		part = t.reach(chains)
	}
	fmt.Fprintf(&b, "table %s %s {\n", t.Family, t.Name)
	for _, name := range names(t.Counters) {
		if part == nil || part[name] {
			fmt.Fprintf(&b, "\tcounter %s { }\n", name)
		}
	}
	for _, name := range names(t.Sets) {
		t.Sets[name].write(&b, part)
	}
	for _, name := range t.chainOrder() {
		if part == nil || part[name] {
			t.Chains[name].write(&b)
		}
	}
	b.WriteString("}\n")
	return b.String()
}

// reach marks the chains and everything they name.
func (t *Table) reach(chains []string) map[string]bool {
	part := map[string]bool{}
	for len(chains) > 0 {
		name := chains[0]
		chains = chains[1:]
		c := t.Chains[name]
		if c == nil || part[name] {
			continue
		}
		part[name] = true
		for _, r := range c.Rules {
			for _, e := range r.Exprs {
				switch e := e.(type) {
				case Lookup:
					part[e.Set] = true
				case Note:
					part[e.Set] = true
				case Count:
					part[e.Counter] = true
				case Verdict:
					chains = append(chains, e.Chain)
				}
			}
		}
	}
	return part
}

// chainOrder lists the chains by name, base chains last: a reader meets them
// where the packet's way begins, below what they lead to.
func (t *Table) chainOrder() []string {
	list := names(t.Chains)
	slices.SortStableFunc(list, func(a, b string) int {
		return cmp.Compare(hookOrder(t.Chains[a]), hookOrder(t.Chains[b]))
	})
	return list
}

func hookOrder(c *Chain) int {
	if c.Hook != nil {
		return 1
	}
	return 0
}

func (s *Set) write(b *strings.Builder, part map[string]bool) {
	var elements []string
	for _, e := range s.Elements {
		if part == nil || part[s.Name] || part[e.Jump] {
			elements = append(elements, s.elementText(e))
		}
	}
	if part != nil && !part[s.Name] && len(elements) == 0 {
		return
	}
	kind, typ := "set", s.typeText()
	if s.Verdicts {
		kind, typ = "map", typ+" : verdict"
	}
	fmt.Fprintf(b, "\t%s %s {\n\t\ttype %s\n", kind, s.Name, typ)
	if s.Size > 0 {
		fmt.Fprintf(b, "\t\tsize %d\n", s.Size)
	}
	if s.Interval {
		b.WriteString("\t\tflags interval\n")
	}
	if s.Timeout > 0 {
		fmt.Fprintf(b, "\t\tflags dynamic,timeout\n\t\ttimeout %ds\n", s.Timeout)
	}
	if len(elements) > 0 {
		fmt.Fprintf(b, "\t\telements = { %s }\n", strings.Join(elements, ",\n\t\t\t     "))
	}
	b.WriteString("\t}\n")
}

func (s *Set) typeText() string {
	list := make([]string, len(s.Key))
	for i, t := range s.Key {
		list[i] = string(t)
	}
	return strings.Join(list, " . ")
}

func (s *Set) elementText(e Element) string {
	var parts []string
	key, last := e.Key, e.Last
	for _, t := range s.Key {
		first := t.valueText(key[:t.Len()])
		key = key[t.Len():]
		if last != "" {
			if end := t.valueText(last[:t.Len()]); end != first {
				first += "-" + end
			}
			last = last[t.Len():]
		}
		parts = append(parts, first)
	}
	text := strings.Join(parts, " . ")
	if e.Jump != "" {
		text += " : jump " + e.Jump
	}
	return text
}

// valueText prints one field of an element's key.
func (t Type) valueText(v string) string {
	switch t {
	case TypeInterface:
		return fmt.Sprintf("%q", strings.TrimRight(v, "\x00"))
	case TypeIPv4, TypeIPv6:
		a, _ := netip.AddrFromSlice([]byte(v))
		return a.String()
	case TypePort:
		return fmt.Sprint(binary.BigEndian.Uint16([]byte(v)))
	case TypeProtocol:
		if p := inventory.Protocol(v[0]); p.HasPorts() {
			return strings.ToLower(p.String())
		}
	}
	return fmt.Sprint(v[0])
}

func (c *Chain) write(b *strings.Builder) {
	fmt.Fprintf(b, "\tchain %s {\n", c.Name)
	if c.Hook != nil {
		fmt.Fprintf(b, "\t\ttype filter hook %s priority %d; policy accept;\n", c.Hook.Name, c.Hook.Priority)
	}
	for _, r := range c.Rules {
		fmt.Fprintf(b, "\t\t%s\n", r.Text())
	}
	b.WriteString("\t}\n")
}

// Text prints the rule as nft text.
func (r Rule) Text() string {
	list := make([]string, len(r.Exprs))
	for i, e := range r.Exprs {
		list[i] = e.text()
	}
	text := strings.Join(list, " ")
	if r.Comment != "" {
		text += fmt.Sprintf(" comment %q", r.Comment)
	}
	return text
}
