// Command edgepolicyd enforces Kubernetes NetworkPolicies on an edge gateway
// with nftables. This package only wires: each file is one subcommand.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"edgepolicy.io/edgepolicyd/internal/config"
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
	context.AfterFunc(ctx, stop) // so that a second signal kills, whatever hangs
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
	a := &app{stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errDegraded):
		return exitDegraded
	case errors.Is(err, errPrinted):
		return exitFailed
	}
	a.printError(cmd, err)
	if errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitFailed
}

// printError says on standard error why a command failed, so that standard
// output holds a result or nothing.
func (a *app) printError(cmd *cobra.Command, err error) {
	if a.output == "json" {
		writeJSON(a.stderr, map[string]string{"error": err.Error()})
		return
	}
	fmt.Fprintf(a.stderr, "edgepolicyd: %v\n", err)
	if errors.Is(err, errUsage) {
		fmt.Fprintf(a.stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
	}
}

// app is what the subcommands share: where to print, and how.
type app struct {
	stdout, stderr io.Writer
	output         string // text or json
	configPath     string
	configNamed    bool // given on the command line
}

// root is the command line.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "edgepolicyd",
		Short: "Enforces Kubernetes NetworkPolicies on an edge gateway",
		Long: `edgepolicyd enforces Kubernetes NetworkPolicies on a standalone gateway.

It reads NetworkPolicy, Pod and Namespace YAML from a directory and keeps an
nftables table in the kernel that enforces them.

Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 degraded: enforced, but something
was rejected or is not enforceable, and it is named. With -o json the result is
on standard output, and an error is {"error": "..."} on standard error.`,
		DisableFlagsInUseLine: true,
		SilenceErrors:         true,
		SilenceUsage:          true,
		Args:                  knownCommand,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
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
	root.PersistentFlags().StringVar(&a.configPath, "config", config.DefaultPath, "the daemon's configuration file")
	complete(root, "output", "text", "json")
	root.AddCommand(a.runCommand(), a.checkCommand(), a.reloadCommand(), a.matrixCommand(),
		a.planCommand(), a.explainCommand(), a.deniedCommand(), a.reportCommand(), a.doctorCommand(), a.statusCommand(), a.flushCommand(), a.restoreCommand(), a.versionCommand())
	root.SetHelpCommand(helpCommand(root))
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		completion.Args = knownCommand // cobra's own prints the help, and all is well
		completion.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		for _, shell := range completion.Commands() {
			shell.Args = noArgs
		}
	}
	return root
}

// complete tells the shells what a flag takes, which is no file: these words, or
// what nobody can know before it is typed.
func complete(cmd *cobra.Command, flag string, words ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // there is no such flag
	}
}

// helpCommand is cobra's, but for a command that does not exist being wrong
// usage.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about any command",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			if len(rest) > 0 {
				return knownCommand(cmd, rest)
			}
			return cmd.Help()
		},
	}
}

// knownCommand refuses the argument of a command that only has subcommands.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	cmd.SuggestionsMinimumDistance = 2
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		hint = fmt.Sprintf("; did you mean %q?", s[0])
	}
	return fmt.Errorf("%w: unknown command %q%s", errUsage, args[0], hint)
}

// noArgs refuses arguments where there is nothing to name.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: %s takes no arguments, got %q", errUsage, cmd.Name(), args[0])
	}
	return nil
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (a *app) printJSON(v any) error { return writeJSON(a.stdout, v) }
