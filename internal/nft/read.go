package nft

import (
	"fmt"

	"github.com/google/nftables"

	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// Read gives the table as the kernel holds it, nil if it is not there. Its mark
// has the epoch of the forward chain, 0 if that was not to be read.
func (c *Conn) Read() (*ruleset.Table, error) {
	there, err := c.Present()
	if err != nil || !there {
		return nil, err
	}
	t := &ruleset.Table{Family: c.family, Name: c.table.Name, Counters: map[string]bool{}, Sets: map[string]*ruleset.Set{}, Chains: map[string]*ruleset.Chain{}}
	objects, err := c.conn.GetNamedObjects(c.table)
	if err != nil {
		return nil, fmt.Errorf("read the counters of %s: %w", c, err)
	}
	for _, o := range objects {
		if n, ok := o.(*nftables.NamedObj); ok && n.Type == nftables.ObjTypeCounter {
			t.Counters[n.Name] = true
		}
	}
	sets, err := c.conn.GetSets(c.table)
	if err != nil {
		return nil, fmt.Errorf("read the sets of %s: %w", c, err)
	}
	for _, n := range sets {
		if n.Anonymous {
			continue
		}
		s, err := c.readSet(n)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c, err)
		}
		t.Sets[s.Name] = s
	}
	return t, c.readChains(t)
}

func (c *Conn) readChains(t *ruleset.Table) error {
	chains, err := c.conn.ListChainsOfTableFamily(c.table.Family)
	if err != nil {
		return fmt.Errorf("read the chains of %s: %w", c, err)
	}
	for _, n := range chains {
		if n.Table.Name != t.Name {
			continue
		}
		ch := &ruleset.Chain{Name: n.Name, Hook: readHook(n)}
		rules, err := c.conn.GetRules(c.table, n)
		if err != nil {
			return fmt.Errorf("read the rules of chain %s: %w", n.Name, err)
		}
		for _, r := range rules {
			ch.Rules = append(ch.Rules, raise(r))
		}
		t.Chains[ch.Name] = ch
	}
	t.Mark = t.MarkInForce()
	return nil
}

func readHook(n *nftables.Chain) *ruleset.Hook {
	if n.Hooknum == nil || n.Priority == nil {
		return nil
	}
	h := &ruleset.Hook{Name: fmt.Sprintf("hook %d", *n.Hooknum), Priority: int32(*n.Priority)}
	for name, number := range hookNumbers {
		if *number == *n.Hooknum {
			h.Name = name
		}
	}
	if n.Policy != nil && *n.Policy != nftables.ChainPolicyAccept {
		h.Name += " policy drop" // not ours: makes the chain differ
	}
	return h
}
