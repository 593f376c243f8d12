package kubelet

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
)

// Annotation is where a pod carries policies for itself: NetworkPolicy documents
// in YAML, apart by lines "---". They apply to that pod alone, whatever else
// their podSelector selects.
const Annotation = "edgepolicy.io/network-policies"

// carried is one document of a pod's annotation.
type carried struct {
	name     string            // of the policy as it is delivered; "" if it can't be told
	policy   *inventory.Policy // nil if it is not valid
	warnings []manifest.Diagnostic
	rejected source.Rejected // if policy is nil
}

// carriedBy reads a pod's annotation. Each document is judged alone (S9).
func carriedBy(pod inventory.Key, text string) []carried {
	var all []carried
	seen := map[string]bool{}
	for _, doc := range documents(text) {
		for _, c := range decodeCarried(pod, doc) {
			if c.policy != nil && seen[c.name] {
				c.refuse("a second policy of this name in the annotation: names must differ")
			}
			seen[c.name] = true
			all = append(all, c)
		}
	}
	return all
}

// documents parts YAML at the lines that nothing but a document can start with
// (YAML 1.2.2, 9.1.2: "---" at the start of a line, also within a text). Each
// part keeps its lines' numbers by the empty lines before it.
func documents(text string) []string {
	var parts []string
	start, line, begun := 0, 0, 0
	for at := 0; at < len(text); {
		end := at + len(text[at:])
		if n := strings.IndexByte(text[at:], '\n'); n >= 0 {
			end = at + n + 1
		}
		if rest, ok := strings.CutPrefix(text[at:end], "---"); ok && (rest == "" || strings.ContainsAny(rest[:1], " \t\r\n")) {
			parts = append(parts, strings.Repeat("\n", begun)+text[start:at])
			start, begun = at, line
		}
		at = end
		line++
	}
	return append(parts, strings.Repeat("\n", begun)+text[start:])
}

// decodeCarried reads one document: nothing where it is empty, and never more
// than one policy.
func decodeCarried(pod inventory.Key, text string) []carried {
	f := manifest.Decode(Name, "", []byte(text))
	if f.Parsed && len(f.Documents) == 0 && len(f.Diagnostics) == 0 {
		return nil
	}
	var h struct {
		Kind     string `json:"kind"`
		Metadata struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"metadata"`
	}
	// Decode says what is wrong; here it only matters what is written: Decode
	// takes an absent namespace for "default", and it is the pod's.
	_ = manifest.Unmarshal("", []byte(text), &h)
	c := carried{warnings: f.Diagnostics}
	c.rejected = source.Rejected{Origin: inventory.Origin{Source: Name, Pod: pod.String()}, Reason: reason(f.Diagnostics)}
	for i := range c.warnings {
		c.warnings[i].Object = fmt.Sprintf("annotation %s of Pod %s", Annotation, pod)
	}
	if len(f.Diagnostics) > 0 {
		c.rejected.Origin.Line, c.rejected.Origin.Column = f.Diagnostics[0].Line, f.Diagnostics[0].Column
	}
	if len(validation.IsDNS1123Subdomain(h.Metadata.Name)) == 0 && h.Kind == string(inventory.KindPolicy) {
		c.name = policyName(pod.Name, h.Metadata.Name)
		c.rejected.Object = fmt.Sprintf("NetworkPolicy %s/%s", pod.Namespace, c.name)
	}
	if len(f.Documents) > 0 {
		c.rejected.Origin.Line, c.rejected.Origin.Column = f.Documents[0].Origin.Line, f.Documents[0].Origin.Column
	}
	switch {
	case !f.Parsed:
	case h.Kind != string(inventory.KindPolicy):
		c.refuse(fmt.Sprintf("kind %q: a pod's annotation holds NetworkPolicy documents only", h.Kind))
	case h.Metadata.Namespace != "" && h.Metadata.Namespace != pod.Namespace:
		c.refuse(fmt.Sprintf("metadata.namespace %q: a policy in a pod's annotation is for that pod, in namespace %s: remove the line", h.Metadata.Namespace, pod.Namespace))
	case len(f.Documents) > 1:
		c.refuse("more than one document without a line --- between them")
	case len(f.Documents) == 1 && f.Documents[0].Valid:
		c.policy = renamed(f.Documents[0].Policy, inventory.Key{Namespace: pod.Namespace, Name: c.name}, c.rejected.Origin)
	}
	return []carried{c}
}

// refuse makes the document an invalid one, and says so in the diagnostics too.
func (c *carried) refuse(why string) {
	o := c.rejected.Origin
	c.policy, c.rejected.Reason = nil, why
	c.warnings = append(c.warnings, manifest.Diagnostic{
		Severity: manifest.Error, Line: o.Line, Column: o.Column, Message: why,
		Object: fmt.Sprintf("annotation %s of Pod %s", Annotation, o.Pod),
	})
}

// renamed gives a policy another key, in its canonical JSON too; nil if that
// makes it invalid.
func renamed(p *inventory.Policy, key inventory.Key, origin inventory.Origin) *inventory.Policy {
	var object map[string]any
	d := json.NewDecoder(bytes.NewReader(p.JSON))
	d.UseNumber()
	if d.Decode(&object) != nil {
		return nil
	}
	object["metadata"] = map[string]string{"name": key.Name, "namespace": key.Namespace}
	data, err := json.Marshal(object)
	if err != nil {
		return nil
	}
	doc, _ := manifest.Served(Name, inventory.KindPolicy, data)
	if doc.Policy != nil {
		doc.Policy.Origin = origin
	}
	return doc.Policy
}

// maxName is the length of a policy's name (a DNS-1123 subdomain).
const maxName = validation.DNS1123SubdomainMaxLength

// policyName makes a policy's name one of its own: "POD.POLICY". As names may
// hold dots, those that do, and those that would be too long, get a hash of both
// parts at the end: a name with one dot is unique, and so is one with a hash.
func policyName(pod, policy string) string {
	name := pod + "." + policy
	if strings.Count(name, ".") == 1 && len(name) <= maxName {
		return name
	}
	sum := sha256.Sum256([]byte(pod + "/" + policy))
	hash := "." + hex.EncodeToString(sum[:8])
	if len(name)+len(hash) > maxName {
		name = strings.TrimRight(name[:maxName-len(hash)], ".-")
	}
	return name + hash
}
