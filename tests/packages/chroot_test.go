package packages

import (
	"strings"
	"testing"
)

// TestImages: where an image is built, in a folder of a machine that is a gateway
// itself, packages are installed and removed without a word, nothing is started, and
// the machine's own daemon, rules and units are not touched.
func TestImages(t *testing.T) {
	g := newGateway(t)
	g.bringRPM()
	deb, rpm := g.put(firstPackage(t, "deb")), g.put(firstPackage(t, "rpm"))
	g.do("dpkg", "--install", deb) // on the gateway
	g.enforced("on the gateway")
	pid := g.unit("MainPID")

	t.Run("chroot", func(t *testing.T) {
		g.t = t
		g.image()
		g.silent(g.do("chroot", "/mnt/root", "dpkg", "--install", deb))
		g.installed()
		g.silent(g.do("chroot", "/mnt/root", "dpkg", "--purge", "edgepolicyd"))
		g.purged()
	})
	t.Run("dpkg --root", func(t *testing.T) {
		g.t = t
		g.image()
		g.silent(g.do("dpkg", "--root=/mnt/root", "--install", deb))
		g.installed()
		g.silent(g.do("dpkg", "--root=/mnt/root", "--purge", "edgepolicyd"))
		g.purged()
	})
	t.Run("rpm --root", func(t *testing.T) {
		g.t = t
		g.image()
		g.Exec("mkdir", "--parents", "/mnt/root/var/lib/rpm")
		for _, args := range [][]string{{"--install", rpm}, {"--erase", "edgepolicyd"}} {
			if args[0] == "--erase" {
				g.installed()
			}
			if out, err := g.rpm(append([]string{"--root=/mnt/root"}, args...)...); err != nil || out != "" {
				t.Errorf("rpm %s: %v\n%s", args, err, out)
			}
		}
		g.purged()
	})
	g.t = t
	if g.unit("MainPID") != pid || g.unit("UnitFileState") != "enabled" {
		t.Errorf("the gateway's own daemon is another or %s", g.unit("UnitFileState"))
	}
	g.undisturbed("on the gateway, after all", func() {})
}

// image makes /mnt/root a tree without systemd running and without edgepolicyd: a
// layer over the container's.
func (g gateway) image() {
	g.t.Helper()
	g.Exec("sh", "-ec", `mount -t tmpfs tmpfs /mnt
		mkdir /mnt/upper /mnt/work /mnt/root
		mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
		cp -a /opt /mnt/root/
		chroot /mnt/root dpkg --purge edgepolicyd
		rm -rf /mnt/root/etc/edgepolicy.d /mnt/root/run/* /mnt/root/var/tmp/*`)
	g.t.Cleanup(func() { g.Exec("umount", "/mnt/root", "/mnt") })
}

// silent says that a package manager has said nothing but what it always says.
func (g gateway) silent(out string) {
	g.t.Helper()
	for l := range strings.Lines(out) {
		for _, word := range []string{"edgepolicyd:", "Failed", "fail", "warn", "error"} {
			if strings.Contains(l, word) && !strings.HasPrefix(l, "Removing edgepolicyd") {
				g.t.Errorf("the package manager says: %s", l)
			}
		}
	}
}

// installed looks whether the image, when it boots, starts the daemon.
func (g gateway) installed() {
	g.t.Helper()
	for _, unit := range []string{"edgepolicyd", "edgepolicyd-restore"} {
		if out, _ := g.Command("systemctl", "--root=/mnt/root", "is-enabled", unit).Output(); string(out) != "enabled\n" {
			g.t.Errorf("in the image %s is %s", unit, out)
		}
	}
	if out, err := g.Command("chroot", "/mnt/root", "edgepolicyd", "check", "/etc/edgepolicy.d").CombinedOutput(); err != nil {
		g.t.Errorf("the program in the image: %v\n%s", err, out)
	}
	if g.Command("grep", "-q", "edgepolicyd", "/mnt/root/var/lib/systemd/catalog/database").Run() != nil {
		g.t.Error("the image's catalog lacks the events")
	}
}

func (g gateway) purged() {
	g.t.Helper()
	if out, _ := g.Command("sh", "-c", "find /mnt/root -name '*edgepolic*' | grep -v -e ^/mnt/root/opt -e ^/mnt/root/var/log").Output(); len(out) > 0 {
		g.t.Errorf("in the image there is still\n%s", out)
	}
}
