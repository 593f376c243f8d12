package ruleset

import (
	"slices"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// edit is what a change does to one set in place.
type edit struct{ adds, deletes bool }

// directionOf tells from the name of a pod's chain, a map or an allow set which
// direction it belongs to.
func directionOf(name string) inventory.Direction {
	if strings.HasPrefix(name, "eg") {
		return inventory.Egress
	}
	return inventory.Ingress
}

// isAllowSet says whether a set holds what pods' chains allow.
func isAllowSet(name string) bool {
	for _, prefix := range []string{"in4", "in6", "eg4", "eg6"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// inPlaceIsUnsafe names the sets that must not be edited in place in this change,
// by their logical names.
//
// A packet under way looks at the egress chain first and the ingress chain then,
// with the rules that it began with. Each of the two must judge it as the old or
// as the new table does, not as a mixture (see mixes). And they must not judge it
// by different tables such that both the old and the new one deny it:
//
//   - egress by the old table, which allows, and ingress by the new one: where
//     ingress gains elements in place while egress loses anything;
//   - egress by the new table, by elements gained in place, and ingress by the
//     old one: where ingress loses something by its rules, which the packet does
//     not see. What ingress loses in place it sees, since it looks there later.
func (d *differ) inPlaceIsUnsafe() map[string]bool {
	unsafe := map[string]bool{}
	for _, name := range d.rerouted {
		// A packet under way would be judged by the old rules of a chain that its
		// address did not lead to then.
		unsafe[logicalName(name)] = true
	}
	if len(d.edits) == 0 {
		return unsafe
	}
	for name, e := range d.edits {
		direction := directionOf(name)
		if e.adds && (direction == inventory.Ingress && d.shrinks[inventory.Egress] ||
			direction == inventory.Egress && d.rulesShrink[inventory.Ingress]) {
			unsafe[logicalName(name)] = true
		}
	}
	for _, c := range d.actual.Chains {
		if c.Hook == nil {
			d.mixes(c, unsafe)
		}
	}
	return unsafe
}

// mixes adds the sets that a chain looks at, if editing them in place makes it
// judge a packet under way neither as before nor as after the change: it could
// look for an element in one set before it is added there, and in another after it
// was deleted there. Editing one set is seen as one step, and so is only adding or
// only deleting. Families are apart, as a packet is of one.
func (d *differ) mixes(c *Chain, unsafe map[string]bool) {
	for _, f := range families {
		var edited []string
		var all edit
		for _, r := range c.Rules {
			for _, e := range r.Exprs {
				l, ok := e.(Lookup)
				if !ok || d.actual.Sets[l.Set] == nil || d.actual.Sets[l.Set].Key[0] != f.addrType {
					continue
				}
				if e, ok := d.edits[l.Set]; ok && !slices.Contains(edited, l.Set) {
					edited = append(edited, l.Set)
					all.adds, all.deletes = all.adds || e.adds, all.deletes || e.deletes
				}
			}
		}
		if len(edited) == 0 || d.oneStep(c, f, all, len(edited)) {
			continue
		}
		for _, name := range edited {
			unsafe[logicalName(name)] = true
		}
	}
}

// oneStep says whether a chain's rules and the edits of its sets together only
// allow more, or only less, or change in one place.
func (d *differ) oneStep(c *Chain, f family, all edit, sets int) bool {
	fresh := d.target.Chains[c.Name]
	if fresh == nil { // the pod's isolation ends: everything is allowed then
		return !all.deletes
	}
	if fresh == c {
		return sets == 1 || !all.adds || !all.deletes
	}
	old, now := ofFamily(c.Rules, f), ofFamily(fresh.Rules, f)
	more, less := onlyAllowsMore(old, now), onlyAllowsMore(now, old)
	switch {
	case more && less:
		return sets == 1 || !all.adds || !all.deletes
	case more:
		return !all.deletes
	case less:
		return !all.adds
	}
	return false
}

// ofFamily gives the rules that packets of one family can match.
func ofFamily(rules []Rule, f family) []Rule {
	var out []Rule
	for _, r := range rules {
		other := false
		for _, e := range r.Exprs {
			switch e := e.(type) {
			case Lookup:
				other = other || ofOther(e.Key[0], f)
			case Match:
				other = other || ofOther(e.Field, f)
			}
		}
		if !other {
			out = append(out, r)
		}
	}
	return out
}

// ofOther says whether a field is an address of the other family.
func ofOther(field Field, f family) bool {
	t := fieldTypes[field]
	return (t == TypeIPv4 || t == TypeIPv6) && t != f.addrType
}
