package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// The values below read themselves from the file, strictly: UnmarshalText says
// what would be right, and String is how the file spells the value.
type (
	// Path is an absolute path.
	Path string
	// Table is the name of the nftables table, of family inet.
	Table string
	// Denied says what becomes of a denied packet: drop or reject.
	Denied string
	// Egress says whether egress policies hold for the gateway's own addresses:
	// enforce or allow.
	Egress string
	// Level is the least level that is logged.
	Level slog.Level
	// Port is one port and protocol, as 53/UDP.
	Port inventory.Port
	// Prefix is a range of addresses, or one address.
	Prefix struct{ netip.Prefix }
	// Workload is a pod, or all pods of a namespace (Name is empty).
	Workload inventory.Key
	// File is the absolute path of a file, or empty for none.
	File string
	// URL is that of a server, http or https, or empty for none.
	URL string
	// Duration is a time such as 10s; at least a second.
	Duration time.Duration
	// Node is the name of a Kubernetes node, or empty.
	Node string
	// Hold says whether addresses that are not known yet are held: auto, on or off.
	Hold string
	// Boot says what becomes of unknown addresses until the daemon runs: hold or open.
	Boot string
	// Scope says whose pods are read: node or all.
	Scope string
	// Preset is the name of an API that gateways are known to have.
	Preset string
	// Format is how the daemon's log is written: auto, journal, text or json.
	Format string
	// Mode says what policies do: enforce or audit.
	Mode string
	// Rate is a number of packets a second.
	Rate uint32
	// Loopback is an address of the gateway itself and a port, or empty for none.
	Loopback string
	// Mask is the part of the 32-bit connection mark that is the daemon's.
	Mask uint32
)

// UnmarshalText reads an absolute path.
func (p *Path) UnmarshalText(text []byte) error {
	if !filepath.IsAbs(string(text)) || strings.ContainsRune(string(text), 0) {
		return errors.New("must be an absolute path, starting with /")
	}
	*p = Path(filepath.Clean(string(text)))
	return nil
}

// nft takes more, but not everywhere without quotes.
var tableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// maxTable is well below the kernel's NFT_NAME_MAXLEN of 256, so that the name
// fits on a line.
const maxTable = 64

// UnmarshalText reads the name of a table.
func (t *Table) UnmarshalText(text []byte) error {
	if !tableName.Match(text) || len(text) > maxTable {
		return fmt.Errorf("must be letters, digits and _, not start with a digit, and have at most %d characters", maxTable)
	}
	*t = Table(text)
	return nil
}

// UnmarshalText reads an absolute path, or nothing.
func (f *File) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*f = ""
		return nil
	}
	return (*Path)(f).UnmarshalText(text)
}

// UnmarshalText reads the URL of a server, or nothing.
func (u *URL) UnmarshalText(text []byte) error {
	if len(text) > 0 {
		p, err := url.Parse(string(text))
		if err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Host == "" || p.User != nil || p.RawQuery != "" || p.Fragment != "" {
			return errors.New("must be http:// or https:// and a host, such as https://127.0.0.1:10250, without user, password or query")
		}
	}
	*u = URL(text)
	return nil
}

// UnmarshalText reads a time such as 10s or 1m.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < time.Second || v > time.Hour {
		return errors.New("must be a time from 1s to 1h, such as 10s or 1m")
	}
	*d = Duration(v)
	return nil
}

func (d Duration) String() string { return time.Duration(d).String() }

// UnmarshalText reads the name of a node, or nothing.
func (n *Node) UnmarshalText(text []byte) error {
	if len(text) > 0 && len(validation.IsDNS1123Subdomain(string(text))) > 0 {
		return errors.New("must be the name of a Kubernetes node: lower case letters, digits, - and .")
	}
	*n = Node(text)
	return nil
}

// UnmarshalText reads auto, on or off.
func (h *Hold) UnmarshalText(text []byte) error {
	return oneOf((*string)(h), text, "auto", "on", "off")
}

// UnmarshalText reads hold or open.
func (b *Boot) UnmarshalText(text []byte) error { return oneOf((*string)(b), text, "hold", "open") }

// UnmarshalText reads node or all.
func (s *Scope) UnmarshalText(text []byte) error { return oneOf((*string)(s), text, "node", "all") }

// UnmarshalText reads the name of a preset, or nothing.
func (p *Preset) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*p = ""
		return nil
	}
	return oneOf((*string)(p), text, "edge-kubelet", "metaserver", "k3s", "kubeadm")
}

// UnmarshalText reads auto, journal, text or json.
func (f *Format) UnmarshalText(text []byte) error {
	return oneOf((*string)(f), text, "auto", "journal", "text", "json")
}

// UnmarshalText reads enforce or audit.
func (m *Mode) UnmarshalText(text []byte) error { return oneOf((*string)(m), text, "enforce", "audit") }

// maxRate is far more than a person can read, and little for a processor.
const maxRate = 1000

// UnmarshalText reads a number of packets a second.
func (r *Rate) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 10, 32)
	if err != nil || n == 0 || n > maxRate {
		return fmt.Errorf("must be a number from 1 to %d", maxRate)
	}
	*r = Rate(n)
	return nil
}

// UnmarshalText reads a loopback address and a port, or nothing.
func (l *Loopback) UnmarshalText(text []byte) error {
	if a, err := netip.ParseAddrPort(string(text)); len(text) > 0 && (err != nil || !a.Addr().IsLoopback() || a.Port() == 0) {
		return errors.New("must be a loopback address and a port, such as 127.0.0.1:9469 or [::1]:9469")
	}
	*l = Loopback(text)
	return nil
}

// UnmarshalText reads drop or reject.
func (d *Denied) UnmarshalText(text []byte) error {
	return oneOf((*string)(d), text, "drop", "reject")
}

// UnmarshalText reads enforce or allow.
func (e *Egress) UnmarshalText(text []byte) error {
	return oneOf((*string)(e), text, "enforce", "allow")
}

func oneOf(to *string, text []byte, words ...string) error {
	for _, w := range words {
		if string(text) == w {
			*to = w
			return nil
		}
	}
	return errors.New("must be " + strings.Join(words, " or "))
}

var levels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// UnmarshalText reads debug, info, warn or error.
func (l *Level) UnmarshalText(text []byte) error {
	level, ok := levels[string(text)]
	if !ok {
		return errors.New("must be debug, info, warn or error")
	}
	*l = Level(level)
	return nil
}

func (l Level) String() string { return strings.ToLower(slog.Level(l).String()) }

// UnmarshalText reads a port and protocol.
func (p *Port) UnmarshalText(text []byte) error {
	number, name, _ := strings.Cut(string(text), "/")
	n, err := strconv.ParseUint(number, 10, 16)
	protocol, ok := inventory.ParseProtocol(name)
	if err != nil || n == 0 || !ok {
		return errors.New("must be a port from 1 to 65535 and TCP, UDP or SCTP, such as 53/UDP")
	}
	*p = Port{Protocol: protocol, First: uint16(n), Last: uint16(n)}
	return nil
}

func (p Port) String() string { return fmt.Sprintf("%d/%s", p.First, p.Protocol) }

// UnmarshalText reads a CIDR or an address.
func (p *Prefix) UnmarshalText(text []byte) error {
	if a, err := netip.ParseAddr(string(text)); err == nil && a.Zone() == "" {
		a = a.Unmap()
		p.Prefix = netip.PrefixFrom(a, a.BitLen())
		return nil
	}
	prefix, err := netip.ParsePrefix(string(text))
	switch {
	case err != nil || prefix.Addr().Is4In6():
		return errors.New("must be an address or a range of addresses, such as 192.168.1.1 or 192.168.1.0/24")
	case prefix != prefix.Masked():
		return fmt.Errorf("has bits set beyond its prefix length: write %s, or %s for the one address", prefix.Masked(), prefix.Addr())
	}
	p.Prefix = prefix
	return nil
}

// UnmarshalText reads a namespace, or namespace/pod.
func (w *Workload) UnmarshalText(text []byte) error {
	namespace, pod, named := strings.Cut(string(text), "/")
	if len(validation.IsDNS1123Label(namespace)) > 0 || (named && len(validation.IsDNS1123Subdomain(pod)) > 0) {
		return errors.New("must be a namespace or namespace/pod, such as kube-system or default/cloud-agent")
	}
	*w = Workload{Namespace: namespace, Name: pod}
	return nil
}

func (w Workload) String() string {
	if w.Name == "" {
		return w.Namespace
	}
	return w.Namespace + "/" + w.Name
}

// UnmarshalText reads the bits in hexadecimal. Four are the least that tell
// enough epochs apart.
func (m *Mask) UnmarshalText(text []byte) error {
	hex, prefixed := strings.CutPrefix(string(text), "0x")
	n, err := strconv.ParseUint(hex, 16, 32)
	run := uint32(n) >> bits.TrailingZeros32(uint32(n))
	if !prefixed || err != nil || run&(run+1) != 0 || bits.OnesCount32(run) < 4 {
		return errors.New("must be at least 4 neighbouring bits of 32 in hexadecimal, such as 0xff000000")
	}
	*m = Mask(n)
	return nil
}

func (m Mask) String() string { return fmt.Sprintf("0x%08x", uint32(m)) }
