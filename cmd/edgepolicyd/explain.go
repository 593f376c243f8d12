package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func (a *app) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain FROM TO [PORT/PROTO]",
		Short: "Say why a flow passes or not",
		RunE:  func(*cobra.Command, []string) error { return errors.New("not there yet") },
	}
}
