package packages

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// bringRPM copies the host's rpm with all that it needs into the container, where it
// can't reach the host's files.
func (g gateway) bringRPM() {
	g.t.Helper()
	libraries := regexp.MustCompile(`/\S+`).FindAllString(output(g.t, exec.Command("ldd", "/usr/bin/rpm")), -1)
	for _, path := range append(libraries, "/usr/bin/rpm") {
		g.Copy(path, "/opt/rpm/"+filepath.Base(path))
	}
	for _, name := range []string{"rpmrc", "macros"} {
		g.Copy("/usr/lib/rpm/"+name, "/opt/rpm/config/"+name)
	}
	g.Write("/opt/rpm/run", []byte("#!/bin/sh\nexport RPM_CONFIGDIR=/opt/rpm/config\nexec /opt/rpm/ld-linux*.so.* --library-path /opt/rpm /opt/rpm/rpm --dbpath=/var/lib/rpm \"$@\" 2>&1\n"), 0o755)
}

// rpm runs rpm in the container and gives all that it says.
func (g gateway) rpm(args ...string) (string, error) {
	out, err := g.here(append([]string{"/opt/rpm/run"}, args...)...)
	var said strings.Builder
	for l := range strings.Lines(out) {
		if !strings.HasPrefix(l, "rpm: ") { // Debian's, that it would rather have dpkg used
			said.WriteString(l)
		}
	}
	return said.String(), err
}

// TestRPM is the life of the RPM package. The tree is Debian's, where presets enable
// every unit.
func TestRPM(t *testing.T) {
	g := newGateway(t)
	g.bringRPM()
	first, second := g.put(firstPackage(t, "rpm")), g.put(onePackage(t, changedConfig(t), "rpm", "1.1.0"))
	g.Exec("mkdir", "--parents", "/var/lib/rpm", "/usr/share/licenses") // Fedora's package filesystem has them
	files, rules := g.files(), g.ruleset()

	if out, err := g.rpm("--install", first); err != nil || out != "" {
		t.Fatalf("%v\n%s", err, out)
	}
	if state := g.unit("ActiveState"); state != "inactive" {
		t.Errorf("after the installation the daemon is %s: it is not for a package to start it", state)
	}
	for _, unit := range []string{"edgepolicyd", "edgepolicyd-restore"} {
		if out, _ := g.Command("systemctl", "is-enabled", unit).Output(); string(out) != "enabled\n" {
			t.Errorf("after the installation %s is %s", unit, out)
		}
	}
	g.Exec("systemctl", "start", "edgepolicyd")
	g.enforced("after the installation")

	g.Write("/etc/edgepolicyd/config.yaml", []byte(own), 0o644)
	pid := g.unit("MainPID")
	g.undisturbed("during the upgrade", func() {
		if out, err := g.rpm("--upgrade", second); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	if g.unit("MainPID") == pid || g.unit("ActiveState") != "active" {
		t.Errorf("after the upgrade the daemon has not been restarted: it is %s", g.unit("ActiveState"))
	}
	if out, _ := g.rpm("--query", "edgepolicyd"); !strings.HasPrefix(out, "edgepolicyd-1.1.0-1.") {
		t.Errorf("after the upgrade rpm says %q", out)
	}
	if got := g.Exec("cat", "/etc/edgepolicyd/config.yaml"); got != own {
		t.Errorf("after the upgrade the configuration is %q", got)
	}
	g.undisturbed("after the upgrade", func() {})

	out, err := g.rpm("--erase", "edgepolicyd")
	if err != nil || out != "warning: /etc/edgepolicyd/config.yaml saved as /etc/edgepolicyd/config.yaml.rpmsave\n" {
		t.Fatalf("%v\n%s", err, out)
	}
	g.gone("after the removal", rules)
	// RPM knows no purge: the changed configuration is set aside, and the state stays.
	g.Exec("rm", "/etc/edgepolicy.d/pods.yaml", "/etc/edgepolicyd/config.yaml.rpmsave", "/etc/edgepolicyd/config.yaml.rpmnew", "/var/lib/edgepolicyd/state")
	g.Exec("rmdir", "/etc/edgepolicy.d", "/etc/edgepolicyd", "/var/lib/edgepolicyd")
	if got := g.files(); got != files {
		t.Errorf("the removal leaves, or has taken, files:\n%s", difference(files, got))
	}
}
