package cluster

import (
	"fmt"
	"net/netip"
	"slices"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// Snapshot decodes the YAML as the daemon does. It fails if any document is
// rejected: a generated one is valid.
func (c Cluster) Snapshot() (*inventory.Snapshot, error) {
	s := &inventory.Snapshot{Gateway: slices.Clone(c.Gateway)}
	f := manifest.Decode("directory", "cluster.yaml", c.YAML)
	for _, d := range f.Diagnostics {
		if d.Severity == manifest.Error {
			return nil, fmt.Errorf("decode generated cluster: %s", d)
		}
	}
	for _, d := range f.Documents {
		switch {
		case d.Pod != nil:
			s.Pods = append(s.Pods, d.Pod)
		case d.Namespace != nil:
			s.Namespaces = append(s.Namespaces, d.Namespace)
		case d.Policy != nil:
			s.Policies = append(s.Policies, d.Policy)
		}
	}
	if got, want := len(f.Documents), c.documents(); got != want || len(s.Pods)+len(s.Namespaces)+len(s.Policies) != want {
		return nil, fmt.Errorf("decode generated cluster: %d documents of %d", got, want)
	}
	slices.SortFunc(s.Gateway, netip.Addr.Compare)
	slices.SortFunc(s.Pods, func(a, b *inventory.Pod) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(s.Namespaces, func(a, b *inventory.Namespace) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(s.Policies, func(a, b *inventory.Policy) int { return a.Key.Compare(b.Key) })
	return s, nil
}

// documents counts what render writes.
func (c Cluster) documents() int {
	n := len(c.pods) + len(c.policies)
	for _, namespace := range c.namespaces {
		if namespace.object {
			n++
		}
	}
	return n
}
