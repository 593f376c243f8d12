package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	types "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
)

// pluginDir is where Debian's containernetworking-plugins has them.
const pluginDir = "/usr/lib/cni"

// CNIRange4 and CNIRange6 are where pods of the CNI plugins get their addresses
// from; the first address of each is the gateway's, on cni0 or on each veth.
var (
	CNIRange4 = netip.MustParsePrefix("10.88.0.0/24")
	CNIRange6 = netip.MustParsePrefix("fd88::/64")
)

// CNI makes pods as a container runtime does: a network namespace for each, and
// real CNI plugins, called by the real libcni, which also keeps the cache of
// results. It can be used by several goroutines at once.
type CNI struct {
	ResultsDir string // as /var/lib/cni/results on a gateway
	ConfigDir  string // as /etc/cni/net.d

	lab    *Lab
	plugin string
	lib    *libcni.CNIConfig
	list   *libcni.NetworkConfigList

	mu    sync.Mutex
	lives map[*Namespace]*libcni.RuntimeConf
}

// The configurations of the networks, by their main plugin. %[1]s is the folder
// of host-local's reservations.
var conflists = map[string]string{
	"bridge": `{"cniVersion": "1.0.0", "name": "edgenet", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "capabilities": {"ips": true},
    "ipam": {"type": "host-local", "dataDir": %[1]q, "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`,
	"ptp": `{"cniVersion": "1.0.0", "name": "edgenet", "plugins": [
  {"type": "ptp", "capabilities": {"ips": true},
    "ipam": {"type": "host-local", "dataDir": %[1]q, "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`,
	"macvlan": `{"cniVersion": "1.0.0", "name": "lan", "plugins": [
  {"type": "macvlan", "master": "uplink", "capabilities": {"ips": true},
    "ipam": {"type": "host-local", "dataDir": %[1]q, "ranges": [[{"subnet": "10.89.0.0/24"}]]}}]}`,
}

// CNI prepares a lab without pods for those of a plugin: "bridge" where the lab
// is of Kind Bridge, "ptp" where it is Routed, or "macvlan", on the uplink. All
// files are in folder, which two networks of one gateway can share. The bridge
// comes with the first pod.
func (l *Lab) CNI(folder, plugin string) (*CNI, error) {
	text, ok := conflists[plugin]
	if !ok {
		return nil, fmt.Errorf("no CNI network of plugin %q", plugin)
	}
	text = fmt.Sprintf(text, filepath.Join(folder, "networks"))
	list, err := libcni.NetworkConfFromBytes([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("CNI network of plugin %s: %w", plugin, err)
	}
	c := &CNI{
		ResultsDir: filepath.Join(folder, "results"), ConfigDir: filepath.Join(folder, "net.d"),
		lab: l, plugin: plugin, list: list, lives: map[*Namespace]*libcni.RuntimeConf{},
		lib: libcni.NewCNIConfigWithCacheDir([]string{pluginDir}, folder, &gatewayExec{invoke.DefaultExec{RawExec: &invoke.RawExec{}}, l.Gateway}),
	}
	if err := errors.Join(os.MkdirAll(c.ResultsDir, 0o700), os.MkdirAll(c.ConfigDir, 0o755)); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if plugin != "macvlan" {
		if err := l.handOver(); err != nil {
			return nil, fmt.Errorf("prepare for CNI plugins: %w", err)
		}
	}
	return c, os.WriteFile(filepath.Join(c.ConfigDir, "10-"+list.Name+".conflist"), []byte(text), 0o644)
}

// handOver takes the lab's own bridge away, and says which addresses the gateway
// gets instead.
func (l *Lab) handOver() error {
	if l.Kind == Bridge {
		if err := deleteLink(l.Gateway.rtnl, bridgeIndex); err != nil {
			return err
		}
		for _, p := range l.Topology.Bridge {
			delete(l.own, p.Addr())
			l.Gateway.Addresses = slices.DeleteFunc(l.Gateway.Addresses, func(a netip.Addr) bool { return a == p.Addr() })
		}
		l.Topology.Bridge = []netip.Prefix{netip.PrefixFrom(CNIRange4.Addr().Next(), CNIRange4.Bits()), netip.PrefixFrom(CNIRange6.Addr().Next(), CNIRange6.Bits())}
	}
	l.claim(l.Gateway, CNIRange4.Addr().Next())
	l.claim(l.Gateway, CNIRange6.Addr().Next())
	return nil
}

// gatewayExec runs plugins inside the gateway.
type gatewayExec struct {
	invoke.DefaultExec
	gateway *Namespace
}

// ExecPlugin implements invoke.Exec.
func (e *gatewayExec) ExecPlugin(ctx context.Context, plugin string, stdin []byte, environ []string) (out []byte, err error) {
	err = e.gateway.Do(func() (err error) {
		out, err = e.DefaultExec.ExecPlugin(ctx, plugin, stdin, environ)
		return err
	})
	return out, err
}

// Sandbox makes the network namespace of a pod, "namespace/name", which has
// nothing but lo until Add.
func (c *CNI) Sandbox(pod, uid string) (*Namespace, error) {
	namespace, name, ok := strings.Cut(pod, "/")
	if !ok {
		return nil, fmt.Errorf("pod %q: want namespace/name", pod)
	}
	c.lab.mu.Lock()
	defer c.lab.mu.Unlock()
	n, err := c.lab.namespace(pod)
	if err != nil {
		return nil, err
	}
	c.lab.pods = append(c.lab.pods, n)
	id := fmt.Sprintf("%x", sha256.Sum256([]byte(n.NetNS)))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lives[n] = &libcni.RuntimeConf{
		ContainerID: id,
		NetNS:       filepath.Join(netnsDir, n.NetNS),
		IfName:      "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", namespace},
			{"K8S_POD_NAME", name},
			{"K8S_POD_INFRA_CONTAINER_ID", id},
			{"K8S_POD_UID", uid},
		},
	}
	return n, nil
}

// Add has the plugins connect a sandbox. Addresses are host-local's choice, the
// next ones that are free, unless some are asked for.
func (c *CNI) Add(ctx context.Context, n *Namespace, addrs ...netip.Addr) error {
	rt := c.life(n)
	if rt == nil {
		return fmt.Errorf("CNI ADD: %s is no sandbox", n.Name)
	}
	if len(addrs) > 0 {
		var ips []string
		for _, a := range addrs {
			ips = append(ips, a.String())
		}
		rt.CapabilityArgs = map[string]any{"ips": ips}
	}
	if c.plugin == "bridge" {
		if err := c.needBridge(); err != nil {
			return err
		}
	}
	r, err := c.lib.AddNetworkList(ctx, c.list, rt)
	if err != nil {
		return fmt.Errorf("CNI ADD of %s: %w", n.Name, err)
	}
	result, err := types.GetResult(r)
	if err != nil {
		return err
	}
	return c.adopt(n, result)
}

// needBridge makes the bridge just before the plugin would, with a MAC address
// that stays, as systemd-udevd gives it: without, each port with a lower one
// changes it, and pods talk to the old one for a while.
func (c *CNI) needBridge() error {
	c.lab.mu.Lock()
	defer c.lab.mu.Unlock()
	gw := c.lab.Gateway
	err := addBridge(gw.rtnl, BridgeName, bridgeIndex, gw.hostMAC)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// adopt has the lab know a pod as it knows its own.
func (c *CNI) adopt(n *Namespace, result *types.Result) error {
	var eth0, host *net.Interface
	err := n.Do(func() (err error) { eth0, err = net.InterfaceByName("eth0"); return err })
	if err != nil {
		return fmt.Errorf("pod %s: %w", n.Name, err)
	}
	copy(n.mac[:], eth0.HardwareAddr)
	n.LinkLocal = linkLocal(n.mac)
	for _, i := range result.Interfaces {
		if i.Sandbox == "" && i.Name != BridgeName {
			n.HostInterface = i.Name
		}
	}
	if n.HostInterface != "" {
		err := c.lab.Gateway.Do(func() (err error) { host, err = net.InterfaceByName(n.HostInterface); return err })
		if err != nil {
			return fmt.Errorf("pod %s: %w", n.Name, err)
		}
		copy(n.hostMAC[:], host.HardwareAddr)
		if eth0.Index != eth0Index {
			return fmt.Errorf("pod %s: eth0 is interface %d, not %d: the lab can't probe it", n.Name, eth0.Index, eth0Index)
		}
	}
	if err := waitLinkLocal(n.rtnl, eth0.Index, n.LinkLocal); err != nil {
		return err
	}
	c.lab.mu.Lock()
	defer c.lab.mu.Unlock()
	for _, ip := range result.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			c.lab.claim(n, a.Unmap())
		}
	}
	return nil
}

// AddPod is Sandbox and Add.
func (c *CNI) AddPod(ctx context.Context, pod, uid string, addrs ...netip.Addr) (*Namespace, error) {
	n, err := c.Sandbox(pod, uid)
	if err != nil {
		return nil, err
	}
	if err := c.Add(ctx, n, addrs...); err != nil {
		return nil, err
	}
	return n, nil
}

// Del has the plugins take a pod's network away, and ends its namespace.
func (c *CNI) Del(ctx context.Context, n *Namespace) error {
	rt := c.life(n)
	if rt == nil {
		return fmt.Errorf("CNI DEL: %s is no sandbox", n.Name)
	}
	if err := c.lib.DelNetworkList(ctx, c.list, rt); err != nil {
		return fmt.Errorf("CNI DEL of %s: %w", n.Name, err)
	}
	return c.forget(n)
}

// ResultFile is where libcni keeps the result of a pod.
func (c *CNI) ResultFile(n *Namespace) string {
	return filepath.Join(c.ResultsDir, fmt.Sprintf("%s-%s-eth0", c.list.Name, c.life(n).ContainerID))
}

// PowerCut ends all pods of the network, and the bridge, without a DEL: what was
// written stays, the results and the reservations of addresses. It returns when
// the kernel has removed the interfaces.
func (c *CNI) PowerCut() error {
	c.mu.Lock()
	pods := make([]*Namespace, 0, len(c.lives))
	for n := range c.lives {
		pods = append(pods, n)
	}
	c.mu.Unlock()
	for _, n := range pods {
		if err := c.Lose(n); err != nil {
			return err
		}
	}
	if c.plugin != "bridge" {
		return nil
	}
	if err := deleteLink(c.lab.Gateway.rtnl, bridgeIndex); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// Lose ends one pod as PowerCut does.
func (c *CNI) Lose(n *Namespace) error {
	if err := c.forget(n); err != nil || n.HostInterface == "" {
		return err
	}
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		err := c.lab.Gateway.Do(func() error { _, err := net.InterfaceByName(n.HostInterface); return err })
		if err != nil {
			return nil
		}
		if time.Since(start) > 10*time.Second {
			return fmt.Errorf("interface %s outlives its pod %s", n.HostInterface, n.Name)
		}
	}
}

func (c *CNI) life(n *Namespace) *libcni.RuntimeConf {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lives[n]
}

// forget ends a pod's namespace.
func (c *CNI) forget(n *Namespace) error {
	l := c.lab
	l.probeMu.Lock()
	if l.wire != nil {
		l.wire.forget(n)
	}
	l.probeMu.Unlock()
	l.mu.Lock()
	for _, a := range n.Addresses {
		if l.own[a] == n {
			delete(l.own, a)
		}
	}
	l.pods = slices.DeleteFunc(l.pods, func(p *Namespace) bool { return p == n })
	l.mu.Unlock()
	c.mu.Lock()
	delete(c.lives, n)
	c.mu.Unlock()
	return n.close()
}
