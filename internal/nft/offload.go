package nft

import (
	"fmt"

	"github.com/google/nftables"
)

// Offloaded gives the interfaces in flow tables of any program, each with the flow
// table's name. The kernel takes established flows between them past the forward
// hook, where nothing of ours sees them (S34).
func Offloaded() (map[string]string, error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open netlink socket for nftables: %w", err)
	}
	defer c.CloseLasting()
	tables, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	out := map[string]string{}
	for _, t := range tables {
		list, err := c.ListFlowtables(t)
		if err != nil {
			return nil, fmt.Errorf("list the flow tables of table %s: %w", t.Name, err)
		}
		for _, f := range list {
			for _, device := range f.Devices {
				out[device] = fmt.Sprintf("flow table %s of table %s", f.Name, t.Name)
			}
		}
	}
	return out, nil
}
