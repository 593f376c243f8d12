package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func (a *app) deniedCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "denied",
		Short: "Show flows that were denied lately",
		RunE:  func(*cobra.Command, []string) error { return errors.New("not there yet") },
	}
}
