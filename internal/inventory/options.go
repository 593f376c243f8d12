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
	// MarkMask: the bits of the connection mark that hold the epoch;
	// contiguous.
	MarkMask uint32
}

// DefaultOptions are those of an empty configuration.
func DefaultOptions() Options {
	return Options{IPBlockMatchesPods: true, GatewayEgress: true, MarkMask: 0xff000000}
}

// NeverIsolated says whether S35 exempts the pod from isolation.
func (o *Options) NeverIsolated(pod Key) bool {
	return slices.ContainsFunc(o.NeverIsolate, func(k Key) bool {
		return k.Namespace == pod.Namespace && (k.Name == "" || k.Name == pod.Name)
	})
}
