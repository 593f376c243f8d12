// Package ruleset holds the desired nftables table as plain data: chains, maps,
// sets and their elements, each rule with its origin. It compiles the table from
// what package policy resolved, prints it as nft text, compares two tables, and
// traces a packet through one, all without a kernel.
//
// What always holds: base chains are made once and edited in place; a pod's
// chains keep their names; what is new comes one transaction before what points
// to it, and what is left over goes one transaction after (see Diff).
package ruleset

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Family is the nftables family of a table.
type Family string

// The families of our tables. The zero value is inet.
const (
	FamilyINet   Family = ""
	FamilyBridge Family = "bridge"
)

// String gives nft's name of the family.
func (f Family) String() string {
	if f == FamilyINet {
		return "inet"
	}
	return string(f)
}

// Table is one table. Its maps are indexes by name; a Set, Chain or Rule is
// never changed once it is in a Table, so that tables can share them.
type Table struct {
	Family   Family
	Name     string
	Mark     Mark // of the inet table
	Counters map[string]bool
	Sets     map[string]*Set
	Chains   map[string]*Chain
}

// Ours says whether a table that was read from the kernel is one of this
// program's, or empty: others may have one of the same name. The first thing that
// a table of ours gets are its sets.
func (t *Table) Ours() bool {
	if len(t.Chains)+len(t.Sets) == 0 {
		return true
	}
	if t.Family == FamilyBridge {
		ports := t.Sets[setPorts]
		return ports != nil && slices.Equal(ports.Key, []Type{TypeInterface})
	}
	nd := t.Sets[setND]
	return nd != nil && slices.Equal(nd.Key, []Type{TypeICMPv6}) && slices.ContainsFunc(alternatives[:], func(ending string) bool {
		pods := t.Sets["pods_v4"+ending]
		return pods != nil && slices.Equal(pods.Key, []Type{TypeIPv4})
	})
}

// Format is that of the tables that this program makes: of their sets, chains and what
// they mean. It stands in them as the name of a counter that counts nothing.
const Format = 1

const formatPrefix = "format-"

func formatCounter() string { return formatPrefix + strconv.Itoa(Format) }

// FormatInForce is the format of a table that was read from the kernel; 0 where it says
// none, as a table that is half made.
func (t *Table) FormatInForce() int {
	for name := range t.Counters {
		if n, err := strconv.Atoi(strings.TrimPrefix(name, formatPrefix)); err == nil && strings.HasPrefix(name, formatPrefix) {
			return n
		}
	}
	return 0
}

// Identifies says whether a set is one of those that Ours looks for: they go to the
// kernel before anything else, so that a table that was half made is known again.
func (s *Set) Identifies() bool {
	name := logicalName(s.Name)
	return name == setND || name == setPorts || name == "pods_v4"
}

// Mark is the epoch in the connection mark: the bits of Mask, equal to Epoch for
// flows that were judged under the rules now in force (S29).
type Mark struct{ Mask, Epoch uint32 }

// Next gives the epoch after this one: within the mask, never 0. wrapped says
// that it began anew, which needs stale stamps to be gone.
func (m Mark) Next() (next Mark, wrapped bool) {
	unit := m.Mask & -m.Mask // the mask's lowest bit
	e := (m.Epoch + unit) & m.Mask
	if e == 0 {
		return Mark{m.Mask, unit}, true
	}
	return Mark{m.Mask, e}, false
}

// Set is a set or, with Verdicts, a verdict map.
type Set struct {
	Name     string
	Key      []Type // more than one: a concatenation
	Interval bool   // elements are ranges
	Verdicts bool
	// Size is the declared size in elements, 0 for none. Declaring it selects the
	// kernel's fixed hash, which is faster; more elements than that are ENFILE.
	Size uint32
	// Timeout, in seconds: the kernel fills the set itself (Note) and forgets its
	// elements after it. Elements says nothing then.
	Timeout  uint32
	Elements []Element // sorted by Key
}

// Element is one element of a set.
type Element struct {
	Key  string // the key's fields in network order, each padded to 4 bytes
	Last string // interval sets: the inclusive end
	Jump string // verdict maps: the chain
}

// Compare orders elements by key, then end, then chain.
func (e Element) Compare(o Element) int {
	return cmp.Or(strings.Compare(e.Key, o.Key), strings.Compare(e.Last, o.Last), strings.Compare(e.Jump, o.Jump))
}

// sameSpec says whether two sets differ in elements and size only.
func (s *Set) sameSpec(o *Set) bool {
	return slices.Equal(s.Key, o.Key) && s.Interval == o.Interval && s.Verdicts == o.Verdicts && s.Timeout == o.Timeout && (s.Size == 0) == (o.Size == 0)
}

// Hook binds a base chain.
type Hook struct {
	Name     string // "forward", "input" or "prerouting"
	Priority int32
}

// Chain is a list of rules; with a Hook it is a base chain, whose policy is
// always accept: what is no pod's is not ours.
type Chain struct {
	Name  string
	Hook  *Hook
	Rules []Rule
}

// Rule is a list of expressions, evaluated in order until one does not match,
// and the text that says where the rule comes from.
type Rule struct {
	Exprs   []Expr
	Comment string
}

// Equal compares rules by what they print as.
func (r Rule) Equal(o Rule) bool { return r.Comment == o.Comment && slices.Equal(r.Exprs, o.Exprs) }

// maxName is the longest name of a chain, set or counter (NFT_NAME_MAXLEN less
// the terminating zero).
const maxName = 255

// maxComment is the longest comment that nft accepts when it loads its own listing.
const maxComment = 127

// names gives a map's keys, sorted.
func names[V any](m map[string]V) []string {
	list := make([]string, 0, len(m))
	for k := range m {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}
