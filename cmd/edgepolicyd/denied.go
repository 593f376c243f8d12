package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"edgepolicy.io/edgepolicyd/internal/denied"
	"edgepolicy.io/edgepolicyd/internal/explain"
	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
	"edgepolicy.io/edgepolicyd/internal/policy"
	"edgepolicy.io/edgepolicyd/internal/status"
)

func (a *app) deniedCommand() *cobra.Command {
	var follow, suggest bool
	c := &cobra.Command{
		Use:   "denied",
		Short: "Show the flows that were denied lately",
		Long: `Show the flows that policies denied lately, or would deny in audit mode, the
last one last, from the daemon's memory: a thousand flows.

The packets are those that the kernel showed, a few a second of each pod; exact
totals of each pod are in the metrics. With --suggest, print the NetworkPolicies
that would allow the flows, to be read before they are used.`,
		Example: `  edgepolicyd denied --follow
  edgepolicyd denied --suggest > /tmp/allow.yaml`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if follow && suggest {
				return fmt.Errorf("%w: --follow and --suggest exclude each other", errUsage)
			}
			return a.denied(cmd.Context(), follow, suggest)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on, with each flow that is denied from now on")
	c.Flags().BoolVar(&suggest, "suggest", false, "print the policies that would allow the flows")
	return c
}

// followEvery is how often the daemon is asked.
const followEvery = time.Second

func (a *app) denied(ctx context.Context, follow, suggest bool) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	list, err := client.Denied(ctx, 0)
	if err != nil {
		return err
	}
	if suggest {
		return a.suggest(ctx, client, list)
	}
	if a.output == "json" && !follow {
		return a.printJSON(list)
	}
	if len(list) == 0 && !follow {
		fmt.Fprintln(a.stdout, "nothing was denied lately")
	}
	last := uint64(0)
	for {
		for _, f := range list {
			last = max(last, f.Seq)
			if err := a.printDenied(f); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
		if list, err = client.Denied(ctx, last); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

func (a *app) printDenied(f status.DeniedFlow) error {
	if a.output == "json" {
		return a.printJSON(f)
	}
	packets := "1 packet logged"
	if f.Packets > 1 {
		packets = fmt.Sprintf("%d packets logged since %s", f.Packets, f.First.Local().Format(time.TimeOnly))
	}
	_, err := fmt.Fprintf(a.stdout, "%s %s (from %s, %s)\n", f.Last.Local().Format(time.DateTime), denied.Text(&f), f.Interface, packets)
	return err
}

// suggest prints, for each flow that is still denied, the policies that would allow
// it.
func (a *app) suggest(ctx context.Context, client *status.Client, list []status.DeniedFlow) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	known, err := client.Known(ctx)
	if err != nil {
		return err
	}
	s, err := inForce(ctx, known)
	if err != nil {
		return err
	}
	o := cfg.Options()
	var documents []string
	for _, f := range list {
		if f.Stray {
			documents = append(documents, "# no suggestion, as it begins no connection: "+denied.Text(&f)+"\n")
			continue
		}
		text, err := explain.Suggest(s, &o, policy.Flow{
			From: policy.EndpointAt(s, f.From.Address), To: policy.EndpointAt(s, f.To.Address), Protocol: protocolOf(f.Protocol), Port: f.Port,
		})
		if errors.Is(err, explain.ErrNothingToSuggest) {
			continue
		}
		if err != nil {
			documents = append(documents, fmt.Sprintf("# no suggestion for %s: %v\n", denied.Text(&f), err))
			continue
		}
		documents = append(documents, text)
		// What it allows need not be suggested again.
		for _, doc := range manifest.Decode("suggested", "", []byte(text)).Documents {
			if doc.Policy != nil {
				s.Policies = append(s.Policies, doc.Policy)
			}
		}
		slices.SortFunc(s.Policies, func(a, b *inventory.Policy) int { return a.Key.Compare(b.Key) })
	}
	if a.output == "json" {
		return a.printJSON(map[string][]string{"suggested": documents})
	}
	if len(documents) == 0 {
		documents = []string{"# nothing that was denied lately is denied still\n"}
	}
	_, err = fmt.Fprint(a.stdout, strings.Join(documents, "---\n"))
	return err
}

// protocolOf reads a protocol as a DeniedFlow names it.
func protocolOf(name string) inventory.Protocol {
	for _, p := range []inventory.Protocol{inventory.TCP, inventory.UDP, inventory.SCTP, inventory.ICMP, inventory.ICMPv6} {
		if p.String() == name {
			return p
		}
	}
	n, _ := strconv.ParseUint(name, 10, 8) // a number, or nothing that there is
	return inventory.Protocol(n)
}
