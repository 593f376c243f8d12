package api

import (
	"bytes"
	"context"
	"encoding/json"
	"hash/maphash"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// resource is one of the three lists that are followed. What the comments say is
// Source.mu's to guard; the rest is used by the follower alone.
type resource struct {
	name     string // in a URL, and for the user
	kind     inventory.Kind
	path     string
	selector string                             // fieldSelector, or empty
	wake     chan struct{}                      // there is reason to ask the server now
	stop     atomic.Pointer[context.CancelFunc] // ends the watch that is open; nil if none is
	listing  chan struct{}                      // holds a token while the list is read
	polled   bool                               // it can't be watched
	polls    int                                // since then
	bad      int                                // watches in a row without a sign of life

	// Guarded by Source.mu.
	entries   map[inventory.Key]*entry
	version   string    // the resourceVersion that the entries are of
	replaced  int       // how many lists made entries anew; watches of older ones are out of date
	listed    bool      // since the daemon started
	http1     bool      // how the last list came
	confirmed time.Time // when entries were last known to be current
	failing   time.Time // since when they are not; zero if they are
	err       error     // why; of several of a class the first
	emptied   time.Time // since when its lists are empty and of no version, where there were entries
}

func newResource(name string, kind inventory.Kind, path string) *resource {
	return &resource{
		name: name, kind: kind, path: path, wake: make(chan struct{}, 1), listing: make(chan struct{}, 1),
		entries: map[inventory.Key]*entry{},
	}
}

// entry is an object as the server has it.
type entry struct {
	key         inventory.Key
	sum         uint64 // of its bytes, so that lists that are polled need not be decoded again
	object      any    // *inventory.Policy, *Namespace or *Pod: the last valid version; nil if there was none
	diagnostics []manifest.Diagnostic
	invalid     string // why the object as it is can't be in force; empty if it is
}

var seed = maphash.MakeSeed()

// headOf gives what all kinds have; nil for nil.
func headOf(object any) *inventory.Head {
	switch o := object.(type) {
	case *inventory.Policy:
		return &o.Head
	case *inventory.Namespace:
		return &o.Head
	case *inventory.Pod:
		return &o.Head
	}
	return nil
}

// read decodes an object as the server sends it. It gives nil for what is not
// ours to know, and an error for what has no name.
func (s *Source) read(r *resource, data []byte) (*entry, error) {
	doc, diagnostics := manifest.Served(Name, r.kind, data)
	if doc.Key.Name == "" {
		return nil, &answerError{"an object without a name among the " + r.name}
	}
	e := &entry{key: doc.Key, sum: maphash.Bytes(seed, data), diagnostics: diagnostics}
	switch {
	case !doc.Valid:
		e.invalid = "it can't be read"
		for _, d := range slices.Backward(diagnostics) {
			if d.Severity == manifest.Error {
				e.invalid = d.Message
				if d.Field != "" {
					e.invalid = d.Field + ": " + d.Message
				}
			}
		}
	case doc.Policy != nil:
		e.object = doc.Policy
	case doc.Namespace != nil:
		e.object = doc.Namespace
	case doc.Pod != nil:
		doc.Pod.Remote = doc.Pod.Node != s.config.NodeName
		e.object = doc.Pod
	}
	if r.kind == inventory.KindPod && !s.wanted(nodeOf(doc.Pod, data)) {
		return e, errElsewhere
	}
	return e, nil
}

// errElsewhere is of a pod that is none of ours.
var errElsewhere = &answerError{"a pod of another node"}

// wanted says whether the pods of a node are read. A server may ignore the field
// selector, so every pod is asked. A pod without a node runs nowhere yet.
func (s *Source) wanted(node string) bool {
	return node != "" && (s.config.AllPods || node == s.config.NodeName)
}

// nodeOf gives a pod's node, also of one that is not valid.
func nodeOf(pod *inventory.Pod, data []byte) string {
	if pod != nil {
		return pod.Node
	}
	var p struct {
		Spec struct {
			NodeName string `json:"nodeName"`
		} `json:"spec"`
	}
	_ = json.Unmarshal(data, &p) // what can't be read is reported of the whole object
	return p.Spec.NodeName
}

// after makes e the successor of what was known under its key: an object that says
// the same keeps its pointer, an invalid one its last valid version.
func (e *entry) after(before *entry) *entry {
	if before == nil {
		return e
	}
	old, now := headOf(before.object), headOf(e.object)
	if now == nil || old != nil && bytes.Equal(old.JSON, now.JSON) {
		e.object = before.object
	}
	return e
}

// replace takes a complete list.
func (r *resource) replace(list map[inventory.Key]*entry, version string) (changed bool) {
	for key, e := range list {
		e.after(r.entries[key])
	}
	changed = !r.listed || !maps.EqualFunc(list, r.entries, same)
	r.entries, r.version, r.listed = list, version, true
	r.replaced++
	return changed
}

// same says whether two entries are the same to a report.
func same(a, b *entry) bool {
	return a == b || a.object == b.object && a.invalid == b.invalid && slices.Equal(a.diagnostics, b.diagnostics)
}

// bySum gives the entries by the sum of their bytes.
func (r *resource) bySum() map[uint64]*entry {
	sums := make(map[uint64]*entry, len(r.entries))
	for _, e := range r.entries {
		if e.sum != 0 {
			sums[e.sum] = e
		}
	}
	return sums
}

// nudge makes the follower read the list now.
func (r *resource) nudge() {
	if stop := r.stop.Load(); stop != nil {
		(*stop)()
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// remember takes what was known when the daemon ended, where no list was read yet.
func (s *Source) remember(last inventory.Objects) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := func(r *resource, object any) {
		if h := headOf(object); !r.listed && r.entries[h.Key] == nil {
			r.entries[h.Key] = &entry{key: h.Key, object: object}
		}
	}
	for _, p := range last.Policies {
		keep(s.resources[0], p)
	}
	for _, n := range last.Namespaces {
		keep(s.resources[1], n)
	}
	for _, p := range last.Pods {
		if !s.wanted(p.Node) {
			continue
		}
		if remote := p.Node != s.config.NodeName; remote != p.Remote {
			other := *p
			other.Remote, p = remote, &other
		}
		keep(s.resources[2], p)
	}
	s.remembered = len(last.Policies)+len(last.Namespaces)+len(last.Pods) > 0
}
