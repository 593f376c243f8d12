package packages

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestPackages: all packages are there, hold what they should, satisfy lintian and
// rpmlint, and are the same bytes when somebody else makes them.
func TestPackages(t *testing.T) {
	tree := copyTree(t, "../..")
	output(t, exec.Command("make", "--directory", tree, "--no-print-directory", "build-all", "VERSION=1.0.0"))
	made := packages(t, "-root", tree, "-version", "1.0.0")
	slices.Sort(made)
	var names, debs, rpms []string
	for _, path := range made {
		names = append(names, filepath.Base(path))
		if strings.HasSuffix(path, ".deb") {
			debs = append(debs, path)
		} else {
			rpms = append(rpms, path)
		}
	}
	want := []string{
		"edgepolicyd-1.0.0-1.aarch64.rpm", "edgepolicyd-1.0.0-1.armv6hl.rpm", "edgepolicyd-1.0.0-1.armv7hl.rpm", "edgepolicyd-1.0.0-1.x86_64.rpm",
		"edgepolicyd_1.0.0-1_amd64.deb", "edgepolicyd_1.0.0-1_arm64.deb", "edgepolicyd_1.0.0-1_armhf.deb",
	}
	if !slices.Equal(names, want) {
		t.Fatalf("the packages are %q, want %q", names, want)
	}
	t.Run("contents", func(t *testing.T) {
		for _, path := range debs {
			sameList(t, path, debContents(t, path), contents(t, "deb"))
		}
		for _, path := range rpms {
			sameList(t, path, rpmContents(t, path), contents(t, "rpm"))
		}
	})
	t.Run("binaries", func(t *testing.T) {
		for name, want := range map[string]string{
			"edgepolicyd_1.0.0-1_amd64.deb": "amd64", "edgepolicyd_1.0.0-1_arm64.deb": "arm64", "edgepolicyd_1.0.0-1_armhf.deb": "arm,6",
			"edgepolicyd-1.0.0-1.x86_64.rpm": "amd64", "edgepolicyd-1.0.0-1.aarch64.rpm": "arm64", "edgepolicyd-1.0.0-1.armv7hl.rpm": "arm,7", "edgepolicyd-1.0.0-1.armv6hl.rpm": "arm,6",
		} {
			if got := builtFor(t, filepath.Join(filepath.Dir(made[0]), name)); got != want {
				t.Errorf("%s is built for %s, want %s", name, got, want)
			}
		}
	})
	t.Run("lintian", func(t *testing.T) {
		out, err := exec.Command("lintian", append([]string{"--allow-root", "--fail-on=error,warning"}, debs...)...).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("lintian: %v\n%s", err, out)
		}
	})
	t.Run("rpmlint", func(t *testing.T) {
		out, err := exec.Command("../../packaging/rpmlint.sh", rpms...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), fmt.Sprintf("%d packages and 0 specfiles checked; 0 errors, 0 warnings", len(rpms))) {
			t.Errorf("rpmlint: %v\n%s", err, out)
		}
	})
	t.Run("armhf", func(t *testing.T) { armhf(t, filepath.Join(filepath.Dir(made[0]), "edgepolicyd_1.0.0-1_armhf.deb")) })
	t.Run("reproducible", func(t *testing.T) { reproducible(t, tree, made) })
}

// armhf runs the program of a Raspberry Pi's package: it says the same as this machine's.
func armhf(t *testing.T, deb string) {
	dir := t.TempDir()
	output(t, exec.Command("dpkg-deb", "--extract", deb, dir))
	here := filepath.Join(dir, "here")
	output(t, exec.Command("go", "build", "-C", "../..", "-ldflags", "-X main.version=1.0.0", "-o", here, "./cmd/edgepolicyd"))
	for _, args := range [][]string{{"version"}, {"check", "../../configs/examples"}, {"matrix", "--port", "8181", "-o", "json", "../../configs/examples"}} {
		want := output(t, exec.Command(here, args...))
		got := output(t, exec.Command("qemu-arm-static", append([]string{filepath.Join(dir, "usr/sbin/edgepolicyd")}, args...)...))
		if got != want || want == "" {
			t.Errorf("%v: %q, want %q", args, got, want)
		}
	}
}

// reproducible makes two packages again, the programs in them too: elsewhere, later,
// with other rights of files, in another time zone, on fewer processors.
func reproducible(t *testing.T, original string, made []string) {
	tree := copyTree(t, original)
	t.Setenv("TZ", "Asia/Kathmandu")
	t.Setenv("GOMAXPROCS", "1")
	t.Setenv("TMPDIR", t.TempDir())
	output(t, exec.Command("chmod", "--recursive", "go-rwx", tree))
	output(t, exec.Command("make", "--directory", tree, "--no-print-directory", "build/edgepolicyd-amd64", "build/edgepolicyd-arm64", "VERSION=1.0.0"))
	for _, only := range []string{"deb/arm64", "rpm/arm64"} {
		again := packages(t, "-root", tree, "-version", "1.0.0", "-only", only)[0]
		i := slices.IndexFunc(made, func(path string) bool { return filepath.Base(path) == filepath.Base(again) })
		a, err := os.ReadFile(made[i])
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(again)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s is not the same bytes when it is made again", filepath.Base(again))
		}
	}
}

// contents lists what is to be in a package: mode, owner and name. "c" is a
// configuration file, "d" a document of rpm's, "l" a licence.
func contents(t *testing.T, format string) []string {
	t.Helper()
	deb := format == "deb"
	var list []string
	add := func(mode, kind string, names ...string) {
		for _, name := range names {
			if deb && kind != "c" {
				kind = ""
			}
			list = append(list, fmt.Sprintf("%s root root %s %s", mode, name, kind))
		}
	}
	const doc = "/usr/share/doc/edgepolicyd"
	add("-rwxr-xr-x", "", "/usr/sbin/edgepolicyd")
	add("-rw-r--r--", "c", "/etc/edgepolicyd/config.yaml")
	add("drwxr-xr-x", "", "/etc/edgepolicy.d", "/etc/edgepolicyd", doc, doc+"/examples", doc+"/presets")
	add("-rw-r--r--", "", "/usr/lib/systemd/system/edgepolicyd.service", "/usr/lib/systemd/system/edgepolicyd-restore.service",
		"/usr/lib/systemd/catalog/edgepolicyd.catalog", "/usr/lib/modules-load.d/edgepolicyd.conf",
		"/usr/share/bash-completion/completions/edgepolicyd", "/usr/share/fish/vendor_completions.d/edgepolicyd.fish")
	add("-rw-r--r--", "d", "/usr/share/man/man8/edgepolicyd.8.gz", "/usr/share/man/man5/edgepolicyd.conf.5.gz", "/usr/share/man/man7/edgepolicyd.policy.7.gz", doc+"/copyright")
	for _, of := range []string{"examples", "presets"} {
		files, err := filepath.Glob("../../configs/" + of + "/*.yaml")
		if err != nil || len(files) == 0 {
			t.Fatalf("there are no %s: %v", of, err)
		}
		for _, file := range files {
			add("-rw-r--r--", "d", doc+"/"+of+"/"+filepath.Base(file))
		}
	}
	if deb {
		add("-rw-r--r--", "", doc+"/changelog.Debian.gz", "/usr/share/lintian/overrides/edgepolicyd", "/usr/share/zsh/vendor-completions/_edgepolicyd")
	} else {
		add("-rw-r--r--", "", "/usr/share/zsh/site-functions/_edgepolicyd")
		add("drwxr-xr-x", "", "/usr/share/licenses/edgepolicyd", "/usr/share/fish", "/usr/share/fish/vendor_completions.d", "/usr/share/zsh/site-functions")
		add("-rw-r--r--", "d", doc+"/CHANGELOG.md")
		add("-rw-r--r--", "l", "/usr/share/licenses/edgepolicyd/LICENSE")
	}
	return list
}

// debContents leaves out the folders that every system has.
func debContents(t *testing.T, path string) (list []string) {
	t.Helper()
	conffiles := output(t, exec.Command("dpkg-deb", "--info", path, "conffiles"))
	for l := range strings.Lines(output(t, exec.Command("dpkg-deb", "--contents", path))) {
		f := strings.Fields(l)
		if len(f) != 6 || f[3] != "2023-11-14" {
			t.Fatalf("%s holds %s", path, l)
		}
		mode, name := f[0], strings.TrimPrefix(strings.TrimSuffix(f[5], "/"), ".")
		owner, group, _ := strings.Cut(f[1], "/")
		if strings.HasPrefix(mode, "d") && !strings.Contains(name, "edgepolicy") {
			continue
		}
		kind := ""
		if strings.Contains("\n"+conffiles, "\n"+name+"\n") {
			kind = "c"
		}
		list = append(list, fmt.Sprintf("%s %s %s %s %s", mode, owner, group, name, kind))
	}
	return list
}

func rpmContents(t *testing.T, path string) (list []string) {
	t.Helper()
	out := output(t, exec.Command("rpm", "--query", "--package", "--queryformat",
		`[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES} %{FILEFLAGS:fflags}\n]`, path))
	for l := range strings.Lines(out) {
		list = append(list, strings.Replace(strings.TrimSuffix(l, "\n"), " cn", " c", 1)) // noreplace
	}
	if !strings.Contains(out, "config.yaml cn\n") {
		t.Errorf("%s: the configuration file would be replaced", path)
	}
	return list
}

func sameList(t *testing.T, path string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if a, b := strings.Join(want, "\n")+"\n", strings.Join(got, "\n")+"\n"; a != b {
		t.Errorf("%s lacks (-) or has too much (+):\n%s", filepath.Base(path), difference(a, b))
	}
}

// builtFor says for what the program in a package was built.
func builtFor(t *testing.T, path string) string {
	t.Helper()
	dir := t.TempDir()
	unpack := `dpkg-deb --fsys-tarfile "$1" | tar --extract --file=- --directory="$2" ./usr/sbin/edgepolicyd`
	if strings.HasSuffix(path, ".rpm") {
		unpack = `cd "$2" && rpm2cpio "$1" | cpio --quiet --extract --make-directories --no-absolute-filenames /usr/sbin/edgepolicyd usr/sbin/edgepolicyd 2>/dev/null`
	}
	output(t, exec.Command("sh", "-ec", unpack, "sh", path, dir))
	info := output(t, exec.Command("go", "version", "-m", filepath.Join(dir, "usr/sbin/edgepolicyd")))
	var arch []string
	for l := range strings.Lines(info) {
		for _, key := range []string{"GOARCH=", "GOARM="} {
			if _, value, ok := strings.Cut(strings.TrimSpace(l), "\t"+key); ok {
				arch = append(arch, value)
			}
		}
	}
	return strings.Join(arch, ",")
}
