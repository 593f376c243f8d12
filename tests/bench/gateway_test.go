package bench

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/tests/daemon"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

const (
	namespaces = 200
	apps       = 50

	kubeletAddress = "127.0.0.1:10255"
	apiAddress     = "127.0.0.1:10355"
)

// The sources of a configuration, beside directory and cni.
const (
	noKubelet   = ""
	withKubelet = "  kubelet: {url: http://" + kubeletAddress + "}\n"
	withAPI     = withKubelet + "  api: {server: http://" + apiAddress + "}\n"
)

// conflist is the CNI network of the pods.
const conflist = `{"cniVersion": "1.0.0", "name": "edgenet", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.42.0.0/24"}], [{"subnet": "fd42::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`

// edge is a large gateway with routed pods, which a kubelet, an API server and
// the CNI results tell of. Pods, policies and namespaces are such that each policy
// selects two or three pods, and allows as many others.
type edge struct {
	b *testing.B
	*lab.Lab
	folder  string
	results string
	configs string
	kubelet *stub.Kubelet
	api     *stub.API
	pods    []*lab.Namespace
}

// newEdge makes the gateway with a number of pods.
func newEdge(b *testing.B, count int) *edge {
	b.Helper()
	e := &edge{b: b, Lab: lab.ForTest(b, lab.Topology{}), folder: b.TempDir(), kubelet: stub.NewKubelet(), api: stub.NewAPI()}
	e.results, e.configs = filepath.Join(e.folder, "results"), filepath.Join(e.folder, "net.d")
	e.must(os.Mkdir(e.results, 0o700))
	e.must(os.Mkdir(e.configs, 0o755))
	e.must(os.WriteFile(filepath.Join(e.configs, "10-edgenet.conflist"), []byte(conflist), 0o644))
	for i := range count {
		e.addPod(i)
	}
	e.kubelet.Serve(e.listen(kubeletAddress))
	b.Cleanup(e.kubelet.Close)
	e.list(count, 0)
	return e
}

func (e *edge) must(err error) {
	e.b.Helper()
	if err != nil {
		e.b.Fatal(err)
	}
}

func (e *edge) listen(address string) (l net.Listener) {
	e.b.Helper()
	e.must(e.Gateway.Do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}))
	return l
}

// podNamespace and podName are those of a pod, podApp is its label. An app is in
// one namespace.
func podNamespace(i int) string { return fmt.Sprintf("ns-%03d", i%apps%10) }
func podName(i int) string      { return fmt.Sprintf("pod-%03d", i) }
func podApp(i int) string       { return fmt.Sprintf("app-%d", i%apps) }

func podAddresses(i int) [2]netip.Addr {
	return [2]netip.Addr{netip.AddrFrom4([4]byte{10, 42, 0, byte(i + 2)}), netip.MustParseAddr(fmt.Sprintf("fd42::%x", i+2))}
}

// addPod makes a pod, of which nobody has told yet.
func (e *edge) addPod(i int) {
	e.b.Helper()
	a := podAddresses(i)
	n, err := e.AddPod(podNamespace(i)+"/"+podName(i), a[:]...)
	e.must(err)
	e.pods = append(e.pods, n)
}

// list has the kubelet list the first pods, each as large as real ones are; the
// last ones do not have their addresses yet.
func (e *edge) list(count, without int) {
	var list []stub.Pod
	for i := range count {
		p := stub.Pod{Namespace: podNamespace(i), Name: podName(i), Labels: map[string]string{"app": podApp(i)},
			Annotations: map[string]string{"example.com/notes": strings.Repeat("about this pod ", 80)}, Phase: "Pending"}
		if i < count-without {
			a := podAddresses(i)
			p.Phase, p.IPs = "Running", []string{a[0].String(), a[1].String()}
		}
		list = append(list, p)
	}
	e.kubelet.SetPods(list...)
}

// resultFile is where libcni keeps the result of a pod.
func (e *edge) resultFile(i int) string {
	return filepath.Join(e.results, fmt.Sprintf("edgenet-%064x-eth0", i))
}

// result is the content of that file.
func (e *edge) result(i int) []byte {
	type object = map[string]any
	a, n := podAddresses(i), e.pods[i]
	text, err := json.Marshal(object{
		"kind": "cniCacheV1", "containerId": fmt.Sprintf("%064x", i), "config": base64.StdEncoding.EncodeToString([]byte(conflist)),
		"ifName": "eth0", "networkName": "edgenet", "netns": "/run/netns/" + n.NetNS,
		"cniArgs": [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", podNamespace(i)}, {"K8S_POD_NAME", podName(i)},
			{"K8S_POD_INFRA_CONTAINER_ID", fmt.Sprintf("%064x", i)}, {"K8S_POD_UID", fmt.Sprintf("uid-of-%s-%s", podNamespace(i), podName(i))}},
		"result": object{"cniVersion": "1.0.0", "dns": object{},
			"interfaces": []object{{"name": n.HostInterface}, {"name": "eth0", "sandbox": "/run/netns/" + n.NetNS}},
			"ips":        []object{{"address": a[0].String() + "/24", "interface": 1}, {"address": a[1].String() + "/64", "interface": 1}},
			"routes":     []object{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}}},
	})
	e.must(err)
	return text
}

// attach writes the results of the first pods.
func (e *edge) attach(count int) {
	e.b.Helper()
	for i := range count {
		e.must(os.WriteFile(e.resultFile(i), e.result(i), 0o600))
	}
}

// managed is what API servers say of an object's managers: half of its bytes.
const managed = `"managedFields":[{"manager":"kubectl-client-side-apply","operation":"Update","apiVersion":"networking.k8s.io/v1","time":"2026-11-20T11:41:10Z","fieldsType":"FieldsV1",` +
	`"fieldsV1":{"f:metadata":{"f:annotations":{".":{},"f:kubectl.kubernetes.io/last-applied-configuration":{}},"f:labels":{".":{},"f:managed-by":{}}},"f:spec":{"f:egress":{},"f:ingress":{},"f:podSelector":{},"f:policyTypes":{}}}}]`

// policyJSON isolates the pods of one app both ways.
func policyJSON(i, port int) string {
	app, peer := i%apps, (i+1+i/apps)%apps
	return fmt.Sprintf(`{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "%s", "name": "policy-%04d", %s},
		"spec": {"podSelector": {"matchLabels": {"app": "app-%d"}}, "policyTypes": ["Ingress", "Egress"],
		"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "team-%d"}}, "podSelector": {"matchLabels": {"app": "app-%d"}}}], "ports": [{"protocol": "TCP", "port": %d}]}],
		"egress": [{"to": [{"ipBlock": {"cidr": "192.168.%d.0/24"}}], "ports": [{"protocol": "TCP", "port": 443}]}]}}`,
		podNamespace(app), i, managed, app, peer%10, peer, port+i%7, i%256)
}

// putAll has the API server know all policies and namespaces, and the first pods.
func (e *edge) putAll(count int) {
	for i := range namespaces {
		e.api.Put(fmt.Sprintf(`{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns-%03d", "labels": {"team": "team-%d"}, %s}}`, i, i%10, managed))
	}
	for i := range policies {
		e.api.Put(policyJSON(i, 8000))
	}
	for i := range count {
		a := podAddresses(i)
		e.api.Put(fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "%s", "name": "%s", "uid": "uid-of-%[1]s-%[2]s", "labels": {"app": "%s"}, %s},
			"spec": {"nodeName": "gw"}, "status": {"phase": "Running", "podIPs": [{"ip": "%s"}, {"ip": "%s"}]}}`, podNamespace(i), podName(i), podApp(i), managed, a[0], a[1]))
	}
}

func (e *edge) serveAPI() {
	e.api.Serve(e.listen(apiAddress))
	e.b.Cleanup(e.api.Close)
}

// daemon makes a daemon, not yet started. cni says whether the results are there
// for it, sources is one of those above.
func (e *edge) daemon(cni bool, sources string) *daemon.Daemon {
	e.b.Helper()
	d, err := daemon.New(e.Lab, e.b.TempDir(), "")
	e.must(err)
	results := e.results
	if !cni {
		results = filepath.Join(d.Folder, "none")
	}
	text := fmt.Sprintf("sources:\n  directory: {path: %s}\n  cni: {resultsDir: %s, configDir: %s}\n%sstateDir: %s\nsocket: %s\nnodeName: gw\n",
		d.Dir, results, e.configs, sources, d.State, filepath.Join(d.Folder, "edgepolicyd.sock"))
	e.must(os.WriteFile(d.Config, []byte(text), 0o644))
	e.b.Cleanup(func() { d.Stop() })
	return d
}

// policyFiles writes all policies, namespaces and pods into the directory: pods
// without addresses, which CNI tells, unless all is said.
func (e *edge) policyFiles(d *daemon.Daemon, pods int, all bool) {
	e.b.Helper()
	var text strings.Builder
	for i := range namespaces {
		fmt.Fprintf(&text, "{apiVersion: v1, kind: Namespace, metadata: {name: ns-%03d, labels: {team: team-%d}}}\n---\n", i, i%10)
	}
	for i := range pods {
		status := "{}"
		if a := podAddresses(i); all {
			status = fmt.Sprintf("{podIPs: [{ip: %s}, {ip: \"%s\"}]}", a[0], a[1])
		}
		fmt.Fprintf(&text, "{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: %s, labels: {app: %s}}, status: %s}\n---\n",
			podNamespace(i), podName(i), podApp(i), status)
	}
	e.must(os.WriteFile(filepath.Join(d.Dir, "others.yaml"), []byte(text.String()), 0o644))
	for i := range policies {
		e.must(os.WriteFile(filepath.Join(d.Dir, fmt.Sprintf("policy-%04d.yaml", i)), []byte(policyJSON(i, 8000)), 0o644))
	}
}

// status is what the daemon says of itself, as far as benchmarks ask.
type status struct {
	Health       string   `json:"health"`
	Reasons      []string `json:"reasons"`
	Generation   uint64   `json:"generation"`
	Pods         int      `json:"pods"`
	IsolatedPods int      `json:"isolatedPods"`
	Policies     []any    `json:"policies"`
	Namespaces   int      `json:"namespaces"`
	Hold         struct {
		On      bool `json:"on"`
		Latency struct {
			Pods int     `json:"pods"`
			Last float64 `json:"lastMilliseconds"`
			Most float64 `json:"mostMilliseconds"`
		} `json:"latency"`
	} `json:"hold"`
}

func (e *edge) status(d *daemon.Daemon) (s status) {
	e.b.Helper()
	out, errs, _, err := d.Run("status", "-o", "json")
	e.must(err)
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		e.b.Fatalf("%v\n%s%s", err, out, errs)
	}
	return s
}

// waitFor waits for half a minute.
func (e *edge) waitFor(d *daemon.Daemon, what string, ok func() bool) {
	e.b.Helper()
	for limit := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(limit) {
			text := d.Log()
			e.b.Fatalf("not within 30 s: %s\n%s", what, text[max(0, len(text)-3000):])
		}
	}
}

// allInForce waits until the daemon enforces all policies on this many pods.
func (e *edge) allInForce(d *daemon.Daemon, count int) {
	e.b.Helper()
	var s status
	e.waitFor(d, "everything is in force", func() bool {
		s = e.status(d)
		return s.Health == "healthy" && s.Pods == count && s.IsolatedPods == count && len(s.Policies) == policies && s.Namespaces == namespaces
	})
}

// processTime is how long a process has had a processor, by the scheduler's clock,
// which is exact. Go's threads stay until their process ends.
func processTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		b.Fatal("no threads of the daemon: ", err)
	}
	var sum time.Duration
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			b.Fatal(err)
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}
