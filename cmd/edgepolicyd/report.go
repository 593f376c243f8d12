package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/report"
	"edgepolicy.io/edgepolicyd/internal/status"
)

func (a *app) reportCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "report --html FILE",
		Short: "Write what is enforced as one page",
		Long: `Write what the running daemon enforces as one HTML page, to be read, printed and
filed: who reaches whom, each pod's isolation, each policy in plain words with its
origin and the hash of its content, findings, and what was denied lately. The page
loads nothing from elsewhere and holds no scripts.

FILE appears whole or not at all, readable by its owner alone; what was there is
replaced. - is standard output.`,
		Example: `  edgepolicyd report --html report.html
  edgepolicyd report --html - | gzip > report.html.gz`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return fmt.Errorf("%w: --html is missing: name the file to write, or - for standard output", errUsage)
			}
			return a.report(cmd.Context(), file)
		},
	}
	c.Flags().StringVar(&file, "html", "", "the file to write, or - for standard output")
	return c
}

func (a *app) report(ctx context.Context, file string) error {
	r, err := a.gather(ctx)
	if err != nil {
		return err
	}
	if file == "-" {
		return report.Write(a.stdout, r)
	}
	if err := writeFile(file, func(w io.Writer) error { return report.Write(w, r) }); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if a.output == "json" {
		return a.printJSON(map[string]string{"file": file})
	}
	_, err = fmt.Fprintf(a.stdout, "%s: %s, %s, %s\n", file, r.Status.Health, count(r.Status.Pods, "pod"), policies(len(r.Status.Policies)))
	return err
}

// reportTries is how often all is asked anew because it changed meanwhile.
const reportTries = 10

// gather asks the daemon for all that a report tells, of one generation. One that
// changes with each question has its last answers.
func (a *app) gather(ctx context.Context) (r report.Report, err error) {
	cfg, err := a.config()
	if err != nil {
		return r, err
	}
	o := cfg.Options()
	r.Options = &o
	if r.Gateway, err = os.Hostname(); err != nil {
		return r, fmt.Errorf("the gateway's name: %w", err)
	}
	client := status.Dial(string(cfg.Socket))
	for range reportTries {
		before, err := client.Status(ctx)
		if err != nil {
			return r, err
		}
		known, err := client.Known(ctx)
		if err != nil {
			return r, err
		}
		if r.Snapshot, err = inForce(ctx, known); err != nil {
			return r, err
		}
		r.NoMatrix = ""
		r.Matrix, err = client.Matrix(ctx, policy.MatrixRequest{})
		switch {
		case err != nil && before.Health != status.Healthy:
			r.NoMatrix = err.Error()
		case err != nil:
			return r, err
		}
		if r.Denied, err = client.Denied(ctx, 0); err != nil {
			return r, err
		}
		if r.Status, err = client.Status(ctx); err != nil {
			return r, err
		}
		if r.Time = time.Now(); r.Status.Generation == before.Generation {
			break
		}
	}
	return r, nil
}

// writeFile makes a file of what write gives, in one step: whoever looks finds what was
// there before, or all of it. It has mode 0600. What is there and is no file stays.
func writeFile(path string, write func(io.Writer) error) error {
	info, err := os.Lstat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return fmt.Errorf("%s is there and is no file: name another, or - for standard output", path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // if it has its own name still
	err = errors.Join(write(tmp), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func policies(n int) string {
	if n == 1 {
		return "1 policy"
	}
	return fmt.Sprintf("%d policies", n)
}
