package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"edgepolicy.io/edgepolicyd/internal/policy"
)

func (a *app) matrixCommand() *cobra.Command {
	var ports, addresses []string
	c := &cobra.Command{
		Use:   "matrix [PATH...]",
		Short: "Say who reaches whom",
		Long: `Say who reaches whom, on the given or all used ports: from files and folders, or
without PATH from the running daemon. Pods without addresses take part by their
labels. JSON: a list of {from, to, toIP, port, protocol, allowed, reason}.`,
		Example: `  edgepolicyd matrix
  edgepolicyd matrix --port 8181/TCP --address 192.168.20.7 policies/`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := matrixRequest(ports, addresses)
			if err != nil {
				return err
			}
			cells, err := a.matrix(cmd.Context(), args, r)
			if err != nil {
				return err
			}
			if a.output == "json" {
				if cells == nil {
					cells = []policy.Cell{}
				}
				return a.printJSON(cells)
			}
			return policy.WriteMatrix(a.stdout, cells)
		},
	}
	c.Flags().StringArrayVar(&ports, "port", nil, "a port to ask about, as 80/TCP (repeatable; default: all that policies and pods use)")
	c.Flags().StringArrayVar(&addresses, "address", nil, "an address outside the gateway, asked about both ways (repeatable)")
	complete(c, "port")
	complete(c, "address")
	return c
}

func matrixRequest(ports, addresses []string) (policy.MatrixRequest, error) {
	var r policy.MatrixRequest
	for _, text := range ports {
		p, err := policy.ParseMatrixPort(text)
		if err != nil {
			return r, fmt.Errorf("%w: --port: %w", errUsage, err)
		}
		r.Ports = append(r.Ports, p)
	}
	for _, text := range addresses {
		addr, err := netip.ParseAddr(text)
		switch {
		case err != nil:
			return r, fmt.Errorf("%w: --address %q: it is one IP address, such as 192.168.20.7 or 2001:db8::7", errUsage, text)
		case addr.Zone() != "": // policies know no interfaces
			return r, fmt.Errorf("%w: --address %q: name it without an interface, such as %s", errUsage, text, addr.WithZone(""))
		}
		r.Addresses = append(r.Addresses, addr.Unmap())
	}
	return r, nil
}

func (a *app) matrix(ctx context.Context, paths []string, r policy.MatrixRequest) ([]policy.Cell, error) {
	cfg, err := a.config()
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		client, err := a.client()
		if err != nil {
			return nil, err
		}
		return client.Matrix(ctx, r)
	}
	o := cfg.Options()
	s, err := a.valid(paths, &o)
	if err != nil {
		return nil, err
	}
	return policy.Matrix(s, &o, r), nil
}
