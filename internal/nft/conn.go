// Package nft brings the kernel's nftables table in line with a ruleset.Table:
// it lowers transactions to netlink messages and reads a table back. It is the
// only importer of google/nftables.
//
// What always holds: one Conn writes one inet table and nothing else. Each
// transaction is one netlink batch: the kernel applies all of it or nothing.
package nft

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// ErrUncertain says that the kernel's answer was lost after a transaction was
// sent (ENOBUFS): it may be in force or not. Open a new Conn and Read.
var ErrUncertain = errors.New("the kernel's answer was lost: the change may be in force or not")

// Conn is a netlink socket for one table. It is not safe for concurrent use.
type Conn struct {
	conn   *nftables.Conn
	family ruleset.Family
	table  *nftables.Table
	owned  bool
}

// Open connects to the nftables of the calling thread's network namespace, for the
// inet table of a name.
//
// Where the kernel has the table flags owner and persist (6.9 and later), the
// table belongs to this socket: other programs get EPERM on it and `nft flush
// ruleset` passes it by, and it stays when the socket closes.
func Open(table string) (*Conn, error) {
	return open(table, ruleset.FamilyINet, nftables.TableFamilyINet)
}

// OpenBridge is Open for the table of the bridge family.
func OpenBridge(table string) (*Conn, error) {
	return open(table, ruleset.FamilyBridge, nftables.TableFamilyBridge)
}

func open(table string, family ruleset.Family, number nftables.TableFamily) (*Conn, error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open netlink socket for nftables: %w", err)
	}
	return &Conn{conn: c, family: family, table: &nftables.Table{Name: table, Family: number}}, nil
}

func (c *Conn) String() string { return fmt.Sprintf("table %s %s", c.family, c.table.Name) }

// Close closes the socket. The table stays as it is.
func (c *Conn) Close() error { return c.conn.CloseLasting() }

// Claim makes the table, empty, or takes over the one that is there.
func (c *Conn) Claim() error {
	owned := *c.table
	owned.Flags = nftables.TableFlagOwner | nftables.TableFlagPersist
	c.conn.AddTable(&owned)
	err := c.conn.Flush()
	switch {
	case err == nil:
		c.owned = true
		return nil
	case errors.Is(err, unix.EPERM) && unix.Geteuid() == 0:
		if live := c.owner(); live != 0 {
			return fmt.Errorf("%s belongs to another program's netlink socket (port %d): is another edgepolicyd running? Stop it first: %w", c, live, err)
		}
	}
	// An older kernel, or a table made without an owner: go on without.
	c.conn.AddTable(c.table)
	if err := c.conn.Flush(); err != nil {
		return fmt.Errorf("make %s: %w%s", c, err, remedy(err))
	}
	return nil
}

// Owned says that Claim made the table this socket's: no other can change it.
func (c *Conn) Owned() bool { return c.owned }

func remedy(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return " (CAP_NET_ADMIN is needed: run as root, or as the systemd unit does)"
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL):
		return " (does the kernel have nf_tables? try: modprobe nf_tables)"
	}
	return ""
}

// owner gives the port id of the socket that owns the table, 0 for none.
func (c *Conn) owner() uint32 {
	tables, err := c.conn.ListTablesOfFamily(c.table.Family)
	if err != nil {
		return 0
	}
	for _, t := range tables {
		if t.Name == c.table.Name {
			return t.Owner
		}
	}
	return 0
}

// Present says whether the table is there.
func (c *Conn) Present() (bool, error) {
	tables, err := c.conn.ListTablesOfFamily(c.table.Family)
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == c.table.Name {
			return true, nil
		}
	}
	return false, nil
}

// Generation gives the number of the last change to any nftables table in the
// network namespace, ours included.
func (c *Conn) Generation() (uint32, error) {
	g, err := c.conn.GetGen()
	if err != nil {
		return 0, fmt.Errorf("read the ruleset's generation: %w", err)
	}
	return g.ID, nil
}

// ErrForeign says that the table of this name is another program's.
var ErrForeign = errors.New("it was not made by edgepolicyd: another program's table is never written; choose another name with `table:` in the configuration")

// Delete takes the table away and says whether it was there. The table of another
// program stays, and is ErrForeign.
func (c *Conn) Delete() (bool, error) {
	t, err := c.Read()
	if err != nil || t == nil {
		return false, err
	}
	if !t.Ours() {
		return true, fmt.Errorf("%s: %w", c, ErrForeign)
	}
	c.conn.DelTable(c.table)
	if err := c.conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return true, fmt.Errorf("delete %s: %w%s", c, err, remedy(err))
	}
	return true, nil
}

// DeleteBridge takes the table of the bridge family away, if there is one and it is
// ours.
func DeleteBridge(table string) error {
	c, err := OpenBridge(table)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Delete(); !errors.Is(err, ErrForeign) {
		return err
	}
	return nil
}

// Apply sends the transactions in order. On an error those before it are in
// force; ErrUncertain says that the last one may be. The Conn must not be used
// after an error.
func (c *Conn) Apply(list []ruleset.Transaction) error {
	for i, t := range list {
		if err := c.apply(t); err != nil {
			if errors.Is(err, unix.ENOBUFS) {
				err = errors.Join(ErrUncertain, err)
			}
			return fmt.Errorf("transaction %d of %d (%d operations): %w", i+1, len(list), len(t), err)
		}
	}
	return nil
}

func (c *Conn) apply(t ruleset.Transaction) error {
	for _, op := range t { // chains refer to each other and to sets: empty all that go before deleting one
		if op.Kind == ruleset.DeleteChain {
			c.conn.FlushChain(c.chain(op.Chain))
		}
	}
	for _, op := range t { // maps refer to chains
		if op.Kind == ruleset.DeleteSet {
			c.conn.DelSet(c.set(op.Set))
		}
	}
	for _, op := range t {
		if op.Kind == ruleset.DeleteChain {
			c.conn.DelChain(c.chain(op.Chain))
		}
	}
	for _, op := range t { // by these the table is known to be ours, however far this comes
		if op.Kind == ruleset.AddSet && op.Set.Identifies() {
			if err := c.queue(op); err != nil {
				return err
			}
		}
	}
	for _, op := range t { // and make all that come before one gets its rules
		if op.Kind == ruleset.AddChain {
			c.conn.AddChain(c.chain(op.Chain))
		}
	}
	small := unreachable(t)
	for i, op := range t {
		if small && i%batchSize == 0 {
			if err := c.conn.Flush(); err != nil {
				return err
			}
		}
		if op.Kind == ruleset.AddSet && op.Set.Identifies() {
			continue // done above
		}
		if err := c.queue(op); err != nil {
			return err
		}
	}
	return c.conn.Flush()
}

// batchSize is how many operations of a large transaction go to the kernel at a
// time, where that is no difference: a whole table's messages are more memory
// than all that the daemon needs otherwise.
const batchSize = 64

// unreachable says that a transaction only makes what no packet can come to: its
// parts may come one after the other.
func unreachable(t ruleset.Transaction) bool {
	return !slices.ContainsFunc(t, func(op ruleset.Op) bool {
		return op.Kind > ruleset.AddChain || op.Chain != nil && op.Chain.Hook != nil
	})
}

// queue adds one operation's messages to the batch.
func (c *Conn) queue(op ruleset.Op) error {
	switch op.Kind {
	case ruleset.AddCounter:
		c.conn.AddObj(c.counter(op.Name))
	case ruleset.DeleteCounter:
		c.conn.DeleteObject(c.counter(op.Name))
	case ruleset.AddSet:
		s := c.set(op.Set)
		if err := c.conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
		return c.elements(op.Set, s, op.Set.Elements, c.conn.SetAddElements)
	case ruleset.AddElements:
		return c.elements(op.Set, c.set(op.Set), op.Elements, c.conn.SetAddElements)
	case ruleset.DeleteElements:
		return c.elements(op.Set, c.set(op.Set), op.Elements, c.conn.SetDeleteElements)
	case ruleset.AddChain:
		return c.rules(op.Chain)
	case ruleset.EditChain:
		c.conn.FlushChain(c.chain(op.Chain))
		return c.rules(op.Chain)
	}
	return nil
}

func (c *Conn) counter(name string) *nftables.NamedObj {
	return &nftables.NamedObj{Table: c.table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}}
}

// hookNumbers are the hooks in use; those of inet and bridge have the same numbers.
var hookNumbers = map[string]*nftables.ChainHook{
	"forward":    nftables.ChainHookForward,
	"input":      nftables.ChainHookInput,
	"prerouting": nftables.ChainHookPrerouting,
}

func (c *Conn) chain(ch *ruleset.Chain) *nftables.Chain {
	n := &nftables.Chain{Name: ch.Name, Table: c.table}
	if ch.Hook != nil {
		accept := nftables.ChainPolicyAccept
		n.Type, n.Policy = nftables.ChainTypeFilter, &accept
		n.Hooknum = hookNumbers[ch.Hook.Name]
		n.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(ch.Hook.Priority))
	}
	return n
}

func (c *Conn) rules(ch *ruleset.Chain) error {
	target := &nftables.Chain{Name: ch.Name, Table: c.table}
	for _, r := range ch.Rules {
		exprs, err := lower(r, c.family)
		if err != nil {
			return fmt.Errorf("chain %s: %w", ch.Name, err)
		}
		rule := &nftables.Rule{Table: c.table, Chain: target, Exprs: exprs}
		if r.Comment != "" {
			rule.UserData = userdata.AppendString(nil, userdata.TypeComment, r.Comment)
		}
		c.conn.AddRule(rule)
	}
	return nil
}
