package packages

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// changedConfig makes a tree whose configuration file is another than ours.
func changedConfig(t *testing.T) string {
	t.Helper()
	tree := copyTree(t, "../..")
	f, err := os.OpenFile(filepath.Join(tree, "configs/config.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("\n# New in this version.\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return tree
}

// own is what an operator makes of the configuration file.
const own = "# Ours.\ndenied: drop\n"

// TestDeb is the life of the Debian package on a gateway.
func TestDeb(t *testing.T) {
	g := newGateway(t)
	first := g.put(firstPackage(t, "deb"))
	second := g.put(onePackage(t, changedConfig(t), "deb", "1.1.0"))
	files, rules := g.files(), g.ruleset()

	g.do("apt-get", "install", "--yes", first)
	if state := g.unit("ActiveState"); state != "active" {
		t.Errorf("after the installation the daemon is %s", state)
	}
	for _, unit := range []string{"edgepolicyd", "edgepolicyd-restore"} {
		if out, _ := g.Command("systemctl", "is-enabled", unit).Output(); string(out) != "enabled\n" {
			t.Errorf("after the installation %s is %s", unit, out)
		}
	}
	g.enforced("after the installation")
	if out := g.Exec("journalctl", "--catalog", "--lines=1", "EDGEPOLICY_EVENT=start"); !strings.Contains(out, "Defined-By: edgepolicyd") {
		t.Errorf("the catalog does not explain the start:\n%s", out)
	}

	g.Write("/etc/edgepolicyd/config.yaml", []byte(own), 0o644)
	pid := g.unit("MainPID")
	g.undisturbed("during the upgrade", func() { g.do("dpkg", "--force-confold", "--install", second) })
	if g.unit("MainPID") == pid || g.unit("ActiveState") != "active" {
		t.Errorf("after the upgrade the daemon has not been restarted: it is %s", g.unit("ActiveState"))
	}
	if got := g.Exec("dpkg-query", "--show", "--showformat=${Version} ${Status}", "edgepolicyd"); got != "1.1.0-1 install ok installed" {
		t.Errorf("after the upgrade dpkg says %q", got)
	}
	if got := g.Exec("cat", "/etc/edgepolicyd/config.yaml"); got != own {
		t.Errorf("after the upgrade the configuration is %q", got)
	}
	g.undisturbed("after the upgrade", func() {})

	g.Exec("systemctl", "disable", "--quiet", "--now", "edgepolicyd", "edgepolicyd-restore")
	g.undisturbed("with the daemon stopped", func() {})
	g.do("edgepolicyd", "flush")
	g.do("dpkg", "--force-confold", "--install", second)
	if state := g.unit("ActiveState"); state != "inactive" || g.ruleset() != rules {
		t.Errorf("an upgrade has started what was disabled: it is %s, and the rules are\n%s", state, g.ruleset())
	}
	g.Exec("systemctl", "enable", "--quiet", "edgepolicyd", "edgepolicyd-restore")
	g.Exec("systemctl", "start", "edgepolicyd")
	g.enforced("enabled again")

	g.Write("/etc/edgepolicyd/config.yaml", []byte("this is: [not YAML"), 0o644) // keeps nobody from leaving
	g.do("dpkg", "--remove", "edgepolicyd")
	g.gone("after the removal", rules)
	for _, path := range []string{"/etc/edgepolicyd/config.yaml", "/etc/edgepolicy.d/pods.yaml", "/var/lib/edgepolicyd/state"} {
		if g.Command("test", "-e", path).Run() != nil {
			t.Errorf("the removal has taken %s, which is for purge or the operator's", path)
		}
	}

	g.Write("/etc/edgepolicyd/config.yaml", []byte(own), 0o644)
	g.do("dpkg", "--force-confold", "--install", first)
	g.enforced("installed again")
	g.do("dpkg", "--purge", "edgepolicyd")
	g.gone("after purge", rules)
	g.Exec("rm", "/etc/edgepolicy.d/pods.yaml") // fails if it was taken
	g.Exec("rmdir", "/etc/edgepolicy.d")
	if got := g.files(); got != files {
		t.Errorf("purge leaves, or has taken, files:\n%s", difference(files, got))
	}
	if out, _ := g.Command("sh", "-c", "find / -xdev -name '*edgepolicyd*' | grep -v -e ^/opt -e ^/var/log").Output(); len(out) > 0 {
		t.Errorf("purge leaves\n%s", out)
	}
}

// gone says that nothing runs, and that the kernel has the rules of before.
func (g gateway) gone(when, rules string) {
	g.t.Helper()
	if got := g.ruleset(); got != rules {
		g.t.Errorf("%s the rules are\n%s\nbefore the installation they were\n%s", when, got, rules)
	}
	if state, load := g.unit("ActiveState"), g.unit("LoadState"); state != "inactive" || load != "not-found" {
		g.t.Errorf("%s the unit is %s, %s", when, state, load)
	}
	if out, err := g.Command("sh", "-c", "cat /proc/[0-9]*/comm | grep edgepolicyd").Output(); err == nil {
		g.t.Errorf("%s there runs %s", when, out)
	}
}

// difference lists the lines that only one of two texts has.
func difference(before, after string) string {
	var b strings.Builder
	for _, c := range []struct{ sign, text, other string }{{"- ", before, after}, {"+ ", after, before}} {
		for l := range strings.Lines(c.text) {
			if !strings.Contains("\n"+c.other, "\n"+l) {
				b.WriteString(c.sign + l)
			}
		}
	}
	return b.String()
}
