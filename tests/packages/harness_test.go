// Package packages installs, upgrades and removes the packages as users do, under a
// real systemd and in folders without one.
package packages

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
	"edgepolicy.io/edgepolicyd/tests/daemon"
	"edgepolicy.io/edgepolicyd/tests/journal/container"
)

// epoch is the time of all files in the packages.
const epoch = "1700000000"

// output runs a command of the host.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, out, &stderr)
	}
	return string(out)
}

// packager builds the program that makes packages, once.
var packager = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "edgepolicyd-packager-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "build")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Dir = "../../packaging/build"
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build packaging/build: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := packager(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// packages makes packages out of a source tree and gives their paths.
func packages(t *testing.T, args ...string) []string {
	t.Helper()
	program, err := packager()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.MkdirTemp(filepath.Dir(program), "")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, append([]string{"-out", out}, args...)...)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+epoch)
	return strings.Fields(output(t, cmd))
}

// made are packages of version 1.0.0, by format.
var made = map[string]string{}

// firstPackage makes a package out of this tree, once, as to compress takes seconds.
func firstPackage(t *testing.T, format string) string {
	t.Helper()
	if made[format] == "" {
		made[format] = onePackage(t, "../..", format, "1.0.0")
	}
	return made[format]
}

// onePackage makes the package of this machine's architecture, with the daemon that
// the other tests use.
func onePackage(t *testing.T, root, format, version string) string {
	t.Helper()
	binary, err := daemon.Build()
	if err != nil {
		t.Fatal(err)
	}
	binaries := t.TempDir()
	output(t, exec.Command("cp", binary, filepath.Join(binaries, "edgepolicyd-"+runtime.GOARCH)))
	return packages(t, "-root", root, "-binaries", binaries, "-version", version, "-only", format+"/"+runtime.GOARCH)[0]
}

// copyTree copies what packages are made of out of a source tree.
func copyTree(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	for _, path := range []string{"go.mod", "go.sum", "LICENSE", "CHANGELOG.md", "Makefile", "cmd", "internal", "configs", "packaging", "systemd"} {
		output(t, exec.Command("cp", "-r", filepath.Join(root, path), dir))
	}
	return dir
}

const manifests = `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
status: {podIPs: [{ip: 10.42.0.12}, {ip: "fd42::12"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
status: {podIPs: [{ip: 10.42.0.13}, {ip: "fd42::13"}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}, {port: 53, protocol: UDP}]}]
`

// flows are those of the manifests, and what becomes of them when they are enforced.
// One is a single connection all the time.
func flows() (list []lab.Flow) {
	for _, v := range []struct{ web, client, outside string }{
		{"10.42.0.12", "10.42.0.13", "192.168.254.2"},
		{"fd42::12", "fd42::13", "fd00:254::2"},
	} {
		flow := func(from, to string, p inventory.Protocol, port, own uint16, expect lab.Expect) {
			list = append(list, lab.Flow{Expect: expect, Probe: lab.Probe{
				Src: netip.MustParseAddr(from), Dst: netip.MustParseAddr(to), Proto: p, SrcPort: own, DstPort: port}})
		}
		flow(v.client, v.web, inventory.TCP, 80, 0, lab.Allowed)
		flow(v.client, v.web, inventory.UDP, 53, 1053, lab.Allowed)
		flow(v.client, v.outside, inventory.TCP, 443, 0, lab.Allowed)
		flow(v.client, v.web, inventory.TCP, 81, 0, lab.Denied)
		flow(v.outside, v.web, inventory.TCP, 80, 0, lab.Denied)
		flow(v.web, v.outside, inventory.UDP, 53, 0, lab.Denied)
	}
	return list
}

// gateway is a container whose daemon, and whose package manager, have the network of
// a lab, in which every packet is accounted for.
type gateway struct {
	*container.Container
	t   *testing.T
	lab *lab.Lab
}

func newGateway(t *testing.T) gateway {
	t.Helper()
	l := lab.ForTest(t, lab.Topology{Kind: lab.Routed})
	for _, p := range []struct{ name, v4, v6 string }{{"web", "10.42.0.12", "fd42::12"}, {"client", "10.42.0.13", "fd42::13"}} {
		if _, err := l.AddPod(p.name, netip.MustParseAddr(p.v4), netip.MustParseAddr(p.v6)); err != nil {
			t.Fatal(err)
		}
	}
	g := gateway{container.Start(t), t, l}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := g.Command("journalctl", "--no-pager", "--lines=60", "--unit=edgepolicyd*").CombinedOutput()
			t.Logf("the journal ends with:\n%s", out)
		}
	})
	namespace, err := os.Open(filepath.Join("/run/netns", l.Gateway.NetNS))
	if err != nil {
		t.Fatal(err)
	}
	defer namespace.Close()
	join := g.Command("sh", "-ec", "mkdir -p /run/netns && touch /run/netns/lab && mount --bind /proc/self/fd/3 /run/netns/lab")
	join.ExtraFiles = []*os.File{namespace}
	output(t, join)
	for _, unit := range []string{"edgepolicyd", "edgepolicyd-restore"} {
		g.Write("/run/systemd/system/"+unit+".service.d/lab.conf", []byte("[Service]\nNetworkNamespacePath=/run/netns/lab\n"), 0o644)
	}
	// Another's rules, which are not ours to touch.
	if _, err := l.Gateway.Run("nft", "add table inet other; add chain inet other forward { type filter hook forward priority 10; }"); err != nil {
		t.Fatal(err)
	}
	return g
}

// here runs a command in the container, but for the network, which is the lab's.
func (g gateway) here(args ...string) (string, error) {
	return g.lab.Gateway.Run("nsenter", append([]string{"--target", strconv.Itoa(g.PID), "--mount", "--pid", "--uts", "--ipc", "--"}, args...)...)
}

// do is here for what must succeed.
func (g gateway) do(args ...string) string {
	g.t.Helper()
	out, err := g.here(args...)
	if err != nil {
		g.t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// put copies a package into the container.
func (g gateway) put(path string) string {
	g.t.Helper()
	to := "/opt/" + filepath.Base(path)
	g.Copy(path, to)
	return to
}

// ruleset is all that the lab's gateway filters with.
func (g gateway) ruleset() string {
	g.t.Helper()
	out, err := g.lab.Gateway.Run("nft", "list", "ruleset")
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

// enforced waits until the policies are in force.
func (g gateway) enforced(when string) {
	g.t.Helper()
	g.Write("/etc/edgepolicy.d/pods.yaml", []byte(manifests), 0o644)
	g.eventually(when+": the policies are in force", func() bool {
		_, err := g.here("edgepolicyd", "reload")
		return err == nil
	})
	g.undisturbed(when, func() {})
}

// undisturbed does something while there is traffic, of which no packet is lost that
// is allowed, and none passes that is denied.
func (g gateway) undisturbed(what string, do func()) {
	g.t.Helper()
	stop, err := g.lab.StartTraffic(context.Background(), 1200, flows())
	if err != nil {
		g.t.Fatal(err)
	}
	begin := time.Now()
	do()
	time.Sleep(200*time.Millisecond - time.Since(begin)) // some packets at least
	r, err := stop()
	if err != nil {
		g.t.Fatal(err)
	}
	for i, f := range flows() {
		if r.Sent[i] == 0 {
			g.t.Errorf("%s: nothing was sent of %+v", what, f.Probe)
		}
	}
	if r.Lost+r.Leaked > 0 {
		g.t.Errorf("%s: %d packets lost, %d leaked, of %v sent: %+v", what, r.Lost, r.Leaked, r.Sent, r.Wrong)
	}
}

func (g gateway) eventually(what string, ok func() bool) {
	g.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// unit gives what systemctl says of the daemon's unit.
func (g gateway) unit(property string) string {
	g.t.Helper()
	return strings.TrimSpace(g.Exec("systemctl", "show", "--value", "--property="+property, "edgepolicyd.service"))
}

// files lists all files, but for those of package managers, logs and caches.
func (g gateway) files() string {
	g.t.Helper()
	return g.Exec("find", "/etc", "/usr", "/var/lib",
		"(", "-path", "/var/lib/dpkg", "-o", "-path", "/var/lib/apt", "-o", "-path", "/var/lib/rpm", "-o", "-path", "/var/lib/systemd", ")", "-prune", "-o", "-print")
}
