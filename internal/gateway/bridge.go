package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// bridgeSysctls is where br_netfilter shows that it is there.
const bridgeSysctls = "/proc/sys/net/bridge/"

// EnableBridgeFilter has the packets between the ports of a bridge pass the
// inet hooks of netfilter (S26), by the bridge's own flags for IPv4 and IPv6.
// It reads first, and changes only what is off; nothing is ever switched off,
// with one exception: loading br_netfilter, where that was missing, switches
// it on for every bridge, and that is taken back.
func EnableBridgeFilter(bridge string) (changed bool, err error) {
	if err := needBridgeNetfilter(); err != nil {
		return false, err
	}
	c, err := dial()
	if err != nil {
		return false, err
	}
	defer c.Close()
	before, err := readBridge(c, bridge)
	if err != nil {
		return false, err
	}
	if before.ip4 && before.ip6 {
		return false, nil
	}
	if err := before.enable(c); err != nil {
		return false, fmt.Errorf("switch netfilter on for bridge %s: %w", bridge, err)
	}
	after, err := readBridge(c, bridge)
	if err != nil {
		return false, err
	}
	if !after.ip4 || !after.ip6 {
		return false, fmt.Errorf("switch netfilter on for bridge %s: the kernel ignores it: a kernel with CONFIG_BRIDGE_NETFILTER is needed, or routed pods", bridge)
	}
	return true, nil
}

// BridgeFilter says whether a bridge's own flags show its packets to the inet hooks,
// for IPv4 and IPv6. Not from /sys/class/net, which is that of the namespace in which
// it was mounted.
func BridgeFilter(bridge string) (ip4, ip6 bool, err error) {
	c, err := dial()
	if err != nil {
		return false, false, err
	}
	defer c.Close()
	f, err := readBridge(c, bridge)
	return f.ip4, f.ip6, err
}

// bridgeFlags are IFLA_BR_NF_CALL_IPTABLES and IFLA_BR_NF_CALL_IP6TABLES.
type bridgeFlags struct {
	index    int
	ip4, ip6 bool
}

// getLink reads one interface.
func getLink(c *netlink.Conn, name string) (netlink.Message, error) {
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.IFLA_IFNAME, name)
	b, err := ae.Encode()
	if err != nil {
		return netlink.Message{}, err
	}
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request},
		Data:   append(ifinfo(0), b...),
	})
	if err != nil {
		return netlink.Message{}, err
	}
	if len(msgs) == 0 || len(msgs[0].Data) < unix.SizeofIfInfomsg {
		return netlink.Message{}, errors.New("an answer without an interface")
	}
	return msgs[0], nil
}

func readBridge(c *netlink.Conn, name string) (bridgeFlags, error) {
	m, err := getLink(c, name)
	if errors.Is(err, unix.ENODEV) {
		return bridgeFlags{}, fmt.Errorf("bridge %s: there is no such interface: %w", name, unix.ENODEV)
	}
	if err != nil {
		return bridgeFlags{}, fmt.Errorf("read bridge %s: %w", name, err)
	}
	f := bridgeFlags{index: int(binary.NativeEndian.Uint32(m.Data[4:]))}
	kind := ""
	err = attributes(m.Data, unix.SizeofIfInfomsg, func(ad *netlink.AttributeDecoder) {
		if ad.Type() != unix.IFLA_LINKINFO {
			return
		}
		ad.Nested(func(ad *netlink.AttributeDecoder) error {
			for ad.Next() {
				switch ad.Type() {
				case unix.IFLA_INFO_KIND:
					kind = ad.String()
				case unix.IFLA_INFO_DATA:
					if kind == "bridge" { // other kinds mean other things by the same numbers
						ad.Nested(f.read)
					}
				}
			}
			return nil
		})
	})
	if err == nil && kind != "bridge" {
		err = fmt.Errorf("%s is no Linux bridge but %q", name, kind)
	}
	return f, err
}

func (f *bridgeFlags) read(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_BR_NF_CALL_IPTABLES:
			f.ip4 = ad.Uint8() != 0
		case unix.IFLA_BR_NF_CALL_IP6TABLES:
			f.ip6 = ad.Uint8() != 0
		}
	}
	return nil
}

func (f bridgeFlags) enable(c *netlink.Conn) error {
	ae := netlink.NewAttributeEncoder()
	ae.Nested(unix.IFLA_LINKINFO, func(ae *netlink.AttributeEncoder) error {
		ae.String(unix.IFLA_INFO_KIND, "bridge")
		ae.Nested(unix.IFLA_INFO_DATA, func(ae *netlink.AttributeEncoder) error {
			if !f.ip4 {
				ae.Uint8(unix.IFLA_BR_NF_CALL_IPTABLES, 1)
			}
			if !f.ip6 {
				ae.Uint8(unix.IFLA_BR_NF_CALL_IP6TABLES, 1)
			}
			return nil
		})
		return nil
	})
	b, err := ae.Encode()
	if err != nil {
		return err
	}
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_NEWLINK, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(ifinfo(f.index), b...),
	})
	return err
}

// ifinfo is struct ifinfomsg of an interface.
func ifinfo(index int) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return b
}

// needBridgeNetfilter makes sure that br_netfilter is in the kernel: the
// bridge's flags can be set without it, and do nothing then.
func needBridgeNetfilter() error {
	if _, err := os.Stat(bridgeSysctls); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := loadModule("br_netfilter"); err != nil {
		return fmt.Errorf("pods on one bridge cannot be separated without br_netfilter: %w; remedy: \"modprobe br_netfilter\", at each boot by a line br_netfilter in /etc/modules-load.d/edgepolicyd.conf; where the kernel has no such module, routed pods", err)
	}
	var errs []error
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"} {
		errs = append(errs, os.WriteFile(bridgeSysctls+name, []byte("0"), 0))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("br_netfilter was loaded and now acts on every bridge: %w; remedy: set the sysctls net.bridge.bridge-nf-call-* to 0", err)
	}
	return nil
}
