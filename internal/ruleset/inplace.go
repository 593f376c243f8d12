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

// allowFamily tells from the name of an allow set which family's addresses it has.
func allowFamily(name string) int {
	if strings.HasPrefix(name[2:], families[1].digit) {
		return 1
	}
	return 0
}

// familyOf tells the family from the name of a map or of a set of addresses that
// every table has one of: an index of families.
func familyOf(name string) int {
	if strings.HasSuffix(logicalName(name), families[1].suffix) {
		return 1
	}
	return 0
}

// isSourceSet says whether a set says who may send from where.
func isSourceSet(name string) bool {
	return logicalName(name) == setPodInterfaces || strings.HasPrefix(name, "src_")
}

// rewires says that the sets of sources and of pods' interfaces can't be edited in
// place: a packet that looks its source up before the change and all else after it,
// or the other way round, would be judged by what one pod may send and another may
// receive. So it is where an address goes from one interface to another, where one
// stays a pod's but is bound to no interface any more, and where sources go while
// anything else comes. A pod that comes, and one that goes, is none of these.
func (d *differ) rewires() bool { return d.rewired || d.loses && d.loosens }

// concernsPods says whether elements of a set of sources, or of pods' interfaces,
// are about an address that is a pod's in a table.
func (d *differ) concernsPods(t *Table, s *Set, list []Element) bool {
	return slices.ContainsFunc(list, func(e Element) bool {
		return len(s.Key) > 1 && d.isPod(t, e.Key[s.Key[0].Len():]) ||
			len(s.Key) == 1 && slices.ContainsFunc(d.addressesOf(e.Key), func(a string) bool { return d.isPod(t, a) })
	})
}

// isPod says whether an address is a pod's in a table.
func (d *differ) isPod(t *Table, address string) bool {
	return t.lookup("pods_"+families[len(address)/16].suffix, address) != nil
}

// addressesOf gives the addresses that an interface may send from after the change.
func (d *differ) addressesOf(name string) []string {
	var list []string
	for _, f := range families {
		for _, ending := range alternatives {
			if sources := d.target.Sets["src_"+f.suffix+ending]; sources != nil {
				for _, src := range sources.Elements {
					if strings.HasPrefix(src.Key, name) {
						list = append(list, src.Key[len(name):])
					}
				}
			}
		}
	}
	return list
}

// lookup finds an element by the set's logical name.
func (t *Table) lookup(logical, key string) *Element {
	for _, ending := range alternatives {
		if s := t.Sets[logicalName(logical)+ending]; s != nil {
			return s.find(key)
		}
	}
	return nil
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
	// Where old maps, or old rules that allow more, are still looked at, an address
	// must not become known in place: what held it would be gone, and what isolates it
	// not there yet.
	anew := len(d.rerouted) > 0 || d.interfacesMatter() || d.actual.Chains[chainHold] != nil && (d.rulesShrink[0] || d.rulesShrink[1])
	for n, f := range families {
		if d.grown[n] && (anew || d.rewires()) {
			unsafe["pods_"+f.suffix] = true
		}
	}
	if d.gains && anew || d.rewires() {
		for _, name := range []string{setPodInterfaces, "src_v4", "src_v6"} {
			unsafe[name] = true
		}
	}
	if len(d.edits) == 0 {
		return unsafe
	}
	for name, e := range d.edits {
		direction := directionOf(name)
		if e.adds && (d.sourcesAnew() || d.target.Sets["local_v4"] != nil && d.grown[allowFamily(name)]) {
			// A packet that the old sources let pass, and the new ones do not; or, without
			// hold, one that is forged as a pod which was not known when its source was
			// looked at.
			unsafe[logicalName(name)] = true
		}
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

// interfacesMatter says that rules about interfaces come or go: nothing else
// changes the number of the base chain's rules.
func (d *differ) interfacesMatter() bool {
	old, now := d.actual.Chains[chainForward], d.target.Chains[chainForward]
	return old != nil && now != nil && len(old.Rules) != len(now.Rules)
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

// sourcesAnew says that packets under way do not see what the change does to
// sources: their sets are made anew.
func (d *differ) sourcesAnew() bool {
	for _, name := range []string{setPodInterfaces, "src_v4", "src_v6"} {
		if _, ok := d.renames[name]; ok {
			return true
		}
	}
	return false
}
