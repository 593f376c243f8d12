package page

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/audit"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/status"
)

// node is an element of a page, or (without a name) a text.
type node struct {
	name, text string
	attrs      []xml.Attr
	children   []*node
}

// parse reads a page: every element that is opened must be closed.
func parse(t *testing.T, page []byte) *node {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(page))
	d.Strict, d.AutoClose, d.Entity = false, append(xml.HTMLAutoClose, "wbr"), xml.HTMLEntity
	root := &node{name: "root"}
	open := []*node{root}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) && len(open) == 1 {
			return root
		}
		if err != nil {
			t.Fatal(err)
		}
		top := open[len(open)-1]
		switch token := token.(type) {
		case xml.StartElement:
			n := &node{name: token.Name.Local, attrs: token.Attr}
			top.children = append(top.children, n)
			open = append(open, n)
		case xml.EndElement:
			if top.name != token.Name.Local {
				t.Fatalf("<%s> is closed by </%s>", top.name, token.Name.Local)
			}
			open = open[:len(open)-1]
		case xml.CharData:
			top.children = append(top.children, &node{text: string(token)})
		}
	}
}

// all gives the elements of a name, in order.
func (n *node) all(name string) (found []*node) {
	for _, c := range n.children {
		if c.name == name {
			found = append(found, c)
		}
		found = append(found, c.all(name)...)
	}
	return found
}

func (n *node) attr(name string) string {
	for _, a := range n.attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// words is the element's text, spaces folded.
func (n *node) words() string {
	var b strings.Builder
	var add func(*node)
	add = func(n *node) {
		b.WriteString(n.text)
		for _, c := range n.children {
			add(c)
		}
		if slices.Contains([]string{"dd", "dt", "th", "td", "li", "p", "h3"}, n.name) {
			b.WriteString(" ")
		}
	}
	add(n)
	return strings.Join(strings.Fields(b.String()), " ")
}

// section is the one whose heading has an id.
func (n *node) section(t *testing.T, id string) *node {
	t.Helper()
	for _, s := range n.all("section") {
		if s.attr("aria-labelledby") == id {
			return s
		}
	}
	t.Fatalf("no section %s", id)
	return nil
}

func wants(t *testing.T, what, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%s: no %q in %q", what, w, got)
		}
	}
}

// Every verdict of the matrix is on the page, in the cell where it belongs.
func TestEveryVerdict(t *testing.T) {
	for _, n := range []int{5, 17, 40} {
		r := crowd(t, n)
		r.Matrix = policy.Matrix(r.Snapshot, r.Options, policy.MatrixRequest{Ports: []policy.MatrixPort{{Protocol: inventory.TCP, Port: 80}, {Protocol: inventory.TCP, Port: 443}, {Protocol: inventory.UDP, Port: 53}}})
		shown := map[[3]string]string{}
		for _, table := range parse(t, write(t, r)).section(t, "reach").all("table") {
			ports, _, _ := strings.Cut(table.all("caption")[0].words(), " destinations")
			to := table.all("thead")[0].all("th")[1:]
			for _, row := range table.all("tbody")[0].all("tr") {
				for i, cell := range row.all("td") {
					for _, port := range strings.Split(ports, ", ") {
						at := [3]string{row.all("th")[0].words(), to[i].words(), port}
						if shown[at] != "" {
							t.Fatalf("%v is there twice", at)
						}
						shown[at] = cell.words()
					}
				}
			}
		}
		for _, c := range r.Matrix {
			want := map[bool]string{true: "yes", false: "no"}[c.Allowed]
			if c.From == c.To {
				want = "self"
			}
			if got := shown[[3]string{c.From, c.To, fmt.Sprintf("%d/%s", c.Port, c.Protocol)}]; got != want {
				t.Errorf("%d pods: %s to %s on %d/%s: %q, want %q", n, c.From, c.To, c.Port, c.Protocol, got, want)
			}
		}
	}
}

// Every pod and every policy is on the page, with all that is to be told.
func TestEveryPodAndPolicy(t *testing.T) {
	r := factory(t)
	page := parse(t, write(t, r))
	pods := map[string]string{}
	for _, row := range page.section(t, "pods").all("tbody")[0].all("tr") {
		pods[strings.Fields(row.all("th")[0].words())[0]] = row.words()
	}
	for _, p := range r.Snapshot.Pods {
		for _, a := range p.Addresses {
			wants(t, p.Key.String(), pods[p.Key.String()], a.String())
		}
	}
	for name, text := range map[string]string{
		"plant/historian":         "isolated by plant/data isolated by plant/data",
		"plant/opcua-bridge":      "open open",
		"web/dashboard":           "open audited: web/dashboard open",
		"vision/metrics":          "not isolated it has the gateway's network",
		"kube-system/cloud-agent": "not isolated neverIsolate names it",
	} {
		wants(t, name, pods[name], text)
	}
	articles := page.section(t, "policies").all("article")
	if len(articles) != len(r.Snapshot.Policies) || len(pods) != len(r.Snapshot.Pods) {
		t.Fatalf("%d policies, %d pods", len(articles), len(pods))
	}
	for i, p := range r.Snapshot.Policies {
		wants(t, p.Key.String(), articles[i].words(), p.Key.String(), audit.Hash(&p.Head), p.Origin.String(), "directory", "2026-03-12 17:26:53 UTC")
	}
	wants(t, "plant/broker", articles[0].words(),
		"pods with app = broker in namespace plant: plant/broker",
		"From pods with app = historian or opcua in namespace plant or all pods in namespaces with zone = office On the port named mqtt/TCP, 1883/TCP",
		"From addresses in 192.168.20.0/24, except 192.168.20.99/32 On 8883/TCP", "Nothing may go out by this policy.")
	wants(t, "plant/data", articles[1].words(), "To pods with no label legacy in namespace kube-system On 53/UDP, 53/TCP")
	wants(t, "vision/cameras", articles[2].words(), "Nothing may come in", "To addresses in 10.0.0.0/8 On every port and protocol")
	wants(t, "web/dashboard", articles[3].words(), "audited, not enforced", "On 8000 to 8080/TCP")
}

// The rest of what an auditor asks for.
func TestTheRest(t *testing.T) {
	r := factory(t)
	page := parse(t, write(t, r))
	wants(t, "header", page.all("header")[0].words(), "gw-line-3.plant.example", "2026-03-14 09:26:53 UTC", "generation 1,284", "edgepolicyd 0.5.0-3f2a91c",
		"degraded", r.Status.Reasons[0], r.Status.Reasons[1], "3 of 6", "offline: what was known last is enforced", "Node gw-line-3", "inet edgepolicyd, present")
	wants(t, "findings", page.section(t, "findings").words(), "rejected NetworkPolicy web/api", "/etc/edgepolicy.d/web.yaml:4:3", "Its last valid version stays in force.",
		"not enforced pod vision/lidar it is attached by macvlan", "warning /etc/edgepolicy.d/plant.yaml:61:3: spec.ingress[0]: the selector matches no pod", "exempts these pods from all policies: kube-system/cloud-agent")
	rows := page.section(t, "denied").all("tbody")[0].all("tr")
	if len(rows) != 3 {
		t.Fatalf("%d denied flows", len(rows))
	}
	wants(t, "denied", rows[1].words(), "plant/historian 10.42.0.11 → web/dashboard 10.42.0.13 8080/TCP denied egress of plant/historian plant/data, plant/gone 2026-03-14 09:25:53 UTC by veth3f2a91c0 1,204")
	wants(t, "denied", rows[2].words(), "203.0.113.9 → web/dashboard 10.42.0.13 22/TCP would deny ingress of web/dashboard")
	sources := page.section(t, "sources").words()
	wants(t, "sources", sources, "kubelet fine 4s before this report", "api can't be read Get \"https://10.0.0.1:6443\"", "directory fine – 2026-03-14 09:25:53 UTC")
	wants(t, "held", page.section(t, "held").words(), "10.42.0.0/24, fd42::/64", "among them: 20,417.", "10.42.0.77")

	none := parse(t, write(t, idle(t)))
	wants(t, "idle", none.words(), "failed flushed by uid 0", "not enforced This is what the sources say", "edgepolicyd answers: what is known is not enforced", "No policy is in force: every pod is open.", "No pods of this gateway are known.", "The daemon has seen no flow being denied.", "are not held")
}

var external = regexp.MustCompile(`(?i)url\(|@import|expression\(|javascript:`)

// Whatever a text says, it stays a text, and nothing leads elsewhere.
func TestTextsStayTexts(t *testing.T) {
	hostilePod := &inventory.Pod{Head: inventory.Head{Key: inventory.Key{Namespace: hostile, Name: hostile}}, Labels: map[string]string{hostile: hostile}}
	hostilePolicy := &inventory.Policy{Head: inventory.Head{Key: inventory.Key{Namespace: hostile, Name: hostile}, Origin: inventory.Origin{Source: hostile, File: hostile, Line: 3}}, Isolates: [2]bool{true, true},
		Rules: [2][]inventory.Rule{{{Ports: []inventory.Port{{Protocol: inventory.TCP, Name: hostile}}}}}}
	r := of(&inventory.Snapshot{Pods: []*inventory.Pod{hostilePod}, Policies: []*inventory.Policy{hostilePolicy}}, status.Status{
		Health: hostile, Reasons: []string{hostile}, NodeName: hostile, NeverIsolated: []string{hostile},
		Hold:          status.Hold{On: true, Ranges: []string{hostile}, Addresses: []string{hostile}},
		Sources:       []status.SourceStatus{{Name: hostile, Error: hostile, Warnings: []string{hostile}}},
		Rejected:      []status.Rejected{{Object: hostile, File: hostile, Reason: hostile}},
		Unenforceable: []status.Unenforceable{{Pod: hostile, Reason: hostile}},
	}, status.DeniedFlow{Verdict: hostile, Direction: hostile, Pod: hostile, Policies: []string{hostile}, From: status.DeniedEnd{Pod: hostile}, Protocol: hostile, Interface: hostile})
	r.Gateway, r.Status.Table, r.Status.DaemonVersion = hostile, hostile, hostile
	r.Matrix = []policy.Cell{{From: hostile, To: "a/b", Port: 80, Protocol: "TCP"}}
	data := write(t, r)
	for _, c := range []string{"\x1b", "\u202e", "\xff", "\x00"} {
		if bytes.Contains(data, []byte(c)) {
			t.Errorf("%q is in the page", c)
		}
	}
	page := parse(t, data)
	if len(page.all("script")) > 0 {
		t.Error("a script is in the page")
	}
	shown := strings.NewReplacer("\x1b", `\u001b`, "\u202e", `\u202e`, "\xff", `\xff`).Replace(hostile)
	if n := strings.Count(page.words(), shown); n < 25 {
		t.Errorf("the text is there %d times only", n)
	}
	var look func(n *node)
	look = func(n *node) {
		for _, a := range n.attrs {
			name := a.Name.Local
			link := name == "href" || name == "src" || name == "action" || name == "srcset" || name == "data"
			if strings.HasPrefix(name, "on") || link && !strings.HasPrefix(a.Value, "#") || name == "style" {
				t.Errorf("<%s %s=%q>", n.name, name, a.Value)
			}
		}
		if slices.Contains([]string{"link", "img", "iframe", "object", "embed", "base", "form", "svg", "video", "audio"}, n.name) {
			t.Errorf("<%s> is in the page", n.name)
		}
		if n.name == "style" && (external.MatchString(n.words()) || strings.Contains(n.words(), "http")) {
			t.Error("the style loads something")
		}
		for _, c := range n.children {
			look(c)
		}
	}
	look(page)
}
