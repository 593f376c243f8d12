// Package config reads the daemon's own configuration.
//
// What always holds: every key is optional, an unknown one is an error with its
// line, and a Config that was read without error is valid. The keys, their
// defaults and their meaning stand in this package and nowhere else: documents
// are generated from Reference.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// DefaultPath is where the configuration is looked for. A file missing there
// means the defaults.
const DefaultPath = "/etc/edgepolicyd/config.yaml"

// Config is the configuration file, with the defaults where it is silent. Each
// json tag is a key, described in keys.
type Config struct {
	Sources            Sources    `json:"sources"`
	NodeName           Node       `json:"nodeName"`
	PodRanges          []Prefix   `json:"podRanges"`
	HoldUnknownPods    Hold       `json:"holdUnknownPods"`
	OnBoot             Boot       `json:"onBoot"`
	StateDir           Path       `json:"stateDir"`
	Socket             Path       `json:"socket"`
	Table              Table      `json:"table"`
	Log                Log        `json:"log"`
	Audit              Audit      `json:"audit"`
	Metrics            Metrics    `json:"metrics"`
	Enforcement        Mode       `json:"enforcement"`
	IPBlockMatchesPods bool       `json:"ipBlockMatchesPods"`
	Denied             Denied     `json:"denied"`
	Gateway            Gateway    `json:"gateway"`
	NeverPods          []Prefix   `json:"neverPods"`
	NeverIsolate       []Workload `json:"neverIsolate"`
	ConnectionMark     Mark       `json:"connectionMark"`
}

// Sources are the places that pods, namespaces and policies are read from.
type Sources struct {
	Directory Directory `json:"directory"`
	CNI       CNI       `json:"cni"`
	Kubelet   Kubelet   `json:"kubelet"`
	API       API       `json:"api"`
}

// CNI is where container runtimes and CNI plugins keep what they know.
type CNI struct {
	ResultsDir Path `json:"resultsDir"`
	ConfigDir  Path `json:"configDir"`
}

// Kubelet is the gateway's own kubelet; off without a URL.
type Kubelet struct {
	URL              URL      `json:"url"`
	CA               File     `json:"ca"`
	ServerName       string   `json:"serverName"`
	Certificate      File     `json:"certificate"`
	Key              File     `json:"key"`
	TokenFile        File     `json:"tokenFile"`
	Interval         Duration `json:"interval"`
	PolicyAnnotation bool     `json:"policyAnnotation"`
}

// API is a Kubernetes API server, or what stands for one on the gateway; off
// unless one of Preset, Kubeconfig and Server is set.
type API struct {
	Preset     Preset `json:"preset"`
	Kubeconfig File   `json:"kubeconfig"`
	Server     URL    `json:"server"`
	Pods       Scope  `json:"pods"`
}

// presets are the APIs that gateways are known to have.
var presets = map[Preset]API{
	"edge-kubelet": {Server: "http://127.0.0.1:10355"},
	"metaserver":   {Server: "http://127.0.0.1:10550"},
	"k3s":          {Kubeconfig: "/etc/rancher/k3s/k3s.yaml"},
	"kubeadm":      {Kubeconfig: "/etc/kubernetes/kubelet.conf"},
}

// On says whether there is an API to ask.
func (a API) On() bool { return a.Kubeconfig != "" || a.Server != "" }

// Resolved is the API with its preset written out.
func (a API) Resolved() API {
	if p, ok := presets[a.Preset]; ok {
		a.Kubeconfig, a.Server = p.Kubeconfig, p.Server
	}
	return a
}

// Directory is the watched directory of manifests.
type Directory struct {
	Path Path `json:"path"`
}

// Log is what the daemon tells, and where to.
type Log struct {
	Level  Level  `json:"level"`
	Format Format `json:"format"`
}

// Audit is what is told of packets.
type Audit struct {
	Denied AuditDenied `json:"denied"`
}

// AuditDenied is how packets that policies deny are told.
type AuditDenied struct {
	Enabled    bool     `json:"enabled"`
	PerPodRate Rate     `json:"perPodRate"`
	Window     Duration `json:"window"`
}

// Metrics is where Prometheus may ask, beside the status socket.
type Metrics struct {
	Listen Loopback `json:"listen"`
}

// Gateway is what pods may do with the gateway's own addresses (S25).
type Gateway struct {
	Egress        Egress `json:"egress"`
	AllowFromPods []Port `json:"allowFromPods"`
}

// Mark is the daemon's part of the connection mark.
type Mark struct {
	Mask Mask `json:"mask"`
}

// Default is the configuration of an empty file.
func Default() Config {
	o := inventory.DefaultOptions()
	return Config{
		Sources: Sources{
			Directory: Directory{Path: "/etc/edgepolicy.d"},
			CNI:       CNI{ResultsDir: "/var/lib/cni/results", ConfigDir: "/etc/cni/net.d"},
			Kubelet:   Kubelet{Interval: Duration(10 * time.Second)},
			API:       API{Pods: "node"},
		},
		HoldUnknownPods:    "auto",
		OnBoot:             "hold",
		StateDir:           "/var/lib/edgepolicyd",
		Socket:             "/run/edgepolicyd/edgepolicyd.sock",
		Table:              "edgepolicyd",
		IPBlockMatchesPods: o.IPBlockMatchesPods,
		Log:                Log{Format: "auto"},
		Audit:              Audit{AuditDenied{Enabled: o.Log, PerPodRate: Rate(o.LogRate), Window: Duration(10 * time.Second)}},
		Enforcement:        "enforce",
		Denied:             "drop",
		Gateway:            Gateway{Egress: "enforce"},
		ConnectionMark:     Mark{Mask(o.MarkMask)},
	}
}

// Load reads the configuration file, DefaultPath if path is empty. The error
// joins everything wrong with it, a line each.
func Load(path string) (Config, error) {
	if path == "" {
		path = DefaultPath
	}
	data, err := Read(path)
	if errors.Is(err, fs.ErrNotExist) && path == DefaultPath {
		return Default(), nil
	}
	if err != nil {
		return Config{}, err
	}
	c, found := Parse(path, data)
	var errs []error
	for _, d := range found {
		if d.Severity == manifest.Error {
			errs = append(errs, d)
		}
	}
	return c, errors.Join(errs...)
}

// maxSize is in bytes, far above what a configuration can need.
const maxSize = 1 << 20

// Read gives the text of a configuration file: a regular one, or /dev/null, which
// is an empty one. It does not wait for the other end of a FIFO.
func Read(path string) ([]byte, error) {
	data, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return data, nil
}

func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if null, err := os.Stat(os.DevNull); err == nil && os.SameFile(info, null) {
		return nil, nil
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(data) > maxSize {
		err = fmt.Errorf("%s has more than %d bytes, which are the most", path, maxSize)
	}
	return data, err
}

// Parse reads a configuration from text; file is its name for messages. The
// Config is not to be used when a diagnostic is an error.
func Parse(file string, data []byte) (Config, []manifest.Diagnostic) {
	c := Default()
	found := manifest.Unmarshal(file, data, &c)
	if slices.ContainsFunc(found, func(d manifest.Diagnostic) bool { return d.Severity == manifest.Error }) {
		return c, found
	}
	fail := func(field, message string) {
		found = append(found, manifest.Diagnostic{Severity: manifest.Error, File: file, Field: field, Message: message})
	}
	if k := c.Sources.Kubelet; (k.Certificate == "") != (k.Key == "") {
		fail("sources.kubelet", "certificate and key belong together: give both or neither")
	}
	if k := c.Sources.Kubelet; k.URL == "" && k != Default().Sources.Kubelet {
		fail("sources.kubelet", "url is missing: without it the kubelet is not asked, and the other keys mean nothing")
	}
	a, given := c.Sources.API, 0
	for _, set := range []bool{a.Preset != "", a.Kubeconfig != "", a.Server != ""} {
		if set {
			given++
		}
	}
	if given > 1 {
		fail("sources.api", "preset, kubeconfig and server exclude each other: give one")
	}
	return c, found
}

// Options are the settings that change what is enforced.
func (c Config) Options() inventory.Options {
	o := inventory.Options{
		IPBlockMatchesPods: c.IPBlockMatchesPods,
		GatewayEgress:      c.Gateway.Egress == "enforce",
		Reject:             c.Denied == "reject",
		Audit:              c.Enforcement == "audit",
		Log:                c.Audit.Denied.Enabled,
		LogRate:            uint32(c.Audit.Denied.PerPodRate),
		MarkMask:           uint32(c.ConnectionMark.Mask),
	}
	for _, p := range c.Gateway.AllowFromPods {
		o.GatewayPorts = append(o.GatewayPorts, inventory.Port(p))
	}
	for _, w := range c.NeverIsolate {
		o.NeverIsolate = append(o.NeverIsolate, inventory.Key(w))
	}
	for _, p := range c.NeverPods {
		o.NeverPods = append(o.NeverPods, p.Prefix)
	}
	return o
}
