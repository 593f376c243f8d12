package report

import (
	"bufio"
	"errors"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

func escaped(s string) string {
	var b strings.Builder
	escape(&b, s)
	return b.String()
}

func TestEscape(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"default/web", "default/web"},
		{`<a href="x" onclick='y'>&amp;`, "&lt;a href=&#34;x&#34; onclick=&#39;y&#39;&gt;&amp;amp;"},
		{"Büro 東京 🙂", "Büro 東京 🙂"},
		{"\x00\x1b[31m\x7f\u0085", `\u0000\u001b[31m\u007f\u0085`},
		{"\u202egnp.exe\u2066\u200b\ufeff", `\u202egnp.exe\u2066\u200b\ufeff`},
		{"a\xffb\xc3", `a\xffb\xc3`},
		{"\ufffd", "\ufffd"},
		{"two\nlines\r\n", "two\nlines\\u000d\n"},
	} {
		if got := escaped(c.text); got != c.want {
			t.Errorf("%q: got %q, want %q", c.text, got, c.want)
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("<script>\x1b\u202e\xff&#34;")
	f.Fuzz(func(t *testing.T, s string) {
		if got := escaped(s); strings.ContainsAny(got, "<>\"'\x00\x1b\r") || strings.ContainsRune(got, '\u202e') || strings.ToValidUTF8(got, "") != got {
			t.Errorf("%q gives %q", s, got)
		}
	})
}

func TestPut(t *testing.T) {
	var b strings.Builder
	p := page{bufio.NewWriter(&b)}
	p.put(`<b title="{}">{}</b>{}`, `"{}"`, "<{}>", "end")
	p.put("a{b}")
	p.name("kube-system/<b>")
	p.name("gateway")
	if err := p.Flush(); err != nil {
		t.Fatal(err)
	}
	const want = `<b title="&#34;{}&#34;">&lt;{}&gt;</b>enda{b}<span class="ns">kube-system/</span><wbr>&lt;b&gt;gateway`
	if b.String() != want {
		t.Errorf("got %s, want %s", b.String(), want)
	}
}

type full struct{ left int }

func (f *full) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errors.New("full")
	}
	return len(p), nil
}

// A page that could not be written whole is an error, wherever it ends.
func TestWriteTellsErrors(t *testing.T) {
	r := Report{Snapshot: &inventory.Snapshot{}, Options: &inventory.Options{}}
	for _, left := range []int{0, 5000, 9000} {
		if err := Write(&full{left}, r); err == nil || err.Error() != "full" {
			t.Errorf("after %d bytes: %v", left, err)
		}
	}
	if err := Write(&full{1 << 20}, r); err != nil {
		t.Error(err)
	}
}

func selector(t *testing.T, s *metav1.LabelSelector) labels.Selector {
	t.Helper()
	got, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestSelectorsInWords(t *testing.T) {
	match := func(key string, op metav1.LabelSelectorOperator, values ...string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: op, Values: values}}}
	}
	for _, c := range []struct {
		s                *metav1.LabelSelector
		pods, namespaces string
	}{
		{&metav1.LabelSelector{}, "all pods", "all namespaces"},
		{nil, "pods with labels that nothing has", "namespaces with labels that nothing has"},
		{&metav1.LabelSelector{MatchLabels: map[string]string{"b": "", "a": "x"}}, `pods with a = x and b = ""`, `namespaces with a = x and b = ""`},
		{match("a", metav1.LabelSelectorOpIn, "x", "y"), "pods with a = x or y", "namespaces with a = x or y"},
		{match("a", metav1.LabelSelectorOpNotIn, "x"), "pods with a other than x, or no label a", "namespaces with a other than x, or no label a"},
		{match("a", metav1.LabelSelectorOpExists), "pods with a label a", "namespaces with a label a"},
		{match("a", metav1.LabelSelectorOpDoesNotExist), "pods with no label a", "namespaces with no label a"},
		{&metav1.LabelSelector{MatchLabels: map[string]string{inventory.MetadataName: "x"}}, "pods with kubernetes.io/metadata.name = x", "namespace x"},
		{match(inventory.MetadataName, metav1.LabelSelectorOpIn, "x", "y"), "pods with kubernetes.io/metadata.name = x or y", "namespaces with kubernetes.io/metadata.name = x or y"},
	} {
		s := selector(t, c.s)
		if pods, namespaces := podsWith(s), namespacesWith(s); pods != c.pods || namespaces != c.namespaces {
			t.Errorf("%s: got %q and %q, want %q and %q", s, pods, namespaces, c.pods, c.namespaces)
		}
	}
}

func TestPeersAndPortsInWords(t *testing.T) {
	p := &inventory.Policy{Head: inventory.Head{Key: inventory.Key{Namespace: "own", Name: "p"}}}
	x := selector(t, &metav1.LabelSelector{MatchLabels: map[string]string{"a": "x"}})
	for _, c := range []struct {
		e    inventory.Peer
		want string
	}{
		{inventory.Peer{Pods: x}, "pods with a = x in namespace own"},
		{inventory.Peer{Namespaces: x}, "all pods in namespaces with a = x"},
		{inventory.Peer{Pods: x, Namespaces: labels.Everything()}, "pods with a = x in all namespaces"},
		{inventory.Peer{}, "nobody"},
	} {
		if got := peer(p, c.e); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	if got := ports([]inventory.Port{{Protocol: inventory.SCTP, Last: 65535}, {Protocol: inventory.UDP, First: 1, Last: 9}}); got != "every port/SCTP, 1 to 9/UDP" {
		t.Errorf("ports: %q", got)
	}
	p.Origin.Pod = "own/web"
	if got := selected(p); got != "pod own/web alone, by its annotation" {
		t.Errorf("selected: %q", got)
	}
}

// Each pair is summed up as matrix does on a terminal; equal ports share a table.
func TestGrids(t *testing.T) {
	cell := func(to, ip string, port uint16, allowed, would bool) policy.Cell {
		return policy.Cell{From: "a", To: to, ToIP: ip, Port: port, Protocol: "TCP", Allowed: allowed, WouldDeny: would}
	}
	var cells []policy.Cell
	for _, port := range []uint16{443, 80, 81} {
		cells = append(cells,
			cell("a", "10.0.0.1", port, true, false),
			cell("yes", "10.0.0.2", port, true, false), cell("yes", "fd00::2", port, true, false),
			cell("no", "10.0.0.3", port, false, false), cell("no", "", port, false, false),
			cell("four", "10.0.0.4", port, true, false), cell("four", "fd00::4", port, false, false),
			cell("six", "10.0.0.5", port, false, false), cell("six", "fd00::5", port, true, false),
			cell("part", "10.0.0.6", port, true, false), cell("part", "10.0.0.7", port, false, false),
			cell("tried", "10.0.0.8", port, true, port != 81))
	}
	names, all := grids(cells)
	if strings.Join(names, " ") != "a yes no four six part tried" {
		t.Fatalf("names %q", names)
	}
	if len(all) != 2 || portList(all[0].ports) != "80/TCP, 443/TCP" || portList(all[1].ports) != "81/TCP" {
		t.Fatalf("%d tables: %v", len(all), all)
	}
	want := []mark{self, reached, denied, only4, only6, partly, tried}
	for i := range names {
		if got := all[0].marks[i]; got != want[i] {
			t.Errorf("to %s: %d, want %d", names[i], got, want[i])
		}
		if got := all[0].marks[len(names)+i]; got != unasked {
			t.Errorf("from yes to %s: %d", names[i], got)
		}
	}
	if got := all[1].marks[6]; got != reached {
		t.Errorf("81/TCP: %d", got)
	}
	if names, all := grids(nil); len(names)+len(all) > 0 {
		t.Errorf("of nothing: %v %v", names, all)
	}
}

func TestNumbers(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := number(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
	if count(1, "pod", "pods") != "1 pod" || count(2000, "pod", "pods") != "2,000 pods" {
		t.Error("count")
	}
}
