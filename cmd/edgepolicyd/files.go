package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"edgepolicy.io/edgepolicyd/internal/config"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/internal/source/directory"
)

// config reads the configuration; without --config the file need not be there.
func (a *app) config() (config.Config, error) {
	if !a.configNamed {
		return config.Load("")
	}
	return config.Load(a.configPath)
}

// readFiles decodes files, and the files in folders by the same rules as the
// daemon, apart from those on owner and mode. Of a file that can't be read its
// Diagnostics say why.
func readFiles(paths []string) ([]manifest.File, error) {
	var files []manifest.File
	for _, path := range paths {
		names := []string{path}
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there is no file or folder %s", path)
		}
		if err != nil {
			return nil, err
		}
		if info.IsDir() {
			if names, err = directory.Names(path); err != nil {
				return nil, err
			}
		}
		for _, name := range names {
			files = append(files, directory.Read(name))
		}
	}
	return files, nil
}

// snapshotOf merges what the files hold, as the daemon would without knowing a
// gateway's own addresses: before others, the directory's.
func snapshotOf(files []manifest.File, o *inventory.Options, others ...source.Report) (*inventory.Snapshot, []source.Problem) {
	report := source.Report{Source: directory.Name}
	for _, f := range files {
		for _, d := range f.Documents {
			if !d.Valid {
				continue
			}
			switch d.Kind {
			case inventory.KindPod:
				report.Objects.Pods = append(report.Objects.Pods, d.Pod)
			case inventory.KindNamespace:
				report.Objects.Namespaces = append(report.Objects.Namespaces, d.Namespace)
			case inventory.KindPolicy:
				report.Objects.Policies = append(report.Objects.Policies, d.Policy)
			}
		}
	}
	return source.Merge(append([]source.Report{report}, others...), nil, nil, o)
}

// diagnostics are all findings of decoding, in the order of the files.
func diagnostics(files []manifest.File) []manifest.Diagnostic {
	var all []manifest.Diagnostic
	for _, f := range files {
		all = append(all, f.Diagnostics...)
	}
	return all
}

// count gives "1 file" or "2 files".
func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// valid reads files that must all be valid: what the daemon would fall back to
// is not known here. What it would leave out is told as a warning.
func (a *app) valid(paths []string, o *inventory.Options, others ...source.Report) (*inventory.Snapshot, error) {
	files, err := readFiles(paths)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, d := range diagnostics(files) {
		if d.Severity == manifest.Error {
			errs = append(errs, d)
		}
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("%s in the files:\n%w", count(len(errs), "error"), errors.Join(errs...))
	}
	s, problems := snapshotOf(files, o, others...)
	for _, p := range problems {
		fmt.Fprintf(a.stderr, "warning: %s: %s is left out: %s\n", p.Origin, p.Object, p.Reason)
	}
	return s, nil
}
