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
	{Key: "sources.cni.resultsDir", Meaning: "Where container runtimes keep what CNI plugins answered: which address and interface belong to which pod. It is used where it exists. Nobody but root may be able to write to it."},
	{Key: "sources.cni.configDir", Meaning: "The CNI plugins' configuration, from which the pods' ranges and bridges are taken."},
	{Key: "sources.kubelet.url", Meaning: "The gateway's own kubelet, which tells labels, named ports and phase of its pods: https://127.0.0.1:10250, or http://127.0.0.1:10255 for its read-only port. Without it the kubelet is not asked: whoever can bind a local port must not say what the pods are."},
	{Key: "sources.kubelet.ca", Meaning: "File of the CAs that the kubelet's certificate must be of, in PEM; those of the system without it."},
	{Key: "sources.kubelet.serverName", Meaning: "The name that the kubelet's certificate must be for; the one in the URL without it."},
	{Key: "sources.kubelet.certificate", Meaning: "File of the client certificate for the kubelet, in PEM. It, the key, the CAs and the token are read again when they change."},
	{Key: "sources.kubelet.key", Meaning: "File of the client certificate's key."},
	{Key: "sources.kubelet.tokenFile", Meaning: "File of a bearer token for the kubelet, instead of a client certificate. Its user needs get on nodes/proxy, or on nodes/pods where the kubelet knows that."},
	{Key: "sources.kubelet.interval", Meaning: "How often the kubelet is asked while nothing happens. On a change of pods or interfaces it is asked at once, and a few times more."},
	{Key: "sources.kubelet.policyAnnotation", Meaning: "Whether pods may carry NetworkPolicies in their annotation edgepolicy.io/network-policies, as YAML documents. Each applies to the pod that carries it alone. It is how a gateway with a kubelet and no API delivers them."},
	{Key: "sources.api.preset", Meaning: "The API that policies, namespaces and pods come from, by the name of what is known on gateways: edge-kubelet (http://127.0.0.1:10355), metaserver (KubeEdge, http://127.0.0.1:10550), k3s (/etc/rancher/k3s/k3s.yaml) or kubeadm (/etc/kubernetes/kubelet.conf)."},
	{Key: "sources.api.kubeconfig", Meaning: "Or the kubeconfig of any Kubernetes API: certificates or tokens; plugins that run programs are refused."},
	{Key: "sources.api.server", Meaning: "Or the URL of an API on the gateway that asks for no credentials."},
	{Key: "sources.api.pods", Meaning: "Which pods are read from the API: node, those of this gateway, or all, so that selectors reach the pods of other nodes too. Policies are enforced upon this gateway's pods alone."},
	{Key: "nodeName", Meaning: "The gateway's name as a Kubernetes node. Without it: the kubelet's, else the deviceID in /userdata/edge_gw_config/identity.json, else the host name."},
	{Key: "podRanges", Meaning: "Ranges that pods get their addresses from, beside those of the CNI configuration and of the bridges that carry pods. One that holds a next hop, or an address of the gateway on an interface that carries no pods, is refused."},
	{Key: "holdUnknownPods", Meaning: "Whether an address of the pod ranges that is not known yet can neither send nor be reached through the gateway, nor reach the gateway, until it is known: on, off, or auto, which is on where CNI results tell addresses within milliseconds. With off there is a gap between a pod's first packet and the moment at which it is known."},
	{Key: "onBoot", Meaning: "What edgepolicyd restore, which is run at boot, does with addresses that are not known yet: hold, which holds those of the ranges that a daemon found before, where holdUnknownPods holds, or open, which lets them pass until the daemon runs."},
	{Key: "stateDir", Meaning: "Directory in which the last good input is kept, so that it is enforced after a restart before anything else is read."},
	{Key: "socket", Meaning: "Unix socket on which the daemon answers the other commands (status, reload, flush)."},
	{Key: "table", Meaning: "Name of the nftables table, of family inet. The daemon writes no other table, but for a small one of family bridge and the same name where pods are on a bridge. At most 64 letters, digits and underscores. Before this is changed, `edgepolicyd flush`: a table of the old name stays in force beside the new one, with nobody to keep it up to date."},
	{Key: "log.level", Meaning: "Least level that is logged: debug, info, warn or error."},
	{Key: "log.format", Meaning: "Where to: journal (journald's native protocol, with fields), text or json (lines on standard error), or auto: journal where journald's socket is there and standard error is no terminal, else text."},
	{Key: "audit.denied.enabled", Meaning: "Whether denied packets are told in the journal, and kept in memory for `edgepolicyd denied`. They are counted in any case."},
	{Key: "audit.denied.perPodRate", Meaning: "How many denied packets a second of each pod and direction the kernel shows to the daemon; 1 to 1000. What is more is counted only."},
	{Key: "audit.denied.window", Meaning: "For how long the packets of one denied flow are put into one line."},
	{Key: "metrics.listen", Meaning: "Loopback address and port on which Prometheus may ask for metrics, such as 127.0.0.1:9469. They are on the status socket in any case."},
	{Key: "enforcement", Meaning: "enforce, or audit: policies deny nothing, and what they would deny is told and counted. For a single policy, the annotation edgepolicy.io/enforcement: audit does the same."},
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
