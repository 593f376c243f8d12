package nft

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// raise reads a rule of the kernel back. Whatever lower does not write becomes a
// comment that no rule of ours has, so that such a rule equals none of them and
// is replaced.
func raise(r *nftables.Rule) ruleset.Rule {
	out := ruleset.Rule{}
	out.Comment, _ = userdata.GetString(r.UserData, userdata.TypeComment)
	rest := r.Exprs
	for len(rest) > 0 {
		e, n := raiseOne(rest)
		if n == 0 {
			return ruleset.Rule{Comment: fmt.Sprintf("not ours: %T", rest[0])}
		}
		if e != nil {
			out.Exprs = append(out.Exprs, e)
		}
		rest = rest[n:]
	}
	return out
}

// raiseOne reads one expression of ours and says how many of the kernel's it
// took; nil for a guard.
func raiseOne(list []expr.Any) (ruleset.Expr, int) {
	switch e := list[0].(type) {
	case *expr.Verdict:
		for kind, k := range verdictKinds {
			if k == e.Kind {
				return ruleset.Verdict{Kind: kind, Chain: e.Chain}, 1
			}
		}
	case *expr.Objref:
		if e.Type == unix.NFT_OBJECT_COUNTER {
			return ruleset.Count{Counter: e.Name}, 1
		}
	case *expr.Reject:
		switch *e {
		case expr.Reject{Type: unix.NFT_REJECT_TCP_RST}:
			return ruleset.Reject{Reset: true}, 1
		case expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}:
			return ruleset.Reject{}, 1
		}
	case *expr.Limit:
		l := ruleset.Limit{Rate: uint32(e.Rate)}
		if *e == (expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(l.Rate), Unit: expr.LimitTimeSecond, Burst: l.Burst()}) {
			return l, 1
		}
	case *expr.Log:
		if e.Key == logKey && e.Group == ruleset.LogGroup && e.Snaplen == ruleset.LogSnaplen && e.QThreshold == ruleset.LogThreshold {
			return ruleset.Log{Prefix: strings.TrimRight(string(e.Data), "\x00")}, 1
		}
	case *expr.Ct:
		return raiseCt(e, list[1:])
	case *expr.Meta, *expr.Payload:
		return raiseLoads(list)
	}
	return nil, 0
}

func raiseCt(ct *expr.Ct, rest []expr.Any) (ruleset.Expr, int) {
	if ct.SourceRegister || len(rest) == 0 {
		return nil, 0
	}
	if cmp, ok := rest[0].(*expr.Cmp); ok {
		if ct.Key == expr.CtKeyDIRECTION && cmp.Op == expr.CmpOpEq && bytes.Equal(cmp.Data, []byte{1}) {
			return ruleset.Reply, 2
		}
		return nil, 0
	}
	bw, ok := rest[0].(*expr.Bitwise)
	if !ok || len(rest) < 2 || bw.Len != 4 || len(bw.Mask) != 4 || len(bw.Xor) != 4 {
		return nil, 0
	}
	mask, xor := binaryutil.NativeEndian.Uint32(bw.Mask), binaryutil.NativeEndian.Uint32(bw.Xor)
	switch e := rest[1].(type) {
	case *expr.Ct:
		if ct.Key == expr.CtKeyMARK && e.Key == expr.CtKeyMARK && e.SourceRegister {
			return ruleset.SetMark{Mask: ^mask, Value: xor}, 3
		}
	case *expr.Cmp:
		if len(e.Data) != 4 || xor != 0 {
			return nil, 0
		}
		value, not := binaryutil.NativeEndian.Uint32(e.Data), e.Op == expr.CmpOpNeq
		nonzero := not && value == 0
		switch {
		case ct.Key == expr.CtKeyMARK && (not || e.Op == expr.CmpOpEq):
			return ruleset.MarkIs{Mask: mask, Value: value, Not: not}, 3
		case ct.Key == expr.CtKeySTATE && mask == expr.CtStateBitRELATED && nonzero:
			return ruleset.Related, 3
		case ct.Key == expr.CtKeySTATE && mask == expr.CtStateBitINVALID && !not && e.Op == expr.CmpOpEq && value == 0:
			return ruleset.Valid, 3
		case ct.Key == expr.CtKeySTATUS && mask == statusDNAT && nonzero:
			return ruleset.DNATed, 3
		}
	}
	return nil, 0
}

// raiseLoads reads fields loaded into registers and what is done with them.
func raiseLoads(list []expr.Any) (ruleset.Expr, int) {
	var key ruleset.Fields
	slot := uint32(0)
	for i, e := range list {
		switch e := e.(type) {
		case *expr.Meta:
			f, size := metaField(e)
			if i == 0 && f == "" {
				return raiseProtocol(e, list[1:])
			}
			if f == "" || i > 2 || e.Register != register(slot) {
				return nil, 0
			}
			key[i] = f
			slot += size
		case *expr.Payload:
			f, size := fieldAt(e)
			if f == "" || i > 2 || e.DestRegister != register(slot) {
				return nil, 0
			}
			key[i] = f
			slot += size
		case *expr.Lookup:
			switch {
			case e.IsDestRegSet && i == 1:
				return ruleset.VerdictMap{Field: key[0], Map: e.SetName}, i + 1
			case !e.IsDestRegSet:
				return ruleset.Lookup{Key: key, Set: e.SetName, Not: e.Invert}, i + 1
			}
			return nil, 0
		case *expr.Dynset:
			if i == 1 && e.Operation == unix.NFT_DYNSET_OP_UPDATE && e.SrcRegKey == 1 && len(e.Exprs) == 0 && e.Timeout == 0 {
				return ruleset.Note{Field: key[0], Set: e.SetName}, 2
			}
			return nil, 0
		case *expr.Cmp:
			if i != 1 || e.Op != expr.CmpOpEq {
				return nil, 0
			}
			return raiseMatch(list, key[0], e.Data)
		default:
			return nil, 0
		}
	}
	return nil, 0
}

// metaField finds the field that a meta expression loads, and its length in 4-byte
// slots.
func metaField(m *expr.Meta) (ruleset.Field, uint32) {
	for f, field := range metaFields {
		if field.key == m.Key {
			return f, field.len / 4
		}
	}
	return "", 0
}

// raiseProtocol reads a comparison of the packet's family: a guard, or a match.
func raiseProtocol(m *expr.Meta, rest []expr.Any) (ruleset.Expr, int) {
	if len(rest) == 0 {
		return nil, 0
	}
	cmp, ok := rest[0].(*expr.Cmp)
	if !ok || cmp.Op != expr.CmpOpEq {
		return nil, 0
	}
	for name, number := range familyNumbers {
		switch {
		case m.Key == expr.MetaKeyNFPROTO && bytes.Equal(cmp.Data, []byte{number}):
			if guards(number, rest[1:]) {
				return nil, 2 // the field behind it says as much
			}
			return ruleset.Match{Field: ruleset.NFProto, Value: name}, 2
		case m.Key == expr.MetaKeyPROTOCOL && bytes.Equal(cmp.Data, etherTypeOf[number]) && guards(number, rest[1:]):
			return nil, 2
		}
	}
	return nil, 0
}

// guards says whether what is loaded next is of the family that was checked.
func guards(number byte, next []expr.Any) bool {
	for _, e := range next {
		switch e := e.(type) {
		case *expr.Meta:
		case *expr.Payload:
			f, _ := fieldAt(e)
			return payloadFields[f].proto == number
		default:
			return false
		}
	}
	return false
}

// raiseMatch reads a comparison of one field with a value.
func raiseMatch(list []expr.Any, f ruleset.Field, data []byte) (ruleset.Expr, int) {
	switch f {
	case ruleset.InInterface, ruleset.OutInterface:
		return ruleset.Match{Field: f, Value: strings.TrimRight(string(data), "\x00")}, 2
	case ruleset.EtherType:
		for name, value := range etherTypes {
			if bytes.Equal(value, data) {
				return ruleset.Match{Field: f, Value: name}, 2
			}
		}
	case ruleset.L4Proto:
		if len(list) > 2 && data[0] == byte(inventory.ICMPv6) {
			if p, ok := list[2].(*expr.Payload); ok {
				if next, _ := fieldAt(p); next == ruleset.ICMPv6Type {
					return nil, 2 // the guard of icmpv6 type
				}
			}
		}
		for _, name := range []string{"icmp", "ipv6-icmp", "tcp"} {
			if byte(ruleset.ProtocolNumber(name)) == data[0] {
				return ruleset.Match{Field: f, Value: name}, 2
			}
		}
	case ruleset.HopLimit:
		return ruleset.Match{Field: f, Value: fmt.Sprint(data[0])}, 2
	case ruleset.IPSource, ruleset.IPDestination, ruleset.IP6Source, ruleset.IP6Destination:
		full := make([]byte, payloadFields[f].len)
		copy(full, data)
		a, _ := netip.AddrFromSlice(full)
		if len(data) < len(full) {
			return ruleset.Match{Field: f, Value: netip.PrefixFrom(a, len(data)*8).String()}, 2
		}
		return ruleset.Match{Field: f, Value: a.String()}, 2
	}
	return nil, 0
}

// fieldAt finds the field that a payload expression loads, or the leading bytes
// of, and its length in 4-byte slots.
func fieldAt(p *expr.Payload) (ruleset.Field, uint32) {
	for f, l := range payloadFields {
		whole := p.Len == l.len
		leading := l.len >= 4 && p.Len < l.len
		if p.Base == l.base && p.Offset == l.offset && (whole || leading && f != ruleset.IPSource && f != ruleset.IPDestination) {
			return f, (l.len + 3) / 4
		}
	}
	return "", 0
}
