package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
)

// network is what the configuration of a CNI network says that matters here.
type network struct {
	name     string
	loopback bool // it is of the loopback plugin alone
	ranges   []netip.Prefix
	bridges  []string
	warnings []string // what of it is not understood
}

// isConfig says whether libcni would read a file of this name as configuration
// (libcni.ConfFiles, and .json as the runtimes ask for).
func isConfig(name string) bool {
	switch filepath.Ext(name) {
	case ".conf", ".conflist", ".json":
		return true
	}
	return false
}

// plugin is the configuration of one plugin, or the list of a network's plugins.
// What only some plugins understand is read when it is known which one it is.
type plugin struct {
	Name      string          `json:"name"`
	Type      string          `json:"type"`
	Plugins   []plugin        `json:"plugins"`
	Bridge    json.RawMessage `json:"bridge"`
	IPAM      json.RawMessage `json:"ipam"`
	Delegate  json.RawMessage `json:"delegate"`  // flannel's and others' who call another plugin
	Delegates json.RawMessage `json:"delegates"` // multus's
}

// hostLocal is the configuration of the IPAM plugin host-local: each of ranges is
// a set of which a pod gets one address, subnet is the older form of a single one.
type hostLocal struct {
	Subnet string `json:"subnet"`
	Ranges [][]struct {
		Subnet string `json:"subnet"`
	} `json:"ranges"`
}

// parseConfig reads the configuration of a network, a list or a single plugin.
func parseConfig(data []byte) (*network, error) {
	var p plugin
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("it is no CNI configuration: %w", err)
	}
	if p.Type == "" && len(p.Plugins) == 0 {
		return nil, errors.New("it is no CNI configuration: it has neither type nor plugins")
	}
	n := &network{name: p.Name, loopback: p.Type == "loopback" || len(p.Plugins) > 0}
	for _, x := range p.Plugins {
		n.loopback = n.loopback && x.Type == "loopback"
	}
	n.add(&p, 0)
	slices.SortFunc(n.ranges, netip.Prefix.Compare)
	n.ranges = slices.Compact(n.ranges)
	n.bridges = distinct(n.bridges)
	return n, nil
}

// maxDepth is how many plugins call one another: each level is read once more.
const maxDepth = 8

// add takes what a plugin and those that it calls say.
func (n *network) add(p *plugin, depth int) {
	if depth == maxDepth {
		n.warn(fmt.Sprintf("plugins call plugins more than %d times: the rest is not looked at", maxDepth))
		return
	}
	for i := range p.Plugins {
		n.add(&p.Plugins[i], depth+1)
	}
	if p.Type == "bridge" {
		bridge := "cni0" // the plugin's own default
		if json.Unmarshal(p.Bridge, &bridge); bridge != "" {
			n.bridges = append(n.bridges, bridge)
		}
	}
	n.addIPAM(p.IPAM)
	var delegate plugin
	if p.Type == "flannel" {
		delegate.Type = "bridge" // unless it says otherwise
	}
	// Of a plugin that means something else by these words nothing is taken.
	if err := json.Unmarshal(p.Delegate, &delegate); err == nil || delegate.Type != "" {
		n.add(&delegate, depth+1)
	}
	var delegates []plugin
	if json.Unmarshal(p.Delegates, &delegates) == nil {
		for i := range delegates {
			n.add(&delegates[i], depth+1)
		}
	}
}

// addIPAM takes the ranges of host-local. Other IPAM plugins write theirs in
// ways of their own.
func (n *network) addIPAM(data json.RawMessage) {
	var kind struct {
		Type string `json:"type"`
	}
	if json.Unmarshal(data, &kind) != nil || kind.Type != "host-local" {
		return
	}
	var h hostLocal
	if err := json.Unmarshal(data, &h); err != nil {
		n.warn("its ipam is not that of host-local: " + err.Error())
		return
	}
	if h.Subnet != "" {
		n.addRange(h.Subnet)
	}
	for _, set := range h.Ranges {
		for _, r := range set {
			n.addRange(r.Subnet)
		}
	}
}

func (n *network) addRange(text string) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		n.warn(fmt.Sprintf("subnet %q is no range such as 10.1.0.0/16: give the pods' range as podRanges", text))
		return
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	n.ranges = append(n.ranges, p.Masked())
}

// maxWarnings of one configuration are told: it may be a megabyte of nonsense.
const maxWarnings = 10

func (n *network) warn(text string) {
	if len(n.warnings) < maxWarnings {
		n.warnings = append(n.warnings, text)
	}
}
