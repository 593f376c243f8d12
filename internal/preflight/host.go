package preflight

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// path is where something of the machine is.
func (h *Host) path(elements ...string) string {
	return filepath.Join(append([]string{h.Root}, elements...)...)
}

// sysctl reads a kernel setting, such as "net/ipv4/ip_forward", of the thread's
// network namespace. A file that is not there is fs.ErrNotExist.
func (h *Host) sysctl(name string) (int, error) {
	data, err := os.ReadFile(h.path("proc/sys", name))
	if err != nil {
		return 0, asRoot(err)
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// The states of a kernel module.
const (
	loaded    = "loaded"
	builtIn   = "built in"
	loadable  = "not loaded"
	absent    = "not installed"
	noModules = "not built in, and the kernel loads no modules"
	unknown   = "not known to be there"
)

// module says whether the kernel has a module. One that is built in and has no
// parameters can't be told from one that is absent where /lib/modules is not kept:
// then it is unknown.
func (h *Host) module(name string) string {
	if list, err := os.ReadFile(h.path("proc/modules")); err == nil {
		for line := range bytes.Lines(list) {
			if first, _, _ := bytes.Cut(line, []byte(" ")); string(first) == name {
				return loaded
			}
		}
	} else if os.IsNotExist(err) {
		if _, err := os.Stat(h.path("sys/module", name)); err == nil {
			return builtIn
		}
		return noModules
	}
	if _, err := os.Stat(h.path("sys/module", name)); err == nil {
		return builtIn
	}
	dir := h.path("lib/modules", h.release())
	switch {
	case lists(filepath.Join(dir, "modules.builtin"), name):
		return builtIn
	case lists(filepath.Join(dir, "modules.dep"), name):
		return loadable
	}
	if _, err := os.Stat(filepath.Join(dir, "modules.dep")); err != nil {
		return unknown
	}
	return absent
}

// release is that of the running kernel.
func (h *Host) release() string {
	data, err := os.ReadFile(h.path("proc/sys/kernel/osrelease"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// lists says whether a file of depmod(8) begins a line with a module's file, such as
// kernel/net/bridge/br-netfilter.ko.xz.
func lists(file, module string) bool {
	data, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		first, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		base, _, _ := strings.Cut(filepath.Base(first), ".")
		if strings.ReplaceAll(base, "-", "_") == module {
			return true
		}
	}
	return false
}

// processes gives the names of all processes (comm of proc(5), 15 bytes at most).
func (h *Host) processes() map[string]bool {
	names := map[string]bool{}
	files, _ := filepath.Glob(h.path("proc/[0-9]*/comm"))
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			names[strings.TrimSpace(string(data))] = true
		}
	}
	return names
}

// capabilities gives the effective ones of a process ("self", or its id), as bits.
func (h *Host) capabilities(process string) (uint64, error) {
	data, err := os.ReadFile(h.path("proc", process, "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(text), 16, 64)
		}
	}
	return 0, os.ErrNotExist
}

func has(set uint64, capability int) bool { return set&(1<<capability) != 0 }

// netAdmin and sysAdmin are what enforcing, and a scratch namespace, need; sysModule
// is for br_netfilter.
const (
	netAdmin  = unix.CAP_NET_ADMIN
	sysAdmin  = unix.CAP_SYS_ADMIN
	sysModule = unix.CAP_SYS_MODULE
)
