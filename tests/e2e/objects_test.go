package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const isolateWeb = "podSelector: {matchLabels: {app: web}}"

// warned says whether a source's warnings name all of this.
func (w *world) warned(names ...string) {
	w.t.Helper()
	s, _ := w.status()
	var all []string
	for _, src := range s.Sources {
		all = append(all, src.Warnings...)
	}
	for _, n := range names {
		if !strings.Contains(strings.Join(all, "\n"), n) {
			w.t.Errorf("the warnings do not name %q: %q", n, all)
		}
	}
}

// S1: NetworkPolicy, Pod, Namespace and List are read; another kind is named and
// skipped; a document without apiVersion is an error.
func TestS01Kinds(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	w.must(w.Start())
	w.enforce("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\n",
		"apiVersion: v1\nkind: List\nitems:\n- "+strings.ReplaceAll(strings.TrimSpace(policy("web", isolateWeb)), "\n", "\n  ")+"\n")
	w.see("a policy in a List", "client web 80 no\n web client 80 yes")
	w.warned("ConfigMap")
	w.healthy()
	w.enforce("kind: NetworkPolicy\nmetadata: {name: client}\nspec: {podSelector: {matchLabels: {app: client}}}\n", policy("web", isolateWeb))
	w.see("a policy without apiVersion, and its sibling", "client web 80 no\n web client 80 yes")
	w.degraded("policies.yaml", "apiVersion")
}

// S2: the defaults that an API server would fill in.
func TestS02Defaults(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		w.run("namespace", func() {
			w.enforce("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: all}\nspec: {}\n")
			w.see("metadata.namespace absent is default", "client web 80 no\n web far/stranger 80 yes")
		})
		w.run("protocol", func() {
			w.enforce(policy("web", isolateWeb+", ingress: [{ports: [{port: 80}]}]"))
			w.see("protocol absent is TCP", "client web 80 yes\n client web 80/UDP no\n client web 80/SCTP no\n client web 81 no\n client web ping no")
			w.enforce(policy("web", isolateWeb+", ingress: [{ports: [{}]}]"))
			w.see("also in {}", "client web 81 yes\n client web 80/UDP no\n client web 80/SCTP no\n client web ping no")
		})
		const back = "web client 80 no\n client web 80 no"
		for _, c := range []struct{ name, spec, want string }{
			{"absent", isolateWeb, "client web 80 no\n web client 80 yes"},
			{"absent with egress", isolateWeb + ", egress: [{to: [{podSelector: {matchLabels: {app: other}}}]}]", back + "\n web other 80 yes"},
			{"empty is absent", isolateWeb + ", policyTypes: []", "client web 80 no\n web client 80 yes"},
			{"absent with empty egress", isolateWeb + ", egress: []", "client web 80 no\n web client 80 yes"},
			{"egress only", isolateWeb + ", policyTypes: [Egress]", "client web 80 yes\n web client 80 no"},
			{"ingress only, with egress rules", isolateWeb + ", policyTypes: [Ingress], egress: [{ports: [{port: 1}]}]", "client web 80 no\n web client 80 yes"},
			{"both", isolateWeb + ", policyTypes: [Ingress, Egress]", back},
		} {
			w.run("policyTypes "+c.name, func() {
				w.enforce(policy("web", c.spec))
				w.see(c.name, c.want)
			})
		}
	})
}

// S3: no podSelector is every pod of the policy's namespace, and of no other.
func TestS03NoPodSelector(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		for _, spec := range []string{"policyTypes: [Ingress]", "podSelector: {}"} {
			w.enforce(policy("all", spec))
			w.see(spec, "client web 80 no\n far/stranger client 80 no\n outside other 80 no\n client far/stranger 80 yes")
		}
	})
}

// S4: a namespace needs no object, and its name is always a label of it.
func TestS04NamespaceName(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		allow := policy("web", isolateWeb+", ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: far}}}]}]")
		const want = "far/stranger web 80 yes\n client web 80 no"
		w.enforce(allow)
		w.see("no object", want)
		w.enforce(allow, namespace("far", "team: x"))
		w.see("an object without the label", want)
		w.enforce(allow, namespace("far", "kubernetes.io/metadata.name: near"), namespace("default", "kubernetes.io/metadata.name: far"))
		w.see("objects that say otherwise", want)
	})
}

// S5: selectors, with the two that implementations get wrong.
func TestS05Selectors(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client, other,
		pod{name: "plain", n: 20}, // no labels at all
		pod{name: "front", n: 21, labels: "tier: front, env: prod"},
		pod{name: "back", n: 22, labels: "tier: back, env: prod"},
		pod{name: "empty", n: 23, labels: `tier: ""`})
	w.must(w.Start())
	for _, c := range []struct{ selector, want string }{
		{"matchLabels: {tier: front, env: prod}", "front web 80 yes\n back web 80 no\n plain web 80 no"},
		{"matchLabels: {tier: front, env: test}", "front web 80 no"},
		{"matchExpressions: [{key: tier, operator: In, values: [front, back]}]", "front web 80 yes\n back web 80 yes\n plain web 80 no\n empty web 80 no"},
		{"matchExpressions: [{key: tier, operator: NotIn, values: [front]}]", "front web 80 no\n back web 80 yes\n plain web 80 yes\n empty web 80 yes"},
		{"matchExpressions: [{key: tier, operator: Exists}]", "front web 80 yes\n empty web 80 yes\n plain web 80 no"},
		{"matchExpressions: [{key: tier, operator: DoesNotExist}]", "front web 80 no\n empty web 80 no\n plain web 80 yes\n client web 80 yes"},
		{`matchLabels: {tier: ""}`, "empty web 80 yes\n plain web 80 no\n front web 80 no"},
		{"matchLabels: {env: prod}, matchExpressions: [{key: tier, operator: NotIn, values: [back]}]", "front web 80 yes\n back web 80 no\n plain web 80 no"},
	} {
		w.enforce(policy("web", isolateWeb+", ingress: [{from: [{podSelector: {"+c.selector+"}}]}]"))
		w.see(c.selector, c.want)
	}
	// The same on the target's side.
	w.enforce(policy("x", "podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [front]}]}"))
	w.see("NotIn selects what lacks the key", "client front 80 yes\n client plain 80 no\n client back 80 no")
}

// S6: pods that are not enforced upon and that no selector reaches.
func TestS06NotEnforced(t *testing.T) {
	both(t, "", func(t *testing.T, w *world) {
		ended, failed := pod{name: "ended", n: 31, labels: "app: batch", phase: "Succeeded"}, pod{name: "failed", n: 32, labels: "app: batch", phase: "Failed"}
		leaving := pod{name: "leaving", n: 33, labels: "app: batch"}
		w.pods(web, client, ended, failed, leaving)
		w.must(w.Write("odd.yaml", documents(
			// hostNetwork: its address is the gateway's, which must not be taken for a pod's.
			pod{name: "agent", labels: "app: batch", spec: "hostNetwork: true"}.at("192.168.254.1"),
			pod{name: "young", labels: "app: batch"}.at(),
			strings.Replace(leaving.yaml(), "labels:", `deletionTimestamp: "2026-01-01T00:00:00Z", labels:`, 1),
		)))
		w.must(w.Write("pods.yaml", documents(web.yaml(), client.yaml(), ended.yaml(), failed.yaml())))
		w.must(w.Write("policies.yaml", documents(
			policy("batch", "podSelector: {matchLabels: {app: batch}}"),
			policy("web", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: batch}}}]}]"))))
		w.must(w.Start())
		w.see("ended pods are neither isolated nor peers", `
			client ended 80 yes
			client failed 80 yes
			ended web 80 no
			failed web 80 no`)
		w.see("a terminating pod counts until it is gone", "client leaving 80 no\n leaving web 80 yes")
		w.see("a hostNetwork pod is the gateway", "client gateway 80 yes\n outside gateway 80 yes\n gateway web 80 yes")
		w.healthy()
		if s, _ := w.status(); s.IsolatedPods != 2 || s.Pods != 3 {
			t.Errorf("%d pods, %d isolated; want 3 (web, client, leaving) and 2", s.Pods, s.IsolatedPods)
		}
	})
}

// S7: every address of a pod, in any order, both families; podIP where podIPs is
// absent. A policy that names IPv4 blocks only still isolates IPv6.
func TestS07AllAddresses(t *testing.T) {
	both(t, "", func(t *testing.T, w *world) {
		w.pods(client, other)
		w.pod("web", "10.42.0.12", "10.42.0.112", "fd42::12", "fd42::112")
		w.pod("old", "10.42.0.15")
		w.must(w.Write("web.yaml", documents(
			pod{name: "web", labels: "app: web"}.at("fd42::112", "10.42.0.112", "fd42::12", "10.42.0.12"),
			"apiVersion: v1\nkind: Pod\nmetadata: {name: old, labels: {app: web}}\nstatus: {podIP: 10.42.0.15}\n")))
		w.must(w.Start())
		w.enforce(policy("web", isolateWeb))
		w.see("all four, and podIP", "client web 80 no\n client web 80/UDP no\n client old 80 no\n web client 80 yes")
		w.enforce(policy("web", isolateWeb+", ingress: [{from: [{ipBlock: {cidr: 10.42.0.11/32}}]}]"))
		w.see("an IPv4 block allows no IPv6", "client.4 web.4 80 yes\n client.6 web.6 80 no\n other.4 web.4 80 no\n client.4 old 80 yes")
		w.enforce(policy("client", "podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]"))
		w.see("as peers too", "client web 80 yes\n client other 80 no")
	})
}

// S8: what a broken document leaves in force is S9; here only that the reason
// names file, field, value and remedy.
func TestS08ErrorsAreNamed(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	w.must(w.Start())
	w.enforce(policy("web", isolateWeb), policy("bad", isolateWeb+", ingress: [{ports: [{port: 70000}]}]"))
	w.see("the sibling", "client web 80 no")
	w.degraded("NetworkPolicy default/bad", "70000", "65535")
	w.enforce(policy("web", isolateWeb), policy("bad", isolateWeb+", ingres: []"))
	w.degraded("NetworkPolicy default/bad", "ingres", "ingress")
	w.enforce(policy("web", isolateWeb+", ingress: [{from: [{ipBlock: {cidr: 10.42.0.11/24, except: [10.42.0.128/25]}}]}]"))
	w.see("host bits are masked, with a warning", "client.4 web.4 80 yes\n client.6 web.6 80 no")
	w.warned("10.42.0.11/24")
	w.healthy()
}

// S9: an invalid document is rejected whole; its last valid version stays, and
// its siblings apply.
func TestS09LastValidStays(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		allowClient := policy("web", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]")
		broken := policy("web", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: other}}}]}, {ports: [{port: 0}]}]")
		const last = "client web 80 yes\n other web 80 no\n"
		w.enforce(allowClient)
		w.see("valid", last)

		w.enforce(broken, policy("client", "podSelector: {matchLabels: {app: client}}"))
		w.see("never half enforced, and the sibling is", last+"web client 80 no")
		s := w.degraded("NetworkPolicy default/web", "last valid version stays")
		if len(s.Rejected) != 1 || !s.Rejected[0].Kept || !strings.HasSuffix(s.Rejected[0].File, "policies.yaml:4:128") {
			t.Errorf("rejected: %+v", s.Rejected)
		}

		w.apply("policies.yaml", "kind: NetworkPolicy\nspec:\n  egress:\n  - to\n    - x: y\n")
		w.see("a file that can't be parsed keeps all it had", last+"web client 80 no")
		w.degraded("policies.yaml")

		w.apply("more.yaml", policy("other", "podSelector: {matchLabels: {app: other}}"))
		w.see("other files are enforced", last+"web client 80 no\n web other 80 no")

		w.must(w.Stop())
		w.must(w.Start())
		w.see("over a restart", last+"web client 80 no\n web other 80 no")
		w.degraded("policies.yaml")

		w.enforce(policy("web", isolateWeb))
		w.see("mended", "client web 80 no\n web client 80 yes\n web other 80 no")
		w.healthy()
	})
}

// S9: a directory that is missing or unreadable is not an empty one.
func TestS09DirectoryMissing(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	w.must(w.Start())
	w.enforce(policy("web", isolateWeb))
	aside := w.Dir + ".aside"
	w.must(os.Rename(w.Dir, aside))
	w.must(w.Reload())
	w.see("missing: everything stays", "client web 80 no")
	w.degraded(w.Dir)

	w.must(w.Stop())
	w.must(w.Start())
	w.see("missing at start too", "client web 80 no")
	w.degraded(w.Dir)

	w.must(os.Rename(aside, w.Dir))
	w.eventually("healthy with the directory back, without a reload", func() bool { s, _ := w.status(); return s.Health == "healthy" })
	w.see("back", "client web 80 no")

	files, err := filepath.Glob(filepath.Join(w.Dir, "*.yaml"))
	w.must(err)
	for _, f := range files {
		w.must(os.Remove(f))
	}
	w.must(w.Reload())
	w.see("existing and empty means deleted", "client web 80 yes")
	w.healthy()
}

// S10: of two documents of one name the first in file-name order wins, and the
// error names both places.
func TestS10TwoOfOneName(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		allow := func(app string) string {
			return policy("web", isolateWeb+", ingress: [{from: [{podSelector: {matchLabels: {app: "+app+"}}}]}]")
		}
		w.must(w.Write("20.yaml", allow("client")))
		w.apply("10.yaml", allow("other"))
		w.see("the first by file name", "other web 80 yes\n client web 80 no")
		w.degraded("20.yaml:1", "10.yaml:1", "default/web")
		w.must(w.Remove("10.yaml"))
		w.must(w.Reload())
		w.see("and then the other", "other web 80 no\n client web 80 yes")
		w.healthy()
		w.apply("20.yaml", documents(allow("other"), allow("client")))
		w.see("the first in one file", "other web 80 yes\n client web 80 no")
		w.degraded("20.yaml:1", "20.yaml:6", "default/web")
		w.apply("20.yaml", allow("client"))
		again := pod{name: "web", n: 12, labels: "app: impostor"}
		w.apply("z.yaml", again.yaml())
		w.see("a pod given twice", "other web 80 no\n client web 80 yes")
		w.degraded("Pod default/web", "z.yaml", "pods.yaml")
		w.apply("z.yaml", pod{name: "web-twin", labels: "app: impostor"}.at("10.42.0.12"))
		w.see("two pods with one address", "other web 80 no\n client web 80 yes")
		w.degraded("Pod default/web-twin", "10.42.0.12", "default/web (")
	})
}
