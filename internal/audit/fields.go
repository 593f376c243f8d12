package audit

// The keys of the attributes that events have. In the journal a key is the field
// EDGEPOLICY_ and the key in capitals; in text and JSON it is as it stands here.
const (
	KeyEvent       = "event"
	KeyPolicy      = "policy"
	KeyPod         = "pod"
	KeyDirection   = "direction"
	KeyGeneration  = "generation"
	KeySource      = "source"
	KeyFile        = "file"
	KeyHash        = "hash"
	KeyEnforcement = "enforcement"
	KeyObject      = "object"
	KeyReason      = "reason"
	KeyKept        = "kept"
	KeyChanges     = "changes"
	KeyDuration    = "duration_us"
	KeyCount       = "count"
	KeyTotal       = "total"
	KeyProgram     = "program"
	KeyPID         = "pid"
	KeyUID         = "uid"
	KeySince       = "since"
	KeyVersion     = "version"
	KeyAddress     = "address"
	KeyInterface   = "interface"
	KeySrc         = "src"
	KeySrcPod      = "src_pod"
	KeyDst         = "dst"
	KeyDstPod      = "dst_pod"
	KeyProtocol    = "protocol"
	KeyPort        = "port"
	KeyWindow      = "window"
	KeyInventory   = "inventory"
)

// Field documents a key.
type Field struct {
	Key     string
	Meaning string // a sentence's part, in Markdown
	Example string
}

// Name is the field's name in the journal.
func (f Field) Name() string { return fieldName(f.Key) }

// Fields documents all keys of events; docs/audit-log.md is made from it.
var Fields = []Field{
	{KeyEvent, "the event's name, see the table of events", "policy-added"},
	{KeyPolicy, "the policy, `namespace/name`; of denied packets all policies that isolate the pod in that direction, sorted, with commas between in text; in the journal one field each; of more than ten the first, and how many more", "default/web"},
	{KeyPod, "the pod that it is about, `namespace/name`; of denied packets the one whose policies deny", "default/web-0"},
	{KeyDirection, "`ingress` or `egress`, as seen from that pod", "egress"},
	{KeyGeneration, "which state of the rules: counted from the daemon's start, as `edgepolicyd status` shows it", "17"},
	{KeySource, "where it was read: `directory`, `cni`, `kubelet`, `api`, or `state` for what was saved", "directory"},
	{KeyFile, "the file, with the line of the document where there is one", "/etc/edgepolicy.d/web.yaml:12"},
	{KeyHash, "SHA-256 in hex: of a policy's content in canonical form (defaults filled in, comments and order of fields of no account), or of a whole inventory", "9f86d081884c7d65…"},
	{KeyEnforcement, "`enforce`, or `audit` for a policy that is only tried", "enforce"},
	{KeyObject, "what a document describes: kind and name as far as they can be read", "NetworkPolicy default/web"},
	{KeyReason, "why, as a sentence or several lines", "unknown field spec.ingres"},
	{KeyKept, "what stays in force in its place: `previous` or `nothing`", "previous"},
	{KeyChanges, "what changed, in words", "2 policies, 1 pod"},
	{KeyDuration, "how long it took, in microseconds", "1840"},
	{KeyCount, "how many: packets, connections, policies or messages, as the event says", "42"},
	{KeyTotal, "how many in all", "118"},
	{KeyProgram, "the name of the process that did it, as the kernel tells it", "nft"},
	{KeyPID, "its process id", "4711"},
	{KeyUID, "the user id of who asked", "0"},
	{KeySince, "since when, RFC 3339", "2026-03-01T11:58:03Z"},
	{KeyVersion, "the daemon's version", "0.4.0"},
	{KeyAddress, "an IP address, or several with commas between", "10.42.0.17"},
	{KeyInterface, "the network interface by which it came", "cni0"},
	{KeySrc, "the packet's source address, as the pod sees it", "10.42.0.17"},
	{KeySrcPod, "the pod that has the source address, where one has", "default/web-0"},
	{KeyDst, "the packet's destination address, as the pod sees it", "10.42.0.7"},
	{KeyDstPod, "the pod that has the destination address, where one has", "default/db-0"},
	{KeyProtocol, "`TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or the protocol's number", "TCP"},
	{KeyPort, "the destination port, where the protocol has ports", "5432"},
	{KeyWindow, "the time that `EDGEPOLICY_COUNT` is about", "10s"},
	{KeyInventory, "which inventory a line belongs to: the time at which it was made", "2026-03-01T12:00:00.000000001Z"},
}
