package directory

import (
	"cmp"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// What those see of a directory who ask before the daemon does.

// Names lists the files in a folder that the source would read, in the order in
// which it reads them.
func Names(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		if eligible(e.Name()) {
			list = append(list, filepath.Join(folder, e.Name()))
		}
	}
	return list, nil
}

// Read reads and decodes a file as the source does, but whoever owns it, may
// write to it or does so now: it may be a draft. Why it can't be read is an error
// among the Diagnostics of a File that is not Parsed.
func Read(path string) manifest.File {
	f, _, err := open(path, func(st *unix.Stat_t) error { return cmp.Or(regular(st), small(st)) })
	if missing(err) {
		if _, linkErr := os.Lstat(path); linkErr == nil {
			err = errDangling
		}
	}
	if err != nil {
		return manifest.File{Diagnostics: []manifest.Diagnostic{notRead(path, err)}}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return manifest.File{Diagnostics: []manifest.Diagnostic{notRead(path, err)}}
	}
	return manifest.Decode(Name, path, data)
}

// Untrusted warns of what is wrong with the owners and modes of a folder and its
// files: a daemon that runs as root does not read such files, although Read does.
func Untrusted(folder string) []manifest.Diagnostic {
	names, err := Names(folder)
	if err != nil {
		return nil // who reads the files says so
	}
	all := shared(folder)
	for _, name := range names {
		var st unix.Stat_t
		if unix.Stat(name, &st) != nil || regular(&st) != nil {
			continue // likewise
		}
		if err := trusted(&st, 0); err != nil {
			all = append(all, manifest.Diagnostic{Severity: manifest.Warning, File: name, Message: "the daemon does not read it: " + err.Error()})
		}
	}
	return all
}
