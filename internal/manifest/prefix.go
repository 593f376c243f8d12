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

// plainZeros drops the leading zeros of dotted decimal numbers, which the API
// server ignores and netip refuses; those of IPv6 groups mean nothing.
func plainZeros(address string) string {
	if !strings.Contains(address, ".") {
		return address
	}
	last := strings.LastIndexByte(address, ':') + 1
	octets := strings.Split(address[last:], ".")
	for i, o := range octets {
		octets[i] = trimZeros(o)
	}
	return address[:last] + strings.Join(octets, ".")
}

func trimZeros(number string) string {
	if trimmed := strings.TrimLeft(number, "0"); trimmed != "" || number == "" {
		return trimmed
	}
	return "0"
}
