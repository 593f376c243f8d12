package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/goreleaser/nfpm/v2/files"
)

// doc is the folder of the package's documents.
const doc = "/usr/share/doc/" + name

// manPages are in packaging/man.
var manPages = []string{"edgepolicyd.8", "edgepolicyd.conf.5", "edgepolicyd.policy.7"}

// prepare makes the files that are the same in all packages of a format.
func (b *build) prepare() error {
	for _, page := range manPages {
		text, err := os.ReadFile(filepath.Join(b.root, "packaging/man", page))
		if err != nil {
			return err
		}
		if err := b.compressed(page+".gz", text); err != nil {
			return err
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		text, err := b.output(b.native(), "completion", shell)
		if err != nil {
			return err
		}
		if err := b.file("completion."+shell, []byte(text)); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(filepath.Join(b.root, "CHANGELOG.md"))
	if err != nil {
		return err
	}
	releases, err := parseChangelog(string(text), b.version, b.date)
	if err != nil {
		return fmt.Errorf("CHANGELOG.md: %w", err)
	}
	if err := b.compressed("changelog.Debian.gz", []byte(debianChangelog(releases))); err != nil {
		return err
	}
	b.changelog = filepath.Join(b.stage, "changelog.json")
	data, err := rpmChangelog(releases)
	if err != nil {
		return err
	}
	if err := b.file("changelog.json", data); err != nil {
		return err
	}
	linked, err := b.licences()
	if err != nil {
		return err
	}
	b.licence = expression(linked)
	return b.file("copyright", []byte(copyright(linked)))
}

// native is the program that runs here, which writes the completions.
func (b *build) native() string {
	arch := runtime.GOARCH
	if arch == "arm" {
		arch = "armv6"
	}
	path, err := filepath.Abs(filepath.Join(b.binaries, name+"-"+arch))
	if err != nil {
		panic(err) // the working directory is gone
	}
	return path
}

func (b *build) file(name string, data []byte) error {
	return os.WriteFile(filepath.Join(b.stage, name), data, 0o644)
}

// compressed is file, as `gzip -9n` would write it: with no name and no time.
func (b *build) compressed(name string, data []byte) error {
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return b.file(name, buf.Bytes())
}

// contents lists what is in a package.
func (b *build) contents(t target) (files.Contents, error) {
	var list files.Contents
	add := func(from, to, kind string, mode fs.FileMode) {
		list = append(list, &files.Content{Source: from, Destination: to, Type: kind, FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: b.date}})
	}
	plain := func(from, to string) { add(filepath.Join(b.root, from), to, files.TypeFile, 0o644) }
	made := func(from, to string) { add(filepath.Join(b.stage, from), to, files.TypeFile, 0o644) }
	folder := func(path string) { add("", path, files.TypeDir, 0o755) }

	add(filepath.Join(b.binaries, t.binary), "/usr/sbin/edgepolicyd", files.TypeFile, 0o755)
	folder("/etc/edgepolicyd")
	add(filepath.Join(b.root, "configs/config.yaml"), "/etc/edgepolicyd/config.yaml", files.TypeConfigNoReplace, 0o644)
	folder("/etc/edgepolicy.d")
	for _, unit := range []string{"edgepolicyd.service", "edgepolicyd-restore.service"} {
		plain("systemd/"+unit, "/usr/lib/systemd/system/"+unit)
	}
	plain("systemd/edgepolicyd.catalog", "/usr/lib/systemd/catalog/edgepolicyd.catalog")
	plain("packaging/modules-load.conf", "/usr/lib/modules-load.d/edgepolicyd.conf")
	made("completion.bash", "/usr/share/bash-completion/completions/edgepolicyd")
	made("completion.fish", "/usr/share/fish/vendor_completions.d/edgepolicyd.fish")

	kind := files.TypeFile
	if t.format == "rpm" {
		kind = files.TypeRPMDoc
	}
	for _, page := range manPages {
		section := page[len(page)-1:]
		add(filepath.Join(b.stage, page+".gz"), "/usr/share/man/man"+section+"/"+page+".gz", kind, 0o644)
	}
	folder(doc)
	add(filepath.Join(b.stage, "copyright"), doc+"/copyright", kind, 0o644)
	for _, of := range []string{"examples", "presets"} {
		folder(doc + "/" + of)
		from := filepath.Join(b.root, "configs", of)
		entries, err := os.ReadDir(from)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			add(filepath.Join(from, e.Name()), doc+"/"+of+"/"+e.Name(), kind, 0o644)
		}
	}
	switch t.format {
	case "deb":
		made("changelog.Debian.gz", doc+"/changelog.Debian.gz")
		made("completion.zsh", "/usr/share/zsh/vendor-completions/_edgepolicyd")
		plain("packaging/edgepolicyd.lintian-overrides", "/usr/share/lintian/overrides/edgepolicyd")
	case "rpm":
		add(filepath.Join(b.root, "CHANGELOG.md"), doc+"/CHANGELOG.md", kind, 0o644)
		made("completion.zsh", "/usr/share/zsh/site-functions/_edgepolicyd")
		// No package may have these, unlike the others' folders.
		folder("/usr/share/zsh/site-functions")
		folder("/usr/share/fish")
		folder("/usr/share/fish/vendor_completions.d")
		folder("/usr/share/licenses/edgepolicyd")
		add(filepath.Join(b.root, "LICENSE"), "/usr/share/licenses/edgepolicyd/LICENSE", files.TypeRPMLicense, 0o644)
	}
	return list, nil
}
