package config

import (
	"strings"
	"testing"
)

// Each preset stands for one API; the keys that exclude each other, or need each
// other, are told.
func TestSources(t *testing.T) {
	for preset, want := range map[string]API{
		"edge-kubelet": {Server: "http://127.0.0.1:10355"},
		"metaserver":   {Server: "http://127.0.0.1:10550"},
		"k3s":          {Kubeconfig: "/etc/rancher/k3s/k3s.yaml"},
		"kubeadm":      {Kubeconfig: "/etc/kubernetes/kubelet.conf"},
	} {
		c, found := Parse("f", []byte("sources: {api: {preset: "+preset+"}}"))
		if got := c.Sources.API.Resolved(); len(found) > 0 || got.Server != want.Server || got.Kubeconfig != want.Kubeconfig || !got.On() {
			t.Errorf("%s: %+v, %v", preset, got, found)
		}
	}
	if c := Default(); c.Sources.API.Resolved().On() || c.Sources.Kubelet.URL != "" {
		t.Error("an API or a kubelet is asked without being configured")
	}
	for text, want := range map[string]string{
		"sources: {api: {preset: kubeadm, server: 'http://127.0.0.1:1'}}":       "exclude each other",
		"sources: {api: {preset: rancher}}":                                     "must be edge-kubelet or metaserver or k3s or kubeadm",
		"sources: {api: {pods: some}}":                                          "must be node or all",
		"sources: {kubelet: {tokenFile: /t}}":                                   "url is missing",
		"sources: {kubelet: {url: 'https://127.0.0.1:10250', certificate: /c}}": "belong together",
		"sources: {kubelet: {url: '127.0.0.1:10255'}}":                          "must be http://",
		"sources: {kubelet: {url: 'http://u:p@127.0.0.1:10255'}}":               "must be http://",
		"sources: {kubelet: {url: 'http://127.0.0.1:10255', interval: 10}}":     "must be a time",
		"holdUnknownPods: maybe":                                                "must be auto or on or off",
		"onBoot: closed":                                                        "must be hold or open",
		"nodeName: Bad_Name":                                                    "must be the name of a Kubernetes node",
		"podRanges: [10.42.0.1/24]":                                             "has bits set beyond its prefix length",
	} {
		_, found := Parse("f", []byte(text))
		if len(found) == 0 || !strings.Contains(found[0].String(), want) {
			t.Errorf("%s: %v, want %q", text, found, want)
		}
	}
}
