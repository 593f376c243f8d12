package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/lab"
)

// marks gives the connection marks of the gateway's conntrack entries whose
// original direction has one of the addresses.
func (w *world) marks(addr ...string) map[string]int {
	w.t.Helper()
	found := map[string]int{}
	for _, family := range []string{"ipv4", "ipv6"} {
		for line := range strings.Lines(w.gw("conntrack", "-L", "-f", family)) {
			m := markOf.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			for _, a := range addr {
				if m[1] == a || m[2] == a {
					mark, err := strconv.ParseUint(m[3], 10, 32)
					w.must(err)
					found[fmt.Sprintf("%#x", mark)]++
				}
			}
		}
	}
	return found
}

var markOf = regexp.MustCompile(`src=(\S+) dst=(\S+) .*mark=(\d+)`)

// everything is one packet of each kind between two ends of one family.
func everything(src, dst string) []lab.Probe {
	var list []lab.Probe
	for _, proto := range []inventory.Protocol{inventory.TCP, inventory.UDP, inventory.SCTP, inventory.ICMP, 47} {
		list = append(list, lab.Probe{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Proto: proto, DstPort: 80})
	}
	fin := tcp(src, dst, 80)
	fin.TCPFlags = 0x03 // invalid
	return append(list, fin)
}

// Traffic that is no pod's is never dropped, changed or marked, also where all
// pods are isolated both ways and a pod's port forwards to the same addresses.
func TestTrafficThatIsNoPods(t *testing.T) {
	crowded(t, "", func(t *testing.T, w *world) {
		// Containers that no manifest names, beside the pods.
		w.pod("box", "10.42.0.61", "fd42::61")
		w.pod("crate", "10.42.0.62", "fd42::62")
		w.enforce(policy("all", "podSelector: {}, policyTypes: [Ingress, Egress]"), policy("far/all", "podSelector: {}, policyTypes: [Ingress, Egress]"))
		ends := [][2]string{
			{"10.42.0.61", "10.42.0.62"}, {"fd42::61", "fd42::62"},
			{"10.42.0.61", "192.168.254.2"}, {"fd42::61", "fd00:254::2"},
			{"192.168.254.2", "10.42.0.61"}, {"fd00:254::2", "fd42::61"},
			{"192.168.254.2", "192.168.254.1"}, {"fd00:254::2", "fd00:254::1"},
			{"192.168.254.1", "192.168.254.2"}, {"fd00:254::1", "fd00:254::2"},
			{"10.42.0.61", "192.168.254.1"}, {"fd42::61", "fd00:254::1"},
			{"192.168.254.1", "10.42.0.61"}, {"fd00:254::1", "fd42::61"},
		}
		check := func(why string) {
			w.t.Helper()
			var probes []lab.Probe
			for _, e := range ends {
				for _, p := range everything(e[0], e[1]) {
					if p.Proto == 47 && w.Owner(p.Dst) == w.Gateway {
						continue // nobody takes GRE there
					}
					probes = append(probes, p)
				}
			}
			got, err := w.Probe(context.Background(), probes)
			w.must(err)
			for i, ok := range got {
				if !ok {
					w.t.Errorf("%s: %s from %s to %s was dropped", why, probes[i].Proto, probes[i].Src, probes[i].Dst)
				}
			}
		}
		nobodies := []string{"10.42.0.61", "fd42::61", "192.168.254.2", "fd00:254::2"}
		check("first")
		if got := w.marks(nobodies...); len(got) != 1 || got["0x0"] < 50 {
			w.t.Errorf("connection marks of traffic that is no pod's: %v, want 0 only", got)
		}
		w.see("the pods", "client web 80 no\n outside web 80 no\n box web 80 no\n web box 80 no")

		// Another program's marks, in all bits, are none of our business.
		w.nft("table inet other { chain pre { type filter hook prerouting priority -150; ct mark set 0xfe00002a; }\n chain out { type filter hook output priority -150; ct mark set 0xfe00002a; }\n }\n")
		w.must(w.FlushConntrack())
		check("with marks of another program")
		if got := w.marks(nobodies...); len(got) != 1 || got["0xfe00002a"] < 50 {
			w.t.Errorf("another program's marks became %v", got)
		}
	})
}

// A connection of a pod carries our bits in the mask, and the others as another
// program set them.
func TestOtherMarkBitsAreKept(t *testing.T) {
	for _, c := range []struct{ config, others string }{
		{"", "0x00abcdef"},
		{"connectionMark: {mask: 0x00ff0000}\n", "0xab00cdef"},
	} {
		both(t, c.config, func(t *testing.T, w *world) {
			w.pods(web, client, other)
			w.must(w.Start())
			others, err := strconv.ParseUint(c.others, 0, 32)
			w.must(err)
			w.nft("table inet other { chain pre { type filter hook prerouting priority -150; ct state new ct mark set " + c.others + "; }\n }\n")
			w.enforce(allowClient)
			w.serve("web", "udp", 53)
			conn := w.connects("client", "udp", "10.42.0.12:53")
			mask := uint64(0xff000000)
			if c.config != "" {
				mask = 0x00ff0000
			}
			stamp := func(want bool) {
				w.t.Helper()
				marks := w.marks("10.42.0.11")
				if len(marks) != 1 {
					w.t.Fatalf("marks %v, want one", marks)
				}
				for m := range marks {
					v, err := strconv.ParseUint(m, 0, 32)
					w.must(err)
					if v&^mask != others || (v&mask != 0) != want {
						w.t.Errorf("mark %s: the other bits were %s; our part set: want %v", m, c.others, want)
					}
				}
			}
			stamp(true)
			w.enforce(denyWeb)
			w.cut("denied", conn)
			stamp(false)
		})
	}
}

// Only our table is written: those of others stay as they are, also when ours is
// flushed.
func TestOtherTablesStay(t *testing.T) {
	w := newWorld(t, topologies[0], "")
	w.pods(web, client)
	w.nft(`table ip filter {
		chain FORWARD { type filter hook forward priority 0; policy accept; udp dport 9999 counter drop; }
	}
	table inet edgepolicyd_ { set s { type ipv4_addr; elements = { 192.0.2.1 } }
	}
	table bridge edgepolicyd { chain c { type filter hook forward priority 0; } 
	}
	`)
	others := func() string {
		text := w.gw("nft", "list", "table", "ip", "filter") + w.gw("nft", "list", "table", "inet", "edgepolicyd_") + w.gw("nft", "list", "table", "bridge", "edgepolicyd")
		return regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(text, "packets N") // counters count
	}
	before := others()
	w.must(w.Start())
	w.enforce(denyWeb)
	w.see("enforced, and the other's drop too", "client web 80 no\n web client 80 no\n client gateway 9999/UDP yes\n outside.4 client.4 9999/UDP no")
	if _, _, code, err := w.Run("flush"); err != nil || code != 0 {
		t.Fatalf("flush: %v, exit code %d", err, code)
	}
	if after := others(); after != before {
		t.Errorf("other tables were\n%s\nand are\n%s", before, after)
	}
}
