package nft

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

var dataTypes = map[ruleset.Type]nftables.SetDatatype{
	ruleset.TypeIPv4:      nftables.TypeIPAddr,
	ruleset.TypeIPv6:      nftables.TypeIP6Addr,
	ruleset.TypeProtocol:  nftables.TypeInetProto,
	ruleset.TypePort:      nftables.TypeInetService,
	ruleset.TypeICMPv6:    nftables.TypeICMP6Type,
	ruleset.TypeInterface: nftables.TypeIFName,
}

func (c *Conn) set(s *ruleset.Set) *nftables.Set {
	types := make([]nftables.SetDatatype, len(s.Key))
	for i, t := range s.Key {
		types[i] = dataTypes[t]
	}
	n := &nftables.Set{
		Table: c.table, Name: s.Name, Interval: s.Interval, Size: s.Size,
		KeyType: types[0], KeyByteOrder: binaryutil.BigEndian,
	}
	if s.Key[0] == ruleset.TypeInterface && len(types) == 1 {
		n.KeyByteOrder = binaryutil.NativeEndian // or nft prints no names
	}
	if s.Timeout > 0 {
		n.Dynamic, n.HasTimeout, n.Timeout = true, true, time.Duration(s.Timeout)*time.Second
	}
	if len(types) > 1 {
		n.Concatenation = true
		n.KeyType = nftables.MustConcatSetType(types...)
	}
	if s.Verdicts {
		n.IsMap, n.DataType = true, nftables.TypeVerdict
	}
	return n
}

// maxMessage is the size of elements in one netlink message, in bytes. Larger
// messages have been seen to load a part of their elements without an error.
const maxMessage = 32 << 10

// elements queues elements in messages of at most maxMessage.
func (c *Conn) elements(s *ruleset.Set, n *nftables.Set, list []ruleset.Element, send func(*nftables.Set, []nftables.SetElement) error) error {
	const overhead = 64 // attribute headers of an element, at most
	size := overhead
	for _, t := range s.Key {
		size += 2 * t.Len()
	}
	for len(list) > 0 {
		var batch []nftables.SetElement
		room := maxMessage
		for len(list) > 0 && room > 0 {
			batch = appendElement(batch, s, list[0])
			room -= size + len(list[0].Jump)
			list = list[1:]
		}
		if err := send(n, batch); err != nil {
			return fmt.Errorf("elements of set %s: %w", s.Name, err)
		}
	}
	return nil
}

func appendElement(batch []nftables.SetElement, s *ruleset.Set, e ruleset.Element) []nftables.SetElement {
	key := []byte(e.Key)
	if len(s.Key) == 1 && s.Key[0] == ruleset.TypeICMPv6 {
		key = key[:1] // only concatenations are padded
	}
	switch {
	case e.Jump != "":
		return append(batch, nftables.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: e.Jump}})
	case !s.Interval:
		return append(batch, nftables.SetElement{Key: key})
	case len(s.Key) > 1:
		return append(batch, nftables.SetElement{Key: key, KeyEnd: []byte(e.Last)})
	}
	end := increment([]byte(e.Last))
	if end == nil { // up to the family's last address: an interval without an end
		return append(batch, nftables.SetElement{Key: key, IntervalOpen: true})
	}
	return append(batch, nftables.SetElement{Key: key}, nftables.SetElement{Key: end, IntervalEnd: true})
}

// increment gives the number after b, nil after the last.
func increment(b []byte) []byte {
	b = slices.Clone(b)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]++
		if b[i] != 0 {
			return b
		}
	}
	return nil
}

func decrement(b []byte) []byte {
	b = slices.Clone(b)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]--
		if b[i] != 0xff {
			break
		}
	}
	return b
}

// readSet reads a set and its elements back.
func (c *Conn) readSet(n *nftables.Set) (*ruleset.Set, error) {
	s := &ruleset.Set{Name: n.Name, Interval: n.Interval, Verdicts: n.IsMap, Size: n.Size, Timeout: uint32(n.Timeout / time.Second)}
	for _, t := range nftables.ConcatSetTypeElements(n.KeyType) {
		s.Key = append(s.Key, ruleset.Type(t.Name))
	}
	if s.Timeout > 0 {
		return s, nil // the kernel fills it
	}
	list, err := c.conn.GetSetElements(n)
	if err != nil {
		return nil, fmt.Errorf("elements of set %s: %w", n.Name, err)
	}
	if s.Interval && len(s.Key) == 1 {
		s.Elements = joinIntervals(list)
	} else {
		for _, e := range list {
			el := ruleset.Element{Key: string(padded(e.Key)), Last: string(e.KeyEnd)}
			if s.Verdicts {
				el.Jump = jumpTarget(e.Val)
			}
			s.Elements = append(s.Elements, el)
		}
	}
	slices.SortFunc(s.Elements, ruleset.Element.Compare)
	return s, nil
}

// padded fills a key up to 4 bytes, as ruleset has it.
func padded(key []byte) []byte {
	for len(key) < 4 {
		key = append(slices.Clone(key), 0)
	}
	return key
}

// joinIntervals makes ranges of the starts and ends that the kernel lists. An
// end without a start is what nft puts before the first range.
func joinIntervals(list []nftables.SetElement) []ruleset.Element {
	slices.SortFunc(list, func(a, b nftables.SetElement) int {
		if c := slices.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		if a.IntervalEnd == b.IntervalEnd {
			return 0
		} else if a.IntervalEnd {
			return -1
		}
		return 1
	})
	var out []ruleset.Element
	open := false
	for _, e := range list {
		switch {
		case !e.IntervalEnd:
			last := slices.Repeat([]byte{0xff}, len(e.Key))
			out = append(out, ruleset.Element{Key: string(e.Key), Last: string(last)})
			open = true
		case open:
			out[len(out)-1].Last = string(decrement(e.Key))
			open = false
		}
	}
	return out
}

// jumpTarget reads the chain out of a verdict map element's data: nested
// NFTA_VERDICT_CODE and NFTA_VERDICT_CHAIN. Another verdict than jump gives its
// number, which is no chain of ours.
func jumpTarget(val []byte) string {
	ad, err := netlink.NewAttributeDecoder(val)
	if err != nil {
		return "?"
	}
	code, chain := int32(0), ""
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			code = int32(beUint32(ad.Bytes()))
		case unix.NFTA_VERDICT_CHAIN:
			chain = ad.String()
		}
	}
	if code != int32(expr.VerdictJump) {
		return fmt.Sprintf("verdict %d %s", code, chain)
	}
	return chain
}
