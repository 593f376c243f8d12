package nft

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// Counters reads the table's counters, by name. They count from 0 when they are
// made. Of a table that is not there, there are none.
func (c *Conn) Counters() (map[string]ruleset.Counts, error) {
	objects, err := c.conn.GetNamedObjects(c.table)
	if err != nil {
		return nil, fmt.Errorf("read the counters of %s: %w", c, err)
	}
	counts := make(map[string]ruleset.Counts, len(objects))
	for _, o := range objects {
		if n, ok := o.(*nftables.NamedObj); ok {
			if counter, ok := n.Obj.(*expr.Counter); ok {
				counts[n.Name] = ruleset.Counts{Packets: counter.Packets, Bytes: counter.Bytes}
			}
		}
	}
	return counts, nil
}
