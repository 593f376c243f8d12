// Command build makes the Debian and RPM packages out of the programs in build/, of
// which `make build-all` has put one for each architecture there. Run it in its own
// folder, as its module is apart from the daemon's:
//
//	go run . -version 1.2.0
//
// Two runs over the same tree give the same bytes. All times in the packages are
// SOURCE_DATE_EPOCH, which must be set: that of the commit, in seconds since 1970.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	_ "github.com/goreleaser/nfpm/v2/rpm"
)

const (
	name       = "edgepolicyd"
	maintainer = "edgepolicyd maintainers <maintainers@edgepolicy.io>"
	homepage   = "https://edgepolicy.io"
	summary    = "Kubernetes NetworkPolicies on a standalone edge gateway"
	// The description's lines are Debian's: a blank one is a new paragraph.
	description = `Enforces Kubernetes NetworkPolicies with one nftables table, without a
cluster: policies come from a directory of YAML or a local Kubernetes API,
pods from the results of CNI plugins and the local kubelet.

Changes take effect at one instant and lose no allowed packet. Rules stay in
force while the daemon is away, and are back at boot before any pod runs.`
	// revision is that of the packaging, as there is a changelog of its own in Debian's
	// form. It counts up when a version is packaged anew.
	revision = "1"
)

// target is one package.
type target struct {
	format string // deb or rpm
	arch   string // as the packager nfpm names it: GOARCH, and GOARM after arm
	binary string // in build/
}

// targets are all packages. Debian's armhf is ARMv7, but Raspberry Pi OS calls its
// ARMv6 system armhf too: there must be one package, and it must run on both.
var targets = []target{
	{"deb", "amd64", "edgepolicyd-amd64"},
	{"deb", "arm64", "edgepolicyd-arm64"},
	{"deb", "arm6", "edgepolicyd-armv6"},
	{"rpm", "amd64", "edgepolicyd-amd64"},
	{"rpm", "arm64", "edgepolicyd-arm64"},
	{"rpm", "arm7", "edgepolicyd-armv7"},
	{"rpm", "arm6", "edgepolicyd-armv6"},
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "packages: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	version := flag.String("version", "", "the program's version: 1.2.0, 1.2.0-rc.1, or what git describe makes of it")
	root := flag.String("root", "../..", "the source tree")
	binaries := flag.String("binaries", "", "folder of the programs (default build in the source tree)")
	out := flag.String("out", "", "folder for the packages (default build/packages in the source tree)")
	only := flag.String("only", "", "one package instead of all, such as deb/arm64, deb/arm6 or rpm/arm7")
	flag.Parse()
	if *version == "" || flag.NArg() > 0 {
		return errors.New("usage: go run . -version VERSION (go run . -help names the rest)")
	}
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w: it is the time of all files, such as $(git log -1 --format=%%ct)", err)
	}
	b := build{root: *root, binaries: *binaries, out: *out, version: packageVersion(*version), date: time.Unix(epoch, 0).UTC()}
	if b.binaries == "" {
		b.binaries = filepath.Join(b.root, "build")
	}
	if b.out == "" {
		b.out = filepath.Join(b.root, "build", "packages")
	}
	if b.stage, err = os.MkdirTemp("", "edgepolicyd-packages-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.stage)
	return b.all(*only)
}

// build is one run.
type build struct {
	root, binaries, out string
	version             string // as packages spell it
	date                time.Time
	stage               string // of files that are made here
	licence             string // SPDX expression
	changelog           string // file, for RPM
}

func (b *build) all(only string) error {
	list := slices.Clone(targets)
	if only != "" {
		list = slices.DeleteFunc(list, func(t target) bool { return t.format+"/"+t.arch != only })
		if len(list) == 0 {
			return fmt.Errorf("-only %s: there is no such package", only)
		}
	}
	if err := b.prepare(); err != nil {
		return err
	}
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return err
	}
	errs := make([]error, len(list))
	slots := make(chan struct{}, runtime.GOMAXPROCS(0)) // to compress takes seconds
	var wait sync.WaitGroup
	for i, t := range list {
		wait.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if path, err := b.one(t); err != nil {
				errs[i] = fmt.Errorf("%s for %s: %w", t.format, t.arch, err)
			} else {
				fmt.Println(path)
			}
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

// one writes one package and gives its path.
func (b *build) one(t target) (string, error) {
	contents, err := b.contents(t)
	if err != nil {
		return "", err
	}
	script := func(name string) string { return filepath.Join(b.root, "packaging", t.format, name) }
	info := &nfpm.Info{
		Name: name, Arch: t.arch, Platform: "linux", Version: b.version, VersionSchema: "none", Release: revision,
		Section: "net", Priority: "optional", Maintainer: maintainer, Homepage: homepage,
		Description: summary + "\n" + description, MTime: b.date, DisableGlobbing: true,
		Overridables: nfpm.Overridables{Contents: contents, Umask: 0o022},
	}
	switch t.format {
	case "deb":
		info.Deb.Compression = "xz"
		info.Scripts = nfpm.Scripts{PostInstall: script("postinst"), PreRemove: script("prerm"), PostRemove: script("postrm")}
	case "rpm":
		info.License, info.Vendor, info.Changelog = b.licence, "edgepolicyd maintainers", b.changelog
		info.Description = description
		// As Fedora does it; rpm knows it since 4.14. Debian does only since 12, so xz there.
		info.RPM = nfpm.RPM{Compression: "zstd:best", Summary: summary, BuildHost: "localhost", Group: "System Environment/Daemons"}
		info.Scripts = nfpm.Scripts{PostInstall: script("post"), PreRemove: script("preun"), PostRemove: script("postun")}
	}
	packager, err := nfpm.Get(t.format)
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.out, packager.ConventionalFileName(info))
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	return path, errors.Join(packager.Package(info, f), f.Close())
}

// packageVersion spells a version so that dpkg and rpm order it: a release candidate
// before its release, and what was built from a later commit after it.
func packageVersion(v string) string {
	v = strings.TrimPrefix(v, "v")
	release, rest, found := strings.Cut(v, "-")
	if !found {
		return v
	}
	sep := "+"
	for _, pre := range []string{"alpha", "beta", "rc"} {
		if strings.HasPrefix(rest, pre) {
			sep = "~"
		}
	}
	return release + sep + strings.ReplaceAll(rest, "-", ".")
}

// output runs a command in the source tree.
func (b *build) output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = b.root
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return string(out), nil
}
