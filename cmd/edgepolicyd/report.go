package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func (a *app) reportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "report --html FILE",
		Short: "Write what is enforced as one page",
		RunE:  func(*cobra.Command, []string) error { return errors.New("not there yet") },
	}
}
