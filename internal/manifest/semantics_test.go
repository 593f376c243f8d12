package manifest

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// one decodes a file that must hold one valid document and nothing to say.
func one(t *testing.T, text string) Document {
	t.Helper()
	f := Decode("directory", "f.yaml", []byte(text))
	if !f.Parsed || len(f.Documents) != 1 || !f.Documents[0].Valid || len(f.Diagnostics) > 0 {
		t.Fatalf("%s\n%+v", text, f)
	}
	return f.Documents[0]
}

func policySpec(spec string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: " + spec + "\n"
}

func TestS02Defaults(t *testing.T) {
	both, ingress, egress := [2]bool{true, true}, [2]bool{true, false}, [2]bool{false, true}
	for spec, want := range map[string][2]bool{
		"{}":                                         ingress,
		"{egress: []}":                               ingress,
		"{egress: null}":                             ingress,
		"{egress: [{}]}":                             both,
		"{policyTypes: []}":                          ingress,
		"{policyTypes: [], egress: [{}]}":            both,
		"{policyTypes: [Egress]}":                    egress,
		"{policyTypes: [Egress, Ingress]}":           both,
		"{policyTypes: [Ingress, Ingress]}":          ingress,
		"{podSelector: null, policyTypes: [Egress]}": egress,
	} {
		doc := one(t, policySpec(spec))
		if doc.Policy.Isolates != want {
			t.Errorf("%s isolates %v, want %v", spec, doc.Policy.Isolates, want)
		}
		if doc.Key != (inventory.Key{Namespace: "default", Name: "p"}) {
			t.Errorf("key %v", doc.Key)
		}
	}
	p := one(t, policySpec("{ingress: [{ports: [{}, {port: 53, protocol: UDP}, {port: http}, {port: 1, endPort: 65535, protocol: SCTP}]}]}")).Policy
	want := []inventory.Port{
		{Protocol: inventory.TCP, Last: 65535}, {Protocol: inventory.UDP, First: 53, Last: 53},
		{Protocol: inventory.TCP, Name: "http"}, {Protocol: inventory.SCTP, First: 1, Last: 65535},
	}
	if got := p.Rules[inventory.Ingress][0].Ports; !reflect.DeepEqual(got, want) {
		t.Errorf("ports %v, want %v", got, want)
	}
}

func TestS03PodSelectorAbsent(t *testing.T) {
	for _, spec := range []string{"{}", "{podSelector: {}}", "{podSelector: null}", "{podSelector: {matchLabels: {}, matchExpressions: []}}"} {
		if s := one(t, policySpec(spec)).Policy.Selector; !s.Matches(labels.Set{"any": "thing"}) || !s.Matches(labels.Set{}) {
			t.Errorf("%s does not select every pod", spec)
		}
	}
	if p := one(t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\n").Policy; !p.Isolates[inventory.Ingress] {
		t.Error("a policy without spec does not isolate")
	}
}

func TestS05Selectors(t *testing.T) {
	for spec, want := range map[string][3]bool{ // matches {}, {k: ""}, {k: v}
		`{matchLabels: {k: ""}}`: {false, true, false},
		`{matchLabels: {k: v}}`:  {false, false, true},
		`{matchExpressions: [{key: k, operator: NotIn, values: [v]}]}`:                      {true, true, false},
		`{matchExpressions: [{key: k, operator: DoesNotExist}]}`:                            {true, false, false},
		`{matchExpressions: [{key: k, operator: Exists}]}`:                                  {false, true, true},
		`{matchLabels: {k: v}, matchExpressions: [{key: k, operator: NotIn, values: [v]}]}`: {},
	} {
		s := one(t, policySpec("{podSelector: "+spec+"}")).Policy.Selector
		got := [3]bool{s.Matches(labels.Set{}), s.Matches(labels.Set{"k": ""}), s.Matches(labels.Set{"k": "v"})}
		if got != want {
			t.Errorf("%s matches %v, want %v", spec, got, want)
		}
	}
}

func TestS07Addresses(t *testing.T) {
	for status, want := range map[string][]netip.Addr{
		"{}":                  nil,
		"{podIP: 10.0.0.1}":   {netip.MustParseAddr("10.0.0.1")},
		"{podIP: 010.0.0.01}": {netip.MustParseAddr("10.0.0.1")},
		`{podIP: ""}`:         nil,
		`{podIPs: [{ip: "fd00::1"}, {ip: 10.0.0.2}, {ip: "::ffff:10.0.0.1"}, {ip: 10.0.0.2}], podIP: 10.9.9.9}`: {
			netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1")},
	} {
		if got := one(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: "+status).Pod.Addresses; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", status, got, want)
		}
	}
	for _, bad := range []string{"10.0.0", "fe80::1%eth0", "web", "10.0.0.1/32"} {
		f := Decode("d", "f", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIPs: [{ip: \""+bad+"\"}]}"))
		if f.Documents[0].Valid {
			t.Errorf("%s is taken as an address", bad)
		}
	}
}

func TestS08Prefixes(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.2.3/8": "10.0.0.0/8", "010.0.0.0/8": "10.0.0.0/8", "10.0.0.0/08": "10.0.0.0/8", "0.0.0.0/00": "0.0.0.0/0",
		"::ffff:10.0.0.0/104": "10.0.0.0/8", "::ffff:010.1.2.3/128": "10.1.2.3/32", "::ffff:10.0.0.0/90": "::ffc0:0:0/90",
		"FD00:0::/64": "fd00::/64", "fd00::1/64": "fd00::/64", "10.0.0.1/32": "10.0.0.1/32", "::/0": "::/0",
		"10.0.0.1": "", "10.0.0.0/33": "", "/8": "", "": "", "10.0.0.0/": "", "10.0.0.0/-1": "", "10.0.0.0/+8": "", "fe80::%eth0/64": "",
		"fe80::/64%eth0": "", "10..0.0/8": "", "10.0.0.0/8/8": "", " 10.0.0.0/8": "",
	} {
		got, remark, ok := parsePrefix(text)
		if ok != (want != "") || (ok && got.String() != want) || (ok && (remark == "") != (text == want)) {
			t.Errorf("%q: %v %q %v, want %q", text, got, remark, ok, want)
		}
	}
}

// TestS08OddPods: fields that are not read may hold anything.
func TestS08OddPods(t *testing.T) {
	pod := one(t, `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "annotations": {"smile": "\ud83d\ude00 \ud83d \\ud83d", "n": 5}, "new": {}},
	"spec": {"nodeName": 11772914044800000000000100100000, "containers": [{"newer": [null], "ports": [{"containerPort": 80, "hostPort": "x"}]}], "volumes": 7},
	"status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1", "interface": "eth0"}], "qosClass": []}, "extra": 1}`).Pod
	if !pod.Enforceable() {
		t.Error("not enforceable")
	}
}

func TestS08Words(t *testing.T) {
	f := Decode("d", "f", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {a: y, b: no, c: on, d: OFF, e: \"yes\", f: yup}}\nspec: {hostNetwork: yes}"))
	pod := f.Documents[0].Pod
	want := labels.Set{"a": "y", "b": "no", "c": "on", "d": "OFF", "e": "yes", "f": "yup"}
	if pod == nil || !reflect.DeepEqual(pod.Labels, want) || !pod.HostNetwork || len(f.Diagnostics) != 5 {
		t.Fatalf("%+v", f)
	}
	for _, bad := range []string{"true", "8080", "1.5", "null", "~", "", "0x10", "1e3", "[a]", "{a: b}", "!!binary aGk=", "!mine x"} {
		f := Decode("d", "f", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {a: "+bad+"}}"))
		if f.Documents[0].Valid {
			t.Errorf("label value %s accepted", bad)
		}
	}
}

// TestS09Identity: an invalid document says which object it would have been, so
// that the last valid version of just that one is kept.
func TestS09Identity(t *testing.T) {
	for text, want := range map[string]Document{
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, namespace: b}\nspec: {x: 1}": {Kind: "NetworkPolicy", Key: inventory.Key{Namespace: "b", Name: "a"}},
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: []":                   {Kind: "NetworkPolicy", Key: inventory.Key{Namespace: "default", Name: "a"}},
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {b: 1}}":                                   {Kind: "Namespace", Key: inventory.Key{Name: "a"}},
		"apiVersion: v1\nkind: Pod\nmetadata: {name: 12}":                                                        {Kind: "Pod", Key: inventory.Key{Namespace: "default", Name: "12"}},
		"apiVersion: v1\nkind: Pod\nmetadata: {labels: {a: b}}":                                                  {Kind: "Pod", Key: inventory.Key{Namespace: "default"}},
		"apiVersion: v1\nkind: Pod\nmetadata: [name]":                                                            {Kind: "Pod", Key: inventory.Key{Namespace: "default"}},
		"metadata: {name: a}":                             {Key: inventory.Key{Namespace: "default", Name: "a"}},
		"apiVersion: v1\nkind: List\nitems: 5":            {Kind: "List"},
		"apiVersion: v1\nkind: List\nitems: []\nmore: []": {Kind: "List"},
	} {
		f := Decode("d", "f", []byte(text))
		if !f.Parsed || len(f.Documents) != 1 || len(f.Diagnostics) == 0 {
			t.Fatalf("%s: %+v", text, f)
		}
		got := f.Documents[0]
		if got.Valid || got.Kind != want.Kind || got.Key != want.Key {
			t.Errorf("%s: %+v", text, got)
		}
	}
}

func TestS20NamedPorts(t *testing.T) {
	pod := one(t, `
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  initContainers:
  - {name: side, restartPolicy: Always, ports: [{name: metrics, containerPort: 9100}]}
  - {name: once, ports: [{name: once, containerPort: 0}]}
  containers:
  - ports: [{name: dns, containerPort: 53, protocol: UDP}, {containerPort: 99}, {name: dns-tcp, containerPort: 53}]
  - {}
  - ports: [{name: dns, containerPort: 54, protocol: UDP}]
`).Pod
	want := []inventory.NamedPort{
		{Name: "dns", Protocol: inventory.UDP, Port: 53}, {Name: "dns-tcp", Protocol: inventory.TCP, Port: 53},
		{Name: "dns", Protocol: inventory.UDP, Port: 54}, {Name: "metrics", Protocol: inventory.TCP, Port: 9100},
	}
	if !reflect.DeepEqual(pod.Ports, want) {
		t.Errorf("%v, want %v", pod.Ports, want)
	}
}

// TestRoundTrip: the canonical JSON of an object is read back to an equal one,
// and says what is read and nothing else.
func TestRoundTrip(t *testing.T) {
	for text, want := range map[string]string{
		`{apiVersion: v1, kind: Namespace, metadata: {name: n, labels: {b: x, a: "y"}, uid: u}, spec: {finalizers: [kubernetes]}}`: `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"n","labels":{"a":"y","b":"x"}}}`,
		`{apiVersion: v1, kind: Pod, metadata: {name: p}}`:                                                                         `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"default"}}`,
		`{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {a: b}}, spec: {nodeName: x, hostNetwork: true, containers: [{name: c, ports: [{name: http, containerPort: 80}, {containerPort: 81}]}, {name: d}],
		  initContainers: [{restartPolicy: Always, ports: [{name: m, containerPort: 9, protocol: SCTP}]}, {ports: [{name: gone, containerPort: 5}]}]},
		  status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: "FD00::1"}, {ip: 010.0.0.1}]}}`: `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"default","labels":{"a":"b"}},"spec":{"nodeName":"x","hostNetwork":true,"initContainers":[{"restartPolicy":"Always","ports":[{"name":"m","containerPort":9,"protocol":"SCTP"}]}],"containers":[{"ports":[{"name":"http","containerPort":80,"protocol":"TCP"}]}]},"status":{"phase":"Running","podIPs":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}]}}`,
		policySpec(`{egress: [{to: [{ipBlock: {cidr: 10.1.2.3/8, except: ["::ffff:10.1.0.0/112"]}}, {podSelector: {}, namespaceSelector: {matchLabels: {a: b}}}], ports: [{port: 1}, {port: http, protocol: UDP}]}, {to: []}]}`): `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p","namespace":"default"},"spec":{"podSelector":{},"egress":[{"ports":[{"protocol":"TCP","port":1},{"protocol":"UDP","port":"http"}],"to":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}},{"podSelector":{},"namespaceSelector":{"matchLabels":{"a":"b"}}}]},{}],"policyTypes":["Ingress","Egress"]}}`,
	} {
		f := Decode("directory", "f.yaml", []byte(text))
		if len(f.Documents) != 1 || !f.Documents[0].Valid {
			t.Fatalf("%s: %v", text, f.Diagnostics)
		}
		if got := string(object(f.Documents[0]).JSON); got != want {
			t.Errorf("canonical form\n got %s\nwant %s", got, want)
		}
		wantRoundTrip(t, f.Documents[0])
	}
}

func object(doc Document) inventory.Head {
	switch {
	case doc.Pod != nil:
		return doc.Pod.Head
	case doc.Policy != nil:
		return doc.Policy.Head
	}
	return doc.Namespace.Head
}

func wantRoundTrip(t *testing.T, doc Document) {
	t.Helper()
	again := Decode(doc.Origin.Source, doc.Origin.File, object(doc).JSON)
	if len(again.Documents) != 1 || !again.Documents[0].Valid {
		t.Fatalf("%s is not read back: %v", object(doc).JSON, again.Diagnostics)
	}
	back := again.Documents[0]
	for _, h := range []*Document{&back, &doc} { // the place differs, rightly
		h.Origin = inventory.Origin{}
		switch {
		case h.Pod != nil:
			c := *h.Pod
			c.Origin, h.Pod = inventory.Origin{}, &c
		case h.Namespace != nil:
			c := *h.Namespace
			c.Origin, h.Namespace = inventory.Origin{}, &c
		case h.Policy != nil:
			c := *h.Policy
			c.Origin, h.Policy = inventory.Origin{}, &c
		}
	}
	if a, b := fmt.Sprintf("%+v", deep(doc)), fmt.Sprintf("%+v", deep(back)); a != b {
		t.Errorf("read back differently:\n%s\n%s", a, b)
	}
}

// deep shows a document without its pointers.
func deep(doc Document) []any {
	switch {
	case doc.Pod != nil:
		return []any{doc.Kind, doc.Key, *doc.Pod}
	case doc.Namespace != nil:
		return []any{doc.Kind, doc.Key, *doc.Namespace}
	}
	var peers []any
	for _, d := range inventory.Directions {
		for _, r := range doc.Policy.Rules[d] {
			for _, p := range r.Peers {
				peers = append(peers, fmt.Sprint(p.Pods, p.Namespaces))
				if p.Block != nil {
					peers = append(peers, *p.Block)
				}
			}
			peers = append(peers, "ports", r.Ports)
		}
	}
	return []any{doc.Kind, doc.Key, string(doc.Policy.JSON), doc.Policy.Selector.String(), doc.Policy.Isolates, peers}
}

func TestAliases(t *testing.T) {
	doc := one(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p}
spec:
  podSelector: &web {matchLabels: &l {app: web}}
  ingress:
  - from: [{podSelector: *web}, {podSelector: {matchLabels: *l}}]
`)
	if n := len(doc.Policy.Rules[inventory.Ingress][0].Peers); n != 2 {
		t.Errorf("%d peers", n)
	}
}

// TestLimits: what is made to exhaust the daemon is refused, and says which
// limit it met.
func TestLimits(t *testing.T) {
	bomb := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  ingress:\n"
	bomb += "  - from: &a [" + strings.Repeat("{podSelector: {matchLabels: {a: b}}},", 1000) + "{podSelector: {}}]\n"
	bomb += strings.Repeat("  - from: *a\n", 1000)
	for name, c := range map[string]struct{ text, want string }{
		"size":      {strings.Repeat("#", maxFileSize+1), "a file may have at most 4194304"},
		"documents": {strings.Repeat("--- a\n", maxDocuments+1), "more than 20000 documents"},
		"items":     {"apiVersion: v1\nkind: List\nitems: [" + strings.Repeat("a,", maxDocuments+1) + "]", "more than 20000 objects"},
		"aliases":   {bomb, "more than 500000 values in one object"},
		"depth":     {strings.Repeat("[", 20000), "nested deeper"},
		"cycle":     {"apiVersion: v1\nkind: List\nitems: &a [{apiVersion: v1, kind: List, items: *a}]", "a List in a List"},
	} {
		f := Decode("d", "f", []byte(c.text))
		if len(f.Diagnostics) == 0 || !strings.Contains(f.Diagnostics[0].Message, c.want) || f.Diagnostics[0].Severity != Error {
			t.Errorf("%s: %.500v", name, f.Diagnostics)
		}
		for _, doc := range f.Documents {
			if doc.Valid {
				t.Errorf("%s: valid", name)
			}
		}
		if len(f.Diagnostics) > maxTold+maxDocuments {
			t.Errorf("%s: %d diagnostics", name, len(f.Diagnostics))
		}
	}
}

func TestDiagnosticString(t *testing.T) {
	for want, d := range map[string]Diagnostic{
		"f.yaml:3:7: spec.x: v: m":                       {File: "f.yaml", Line: 3, Column: 7, Field: "spec.x", Value: "v", Message: "m"},
		"f.yaml:3: m":                                    {File: "f.yaml", Line: 3, Message: "m"},
		"f.yaml: m":                                      {File: "f.yaml", Message: "m"},
		"Pod default/x: metadata: m":                     {Object: "Pod default/x", Field: "metadata", Message: "m"},
		`a\nb: \x1b[31m: \u202e\xff: ü`:                  {File: "a\nb", Field: "\x1b[31m", Value: "\u202e\xff", Message: "ü"},
		"m: " + strings.Repeat("x", maxValue) + "...: m": {File: "m", Value: strings.Repeat("x", 5000), Message: "m"},
	} {
		if got := d.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestNearest(t *testing.T) {
	for word, want := range map[string]string{
		"pod-service": "service-pod", "servcie-pod": "service-pod", "Service-Pod": "service-pod", "podselector": "podSelector",
		"a": "", "entirely-different": "", "htpt": "http", "": "",
	} {
		if got := nearest(word, []string{"", "service-pod", "podSelector", "http", "role"}); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

// TestLongValues: what is told of a huge value stays small, also in JSON.
func TestLongValues(t *testing.T) {
	f := Decode("d", "f", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {"+strings.Repeat("k", 1<<20)+": "+strings.Repeat("9", 1<<20)+"}}"))
	data, err := json.Marshal(f.Diagnostics)
	if err != nil || len(f.Diagnostics) == 0 || len(data) > 20000 {
		t.Errorf("%d diagnostics, %d bytes, %v", len(f.Diagnostics), len(data), err)
	}
}

// TestSeverityJSON: a severity is its name in JSON, both ways.
func TestSeverityJSON(t *testing.T) {
	for _, s := range []Severity{Error, Warning} {
		data, err := json.Marshal(Diagnostic{Severity: s, Message: "m"})
		var back Diagnostic
		if err != nil || !strings.Contains(string(data), `"severity":"`+s.String()+`"`) || json.Unmarshal(data, &back) != nil || back.Severity != s {
			t.Errorf("%s: %s, %v", s, data, err)
		}
	}
}

func BenchmarkDecodePolicy(b *testing.B) {
	text := []byte(policySpec("{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {podSelector: {matchLabels: {a: b}}}], ports: [{port: 80}]}]}"))
	b.ReportAllocs()
	for b.Loop() {
		Decode("directory", "f.yaml", text)
	}
}

// TestS08ExceptLarger: an except that starts where cidr does, yet is larger.
func TestS08ExceptLarger(t *testing.T) {
	f := Decode("d", "f", []byte(policySpec("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/7]}}]}]}")))
	if f.Documents[0].Valid || f.Diagnostics[0].Field != "spec.ingress[0].from[0].ipBlock.except[0]" {
		t.Errorf("%+v", f)
	}
}

// TestManyFindings: of many errors some are told, and of many warnings before
// them still the error that rejects the document.
func TestManyFindings(t *testing.T) {
	words := strings.Repeat("{podSelector: {matchLabels: {a: no}}}, ", 500)
	f := Decode("d", "f", []byte(policySpec("{ingress: [{from: ["+words+strings.Repeat("{}, ", 500)+"]}]}")))
	count := [2]int{}
	for _, d := range f.Diagnostics {
		count[d.Severity]++
	}
	if f.Documents[0].Valid || count != [2]int{maxFindings, maxFindings} {
		t.Errorf("%v of each severity", count)
	}
}
