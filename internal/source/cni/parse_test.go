package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// Results of all versions of the specification, and of plugins with ways of their
// own. NETNS is a sandbox that exists, as do veth1 and cni0.
func TestResults(t *testing.T) {
	for name, tt := range map[string]struct {
		result, netns, config string
		want                  string
	}{
		"0.1.0, of this boot": {result: `{"ip4":{"ip":"10.1.0.2/24","gateway":"10.1.0.1"}}`, want: "default/a[10.1.0.2] 1/edgenet()"},
		"0.2.0": {result: `{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/24"},"ip6":{"ip":"fd00::2/64"},"dns":{}}`,
			netns: "NETNS", want: "default/a[10.1.0.2 fd00::2] 1/edgenet()"},
		"0.2.0, sandbox gone": {result: `{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/24"}}`, netns: "/run/netns/gone"},
		"0.3.1": {result: `{"cniVersion":"0.3.1","interfaces":[{"name":"cni0","mac":"1"},{"name":"veth1"},{"name":"eth0","sandbox":"NETNS"}],
			"ips":[{"version":"4","interface":2,"address":"10.1.0.2/24","gateway":"10.1.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}`,
			want: "default/a[10.1.0.2] 1/edgenet(veth1)"},
		"1.1.0": {result: `{"cniVersion":"1.1.0","interfaces":[{"name":"veth1","mtu":1500},{"name":"eth0","sandbox":"NETNS","mtu":1500,"socketPath":"","pciID":""}],
			"ips":[{"interface":1,"address":"10.1.0.2/24"}],"routes":[{"dst":"0.0.0.0/0","mtu":1400,"priority":3}]}`,
			want: "default/a[10.1.0.2] 1/edgenet(veth1)"},
		"macvlan": {result: `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"NETNS"}],"ips":[{"interface":0,"address":"10.1.0.2/24"}]}`,
			want: "default/a[10.1.0.2] 1/edgenet()"},
		"calico, no index":   {result: `{"cniVersion":"0.3.1","interfaces":[{"name":"veth1"}],"ips":[{"version":"4","address":"10.1.0.2/32"}]}`, want: "default/a[10.1.0.2] 1/edgenet(veth1)"},
		"host end gone":      {result: `{"cniVersion":"0.3.1","interfaces":[{"name":"cali1"}],"ips":[{"address":"10.1.0.2/32"}]}`},
		"container's eth0":   {result: `{"cniVersion":"0.3.1","interfaces":[{"name":"veth1"},{"name":"eth0"}],"ips":[{"interface":1,"address":"10.1.0.2/32"}]}`, want: "default/a[10.1.0.2] 1/edgenet(veth1)"},
		"bandwidth":          {result: `{"cniVersion":"1.0.0","interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"NETNS"},{"name":"ifb1"}],"ips":[{"interface":1,"address":"10.1.0.2/32"}]}`, want: "default/a[10.1.0.2] 1/edgenet(veth1)"},
		"bridge of a config": {result: `{"cniVersion":"1.0.0","interfaces":[{"name":"ovs0"},{"name":"veth1"},{"name":"eth0","sandbox":"NETNS"}],"ips":[{"interface":2,"address":"10.1.0.2/32"}]}`, config: `{"name":"x","type":"bridge","bridge":"ovs0"}`, want: "default/a[10.1.0.2] 1/edgenet(veth1)"},
		"addresses of other interfaces": {result: `{"cniVersion":"1.0.0","interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"NETNS"}],
			"ips":[{"interface":0,"address":"169.254.1.1/32"},{"interface":0,"address":"10.1.0.1/32"},{"interface":1,"address":"10.1.0.2/32"},{"interface":7,"address":"10.1.0.3/32"},{"interface":-1,"address":"10.1.0.4/32"}]}`,
			want: "default/a[10.1.0.2 10.1.0.3 10.1.0.4] 1/edgenet(veth1)"},
		"an index that means nothing": {result: `{"cniVersion":"1.0.0","interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"NETNS"}],"ips":[{"interface":0,"address":"10.1.0.2/32"}]}`,
			want: "default/a[10.1.0.2] 1/edgenet(veth1)"},
		"not a pod's addresses": {result: `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"NETNS"}],"ips":[{"address":"127.0.0.1/8"},{"address":"::1/128"},{"address":"fe80::1/64"},{"address":"169.254.7.7/16"},
			{"address":"::ffff:10.1.0.2/120"},{"address":"10.1.0.2/24"}]}`, want: "default/a[10.1.0.2] 1/edgenet()"},
		"no addresses":  {result: `{"cniVersion":"1.0.0","interfaces":[{"name":"cni0"},{"name":"veth1"},{"name":"eth0","sandbox":"NETNS"}],"ips":[]}`, want: "default/a[] 1/edgenet(veth1)"},
		"two sandboxes": {result: `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"NETNS"},{"name":"eth1","sandbox":"/run/netns/gone"}],"ips":[{"address":"10.1.0.2/24"}]}`},
		"nothing":       {result: `{}`, want: "default/a[] 1/edgenet()"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			x := g.of("a", "1")
			g.link("ifb", "ifb1")
			x.result, x.config = strings.ReplaceAll(tt.result, "NETNS", x.netns), tt.config
			data := x.json()
			if tt.netns != "" {
				var m map[string]any
				must(t, json.Unmarshal(data, &m))
				m["netns"] = strings.ReplaceAll(tt.netns, "NETNS", x.netns)
				var err error
				data, err = json.Marshal(m)
				must(t, err)
			}
			must(t, os.WriteFile(filepath.Join(g.results, x.file()), data, 0o600))
			if r := g.has(tt.want); len(r.Diagnostics) > 0 {
				t.Errorf("diagnostics %v", r.Diagnostics)
			}
		})
	}
}

// A result that names neither sandbox nor interface counts if it is of this boot.
func TestNothingToSee(t *testing.T) {
	g := newGateway(t)
	x := g.of("a", "1")
	x.result = `{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/24"}}`
	g.write(x)
	path := filepath.Join(g.results, x.file())
	for _, tt := range []struct {
		written time.Time
		want    string
	}{
		{time.Now(), "default/a[10.1.0.2] 1/edgenet()"},
		{booted(time.Now()).Add(-time.Minute), ""},
		{booted(time.Now()).Add(time.Second), "default/a[10.1.0.2] 1/edgenet()"},
		{time.Now().Add(time.Hour), ""},
	} {
		must(t, os.Chtimes(path, tt.written, tt.written))
		g.has(tt.want)
	}
}

func TestConfigurations(t *testing.T) {
	for name, tt := range map[string]struct {
		config   string
		ranges   string
		bridges  string
		warnings string
	}{
		"ranges": {config: `{"name":"n","plugins":[{"type":"bridge","bridge":"kube-bridge","ipam":{"type":"host-local","ranges":[[{"subnet":"fd88::7/64"},{"subnet":"10.2.0.0/24","rangeStart":"10.2.0.9","rangeEnd":"10.2.0.10"}],[{"subnet":"10.1.2.3/16"}]]}},{"type":"portmap"}]}`,
			ranges: "10.1.0.0/16 10.2.0.0/24 fd88::/64", bridges: "kube-bridge"},
		"single":           {config: `{"cniVersion":"0.3.1","name":"n","type":"bridge","ipam":{"type":"host-local","subnet":"10.1.0.0/16","ranges":[[{"subnet":"10.1.0.0/16"}]]}}`, ranges: "10.1.0.0/16", bridges: "cni0"},
		"flannel":          {config: `{"name":"cbr0","plugins":[{"type":"flannel","delegate":{"hairpinMode":true,"bridge":"cbr0","isDefaultGateway":true,"ipam":{"type":"host-local","subnet":"10.244.0.0/24"}}}]}`, ranges: "10.244.0.0/24", bridges: "cbr0"},
		"flannel, default": {config: `{"name":"cbr0","plugins":[{"type":"flannel"}]}`, bridges: "cni0"},
		"flannel, ptp":     {config: `{"name":"cbr0","plugins":[{"type":"flannel","delegate":{"type":"ptp","ipam":{"type":"host-local","subnet":"10.244.0.0/24"}}}]}`, ranges: "10.244.0.0/24"},
		"multus":           {config: `{"name":"m","type":"multus","delegates":[{"type":"bridge","bridge":"a0"},{"plugins":[{"type":"bridge","bridge":"b0","ipam":{"type":"host-local","subnet":"10.9.0.0/24"}}]}]}`, ranges: "10.9.0.0/24", bridges: "a0 b0"},
		"other words":      {config: `{"name":"m","type":"x","bridge":7,"delegate":true,"delegates":"all","ipam":"none"}`},
		"other ipam":       {config: `{"name":"m","type":"ptp","ipam":{"type":"whereabouts","range":"10.1.0.0/16","ranges":"10.2.0.0/16"}}`},
		"mapped":           {config: `{"type":"ptp","ipam":{"type":"host-local","subnet":"::ffff:10.1.0.0/112"}}`, ranges: "10.1.0.0/16"},
		"usePodCidr":       {config: `{"type":"calico","ipam":{"type":"host-local","subnet":"usePodCidr"}}`, warnings: `subnet "usePodCidr" is no range`},
		"odd ipam":         {config: `{"type":"ptp","ipam":{"type":"host-local","subnet":7}}`, warnings: "its ipam is not that of host-local"},
		"deep":             {config: strings.Repeat(`{"type":"x","delegate":`, 50) + `{"type":"bridge"}` + strings.Repeat("}", 50), warnings: "more than 8 times"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			check := func(where, field string) {
				t.Helper()
				r := g.look()
				if prefixes(r.Network.Ranges) != tt.ranges || strings.Join(r.Network.Bridges, " ") != tt.bridges || r.Err != nil || len(r.Rejected) > 0 {
					t.Errorf("%s: %+v, rejected %v, err %v", where, r.Network, r.Rejected, r.Err)
				}
				d := r.Diagnostics
				if tt.warnings == "" && len(d) > 0 || tt.warnings != "" && (len(d) != 1 || d[0].Severity != manifest.Warning || d[0].Field != field || !strings.Contains(d[0].Message, tt.warnings)) {
					t.Errorf("%s: diagnostics %v", where, d)
				}
			}
			path := filepath.Join(g.configs, "10-n.conflist")
			must(t, os.WriteFile(path, []byte(tt.config), 0o644))
			check("in the folder", "")
			must(t, os.Remove(path))
			a, b := g.of("a", "1", "10.1.0.2/24"), g.of("b", "2", "10.1.0.3/24")
			a.config, b.config = tt.config, tt.config
			g.write(a, b)
			g.unlink(a.veth) // it tells what is configured all the same
			check("in two results", "config")
		})
	}
}

// A broken configuration is a warning, and what the file said before stays.
func TestBrokenConfiguration(t *testing.T) {
	g := newGateway(t)
	path := filepath.Join(g.configs, "10-edgenet.conflist")
	x := g.of("a", "1", "10.1.0.2/24")
	x.config = "{"
	g.write(x)
	told := func(want string, warnings ...string) {
		t.Helper()
		r := g.has("default/a[10.1.0.2] 1/edgenet(veth1)")
		if fmt.Sprint(r.Network) != want {
			t.Errorf("network %v, want %v", r.Network, want)
		}
		var all []string
		for _, d := range r.Diagnostics {
			all = append(all, filepath.Base(d.File))
			if d.Severity != manifest.Warning {
				t.Errorf("%v is no warning", d)
			}
		}
		if !slices.Equal(all, warnings) {
			t.Errorf("warnings %v, want %v", r.Diagnostics, warnings)
		}
	}
	told("{true [] []}", x.file())
	must(t, os.WriteFile(path, []byte(conflist("edgenet", "kube0", "10.1.0.0/16")), 0o644))
	told("{true [10.1.0.0/16] [kube0]}", x.file())
	for _, broken := range []string{"", "{", "[]", "{}", `{"plugins":[]}`, `{"plugins":{}}`, conflist("n", "kube0", "10.2.0.0/16")[1:]} {
		must(t, os.WriteFile(path, []byte(broken), 0o644))
		told("{true [10.1.0.0/16] [kube0]}", x.file(), "10-edgenet.conflist")
	}
	must(t, os.Truncate(path, maxSize+1))
	told("{true [10.1.0.0/16] [kube0]}", x.file(), "10-edgenet.conflist")
	must(t, os.WriteFile(path, []byte(conflist("edgenet", "kube0", "10.3.0.0/16")), 0o644))
	told("{true [10.3.0.0/16] [kube0]}", x.file())
	must(t, os.Remove(path))
	told("{true [] []}", x.file())
	must(t, os.Remove(g.configs))
	told("{true [] []}", x.file())
	must(t, os.WriteFile(g.configs, nil, 0o644))
	told("{true [] []}", x.file(), "net.d")
}

// Of the folder count the first network, as for the runtimes, and those that pods
// have: what podman puts there is not the pods'.
func TestWhoseNetworks(t *testing.T) {
	g := newGateway(t)
	for name, config := range map[string]string{
		"00-readme.txt":       "text",
		"05-loopback.conf":    `{"cniVersion":"0.3.1","name":"lo","type":"loopback"}`,
		"06-loops.conflist":   `{"name":"los","plugins":[{"type":"loopback"}]}`,
		"10-pods.conflist":    conflist("pods", "kube0", "10.1.0.0/16"),
		"87-podman.conflist":  conflist("podman", "podman0", "10.88.0.0/16"),
		"90-edgenet.json":     `{"name":"edgenet","type":"bridge","bridge":"cni9","ipam":{"type":"host-local","subnet":"10.9.0.0/16"}}`,
		"10-pods.conflist.bk": conflist("old", "old0", "10.7.0.0/16"),
	} {
		must(t, os.WriteFile(filepath.Join(g.configs, name), []byte(config), 0o644))
	}
	if r := g.look(); fmt.Sprint(r.Network) != "{true [10.1.0.0/16] [kube0]}" || len(r.Diagnostics) > 0 {
		t.Errorf("without pods: %v, %v", r.Network, r.Diagnostics)
	}
	g.write(g.of("a", "1", "10.1.0.2/24"))
	if r := g.look(); fmt.Sprint(r.Network) != "{true [10.1.0.0/16 10.9.0.0/16] [cni0 cni9 kube0]}" {
		t.Errorf("with a pod of edgenet: %v", r.Network)
	}
}

// Whatever is in a file, what comes of it is in order.
func FuzzParseResult(f *testing.F) {
	files, err := filepath.Glob("testdata/recorded/results/*")
	must(f, err)
	for _, file := range files {
		data, err := os.ReadFile(file)
		must(f, err)
		f.Add(data)
		f.Add(data[:len(data)/2])
	}
	x := spec{pod: "a", namespace: "default", sandbox: "1", network: "n", ifName: "eth0", config: conflist("n", "cni0", "10.1.0.0/16")}
	for _, result := range []string{`{}`, `null`, `{"ip4":{"ip":"10.1.0.2/24"}}`, `{"ips":[{"interface":9,"address":"::ffff:10.1.0.2/120"}],"interfaces":[null,{"name":"v"}]}`} {
		x.result = result
		f.Add(x.json())
	}
	f.Add([]byte(`{"kind":"cniCacheV1"}`))
	written := time.Unix(1, 0)
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := parseResult(data, written)
		if err != nil && (e != nil || err.Error() == "") {
			t.Fatalf("both an entry and an error: %v", err)
		}
		if e == nil || e == stranger {
			return
		}
		a := e.attachment
		if e.key.Name == "" || e.key.Namespace == "" || a.Sandbox == "" || a.Network == "" || e.network == nil || !a.Written.Equal(written) {
			t.Fatalf("entry %+v", e)
		}
		for i, x := range a.Addresses {
			if x.Is4In6() || x.Zone() != "" || x.IsLoopback() || x.IsLinkLocalUnicast() || i > 0 && a.Addresses[i-1].Compare(x) >= 0 {
				t.Fatalf("addresses %v", a.Addresses)
			}
		}
		p, err := podOf(e.key, a.UID, a.Addresses)
		if err != nil || !slices.Equal(p.Addresses, a.Addresses) || p.UID != a.UID || p.Key != e.key {
			t.Fatalf("pod %+v of %+v: %v", p, e, err)
		}
		again, err := podOf(e.key, a.UID, a.Addresses)
		if err != nil || string(again.JSON) != string(p.JSON) {
			t.Fatalf("%s and %s of one pod", p.JSON, again.JSON)
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	data, err := os.ReadFile("testdata/recorded/10-edgenet.conflist")
	must(f, err)
	f.Add(data)
	f.Add([]byte(`{"name":"cbr0","plugins":[{"type":"flannel","delegate":{"type":"bridge","ipam":{"type":"host-local","subnet":"::ffff:1.2.3.4/99"}}}]}`))
	f.Add([]byte(`{"type":"multus","delegates":[{"type":"bridge","bridge":"a"},{"plugins":[null,{"type":"bridge"}]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := parseConfig(data)
		if err != nil {
			return
		}
		for i, p := range n.ranges {
			if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() && p.Bits() >= 96 || i > 0 && n.ranges[i-1].Compare(p) >= 0 {
				t.Fatalf("ranges %v", n.ranges)
			}
		}
		if !slices.IsSorted(n.bridges) || slices.Contains(n.bridges, "") || len(n.warnings) > maxWarnings {
			t.Fatalf("network %+v", n)
		}
	})
}

func prefixes(all []netip.Prefix) string { return strings.Trim(fmt.Sprint(all), "[]") }
