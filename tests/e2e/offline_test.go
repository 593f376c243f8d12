package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/internal/status"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

// drill is a gateway of which everything is known as it is in the field: policies
// and namespaces by an API server that comes and goes, labels by the kubelet,
// addresses by CNI.
type drill struct {
	*cniWorld
	api     *stub.API
	kubelet *stub.Kubelet
}

// The drill's pods: namespace and name, and the label app.
var drillPods = [][2]string{{"shop/web", "web"}, {"shop/db", "db"}, {"ops/admin", "admin"}, {"ops/cam", "cam"}, {"lab/guest", "guest"}}

const (
	drillSources = kubeletSource + "  api: {server: http://127.0.0.1:10355}\n"
	drillConfig  = "nodeName: gw\n"

	shopWeb  = `{"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}], "ports": [{"port": 80}]}]}`
	shopDB   = `{"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 5432}]}]}`
	opsCam   = `{"podSelector": {"matchLabels": {"app": "cam"}}, "policyTypes": ["Egress"]}`
	labGuest = `{"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "shop"}}}]}]}`
)

// What is reachable, from the row to the column, under the policies shop/web,
// shop/db and ops/cam.
var drillBefore = map[string]string{
	"80": `
		          web db  admin cam guest outside gateway
		web       -   no  yes   yes yes   yes     yes
		db        no  -   yes   yes yes   yes     yes
		admin     yes no  -     yes yes   yes     yes
		cam       no  no  no    -   no    no      no
		guest     no  no  yes   yes -     yes     yes
		outside   no  no  yes   yes yes   -       yes
		gateway   yes yes yes   yes yes   yes     -`,
	"5432": `
		          web db  admin cam guest outside gateway
		web       -   yes yes   yes yes   yes     yes
		db        no  -   yes   yes yes   yes     yes
		admin     no  no  -     yes yes   yes     yes
		cam       no  no  no    -   no    no      no
		guest     no  no  yes   yes -     yes     yes
		outside   no  no  yes   yes yes   -       yes
		gateway   yes yes yes   yes yes   yes     -`,
	"ping": `
		          web db  admin cam guest outside gateway
		web       -   no  yes   yes yes   yes     yes
		db        no  -   yes   yes yes   yes     yes
		admin     no  no  -     yes yes   yes     yes
		cam       no  no  no    -   no    no      no
		guest     no  no  yes   yes -     yes     yes
		outside   no  no  yes   yes yes   -       yes
		gateway   yes yes yes   yes yes   yes     -`,
}

// And after: without shop/db, with lab/guest, the namespace ops not of team ops.
var drillAfter = map[string]string{
	"80": `
		          web db  admin cam guest outside gateway
		web       -   yes yes   yes yes   yes     yes
		db        no  -   yes   yes yes   yes     yes
		admin     no  yes -     yes no    yes     yes
		cam       no  no  no    -   no    no      no
		guest     no  yes yes   yes -     yes     yes
		outside   no  yes yes   yes no    -       yes
		gateway   yes yes yes   yes yes   yes     -`,
	"5432": `
		          web db  admin cam guest outside gateway
		web       -   yes yes   yes yes   yes     yes
		db        no  -   yes   yes yes   yes     yes
		admin     no  yes -     yes no    yes     yes
		cam       no  no  no    -   no    no      no
		guest     no  yes yes   yes -     yes     yes
		outside   no  yes yes   yes no    -       yes
		gateway   yes yes yes   yes yes   yes     -`,
}

// Nobody knows the new db: it is held.
var drillNewDB = map[string]string{
	"5432": `
		          web db  guest outside gateway
		db        no  -   no    no      no
		web       -   no  yes   yes     yes
		guest     no  no  -     yes     yes
		outside   no  no  yes   -       yes`,
}

// Nobody knows the pods: only the gateway's own packets reach them (S24).
var drillHeld = map[string]string{
	"80": `
		          web db  admin cam guest outside gateway
		web       -   no  no    no  no    no      no
		db        no  -   no    no  no    no      no
		admin     no  no  -     no  no    no      no
		cam       no  no  no    -   no    no      no
		guest     no  no  no    no  -     no      no
		outside   no  no  no    no  no    -       yes
		gateway   yes yes yes   yes yes   yes     -`,
}

// wrong probes everything, in both families, and gives what is not as it is
// wanted.
func (d *drill) wrong(want map[string]string) (wrong []string) {
	d.t.Helper()
	var probes []lab.Probe
	var expected []bool
	var text []string
	for service, table := range want {
		lines := strings.Split(strings.TrimSpace(table), "\n")
		columns := strings.Fields(lines[0])
		for _, line := range lines[1:] {
			cells := strings.Fields(line)
			for i, cell := range cells[1:] {
				if cell == "-" {
					continue
				}
				more, names := d.probes(cells[0], columns[i], service)
				probes, text = append(probes, more...), append(text, names...)
				expected = append(expected, slices.Repeat([]bool{cell == "yes"}, len(more))...)
			}
		}
	}
	got, err := d.Probe(context.Background(), probes)
	d.must(err)
	for i := range got {
		if got[i] != expected[i] {
			wrong = append(wrong, fmt.Sprintf("%s: arrived %v", text[i], got[i]))
		}
	}
	return wrong
}

// probes are the first packets from one to another, in each family.
func (d *drill) probes(from, to, what string) (probes []lab.Probe, text []string) {
	d.t.Helper()
	proto, port, err := service(what)
	d.must(err)
	for _, src := range d.addrs(from) {
		if dst := same(src, d.addrs(to)); dst.IsValid() {
			probes = append(probes, lab.Probe{From: d.names[from], Src: src, To: d.names[to], Dst: dst, Proto: proto, DstPort: port})
			text = append(text, fmt.Sprintf("%s (%s) to %s (%s) %s", from, src, to, dst, what))
		}
	}
	return probes, text
}

// is fails unless everything is reachable as the tables say.
func (d *drill) is(stage string, want map[string]string) {
	d.t.Helper()
	for _, line := range d.wrong(want) {
		d.t.Errorf("%s: %s", stage, line)
	}
}

// atMost fails if something is reachable that the tables deny: who is not known yet
// may be held.
func (d *drill) atMost(stage string, want map[string]string) {
	d.t.Helper()
	for _, line := range d.wrong(want) {
		if strings.HasSuffix(line, "arrived true") {
			d.t.Errorf("%s: %s", stage, line)
		}
	}
}

// becomes waits until everything is reachable as the tables say.
func (d *drill) becomes(stage string, want map[string]string) {
	d.t.Helper()
	start := time.Now()
	d.known()
	var wrong []string
	defer func() {
		if d.t.Failed() {
			d.t.Logf("%s: %s", stage, strings.Join(wrong, "\n"))
		}
	}()
	d.waitFor(stage+": right", func() bool { wrong = d.wrong(want); return len(wrong) == 0 })
	d.t.Logf("%s: right after %s", stage, time.Since(start))
}

// start makes pods, and has the kubelet list all as it does: with their addresses.
func (d *drill) start(pods ...[2]string) {
	d.t.Helper()
	for _, p := range pods {
		d.add(p[0])
	}
	d.list()
}

// restart gives pods a new sandbox, and so new addresses; their uid stays.
func (d *drill) restart(pods ...[2]string) {
	d.t.Helper()
	for _, p := range pods {
		_, name, _ := strings.Cut(p[0], "/")
		before := slices.Clone(d.addrs(name))
		d.del(name)
		d.add(p[0])
		if slices.Equal(before, d.addrs(name)) {
			d.t.Fatalf("%s has its old addresses %s", p[0], before)
		}
	}
	d.list()
}

// known waits until the kernel knows all pods by their addresses. Whoever talks to
// them earlier makes neighbour entries that fail, and are tried again seconds later.
func (d *drill) known() {
	d.t.Helper()
	d.waitFor("known in the kernel", func() bool {
		sets := podSets.FindAllString(d.gw("nft", "list", "table", "inet", "edgepolicyd"), -1)
		words := strings.FieldsFunc(strings.Join(sets, ""), func(r rune) bool { return strings.ContainsRune(" \t\n,{}", r) })
		for _, p := range drillPods {
			_, name, _ := strings.Cut(p[0], "/")
			for _, a := range d.addrs(name) {
				if !slices.Contains(words, a.String()) {
					return false
				}
			}
		}
		return true
	})
}

// podSets matches the sets of known pods in the text of a table.
var podSets = regexp.MustCompile(`(?s)\tset pods_v[46]\S* \{.*?\n\t\}`)

// list has the kubelet list the pods that are there.
func (d *drill) list() {
	d.t.Helper()
	var pods []stub.Pod
	for _, p := range drillPods {
		namespace, name, _ := strings.Cut(p[0], "/")
		if d.names[name] == nil {
			continue
		}
		var ips []string
		for _, a := range d.addrs(name) {
			ips = append(ips, a.String())
		}
		pods = append(pods, stub.Pod{Namespace: namespace, Name: name, UID: "uid-of-" + p[0], Labels: map[string]string{"app": p[1]}, IPs: ips})
	}
	d.kubelet.SetPods(pods...)
}

func (d *drill) policy(namespace, name, spec string) {
	d.api.Put(fmt.Sprintf(`{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": %q, "name": %q}, "spec": %s}`, namespace, name, spec))
}

func (d *drill) namespace(name, team string) {
	d.api.Put(fmt.Sprintf(`{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": %q, "labels": {"team": %q}}}`, name, team))
}

// publish has the API server know the pods as they are now, as the kubelet tells
// it. Nobody does while it is away: what it says then is old.
func (d *drill) publish() {
	d.t.Helper()
	for _, p := range drillPods {
		namespace, name, _ := strings.Cut(p[0], "/")
		a := d.addrs(name)
		d.api.Put(fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": %q, "name": %q, "uid": "uid-of-%s", "labels": {"app": %q}},
			"spec": {"nodeName": "gw"}, "status": {"phase": "Running", "podIPs": [{"ip": %q}, {"ip": %q}]}}`, namespace, name, p[0], p[1], a[0], a[1]))
	}
}

func (d *drill) serveAPI() { d.api.Serve(d.listen("127.0.0.1:10355")) }

// source is what status says of a source.
func (d *drill) source(name string) status.SourceStatus {
	d.t.Helper()
	s, _ := d.status()
	for _, src := range s.Sources {
		if src.Name == name {
			return src
		}
	}
	d.t.Fatalf("status does not name the source %s: %+v", name, s.Sources)
	return status.SourceStatus{}
}

// The API goes and stays away: pods come and go, the daemon is restarted and
// killed, the power is cut. At every stage exactly what the last known policies
// allow is reachable, and once the API is back, what it says then.
func TestOfflineDrill(t *testing.T) {
	for _, plugin := range []string{"ptp", "bridge"} {
		t.Run(plugin, func(t *testing.T) {
			w := newCNIWorld(t, plugin, drillSources, drillConfig)
			d := &drill{cniWorld: w, kubelet: w.startKubelet(), api: stub.NewAPI()}
			t.Cleanup(d.api.Close)
			d.run()
		})
	}
}

func (d *drill) run() {
	d.namespace("shop", "shop")
	d.namespace("ops", "ops")
	d.namespace("lab", "lab")
	d.policy("shop", "web", shopWeb)
	d.policy("shop", "db", shopDB)
	d.policy("ops", "cam", opsCam)
	d.serveAPI()
	d.must(d.Start())
	d.start(drillPods...)
	d.publish()
	d.becomes("all is up", drillBefore)
	d.waitFor("healthy", func() bool { s, code := d.status(); return s.Health == status.Healthy && code == 0 })

	d.away()
	d.restarts()
	d.reboot()
	d.back()
	for _, line := range strings.Split(d.Log(), "\n") {
		if strings.Contains(line, "is not enforced") { // S34 is about pods that are there
			d.t.Errorf("a pod that comes or goes was named: %s", line)
		}
	}
}

// away is the first hour without the API.
func (d *drill) away() {
	d.api.Close()
	d.is("the API is gone", drillBefore)
	d.waitFor("offline in the status", func() bool { return !d.source("api").OfflineSince.IsZero() })
	since := d.source("api").OfflineSince
	d.restart(drillPods[0], drillPods[2], drillPods[3])
	d.becomes("pods were restarted while the API is away", drillBefore)
	time.Sleep(2 * time.Second) // retries
	if again := d.source("api").OfflineSince; again.Sub(since).Abs() > time.Second {
		d.t.Errorf("offline since %s, earlier it was since %s", again, since)
	}
	d.toldOnce()
	for _, p := range d.policies() {
		if p.Source != "api" {
			d.t.Errorf("policy %s comes from %s", p.Name, p.Source)
		}
	}
}

func (d *drill) policies() []status.PolicyStatus {
	d.t.Helper()
	s, _ := d.status()
	if len(s.Policies) != 3 {
		d.t.Errorf("%d policies are in force, want 3: %+v", len(s.Policies), s.Policies)
	}
	return s.Policies
}

// toldOnce fails unless the journal says once that the API is out of reach.
func (d *drill) toldOnce() {
	d.t.Helper()
	var told []string
	for line := range strings.Lines(d.Log()) {
		if strings.Contains(line, "source api") && strings.Contains(line, "offline") {
			told = append(told, line)
		}
	}
	if len(told) != 1 {
		d.t.Errorf("the journal says %d times that the API is offline:\n%s", len(told), d.Log())
	}
}

// restarts are those of the daemon, while the API is away.
func (d *drill) restarts() {
	d.must(d.Stop())
	d.is("the daemon is stopped", drillBefore)
	d.must(d.Start())
	d.is("the daemon was restarted", drillBefore)
	d.must(d.Kill())
	d.is("the daemon was killed", drillBefore)
	d.restart(drillPods[1]) // nobody knows it
	d.is("a new pod while the daemon is dead", drillNewDB)
	d.must(d.Start())
	d.becomes("the daemon is back, and finds a new pod", drillBefore)
}

// earlierBoot makes the saved state one of an earlier boot, as a new boot_id of the
// kernel's would.
func (d *drill) earlierBoot() {
	d.t.Helper()
	path := filepath.Join(d.State, "state")
	text, err := os.ReadFile(path)
	d.must(err)
	_, body, _ := strings.Cut(string(text), "\n")
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	d.must(err)
	this := strings.TrimSpace(string(id))
	if !strings.Contains(body, this) {
		d.t.Fatalf("the state does not name the boot %s: %s", this, body)
	}
	body = strings.ReplaceAll(body, this, "6ff9a1b2-0000-4000-8000-000000000000")
	var version int
	_, err = fmt.Sscanf(string(text), "edgepolicyd-state %d ", &version)
	d.must(err)
	sum := sha256.Sum256(fmt.Appendf(nil, "edgepolicyd-state %d\n%s", version, body))
	d.must(os.WriteFile(path, fmt.Appendf(nil, "edgepolicyd-state %d %x\n%s", version, sum, body), 0o600))
}

// reboot cuts the power, and starts everything in the order of a boot.
func (d *drill) reboot() {
	d.must(d.Kill())
	old := map[string][]netip.Addr{}
	for _, p := range drillPods {
		_, name, _ := strings.Cut(p[0], "/")
		old[name] = slices.Clone(d.addrs(name))
		delete(d.names, name)
	}
	d.must(d.cni.PowerCut())
	d.gw("nft", "flush", "ruleset")
	d.must(d.FlushConntrack())
	d.kubelet.Close()
	d.earlierBoot()

	start := time.Now()
	if out, errs, code, err := d.Run("restore"); err != nil || code != 0 {
		d.t.Fatalf("restore: exit code %d, %v\n%s%s", code, err, out, errs)
	}
	d.t.Logf("restore took %s", time.Since(start))
	rules := d.gw("nft", "list", "ruleset")
	if !strings.Contains(rules, "table inet edgepolicyd") {
		d.t.Errorf("after restore there is no table:\n%s", rules)
	}
	for name, addrs := range old {
		for _, a := range addrs {
			if strings.Contains(rules, " "+a.String()+" ") || strings.Contains(rules, " "+a.String()+",") {
				d.t.Errorf("after restore the table holds %s, %s's before the power cut:\n%s", a, name, rules)
			}
		}
	}
	// The container runtime is faster than the daemon. Somebody has the address of
	// the old admin, which may do most.
	for _, a := range old["admin"] {
		d.must(os.Remove(filepath.Join(d.Folder, "cni", "networks", "edgenet", a.String())))
	}
	d.addAt("lab/guest", old["admin"]...)
	for _, i := range []int{0, 1, 2, 3} {
		d.add(drillPods[i][0])
	}
	d.is("restored, before the daemon runs", drillHeld)
	d.must(d.Start())
	d.kubelet.Null()
	d.kubelet.Serve(d.listen("127.0.0.1:10255"))
	d.atMost("the daemon runs, the kubelet lists nothing yet", drillBefore)
	d.list()
	d.becomes("rebooted without the API", drillBefore)
	d.policies()
	d.waitFor("offline in the status again", func() bool { return !d.source("api").OfflineSince.IsZero() })
}

// back brings the API, which has changed meanwhile.
func (d *drill) back() {
	d.api.Delete("NetworkPolicy", "shop", "db")
	d.policy("lab", "guest", labGuest)
	d.namespace("ops", "visitors")
	d.publish()
	d.is("changed where nobody can see it", drillBefore)
	d.serveAPI()
	d.becomes("the API is back", drillAfter)
	d.waitFor("healthy", func() bool { s, code := d.status(); return s.Health == status.Healthy && code == 0 })
	if src := d.source("api"); !src.OfflineSince.IsZero() {
		d.t.Errorf("the API is still said to be offline: %+v", src)
	}
	d.policies()
}
