package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy/internal/admin"
)

func (a *app) probeCmd() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "probe [DOMAIN]",
		Short: "Probe the primaries now and show what each step of a delivery met",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			domain := ""
			if len(args) == 1 {
				domain = args[0]
			}
			asked := time.Now()
			if err := c.Probe(cmd.Context(), domain); err != nil {
				return err
			}
			for {
				all, err := c.Primaries(cmd.Context())
				if err != nil {
					return err
				}
				if probedSince(all.Primaries, asked) || time.Since(asked) > wait {
					if a.json {
						return a.printJSON(all)
					}
					return a.printProbes(all.Primaries)
				}
				if err := pause(cmd.Context(), 20*time.Millisecond); err != nil {
					return err
				}
			}
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 20*time.Second, "the longest to wait for the probes")
	return cmd
}

// probedSince reports whether every primary was probed after t.
func probedSince(all []admin.Probed, t time.Time) bool {
	for _, p := range all {
		if p.Last == nil || p.Last.At.Before(t) {
			return false
		}
	}
	return true
}

func (a *app) printProbes(all []admin.Probed) error {
	for _, p := range all {
		fmt.Fprintf(a.out, "%s is %s for %s\n", p.Primary, p.State, ago(p.Since))
		if p.Last == nil {
			continue
		}
		var rows [][]any
		for _, f := range p.Last.Facts {
			said := f.Err
			if f.Reply.Code != 0 {
				said = f.Reply.String()
			}
			rows = append(rows, []any{"  " + f.Step, f.Took.Round(time.Microsecond), said})
		}
		if err := a.table(rows); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) maintenanceCmd() *cobra.Command {
	var length time.Duration
	var why string
	var end bool
	cmd := &cobra.Command{
		Use:   "maintenance PRIMARY",
		Short: "Treat a primary as down for a time, or end that",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := admin.Override{Kind: admin.Maintenance, Subject: args[0], Why: why, Until: time.Now().Add(length)}
			return a.override(cmd.Context(), o, end)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&length, "for", time.Hour, "for so long")
	f.StringVar(&why, "why", "", "what to tell the others")
	f.BoolVar(&end, "end", false, "end it now")
	return cmd
}

func (a *app) holdDrainCmd() *cobra.Command {
	var length time.Duration
	var why string
	var end bool
	cmd := &cobra.Command{
		Use:   "hold-drain DOMAIN",
		Short: "Keep what is spooled for a domain although its primary is up, or end that",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := admin.Override{Kind: admin.Hold, Subject: args[0], Why: why}
			if length > 0 {
				o.Until = time.Now().Add(length)
			}
			return a.override(cmd.Context(), o, end)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&length, "for", 0, "for so long (default: until it is ended)")
	f.StringVar(&why, "why", "", "what to tell the others")
	f.BoolVar(&end, "end", false, "end it now")
	return cmd
}

func (a *app) outagesCmd() *cobra.Command {
	var domain string
	var days int
	cmd := &cobra.Command{
		Use:   "outages",
		Short: "Show the history of outages, the newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			all, err := c.Outages(cmd.Context(), domain, days)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(all)
			}
			rows := [][]any{{"PRIMARY", "BEGAN", "LASTED", "MESSAGES", "FIRST DELIVERY", "DRAINED", "CAUSE"}}
			for _, o := range all.Outages {
				lasted := "goes on"
				if !o.End.IsZero() {
					lasted = span(o.End.Sub(o.Begin))
				}
				rows = append(rows, []any{o.Primary, o.Begin.Local().Format(time.DateTime), lasted, o.Taken, after(o.End, o.First), after(o.End, o.Drained), o.Cause()})
			}
			return a.table(rows)
		},
	}
	cmd.Flags().StringVarP(&domain, "domain", "d", "", "only of this `DOMAIN`'s primaries")
	cmd.Flags().IntVar(&days, "days", 0, "of the last `N` days (default: the newest hundred)")
	return cmd
}

// after is how long after the end of an outage something happened.
func after(end, t time.Time) string {
	if end.IsZero() || t.IsZero() {
		return "-"
	}
	return max(0, t.Sub(end)).Round(time.Millisecond).String()
}

func (a *app) alarmsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "alarms",
		Short: "Show the alarms that are on",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			all, err := c.Alarms(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(all)
			}
			for _, e := range all.Alarms {
				fmt.Fprintf(a.out, "%s  %s\n", e.At.Local().Format(time.DateTime), e.Text)
			}
			return nil
		},
	}
}

// override orders o, or ends it.
func (a *app) override(ctx context.Context, o admin.Override, end bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var all admin.Overrides
	if end {
		all, err = c.EndOverride(ctx, o.Kind, o.Subject)
	} else {
		all, err = c.Override(ctx, o)
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(all)
	}
	for _, o := range all.Overrides {
		fmt.Fprintln(a.out, orderText(o))
	}
	return nil
}

// orderText is what an operator ordered, on one line.
func orderText(o admin.Override) string {
	until := "until it is ended"
	if !o.Until.IsZero() {
		until = "until " + o.Until.Local().Format(time.DateTime)
	}
	return strings.TrimSpace(fmt.Sprintf("%s of %s %s  %s", o.Kind, o.Subject, until, o.Why))
}
