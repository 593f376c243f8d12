package container

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestBoots(t *testing.T) {
	start := time.Now()
	c := Start(t)
	t.Logf("booted in %s", time.Since(start))
	if got := strings.TrimSpace(c.Exec("cat", "/proc/1/comm")); got != "systemd" {
		t.Errorf("init is %q", got)
	}
	c.Write("/usr/local/bin/say it", []byte("#!/bin/sh\necho \"<$1>\"\n"), 0o755)
	if got := c.Exec("/usr/local/bin/say it", "a b"); got != "<a b>\n" {
		t.Errorf("the script says %q", got)
	}
}

// TestNetworks: in a container there are network namespaces and nftables, and none of
// it is the host's.
func TestNetworks(t *testing.T) {
	c := Start(t)
	c.Exec("sh", "-ec", `ip netns add pod
		ip link add veth-test type veth peer name eth0 netns pod
		ip addr add 10.9.9.1/24 dev veth-test && ip link set veth-test up
		ip -n pod addr add 10.9.9.2/24 dev eth0 && ip -n pod link set eth0 up
		nft add table inet edgepolicyd-test`)
	if got := c.Exec("ip", "netns", "exec", "pod", "ip", "route"); !strings.Contains(got, "10.9.9.0/24") {
		t.Errorf("routes in the namespace: %s", got)
	}
	if got := c.Exec("nft", "list", "tables"); !strings.Contains(got, "edgepolicyd-test") {
		t.Errorf("tables: %s", got)
	}
	if _, err := os.Stat("/sys/class/net/veth-test"); err == nil {
		t.Error("the interface is the host's")
	}
}

// TestNothingIsLeft: containers at the same time do not see each other, and leave no
// process, mount, control group or change of the tree.
func TestNothingIsLeft(t *testing.T) {
	var containers []*Container
	t.Run("two", func(t *testing.T) {
		for range 2 {
			c := Start(t)
			if c.Command("test", "-e", "/root/mark").Run() == nil {
				t.Error("a container sees what another wrote")
			}
			c.Write("/root/mark", nil, 0o600)
			containers = append(containers, c)
		}
		if a, b := containers[0].Exec("cat", "/etc/machine-id"), containers[1].Exec("cat", "/etc/machine-id"); a == b {
			t.Error("two containers have one id")
		}
	})
	for _, c := range containers {
		if status, err := os.ReadFile("/proc/" + strconv.Itoa(c.PID) + "/comm"); err == nil && string(status) == "systemd\n" {
			t.Errorf("process %d is left", c.PID)
		}
		for _, dir := range c.cgroups {
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("%s is left", dir)
			}
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), "TestNothingIsLeft") {
		t.Errorf("mounts are left: %v\n%s", err, mounts)
	}
}

// TestEndsWithTheTest: a test that is killed takes its containers along.
func TestEndsWithTheTest(t *testing.T) {
	if os.Getenv("EDGEPOLICYD_TEST_HANG") != "" {
		c := Start(t)
		os.Stdout.WriteString("PID " + strconv.Itoa(c.PID) + " " + strings.Join(c.cgroups, " ") + "\n")
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestEndsWithTheTest$")
	cmd.Env = append(os.Environ(), "EDGEPOLICYD_TEST_HANG=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	cmd.Process.Kill()
	cmd.Wait()
	f := strings.Fields(said)
	if err != nil || len(f) < 3 || f[0] != "PID" {
		t.Fatalf("the other test says %q: %v", said, err)
	}
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		var left error
		for _, dir := range f[2:] {
			left = errors.Join(left, removeCgroup(dir)) // has processes
		}
		if _, err := os.Stat("/proc/" + f[1]); err != nil && left == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %s is left: %v", f[1], left)
		}
	}
}

// TestReboots: a container that is booted again has its files, another boot id, and
// nothing of what the kernel had of it.
func TestReboots(t *testing.T) {
	c := Start(t)
	id := c.Exec("cat", "/proc/sys/kernel/random/boot_id")
	c.Write("/var/lib/mark", nil, 0o600)
	c.Write("/run/mark", nil, 0o600)
	c.Exec("nft", "add", "table", "inet", "left")
	for range 2 {
		c.Reboot()
		c.Exec("test", "-e", "/var/lib/mark", "-a", "!", "-e", "/run/mark")
		if got := c.Exec("nft", "list", "tables"); got != "" {
			t.Errorf("tables are left: %s", got)
		}
		if c.Exec("cat", "/proc/sys/kernel/random/boot_id") == id {
			t.Error("the boot id is that of before")
		}
	}
}
