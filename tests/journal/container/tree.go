package container

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// release and packages are what the tree consists of, beside Debian's minimum. Another
// version makes the tree anew: count it up when what follows changes.
const (
	version  = "2"
	release  = "bookworm"
	packages = "systemd,systemd-sysv,dbus,iproute2,nftables"
)

// cache holds the trees; what is there can be removed at any time.
const cache = "/var/cache/edgepolicyd-test"

// tree gives the tree that containers are layers over, and makes it where it is
// missing: 250 MB, once for a machine.
func tree() (string, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	path := filepath.Join(cache, release+"-"+version)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return path, err
	}
	unfinished := path + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return "", err
	}
	if err := debootstrap(unfinished); err != nil {
		return "", err
	}
	return path, os.Rename(unfinished, path)
}

func debootstrap(path string) error {
	mirror, err := mirror()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	cmd := exec.Command("debootstrap", "--variant=minbase", "--include="+packages, release, path, mirror)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("make the tree of the test container: debootstrap: %w\n%s", err, out.Bytes())
	}
	// Each container gets an id of its own, but none is its first boot, with questions.
	if err := os.RemoveAll(filepath.Join(path, "var/lib/dbus/machine-id")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(path, "etc/machine-id"), nil, 0o444); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(path, "var/cache/apt/archives/*.deb"))
	if err != nil {
		return err
	}
	for _, name := range archives {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// mirror is the Debian mirror that this machine's apt uses.
func mirror() (string, error) {
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("ask apt for its mirror: %w", err)
	}
	for l := range strings.Lines(string(out)) {
		if f := strings.Fields(l); len(f) == 3 && f[0] == release && f[1] == "main" {
			return f[2], nil
		}
	}
	return "", fmt.Errorf("apt has no source of Debian's %s main: the test container is made from it; add one to /etc/apt/sources.list.d", release)
}
