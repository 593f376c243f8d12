package manifest

import (
	"fmt"
	"net/netip"
	"strings"
)

// parsePrefix reads a CIDR as the API server does, which takes what netip does
// not: host bits, leading zeros (read as decimal) and IPv4-mapped addresses. The
// prefix is masked, a mapped one is IPv4. remark says what was not as it should
// be, "" when all was.
func parsePrefix(text string) (prefix netip.Prefix, remark string, ok bool) {
	address, bits, found := strings.Cut(text, "/")
	as, err := netip.ParsePrefix(plainZeros(address) + "/" + trimZeros(bits))
	if !found || err != nil {
		return netip.Prefix{}, "", false
	}
	if as.Addr().Is4In6() && as.Bits() >= 96 {
		as = netip.PrefixFrom(as.Addr().Unmap(), as.Bits()-96)
	}
	prefix = as.Masked()
	switch {
	case prefix.Addr() != as.Addr():
		remark = fmt.Sprintf("has bits set beyond its prefix length and is taken as %s: write that, or %s/%d for the one address", prefix, as.Addr(), as.Addr().BitLen())
	case prefix.String() != text:
		remark = fmt.Sprintf("is taken as %s: write it so", prefix)
	}
	return prefix, remark, true
}

// parseAddress reads an address with the same tolerance. Zones are refused: a
// pod's address is the same on every interface.
func parseAddress(text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(plainZeros(text))
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// plainZeros drops leading zeros, of any number: the API server ignores them in
// IPv4 and IPv6 alike, netip refuses most.
func plainZeros(address string) string {
	groups := strings.Split(address, ":")
	for i, group := range groups {
		octets := strings.Split(group, ".")
		for j, o := range octets {
			octets[j] = trimZeros(o)
		}
		groups[i] = strings.Join(octets, ".")
	}
	return strings.Join(groups, ":")
}

func trimZeros(number string) string {
	if trimmed := strings.TrimLeft(number, "0"); trimmed != "" || number == "" {
		return trimmed
	}
	return "0"
}
