// Package container boots Debian 12 with systemd in a container, so that tests can
// use a real journald, real units and a real package manager. It needs root,
// debootstrap and systemd-nspawn (tests/install.sh installs them).
//
// What always holds: a container has a network of its own, writes to memory alone, and
// is gone with the test that started it, also if that is killed.
package container

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// limit bounds the boot, and the end, of a container. It takes a second.
const limit = time.Minute

// Container is a booted system. Its methods fail the test that started it.
type Container struct {
	// PID is the container's init as the host numbers it: /proc/PID/ns/net is its
	// network namespace.
	PID int

	t       testing.TB
	cmd     *exec.Cmd
	exited  chan struct{} // closed when unshare, the first process of it, has ended
	console bytes.Buffer  // to be read after exited
	cgroups []string      // folders made for it
}

// boot makes what the container needs in a mount namespace of its own, so that it
// vanishes with it: the tree under a layer in memory, and nspawn's own folder. It runs
// as the init of a PID namespace: a container's init outlives a killed nspawn, but not
// that.
const boot = `set -eu
for cgroup in $CGROUPS; do echo 0 >"$cgroup/cgroup.procs"; done
mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn
mount -t tmpfs tmpfs "$DIR"
mkdir "$DIR/upper" "$DIR/work" "$DIR/root"
mount -t overlay -o "lowerdir=$TREE,upperdir=$DIR/upper,workdir=$DIR/work" overlay "$DIR/root"
code=$REBOOTED
while [ $code = $REBOOTED ]; do
	code=0
	systemd-nspawn --quiet --boot --private-network --register=no --keep-unit --console=pipe \
		--machine="$MACHINE" --directory="$DIR/root" </dev/null || code=$?
done
exit $code
`

// rebooted is the exit code of nspawn, where it keeps to its unit, when the container
// wants to be booted again.
const rebooted = "133"

// prefix begins the containers' names; the test's process and a number follow.
const prefix = "edgepolicyd-test-"

var started atomic.Int32

// Start boots a container and waits until systemd has started all units. The first
// container of a machine takes a minute longer, as its tree is made.
func Start(t testing.TB) *Container {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("a container needs root: sudo make test")
	}
	tree, err := tree()
	if err != nil {
		t.Fatal(err)
	}
	c := &Container{t: t, exited: make(chan struct{})}
	name := fmt.Sprintf(prefix+"%d-%d", os.Getpid(), started.Add(1))
	t.Cleanup(c.stop)
	if err := c.makeCgroups(name); err != nil {
		t.Fatalf("container: make its control groups: %v", err)
	}
	c.cmd = exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--propagation", "private", "sh", "-c", boot)
	c.cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", "MACHINE="+name, "DIR="+t.TempDir(), "TREE="+tree, "REBOOTED="+rebooted, "CGROUPS="+strings.Join(c.cgroups, " "))
	c.cmd.Stdout, c.cmd.Stderr = &c.console, &c.console
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := c.launch(); err != nil {
		t.Fatalf("container: %v", err)
	}
	c.waitBooted()
	return c
}

// Reboot boots the container again, at once, as no unit is stopped before: a power cut,
// but for what was not on the disk yet. Its network is a new one; its files stay, but
// for those in memory.
func (c *Container) Reboot() {
	c.t.Helper()
	before := fmt.Sprintf("/proc/%d/comm", c.PID)
	c.Command("systemctl", "reboot", "--force", "--force").Run() // is ended itself
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		if name, err := os.ReadFile(before); err != nil || string(name) != "systemd\n" {
			break
		}
		if time.Now().After(end) {
			c.t.Fatalf("the container does not end within %s", limit)
		}
	}
	c.PID = 0
	c.waitBooted()
}

// launch starts it. Its thread must live as long, as the kernel kills what the
// thread started with it.
func (c *Container) launch() error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer close(c.exited)
		err := c.cmd.Start()
		result <- err
		if err == nil {
			c.cmd.Wait()
		}
	}()
	return <-result
}

// waitBooted waits until there is an init, and until it has started everything.
func (c *Container) waitBooted() {
	c.t.Helper()
	state := "there is no init"
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case <-c.exited:
			c.t.Fatalf("the container ended while it booted:\n%s", &c.console)
		default:
		}
		if c.PID == 0 {
			c.PID = findInit(c.cmd.Process.Pid)
			continue
		}
		out, _ := c.Command("systemctl", "is-system-running").CombinedOutput()
		// Degraded: a unit that tests do not need may have failed.
		if state = strings.TrimSpace(string(out)); state == "running" || state == "degraded" {
			return
		}
	}
	c.t.Fatalf("the container has not booted within %s: %s", limit, state)
}

// findInit finds, below a process, the one that is number 1 of its own namespace;
// 0 while there is none.
func findInit(pid int) int {
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, child := range strings.Fields(string(children)) {
		p, err := strconv.Atoi(child)
		if err != nil {
			continue
		}
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p))
		for l := range strings.Lines(string(status)) {
			if ids, ok := strings.CutPrefix(l, "NSpid:"); ok && strings.HasSuffix(ids, "\t1\n") && string(name) == "systemd\n" {
				return p
			}
		}
		if init := findInit(p); init != 0 {
			return init
		}
	}
	return 0
}

// makeCgroups makes a group of its own in the hierarchies that systemd uses, below
// the test's, so that two containers do not share one.
func (c *Container) makeCgroups(name string) error {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for l := range strings.Lines(string(data)) {
		hierarchy, path, _ := strings.Cut(strings.TrimSuffix(strings.SplitN(l, ":", 2)[1], "\n"), ":")
		var roots []string
		switch hierarchy {
		case "": // version 2, alone or beside version 1
			roots = []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"}
		case "name=systemd":
			roots = []string{"/sys/fs/cgroup/systemd"}
		}
		for _, root := range roots {
			if _, err := os.Stat(filepath.Join(root, path, "cgroup.procs")); err != nil {
				continue
			}
			removeStale(filepath.Join(root, path))
			dir := filepath.Join(root, path, name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			c.cgroups = append(c.cgroups, dir)
			break
		}
	}
	return nil
}

// removeStale removes the groups of tests that were killed.
func removeStale(parent string) {
	dirs, _ := filepath.Glob(filepath.Join(parent, prefix+"*"))
	for _, dir := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
			removeCgroup(dir) // what has processes stays
		}
	}
}

// stop kills the container: with the init of the outer PID namespace the kernel kills
// all that runs in it.
func (c *Container) stop() {
	if c.cmd != nil && c.cmd.Process != nil {
		c.cmd.Process.Kill()
		<-c.exited
	}
	end := time.Now().Add(limit)
	for _, dir := range c.cgroups {
		for err := removeCgroup(dir); err != nil; err = removeCgroup(dir) {
			if time.Now().After(end) {
				c.t.Errorf("processes of the container are left: %v", err)
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if c.t.Failed() && c.console.Len() > 0 {
		c.t.Logf("the container's console:\n%s", &c.console)
	}
}

// removeCgroup removes a group and those below it; an error means that it has
// processes still.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil // what is gone meanwhile
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		if e := os.Remove(dirs[i]); e != nil && !os.IsNotExist(e) {
			err = e
		}
	}
	return err
}

// Command is a command that runs in the container as root, with all the
// capabilities of the host's root; a unit (systemd-run) has only nspawn's. Killing the
// command kills nsenter alone: what it runs goes on until the container ends, and is
// waited for no longer than some seconds. What must be stopped is better a unit.
func (c *Container) Command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--target", strconv.Itoa(c.PID), "--all", "--"}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Exec runs a command in the container and gives what it wrote to its standard
// output.
func (c *Container) Exec(args ...string) string {
	c.t.Helper()
	cmd := c.Command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("in the container, %s: %v\n%s%s", strings.Join(args, " "), err, out, &stderr)
	}
	return string(out)
}

// Write writes a file in the container, and makes its folder.
func (c *Container) Write(path string, data []byte, mode fs.FileMode) {
	c.t.Helper()
	cmd := c.Command("sh", "-c", `mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"`, "sh", path, fmt.Sprintf("%o", mode.Perm()))
	cmd.Stdin = bytes.NewReader(data)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("in the container, write %s: %v\n%s", path, err, out)
	}
}

// Copy copies a file of the host into the container, with its mode.
func (c *Container) Copy(from, to string) {
	c.t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		c.t.Fatal(err)
	}
	info, err := os.Stat(from)
	if err != nil {
		c.t.Fatal(err)
	}
	c.Write(to, data, info.Mode())
}

// Entry is an entry of the journal: its fields. A field that an entry has twice has
// its values on lines of their own.
type Entry map[string]string

// Journal gives the entries that journalctl finds by arguments, the oldest first:
// "EDGEPOLICY_EVENT=denied", "--unit=x". What was sent before is among them.
func (c *Container) Journal(args ...string) []Entry {
	c.t.Helper()
	c.Exec("journalctl", "--sync")
	out := c.Exec(append([]string{"journalctl", "--quiet", "--no-pager", "--all", "--output=json"}, args...)...)
	var entries []Entry
	for l := range strings.Lines(out) {
		var raw map[string]json.RawMessage
		if err := json.Unmarshal([]byte(l), &raw); err != nil {
			c.t.Fatalf("journalctl gave %q: %v", l, err)
		}
		e := Entry{}
		for name, value := range raw {
			text, err := fieldText(value)
			if err != nil {
				c.t.Fatalf("journalctl gave %s = %s: %v", name, value, err)
			}
			e[name] = text
		}
		entries = append(entries, e)
	}
	return entries
}

// fieldText reads a value as journalctl writes it in JSON: a string, the bytes as
// numbers if they are not printable, or a list of those.
func fieldText(value json.RawMessage) (string, error) {
	var text string
	if json.Unmarshal(value, &text) == nil {
		return text, nil
	}
	var numbers []uint16 // JSON of []uint8 would be base64
	if json.Unmarshal(value, &numbers) == nil {
		b := make([]byte, len(numbers))
		for i, n := range numbers {
			b[i] = byte(n)
		}
		return string(b), nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(value, &list); err != nil {
		return "", err
	}
	texts := make([]string, len(list))
	for i, v := range list {
		var err error
		if texts[i], err = fieldText(v); err != nil {
			return "", err
		}
	}
	return strings.Join(texts, "\n"), nil
}
