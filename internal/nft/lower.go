package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// location is where the kernel finds a field.
type location struct {
	proto  byte // meta nfproto that guards it, 0 for none
	base   expr.PayloadBase
	offset uint32
	len    uint32
}

// payloadFields are the fields that are loaded from the packet (RFC 791, 8200,
// 9293: ports are at the same place in TCP, UDP and SCTP).
var payloadFields = map[ruleset.Field]location{
	ruleset.IPSource:       {unix.NFPROTO_IPV4, expr.PayloadBaseNetworkHeader, 12, 4},
	ruleset.IPDestination:  {unix.NFPROTO_IPV4, expr.PayloadBaseNetworkHeader, 16, 4},
	ruleset.IP6Source:      {unix.NFPROTO_IPV6, expr.PayloadBaseNetworkHeader, 8, 16},
	ruleset.IP6Destination: {unix.NFPROTO_IPV6, expr.PayloadBaseNetworkHeader, 24, 16},
	ruleset.HopLimit:       {unix.NFPROTO_IPV6, expr.PayloadBaseNetworkHeader, 7, 1},
	ruleset.SourcePort:     {0, expr.PayloadBaseTransportHeader, 0, 2},
	ruleset.DestPort:       {0, expr.PayloadBaseTransportHeader, 2, 2},
	ruleset.ICMPv6Type:     {0, expr.PayloadBaseTransportHeader, 0, 1},
	ruleset.EtherType:      {0, expr.PayloadBaseLLHeader, 12, 2},
}

// metaFields are those that the kernel keeps beside the packet, with their length
// in a key.
var metaFields = map[ruleset.Field]struct {
	key expr.MetaKey
	len uint32
}{
	ruleset.L4Proto:      {expr.MetaKeyL4PROTO, 4},
	ruleset.InInterface:  {expr.MetaKeyIIFNAME, unix.IFNAMSIZ},
	ruleset.OutInterface: {expr.MetaKeyOIFNAME, unix.IFNAMSIZ},
}

// etherTypes are the values of EtherType that rules match by name (IEEE 802.1Q).
var etherTypes = map[string][]byte{"8021q": {0x81, 0x00}, "8021ad": {0x88, 0xa8}}

// etherTypeOf gives the EtherType of a family's packets.
var etherTypeOf = map[byte][]byte{unix.NFPROTO_IPV4: {0x08, 0x00}, unix.NFPROTO_IPV6: {0x86, 0xdd}}

// familyNumbers are the families that rules match by name.
var familyNumbers = map[string]byte{"ipv4": unix.NFPROTO_IPV4, "ipv6": unix.NFPROTO_IPV6}

// register gives the number of the register that begins at a 4-byte slot, as
// the kernel prints it: a 16-byte register's own number where one begins.
func register(slot uint32) uint32 {
	if slot%4 == 0 {
		return unix.NFT_REG_1 + slot/4
	}
	return unix.NFT_REG32_00 + slot
}

// lower gives the kernel's expressions of a rule in a table of a family.
func lower(r ruleset.Rule, family ruleset.Family) ([]expr.Any, error) {
	l := lowering{family: family}
	for _, e := range r.Exprs {
		if err := l.expr(e); err != nil {
			return nil, fmt.Errorf("rule %q: %w", r.Text(), err)
		}
	}
	return l.out, nil
}

type lowering struct {
	family  ruleset.Family
	out     []expr.Any
	guarded byte // the nfproto that was checked, which need not be checked again
}

func (l *lowering) add(e ...expr.Any) { l.out = append(l.out, e...) }

// load puts a field into the register at a slot, behind the check that the
// packet has such a field.
func (l *lowering) load(f ruleset.Field, slot uint32) (size uint32) {
	if m, ok := metaFields[f]; ok {
		l.add(&expr.Meta{Key: m.key, Register: register(slot)})
		return m.len
	}
	p := payloadFields[f]
	l.add(&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: register(slot), Base: p.base, Offset: p.offset, Len: p.len})
	return (p.len + 3) &^ 3
}

// guard checks the family or protocol that fields need. Without it nft could not
// load its own listing.
func (l *lowering) guard(fields ...ruleset.Field) {
	for _, f := range fields {
		if proto := payloadFields[f].proto; proto != 0 && proto != l.guarded {
			l.guarded = proto
			if l.family == ruleset.FamilyBridge { // where nfproto is that of the bridge
				l.add(&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1}, equal(etherTypeOf[proto]))
				continue
			}
			l.add(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{proto}))
		}
		if f == ruleset.ICMPv6Type {
			l.add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{byte(inventory.ICMPv6)}))
		}
	}
}

func equal(data []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

// matchBits matches a connection field, masked, against a value.
func (l *lowering) matchBits(k expr.CtKey, mask, value uint32, not bool) {
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	l.add(&expr.Ct{Key: k, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: binaryutil.NativeEndian.PutUint32(value)})
}

// statusDNAT is IPS_DST_NAT (linux/netfilter/nf_conntrack_common.h).
const statusDNAT = 1 << 5

func (l *lowering) expr(e ruleset.Expr) error {
	switch e := e.(type) {
	case ruleset.Match:
		return l.match(e)
	case ruleset.Lookup:
		l.lookup(e)
	case ruleset.VerdictMap:
		l.guard(e.Field)
		l.load(e.Field, 0)
		l.add(&expr.Lookup{SourceRegister: 1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: e.Map})
	case ruleset.FlowIs:
		switch e {
		case ruleset.Related:
			l.matchBits(expr.CtKeySTATE, expr.CtStateBitRELATED, 0, true)
		case ruleset.DNATed:
			l.matchBits(expr.CtKeySTATUS, statusDNAT, 0, true)
		case ruleset.Reply:
			l.add(&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, equal([]byte{1}))
		case ruleset.Valid:
			l.matchBits(expr.CtKeySTATE, expr.CtStateBitINVALID, 0, false)
		}
	case ruleset.MarkIs:
		l.matchBits(expr.CtKeyMARK, e.Mask, e.Value, e.Not)
	case ruleset.SetMark:
		l.add(&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(^e.Mask), Xor: binaryutil.NativeEndian.PutUint32(e.Value)},
			&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true})
	case ruleset.Note:
		l.guard(e.Field)
		l.load(e.Field, 0)
		l.add(&expr.Dynset{SrcRegKey: 1, SetName: e.Set, Operation: unix.NFT_DYNSET_OP_UPDATE})
	case ruleset.Limit:
		l.add(&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(e.Rate), Unit: expr.LimitTimeSecond, Burst: e.Burst()})
	case ruleset.Log:
		l.add(&expr.Log{Key: logKey, Group: ruleset.LogGroup, Snaplen: ruleset.LogSnaplen, QThreshold: ruleset.LogThreshold, Data: []byte(e.Prefix)})
	case ruleset.Count:
		l.add(&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: e.Counter})
	case ruleset.Reject:
		if e.Reset {
			l.add(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
		} else {
			l.add(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})
		}
	case ruleset.Verdict:
		l.add(&expr.Verdict{Kind: verdictKinds[e.Kind], Chain: e.Chain})
	default:
		return fmt.Errorf("no netlink form of %T", e)
	}
	return nil
}

// logKey are the attributes that a Log has.
const logKey = 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN | 1<<unix.NFTA_LOG_QTHRESHOLD

var verdictKinds = map[ruleset.VerdictKind]expr.VerdictKind{
	ruleset.Accept: expr.VerdictAccept, ruleset.Drop: expr.VerdictDrop,
	ruleset.Return: expr.VerdictReturn, ruleset.Jump: expr.VerdictJump, ruleset.Goto: expr.VerdictGoto,
}

func (l *lowering) lookup(e ruleset.Lookup) {
	var fields []ruleset.Field
	for _, f := range e.Key {
		if f != "" {
			fields = append(fields, f)
		}
	}
	l.guard(fields...)
	slot := uint32(0)
	for _, f := range fields {
		slot += l.load(f, slot) / 4
	}
	l.add(&expr.Lookup{SourceRegister: 1, SetName: e.Set, Invert: e.Not})
}

func (l *lowering) match(m ruleset.Match) error {
	switch m.Field {
	case ruleset.InInterface, ruleset.OutInterface:
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, m.Value)
		l.load(m.Field, 0)
		l.add(equal(name))
	case ruleset.EtherType:
		l.load(m.Field, 0)
		l.add(equal(etherTypes[m.Value]))
	case ruleset.NFProto:
		l.add(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{familyNumbers[m.Value]}))
	case ruleset.L4Proto:
		l.add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{byte(ruleset.ProtocolNumber(m.Value))}))
	case ruleset.HopLimit:
		n, err := strconv.ParseUint(m.Value, 10, 8)
		if err != nil {
			return err
		}
		l.guard(m.Field)
		l.load(m.Field, 0)
		l.add(equal([]byte{byte(n)}))
	default:
		return l.matchAddress(m)
	}
	return nil
}

// matchAddress compares an address, or the leading bytes of a prefix: whole
// bytes are all that is in use.
func (l *lowering) matchAddress(m ruleset.Match) error {
	a, err := netip.ParseAddr(m.Value)
	n := a.BitLen()
	if err != nil {
		p, err := netip.ParsePrefix(m.Value)
		if err != nil {
			return err
		}
		if p.Bits()%8 != 0 {
			return fmt.Errorf("prefix %s does not end at a byte", p)
		}
		a, n = p.Addr(), p.Bits()
	}
	l.guard(m.Field)
	p := payloadFields[m.Field]
	l.add(&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: p.base, Offset: p.offset, Len: uint32(n / 8)},
		equal(a.AsSlice()[:n/8]))
	return nil
}

// beUint32 reads a number in network order.
func beUint32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
