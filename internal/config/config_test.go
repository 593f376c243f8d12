package config

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// leaves lists the keys of a configuration type.
func leaves(t reflect.Type, prefix string) []string {
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[Prefix]() {
		return []string{prefix}
	}
	var all []string
	for i := range t.NumField() {
		all = append(all, leaves(t.Field(i).Type, strings.TrimPrefix(prefix+"."+t.Field(i).Tag.Get("json"), "."))...)
	}
	return all
}

// yamlLeaves gives the keys of a file with their values.
func yamlLeaves(n *yaml.Node, prefix string, to map[string]string) {
	if n.Kind != yaml.MappingNode {
		to[prefix] = n.Value
		if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
			to[prefix] = "[]"
		}
		return
	}
	for i := 0; i < len(n.Content); i += 2 {
		yamlLeaves(n.Content[i+1], strings.TrimPrefix(prefix+"."+n.Content[i].Value, "."), to)
	}
}

// TestReference: each key is described once, and the file that is delivered
// lists exactly these, with their defaults.
func TestReference(t *testing.T) {
	var described []string
	defaults := map[string]string{}
	for _, e := range Reference() {
		described = append(described, e.Key)
		defaults[e.Key] = e.Default
		if e.Meaning == "" || !strings.HasSuffix(e.Meaning, ".") {
			t.Errorf("%s: %q is no meaning", e.Key, e.Meaning)
		}
	}
	if want := leaves(reflect.TypeFor[Config](), ""); !slices.Equal(described, want) {
		t.Errorf("described %v\nof Config %v", described, want)
	}
	path := filepath.Join("..", "..", "configs", "config.yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	written := map[string]string{}
	yamlLeaves(doc.Content[0], "", written)
	if !reflect.DeepEqual(written, defaults) {
		t.Errorf("configs/config.yaml has\n%v, the defaults are\n%v", written, defaults)
	}
	c, err := Load(path)
	want := Default()
	want.Gateway.AllowFromPods, want.NeverPods, want.NeverIsolate = []Port{}, []Prefix{}, []Workload{}
	want.PodRanges = []Prefix{}
	if err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("configs/config.yaml is read as %+v, %v", c, err)
	}
}

func TestDefaults(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "{}", "---\n", "log:\nneverPods:\ngateway: {egress: }\n"} {
		c, found := Parse("c.yaml", []byte(text))
		if len(found) > 0 || !reflect.DeepEqual(c, Default()) {
			t.Errorf("%q: %+v %v", text, c, found)
		}
	}
	if o := Default().Options(); !reflect.DeepEqual(o, inventory.DefaultOptions()) {
		t.Errorf("options %+v", o)
	}
}

func TestEveryKey(t *testing.T) {
	c, found := Parse("c.yaml", []byte(`
sources: {directory: {path: /srv/policies/}}
stateDir: /data/edge
socket: /run/x.sock
table: edge_2
log: {level: debug, format: json}
audit: {denied: {enabled: false, perPodRate: 7, window: 1m}}
metrics: {listen: "[::1]:9469"}
enforcement: audit
ipBlockMatchesPods: false
denied: reject
gateway: {egress: allow, allowFromPods: [53/UDP, 65535/SCTP]}
neverPods: [192.168.1.0/24, 10.0.0.1, "fd00::1"]
neverIsolate: [kube-system, default/agent-0.x]
connectionMark: {mask: 0x0000f000}
`))
	if len(found) > 0 {
		t.Fatal(found)
	}
	if c.Sources.Directory.Path != "/srv/policies" || c.StateDir != "/data/edge" || c.Socket != "/run/x.sock" || c.Table != "edge_2" || slog.Level(c.Log.Level) != slog.LevelDebug ||
		c.Log.Format != "json" || c.Audit.Denied.Window != Duration(time.Minute) || c.Metrics.Listen != "[::1]:9469" {
		t.Errorf("%+v", c)
	}
	want := inventory.Options{
		GatewayPorts: []inventory.Port{{Protocol: inventory.UDP, First: 53, Last: 53}, {Protocol: inventory.SCTP, First: 65535, Last: 65535}},
		NeverIsolate: []inventory.Key{{Namespace: "kube-system"}, {Namespace: "default", Name: "agent-0.x"}},
		NeverPods:    []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("fd00::1/128")},
		Reject:       true, Audit: true, LogRate: 7, MarkMask: 0xf000,
	}
	if o := c.Options(); !reflect.DeepEqual(o, want) {
		t.Errorf("options %+v, want %+v", o, want)
	}
}

func TestErrors(t *testing.T) {
	for text, want := range map[string]string{
		"stateDir: /a\ntabel: x":                     "c.yaml:2:1: tabel: unknown field: did you mean table?",
		"log: {colour: x}":                           "c.yaml:1:7: log.colour: unknown field: known here are format, level",
		"Table: x":                                   "c.yaml:1:1: Table: unknown field: did you mean table?",
		"table: a\ntable: b":                         "c.yaml:2:1: table: the key stands twice",
		"table: 1st":                                 "c.yaml:1:8: table: 1st: must be letters",
		"table: a b":                                 "must be letters",
		"table: " + strings.Repeat("a", 65):          "at most 64 characters",
		"table: \"\"":                                "must be letters",
		"table: [a]":                                 "must be a single value",
		"log: {level: INFO}":                         "c.yaml:1:14: log.level: INFO: must be debug, info, warn or error",
		"log: {level: info+2}":                       "must be debug",
		"log: debug":                                 "c.yaml:1:6: log: debug: must be a mapping",
		"denied: deny":                               "must be drop or reject",
		"gateway: {egress: deny}":                    "must be enforce or allow",
		"gateway: {allowFromPods: [53]}":             "c.yaml:1:27: gateway.allowFromPods[0]: 53: must be a port",
		"gateway: {allowFromPods: [53/udp]}":         "must be a port",
		"gateway: {allowFromPods: [0/UDP]}":          "must be a port",
		"gateway: {allowFromPods: [65536/UDP]}":      "must be a port",
		"gateway: {allowFromPods: [53/UDP/x]}":       "must be a port",
		"gateway: {allowFromPods: 53/UDP}":           "must be a list",
		"neverPods: [10.0.0.1/8]":                    "write 10.0.0.0/8, or 10.0.0.1 for the one address",
		"neverPods: [ten]":                           "must be an address",
		"neverPods: [\"::ffff:10.0.0.0/104\"]":       "must be an address",
		"neverPods: [\"fe80::1%eth0\"]":              "must be an address",
		"neverPods: [\n]\nneverIsolate: [\"a/b/c\"]": "c.yaml:3:16: neverIsolate[0]: a/b/c: must be a namespace",
		"neverIsolate: [A]":                          "must be a namespace",
		"neverIsolate: [a/]":                         "must be a namespace",
		"connectionMark: {mask: 0}":                  "must be at least 4 neighbouring bits",
		"connectionMark: {mask: 0x0}":                "must be at least 4 neighbouring bits",
		"connectionMark: {mask: 0x7}":                "must be at least 4 neighbouring bits",
		"connectionMark: {mask: 0xf0f0}":             "must be at least 4 neighbouring bits",
		"connectionMark: {mask: 0x1ff000000}":        "must be at least 4 neighbouring bits",
		"connectionMark: {mask: ff}":                 "must be at least 4 neighbouring bits",
		"enforcement: off":                           "must be enforce or audit",
		"metrics: {listen: 0.0.0.0:9469}":            "must be a loopback address and a port",
		"metrics: {listen: 127.0.0.1}":               "must be a loopback address and a port",
		"audit: {denied: {perPodRate: 0}}":           "must be a number from 1 to 1000",
		"log: {format: xml}":                         "must be auto or journal or text or json",
		"stateDir: var/lib":                          "must be an absolute path",
		"socket: \"\"":                               "must be an absolute path",
		"ipBlockMatchesPods: \"true\"":               "must be true or false",
		"- a":                                        "c.yaml:1:1: a list: must be a mapping",
		"a: b\n---\nc: d":                            "c.yaml:3:1: a second document",
		"log\n  level: debug":                        "line 1 says \"log\": a colon is missing",
	} {
		_, found := Parse("c.yaml", []byte(text))
		if len(found) != 1 || found[0].Severity != manifest.Error || !strings.Contains(found[0].String(), want) {
			t.Errorf("%q: %v, want %q", text, found, want)
		}
	}
	for _, mask := range []string{"0xf", "0xffffffff", "0x00FF0000", "0xf0000000"} {
		if _, found := Parse("c.yaml", []byte("connectionMark: {mask: "+mask+"}")); len(found) > 0 {
			t.Errorf("%s: %v", mask, found)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none.yaml")); err == nil || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("a missing file that was named: %v", err)
	}
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("table: 1\ndenied: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(bad); err == nil || strings.Count(err.Error(), "\n") != 1 || !strings.Contains(err.Error(), bad+":2:9: denied") {
		t.Errorf("two errors: %v", err)
	}
	good := filepath.Join(dir, "good.yaml")
	if err := os.WriteFile(good, []byte("table: mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(good); err != nil || c.Table != "mine" || c.StateDir != Default().StateDir {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := os.Stat(DefaultPath); err == nil {
		t.Fatalf("%s exists on this machine; this test needs it to be missing", DefaultPath)
	}
	if c, err := Load(""); err != nil || !reflect.DeepEqual(c, Default()) {
		t.Errorf("no file: %+v, %v", c, err)
	}
}

// TestRead: nothing can make a command wait, or fill its memory.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	fifo, large, most := filepath.Join(dir, "fifo"), filepath.Join(dir, "large"), filepath.Join(dir, "most")
	if err := errors.Join(syscall.Mkfifo(fifo, 0o644), os.WriteFile(large, nil, 0o644), os.Truncate(large, maxSize+1),
		os.WriteFile(most, bytes.Repeat([]byte("#"), maxSize), 0o644), os.Symlink(os.DevNull, filepath.Join(dir, "masked"))); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		fifo: "is no regular file", dir: "is no regular file", "/dev/zero": "is no regular file", large: "more than 1048576 bytes",
		most: "", os.DevNull: "", filepath.Join(dir, "masked"): "",
	} {
		done := make(chan error, 1)
		go func() {
			_, err := Load(path)
			done <- err
		}()
		select {
		case err := <-done:
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s: %v, want %q", path, err, want)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: still being read", path)
		}
	}
}

// TestExamples: the example policies are valid, and together with nothing to
// remark but the pods that look up no names.
func TestExamples(t *testing.T) {
	names, err := filepath.Glob(filepath.Join("..", "..", "configs", "examples", "*.yaml"))
	if err != nil || len(names) < 6 {
		t.Fatal(names, err)
	}
	s := &inventory.Snapshot{Gateway: []netip.Addr{netip.MustParseAddr("10.88.0.1"), netip.MustParseAddr("192.168.20.5")}}
	var files []manifest.File
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f := manifest.Decode("directory", filepath.Base(name), data)
		if !f.Parsed || len(f.Documents) == 0 || len(f.Diagnostics) > 0 {
			t.Errorf("%s: %v", name, f.Diagnostics)
		}
		files = append(files, f)
		for _, doc := range f.Documents {
			switch {
			case doc.Pod != nil:
				s.Pods = append(s.Pods, doc.Pod)
			case doc.Policy != nil:
				s.Policies = append(s.Policies, doc.Policy)
			}
		}
	}
	for _, d := range manifest.Lint(s, Default().Options(), files) {
		if d.Field != "spec.egress[0].to[0].ipBlock.cidr" || d.File != "lan-only.yaml" { // the LAN holds the gateway's own address, rightly
			t.Error(d)
		}
	}
}

func FuzzParse(f *testing.F) {
	if data, err := os.ReadFile(filepath.Join("..", "..", "configs", "config.yaml")); err != nil {
		f.Fatal(err)
	} else {
		f.Add(data)
	}
	f.Add([]byte("gateway: {allowFromPods: [53/UDP]}\nneverPods: [::/0]\nneverIsolate: [a/b]\nconnectionMark: {mask: 0xf}"))
	f.Add([]byte("&a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, found := Parse("c.yaml", data)
		if len(found) == 0 && (c.StateDir == "" || c.Table == "" || c.ConnectionMark.Mask == 0 || c.Denied == "") {
			t.Fatalf("valid, yet %+v", c)
		}
	})
}
