package ruleset

import "testing"

// A table is ours by whatever name a set has that was made anew.
func TestOursByAnyName(t *testing.T) {
	for _, ending := range alternatives {
		table := &Table{Sets: map[string]*Set{
			setND:              {Name: setND, Key: []Type{TypeICMPv6}},
			"pods_v4" + ending: {Name: "pods_v4" + ending, Key: []Type{TypeIPv4}},
		}}
		if !table.Ours() {
			t.Errorf("a table with pods_v4%s is not ours", ending)
		}
	}
	if (&Table{Sets: map[string]*Set{setND: {Name: setND, Key: []Type{TypeICMPv6}}}}).Ours() {
		t.Error("a table without pods is ours")
	}
}
