package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"edgepolicy.io/edgepolicyd/internal/explain"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

func (a *app) explainCommand() *cobra.Command {
	var paths []string
	c := &cobra.Command{
		Use:   "explain FROM TO [PORT/PROTOCOL]",
		Short: "Say why a flow passes or not",
		Long: `Say whether a new connection passes, and why: which policies select each end and
which of their rules matches or why not, the rules of the table that its first
packet meets with their counters, and what else could drop it. FROM and TO are
pods, as NAMESPACE/NAME or NAME in the namespace default, addresses, or the word
gateway. The port is such as 5432/TCP, 5432 (of TCP) or ICMP; without one, it is
said what passes.

The running daemon answers; with --path, files do, for what they would give. The
exit code is 0 whatever the verdict: -o json has it in "verdict" (allowed, denied,
held, partly) and "allowed".`,
		Example: `  edgepolicyd explain web db 5432/TCP
  edgepolicyd explain default/web 192.168.20.7
  edgepolicyd explain --path policies/ 10.88.0.11 default/broker ICMP`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 || len(args) > 3 {
				return fmt.Errorf("%w: explain takes FROM, TO and a port, got %q", errUsage, args)
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			q := explain.Question{From: args[0], To: args[1]}
			if len(args) == 3 {
				q.Port = args[2]
			}
			e, err := a.explain(cmd.Context(), paths, q)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.printJSON(e)
			}
			_, err = io.WriteString(a.stdout, e.Text())
			return err
		},
	}
	c.Flags().StringArrayVar(&paths, "path", nil, "a file or folder to ask instead of the daemon (repeatable)")
	return c
}

func (a *app) explain(ctx context.Context, paths []string, q explain.Question) (explain.Explanation, error) {
	if len(paths) == 0 {
		client, err := a.client()
		if err != nil {
			return explain.Explanation{}, err
		}
		return client.Explain(ctx, q)
	}
	cfg, err := a.config()
	if err != nil {
		return explain.Explanation{}, err
	}
	o := cfg.Options()
	s, err := a.valid(paths, &o)
	if err != nil {
		return explain.Explanation{}, err
	}
	mark, _ := ruleset.Mark{Mask: o.MarkMask}.Next()
	table := ruleset.NewCompiler(string(cfg.Table), &o).Compile(policy.NewResolver(&o).Update(s), mark)
	return explain.Explain(explain.Input{Snapshot: s, Options: &o, Table: table}, q)
}
