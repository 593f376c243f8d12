package policy

import (
	"cmp"
	"net/netip"
	"slices"
)

// Ranges gives the addresses of prefixes, less single ones, as disjoint ranges,
// sorted.
func Ranges(prefixes []netip.Prefix, except []netip.Addr) []AddrRange {
	var all, holes, out []AddrRange
	for _, p := range prefixes {
		all = append(all, prefixRange(p.Masked()))
	}
	for _, a := range except {
		holes = append(holes, AddrRange{a, a})
	}
	holes = mergeAddrs(holes)
	for _, r := range mergeAddrs(all) {
		out = append(out, subtract(r, holes)...)
	}
	return out
}

// prefixRange gives the first and the last address of a masked prefix.
func prefixRange(p netip.Prefix) AddrRange {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return AddrRange{First: p.Addr(), Last: last}
}

// mergeAddrs makes ranges disjoint: sorted, overlapping and touching ones joined
// (S18), families apart.
func mergeAddrs(list []AddrRange) []AddrRange {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b AddrRange) int {
		return cmp.Or(a.First.Compare(b.First), a.Last.Compare(b.Last))
	})
	out := list[:0]
	for _, r := range list {
		if n := len(out); n > 0 && out[n-1].First.BitLen() == r.First.BitLen() {
			next := out[n-1].Last.Next() // invalid after a family's last address
			if !next.IsValid() || r.First.Compare(next) <= 0 {
				if r.Last.Compare(out[n-1].Last) > 0 {
					out[n-1].Last = r.Last
				}
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// subtract takes holes, which must be merged, out of a range.
func subtract(r AddrRange, holes []AddrRange) []AddrRange {
	var out []AddrRange
	for _, h := range holes {
		if h.First.BitLen() != r.First.BitLen() || h.Last.Compare(r.First) < 0 || h.First.Compare(r.Last) > 0 {
			continue
		}
		if h.First.Compare(r.First) > 0 {
			out = append(out, AddrRange{First: r.First, Last: h.First.Prev()})
		}
		if h.Last.Compare(r.Last) >= 0 {
			return out
		}
		r.First = h.Last.Next()
	}
	return append(out, r)
}

// mergePorts makes port ranges disjoint, by protocol, sorted.
func mergePorts(list []PortRange) []PortRange {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b PortRange) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	out := list[:0]
	for _, p := range list {
		if n := len(out); n > 0 && out[n-1].Protocol == p.Protocol && int(p.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, p.Last)
			continue
		}
		out = append(out, p)
	}
	return out
}
