package manifest

import (
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/json"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// mirrorOf is the annotation by which the API's copy of a static pod names the
// pod's uid on its node (k8s.io/kubernetes/pkg/kubelet/types).
const mirrorOf = "kubernetes.io/config.mirror"

// Served reads one object in JSON as an API server or a kubelet serves it: the
// kind is that of the list it stands in, and fields that are not known here are
// ignored, as the server has validated them and may be newer. The document's
// origin is the source, without a place. It is not Valid when a diagnostic is an
// error; Key then says what is known of it.
func Served(source string, kind inventory.Kind, data []byte) (Document, []Diagnostic) {
	var h struct {
		Metadata struct {
			meta
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	doc := Document{Kind: kind, Origin: inventory.Origin{Source: source}}
	l := &log{}
	if err := json.UnmarshalCaseSensitivePreserveInts(data, &h); err != nil {
		l.object = string(kind)
		l.fail(nil, "", "can't be read: "+err.Error())
		return doc, l.found
	}
	doc.Key = inventory.Key{Namespace: h.Metadata.Namespace, Name: h.Metadata.Name}
	switch {
	case kind == inventory.KindNamespace:
		doc.Key.Namespace = ""
	case doc.Key.Namespace == "":
		doc.Key.Namespace = "default"
	}
	l.object = string(kind) + " " + doc.Key.String()
	var err error
	switch kind {
	case inventory.KindPod:
		var m podManifest
		if err = json.UnmarshalCaseSensitivePreserveInts(data, &m); err == nil {
			if uid := h.Metadata.Annotations[mirrorOf]; uid != "" {
				m.Metadata.UID = anyText(uid)
			}
			doc.Pod = l.pod(doc.Key, doc.Origin, m)
		}
	case inventory.KindNamespace:
		doc.Namespace = l.namespace(doc.Key, doc.Origin, head{Metadata: h.Metadata.meta})
	case inventory.KindPolicy:
		var np networkingv1.NetworkPolicy
		if err = json.UnmarshalCaseSensitivePreserveInts(data, &np); err == nil {
			l.metadata(meta{np.Name, doc.Key.Namespace, np.Labels}, validation.IsDNS1123Subdomain)
			doc.Policy = l.policy(doc.Key, doc.Origin, &np.Spec, l.audits(np.Annotations[EnforcementAnnotation]))
		}
	}
	if err != nil {
		l.fail(nil, "", "can't be read: "+err.Error())
	}
	doc.Valid = doc.Policy != nil || doc.Pod != nil || doc.Namespace != nil
	return doc, l.found
}

// PodJSON gives the canonical form of a pod that was put together from what
// several sources know: inventory.Head.JSON for it.
func PodJSON(p *inventory.Pod) []byte {
	m := podManifest{APIVersion: "v1", Kind: "Pod", Metadata: podMeta{p.Key.Name, p.Key.Namespace, p.Labels, anyText(p.UID)}}
	m.Spec.NodeName, m.Spec.HostNetwork, m.Status.Phase = anyText(p.Node), p.HostNetwork, p.Phase
	for _, port := range p.Ports {
		m.Spec.Containers = append(m.Spec.Containers, container{Ports: []containerPort{{port.Name, int32(port.Port), port.Protocol.String()}}})
	}
	for _, a := range p.Addresses {
		m.Status.PodIPs = append(m.Status.PodIPs, podIP{a.String()})
	}
	return canonical(m)
}
