package manifest

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// podManifest is the part of a Pod that is read, and its canonical form.
type podManifest struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Metadata   podMeta   `json:"metadata"`
	Spec       podSpec   `json:"spec,omitzero"`
	Status     podStatus `json:"status,omitzero"`
}

type podMeta struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	UID       anyText           `json:"uid,omitempty"`
}

// anyText is a text that nothing here depends on the form of: of a Pod whose node
// is written as a number, nothing is lost.
type anyText string

// UnmarshalText takes whatever is there.
func (t *anyText) UnmarshalText(text []byte) error {
	*t = anyText(text)
	return nil
}

type podSpec struct {
	NodeName       anyText     `json:"nodeName,omitempty"`
	HostNetwork    bool        `json:"hostNetwork,omitempty"`
	InitContainers []container `json:"initContainers,omitempty"`
	Containers     []container `json:"containers,omitempty"`
}

type container struct {
	RestartPolicy string          `json:"restartPolicy,omitempty"`
	Ports         []containerPort `json:"ports,omitempty"`
}

type containerPort struct {
	Name          string `json:"name,omitempty"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol,omitempty"`
}

type podStatus struct {
	Phase  string  `json:"phase,omitempty"`
	PodIP  string  `json:"podIP,omitempty"`
	PodIPs []podIP `json:"podIPs,omitempty"`
}

type podIP struct {
	IP string `json:"ip"`
}

// phases are those of status.phase.
var phases = []string{"", "Pending", "Running", "Succeeded", "Failed", "Unknown"}

// podObject reads a Pod; nil when it is not valid. Fields that are not read may
// hold anything: a newer or odd field must not lose us a pod (S8).
func (l *log) podObject(key inventory.Key, origin inventory.Origin) *inventory.Pod {
	var m podManifest
	(&reader{log: l, lenient: true}).read(l.node, nil, reflect.ValueOf(&m).Elem())
	return l.pod(key, origin, m)
}

// pod validates and converts a Pod.
func (l *log) pod(key inventory.Key, origin inventory.Origin, m podManifest) *inventory.Pod {
	m.APIVersion, m.Kind, m.Metadata.Namespace = "v1", "Pod", key.Namespace // items of a PodList leave them out
	l.metadata(meta{m.Metadata.Name, m.Metadata.Namespace, m.Metadata.Labels}, validation.IsDNS1123Subdomain)

	pod := &inventory.Pod{
		Head: inventory.Head{Key: key, Origin: origin}, UID: string(m.Metadata.UID), Node: string(m.Spec.NodeName), Labels: labels.Set(m.Metadata.Labels),
		HostNetwork: m.Spec.HostNetwork, Phase: m.Status.Phase,
	}
	spec := field.NewPath("spec")
	containers := l.containers(&m.Spec.Containers, spec.Child("containers"), func(container) bool { return true })
	sidecars := l.containers(&m.Spec.InitContainers, spec.Child("initContainers"), func(c container) bool { return c.RestartPolicy == "Always" })
	pod.Ports = append(containers, sidecars...)
	pod.Addresses = l.addresses(&m.Status)
	if !slices.Contains(phases, m.Status.Phase) {
		l.fail(field.NewPath("status", "phase"), m.Status.Phase, "must be one of "+strings.Join(phases[1:], ", "))
	}
	if !l.valid() {
		return nil
	}
	pod.JSON = canonical(m)
	return pod
}

// containers reads the ports of the containers that run as long as the pod does
// (S20), and leaves of the containers only those with named ports.
func (l *log) containers(all *[]container, p *field.Path, runs func(container) bool) []inventory.NamedPort {
	var named []inventory.NamedPort
	var kept []container
	for i, c := range *all {
		if !runs(c) {
			continue
		}
		var ports []containerPort
		for j, port := range c.Ports {
			at := p.Index(i).Child("ports").Index(j)
			read := l.containerPort(&port, at)
			if port.Name == "" {
				continue
			}
			if slices.ContainsFunc(ports, func(o containerPort) bool { return o.Name == port.Name }) {
				l.fail(at.Child("name"), port.Name, "a second port of the container with this name: names must differ")
			}
			ports, named = append(ports, port), append(named, read)
		}
		if ports != nil {
			kept = append(kept, container{Ports: ports})
			if p.String() == "spec.initContainers" {
				kept[len(kept)-1].RestartPolicy = "Always"
			}
		}
	}
	*all = kept
	return named
}

func (l *log) containerPort(port *containerPort, p *field.Path) inventory.NamedPort {
	if port.Protocol == "" {
		port.Protocol = "TCP"
	}
	protocol, ok := inventory.ParseProtocol(port.Protocol)
	if !ok {
		l.fail(p.Child("protocol"), port.Protocol, "must be TCP, UDP or SCTP")
	}
	l.all(p.Child("containerPort"), fmt.Sprint(port.ContainerPort), validation.IsValidPortNum(int(port.ContainerPort)))
	if port.Name != "" {
		l.all(p.Child("name"), port.Name, validation.IsValidPortName(port.Name))
	}
	return inventory.NamedPort{Name: port.Name, Protocol: protocol, Port: uint16(port.ContainerPort)}
}

// addresses reads status.podIPs, or podIP where there are none (old kubelets),
// and makes them canonical.
func (l *log) addresses(s *podStatus) []netip.Addr {
	p := field.NewPath("status")
	var all []netip.Addr
	read := func(text string, at *field.Path) {
		a, ok := parseAddress(text)
		if !ok {
			l.fail(at, text, "must be an IP address, such as 10.1.2.3 or fd00::3")
		}
		all = append(all, a)
	}
	for i, ip := range s.PodIPs {
		read(ip.IP, p.Child("podIPs").Index(i).Child("ip"))
	}
	if len(s.PodIPs) == 0 && s.PodIP != "" {
		read(s.PodIP, p.Child("podIP"))
	}
	slices.SortFunc(all, netip.Addr.Compare)
	all = slices.Compact(all)
	s.PodIP, s.PodIPs = "", nil
	for _, a := range all {
		s.PodIPs = append(s.PodIPs, podIP{a.String()})
	}
	return all
}

// namespaceObject reads a Namespace; nil when it is not valid.
func (l *log) namespaceObject(key inventory.Key, origin inventory.Origin) *inventory.Namespace {
	var m head
	(&reader{log: l, lenient: true}).read(l.node, nil, reflect.ValueOf(&m).Elem())
	return l.namespace(key, origin, m)
}

// namespace validates and converts a Namespace.
func (l *log) namespace(key inventory.Key, origin inventory.Origin, m head) *inventory.Namespace {
	m.APIVersion, m.Kind, m.Metadata.Namespace = "v1", "Namespace", ""
	l.metadata(m.Metadata, validation.IsDNS1123Label)
	if !l.valid() {
		return nil
	}
	return &inventory.Namespace{
		Head:   inventory.Head{Key: key, Origin: origin, JSON: canonical(m)},
		Labels: labels.Set(m.Metadata.Labels),
	}
}
