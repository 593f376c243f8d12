package inventory

import (
	"net/netip"
	"slices"
)

// Options are the settings that change what is enforced. Each is a key of the
// daemon's configuration, named the same there.
type Options struct {
	// IPBlockMatchesPods: ipBlock matches addresses whoever owns them, pods
	// included (S17). False: external addresses only.
	IPBlockMatchesPods bool
	// GatewayEgress: a pod's egress policy also judges traffic to the gateway's
	// own addresses (S25). False is gateway.egress: allow.
	GatewayEgress bool
	// GatewayPorts are ports of the gateway that every pod may reach
	// (gateway.allowFromPods).
	GatewayPorts []Port
	// NeverIsolate: pods that no policy may cut off (S35). A Key without a
	// Name means every pod of the namespace.
	NeverIsolate []Key
	// NeverPods: addresses that are never a pod's, whatever a source says (S33).
	NeverPods []netip.Prefix
	// Reject: denied packets are answered (TCP reset, ICMP port unreachable)
	// instead of dropped silently.
	Reject bool
	// Audit: all policies are as if they were annotated so (enforcement: audit).
	Audit bool
	// Log: packets that the policies deny, or would deny, are shown to NFLOG
	// (audit.denied.enabled), LogRate a second of each pod and direction.
	Log     bool
	LogRate uint32
	// MarkMask: the bits of the connection mark that hold the epoch;
	// contiguous.
	MarkMask uint32
}

// DefaultOptions are those of an empty configuration.
func DefaultOptions() Options {
	return Options{IPBlockMatchesPods: true, GatewayEgress: true, Log: true, LogRate: 10, MarkMask: 0xff000000}
}

// Audits says whether a policy is only tried: it neither isolates nor allows. A pod
// that no other policy isolates in a direction, but one such policy would, passes
// everything there, and what no such policy that selects it allows is told as what
// they would deny.
func (o *Options) Audits(p *Policy) bool { return o.Audit || p.Audit }

// NeverIsolated says whether S35 exempts the pod from isolation.
func (o *Options) NeverIsolated(pod Key) bool {
	return slices.ContainsFunc(o.NeverIsolate, func(k Key) bool {
		return k.Namespace == pod.Namespace && (k.Name == "" || k.Name == pod.Name)
	})
}
