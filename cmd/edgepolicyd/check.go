package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"edgepolicy.io/edgepolicyd/internal/manifest"
)

func (a *app) checkCommand() *cobra.Command {
	var strict bool
	c := &cobra.Command{
		Use:   "check [PATH...]",
		Short: "Validate policies, and say what they probably do not mean",
		Long: `Validate the policies in files or folders (default: the configured directory)
and say what is doubtful about them. With --config, check that file too.

It needs no root, no kernel and no daemon. Errors exit with 1; warnings with 0,
or with 1 under --strict.`,
		RunE: func(_ *cobra.Command, args []string) error { return a.check(args, strict) },
	}
	c.Flags().BoolVar(&strict, "strict", false, "exit with 1 on warnings too")
	return c
}

func (a *app) check(paths []string, strict bool) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	var found []manifest.Diagnostic
	checked := 0
	if len(paths) == 0 && !a.configNamed {
		paths = []string{string(cfg.Sources.Directory.Path)}
	}
	if len(paths) > 0 {
		files, err := readFiles(paths)
		if err != nil {
			return err
		}
		errs, warnings := diagnostics(files)
		o := cfg.Options()
		s, problems := snapshotOf(files, &o)
		found = append(append(found, errs...), warnings...)
		found = append(found, manifest.Lint(s, o, files)...)
		for _, p := range problems {
			if !contains(found, p.Origin.File, p.Origin.Line) {
				found = append(found, manifest.Diagnostic{Severity: manifest.Error, File: p.Origin.File, Line: p.Origin.Line, Column: p.Origin.Column, Object: p.Object, Message: p.Reason})
			}
		}
		checked = len(files)
	}
	return a.printCheck(found, checked, strict)
}

// contains says whether a place was complained about already.
func contains(list []manifest.Diagnostic, file string, line int) bool {
	for _, d := range list {
		if d.Severity == manifest.Error && d.File == file && d.Line == line {
			return true
		}
	}
	return false
}

func (a *app) printCheck(found []manifest.Diagnostic, files int, strict bool) error {
	errs := 0
	for _, d := range found {
		if d.Severity == manifest.Error {
			errs++
		}
	}
	if a.output == "json" {
		if found == nil {
			found = []manifest.Diagnostic{}
		}
		if err := a.printJSON(found); err != nil {
			return err
		}
	} else {
		for _, d := range found {
			fmt.Fprintln(a.stdout, d)
		}
		fmt.Fprintf(a.stdout, "%d files checked: %d errors, %d warnings\n", files, errs, len(found)-errs)
	}
	if errs > 0 || strict && len(found) > 0 {
		return errPrinted
	}
	return nil
}

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
