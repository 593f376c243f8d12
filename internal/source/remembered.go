package source

import (
	"slices"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// Remembered gives, by source, what a source does not list any more of pods whose
// sandboxes live: how they were described, and the policies that they carry. A state
// that is saved needs it, or a restart would forget what runs.
func (m *Merger) Remembered() map[string]inventory.Objects {
	all := map[string]inventory.Objects{}
	seen := map[*inventory.Pod]bool{}
	for _, list := range m.memory {
		for _, d := range list {
			if seen[d.pod] {
				continue
			}
			seen[d.pod] = true
			o := all[d.pod.Origin.Source]
			o.Pods = append(o.Pods, d.pod)
			o.Policies = append(o.Policies, d.policies...)
			all[d.pod.Origin.Source] = o
		}
	}
	return all
}

// With adds what is remembered to what a report has: objects whose key it lacks, in
// the order of keys.
func With(o, remembered inventory.Objects) inventory.Objects {
	o.Pods = with(o.Pods, remembered.Pods, func(p *inventory.Pod) inventory.Key { return p.Key })
	o.Policies = with(o.Policies, remembered.Policies, func(p *inventory.Policy) inventory.Key { return p.Key })
	return o
}

func with[T any](list, more []T, key func(T) inventory.Key) []T {
	has := map[inventory.Key]bool{}
	for _, x := range list {
		has[key(x)] = true
	}
	list = slices.Clone(list)
	slices.SortFunc(more, func(a, b T) int { return key(a).Compare(key(b)) })
	for _, x := range more {
		if !has[key(x)] {
			has[key(x)] = true
			list = append(list, x)
		}
	}
	return list
}
