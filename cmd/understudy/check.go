package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy/internal/config"
	"understudy/internal/daemon"
)

func (a *app) checkCmd() *cobra.Command {
	var live bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Find every mistake in the configuration and the lists before it costs mail",
		Long: "Read the configuration and every list that it names, and report all faults at once, one a line, with file,\n" +
			"line and column. The exit code is 1 if there is any.\n\n" +
			"With --live the DNS is asked about each domain, and each primary is tried as a delivery would begin: is it there, does\n" +
			"it speak TLS, does it trust us to tell who the sender was, what does it take. Run it on the host that will deliver.",
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
			if live {
				return a.checkLive(cmd.Context(), cfg, timeout)
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
	cmd.Flags().BoolVar(&live, "live", false, "look at the DNS and the primaries, too")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "the longest that one primary may take")
	return cmd
}

// checkLive prints what the domains and their primaries showed; a fault makes the exit code 1.
func (a *app) checkLive(ctx context.Context, cfg *config.Config, timeout time.Duration) error {
	report, err := daemon.CheckLive(ctx, cfg, timeout)
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(report)
	} else {
		err = a.printLive(report)
	}
	if err == nil && report.Faulty() {
		return errSaid
	}
	return err
}

func (a *app) printLive(report *daemon.Live) error {
	rows := [][]any{{"DOMAIN", "PRIMARY", "TLS", "CLIENT", "SIZE", "OFFERS", "POSTMASTER"}}
	for _, d := range report.Domains {
		for _, p := range d.Primaries {
			size := "-"
			if p.Size > 0 {
				size = octets(p.Size)
			}
			rows = append(rows, []any{d.Domain, p.Primary, dash(p.TLS), dash(p.Client), size, dash(strings.Join(p.Offers, ",")), dash(p.Postmaster)})
		}
	}
	if err := a.table(rows); err != nil {
		return err
	}
	say := func(what, of string, list []string) {
		for _, text := range list {
			fmt.Fprintf(a.out, "%s  %s: %s\n", what, of, text)
		}
	}
	for _, d := range report.Domains {
		say("FAULT", d.Domain, d.Faults)
		say("note", d.Domain, d.Notes)
		for _, p := range d.Primaries {
			say("FAULT", d.Domain+" "+p.Primary, p.Faults)
			say("note", d.Domain+" "+p.Primary, p.Notes)
		}
	}
	if !report.Faulty() {
		fmt.Fprintf(a.out, "ok: %d domains\n", len(report.Domains))
	}
	return nil
}

// dash stands for what is not known.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
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
