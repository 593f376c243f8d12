package report

import (
	"cmp"
	"slices"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

// mark sums up the cells of one pair of ends on one port.
type mark byte

const (
	unasked mark = iota // no IP family in common, or neither is a pod
	self
	reached
	tried // reached, but audited policies would deny it
	only4
	only6
	partly
	denied
)

// marks are how each is shown: its class of style, its word, and what that means.
var marks = [...]struct{ class, word, meaning string }{
	unasked: {"m-un", "–", "not asked: the two have no kind of address in common"},
	self:    {"m-self", "self", "the pod itself, which no policy concerns"},
	reached: {"m-yes", "yes", "reached"},
	tried:   {"m-try", "yes*", "reached, but audited policies would deny it, at least at some addresses"},
	only4:   {"m-part", "IPv4", "reached over IPv4 only"},
	only6:   {"m-part", "IPv6", "reached over IPv6 only"},
	partly:  {"m-part", "part", "reached at some of its addresses only"},
	denied:  {"m-no", "no", "denied"},
}

// grid is who reaches whom on ports that have the same answer for all.
type grid struct {
	ports []policy.MatrixPort
	marks []mark // by source, then destination
}

// tally counts the cells of a pair, by IP family.
type tally struct {
	yes, no [2]bool
	audited bool
}

func (t tally) mark() mark {
	switch {
	case t == tally{}:
		return unasked
	case t.no == [2]bool{} && t.audited:
		return tried
	case t.no == [2]bool{}:
		return reached
	case t.yes == [2]bool{}:
		return denied
	case !t.no[0] && !t.yes[1]:
		return only4
	case !t.no[1] && !t.yes[0]:
		return only6
	}
	return partly
}

// grids makes tables of cells. names are the ends, in the order of the cells.
func grids(cells []policy.Cell) (names []string, all []grid) {
	index := map[string]int{}
	see := func(name string) {
		if _, ok := index[name]; !ok {
			index[name] = len(names)
			names = append(names, name)
		}
	}
	for _, c := range cells {
		see(c.From)
	}
	for _, c := range cells {
		see(c.To)
	}
	tallies := map[policy.MatrixPort][]tally{}
	for _, c := range cells {
		protocol, _ := inventory.ParseProtocol(c.Protocol)
		port := policy.MatrixPort{Protocol: protocol, Port: c.Port}
		if tallies[port] == nil {
			tallies[port] = make([]tally, len(names)*len(names))
		}
		t := &tallies[port][index[c.From]*len(names)+index[c.To]]
		family := 0
		if strings.Contains(c.ToIP, ":") {
			family = 1
		}
		t.yes[family] = t.yes[family] || c.Allowed
		t.no[family] = t.no[family] || !c.Allowed
		t.audited = t.audited || c.WouldDeny
	}
	for port, t := range tallies {
		g := grid{ports: []policy.MatrixPort{port}, marks: make([]mark, len(t))}
		for i := range t {
			g.marks[i] = t[i].mark()
			if i/len(names) == i%len(names) && g.marks[i] != unasked {
				g.marks[i] = self
			}
		}
		all = append(all, g)
	}
	return names, merge(all)
}

// merge makes one of grids that say the same, and sorts them by their first port.
func merge(all []grid) (merged []grid) {
	slices.SortFunc(all, func(a, b grid) int { return comparePorts(a.ports[0], b.ports[0]) })
	for _, g := range all {
		i := slices.IndexFunc(merged, func(m grid) bool { return slices.Equal(m.marks, g.marks) })
		if i < 0 {
			merged = append(merged, g)
		} else {
			merged[i].ports = append(merged[i].ports, g.ports...)
		}
	}
	return merged
}

func comparePorts(a, b policy.MatrixPort) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

// maxColumns is how many destinations fit on a sheet of paper; more go into further
// tables.
const maxColumns = 16

func (r *Report) matrix(p page) {
	p.put(`<section aria-labelledby="reach"><h2 id="reach">Who reaches whom</h2>`)
	defer p.put("</section>\n")
	if r.NoMatrix != "" {
		p.put(`<p class="none">{}</p>`, r.NoMatrix)
		return
	}
	names, all := grids(r.Matrix)
	if len(all) == 0 {
		p.put(`<p class="none">There is nobody to ask about.</p>`)
		return
	}
	p.put(`<p>New connections from the source in the row to the destination in the column, as the policies in force decide, on the ports that policies and pods name. Ports that have the same answers share a table.</p>`)
	legend(p, all)
	tables := (len(names) + maxColumns - 1) / maxColumns
	columns := (len(names) + tables - 1) / tables
	p.put(`<div class="tables">`)
	defer p.put("</div>")
	for _, g := range all {
		for first := 0; first < len(names); first += columns {
			g.table(p, names, first, min(first+columns, len(names)))
		}
	}
}

// legend explains the marks that are used.
func legend(p page, all []grid) {
	p.put(`<ul class="legend" aria-label="What the cells mean">`)
	for m := range marks {
		if slices.ContainsFunc(all, func(g grid) bool { return slices.Contains(g.marks, mark(m)) }) {
			p.put(`<li><span class="mark {}">{}</span> {}</li>`, marks[m].class, marks[m].word, marks[m].meaning)
		}
	}
	p.put("</ul>\n")
}

// table writes the columns from first to before end.
func (g grid) table(p page, names []string, first, end int) {
	p.put(`<div class="scroll" tabindex="0" role="region" aria-label="Who reaches whom on {}"><table class="matrix"><caption>`, portList(g.ports))
	list(p, g.ports, func(port policy.MatrixPort) { p.put(`{}`, port.String()) })
	if first > 0 || end < len(names) {
		p.put(` <span class="soft">destinations {} to {} of {}</span>`, number(uint64(first+1)), number(uint64(end)), number(uint64(len(names))))
	}
	p.put(`</caption><thead><tr><th class="corner" scope="col"><span>from ↓ to →</span></th>`)
	for _, n := range names[first:end] {
		p.put(`<th scope="col"><span>`)
		p.name(n)
		p.put(`</span></th>`)
	}
	p.put("</tr></thead><tbody>\n")
	for i, from := range names {
		p.put(`<tr><th scope="row">`)
		p.name(from)
		p.put(`</th>`)
		for k := first; k < end; k++ {
			m := marks[g.marks[i*len(names)+k]]
			p.put(`<td class="{}">{}</td>`, m.class, m.word)
		}
		p.put("</tr>\n")
	}
	p.put("</tbody></table></div>\n")
}

func portList(ports []policy.MatrixPort) string {
	var words []string
	for _, port := range ports {
		words = append(words, port.String())
	}
	return strings.Join(words, ", ")
}
