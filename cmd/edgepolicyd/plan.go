package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/internal/source/directory"
	"edgepolicy.io/edgepolicyd/internal/state"
	"edgepolicy.io/edgepolicyd/internal/status"
)

func (a *app) planCommand() *cobra.Command {
	var pod string
	var diff bool
	c := &cobra.Command{
		Use:   "plan [PATH...]",
		Short: "Print the table that files would give",
		Long: `Print the nftables table that the policies in files or folders (default: the
configured directory) would give, as text that nft -c -f - accepts (where the
daemon runs: unshare -n nft -c -f -, as the kernel keeps the table for it). With
--diff, print how it differs from what the running daemon enforces, and which
established connections of this gateway the change would cut (the first 100 that the
kernel lists; as root). Connections without a close, of UDP say, count as long as
conntrack remembers them.`,
		Example: `  edgepolicyd plan --pod default/broker policies/
  edgepolicyd plan --diff`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.plan(cmd.Context(), args, pod, diff) },
	}
	c.Flags().StringVar(&pod, "pod", "", "only the part of this pod, as NAMESPACE/NAME")
	c.Flags().BoolVar(&diff, "diff", false, "compare with the running daemon")
	complete(c, "pod")
	return c
}

func (a *app) plan(ctx context.Context, paths []string, pod string, diff bool) error {
	key, err := podKey(pod)
	if err != nil {
		return err
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		paths = []string{string(cfg.Sources.Directory.Path)}
	}
	o := cfg.Options()
	compiler := ruleset.NewCompiler(string(cfg.Table), &o)
	var client *status.Client
	var known status.Known
	var others []source.Report
	if diff {
		if client, err = a.client(); err != nil {
			return err
		}
		if known, err = client.Known(ctx); err != nil {
			return err
		}
		other, err := otherSources(known)
		if err != nil {
			return err
		}
		others, compiler.Interfaces = []source.Report{other}, known.Interfaces
	}
	s, err := a.valid(paths, &o, others...)
	if err != nil {
		return err
	}
	mark, _ := ruleset.Mark{Mask: o.MarkMask}.Next()
	table := compiler.Compile(policy.NewResolver(&o).Update(s), mark)
	text, err := podPart(table, s, key)
	if err != nil {
		return err
	}
	if !diff {
		return a.printPlan(notIsolated(table, s, key, &o)+text, nil)
	}
	running, err := client.Table(ctx, pod)
	if err != nil {
		return err
	}
	text = ruleset.CompareText(running, text)
	c, err := connectionsCut(ctx, client, known, s, o, key)
	if err != nil {
		return err
	}
	return a.printPlan(text, &c)
}

// otherSources is what the daemon knows but from the directory, whose place the files
// take; and the addresses of pods that the directory describes and CNI results tell.
func otherSources(known status.Known) (source.Report, error) {
	all, err := objects(known)
	if err != nil {
		return source.Report{}, err
	}
	r := source.Report{Source: "daemon"}
	for _, p := range all.Pods {
		if !written(p.Origin) || p.UID != "" {
			r.Objects.Pods = append(r.Objects.Pods, p)
		}
	}
	for _, n := range all.Namespaces {
		if !written(n.Origin) {
			r.Objects.Namespaces = append(r.Objects.Namespaces, n)
		}
	}
	for _, p := range all.Policies {
		if !written(p.Origin) {
			r.Objects.Policies = append(r.Objects.Policies, p)
		}
	}
	return r, nil
}

// objects decodes what the daemon knows.
func objects(known status.Known) (inventory.Objects, error) {
	all, err := state.Restore(known.Objects)
	if err != nil {
		return all, fmt.Errorf("what the daemon knows can't be read: is it of the same version? %w", err)
	}
	for _, p := range all.Pods {
		p.Remote = known.NodeName != "" && p.Node != "" && p.Node != known.NodeName && !written(p.Origin)
	}
	return all, nil
}

// written says whether an object is the directory's.
func written(o inventory.Origin) bool { return o.Source == directory.Name }

// printPlan prints a table, or how two differ and which connections that would cut.
func (a *app) printPlan(text string, c *cuts) error {
	if a.output == "json" {
		return a.printJSON(struct {
			Plan string `json:"plan"`
			Cut  *cuts  `json:"cut,omitempty"`
		}{text, c})
	}
	if c != nil {
		text += c.text(text != noDifference)
	}
	_, err := io.WriteString(a.stdout, text)
	return err
}

// podKey reads NAMESPACE/NAME; nothing gives the zero Key.
func podKey(pod string) (inventory.Key, error) {
	namespace, name, _ := strings.Cut(pod, "/")
	if pod != "" && (namespace == "" || name == "" || strings.Contains(name, "/")) {
		return inventory.Key{}, fmt.Errorf("%w: --pod %q: name it as NAMESPACE/NAME", errUsage, pod)
	}
	return inventory.Key{Namespace: namespace, Name: name}, nil
}

// podPart is the part of one pod, or for the zero Key the whole table.
func podPart(t *ruleset.Table, s *inventory.Snapshot, pod inventory.Key) (string, error) {
	if pod == (inventory.Key{}) {
		return t.Text(nil), nil
	}
	if s.Pod(pod) == nil {
		return "", fmt.Errorf("there is no pod %s in the files", pod)
	}
	return t.Text(ruleset.PodChains(pod)), nil
}

// notIsolated is a comment on the part of a pod that no chain is about, or "".
func notIsolated(t *ruleset.Table, s *inventory.Snapshot, key inventory.Key, o *inventory.Options) string {
	pod := s.Pod(key)
	if pod == nil || slices.ContainsFunc(ruleset.PodChains(key), func(name string) bool { return t.Chains[name] != nil }) {
		return ""
	}
	why := "no policy selects it"
	switch {
	case !pod.Selectable():
		why = "it has the gateway's network, or has ended"
	case len(pod.Addresses) == 0:
		why = "it has no address"
	case o.NeverIsolated(key):
		why = "neverIsolate names it"
	}
	return fmt.Sprintf("# pod %s is not isolated: %s. Nothing of the table is about it.\n", key, why)
}
