// Package status is how the running daemon is asked: JSON over HTTP on a unix
// socket, the server and its client.
//
// What always holds: only root and the daemon's own user are answered, whatever
// the socket's mode; a request is bounded in size and time; fields of Status are
// added, never renamed or given another meaning while Version stays the same.
package status

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"

	"edgepolicy.io/edgepolicyd/internal/explain"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/state"
)

// Version is that of the protocol: the paths and the JSON below.
const Version = 1

// DefaultSocket is where the daemon listens unless its config says otherwise.
const DefaultSocket = "/run/edgepolicyd/edgepolicyd.sock"

// The values of Status.Health.
const (
	Healthy  = "healthy"  // everything that is known is enforced as written
	Degraded = "degraded" // enforced, but something was rejected or is not enforceable
	Failed   = "failed"   // the kernel does not have what it should
)

// Status is what the daemon knows of itself.
type Status struct {
	Version       int      `json:"version"` // of this protocol
	Health        string   `json:"health"`
	Reasons       []string `json:"reasons"` // of the health, the most important first; empty if healthy
	DaemonVersion string   `json:"daemonVersion"`

	Started    time.Time `json:"started"`
	Generation uint64    `json:"generation"`         // of what is enforced; +1 with each change that reached the kernel
	LastApply  time.Time `json:"lastApply,omitzero"` // when the kernel took the last change

	Table        string `json:"table"`        // name of the nftables tables
	TablePresent bool   `json:"tablePresent"` // the kernel has it, as it should be

	Pods         int `json:"pods"`         // enforceable ones
	IsolatedPods int `json:"isolatedPods"` // in at least one direction
	Namespaces   int `json:"namespaces"`   // that have an object

	NodeName string `json:"nodeName,omitempty"` // the gateway's name as a Kubernetes node, where a source needs it
	// Offline: a source's server is out of reach; what was known last is enforced.
	Offline bool `json:"offline"`
	Hold    Hold `json:"hold"`

	Policies      []PolicyStatus  `json:"policies"`
	Sources       []SourceStatus  `json:"sources"`
	Rejected      []Rejected      `json:"rejected"`
	Unenforceable []Unenforceable `json:"unenforceable"`
	NeverIsolated []string        `json:"neverIsolated"` // pods that the config exempts (S35), "namespace/pod"
}

// PolicyStatus is one policy in force.
type PolicyStatus struct {
	Name   string    `json:"name"`           // "namespace/name"
	Source string    `json:"source"`         // where it was read
	File   string    `json:"file,omitempty"` // "/etc/edgepolicy.d/web.yaml:3"
	Since  time.Time `json:"since"`          // when this version came into force, as far as this daemon knows
	Pods   int       `json:"pods"`           // that it selects
	// Audited: it denies nothing; what it would deny is told.
	Audited bool `json:"audited,omitempty"`
}

// Hold is what becomes of addresses of the pod ranges that are no known pod's.
type Hold struct {
	On        bool     `json:"on"`
	Ranges    []string `json:"ranges"`    // that are held
	Packets   uint64   `json:"packets"`   // dropped so far by it, or as forged
	Addresses []string `json:"addresses"` // that have been trying for more than 5 s; 20 at most
	Latency   Latency  `json:"latency"`
}

// Latency is how long it took from a new pod's CNI result to the kernel.
type Latency struct {
	Pods int          `json:"pods"` // measured since the daemon started
	Last Milliseconds `json:"lastMilliseconds"`
	Most Milliseconds `json:"mostMilliseconds"`
}

// Milliseconds is a time that is written in milliseconds.
type Milliseconds time.Duration

// Float gives the number of milliseconds.
func (m Milliseconds) Float() float64 { return time.Duration(m).Seconds() * 1000 }

// MarshalJSON writes it with three digits behind the point.
func (m Milliseconds) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "%.3f", m.Float()), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (m *Milliseconds) UnmarshalJSON(data []byte) error {
	f, err := strconv.ParseFloat(string(data), 64)
	*m = Milliseconds(f * float64(time.Millisecond))
	return err
}

// SourceStatus is one source of objects.
type SourceStatus struct {
	Name     string    `json:"name"`
	Error    string    `json:"error,omitempty"` // it can't be read; what was known last is in force
	LastRead time.Time `json:"lastRead,omitzero"`
	// OfflineSince is since when its server has been out of reach.
	OfflineSince time.Time `json:"offlineSince,omitzero"`
	// AgeSeconds is how long ago its server confirmed what it serves, by a clock that
	// can't be set; absent if it has not since the daemon started.
	AgeSeconds *int64   `json:"ageSeconds,omitempty"`
	Unknown    bool     `json:"unknown,omitempty"`  // what it has was never known here
	Warnings   []string `json:"warnings,omitempty"` // "file:line:column: ..."
}

// Rejected is a document, file or object that is not in force as written.
type Rejected struct {
	Object string `json:"object,omitempty"` // "NetworkPolicy default/web"
	File   string `json:"file,omitempty"`   // "/etc/edgepolicy.d/web.yaml:3"
	Reason string `json:"reason"`
	Kept   bool   `json:"kept"` // an older version of it stays in force
}

// Unenforceable is a pod whose traffic does not pass the table (S34).
type Unenforceable struct {
	Pod    string `json:"pod"` // "namespace/name"
	Reason string `json:"reason"`
}

// ReloadResult is what a reload did.
type ReloadResult struct {
	Generation uint64   `json:"generation"`
	Changed    bool     `json:"changed"`
	Changes    []string `json:"changes"` // since the last reload, or the start: "policy default/web changed"
	Health     string   `json:"health"`  // after it
	Reasons    []string `json:"reasons"`
}

// Known is what all sources together know, for those who ask what a change would
// do.
type Known struct {
	NodeName   string             `json:"nodeName"` // pods of other nodes are peers only
	Objects    []state.Object     `json:"objects"`
	Interfaces ruleset.Interfaces `json:"interfaces"`
}

// DeniedFlow is a flow that policies denied, or would deny, as told by the packets
// that the kernel showed: it shows a few a second of each pod.
type DeniedFlow struct {
	Seq       uint64    `json:"seq"`       // higher than that of every flow whose last packet came before
	Verdict   string    `json:"verdict"`   // "denied", or "would deny" in audit mode
	Direction string    `json:"direction"` // "ingress" or "egress": of the pod whose policies they are
	Pod       string    `json:"pod"`       // "namespace/name", the one whose policies they are
	Policies  []string  `json:"policies"`  // that isolate it, "namespace/name"; of more than ten the first, and how many more
	From      DeniedEnd `json:"from"`
	To        DeniedEnd `json:"to"`
	Protocol  string    `json:"protocol"`       // "TCP", "ICMP", or a number
	Port      uint16    `json:"port,omitempty"` // destination port, of protocols that have ports
	Interface string    `json:"interface"`      // that the last packet came in by
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
	Packets   uint64    `json:"packets"` // that were shown
	// Stray: none of the packets begins a TCP connection; answers of a connection that
	// conntrack has forgotten look so.
	Stray bool `json:"stray,omitempty"`
}

// DeniedEnd is one end of a DeniedFlow.
type DeniedEnd struct {
	Address netip.Addr `json:"address"`
	Pod     string     `json:"pod,omitempty"` // "namespace/name", if it is a known pod's
	Gateway bool       `json:"gateway,omitempty"`
}

// Daemon is what the server asks. Its methods are called by several goroutines
// at once.
type Daemon interface {
	Status() Status
	// Reload reads the sources now on behalf of somebody ("uid 0") and returns when
	// the kernel has the result.
	Reload(ctx context.Context, by string) (ReloadResult, error)
	// Flush takes the tables away on behalf of a user and stops enforcing.
	Flush(ctx context.Context, uid uint32) error
	// Snapshot gives what is known, and the options it is judged by; an error if
	// it is not enforced.
	Snapshot() (*inventory.Snapshot, inventory.Options, error)
	// Known gives what is known of all sources.
	Known() Known
	// Table gives the table as nft text: the whole, or the part of the pod
	// "namespace/name".
	Table(pod string) (string, error)
	// Explain says why a flow passes or not.
	Explain(q explain.Question) (explain.Explanation, error)
	// Denied gives the flows that were denied lately and whose Seq is higher, in its
	// order.
	Denied(after uint64) []DeniedFlow
	// Metrics writes what Prometheus asks for, in its text format.
	Metrics(w io.Writer) error
}
