package cni

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// cacheKind is the kind of the files that tell which pod they are of
// (libcni.CNICacheV1). Older libraries wrote the bare result, without a kind.
const cacheKind = "cniCacheV1"

// cached is a file of libcni's result cache (libcni.cachedInfo).
type cached struct {
	Kind        string      `json:"kind"`
	ContainerID string      `json:"containerId"`
	Config      string      `json:"config"` // base64 of the configuration that was in force
	IfName      string      `json:"ifName"` // in the container
	NetworkName string      `json:"networkName"`
	NetNS       string      `json:"netns"` // since libcni 1.2
	CNIArgs     [][2]string `json:"cniArgs"`
	Result      result      `json:"result"`
}

// result is a plugin's result of any version of the CNI specification: up to 0.2.0
// it has ip4 and ip6, from 0.3.0 on ips and interfaces.
type result struct {
	IP4        oneIP `json:"ip4"`
	IP6        oneIP `json:"ip6"`
	Interfaces []struct {
		Name    string `json:"name"`
		Sandbox string `json:"sandbox"` // path of its network namespace; "" is the gateway's
	} `json:"interfaces"`
	IPs []struct {
		Address   string `json:"address"`
		Interface *int   `json:"interface"` // index into Interfaces
	} `json:"ips"`
}

type oneIP struct {
	IP string `json:"ip"`
}

// stranger stands for a result that is no pod's: podman and nerdctl use the library
// too.
var stranger = new(entry)

// entry is what one result says of a pod.
type entry struct {
	key        inventory.Key
	attachment inventory.Attachment // without Interfaces, which depend on what is there
	ends       []string             // interfaces in the gateway's namespace, bridges among them
	sandboxes  []string             // paths of the pod's network namespace
	network    *network             // the configuration of that time
}

// isResult says whether a name is that of a result: networkName-containerId-ifName,
// and the names of networks begin with a letter or a digit.
func isResult(name string) bool { return !strings.HasPrefix(name, ".") }

// parseResult reads a file of the result cache that was written at a time. It gives
// nil for what is of no pod, or only its loopback.
func parseResult(data []byte, written time.Time) (*entry, error) {
	var c cached
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("it is no CNI result: %w", err)
	}
	args := map[string]string{}
	for _, a := range c.CNIArgs {
		args[a[0]] = a[1]
	}
	key := inventory.Key{Namespace: args["K8S_POD_NAMESPACE"], Name: args["K8S_POD_NAME"]}
	switch {
	case c.Kind == "" || c.IfName == "lo" || c.NetworkName == "cni-loopback":
		return nil, nil
	case c.Kind != cacheKind:
		return nil, fmt.Errorf("its kind is %q, and only %s is known here: is edgepolicyd older than the container runtime?", c.Kind, cacheKind)
	case key.Namespace == "" || key.Name == "":
		return stranger, nil
	case c.ContainerID == "" || c.NetworkName == "":
		return nil, errors.New("containerId or networkName is missing: every result of libcni has them")
	}
	e := &entry{key: key, attachment: inventory.Attachment{Sandbox: c.ContainerID, Network: c.NetworkName, UID: args["K8S_POD_UID"], Written: written}}
	var err error
	if e.attachment.Addresses, err = c.Result.addresses(); err != nil {
		return nil, err
	}
	e.place(&c)
	if _, err := e.pod(); err != nil {
		return nil, err
	}
	e.network = cachedConfig(c.Config)
	return e, nil
}

// cachedConfig reads the configuration in a result. The result stands without it.
func cachedConfig(text string) *network {
	if text == "" {
		return &network{}
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		var n *network
		if n, err = parseConfig(data); err == nil {
			return n
		}
	}
	return &network{warnings: []string{"its config is not understood: " + err.Error()}}
}

// place sorts the result's interfaces into those of the gateway and the sandboxes
// of the others.
func (e *entry) place(c *cached) {
	for _, i := range c.Result.Interfaces {
		switch {
		case i.Sandbox != "":
			e.sandboxes = append(e.sandboxes, i.Sandbox)
		case i.Name != "" && i.Name != c.IfName:
			// One that is called as the container's own is that one, from a plugin that does
			// not say where it is: the gateway's eth0 is no pod's.
			e.ends = append(e.ends, i.Name)
		}
	}
	if len(e.sandboxes) == 0 && c.NetNS != "" {
		e.sandboxes = append(e.sandboxes, c.NetNS)
	}
	e.ends, e.sandboxes = distinct(e.ends), distinct(e.sandboxes)
}

// addresses gives those of the pod: of the interfaces in the sandbox and of no
// interface; and if there are none such, all. Loopback and link-local ones tell
// pods from nobody.
func (r *result) addresses() ([]netip.Addr, error) {
	var pods, others []netip.Addr
	take := func(list *[]netip.Addr, where, text string) error {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("%s %q must be an address and its prefix's length, such as 10.1.2.3/24", where, text)
		}
		if a := p.Addr().Unmap(); !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			*list = append(*list, a)
		}
		return nil
	}
	for i, ip := range r.IPs {
		list := &pods
		if n := ip.Interface; n != nil && *n >= 0 && *n < len(r.Interfaces) && r.Interfaces[*n].Sandbox == "" {
			list = &others
		}
		if err := take(list, fmt.Sprintf("result.ips[%d].address", i), ip.Address); err != nil {
			return nil, err
		}
	}
	if r.IP4.IP != "" {
		if err := take(&pods, "result.ip4.ip", r.IP4.IP); err != nil {
			return nil, err
		}
	}
	if r.IP6.IP != "" {
		if err := take(&pods, "result.ip6.ip", r.IP6.IP); err != nil {
			return nil, err
		}
	}
	if len(pods) == 0 {
		pods = others
	}
	return sorted(pods), nil
}

func sorted(all []netip.Addr) []netip.Addr {
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

func distinct(all []string) []string {
	slices.Sort(all)
	return slices.Compact(all)
}

// pod makes the object of a pod that has this entry alone.
func (e *entry) pod() (*inventory.Pod, error) {
	return podOf(e.key, e.attachment.UID, e.attachment.Addresses)
}

// podOf makes the object of a pod by way of its JSON, as a kubelet would serve it.
func podOf(key inventory.Key, uid string, addresses []netip.Addr) (*inventory.Pod, error) {
	type ip struct {
		IP netip.Addr `json:"ip"`
	}
	var object struct {
		Metadata struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
			UID       string `json:"uid,omitempty"`
		} `json:"metadata"`
		Status struct {
			PodIPs []ip `json:"podIPs,omitempty"`
		} `json:"status"`
	}
	object.Metadata.Name, object.Metadata.Namespace, object.Metadata.UID = key.Name, key.Namespace, uid
	for _, a := range addresses {
		object.Status.PodIPs = append(object.Status.PodIPs, ip{a})
	}
	data, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	doc, found := manifest.Served(Name, inventory.KindPod, data)
	for _, d := range found {
		if d.Severity == manifest.Error {
			return nil, d
		}
	}
	if !doc.Valid {
		return nil, fmt.Errorf("pod %q is not valid", key)
	}
	return doc.Pod, nil
}
