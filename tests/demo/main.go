// Command demo shows edgepolicyd at work on a gateway made of network
// namespaces: what reaches what before and after the policies, measured with real
// connections; an open connection cut by a change; a broken file that changes
// nothing. It fails if anything that it measures is not as it should be.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"edgepolicy.io/edgepolicyd/internal/lab"
)

func main() {
	routed := flag.Bool("routed", false, "attach the pods by routed veth pairs instead of a bridge")
	flag.Parse()
	kind := lab.Bridge
	if *routed {
		kind = lab.Routed
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Stdout, kind))
}

// run shows everything, ends with a verdict and gives the exit code.
func run(ctx context.Context, out io.Writer, kind lab.Kind) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(out, "demo: this needs root (it makes network namespaces): sudo make demo")
		return 1
	}
	s := &show{ctx: ctx, out: out}
	err := s.play(kind)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		fmt.Fprintf(out, "\nDEMO FAILED: %v\n", err)
		return 1
	}
	fmt.Fprintf(out, "\nDEMO PASSED: %d new connections, and two that were open during a change,\nwent as the policies say, over IPv4 and IPv6.\n", s.measured)
	return 0
}
