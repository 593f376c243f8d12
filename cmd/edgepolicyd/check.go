package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"edgepolicy.io/edgepolicyd/internal/config"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/internal/source/directory"
)

func (a *app) checkCommand() *cobra.Command {
	var strict bool
	c := &cobra.Command{
		Use:   "check [PATH...]",
		Short: "Validate policies, and say what they probably do not mean",
		Long: `Validate the policies in files or folders (default: the configured directory)
and say what is doubtful about them: file:line:column: field: value: what is
wrong and what would be right. With --config, check that file (and the PATHs
that are given). Of the configured directory, without a PATH, it also says whose
owner or mode is wrong.

It needs no root, no kernel and no daemon. Errors exit with 1; warnings with 0,
or with 1 under --strict.`,
		Example: `  edgepolicyd check
  edgepolicyd check --strict policies/ web.yaml
  edgepolicyd check --config /etc/edgepolicyd/config.yaml`,
		RunE: func(_ *cobra.Command, args []string) error { return a.check(args, strict) },
	}
	c.Flags().BoolVar(&strict, "strict", false, "exit with 1 on warnings too")
	return c
}

func (a *app) check(paths []string, strict bool) error {
	var found []manifest.Diagnostic
	files := 0
	cfg := config.Default()
	if a.configNamed {
		data, err := config.Read(a.configPath)
		if err != nil {
			return err
		}
		cfg, found = config.Parse(a.configPath, data)
		files++
		if errorsIn(found) > 0 { // what the manifests mean depends on it
			return a.printCheck(found, files, strict)
		}
	} else {
		var err error
		if cfg, err = a.config(); err != nil {
			return err
		}
		if len(paths) == 0 {
			paths = []string{string(cfg.Sources.Directory.Path)}
			found = directory.Untrusted(paths[0])
		}
	}
	if len(paths) > 0 {
		manifests, err := readFiles(paths)
		if err != nil {
			return err
		}
		files += len(manifests)
		found = append(found, findings(manifests, cfg.Options())...)
		if len(manifests) == 0 {
			found = append(found, manifest.Diagnostic{Severity: manifest.Warning, File: strings.Join(paths, ", "),
				Message: "no manifests in here: files ending in .yaml, .yml or .json are read, those beginning with a dot are not"})
		}
	}
	return a.printCheck(found, files, strict)
}

// findings is all there is to say about manifests, by file and line.
func findings(files []manifest.File, o inventory.Options) []manifest.Diagnostic {
	s, problems := snapshotOf(files, &o)
	found := append(diagnostics(files), manifest.Lint(s, o, files)...)
	for _, p := range problems {
		if !duplicateTold(found, p) {
			found = append(found, manifest.Diagnostic{Severity: manifest.Error, File: p.Origin.File, Line: p.Origin.Line, Column: p.Origin.Column, Object: p.Object, Message: p.Reason})
		}
	}
	slices.SortStableFunc(found, func(x, y manifest.Diagnostic) int {
		return cmp.Or(cmp.Compare(x.File, y.File), cmp.Compare(x.Line, y.Line), cmp.Compare(x.Column, y.Column))
	})
	return found
}

// duplicateTold says whether the linter has complained of the object being there
// twice, which it does at its name.
func duplicateTold(found []manifest.Diagnostic, p source.Problem) bool {
	return slices.ContainsFunc(found, func(d manifest.Diagnostic) bool {
		return d.Severity == manifest.Error && d.File == p.Origin.File && d.Line >= p.Origin.Line && d.Object == p.Object && d.Field == "metadata.name"
	})
}

func errorsIn(found []manifest.Diagnostic) int {
	n := 0
	for _, d := range found {
		if d.Severity == manifest.Error {
			n++
		}
	}
	return n
}

func (a *app) printCheck(found []manifest.Diagnostic, files int, strict bool) error {
	errs := errorsIn(found)
	if a.output == "json" {
		if found == nil {
			found = []manifest.Diagnostic{}
		}
		if err := a.printJSON(found); err != nil {
			return err
		}
	} else {
		for _, d := range found {
			if d.Severity == manifest.Warning {
				fmt.Fprint(a.stdout, "warning: ")
			}
			fmt.Fprintln(a.stdout, d)
		}
		fmt.Fprintf(a.stdout, "%s checked: %s, %s\n", count(files, "file"), count(errs, "error"), count(len(found)-errs, "warning"))
	}
	if errs > 0 || strict && len(found) > 0 {
		return errPrinted
	}
	return nil
}
