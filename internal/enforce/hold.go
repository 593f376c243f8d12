package enforce

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/nft"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// holdReport is after how long an address that is held, or a pod that waits for
// its labels, is told of.
const holdReport = 5 * time.Second

// maxHeld is how many held addresses are told at once.
const maxHeld = 20

// held is what is known of a held address.
type held struct {
	first, last time.Time // packets
}

// lookAtHeld asks the kernel which addresses it holds, and tells of those that go
// on trying.
func (e *Enforcer) lookAtHeld() {
	if e.kernel == nil || !e.compiler.Interfaces.Hold || e.flushed != nil {
		return
	}
	packets, seen, err := e.kernel.Held()
	if err == nil && e.bridgeConn != nil && e.bridgeActual != nil {
		var more uint64
		var others []nft.Held
		more, others, err = e.bridgeConn.Held()
		packets, seen = packets+more, append(seen, others...)
	}
	if err != nil {
		e.log.Debug("held addresses can't be read", "error", err)
		return
	}
	changed := packets != e.heldPackets || len(seen) != len(e.held)
	e.heldPackets = packets
	now := map[netip.Addr]held{}
	for _, s := range seen {
		h, ok := e.held[s.Address]
		if !ok {
			h.first = s.Last
		}
		if s.Last.After(h.last) {
			h.last = s.Last
		}
		now[s.Address] = h
		if h.last.Sub(h.first) >= holdReport && !e.heldTold[s.Address] && len(e.heldTold) < maxHeld {
			e.heldTold[s.Address] = true
			audit.PodHeld.Log(e.log, fmt.Sprintf("%s is held: an address of the pod ranges that is no known pod's has been trying since %s", s.Address, h.first.Format(time.RFC3339)),
				slog.String(audit.KeyAddress, s.Address.String()), slog.String(audit.KeyReason, "no source has told of a pod with this address"))
		}
	}
	maps.DeleteFunc(e.heldTold, func(a netip.Addr, _ bool) bool {
		_, still := now[a]
		if !still {
			audit.Recovered.Log(e.log, fmt.Sprintf("no longer: %s is held: it is a known pod's, or tries no more", a), slog.String(audit.KeyAddress, a.String()))
		}
		return !still
	})
	if e.held = now; changed {
		e.publish()
	}
}

// waiting is a pod that has waited long for its labels.
type waiting struct{ pod, text string }

// waitingSince remembers since when pods wait for their labels, and says which have
// waited too long.
func (e *Enforcer) waitingSince(pods []*inventory.Pod) []waiting {
	since := map[inventory.Key]time.Time{}
	var late []waiting
	for _, p := range pods {
		t, ok := e.waits[p.Key]
		if !ok {
			t = time.Now()
		}
		since[p.Key] = t
		if time.Since(t) >= holdReport {
			late = append(late, waiting{p.Key.String(), fmt.Sprintf("pod %s (%v) is held: its CNI result is there, but no source that is configured has told its labels", p.Key, p.Addresses)})
		}
	}
	e.waits = since
	return late
}

// measure notes how long it took from the CNI result of a new pod to the kernel.
func (e *Enforcer) measure() {
	now := time.Now()
	seen := make(map[string]bool, len(e.seen))
	for _, p := range e.snapshot.Pods {
		for _, a := range p.Attachments {
			seen[a.Sandbox+a.Network] = true
			if e.seen[a.Sandbox+a.Network] || a.Written.Before(e.started) || e.flushed != nil {
				continue
			}
			took := now.Round(0).Sub(a.Written) // both by the wall clock, as files have no other
			if took < 0 || took > time.Minute {
				continue // the clock was set
			}
			e.latency.Pods++
			e.latency.Last, e.latency.Most = status.Milliseconds(took), max(e.latency.Most, status.Milliseconds(took))
			e.log.Info("new pod", "pod", p.Key, "addresses", p.Addresses, "interfaces", a.Interfaces, "sinceResult", took)
		}
	}
	e.seen = seen
}

// holdStatus is what status says of the hold.
func (e *Enforcer) holdStatus() status.Hold {
	h := status.Hold{On: e.compiler.Interfaces.Hold, Ranges: []string{}, Packets: e.heldPackets, Addresses: []string{}, Latency: e.latency}
	for _, r := range e.ranges {
		h.Ranges = append(h.Ranges, r.String())
	}
	for _, a := range slices.SortedFunc(maps.Keys(e.held), netip.Addr.Compare) {
		if e.held[a].last.Sub(e.held[a].first) >= holdReport && len(h.Addresses) < maxHeld {
			h.Addresses = append(h.Addresses, a.String())
		}
	}
	return h
}
