package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/source"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// gateway is one as the source sees it: two folders, sandboxes (any files), and
// interfaces.
type gateway struct {
	t        testing.TB
	top      string
	results  string
	configs  string
	sandboxs string
	*Source

	mu    sync.Mutex
	links map[string]string
	err   error
}

func newGateway(t testing.TB) *gateway {
	t.Helper()
	top := t.TempDir()
	g := &gateway{t: t, top: top, results: filepath.Join(top, "lib", "results"), configs: filepath.Join(top, "etc", "net.d"),
		sandboxs: filepath.Join(top, "netns"), links: map[string]string{"eth0": "", "cni0": "bridge"}}
	for _, dir := range []string{g.results, g.configs, g.sandboxs} {
		must(t, os.MkdirAll(dir, 0o700))
	}
	g.restart()
	return g
}

// restart makes the source anew.
func (g *gateway) restart() {
	g.Source = New(Config{ResultsDir: g.results, ConfigDir: g.configs, Interfaces: g.list}, slog.New(slog.DiscardHandler))
}

func (g *gateway) list(context.Context) (map[string]string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return nil, g.err
	}
	return maps.Clone(g.links), nil
}

// link makes interfaces, unlink takes them away.
func (g *gateway) link(kind string, names ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range names {
		g.links[n] = kind
	}
}

func (g *gateway) unlink(names ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range names {
		delete(g.links, n)
	}
}

func (g *gateway) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = err
}

// sandbox makes a network namespace, as far as the source looks.
func (g *gateway) sandbox(name string) string {
	g.t.Helper()
	path := filepath.Join(g.sandboxs, name)
	must(g.t, os.WriteFile(path, nil, 0o600))
	return path
}

// conflist is the configuration of a bridge.
func conflist(name, bridge, subnet string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"bridge","bridge":%q,"ipam":{"type":"host-local","subnet":%q}},{"type":"portmap"}]}`,
		name, bridge, subnet)
}

// spec is a result to be written.
type spec struct {
	pod, namespace, uid string
	sandbox, network    string // the container's id, and the network
	netns, ifName       string
	config              string
	result              string // JSON; "" makes one of a pod on a bridge
	veth                string
	addresses           []string
}

func (x spec) file() string { return fmt.Sprintf("%s-%s-%s", x.network, x.sandbox, x.ifName) }

func (x spec) json() []byte {
	result := x.result
	if result == "" {
		var ips []string
		for _, a := range x.addresses {
			ips = append(ips, fmt.Sprintf(`{"address":%q,"interface":2}`, a))
		}
		result = fmt.Sprintf(`{"cniVersion":"1.0.0","interfaces":[{"name":"cni0"},{"name":%q},{"name":"eth0","sandbox":%q}],"ips":[%s]}`,
			x.veth, x.netns, strings.Join(ips, ","))
	}
	data, err := json.Marshal(map[string]any{
		"kind": cacheKind, "containerId": x.sandbox, "ifName": x.ifName, "networkName": x.network, "config": []byte(x.config),
		"cniArgs": [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", x.namespace}, {"K8S_POD_NAME", x.pod},
			{"K8S_POD_INFRA_CONTAINER_ID", x.sandbox}, {"K8S_POD_UID", x.uid}},
		"result": json.RawMessage(result),
	})
	if err != nil {
		panic(err)
	}
	return data
}

// of is the result of a pod on the bridge, whose sandbox and interface exist.
func (g *gateway) of(pod, sandbox string, addresses ...string) spec {
	veth := "veth" + sandbox
	g.link("veth", veth)
	return spec{pod: pod, namespace: "default", uid: "uid-" + sandbox, sandbox: sandbox, network: "edgenet", ifName: "eth0",
		netns: g.sandbox(sandbox), veth: veth, addresses: addresses, config: conflist("edgenet", "cni0", "10.1.0.0/16")}
}

// write writes results as libcni does.
func (g *gateway) write(specs ...spec) {
	g.t.Helper()
	for _, x := range specs {
		must(g.t, os.WriteFile(filepath.Join(g.results, x.file()), x.json(), 0o600))
	}
}

func (g *gateway) remove(specs ...spec) {
	g.t.Helper()
	for _, x := range specs {
		must(g.t, os.Remove(filepath.Join(g.results, x.file())))
	}
}

// look reads all there is, and as often as it takes where the machine is too busy
// for one Refresh to try all.
func (g *gateway) look() source.Report {
	g.t.Helper()
	for {
		r, err := g.Refresh(g.t.Context())
		must(g.t, err)
		g.Source.mu.Lock()
		left := len(g.Source.results.pending) + len(g.Source.configs.pending)
		g.Source.mu.Unlock()
		if left == 0 {
			return r
		}
	}
}

// told names everything in force: "default/web[10.1.0.2] a/edgenet(vetha)".
func told(r source.Report) string {
	var all []string
	for _, p := range r.Objects.Pods {
		all = append(all, p.Key.String()+fmt.Sprint(p.Addresses))
		for _, a := range p.Attachments {
			all = append(all, fmt.Sprintf("%s/%s(%s)", a.Sandbox, a.Network, strings.Join(a.Interfaces, " ")))
		}
	}
	return strings.Join(all, " ")
}

// rejections names the files that are not taken: with "+" if an older version is kept.
func rejections(r source.Report) string {
	var all []string
	for _, x := range r.Rejected {
		name := filepath.Base(x.Origin.File)
		if x.Kept {
			name += "+"
		}
		all = append(all, name)
	}
	return strings.Join(all, " ")
}

func (g *gateway) has(want string) source.Report {
	g.t.Helper()
	r := g.look()
	if told(r) != want || r.Err != nil || len(r.Rejected) > 0 {
		g.t.Errorf("in force: %q, want %q; err %v, rejected %v", told(r), want, r.Err, r.Rejected)
	}
	return r
}

// What a real container runtime and its plugins left.
func TestRecorded(t *testing.T) {
	g := newGateway(t)
	netns := g.sandbox("cni-56610f81-71a5-b91e-5566-db49ee7d504c")
	g.link("veth", "veth7d276163")
	files, err := filepath.Glob("testdata/recorded/results/*")
	must(t, err)
	var path string
	for _, file := range files {
		data, err := os.ReadFile(file)
		must(t, err)
		data = []byte(strings.ReplaceAll(string(data), "/var/run/netns/cni-56610f81-71a5-b91e-5566-db49ee7d504c", netns))
		to := filepath.Join(g.results, filepath.Base(file))
		must(t, os.WriteFile(to, data, 0o600))
		if strings.HasPrefix(filepath.Base(file), "edgenet-") {
			path = to
		}
	}
	before := time.Now()
	r := g.has("shop/web-gw[10.88.0.31 fd88::1f] 7adfbe9cdb7d70de6a8e625f6c7756fbfb24cba313ae55422964562e98e478d0/edgenet(veth7d276163)")
	p := r.Objects.Pods[0]
	if p.UID != "842fa7798907e4253e2130f9a5bb9af4" || p.Attachments[0].UID != p.UID || p.Origin != (inventory.Origin{Source: "cni", File: path}) || !p.Enforceable() {
		t.Errorf("pod %+v", p)
	}
	if want := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web-gw","namespace":"shop","uid":"842fa7798907e4253e2130f9a5bb9af4"},` +
		`"status":{"podIPs":[{"ip":"10.88.0.31"},{"ip":"fd88::1f"}]}}`; string(p.JSON) != want {
		t.Errorf("JSON %s", p.JSON)
	}
	if st, err := os.Stat(path); err != nil || !p.Attachments[0].Written.Equal(st.ModTime()) {
		t.Errorf("written %v, file %v", p.Attachments[0].Written, st.ModTime())
	}
	if r.Source != "cni" || r.Confirmed.Before(before) || len(r.Diagnostics) > 0 || r.Unknown {
		t.Errorf("report %+v", r)
	}
	network := func(r source.Report) string { return fmt.Sprint(r.Network) }
	if network(r) != "{true [10.88.0.0/24 fd88::/64] [cni0]}" {
		t.Errorf("network %v", network(r))
	}
	// And the same of its configuration alone.
	must(t, os.Remove(path))
	if r := g.has(""); network(r) != "{true [] []}" {
		t.Errorf("network of nothing %v", network(r))
	}
	data, err := os.ReadFile("testdata/recorded/10-edgenet.conflist")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(g.configs, "10-edgenet.conflist"), data, 0o644))
	if r := g.has(""); network(r) != "{true [10.88.0.0/24 fd88::/64] [cni0]}" {
		t.Errorf("network of the folder %v", network(r))
	}
}

// The files survive a power cut; what they describe does not.
func TestPowerCut(t *testing.T) {
	g := newGateway(t)
	a, b := g.of("a", "1", "10.1.0.2/24"), g.of("b", "2", "10.1.0.3/24")
	macvlan := g.of("c", "3")
	macvlan.result = fmt.Sprintf(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":%q}],"ips":[{"address":"10.1.0.4/24","interface":0}]}`, macvlan.netns)
	g.write(a, b, macvlan)
	both := "default/a[10.1.0.2] 1/edgenet(veth1) default/b[10.1.0.3] 2/edgenet(veth2) default/c[10.1.0.4] 3/edgenet()"
	g.has(both)
	must(t, os.RemoveAll(g.sandboxs))
	must(t, os.Mkdir(g.sandboxs, 0o700))
	g.unlink("veth1", "veth2", "cni0")
	g.restart()
	if r := g.has(""); len(r.Diagnostics) > 0 || !r.Network.Present {
		t.Errorf("what is normal after a power cut: %+v", r)
	}
	// One without the other is not there either, and all come back.
	g.sandbox("1")
	g.link("veth", "veth2")
	g.has("")
	g.link("veth", "veth1")
	g.has("default/a[10.1.0.2] 1/edgenet(veth1)") // without cni0, which is not its own
	g.sandbox("2")
	g.sandbox("3")
	g.link("bridge", "cni0")
	g.has(both)
}

// A namespace that is the gateway's own, as a process's number that was used again
// leads to, is no pod's; nor is a path that depends on where the daemon runs.
func TestSandboxIsAnotherNamespace(t *testing.T) {
	g := newGateway(t)
	a := g.of("a", "1", "10.1.0.2/24")
	for _, path := range []string{fmt.Sprintf("/proc/%d/ns/net", os.Getpid()), "cni_test.go"} {
		a.netns = path
		g.write(a)
		g.has("")
	}
}

// A pod that is being replaced has two sandboxes; which is the newer is told by
// when they were written, not by their names.
func TestReplacedSandbox(t *testing.T) {
	for _, names := range [][2]string{{"1", "2"}, {"2", "1"}} {
		g := newGateway(t)
		old, young := g.of("web", names[0], "10.1.0.2/24"), g.of("web", names[1], "10.1.0.3/24", "fd00::3/64")
		g.write(old, young)
		past := time.Now().Add(-time.Hour)
		must(t, os.Chtimes(filepath.Join(g.results, old.file()), past, past))
		r := g.has("default/web[10.1.0.2 10.1.0.3 fd00::3] 1/edgenet(veth1) 2/edgenet(veth2)")
		p := r.Objects.Pods[0]
		if p.UID != young.uid || p.Origin.File != filepath.Join(g.results, young.file()) {
			t.Errorf("uid %q, origin %v, want those of %q", p.UID, p.Origin, young.uid)
		}
		must(t, os.Remove(old.netns))
		r = g.has(fmt.Sprintf("default/web[10.1.0.3 fd00::3] %s/edgenet(%s)", young.sandbox, young.veth))
		if r.Objects.Pods[0] == p || len(p.Attachments) != 2 {
			t.Error("the pod that was handed on is another now")
		}
	}
}

// Two networks of one sandbox are one pod's.
func TestTwoNetworks(t *testing.T) {
	g := newGateway(t)
	a := g.of("a", "1", "10.1.0.2/24")
	b := g.of("a", "1", "10.2.0.2/24")
	b.network, b.ifName, b.veth = "another", "net1", "vethb"
	g.link("veth", "vethb")
	g.write(a, b)
	g.has("default/a[10.1.0.2 10.2.0.2] 1/another(vethb) 1/edgenet(veth1)")
}

// "The same pointer" means "unchanged", and a new one "changed".
func TestPointers(t *testing.T) {
	g := newGateway(t)
	a, b := g.of("a", "1", "10.1.0.2/24"), g.of("b", "2", "10.1.0.3/24")
	g.write(a, b)
	last := g.look()
	changes := map[string]func(){
		"address":   func() { b.addresses = []string{"10.1.0.9/24"}; g.write(b) },
		"interface": func() { b.veth = "vethx"; g.link("veth", "vethx"); g.write(b) },
		"bridge":    func() { g.link("bridge", "vethx") },
		"uid":       func() { b.uid = "another"; g.write(b) },
		"time": func() {
			must(t, os.Chtimes(filepath.Join(g.results, b.file()), time.Time{}, time.Now().Add(-time.Minute)))
		},
		"network": func() { g.remove(b); b.network = "other"; g.write(b) },
		"file": func() {
			must(t, os.Rename(filepath.Join(g.results, b.file()), filepath.Join(g.results, "another")))
		},
	}
	for _, name := range []string{"address", "interface", "bridge", "uid", "time", "network", "file"} {
		changes[name]()
		r := g.look()
		if len(r.Objects.Pods) != 2 || r.Objects.Pods[0] != last.Objects.Pods[0] || r.Objects.Pods[1] == last.Objects.Pods[1] || !r.Time.After(last.Time) {
			t.Errorf("%s: %q after %q", name, told(r), told(last))
		}
		last = r
		g.write(a) // the same, but for the time
		must(t, os.Chtimes(filepath.Join(g.results, a.file()), time.Time{}, last.Objects.Pods[0].Attachments[0].Written))
		if r := g.look(); !slices.Equal(r.Objects.Pods, last.Objects.Pods) {
			t.Errorf("%s: other pods without a change", name)
		}
	}
}

// Not pods: what has no pod's name, and loopback.
func TestNotPods(t *testing.T) {
	g := newGateway(t)
	container, lo, alias := g.of("", "1", "10.1.0.2/24"), g.of("a", "2", "10.1.0.3/24"), g.of("b", "3", "10.1.0.4/24")
	lo.ifName, alias.network = "lo", "cni-loopback"
	g.write(container, lo, alias)
	must(t, os.WriteFile(filepath.Join(g.results, "edgenet-4-eth0"), []byte(`{"cniVersion":"0.3.1","ips":[{"address":"10.1.0.5/24"}]}`), 0o600)) // of an old libcni
	must(t, os.WriteFile(filepath.Join(g.results, ".edgenet-5-eth0.swp"), []byte("x"), 0o600))
	must(t, os.Mkdir(filepath.Join(g.results, "lost+found"), 0o700))
	if r := g.has(""); len(r.Diagnostics) > 0 {
		t.Errorf("diagnostics %v", r.Diagnostics)
	}
}

// Interfaces that can't be listed take nothing away, and the sandbox decides of
// what is new.
func TestInterfacesFail(t *testing.T) {
	g := newGateway(t)
	a, b := g.of("a", "1", "10.1.0.2/24"), g.of("b", "2", "10.1.0.3/24")
	c := g.of("c", "3")
	c.result = `{"cniVersion":"0.3.1","interfaces":[{"name":"veth3"}],"ips":[{"address":"10.1.0.4/24"}]}`
	a.config, b.config = "", "" // so that only the kernel knows that cni0 is a bridge
	g.unlink("veth2", "veth3")
	g.write(a)
	g.has("default/a[10.1.0.2] 1/edgenet(veth1)")
	g.fail(errors.New("netlink: no buffer"))
	g.write(b, c)
	r := g.look()
	if told(r) != "default/a[10.1.0.2] 1/edgenet(veth1) default/b[10.1.0.3] 2/edgenet(veth2)" || r.Err == nil || !strings.Contains(r.Err.Error(), "netlink: no buffer") {
		t.Errorf("in force %q, err %v", told(r), r.Err)
	}
	must(t, os.Remove(b.netns))
	if r := g.look(); told(r) != "default/a[10.1.0.2] 1/edgenet(veth1)" {
		t.Errorf("without its sandbox: %q", told(r))
	}
	g.fail(nil)
	g.link("veth", "veth3")
	g.has("default/a[10.1.0.2] 1/edgenet(veth1) default/c[10.1.0.4] 3/edgenet(veth3)")
}

// A Refresh without time changes nothing and says so.
func TestRefreshWithoutTime(t *testing.T) {
	g := newGateway(t)
	g.write(g.of("a", "1", "10.1.0.2/24"))
	before := g.look()
	g.write(g.of("b", "2", "10.1.0.3/24"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := g.Refresh(ctx); !errors.Is(err, context.Canceled) || r.Time != before.Time {
		t.Errorf("%q, %v", told(r), err)
	}
	g.has("default/a[10.1.0.2] 1/edgenet(veth1) default/b[10.1.0.3] 2/edgenet(veth2)")
}

// Files that did not change are not read again.
func TestUnchangedIsNotRead(t *testing.T) {
	g := newGateway(t)
	x := g.of("a", "1", "10.1.0.2/24")
	wait(t, "a change so fresh that the file's times may not tell it from the next", func() bool {
		g.write(x)
		g.look()
		return g.Source.results.files[x.file()].stamp == stamp{}
	})
	old := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(filepath.Join(g.results, x.file()), old, old))
	wait(t, "the change to be old", func() bool {
		g.look()
		return g.Source.results.files[x.file()].stamp != stamp{}
	})
	f := g.Source.results.files[x.file()]
	mark := &entry{key: f.content.key, attachment: f.content.attachment, network: f.content.network}
	f.content = mark
	g.look()
	if f.content != mark {
		t.Error("an unchanged file was read")
	}
	x.addresses = []string{"10.1.0.3/24"} // of the same size
	g.write(x)
	must(t, os.Chtimes(filepath.Join(g.results, x.file()), old, old))
	g.has("default/a[10.1.0.3] 1/edgenet(veth1)")
}

// wait waits until something is so.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
