package denied

import (
	"fmt"
	"net/netip"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// Subject is whose denied packets a counter of the table counts.
type Subject struct {
	Counter   string // its name
	Pod       *inventory.Pod
	Direction inventory.Direction
	Policies  []string // that isolate the pod, the first of them; see maxPolicies
	Audited   bool     // they only would
}

// Names says who is who in one table.
type Names struct {
	Subjects map[string]*Subject // by the prefix that their packets are shown with
	pods     map[netip.Addr]string
	gateway  map[netip.Addr]bool
}

// maxPolicies is how many policies are named of a pod and direction.
const maxPolicies = 10

// names gives the first of them, and how many there are more.
func names(policies []inventory.Key) (list []string) {
	for i, k := range policies {
		if i == maxPolicies {
			return append(list, fmt.Sprintf("and %d more", len(policies)-i))
		}
		list = append(list, k.String())
	}
	return list
}

// NewNames makes them of what the table was made from.
func NewNames(isolations []policy.Isolation, s *inventory.Snapshot) *Names {
	n := &Names{Subjects: map[string]*Subject{}, pods: map[netip.Addr]string{}, gateway: map[netip.Addr]bool{}}
	for _, iso := range isolations {
		for _, d := range inventory.Directions {
			if side := iso.Sides[d]; side != nil {
				counter := ruleset.CounterName(d, iso.Pod.Key, side.Audit)
				n.Subjects[ruleset.LogPrefix(counter, side.ID)] = &Subject{counter, iso.Pod, d, names(side.Policies), side.Audit}
			}
		}
	}
	for _, p := range s.Pods {
		if p.Enforceable() {
			for _, a := range p.Addresses {
				n.pods[a] = p.Key.String()
			}
		}
	}
	for _, a := range s.Gateway {
		n.gateway[a] = true
	}
	return n
}

func (n *Names) end(a netip.Addr) status.DeniedEnd {
	if n.gateway[a] {
		return status.DeniedEnd{Address: a, Gateway: true}
	}
	return status.DeniedEnd{Address: a, Pod: n.pods[a]}
}
