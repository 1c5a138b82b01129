package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"understudy/internal/config"
	"understudy/internal/daemon"
)

func (a *app) checkCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Find every mistake in the configuration and the lists before it costs mail",
		Long: "Read the configuration and every list that it names, and report all faults at once, one a line, with file,\n" +
			"line and column. The exit code is 1 if there is any.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load()
			var faults config.Faults
			if errors.As(err, &faults) {
				return a.reportFaults(faults)
			}
			if err != nil {
				return err
			}
			if err := daemon.Check(cmd.Context(), cfg); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(struct {
					OK bool `json:"ok"`
				}{true})
			}
			fmt.Fprintf(a.out, "ok: %d domains\n", len(cfg.Domains))
			return nil
		},
	}
}

func (a *app) reportFaults(faults config.Faults) error {
	if a.json {
		if err := a.printJSON(faults); err != nil {
			return err
		}
		return errSaid
	}
	fmt.Fprintln(a.err, faults.Error())
	return errSaid
}
