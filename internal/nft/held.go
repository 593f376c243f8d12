package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// Held is an address that the table holds, and when its last packet came.
type Held struct {
	Address netip.Addr
	Last    time.Time
}

// Held gives the number of packets that were held so far, and the addresses of
// the pod ranges that tried in the last half minute. A table that holds nothing
// gives nothing.
func (c *Conn) Held() (packets uint64, list []Held, err error) {
	o, err := c.conn.GetObject(&nftables.NamedObj{Table: c.table, Name: ruleset.HoldCounter, Type: nftables.ObjTypeCounter})
	if errors.Is(err, unix.ENOENT) {
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, fmt.Errorf("read counter %s of %s: %w", ruleset.HoldCounter, c, err)
	}
	if n, ok := o.(*nftables.NamedObj); ok {
		if counter, ok := n.Obj.(*expr.Counter); ok {
			packets = counter.Packets
		}
	}
	for _, name := range ruleset.HeldSets {
		set, err := c.conn.GetSetByName(c.table, name)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return 0, nil, fmt.Errorf("read set %s of %s: %w", name, c, err)
		}
		elements, err := c.conn.GetSetElements(set)
		if err != nil {
			return 0, nil, fmt.Errorf("read set %s of %s: %w", name, c, err)
		}
		now := time.Now()
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				list = append(list, Held{a, now.Add(e.Expires - set.Timeout)})
			}
		}
	}
	return packets, list, nil
}
