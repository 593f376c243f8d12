// Command edgepolicyd enforces Kubernetes NetworkPolicies on an edge gateway
// with nftables. This package only wires: each file is one subcommand.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build (-ldflags -X main.version=...).
var version = "development"

// Exit codes, the same for every command.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitDegraded = 3 // enforced, but something was rejected or is not enforceable
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// errUsage marks an error in how the program was called.
var errUsage = errors.New("wrong usage")

// errDegraded ends a command that worked and has something to complain about,
// which it has printed.
var errDegraded = errors.New("degraded")

// errPrinted ends a command that failed and has said why.
var errPrinted = errors.New("failed")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errDegraded):
		return exitDegraded
	case errors.Is(err, errPrinted):
		return exitFailed
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "edgepolicyd: %v\nRun 'edgepolicyd --help' for usage.\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "edgepolicyd: %v\n", err)
	return exitFailed
}

// app is what the subcommands share: where to print, and how.
type app struct {
	stdout, stderr io.Writer
	output         string // text or json
	configPath     string
	configNamed    bool // given on the command line
}

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	a := &app{stdout: stdout, stderr: stderr}
	root := &cobra.Command{
		Use:   "edgepolicyd",
		Short: "Enforces Kubernetes NetworkPolicies on an edge gateway",
		Long: `edgepolicyd enforces Kubernetes NetworkPolicies on a standalone gateway.

It reads NetworkPolicy, Pod and Namespace YAML from a directory and keeps an
nftables table in the kernel that enforces them.

Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 degraded: enforced, but something
was rejected or is not enforceable, and it is named.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			a.configNamed = cmd.Flags().Changed("config")
			if a.output != "text" && a.output != "json" {
				return fmt.Errorf("%w: --output %q: it is text or json", errUsage, a.output)
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "text", "how to print: text or json")
	root.PersistentFlags().StringVar(&a.configPath, "config", defaultConfig, "the daemon's configuration file")
	root.AddCommand(a.runCommand(), a.checkCommand(), a.reloadCommand(), a.matrixCommand(),
		a.planCommand(), a.statusCommand(), a.flushCommand(), a.versionCommand())
	for _, c := range root.Commands() {
		c.Args = usageArgs(c.Args)
	}
	return root
}

// usageArgs makes a wrong number of arguments wrong usage.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	if check == nil {
		return nil
	}
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return fmt.Errorf("%w: %s: %w", errUsage, cmd.Name(), err)
		}
		return nil
	}
}
