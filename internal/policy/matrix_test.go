package policy_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares files with testdata/matrix/NAME.txtar.
func golden(t *testing.T, name string, files ...txtar.File) {
	t.Helper()
	path := filepath.Join("testdata", "matrix", name+".txtar")
	got := txtar.Format(&txtar.Archive{Files: files})
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (run with -update to accept):\n%s\nwant:\n%s", path, got, want)
	}
}

// lines gives cells one JSON object a line.
func lines(t *testing.T, cells []policy.Cell) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, c := range cells {
		j, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s\n", j)
	}
	return b.Bytes()
}

func table(t *testing.T, cells []policy.Cell) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := policy.WriteMatrix(&b, cells); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func addresses(text ...string) []netip.Addr {
	var found []netip.Addr
	for _, s := range text {
		found = append(found, netip.MustParseAddr(s))
	}
	return found
}

// brokerCourt is the message broker scenario without addresses, as an operator
// has it before anything runs.
func brokerCourt(t *testing.T) *court {
	return newCourt(t,
		testPod("default/pod-broker", "role=message-broker-pod"),
		testPod("default/pod-publisher", "role=message-client-pod"),
		testPod("default/pod-subscriber", "role=message-client-pod"),
		brokerPolicy(), clientPolicy())
}

func TestMatrixByLabels(t *testing.T) {
	c := brokerCourt(t)
	cells := policy.Matrix(c.s, &c.o, policy.MatrixRequest{Addresses: addresses("192.168.20.7")})
	golden(t, "broker", txtar.File{Name: "cells", Data: lines(t, cells)}, txtar.File{Name: "table", Data: table(t, cells)})
}

func TestMatrixFamiliesGatewayAndPorts(t *testing.T) {
	web := withPorts(testPod("default/web", "app=web", "10.42.0.1", "fd00::1"), inventory.NamedPort{Name: "http", Protocol: inventory.TCP, Port: 8080})
	c := newCourt(t, "10.42.0.254", "fd00::fe", web,
		testPod("default/four", "", "10.42.0.2"), testPod("default/six", "", "fd00::3"),
		testPod("default/two", "app=two", "10.42.0.4", "10.42.0.5"),
		testPodWith(testPod("default/host", "app=web", "10.42.0.254"), func(p *inventory.Pod) { p.HostNetwork = true }),
		testPodWith(testPod("default/done", "app=web", "10.42.0.9"), func(p *inventory.Pod) { p.Phase = "Failed" }),
		testPod("default/bad", "app=web", "127.0.0.1"),
		testPolicy("default/in", selector("app=web"), ingress(rule(port("http/TCP"), port("5000-6000/UDP")), rule(blockPeer("0.0.0.0/0"), port("SCTP")))),
		testPolicy("default/out", selector("app=web"), egress(rule(blockPeer("10.42.0.4/32"), port("SCTP")), rule(blockPeer("2001:db8::/32"), port("8080/TCP")))))
	cells := policy.Matrix(c.s, &c.o, policy.MatrixRequest{Addresses: addresses("2001:db8::7", "192.168.20.7", "192.168.20.7")})
	golden(t, "families", txtar.File{Name: "cells", Data: lines(t, cells)}, txtar.File{Name: "table", Data: table(t, cells)})
}

func TestMatrixWide(t *testing.T) {
	objects := []any{testPolicy("default/p", selector("app=web"), ingress(rule(blockPeer("10.42.0.0/24", "10.42.0.3/32"))))}
	for i := range 24 {
		label := []string{"app=web", "app=db"}[i%2]
		objects = append(objects, testPod(fmt.Sprintf("default/pod-%02d", i), label, fmt.Sprintf("10.42.0.%d", i), fmt.Sprintf("fd00::%d", i)))
	}
	c := newCourt(t, objects...)
	cells := policy.Matrix(c.s, &c.o, policy.MatrixRequest{Addresses: addresses("192.168.20.7")})
	golden(t, "wide", txtar.File{Name: "table", Data: table(t, cells)})
}

func TestMatrixUsedPorts(t *testing.T) {
	ports := func(objects ...any) string {
		c := newCourt(t, append(objects, testPod("default/a", "app=a"), testPod("default/b", "app=b"))...)
		var found []string
		for _, cell := range policy.Matrix(c.s, &c.o, policy.MatrixRequest{}) {
			if p := fmt.Sprintf("%d/%s", cell.Port, cell.Protocol); !slices.Contains(found, p) {
				found = append(found, p)
			}
		}
		return strings.Join(found, " ")
	}
	unused := testPolicy("default/unused", selector(""), egress())
	unused.Rules[inventory.Ingress] = []inventory.Rule{rule(port("7/TCP"))} // policyTypes: [Egress]
	for want, got := range map[string]string{
		"80/TCP":              ports(),
		"443/TCP 5/UDP 9/UDP": ports(unused, testPolicy("default/p", selector(""), ingress(rule(port("443/TCP"), port("443/TCP"), port("5-9/UDP"))))),
		"90/TCP 80/SCTP": ports(testPolicy("default/p", selector(""), ingress(rule(port("http/TCP"), port("SCTP")))),
			withPorts(testPod("default/c", ""), inventory.NamedPort{Name: "http", Protocol: inventory.TCP, Port: 90})),
	} {
		if got != want {
			t.Errorf("used ports %s, want %s", got, want)
		}
	}
}

// Every cell must be what the judge says of its addresses.
func TestMatrixAgreesWithEvaluate(t *testing.T) {
	c := newCourt(t, "10.42.0.254", testPod("default/a", "app=a", "10.42.0.1", "10.42.0.2"), testPod("default/b", "app=b", "10.42.0.3"),
		testPolicy("default/p", selector("app=a"), ingress(rule(blockPeer("192.168.0.0/16"), port("80/TCP"))), egress(rule(podPeer("app=b"), port("81/TCP")))))
	cells := policy.Matrix(c.s, &c.o, policy.MatrixRequest{Addresses: addresses("192.168.1.1", "192.169.1.1")})
	// 2 pods to 6 addresses, 3 others to the pods' 3, 2 ports.
	if want := (2*6 + 3*3) * 2; len(cells) != want {
		t.Errorf("%d cells, want %d", len(cells), want)
	}
	for _, cell := range cells {
		c.want(cell.Allowed, cell.From, cell.ToIP, []string{fmt.Sprintf("%d/%s", cell.Port, cell.Protocol)})
	}
}

func TestParseMatrixPort(t *testing.T) {
	for in, want := range map[string]policy.MatrixPort{
		"80": {Protocol: inventory.TCP, Port: 80}, "1/TCP": {Protocol: inventory.TCP, Port: 1},
		"53/udp": {Protocol: inventory.UDP, Port: 53}, "65535/SCTP": {Protocol: inventory.SCTP, Port: 65535},
	} {
		if got, err := policy.ParseMatrixPort(in); err != nil || got != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "/", "0", "65536", "-1", "+1", "80/", "80/ICMP", "/TCP", "80/TCP/UDP", " 80", "80-90/TCP", "http"} {
		if got, err := policy.ParseMatrixPort(in); err == nil {
			t.Errorf("%q is %v", in, got)
		}
	}
}

func FuzzParseMatrixPort(f *testing.F) {
	for _, s := range []string{"80", "80/TCP", "53/udp", "65535/SCTP", "0/TCP", "80/", "1/2/3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := policy.ParseMatrixPort(s)
		if err != nil {
			return
		}
		if again, err := policy.ParseMatrixPort(p.String()); err != nil || again != p || p.Port == 0 {
			t.Errorf("%q: %v, then %v, %v", s, p, again, err)
		}
	})
}
