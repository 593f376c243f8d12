package ruleset

import (
	"cmp"
	"slices"
	"strings"
)

// OpKind is what an Op does.
type OpKind uint8

// The operations, each one netlink message or a few of them.
const (
	AddCounter OpKind = iota
	AddSet            // with its elements
	AddChain          // with its rules
	EditChain         // replace all rules of a chain that is there
	DeleteElements
	AddElements
	DeleteChain
	DeleteSet
	DeleteCounter
)

// Op is one operation on the table.
type Op struct {
	Kind     OpKind
	Name     string    // of a counter
	Set      *Set      // of set and element operations
	Chain    *Chain    // of chain operations
	Elements []Element // of element operations
}

// Transaction is what one netlink batch does: the kernel applies all of it or
// nothing.
type Transaction []Op

// Change leads from the table in the kernel to the desired one.
type Change struct {
	// Target is the table that the kernel holds afterwards: the desired one with
	// the names and the epoch that the kernel knows.
	Target *Table
	// Transactions are to be applied in this order: what is new and nothing points
	// to yet; the switch; isolation that ends; what nothing points to any more.
	Transactions []Transaction
	// Restricts says that the change can deny what is allowed now; the target has
	// a new epoch then, so that established flows are judged again (S29).
	Restricts bool
}

// Empty says that there is nothing to do.
func (c *Change) Empty() bool { return len(c.Transactions) == 0 }

// Diff works out how to get from actual, what the kernel holds (nil: no table),
// to desired. The epoch in desired does not matter where there is an actual.
//
// A packet evaluates the rules as they were when it began and every set as it is
// when it looks, so that a packet under way can see an old set first and a new one
// later. Sets are edited in place where such a packet is still allowed only if
// the old or the new table allows it, and always if both do (S30); else they are
// made anew under another name, which only packets that began with the new rules
// look at. See inPlaceIsUnsafe.
func Diff(actual, desired *Table) Change {
	if actual == nil {
		actual = &Table{}
	} else if actual.Mark.Mask == desired.Mark.Mask && actual.Mark.Epoch != 0 {
		desired = desired.withMark(actual.Mark)
	}
	d := differ{actual: actual, renames: map[string]string{}}
	for again := true; again; {
		d.place(desired)
		d.compare()
		again = false
		for logical := range d.inPlaceIsUnsafe() {
			d.renames[logical] = freeName(actual, logical)
			again = true
		}
	}
	if d.restricts && len(actual.Chains) > 0 && d.target.Mark == actual.Mark && actual.Mark.Mask != 0 {
		d.bump() // else the epoch is another already, chosen as one that no connection carries
	}
	change := Change{Target: d.target, Restricts: d.restricts}
	for _, t := range d.transactions {
		if len(t) > 0 {
			slices.SortFunc(t, compareOps)
			change.Transactions = append(change.Transactions, t)
		}
	}
	return change
}

// bump gives the target a new epoch, in the same transaction as what restricts.
func (d *differ) bump() {
	mark, _ := d.target.Mark.Next()
	d.target = d.target.withMark(mark)
	forward := d.target.Chains[chainForward]
	for i, op := range d.transactions[switchOver] {
		if op.Chain != nil && op.Chain.Name == chainForward && op.Kind != DeleteChain {
			d.transactions[switchOver][i].Chain = forward
			return
		}
	}
	d.add(switchOver, Op{Kind: EditChain, Chain: forward})
}

// compareOps puts a transaction's operations in the order of their kinds, which
// is one that the kernel can follow, and those of a kind in that of their names.
func compareOps(a, b Op) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.subject(), b.subject()))
}

func (o Op) subject() string {
	switch {
	case o.Set != nil:
		return o.Set.Name
	case o.Chain != nil:
		return o.Chain.Name
	}
	return o.Name
}

// The transactions of a change, by index.
const (
	prepare = iota
	switchOver
	release
	cleanup
)

type differ struct {
	actual, target *Table
	renames        map[string]string // logical to physical names of sets that can't be edited in place
	transactions   [4]Transaction
	restricts      bool
	// What the change does to each direction's allowances, at all and by editing
	// chains, which packets under way do not see.
	shrinks, rulesShrink [2]bool
	edits                map[string]edit // of allow sets in place, by physical name
	grown                [2]bool         // the sets of pods' addresses gain any, by family
	loosens              bool            // something else than interfaces' sources gains, or isolation ends
	gains, loses         bool            // the sets of sources do
	rewired              bool            // see rewires
	rerouted             []string        // maps in which an address leads to another pod's chain, by physical name
}

// alternatives are the endings of the names that a set can have in the kernel:
// a set that can't be edited in place is made anew under the next one.
var alternatives = [...]string{"", ".b", ".c"}

func logicalName(physical string) string {
	return strings.TrimSuffix(strings.TrimSuffix(physical, ".b"), ".c")
}

// freeName gives a name for a set that the kernel does not know.
func freeName(actual *Table, logical string) string {
	for _, ending := range alternatives[:2] {
		if actual.Sets[logical+ending] == nil {
			return logical + ending
		}
	}
	return logical + alternatives[2]
}

// place decides which set in the kernel each desired set is, and makes the
// target: the desired table by those names.
func (d *differ) place(desired *Table) {
	target := *desired
	target.Sets = make(map[string]*Set, len(desired.Sets))
	renamed := map[string]string{}
	for logical, s := range desired.Sets {
		physical, forced := d.renames[logical]
		var old *Set
		if !forced {
			physical, old = d.find(logical, s)
		}
		if physical != logical {
			renamed[logical] = physical
		}
		if physical != s.Name || old != nil && old.Size != s.Size {
			n := *s
			n.Name = physical
			if old != nil {
				n.Size = old.Size
			}
			s = &n
		}
		target.Sets[physical] = s
	}
	if len(renamed) > 0 {
		target.Chains = renameSets(desired.Chains, renamed)
	}
	d.target = &target
}

// find gives the name of the set in the kernel that can be edited into s, and
// that set; else a free name.
func (d *differ) find(logical string, s *Set) (string, *Set) {
	for _, ending := range alternatives {
		if old := d.actual.Sets[logical+ending]; old != nil && old.sameSpec(s) && fits(old, s) {
			return logical + ending, old
		}
	}
	return freeName(d.actual, logical), nil
}

// fits says whether old has room for all of s while what s lacks is still there.
func fits(old, s *Set) bool {
	if old.Size == 0 || len(old.Elements)+len(s.Elements) <= int(old.Size) {
		return true
	}
	_, fresh := diffElements(old.Elements, s.Elements)
	return len(old.Elements)+len(fresh) <= int(old.Size)
}

// renameSets gives chains whose rules name sets by their new names.
func renameSets(chains map[string]*Chain, renamed map[string]string) map[string]*Chain {
	out := make(map[string]*Chain, len(chains))
	for name, c := range chains {
		out[name] = c
		for i, r := range c.Rules {
			for j, e := range r.Exprs {
				n, ok := renameExpr(e, renamed)
				if !ok {
					continue
				}
				if out[name] == c {
					out[name] = &Chain{Name: c.Name, Hook: c.Hook, Rules: slices.Clone(c.Rules)}
				}
				rule := &out[name].Rules[i]
				rule.Exprs = slices.Clone(rule.Exprs)
				rule.Exprs[j] = n
			}
		}
	}
	return out
}

func renameExpr(e Expr, renamed map[string]string) (Expr, bool) {
	switch e := e.(type) {
	case Lookup:
		if n, ok := renamed[e.Set]; ok {
			e.Set = n
			return e, true
		}
	case Note:
		if n, ok := renamed[e.Set]; ok {
			e.Set = n
			return e, true
		}
	case VerdictMap:
		if n, ok := renamed[e.Map]; ok {
			e.Map = n
			return e, true
		}
	}
	return nil, false
}

// compare fills the transactions.
func (d *differ) compare() {
	d.transactions = [4]Transaction{}
	d.restricts, d.shrinks, d.rulesShrink = false, [2]bool{}, [2]bool{}
	d.edits, d.rerouted, d.grown = map[string]edit{}, nil, [2]bool{}
	d.loosens, d.gains, d.loses, d.rewired = false, false, false, false
	for name := range d.target.Counters {
		if !d.actual.Counters[name] {
			d.add(prepare, Op{Kind: AddCounter, Name: name})
		}
	}
	for name, s := range d.target.Sets {
		d.compareSet(d.actual.Sets[name], s)
	}
	for name, c := range d.target.Chains {
		d.compareChain(d.actual.Chains[name], c)
	}
	for name, c := range d.actual.Chains {
		if d.target.Chains[name] == nil {
			d.add(cleanup, Op{Kind: DeleteChain, Chain: c})
		}
	}
	for name, s := range d.actual.Sets {
		if d.target.Sets[name] == nil {
			d.add(cleanup, Op{Kind: DeleteSet, Set: s})
		}
	}
	for name := range d.actual.Counters {
		if !d.target.Counters[name] {
			d.add(cleanup, Op{Kind: DeleteCounter, Name: name})
		}
	}
}

func (d *differ) add(transaction int, op Op) {
	d.transactions[transaction] = append(d.transactions[transaction], op)
}

func (d *differ) compareSet(old, s *Set) {
	if old == nil {
		d.add(prepare, Op{Kind: AddSet, Set: s})
		return
	}
	if s.Timeout != 0 || sameElements(old.Elements, s.Elements) {
		return
	}
	gone, fresh := diffElements(old.Elements, s.Elements)
	switch {
	case s.Verdicts:
		d.compareMap(s, gone, fresh)
		return
	case isAllowSet(s.Name):
		d.loosens = d.loosens || len(fresh) > 0
		d.edits[s.Name] = edit{adds: len(fresh) > 0, deletes: len(gone) > 0}
		if len(gone) > 0 {
			d.restricts = true
			d.shrinks[directionOf(s.Name)] = true
		}
	case strings.HasPrefix(s.Name, "pods_"): // which flows are judged at all
		// A packet that looks for its source before one pod comes and for its
		// destination after another went would not be judged by either.
		d.restricts = true
		d.edit(release, s, gone, nil)
		gone, d.grown[familyOf(s.Name)] = nil, len(fresh) > 0
		d.loosens = d.loosens || len(fresh) > 0
	case isSourceSet(s.Name): // who may send from where
		// An interface is looked at before its pod is known, and until it is forgotten;
		// see rewires for what can't be done in this order.
		d.restricts = true
		d.gains, d.loses = d.gains || len(fresh) > 0, d.loses || len(gone) > 0
		d.rewired = d.rewired || d.concernsPods(d.actual, s, fresh) || d.concernsPods(d.target, s, gone)
		if len(s.Key) == 1 {
			d.edit(cleanup, s, gone, nil)
			gone = nil
		}
		if len(s.Key) == 1 || d.target.Sets["local_v4"] != nil { // without hold, only known pods' sources matter
			d.edit(prepare, s, nil, fresh)
			fresh = nil
		}
	default: // what is held
		d.restricts = true
	}
	d.edit(switchOver, s, gone, fresh)
}

// compareMap edits a verdict map. Elements that go end an isolation: they go one
// transaction after the switch, so that no packet finds one pod's isolation
// ended and another's not begun.
func (d *differ) compareMap(m *Set, gone, fresh []Element) {
	replaced := map[string]bool{}
	for _, e := range fresh {
		replaced[e.Key] = true
	}
	var now, later []Element
	for _, e := range gone {
		if replaced[e.Key] {
			now = append(now, e)
		} else {
			later = append(later, e)
		}
	}
	if len(now) > 0 || slices.ContainsFunc(fresh, func(e Element) bool { return d.actual.Chains[e.Jump] != nil }) ||
		slices.ContainsFunc(later, func(e Element) bool { return d.target.Chains[e.Jump] != nil }) {
		d.rerouted = append(d.rerouted, m.Name)
	}
	if len(fresh) > 0 {
		d.restricts = true
		d.shrinks[directionOf(m.Name)] = true
	}
	d.loosens = d.loosens || len(now)+len(fresh) > 0 || slices.ContainsFunc(later, func(e Element) bool { return d.isPod(d.target, e.Key) })
	d.edit(switchOver, m, now, fresh)
	d.edit(release, m, later, nil)
}

func (d *differ) edit(transaction int, s *Set, gone, fresh []Element) {
	if len(gone) > 0 {
		d.add(transaction, Op{Kind: DeleteElements, Set: s, Elements: gone})
	}
	if len(fresh) > 0 {
		d.add(transaction, Op{Kind: AddElements, Set: s, Elements: fresh})
	}
}

func (d *differ) compareChain(old, c *Chain) {
	switch {
	case old == nil && c.Hook == nil:
		d.add(prepare, Op{Kind: AddChain, Chain: c})
	case old == nil:
		d.restricts = true
		d.add(switchOver, Op{Kind: AddChain, Chain: c})
	case (old.Hook == nil) != (c.Hook == nil) || old.Hook != nil && *old.Hook != *c.Hook:
		d.restricts = true
		d.add(switchOver, Op{Kind: DeleteChain, Chain: old})
		d.add(switchOver, Op{Kind: AddChain, Chain: c})
	case old != c && !slices.EqualFunc(old.Rules, c.Rules, Rule.Equal):
		d.loosens = d.loosens || c.Hook == nil
		if !onlyAllowsMore(old.Rules, c.Rules) {
			d.restricts = true
			d.shrinks[directionOf(c.Name)] = true
			d.rulesShrink[directionOf(c.Name)] = true
		}
		d.add(switchOver, Op{Kind: EditChain, Chain: c})
	}
}

// onlyAllowsMore says whether a pod's chain keeps all its rules in order, apart
// from comments, and gains only rules that return: "allowed".
func onlyAllowsMore(old, fresh []Rule) bool {
	i := 0
	for _, r := range fresh {
		if i < len(old) && slices.Equal(old[i].Exprs, r.Exprs) {
			i++
			continue
		}
		if n := len(r.Exprs); n == 0 || r.Exprs[n-1] != (Verdict{Kind: Return}) {
			return false
		}
	}
	return i == len(old)
}

func sameElements(a, b []Element) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}

// diffElements compares two sorted lists.
func diffElements(old, fresh []Element) (gone, added []Element) {
	i, j := 0, 0
	for i < len(old) && j < len(fresh) {
		switch c := old[i].Compare(fresh[j]); {
		case c == 0:
			i++
			j++
		case c < 0:
			gone = append(gone, old[i])
			i++
		default:
			added = append(added, fresh[j])
			j++
		}
	}
	return append(gone, old[i:]...), append(added, fresh[j:]...)
}
