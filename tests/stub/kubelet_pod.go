package stub

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
)

// Pod is what a test says of a pod that a kubelet serves.
type Pod struct {
	Namespace   string // "default" if empty
	Name        string
	UID         string // made of namespace and name if empty
	Labels      map[string]string
	Annotations map[string]string
	IPs         []string // status.podIPs
	Phase       string   // "Running" if empty
	Ports       []Port
	HostNetwork bool
	Node        string // "gw" if empty
}

// Port is a port of a pod's container.
type Port struct {
	Name     string
	Port     int
	Protocol string // "TCP" if empty
}

// JSON is the pod as an item of a kubelet's list: like a recorded static pod,
// which has neither kind nor creationTimestamp.
func (p Pod) JSON() json.RawMessage {
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	type object = map[string]any
	namespace := or(p.Namespace, "default")
	annotations := map[string]string{"kubernetes.io/config.seen": "2026-11-20T11:39:33.474857306Z", "kubernetes.io/config.source": "file"}
	for k, v := range p.Annotations {
		annotations[k] = v
	}
	ports := []object{}
	for _, port := range p.Ports {
		ports = append(ports, object{"name": port.Name, "containerPort": port.Port, "protocol": or(port.Protocol, "TCP")})
	}
	spec := object{
		"containers":    []object{{"name": "c", "image": "lab.local/probe:1", "args": []string{"serve"}, "ports": ports, "resources": object{}}},
		"restartPolicy": "Always", "nodeName": or(p.Node, "gw"), "enableServiceLinks": true,
	}
	if p.HostNetwork {
		spec["hostNetwork"] = true
	}
	phase := or(p.Phase, "Running")
	status := object{"phase": phase}
	if len(p.IPs) > 0 {
		ips := []object{}
		for _, ip := range p.IPs {
			ips = append(ips, object{"ip": ip})
		}
		status["podIP"], status["podIPs"] = p.IPs[0], ips
	}
	if phase == "Running" {
		status["startTime"] = "2026-11-20T11:39:33Z"
		status["containerStatuses"] = []object{{"name": "c", "state": object{"running": object{"startedAt": "2026-11-20T11:34:02Z"}}, "ready": true, "restartCount": 0}}
	}
	data, err := json.Marshal(object{
		"metadata": object{"name": p.Name, "namespace": namespace, "uid": or(p.UID, fmt.Sprintf("uid-of-%s-%s", namespace, p.Name)), "labels": p.Labels, "annotations": annotations},
		"spec":     spec, "status": status,
	})
	if err != nil {
		panic("stub: " + err.Error()) // plain strings and numbers only
	}
	return data
}

// verifyOptions are those by which a server judges its clients' certificates.
func verifyOptions(c *tls.Config) x509.VerifyOptions {
	return x509.VerifyOptions{Roots: c.ClientCAs, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
}
