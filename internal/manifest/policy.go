package manifest

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// policyManifest is a NetworkPolicy as it may be written. What is not read is
// listed as any, so that it is known and everything else is an error.
type policyManifest struct {
	APIVersion string                         `json:"apiVersion"`
	Kind       string                         `json:"kind"`
	Metadata   policyMeta                     `json:"metadata"`
	Spec       networkingv1.NetworkPolicySpec `json:"spec"`
	Status     any                            `json:"status,omitempty"` // written by API servers 1.24 to 1.27, without meaning
}

type policyMeta struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	Labels    map[string]string `json:"labels,omitempty"`

	Annotations                any `json:"annotations,omitempty"` // see enforcement
	CreationTimestamp          any `json:"creationTimestamp,omitempty"`
	DeletionGracePeriodSeconds any `json:"deletionGracePeriodSeconds,omitempty"`
	DeletionTimestamp          any `json:"deletionTimestamp,omitempty"`
	Finalizers                 any `json:"finalizers,omitempty"`
	GenerateName               any `json:"generateName,omitempty"`
	Generation                 any `json:"generation,omitempty"`
	ManagedFields              any `json:"managedFields,omitempty"`
	OwnerReferences            any `json:"ownerReferences,omitempty"`
	ResourceVersion            any `json:"resourceVersion,omitempty"`
	SelfLink                   any `json:"selfLink,omitempty"`
	UID                        any `json:"uid,omitempty"`
}

// policyObject reads a NetworkPolicy; nil when it is not valid.
func (l *log) policyObject(key inventory.Key, origin inventory.Origin) *inventory.Policy {
	var m policyManifest
	(&reader{log: l}).read(l.node, nil, reflect.ValueOf(&m).Elem())
	l.metadata(meta{m.Metadata.Name, key.Namespace, m.Metadata.Labels}, validation.IsDNS1123Subdomain)
	audit := false
	if n := child(locate(l.node, "metadata.annotations"), EnforcementAnnotation); n != nil {
		audit = l.audits(deref(n).Value)
	}
	return l.policy(key, origin, &m.Spec, audit)
}

// EnforcementAnnotation of a NetworkPolicy says whether it is enforced: enforce, as
// without it, or audit, which only tells what it would deny.
const EnforcementAnnotation = "edgepolicy.io/enforcement"

var enforcementPath = field.NewPath("metadata", "annotations").Key(EnforcementAnnotation)

// audits reads the value of EnforcementAnnotation.
func (l *log) audits(value string) bool {
	if value != "" && value != "enforce" && value != "audit" {
		l.fail(enforcementPath, value, "must be enforce or audit")
	}
	return value == "audit"
}

// policy defaults, validates and converts a spec, which it changes to its
// canonical form. It stands for ValidateNetworkPolicySpec of the API server,
// which no library offers.
func (l *log) policy(key inventory.Key, origin inventory.Origin, spec *networkingv1.NetworkPolicySpec, audit bool) *inventory.Policy {
	setDefaults(spec)
	p := field.NewPath("spec")
	policy := &inventory.Policy{Head: inventory.Head{Key: key, Origin: origin}, Audit: audit}
	policy.Selector = l.selector(&spec.PodSelector, p.Child("podSelector"))
	for i, rule := range spec.Ingress {
		at := p.Child("ingress").Index(i)
		policy.Rules[inventory.Ingress] = append(policy.Rules[inventory.Ingress],
			inventory.Rule{Peers: l.peers(rule.From, at.Child("from")), Ports: l.ports(rule.Ports, at.Child("ports"))})
	}
	for i, rule := range spec.Egress {
		at := p.Child("egress").Index(i)
		policy.Rules[inventory.Egress] = append(policy.Rules[inventory.Egress],
			inventory.Rule{Peers: l.peers(rule.To, at.Child("to")), Ports: l.ports(rule.Ports, at.Child("ports"))})
	}
	l.policyTypes(policy, spec.PolicyTypes, p)
	if !l.valid() {
		return nil
	}
	m := policyManifest{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Spec: *spec}
	m.Metadata.Name, m.Metadata.Namespace = key.Name, key.Namespace
	if audit {
		m.Metadata.Annotations = map[string]string{EnforcementAnnotation: "audit"}
	}
	policy.JSON = canonical(m)
	return policy
}

// setDefaults does what the API server does before it stores a policy (S2).
func setDefaults(spec *networkingv1.NetworkPolicySpec) {
	protocols := func(ports []networkingv1.NetworkPolicyPort) {
		for i := range ports {
			if ports[i].Protocol == nil {
				tcp := corev1.ProtocolTCP
				ports[i].Protocol = &tcp
			}
		}
	}
	for _, rule := range spec.Ingress {
		protocols(rule.Ports)
	}
	for _, rule := range spec.Egress {
		protocols(rule.Ports)
	}
	if len(spec.PolicyTypes) == 0 {
		spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(spec.Egress) > 0 {
			spec.PolicyTypes = append(spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
}

func (l *log) policyTypes(policy *inventory.Policy, types []networkingv1.PolicyType, p *field.Path) {
	if len(types) > 2 {
		l.fail(p.Child("policyTypes"), fmt.Sprint(types), "may not have more than two entries")
	}
	for i, t := range types {
		switch t {
		case networkingv1.PolicyTypeIngress:
			policy.Isolates[inventory.Ingress] = true
		case networkingv1.PolicyTypeEgress:
			policy.Isolates[inventory.Egress] = true
		default:
			l.fail(p.Child("policyTypes").Index(i), string(t), "must be Ingress or Egress")
		}
	}
	for _, d := range inventory.Directions {
		if len(policy.Rules[d]) > 0 && !policy.Isolates[d] {
			name := [...]networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}[d]
			l.warn(p.Child(d.String()), "", fmt.Sprintf("these rules have no effect, as policyTypes leaves out %s: add it there, or remove the rules", name))
		}
	}
}

// selector validates and converts a label selector (S5).
func (l *log) selector(s *metav1.LabelSelector, p *field.Path) labels.Selector {
	if s == nil {
		return nil
	}
	before := l.count[Error]
	l.labels(s.MatchLabels, p.Child("matchLabels"))
	for i, e := range s.MatchExpressions {
		at := p.Child("matchExpressions").Index(i)
		for _, err := range metavalidation.ValidateLabelSelectorRequirement(e, metavalidation.LabelSelectorValidationOptions{}, at) {
			message := readable(err.Detail)
			if err.Type == field.ErrorTypeInvalid && err.Field == at.Child("operator").String() {
				message = "must be In, NotIn, Exists or DoesNotExist"
			}
			value, _ := err.BadValue.(string)
			if op, ok := err.BadValue.(metav1.LabelSelectorOperator); ok {
				value = string(op)
			}
			l.fail(field.NewPath(err.Field), value, message)
		}
	}
	if l.count[Error] > before {
		return labels.Nothing()
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		l.fail(p, "", err.Error())
	}
	return selector
}

func (l *log) peers(peers []networkingv1.NetworkPolicyPeer, p *field.Path) []inventory.Peer {
	var all []inventory.Peer
	for i := range peers {
		peer, at := &peers[i], p.Index(i)
		switch selects := peer.PodSelector != nil || peer.NamespaceSelector != nil; {
		case !selects && peer.IPBlock == nil:
			l.fail(at, "", "must hold a podSelector, a namespaceSelector, both, or an ipBlock; for everyone, leave the whole list out")
		case selects && peer.IPBlock != nil:
			l.fail(at, "", "may not hold an ipBlock and a selector at once: make them two entries")
		}
		out := inventory.Peer{
			Pods:       l.selector(peer.PodSelector, at.Child("podSelector")),
			Namespaces: l.selector(peer.NamespaceSelector, at.Child("namespaceSelector")),
		}
		if peer.IPBlock != nil {
			out.Block = l.block(peer.IPBlock, at.Child("ipBlock"))
		}
		all = append(all, out)
	}
	return all
}

// block reads an address block and writes its prefixes in canonical form.
func (l *log) block(b *networkingv1.IPBlock, p *field.Path) *inventory.IPBlock {
	out := &inventory.IPBlock{}
	out.CIDR = l.cidr(&b.CIDR, p.Child("cidr"))
	for i := range b.Except {
		at, written := p.Child("except").Index(i), b.Except[i]
		e := l.cidr(&b.Except[i], at)
		out.Except = append(out.Except, e)
		switch {
		case !e.IsValid() || !out.CIDR.IsValid():
		case e == out.CIDR:
			l.warn(at, written, "covers the whole of cidr, so that the block matches nothing: narrow it, or remove the block")
		case !out.CIDR.Contains(e.Addr()) || e.Bits() < out.CIDR.Bits():
			l.fail(at, written, fmt.Sprintf("must lie within cidr, %s", out.CIDR))
		}
	}
	return out
}

func (l *log) cidr(text *string, p *field.Path) netip.Prefix {
	prefix, remark, ok := parsePrefix(*text)
	switch {
	case *text == "":
		l.fail(p, "", "required: an address range such as 10.9.8.0/24 or 2001:db8::/64")
	case !ok:
		l.fail(p, *text, "must be an address range such as 10.9.8.0/24 or 2001:db8::/64")
	default:
		if remark != "" {
			l.warn(p, *text, remark)
		}
		*text = prefix.String()
	}
	return prefix
}

func (l *log) ports(ports []networkingv1.NetworkPolicyPort, p *field.Path) []inventory.Port {
	var all []inventory.Port
	for i, port := range ports {
		all = append(all, l.port(port, p.Index(i)))
	}
	return all
}

// port reads one defaulted entry of ports (S20, S21).
func (l *log) port(in networkingv1.NetworkPolicyPort, p *field.Path) inventory.Port {
	protocol, ok := inventory.ParseProtocol(string(*in.Protocol))
	if !ok {
		l.fail(p.Child("protocol"), string(*in.Protocol), "must be TCP, UDP or SCTP; other protocols pass where a rule has no ports")
	}
	port := inventory.Port{Protocol: protocol, Last: 65535}
	end := p.Child("endPort")
	switch {
	case in.Port == nil:
		if in.EndPort != nil {
			l.fail(end, fmt.Sprint(*in.EndPort), "needs a port: the first of the range")
		}
	case in.Port.Type == intstr.String:
		port.Name, port.Last = in.Port.StrVal, 0
		l.portName(port.Name, p.Child("port"))
		if in.EndPort != nil {
			l.fail(end, fmt.Sprint(*in.EndPort), "may not stand with a named port: a range needs numbers")
		}
	default:
		first := in.Port.IntVal
		l.all(p.Child("port"), fmt.Sprint(first), validation.IsValidPortNum(int(first)))
		last := first
		if in.EndPort != nil {
			last = *in.EndPort
			l.all(end, fmt.Sprint(last), validation.IsValidPortNum(int(last)))
			if last < first {
				l.fail(end, fmt.Sprint(last), fmt.Sprintf("must not be below port, %d", first))
			}
		}
		port.First, port.Last = uint16(first), uint16(last)
	}
	return port
}

func (l *log) portName(name string, p *field.Path) {
	messages := validation.IsValidPortName(name)
	if len(messages) > 0 && name != "" && strings.Trim(name, "0123456789") == "" {
		messages = []string{"is a name, as it stands in quotes: write " + name + " without them"}
	}
	l.all(p, name, messages)
}
