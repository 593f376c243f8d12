package policy

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// GatewayName stands for the gateway in a Cell.
const GatewayName = "gateway"

// MatrixPort is a destination port that the matrix asks about.
type MatrixPort struct {
	Protocol inventory.Protocol
	Port     uint16 // 1 to 65535
}

// String gives "80/TCP".
func (p MatrixPort) String() string { return fmt.Sprintf("%d/%s", p.Port, p.Protocol) }

// ParseMatrixPort reads "80/TCP", "53/udp" or "80", which means TCP.
func ParseMatrixPort(s string) (MatrixPort, error) {
	number, name, found := strings.Cut(s, "/")
	if !found {
		name = inventory.TCP.String()
	}
	port, err := strconv.ParseUint(number, 10, 16)
	protocol, ok := inventory.ParseProtocol(strings.ToUpper(name))
	if err != nil || port == 0 || !ok {
		return MatrixPort{}, fmt.Errorf("port %q: not a port from 1 to 65535, alone or followed by /TCP, /UDP or /SCTP", s)
	}
	return MatrixPort{protocol, uint16(port)}, nil
}

// MatrixRequest says what to ask.
type MatrixRequest struct {
	Ports     []MatrixPort // empty: those that policies and pods use
	Addresses []netip.Addr // addresses outside the gateway, as sources and as destinations
}

// Cell says whether one end reaches one address and port of another. From and
// To are a pod's namespace/name, an outside address, or "gateway".
type Cell struct {
	From     string `json:"from"`
	To       string `json:"to"`
	ToIP     string `json:"toIP"` // empty: a pod without an address, judged by its labels
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"` // TCP, UDP or SCTP
	Allowed  bool   `json:"allowed"`
	// WouldDeny: allowed only because policies are audited.
	WouldDeny bool   `json:"wouldDeny,omitempty"`
	Reason    string `json:"reason"`
}

// Matrix says who reaches whom: one cell for each source, destination, address
// of the destination and port, in that order: pods by name, then the gateway,
// then outside addresses. At least one end is a pod. The source speaks from its
// first address of the destination's family; pairs without a family in common
// have no cell. Pods that policies do not concern (S6, S33) are left out.
func Matrix(s *inventory.Snapshot, o *inventory.Options, r MatrixRequest) []Cell {
	ends := matrixEnds(s, o, r.Addresses)
	ports := matrixSort(r.Ports)
	if len(ports) == 0 {
		ports = usedPorts(s)
	}
	var cells []Cell
	for _, from := range ends {
		for _, to := range ends {
			if from.pod == nil && to.pod == nil {
				continue
			}
			for _, dst := range to.addresses {
				src, ok := from.source(dst)
				if !ok {
					continue
				}
				for _, p := range ports {
					cells = append(cells, matrixCell(s, o, from, to, src, dst, p))
				}
			}
		}
	}
	return cells
}

// matrixEnd is a row, and a column.
type matrixEnd struct {
	name      string
	pod       *inventory.Pod
	gateway   bool
	addresses []netip.Addr // sorted; the zero address alone for a pod that has none
}

// matrixEnds lists what takes part.
func matrixEnds(s *inventory.Snapshot, o *inventory.Options, outside []netip.Addr) []matrixEnd {
	var ends []matrixEnd
	for _, p := range s.Pods {
		if !p.Selectable() || (judge{s, o}).refused(p) {
			continue
		}
		e := matrixEnd{name: p.Key.String(), pod: p, addresses: p.Addresses}
		if len(e.addresses) == 0 {
			e.addresses = []netip.Addr{{}}
		}
		ends = append(ends, e)
	}
	if len(s.Gateway) > 0 {
		ends = append(ends, matrixEnd{name: GatewayName, gateway: true, addresses: s.Gateway})
	}
	for _, a := range slices.Compact(slices.SortedFunc(slices.Values(outside), netip.Addr.Compare)) {
		ends = append(ends, matrixEnd{name: a.String(), addresses: []netip.Addr{a}})
	}
	return ends
}

// source gives the address that the end would use towards another. Where either
// has none yet, the other's first address stands.
func (e matrixEnd) source(dst netip.Addr) (netip.Addr, bool) {
	for _, a := range e.addresses {
		if !a.IsValid() || !dst.IsValid() || a.Is4() == dst.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// matrixCell judges one cell.
func matrixCell(s *inventory.Snapshot, o *inventory.Options, from, to matrixEnd, src, dst netip.Addr, p MatrixPort) Cell {
	v := Evaluate(s, o, Flow{
		From:     Endpoint{Addr: src, Pod: from.pod, Gateway: from.gateway},
		To:       Endpoint{Addr: dst, Pod: to.pod, Gateway: to.gateway},
		Protocol: p.Protocol,
		Port:     p.Port,
	})
	c := Cell{From: from.name, To: to.name, Port: p.Port, Protocol: p.Protocol.String(), Allowed: v.Allowed, WouldDeny: v.WouldDeny()}
	if dst.IsValid() {
		c.ToIP = dst.String()
	}
	var reasons []string
	if from.pod != nil && v.Egress.Allowed == v.Allowed {
		reasons = append(reasons, "egress: "+v.Egress.Reason)
	}
	if to.pod != nil && v.Ingress.Allowed == v.Allowed {
		reasons = append(reasons, "ingress: "+v.Ingress.Reason)
	}
	c.Reason = strings.Join(reasons, "; ")
	return c
}

// usedPorts lists the ports that policies in force and pods name: a range by
// both its ends, every port of a protocol by port 80. Without any it is 80/TCP.
func usedPorts(s *inventory.Snapshot) []MatrixPort {
	var ports []MatrixPort
	for _, p := range s.Policies {
		for _, d := range inventory.Directions {
			if !p.Isolates[d] {
				continue
			}
			for _, r := range p.Rules[d] {
				for _, port := range r.Ports {
					ports = append(ports, portEnds(port)...)
				}
			}
		}
	}
	for _, p := range s.Pods {
		if p.Selectable() {
			for _, n := range p.Ports {
				ports = append(ports, MatrixPort{n.Protocol, n.Port})
			}
		}
	}
	if len(ports) == 0 {
		ports = []MatrixPort{{inventory.TCP, 80}}
	}
	return matrixSort(ports)
}

// portEnds gives the probes for one entry of a rule's ports. A named one has its
// numbers at the pods.
func portEnds(p inventory.Port) []MatrixPort {
	switch {
	case p.Name != "":
		return nil
	case p.First == 0:
		return []MatrixPort{{p.Protocol, 80}}
	default:
		return []MatrixPort{{p.Protocol, p.First}, {p.Protocol, p.Last}}
	}
}

// matrixSort gives ports by protocol and number, each once.
func matrixSort(ports []MatrixPort) []MatrixPort {
	return slices.Compact(slices.SortedFunc(slices.Values(ports), func(a, b MatrixPort) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	}))
}

// matrixColumns is how many destinations fit beside the names on a terminal.
const matrixColumns = 20

// matrixLegend explains the marks, auditLegend the one that only audited policies
// make; marks lists them in the order of lists.
const (
	matrixLegend = "+ reached, x not, 4 or 6 by that IP family only, ~ at some addresses only, = itself, blank not asked\n"
	marks        = "+?46~x"
	auditLegend  = "? reached, but audited policies would deny it, at least at some addresses\n"
)

// WriteMatrix prints cells for a terminal: a table for each port, or for all
// ports that have the same one, with rows as sources and numbered columns as
// destinations; where there are too many columns, a list for each source, or
// for all sources that have the same one.
func WriteMatrix(w io.Writer, cells []Cell) error {
	grids := map[MatrixPort]matrixGrid{}
	for _, c := range cells {
		protocol, _ := inventory.ParseProtocol(c.Protocol)
		port := MatrixPort{protocol, c.Port}
		if grids[port] == nil {
			grids[port] = matrixGrid{}
		}
		pair := [2]string{c.From, c.To}
		grids[port][pair] = append(grids[port][pair], c)
	}
	names := matrixNames(cells)
	draw := drawTable
	if len(names) > matrixColumns {
		draw = drawLists
	}
	ports := map[string][]string{} // by drawing
	var drawings []string
	for _, port := range matrixSort(slices.Collect(maps.Keys(grids))) {
		d := draw(names, grids[port])
		if ports[d] == nil {
			drawings = append(drawings, d)
		}
		ports[d] = append(ports[d], port.String())
	}
	text := "nobody to ask about\n"
	if len(drawings) > 0 {
		text = matrixLegend
	}
	if slices.ContainsFunc(cells, func(c Cell) bool { return c.WouldDeny }) {
		text += auditLegend
	}
	for _, d := range drawings {
		text += "\n" + strings.Join(ports[d], ", ") + "\n" + d
	}
	_, err := io.WriteString(w, text)
	return err
}

// matrixNames lists the ends in the order of the sources, each once.
func matrixNames(cells []Cell) []string {
	var names []string
	seen := map[string]bool{}
	add := func(n string) {
		if !seen[n] {
			seen[n] = true
			names = append(names, n)
		}
	}
	for _, c := range cells {
		add(c.From)
	}
	for _, c := range cells {
		add(c.To)
	}
	return names
}

// matrixGrid holds the cells of one port by source and destination: one for each
// address of the destination.
type matrixGrid map[[2]string][]Cell

// drawTable draws one mark for each pair of names.
func drawTable(names []string, grid matrixGrid) string {
	width := 0
	for _, n := range names {
		width = max(width, len(n))
	}
	var b strings.Builder
	row := func(label string, column func(i int) string) {
		text := fmt.Sprintf("%*s", -width-4, label)
		for i := range names {
			text += fmt.Sprintf(" %2s", column(i))
		}
		b.WriteString(strings.TrimRight(text, " ") + "\n")
	}
	row("", func(i int) string { return strconv.Itoa(i + 1) })
	for i, from := range names {
		row(fmt.Sprintf("%2d  %s", i+1, from), func(k int) string {
			if i == k && len(grid[[2]string{from, from}]) > 0 {
				return "="
			}
			return grid.mark(from, names[k])
		})
	}
	return b.String()
}

// drawLists draws, for each source, a line for each mark with the destinations
// that have it.
func drawLists(names []string, grid matrixGrid) string {
	sources := map[string][]string{} // by list
	var lists []string
	for _, from := range names {
		l := drawList(from, names, grid)
		if sources[l] == nil {
			lists = append(lists, l)
		}
		sources[l] = append(sources[l], from)
	}
	var b strings.Builder
	for _, l := range lists {
		if l != "" {
			b.WriteString("  " + strings.Join(sources[l], ", ") + "\n" + l)
		}
	}
	return b.String()
}

// drawList draws one source's lines. The longest says "all others" (that were
// asked), where that is shorter.
func drawList(from string, names []string, grid matrixGrid) string {
	to := map[string][]string{} // by mark
	most := 3
	for _, n := range names {
		if m := grid.mark(from, n); m != "" {
			to[m] = append(to[m], n)
			most = max(most, len(to[m]))
		}
	}
	text := ""
	for _, m := range strings.Split(marks, "") {
		switch {
		case len(to[m]) == 0:
			continue
		case len(to) == 1:
			text += "    " + m + " all\n"
		case len(to[m]) == most:
			text += "    " + m + " all others\n"
			most = -1
		default:
			text += "    " + m + " " + strings.Join(to[m], ", ") + "\n"
		}
	}
	return text
}

// mark sums up the cells of one pair.
func (g matrixGrid) mark(from, to string) string {
	cells := g[[2]string{from, to}]
	var yes, no [2]int // by family
	audited := false
	for _, c := range cells {
		audited = audited || c.WouldDeny
		family := 0
		if strings.Contains(c.ToIP, ":") {
			family = 1
		}
		if c.Allowed {
			yes[family]++
		} else {
			no[family]++
		}
	}
	switch {
	case len(cells) == 0:
		return ""
	case no == [2]int{} && audited:
		return "?"
	case no == [2]int{}:
		return "+"
	case yes == [2]int{}:
		return "x"
	case no[0] == 0 && yes[1] == 0:
		return "4"
	case no[1] == 0 && yes[0] == 0:
		return "6"
	}
	return "~"
}
