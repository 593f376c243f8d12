package kubelet

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

// yaml is a policy that isolates what has app=web.
func yaml(name, namespace string) string {
	if namespace != "" {
		namespace = "\n  namespace: " + namespace
	}
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: %s%s\nspec:\n  podSelector: {}\n  ingress:\n  - ports: [{port: 80}]\n", name, namespace)
}

// carrier is a pod with an annotation.
func carrier(text string) stub.Pod {
	return stub.Pod{Namespace: "shop", Name: "web", IPs: []string{"10.0.0.1"}, Annotations: map[string]string{Annotation: text}}
}

// policies tells a report's policies, and what is rejected ("+" if kept).
func policies(r source.Report) string {
	var all []string
	for _, p := range r.Objects.Policies {
		all = append(all, p.Key.String())
	}
	for _, x := range r.Rejected {
		all = append(all, fmt.Sprintf("!%s%s", x.Object, map[bool]string{true: "+"}[x.Kept]))
	}
	return strings.Join(all, " ")
}

// A pod carries policies: they are its own, in its namespace.
func TestAnnotation(t *testing.T) {
	s, w := wired(t, Config{PolicyAnnotation: true}, nil)
	other := stub.Pod{Namespace: "shop", Name: "other", IPs: []string{"10.0.0.2"}}
	w.SetPods(carrier("# remark\n---\n"+yaml("b", "")+"---\n"+yaml("a", "shop")), other)
	r := refresh(t, s)
	if got := policies(r); got != "shop/web.a shop/web.b" || len(r.Diagnostics) > 0 {
		t.Fatalf("%s, %v", got, r.Diagnostics)
	}
	p := r.Objects.Policies[0]
	if want := (inventory.Origin{Source: "kubelet", Pod: "shop/web", Line: 12, Column: 1}); p.Origin != want {
		t.Errorf("origin %+v, want %+v", p.Origin, want)
	}
	if !p.Selects(podOf(r, "shop/web")) || p.Selects(podOf(r, "shop/other")) {
		t.Error("it does not apply to its pod alone")
	}
	// As the state reads it.
	again := manifest.Decode("kubelet", "", p.JSON)
	if len(again.Documents) != 1 || !again.Documents[0].Valid || again.Documents[0].Key != p.Key || string(again.Documents[0].Policy.JSON) != string(p.JSON) {
		t.Errorf("its JSON is of another policy: %s", p.JSON)
	}
	if port := p.Rules[inventory.Ingress][0].Ports[0]; port.First != 80 || port.Protocol != inventory.TCP {
		t.Errorf("%+v", port)
	}
}

// Off, nothing of it is read, not even from the saved state.
func TestAnnotationOff(t *testing.T) {
	s, w := wired(t, Config{PolicyAnnotation: true}, nil)
	w.SetPods(carrier(yaml("a", "")))
	saved := refresh(t, s).Objects
	if len(saved.Policies) != 1 {
		t.Fatal("nothing to save")
	}
	s, w = wired(t, Config{}, func() inventory.Objects { return saved })
	w.SetPods(carrier("kind: [broken"))
	known, err := s.Known(t.Context())
	must(t, err)
	for _, r := range []source.Report{known, refresh(t, s)} {
		if len(r.Objects.Pods) != 1 || policies(r) != "" || len(r.Diagnostics) > 0 {
			t.Errorf("%s, %v", policies(r), r.Diagnostics)
		}
	}
}

// Each document is judged alone; what is broken leaves its last valid version, and
// what nobody can tell the name of leaves all (S9).
func TestBrokenAnnotation(t *testing.T) {
	s, w := wired(t, Config{PolicyAnnotation: true}, nil)
	last := inventory.Objects{}
	for _, step := range []struct {
		text, want, reason string
		clear              bool
	}{
		{"", "", "", false},
		{yaml("a", "") + "---\n" + yaml("b", "default"), "shop/web.a !NetworkPolicy shop/web.b", "remove the line", false},
		{yaml("a", "") + "---\n" + yaml("b", ""), "shop/web.a shop/web.b", "", false},
		{yaml("a", "") + "---\n" + strings.Replace(yaml("b", ""), "podSelector", "podSelektor", 1), "shop/web.a shop/web.b !NetworkPolicy shop/web.b+", "podSelektor", false},
		{yaml("a", "") + "---\nkind: [broken", "shop/web.a shop/web.b !+", "not YAML", false},
		{"kind: [broken\n---\n" + yaml("c", ""), "shop/web.a shop/web.b shop/web.c !+", "not YAML", false},
		{yaml("a", "") + "---\n" + yaml("a", ""), "shop/web.a !NetworkPolicy shop/web.a+", "names must differ", false},
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n", "shop/web.a !+", "NetworkPolicy documents only", false},
		{"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, spec: {}}\n", "shop/web.a !+", "NetworkPolicy documents only", false},
		{"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n", "shop/web.a !+", "NetworkPolicy documents only", false},
		{strings.Replace(yaml("a", ""), "name: a", "namespace: shop", 1), "shop/web.a !+", "metadata.name", false},
		{yaml("a", "") + "...\n" + yaml("b", ""), "shop/web.a !+", "", false},
		{`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"j"},"spec":{}}`, "shop/web.j", "", false},
		{"", "", "", false},
	} {
		w.SetPods(carrier(step.text))
		r := refresh(t, s)
		if got := policies(r); got != step.want {
			t.Errorf("%q:\n%s, want %s", step.text, got, step.want)
		}
		for _, x := range r.Rejected {
			if !strings.Contains(x.Reason, step.reason) || x.Origin.Pod != "shop/web" || x.Reason == "not valid" {
				t.Errorf("%q: rejected for %q at %+v", step.text, x.Reason, x.Origin)
			}
		}
		if len(r.Rejected) > 0 && (len(r.Diagnostics) == 0 || !strings.Contains(r.Diagnostics[0].String(), "Pod shop/web")) {
			t.Errorf("%q: diagnostics %v", step.text, r.Diagnostics)
		}
		for _, p := range r.Objects.Policies {
			for _, q := range last.Policies {
				if p.Key == q.Key && same(&p.Head, &q.Head) && p != q {
					t.Errorf("%q: %s has another pointer", step.text, p.Key)
				}
			}
		}
		last = r.Objects
	}
}

// What was saved stays while the annotation is broken.
func TestSavedAnnotation(t *testing.T) {
	s, w := wired(t, Config{PolicyAnnotation: true}, nil)
	w.SetPods(carrier(yaml("a", "")))
	saved := refresh(t, s).Objects
	s, w = wired(t, Config{PolicyAnnotation: true}, func() inventory.Objects { return saved })
	w.SetPods(carrier("kind: [broken"))
	if r := refresh(t, s); policies(r) != "shop/web.a !+" || r.Objects.Policies[0] != saved.Policies[0] {
		t.Errorf("%s", policies(r))
	}
}

// The policies go with their pod.
func TestAnnotationGoesWithThePod(t *testing.T) {
	s, w := wired(t, Config{PolicyAnnotation: true}, nil)
	other := stub.Pod{Namespace: "shop", Name: "other", IPs: []string{"10.0.0.2"}}
	w.SetPods(carrier(yaml("a", "")), other)
	refresh(t, s)
	s.belief.sign = s.belief.sign.Add(-settle) // no start in sight
	w.SetPods(other)
	if r := refresh(t, s); policies(r) != "" || len(r.Objects.Pods) != 1 {
		t.Errorf("%s", describe(r))
	}
}

// Names are valid and tell all pairs of pod and policy apart.
func TestPolicyName(t *testing.T) {
	long := strings.Repeat("a", 250)
	seen := map[string]string{}
	for _, pod := range []string{"a", "b", "a.b", "a.b.c", "b.c", long, long + "b", long[:200] + ".b", strings.Repeat("a.", 120) + "a"} {
		for _, policy := range []string{"a", "c", "b.c", "c.b", "b", long, long + "b", strings.Repeat("b.", 120) + "b"} {
			name := policyName(pod, policy)
			if messages := validation.IsDNS1123Subdomain(name); len(messages) > 0 {
				t.Errorf("%s, %s: %s: %v", pod, policy, name, messages)
			}
			if other, twice := seen[name]; twice {
				t.Errorf("%s is %s/%s and %s", name, pod, policy, other)
			}
			seen[name] = pod + "/" + policy
		}
	}
	if got := policyName("web", "deny"); got != "web.deny" {
		t.Error(got)
	}
}

// Any text in the annotation is read without harm, and what comes of it is sound.
func FuzzAnnotation(f *testing.F) {
	f.Add(yaml("a", "") + "---\n" + yaml("b", "shop"))
	f.Add("--- \n...\n---x\n---\n{}")
	f.Add("%YAML 1.2\n---\nkind: NetworkPolicy")
	f.Fuzz(func(t *testing.T, text string) {
		for _, c := range carriedBy(inventory.Key{Namespace: "shop", Name: "web"}, text) {
			switch {
			case c.policy == nil && c.rejected.Reason == "":
				t.Error("rejected without a reason")
			case c.policy != nil && (c.policy.Key.Namespace != "shop" || c.policy.Origin.Pod != "shop/web"):
				t.Errorf("%+v", c.policy.Head)
			case c.policy != nil:
				again := manifest.Decode("kubelet", "", c.policy.JSON)
				if len(again.Documents) != 1 || again.Documents[0].Key != c.policy.Key {
					t.Errorf("its JSON is another's: %s", c.policy.JSON)
				}
			}
		}
	})
}
