package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/internal/source/api"
	"edgepolicy.io/edgepolicyd/internal/source/cni"
	"edgepolicy.io/edgepolicyd/internal/source/directory"
	"edgepolicy.io/edgepolicyd/internal/source/kubelet"
)

// hostChecks look at the gateway's settings and the daemon's surroundings.
var hostChecks = []Check{
	{ID: "bridge.module", Severity: Impaired, Well: "br_netfilter is there if pods are on a bridge", look: lookAtBridgeModule,
		Why:     "Without br_netfilter no packet between the pods of a bridge passes the table, whatever the flags of the bridge say.",
		Command: "modprobe br_netfilter && echo br_netfilter > /etc/modules-load.d/edgepolicyd.conf"},
	{ID: "bridge.filter", Severity: Impaired, Well: "bridges that carry pods show their packets to the table", look: lookAtBridges,
		Why:     "What pods of the bridge send to each other passes no policy.",
		Command: "ip link set BRIDGE type bridge nf_call_iptables 1 nf_call_ip6tables 1"},
	{ID: "conntrack.room", Severity: Warning, Well: "the table of connections has room", look: lookAtConntrackRoom,
		Why:     "When it is full, the kernel drops the packets of new connections, those that policies allow too.",
		Command: "sysctl -w net.netfilter.nf_conntrack_max=SIZE"},
	{ID: "conntrack.size", Severity: Note, Well: "the table of connections is not small", look: lookAtConntrackSize,
		Why:     "The kernel sizes it by the memory of the machine; a scan, or many short connections, fill a small one. An entry takes about 320 bytes.",
		Command: "sysctl -w net.netfilter.nf_conntrack_max=SIZE"},
	{ID: "conntrack.loose", Severity: Note, Well: "connections that are under way are picked up (nf_conntrack_tcp_loose)", look: lookAtConntrackLoose,
		Why:     "Connections that conntrack has forgotten, or that are older than it, can't be told by their direction: their replies are judged as new connections.",
		Command: "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1"},
	{ID: "forwarding.on", Severity: Note, Well: "forwarding is on for the families that pods have", look: lookAtForwarding,
		Why:     "Pods can't reach, or be reached from, anything but this gateway and pods of their own bridge. That is no policy's doing.",
		Command: "sysctl -w SETTING=1"},
	{ID: "clock.set", Severity: Warning, Well: "the clock is set", look: lookAtClock,
		Why:     "Certificates of a kubelet or an API count as not yet valid, and logs have wrong times.",
		Command: "timedatectl set-ntp true"},
	{ID: "state.folder", Severity: Warning, Well: "the state can be saved, and by nobody else", look: lookAtState,
		Why:     "What was known last is saved there. Without it a gateway that boots without its API enforces only what the directory says; who can write there decides what is enforced at boot.",
		Command: "install -d -o root -g root -m 0700 FOLDER"},
	{ID: "policies.folder", Severity: Warning, Well: "the directory of policies is there, and nobody else writes to it", look: lookAtPolicies,
		Why:     "Files that others than root can write are not read; a folder that others can write lets them take policies away.",
		Command: "chown root: FILE && chmod go-w FILE"},
	{ID: "sources.answer", Severity: Warning, Well: "all sources that are configured can be read", look: lookAtSources,
		Why:     "What was known of it last stays in force; pods and policies that are new there are not known.",
		Command: "edgepolicyd status"},
	{ID: "sources.cni", Severity: Note, Well: "CNI results tell which interface is whose", look: lookAtCNI,
		Why:     "Without them a pod that forges another's address is judged as that other pod, and addresses that are not known yet are not held.",
		Command: "ls RESULTS  # set sources.cni.resultsDir to where the container runtime keeps them"},
}

// few is how many connections' entries count as few: a small household router's.
const few = 8192

func (h *Host) conntrack() (count, most int, err error) {
	count, err = h.sysctl("net/netfilter/nf_conntrack_count")
	if err == nil {
		most, err = h.sysctl("net/netfilter/nf_conntrack_max")
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.New("connection tracking is not in use yet: the daemon's table switches it on")
	}
	return count, most, err
}

func lookAtConntrackRoom(_ context.Context, h *Host) ([]problem, error) {
	count, most, err := h.conntrack()
	if err != nil || most == 0 || count*100 <= most*80 {
		return nil, err
	}
	return []problem{{what: fmt.Sprintf("%d of %d connections are in use (%d %%)", count, most, count*100/most), fill: []string{"SIZE", fmt.Sprint(2 * most)}}}, nil
}

func lookAtConntrackSize(_ context.Context, h *Host) ([]problem, error) {
	_, most, err := h.conntrack()
	if err != nil || most >= few {
		return nil, err
	}
	return []problem{{what: fmt.Sprintf("the kernel tracks at most %d connections", most), fill: []string{"SIZE", fmt.Sprint(4 * few)}}}, nil
}

func lookAtConntrackLoose(_ context.Context, h *Host) ([]problem, error) {
	loose, err := h.sysctl("net/netfilter/nf_conntrack_tcp_loose")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("connection tracking is not in use yet: the daemon's table switches it on")
	}
	if err != nil || loose != 0 {
		return nil, err
	}
	return []problem{{what: "net.netfilter.nf_conntrack_tcp_loose is 0: TCP connections that are under way count as invalid"}}, nil
}

func lookAtForwarding(_ context.Context, h *Host) ([]problem, error) {
	addresses, err := h.podAddresses()
	if err != nil {
		return nil, err
	}
	var found []problem
	for _, f := range []struct {
		name, file, setting string
		is4                 bool
	}{{"IPv4", "net/ipv4/ip_forward", "net.ipv4.ip_forward", true}, {"IPv6", "net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding", false}} {
		pods := 0
		for _, a := range addresses {
			if a.Is4() == f.is4 {
				pods++
			}
		}
		on, err := h.sysctl(f.file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without the family
		}
		if err != nil {
			return nil, err
		}
		if pods > 0 && on == 0 {
			found = append(found, problem{what: fmt.Sprintf("%s is 0, and %d pod addresses are of %s", f.setting, pods, f.name), fill: []string{"SETTING", f.setting}})
		}
	}
	return found, nil
}

func lookAtClock(_ context.Context, h *Host) ([]problem, error) {
	now := h.Now()
	if now.Year() >= 2020 {
		return nil, nil
	}
	return []problem{{what: "the clock says " + now.UTC().Format("2006-01-02 15:04:05")}}, nil
}

// minFree is how much room the state's file system must have, in bytes: for a few
// copies of a large state.
const minFree = 8 << 20

func lookAtState(_ context.Context, h *Host) ([]problem, error) {
	folder := h.path(string(h.Config.StateDir))
	var st unix.Stat_t
	err := unix.Stat(folder, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the daemon makes it
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", folder, err)
	}
	bad := func(command, format string, args ...any) problem {
		return problem{what: folder + " " + fmt.Sprintf(format, args...), command: command, fill: []string{"FOLDER", folder}}
	}
	var found []problem
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return []problem{bad("mv FOLDER FOLDER.old", "is no folder")}, nil
	case st.Uid != 0:
		found = append(found, bad("chown root: FOLDER", "belongs to user %d", st.Uid))
	case st.Mode&0o022 != 0:
		found = append(found, bad("chmod 0700 FOLDER", "can be written by others: its mode is %04o", st.Mode&0o7777))
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(folder, &fs); err != nil {
		return found, fmt.Errorf("%s: %w", folder, err)
	}
	if fs.Flags&unix.ST_RDONLY != 0 {
		found = append(found, bad("mount -o remount,rw \"$(findmnt -no TARGET -T FOLDER)\"", "is on a file system that is read-only"))
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < minFree {
		found = append(found, bad("df -h FOLDER", "has room for %d KiB only", free>>10))
	}
	return found, nil
}

func lookAtPolicies(_ context.Context, h *Host) ([]problem, error) {
	folder := h.path(string(h.Config.Sources.Directory.Path))
	if _, err := os.ReadDir(folder); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, err
		}
		p := problem{what: "no policies can be read: " + err.Error(), command: "install -d -m 0755 FOLDER", fill: []string{"FOLDER", folder}}
		if h.Config.Sources.API.Resolved().On() || h.Config.Sources.Kubelet.PolicyAnnotation {
			p.severity = Note // there is another source of them
		}
		return []problem{p}, nil
	}
	var found []problem
	for _, d := range directory.Untrusted(folder) {
		found = append(found, problem{what: d.File + ": " + d.Message, fill: []string{"FILE", d.File}})
	}
	return found, nil
}

// sourceWait bounds how long a source may take; each gives up by itself sooner.
const sourceWait = 5 * time.Second

// read asks all sources once.
func (h *Host) read(ctx context.Context) (map[string]source.Report, error) {
	return h.reports.get(func() (map[string]source.Report, error) {
		all := map[string]source.Report{}
		for _, s := range h.Sources {
			limited, cancel := context.WithTimeout(ctx, sourceWait)
			r, err := s.Refresh(limited)
			cancel()
			if err != nil {
				return nil, fmt.Errorf("source %s: %w", s.Name(), err)
			}
			all[s.Name()] = r
		}
		return all, nil
	})
}

func lookAtSources(ctx context.Context, h *Host) ([]problem, error) {
	if h.SourcesErr != nil {
		return []problem{{severity: Impaired, what: h.SourcesErr.Error(), why: "The daemon does not start with it."}}, nil
	}
	reports, err := h.read(ctx)
	if err != nil {
		return nil, err
	}
	var found []problem
	for _, s := range h.Sources {
		r := reports[s.Name()]
		switch {
		case s.Name() == directory.Name: // policies.folder says what is wrong with it
		case errors.Is(r.Err, fs.ErrPermission):
			return nil, fmt.Errorf("source %s: %w", s.Name(), r.Err)
		case r.Err != nil:
			found = append(found, h.unread(s.Name(), r.Err.Error()))
		case !r.OfflineSince.IsZero():
			found = append(found, h.unread(s.Name(), "its server is out of reach"))
		case r.Unknown:
			found = append(found, h.unread(s.Name(), "its server does not answer"))
		}
		if n := len(r.Rejected); n > 0 {
			found = append(found, problem{
				what:    fmt.Sprintf("source %s: %d documents or files are rejected: %s", s.Name(), n, r.Rejected[0].Reason),
				why:     "What is not valid is not in force as it is written.",
				command: "edgepolicyd check",
			})
		}
	}
	return found, nil
}

// unread says what is wrong with a source, and how to ask its server by hand.
func (h *Host) unread(name, what string) problem {
	p := problem{what: fmt.Sprintf("source %s: %s", name, what)}
	a := h.Config.Sources.API.Resolved()
	switch {
	case name == kubelet.Name:
		p.command, p.fill = "curl -kSs URL/healthz; systemctl status kubelet", []string{"URL", string(h.Config.Sources.Kubelet.URL)}
	case name == api.Name && a.Kubeconfig != "":
		p.command, p.fill = "kubectl --kubeconfig FILE get --raw /version", []string{"FILE", string(a.Kubeconfig)}
	case name == api.Name:
		p.command, p.fill = "curl -kSs URL/version", []string{"URL", string(a.Server)}
	}
	return p
}

func lookAtCNI(ctx context.Context, h *Host) ([]problem, error) {
	reports, err := h.read(ctx)
	if err != nil {
		return nil, err
	}
	if r, ok := reports[cni.Name]; !ok || r.Network.Present {
		return nil, nil
	}
	results := string(h.Config.Sources.CNI.ResultsDir)
	return []problem{{what: fmt.Sprintf("there is no folder %s with CNI results", results), fill: []string{"RESULTS", results}}}, nil
}
