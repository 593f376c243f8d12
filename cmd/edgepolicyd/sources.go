package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"edgepolicy.io/edgepolicyd/internal/config"
	"edgepolicy.io/edgepolicyd/internal/gateway"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/internal/source/api"
	"edgepolicy.io/edgepolicyd/internal/source/cni"
	"edgepolicy.io/edgepolicyd/internal/source/directory"
	"edgepolicy.io/edgepolicyd/internal/source/kubelet"
	"edgepolicy.io/edgepolicyd/internal/state"
)

// sources makes the sources that are configured, in the order of their precedence
// (S10), and gives the gateway's name as a node, where one of them needs it. ask:
// the kubelet may be asked for it.
func sources(ctx context.Context, cfg config.Config, saved state.Saved, ask bool, log *slog.Logger) (list []source.Source, node string, err error) {
	last := func(name string) func() inventory.Objects {
		return func() inventory.Objects {
			known, err := saved.Objects(name)
			if err != nil {
				log.Error("not all of the saved state can be used", "error", err)
			}
			return known
		}
	}
	list = append(list,
		directory.New(string(cfg.Sources.Directory.Path), last(directory.Name), log),
		cni.New(cni.Config{ResultsDir: string(cfg.Sources.CNI.ResultsDir), ConfigDir: string(cfg.Sources.CNI.ConfigDir), Interfaces: kinds}, log))
	k, a := cfg.Sources.Kubelet, cfg.Sources.API.Resolved()
	var pods *kubelet.Source
	if k.URL != "" {
		u, err := url.Parse(string(k.URL))
		if err != nil {
			return nil, "", fmt.Errorf("sources.kubelet.url: %w", err)
		}
		pods, err = kubelet.New(kubelet.Config{
			URL: u, CA: string(k.CA), ServerName: k.ServerName, Certificate: string(k.Certificate), Key: string(k.Key),
			TokenFile: string(k.TokenFile), Interval: time.Duration(k.Interval), PolicyAnnotation: k.PolicyAnnotation,
		}, last(kubelet.Name), log)
		if err != nil {
			return nil, "", fmt.Errorf("sources.kubelet: %w", err)
		}
		list = append(list, pods)
	}
	if a.On() {
		node = string(cfg.NodeName)
		if node == "" {
			if !ask {
				pods = nil
			}
			node = nodeName(ctx, saved, pods)
		}
		s, err := api.New(api.Config{Kubeconfig: string(a.Kubeconfig), Server: string(a.Server), AllPods: a.Pods == "all", NodeName: node}, last(api.Name), log)
		if err != nil {
			return nil, "", fmt.Errorf("sources.api: %w", err)
		}
		list = append(list, s)
	}
	return list, node, nil
}

// kinds gives the gateway's interfaces and their kinds.
func kinds(ctx context.Context) (map[string]string, error) {
	all, err := gateway.Interfaces(ctx)
	if err != nil {
		return nil, err
	}
	kinds := make(map[string]string, len(all))
	for name, i := range all {
		kinds[name] = i.Kind
	}
	return kinds, nil
}

// identity is where Izuma Edge keeps the gateway's name.
const identity = "/userdata/edge_gw_config/identity.json"

// nodeNameWait is how long the start waits for the kubelet to tell the node's name.
// It answers within 20 ms.
const nodeNameWait = 300 * time.Millisecond

// nodeName finds the gateway's name as a node: the kubelet's pods say it, as they
// were saved or as they are now; else identity.json; else it is the host's name.
func nodeName(ctx context.Context, saved state.Saved, pods *kubelet.Source) string {
	known, _ := saved.Objects(kubelet.Name)
	if pods != nil && len(known.Pods) == 0 {
		limited, cancel := context.WithTimeout(ctx, nodeNameWait)
		r, _ := pods.Refresh(limited)
		cancel()
		known = r.Objects
	}
	for _, p := range known.Pods {
		if p.Node != "" {
			return p.Node
		}
	}
	var id struct {
		DeviceID string `json:"deviceID"`
	}
	if data, err := os.ReadFile(identity); err == nil && json.Unmarshal(data, &id) == nil && id.DeviceID != "" {
		return id.DeviceID
	}
	name, _ := os.Hostname()
	return strings.ToLower(name) // as the kubelet does
}
