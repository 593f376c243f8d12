package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Find what keeps policies from being enforced",
		RunE:  func(*cobra.Command, []string) error { return errors.New("not there yet") },
	}
}
