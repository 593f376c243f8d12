package e2e

import (
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/tests/stub"
)

// A gateway with a kubelet and no API: policies come in pods' annotations, each for
// the pod that carries it alone, and stay while its sandbox lives, though the kubelet
// lists a static pod no more from the moment at which its manifest is gone.
func TestPoliciesInAnnotations(t *testing.T) {
	source := strings.Replace(kubeletSource, "}", ", policyAnnotation: true, interval: 1s}", 1)
	w := newCNIWorld(t, "ptp", source, "")
	k := w.startKubelet()
	app := map[string]string{"app": "web"}
	carrier := stub.Pod{Name: "carrier", UID: "uid-of-default/carrier", Labels: app, Annotations: map[string]string{"edgepolicy.io/network-policies": `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-80}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{ports: [{port: 80}]}]
`}}
	sibling := stub.Pod{Name: "sibling", UID: "uid-of-default/sibling", Labels: app}
	k.SetPods(carrier, sibling)
	w.must(w.Start())
	w.add("default/carrier", "default/sibling")
	w.waitFor("both are known", func() bool { s, _ := w.status(); return s.Pods == 2 })
	w.healthy()
	judged := "outside carrier 80 yes\noutside carrier 81 no\noutside sibling 80 yes\noutside sibling 81 yes"
	w.see("the policy is its carrier's", judged)
	if s, _ := w.status(); len(s.Policies) != 1 || s.Policies[0].Name != "default/carrier.only-80" || !strings.Contains(s.Policies[0].File, "annotation of pod default/carrier") {
		t.Errorf("policies: %+v", s.Policies)
	}
	polls := k.Polls()
	k.SetPods(sibling) // its manifest is gone; it serves for its grace period
	w.waitFor("the kubelet says so", func() bool { return k.Polls() > polls+2 })
	time.Sleep(100 * time.Millisecond)
	w.see("while its sandbox lives", judged)

	carrier.Annotations["edgepolicy.io/network-policies"] = "kind: Deployment\n"
	k.SetPods(carrier, sibling)
	w.waitFor("what is no policy is rejected", func() bool { s, _ := w.status(); return len(s.Rejected) == 1 })
	w.degraded("default/carrier")
	w.see("the last valid one stays", judged)
	delete(carrier.Annotations, "edgepolicy.io/network-policies")
	k.SetPods(carrier, sibling)
	w.waitFor("nothing isolates it", func() bool { s, _ := w.status(); return len(s.Policies) == 0 })
	w.see("without it", "outside carrier 81 yes")
}
