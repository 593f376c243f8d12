package manifest

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// contains says whether a block holds an address, its exceptions left out.
func contains(b inventory.IPBlock, a netip.Addr) bool {
	return b.CIDR.Contains(a) && !slices.ContainsFunc(b.Except, func(e netip.Prefix) bool { return e.Contains(a) })
}

// private are the ranges from which pods commonly have their addresses: RFC
// 1918 and RFC 4193.
func private(of netip.Prefix) []netip.Prefix {
	if of.Addr().Is4() {
		return []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16")}
	}
	return []netip.Prefix{netip.MustParsePrefix("fc00::/7")}
}

// openToPrivate says whether a block leaves some private range in.
func openToPrivate(b inventory.IPBlock) bool {
	return slices.ContainsFunc(private(b.CIDR), func(r netip.Prefix) bool {
		return !slices.ContainsFunc(b.Except, func(e netip.Prefix) bool { return e.Bits() <= r.Bits() && e.Contains(r.Addr()) })
	})
}

// podRange guesses the range that the pods' addresses come from: the smallest
// prefix around all of them, at least a /24 or /64, but no more than the block.
func podRange(pods []netip.Addr, block netip.Prefix) netip.Prefix {
	bits := 24
	if !block.Addr().Is4() {
		bits = 64
	}
	for bits > 0 {
		r, _ := pods[0].Prefix(bits)
		if !slices.ContainsFunc(pods, func(a netip.Addr) bool { return !r.Contains(a) }) {
			break
		}
		bits--
	}
	r, _ := pods[0].Prefix(max(bits, block.Bits()))
	return r
}

// labelled is something with labels, for hints.
type labelled struct {
	name string // "pod default/web"
	set  labels.Set
}

// hint says why a selector matches none of some objects: which part of it, and
// the nearest that there is.
func hint(s labels.Selector, objects []labelled, kind string) string {
	if len(objects) == 0 {
		return "there is no " + kind + " there"
	}
	slices.SortFunc(objects, func(a, b labelled) int { return cmp.Compare(a.name, b.name) })
	requirements, _ := s.Requirements()
	for _, r := range requirements {
		if slices.ContainsFunc(objects, func(o labelled) bool { return r.Matches(o.set) }) {
			continue
		}
		return requirementHint(r, objects, kind)
	}
	return "no " + kind + " has all these labels at once"
}

func requirementHint(r labels.Requirement, objects []labelled, kind string) string {
	var keys, values []string
	for _, o := range objects {
		for k, v := range o.set {
			keys = append(keys, k)
			if k == r.Key() {
				values = append(values, v)
			}
		}
	}
	slices.Sort(keys)
	slices.Sort(values)
	values = slices.Compact(values)
	switch r.Operator() {
	case selection.NotIn, selection.DoesNotExist:
		return fmt.Sprintf("every %s has %s", kind, r.Key())
	}
	if len(values) == 0 {
		if near := nearest(r.Key(), keys); near != "" {
			return fmt.Sprintf("no %s has the label %s; did you mean %s?", kind, r.Key(), near)
		}
		return fmt.Sprintf("no %s has the label %s", kind, r.Key())
	}
	for _, want := range r.Values().List() {
		near := nearest(want, values)
		for _, o := range objects {
			if v, has := o.set[r.Key()]; has && near != "" && v == near {
				return fmt.Sprintf("did you mean %s: %s, as %s has it?", r.Key(), near, o.name)
			}
		}
	}
	return fmt.Sprintf("%s is %s there", r.Key(), some(values))
}

// some lists the first names of many.
func some(names []string) string {
	const few = 3
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}
