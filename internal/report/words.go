package report

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// selected says in words which pods a policy applies to.
func selected(p *inventory.Policy) string {
	if p.Origin.Pod != "" {
		return "pod " + p.Origin.Pod + " alone, by its annotation"
	}
	return podsWith(p.Selector) + " in namespace " + p.Key.Namespace
}

// peer says in words who a peer is (S16, S17).
func peer(p *inventory.Policy, e inventory.Peer) string {
	switch {
	case e.Block != nil:
		text := "addresses in " + e.Block.CIDR.String()
		for i, x := range e.Block.Except {
			if i == 0 {
				text += ", except " + x.String()
			} else {
				text += ", " + x.String()
			}
		}
		return text
	case e.Pods == nil && e.Namespaces == nil:
		return "nobody"
	case e.Namespaces == nil:
		return podsWith(e.Pods) + " in namespace " + p.Key.Namespace
	}
	return podsWith(e.Pods) + " in " + namespacesWith(e.Namespaces)
}

func podsWith(s labels.Selector) string {
	if what := requirements(s); what != "" {
		return "pods with " + what
	}
	return "all pods"
}

func namespacesWith(s labels.Selector) string {
	what := requirements(s)
	if name, ok := strings.CutPrefix(what, inventory.MetadataName+" = "); ok && !strings.Contains(name, " ") {
		return "namespace " + name
	}
	if what == "" {
		return "all namespaces"
	}
	return "namespaces with " + what
}

// requirements says in words what a selector asks for, "" if nothing (S5).
func requirements(s labels.Selector) string {
	if s == nil {
		return ""
	}
	all, ok := s.Requirements()
	if !ok {
		return "labels that nothing has"
	}
	var words []string
	for _, r := range all {
		values := r.Values().List()
		for i, v := range values {
			if v == "" {
				values[i] = `""`
			}
		}
		oneOf := strings.Join(values, " or ")
		switch r.Operator() {
		case selection.Exists:
			words = append(words, "a label "+r.Key())
		case selection.DoesNotExist:
			words = append(words, "no label "+r.Key())
		case selection.NotIn, selection.NotEquals:
			words = append(words, fmt.Sprintf("%s other than %s, or no label %[1]s", r.Key(), oneOf))
		default:
			words = append(words, r.Key()+" = "+oneOf)
		}
	}
	return strings.Join(words, " and ")
}

// ports says in words which ports a rule is about (S14, S20 to S22).
func ports(all []inventory.Port) string {
	if len(all) == 0 {
		return "every port and protocol"
	}
	var words []string
	for _, p := range all {
		switch {
		case p.Name != "":
			words = append(words, fmt.Sprintf("the port named %s/%s", p.Name, p.Protocol))
		case p.First == 0:
			words = append(words, fmt.Sprintf("every port/%s", p.Protocol))
		case p.First == p.Last:
			words = append(words, fmt.Sprintf("%d/%s", p.First, p.Protocol))
		default:
			words = append(words, fmt.Sprintf("%d to %d/%s", p.First, p.Last, p.Protocol))
		}
	}
	return strings.Join(words, ", ")
}

// labelWords gives a pod's labels as "app=web, tier=front".
func labelWords(set labels.Set) string {
	return strings.ReplaceAll(set.String(), ",", ", ")
}
