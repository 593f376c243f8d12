// Package inventory holds what is known of the gateway's workloads as plain
// values: pods, namespaces and policies, and the Snapshot that all later stages
// read.
//
// What always holds: a value is never changed after it was handed on. A source
// that learns something new makes new values; those that did not change keep
// their pointers, so that "the same pointer" means "unchanged" everywhere.
package inventory

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/labels"
)

// Key names an object within its kind: metadata.namespace and metadata.name.
// For a Namespace, Namespace is empty.
type Key struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String gives "namespace/name", or the name alone where there is no namespace.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// Compare orders keys by namespace, then name.
func (k Key) Compare(o Key) int {
	return cmp.Or(strings.Compare(k.Namespace, o.Namespace), strings.Compare(k.Name, o.Name))
}

// Kind is the Kubernetes kind of an object.
type Kind string

// The kinds that are read (S1).
const (
	KindPolicy    Kind = "NetworkPolicy"
	KindPod       Kind = "Pod"
	KindNamespace Kind = "Namespace"
)

// Origin says where an object was read.
type Origin struct {
	Source string `json:"source"`           // "directory", "cni", "kubelet" or "api"
	File   string `json:"file,omitempty"`   // path of the file, where there is one
	Line   int    `json:"line,omitempty"`   // line of the document's first key, from 1
	Column int    `json:"column,omitempty"` // from 1
	// Pod is the pod, "namespace/name", in whose annotation a policy was found
	// (edgepolicy.io/network-policies). It applies to that pod alone.
	Pod string `json:"pod,omitempty"`
}

// String gives "file:line", the file alone for a whole file, or the source's name
// where there is no file.
func (o Origin) String() string {
	switch {
	case o.Pod != "":
		return fmt.Sprintf("%s, annotation of pod %s", o.Source, o.Pod)
	case o.File == "":
		return o.Source
	case o.Line == 0:
		return o.File
	}
	return fmt.Sprintf("%s:%d", o.File, o.Line)
}

// Head is what every object has.
type Head struct {
	Key    Key
	Origin Origin
	// JSON is the object in canonical form: Kubernetes JSON of the defaulted
	// fields that are read here, in a fixed order. Two versions of an object are equal
	// if these bytes are; the state file keeps them.
	JSON []byte
}

// Protocol is an IP protocol number (IANA).
type Protocol uint8

// The protocols that a NetworkPolicy port can name (S22), and the two that the
// table must know to let IP work.
const (
	ICMP   Protocol = 1
	TCP    Protocol = 6
	UDP    Protocol = 17
	ICMPv6 Protocol = 58
	SCTP   Protocol = 132
)

// String gives the name that Kubernetes uses, or the number.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	case ICMP:
		return "ICMP"
	case ICMPv6:
		return "ICMPv6"
	}
	return fmt.Sprintf("%d", uint8(p))
}

// HasPorts says whether NetworkPolicy ports apply to the protocol.
func (p Protocol) HasPorts() bool { return p == TCP || p == UDP || p == SCTP }

// ParseProtocol reads TCP, UDP or SCTP, as spelled in the Kubernetes API.
func ParseProtocol(s string) (Protocol, bool) {
	switch s {
	case "TCP":
		return TCP, true
	case "UDP":
		return UDP, true
	case "SCTP":
		return SCTP, true
	}
	return 0, false
}

// Direction is the side of a pod that a rule is about.
type Direction uint8

// The two directions, usable as indexes.
const (
	Ingress Direction = iota
	Egress
)

// Directions lists both, for loops.
var Directions = [2]Direction{Ingress, Egress}

// String gives "ingress" or "egress".
func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// NamedPort is a container port that has a name (spec.containers[].ports[],
// and those of restartable init containers).
type NamedPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Pod is a pod: of this gateway, or of another node.
type Pod struct {
	Head
	// UID is metadata.uid as the kubelet knows it: of the API's mirror of a static
	// pod it is the annotation kubernetes.io/config.mirror. It tells two pods of one
	// name apart.
	UID         string
	Node        string // spec.nodeName
	Labels      labels.Set
	Addresses   []netip.Addr // status.podIPs, else status.podIP; sorted, unmapped, without zones
	Ports       []NamedPort
	HostNetwork bool
	Phase       string // status.phase: "", Pending, Running, Succeeded, Failed, Unknown
	// Remote: it runs on another node. Selectors reach it, policies do not apply to
	// it here.
	Remote bool
	// Attachments are the pod's networks as CNI results tell them, sorted by
	// Sandbox and Network; of a pod that is being replaced there can be those of two
	// sandboxes.
	Attachments []Attachment
}

// Attachment is what one CNI result says: a sandbox in one network.
type Attachment struct {
	Sandbox    string       // the CNI container ID; it tells two lives of a pod apart
	Network    string       // name of the CNI network
	UID        string       // of the pod (K8S_POD_UID), empty where the runtime does not say
	Addresses  []netip.Addr // sorted, unmapped
	Interfaces []string     // the ends in the gateway's namespace; none for macvlan and the like
	Written    time.Time    // when the result was written, by the wall clock
}

// Enforceable says whether policies apply to the pod and selectors reach it
// (S6): it has a network of its own, has not ended, and has an address. Of a
// Remote pod it says only the latter.
func (p *Pod) Enforceable() bool {
	return p.Selectable() && len(p.Addresses) > 0
}

// Selectable is Enforceable without the address: such a pod takes part in
// questions about labels (lint, matrix) before it runs.
func (p *Pod) Selectable() bool {
	return !p.HostNetwork && p.Phase != "Succeeded" && p.Phase != "Failed"
}

// Namespace is a namespace's labels. A namespace needs no object (S4).
type Namespace struct {
	Head
	Labels labels.Set // as in the object; NamespaceLabels adds the one every namespace has
}

// Port is one entry of a rule's ports (NetworkPolicyPort, defaulted).
type Port struct {
	Protocol Protocol
	Name     string // set for a named port; First and Last are 0 then
	First    uint16 // 0 with Last 65535 where no port is given: every port (S21)
	Last     uint16 // inclusive; First where endPort is absent
}

// IPBlock is an address range less its exceptions, masked (S8), so that
// every prefix equals its own Masked(). IPv4-mapped prefixes are IPv4.
type IPBlock struct {
	CIDR   netip.Prefix
	Except []netip.Prefix // each within CIDR
}

// Peer is one entry of from or to. Either Block is set, or at least one of the
// selectors; a nil selector is an absent one (S16).
type Peer struct {
	Pods       labels.Selector
	Namespaces labels.Selector
	Block      *IPBlock
}

// Rule is one entry of ingress or egress. No peers = everyone, no ports =
// everything (S14).
type Rule struct {
	Peers []Peer
	Ports []Port
}

// Policy is a NetworkPolicy, validated and defaulted.
type Policy struct {
	Head
	Selector labels.Selector // spec.podSelector
	Isolates [2]bool         // spec.policyTypes, by Direction
	Rules    [2][]Rule       // spec.ingress and spec.egress, by Direction; they count only where Isolates does
	// Audit: the annotation edgepolicy.io/enforcement is audit. The policy has no part
	// in what passes; what it would deny is told. See Options.Audits.
	Audit bool
}

// Selects says whether the policy applies to a pod (S3, S5), whichever direction
// it isolates.
func (p *Policy) Selects(pod *Pod) bool {
	return pod.Key.Namespace == p.Key.Namespace && !pod.Remote &&
		(p.Origin.Pod == "" || p.Origin.Pod == pod.Key.String()) &&
		(p.Selector == nil || p.Selector.Matches(pod.Labels))
}

// Printable is a text with control characters and the like escaped: names come from
// files and the network, and must not write to a terminal.
func Printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) || r == utf8.RuneError }) < 0 {
		return s
	}
	q := strconv.Quote(s)
	return strings.ReplaceAll(strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`), `\\`, `\`)
}

// Objects is what one source knows. The order is that of S10: of two objects
// with the same key the first counts.
type Objects struct {
	Pods       []*Pod
	Namespaces []*Namespace
	Policies   []*Policy
}

// Snapshot is all that is known at one moment: sorted by key, one object per
// key. It is never changed after it was made.
type Snapshot struct {
	Pods       []*Pod
	Namespaces []*Namespace
	Policies   []*Policy
	// Gateway holds the gateway's own addresses (S25, S33), sorted.
	Gateway []netip.Addr
}

// MetadataName is the label that every namespace carries (S4).
const MetadataName = "kubernetes.io/metadata.name"

// NamespaceLabels gives the labels of a namespace, whether it has an object or
// not, with kubernetes.io/metadata.name always set to its name (S4).
func (s *Snapshot) NamespaceLabels(name string) labels.Set {
	set := labels.Set{}
	i, found := slices.BinarySearchFunc(s.Namespaces, name, func(n *Namespace, name string) int {
		return strings.Compare(n.Key.Name, name)
	})
	if found {
		for k, v := range s.Namespaces[i].Labels {
			set[k] = v
		}
	}
	set[MetadataName] = name
	return set
}

// Pod finds a pod by its key.
func (s *Snapshot) Pod(k Key) *Pod {
	i, found := slices.BinarySearchFunc(s.Pods, k, func(p *Pod, k Key) int { return p.Key.Compare(k) })
	if !found {
		return nil
	}
	return s.Pods[i]
}

// PodAt finds the enforceable pod that has an address.
func (s *Snapshot) PodAt(a netip.Addr) *Pod {
	for _, p := range s.Pods {
		if p.Enforceable() && slices.Contains(p.Addresses, a) {
			return p
		}
	}
	return nil
}
