package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Entry is one key of the configuration, for documents.
type Entry struct {
	Key     string `json:"key"`     // with dots between levels: log.level
	Default string `json:"default"` // as the file would spell it
	Meaning string `json:"meaning"` // sentences
}

// keys are all keys of the configuration, in the order of documents.
var keys = []Entry{
	{Key: "sources.directory.path", Meaning: "Directory of Kubernetes manifests (NetworkPolicy, Pod, Namespace, List) in files ending in .yaml, .yml or .json. It is watched; subdirectories are not read. Files of other users than root and the daemon's, and those that group or others may write, are refused; a directory that they may write is warned of, as they could take policies away (chmod go-w)."},
	{Key: "stateDir", Meaning: "Directory in which the last good input is kept, so that it is enforced after a restart before anything else is read."},
	{Key: "socket", Meaning: "Unix socket on which the daemon answers the other commands (status, reload, flush)."},
	{Key: "table", Meaning: "Name of the nftables table, of family inet. The daemon writes no other table, but for a small one of family bridge and the same name where pods are on a bridge. At most 64 letters, digits and underscores. Before this is changed, `edgepolicyd flush`: a table of the old name stays in force beside the new one, with nobody to keep it up to date."},
	{Key: "log.level", Meaning: "Least level that is logged to standard error: debug, info, warn or error."},
	{Key: "ipBlockMatchesPods", Meaning: "Whether an ipBlock matches addresses whoever owns them, pods included, as the Kubernetes conformance tests expect. With false it matches only addresses that are no pod's."},
	{Key: "denied", Meaning: "What becomes of a denied packet: drop (silently), or reject (the sender gets a TCP reset or an ICMP error, and need not wait for a timeout)."},
	{Key: "gateway.egress", Meaning: "Whether a pod's egress policy also holds for the gateway's own addresses: enforce, or allow, which lets every pod reach the gateway."},
	{Key: "gateway.allowFromPods", Meaning: "Ports of the gateway that every pod may reach whatever its policy, such as [53/UDP, 53/TCP] where the gateway answers DNS."},
	{Key: "neverPods", Meaning: "Addresses and ranges that are never a pod's, whatever a manifest says, so that a typing error cannot cut off the operator or the LAN. The gateway's own addresses and its next hops are always protected so."},
	{Key: "neverIsolate", Meaning: "Namespaces, or pods as namespace/pod, that no policy may cut off, such as the agent that would deliver the repair."},
	{Key: "connectionMark.mask", Meaning: "The bits of the 32-bit connection mark that the daemon may use: at least 4, side by side. Others must not use them."},
}

// Reference lists every key with its default and meaning.
func Reference() []Entry {
	var all []Entry
	for _, e := range keys {
		v := reflect.ValueOf(Default())
		for _, name := range strings.Split(e.Key, ".") {
			v = fieldOf(v, name)
		}
		e.Default = fmt.Sprint(v.Interface())
		all = append(all, e)
	}
	return all
}

// fieldOf finds a struct's field by its key.
func fieldOf(v reflect.Value, name string) reflect.Value {
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("json") == name {
			return v.Field(i)
		}
	}
	panic("config: keys lists " + name + ", which Config lacks")
}
