package cni

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
)

// assemble looks at which results count and makes the report anew if that, or
// what was read, changed; and in any case if it is to be confirmed.
func (s *Source) assemble(ctx context.Context, now time.Time, confirm bool) {
	s.dirty = s.dirty || s.results.dirty || s.configs.dirty || confirm
	if !s.dirty {
		return
	}
	links, err := s.listLinks(ctx)
	if ctx.Err() != nil {
		return
	}
	if s.linksErr = err; err == nil {
		s.links = links
	}
	s.dirty, s.results.dirty, s.configs.dirty = false, false, false

	v := view{links: s.links, guess: s.linksErr != nil, now: now, booted: booted(now)}
	v.own.of("/proc/self/ns/net")
	counting, rejected, diagnostics := s.sift(&v)
	r := source.Report{Source: Name, Rejected: rejected, Diagnostics: diagnostics, Network: s.network()}
	r.Objects.Pods = pods(counting, s.report.Objects.Pods)
	if r.Err = s.results.err; r.Err == nil && s.linksErr != nil {
		r.Err = fmt.Errorf("the gateway's interfaces can't be listed, so that which results count is known by their sandboxes alone: %w", s.linksErr)
	}
	if r.Err == nil {
		s.confirmed = now
	}
	if !confirm && !s.report.Time.IsZero() && equal(&r, &s.report) {
		return
	}
	if r.Time = now; !now.After(s.report.Time) { // the clock's steps are coarse
		r.Time = s.report.Time.Add(1)
	}
	r.Confirmed = s.confirmed
	s.report = r
}

func (s *Source) listLinks(ctx context.Context) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, linksWait)
	defer cancel()
	return s.interfaces(ctx)
}

// view is what the kernel says at one moment.
type view struct {
	links  map[string]string
	guess  bool // links are those of before: what is missing there may exist
	own    inode
	now    time.Time
	booted time.Time
}

// inode names a file.
type inode struct{ dev, ino uint64 }

// of makes i that of the file at a path. The error is that of stat(2).
func (i *inode) of(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	*i = inode{uint64(st.Dev), st.Ino}
	return nil
}

// booted says when the machine started, by the wall clock as it is now.
func booted(now time.Time) time.Time {
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return now
	}
	return now.Add(-time.Duration(up.Nano()))
}

// ends gives the interfaces in the gateway's namespace that carry the entry's pod
// alone: not the bridge that they are ports of, nor the device by which the plugin
// bandwidth shapes what they carry.
func (v *view) ends(e *entry) []string {
	var all []string
	for _, name := range e.ends {
		if kind := v.links[name]; kind != "bridge" && kind != "ifb" && !slices.Contains(e.network.bridges, name) {
			all = append(all, name)
		}
	}
	return all
}

// counts says whether what an entry describes exists: its sandbox and its ends, as
// far as the result names them. A bridge need not: it is everybody's, and a pod
// does not end with it.
//
// Where the kernel does not let the daemon look at the process whose namespace it is
// (/proc/PID/ns/net, EACCES: see ptrace(2)), the process is there, and the ends decide.
//
// Of a result that names neither (version 0.2.0 from a libcni before 1.2) nothing
// can be seen. It counts if it was written since the machine started, as then no
// power cut came between; not if it seems to come from the future, as on a gateway
// whose clock starts in 1970. A pod that does not count has no address from here:
// it is held where unknown addresses are, until another source knows it.
func (v *view) counts(e *entry, ends []string) bool {
	seen := false // a sandbox was
	for _, path := range e.sandboxes {
		// A process's namespace, by a number that was used again, may be our own.
		var i inode
		err := i.of(path)
		if !filepath.IsAbs(path) || err != nil && err != unix.EACCES || err == nil && i == v.own {
			return false
		}
		seen = seen || err == nil
	}
	for _, name := range ends {
		if _, ok := v.links[name]; !ok && !(v.guess && seen) {
			return false
		}
	}
	if seen || len(ends) > 0 {
		return true
	}
	written := e.attachment.Written
	return !written.Before(v.booted) && !written.After(v.now)
}

// attached is an entry that counts.
type attached struct {
	*entry
	attachment inventory.Attachment
	file       string
}

// sift gives the entries that count, sorted by pod, sandbox and network, and what
// is wrong with the files.
func (s *Source) sift(v *view) (counting []attached, rejected []source.Rejected, diagnostics []manifest.Diagnostic) {
	if s.results.doubt != "" {
		diagnostics = append(diagnostics, manifest.Diagnostic{Severity: manifest.Warning, File: s.results.path, Message: s.results.doubt})
	}
	told := map[string]bool{} // every result has its network's configuration: once is enough
	for _, name := range slices.Sorted(maps.Keys(s.results.files)) {
		f, path := s.results.files[name], filepath.Join(s.results.path, name)
		kept := false
		if e := f.content; e != nil && e != stranger {
			a := attached{e, e.attachment, path}
			a.attachment.Interfaces = v.ends(e)
			if v.counts(e, a.attachment.Interfaces) {
				counting, kept = append(counting, a), true
			}
			for _, text := range e.network.warnings {
				if !told[text] {
					diagnostics = append(diagnostics, manifest.Diagnostic{Severity: manifest.Warning, File: path, Field: "config", Message: text})
				}
				told[text] = true
			}
		}
		if f.err != nil {
			diagnostics = append(diagnostics, notRead(manifest.Error, path, f.err))
			rejected = append(rejected, source.Rejected{Origin: inventory.Origin{Source: Name, File: path}, Reason: f.err.Error(), Kept: kept})
		}
	}
	slices.SortStableFunc(counting, func(a, b attached) int { // those of one network by file
		return cmp.Or(a.key.Compare(b.key), strings.Compare(a.attachment.Sandbox, b.attachment.Sandbox), strings.Compare(a.attachment.Network, b.attachment.Network))
	})
	return counting, rejected, append(diagnostics, s.configWarnings()...)
}

// configWarnings says what is wrong with the files of the configuration.
func (s *Source) configWarnings() (all []manifest.Diagnostic) {
	if err := s.configs.err; err != nil {
		all = append(all, notRead(manifest.Warning, s.configs.path, err))
	}
	for _, name := range slices.Sorted(maps.Keys(s.configs.files)) {
		f, path := s.configs.files[name], filepath.Join(s.configs.path, name)
		if f.err != nil {
			all = append(all, notRead(manifest.Warning, path, f.err))
		}
		if f.whole {
			for _, text := range f.content.warnings {
				all = append(all, manifest.Diagnostic{Severity: manifest.Warning, File: path, Message: text})
			}
		}
	}
	return all
}

// pods makes the pods of the entries that count. Those of before that are the same
// are given again.
func pods(counting []attached, before []*inventory.Pod) []*inventory.Pod {
	last := make(map[inventory.Key]*inventory.Pod, len(before))
	for _, p := range before {
		last[p.Key] = p
	}
	var all []*inventory.Pod
	for len(counting) > 0 {
		n := 1
		for n < len(counting) && counting[n].key == counting[0].key {
			n++
		}
		if p := podFrom(counting[:n], last[counting[0].key]); p != nil {
			all = append(all, p)
		}
		counting = counting[n:]
	}
	return all
}

// podFrom makes one pod of its entries, or gives the last if it is the same. Its
// uid is that of the entry that was written last: the others are of a life that
// is ending.
func podFrom(entries []attached, last *inventory.Pod) *inventory.Pod {
	newest := entries[0]
	var addresses []netip.Addr
	var attachments []inventory.Attachment
	for _, a := range entries {
		addresses = append(addresses, a.attachment.Addresses...)
		attachments = append(attachments, a.attachment)
		if a.attachment.Written.After(newest.attachment.Written) {
			newest = a
		}
	}
	if last != nil && last.Origin.File == newest.file && slices.EqualFunc(attachments, last.Attachments, same) {
		return last
	}
	p, err := podOf(newest.key, newest.attachment.UID, sorted(addresses))
	if err != nil {
		return last // each entry was valid alone, so this can't be
	}
	p.Origin.File = newest.file
	p.Attachments = attachments
	return p
}

func same(a, b inventory.Attachment) bool {
	return a.Sandbox == b.Sandbox && a.Network == b.Network && a.UID == b.UID && a.Written.Equal(b.Written) &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Interfaces, b.Interfaces)
}

// network collects what the configuration says of the pods' networks: that of the
// pods' results, whether or not these count now, as it tells how the runtime is set
// up; of the folder the first network, which is the one that runtimes take for
// pods, unless all results are others'; and those that results are of. The others in
// the folder are not the pods': podman's is there too.
func (s *Source) network() source.Network {
	var all source.Network
	add := func(n *network) {
		all.Ranges = append(all.Ranges, n.ranges...)
		all.Bridges = append(all.Bridges, n.bridges...)
	}
	used, strangers := map[string]bool{}, false
	for _, f := range s.results.files {
		switch e := f.content; e {
		case nil:
		case stranger:
			strangers = true
		default:
			used[e.attachment.Network] = true
			add(e.network)
		}
	}
	// Where all results are others' the folder says nothing of pods.
	all.Present = s.results.present && (len(used) > 0 || !strangers)
	first := len(used) > 0 || !strangers
	for _, name := range slices.Sorted(maps.Keys(s.configs.files)) {
		n := s.configs.files[name].content
		if n == nil || n.loopback {
			continue
		}
		if first || used[n.name] {
			add(n)
		}
		first = false
	}
	slices.SortFunc(all.Ranges, netip.Prefix.Compare)
	all.Ranges = slices.Compact(all.Ranges)
	all.Bridges = distinct(all.Bridges)
	return all
}

// equal says whether two reports say the same. When is not part of what they say.
func equal(a, b *source.Report) bool {
	return slices.Equal(a.Objects.Pods, b.Objects.Pods) &&
		slices.Equal(a.Diagnostics, b.Diagnostics) &&
		slices.Equal(a.Rejected, b.Rejected) &&
		a.Network.Present == b.Network.Present &&
		slices.Equal(a.Network.Ranges, b.Network.Ranges) &&
		slices.Equal(a.Network.Bridges, b.Network.Bridges) &&
		fmt.Sprint(a.Err) == fmt.Sprint(b.Err)
}
