package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy/internal/admin"
)

func (a *app) statusCmd() *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether we are ready, what the primaries do, and what waits",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			st, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(st)
			} else {
				err = a.printStatus(st)
			}
			if err == nil && check && !st.Ready {
				return errSaid
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "exit with 1 unless we are ready to take mail")
	return cmd
}

func (a *app) printStatus(st admin.Status) error {
	ready := "ready"
	if !st.Ready {
		ready = "NOT READY: " + st.Reason
	}
	fmt.Fprintf(a.out, "%s  understudy %s  up %s  %s\n\n", st.Hostname, st.Version, ago(st.Started), ready)
	for _, e := range st.Alarms {
		fmt.Fprintf(a.out, "ALARM  %s\n", e.Text)
	}
	for _, o := range st.Overrides {
		fmt.Fprintf(a.out, "%s\n", orderText(o))
	}
	if len(st.Alarms)+len(st.Overrides) > 0 {
		fmt.Fprintln(a.out)
	}
	rows := [][]any{{"PRIMARY", "STATE", "FOR", "DOMAINS", "SESSIONS", "PROBED", "REMARKS"}}
	for _, p := range st.Primaries {
		probed := "-"
		if !p.Probed.IsZero() {
			probed = ago(p.Probed) + " ago"
		}
		rows = append(rows, []any{p.Primary, p.State, ago(p.Since), p.Domains, p.Sessions, probed, remarks(p)})
	}
	if err := a.table(rows); err != nil {
		return err
	}
	if len(st.Helpers) > 0 {
		fmt.Fprintln(a.out)
		rows = [][]any{{"ASKED", "KIND", "STATE", "FOR", "REMARKS"}}
		for _, h := range st.Helpers {
			rows = append(rows, []any{h.Name, h.Kind, h.State, ago(h.Since), h.Why})
		}
		if err := a.table(rows); err != nil {
			return err
		}
	}
	fmt.Fprintln(a.out)
	rows = [][]any{{"DOMAIN", "WAITING", "HELD", "SIZE", "OLDEST"}}
	for _, d := range st.Domains {
		name := d.Domain
		if !d.Configured {
			name += " (not configured)"
		}
		rows = append(rows, []any{name, d.Messages, d.Held, octets(d.Bytes), ago(d.Oldest)})
	}
	return a.table(rows)
}

// remarks is what else there is to say of a primary.
func remarks(p admin.PrimaryStatus) string {
	var list []string
	add := func(on bool, text string) {
		if on {
			list = append(list, text)
		}
	}
	add(p.Cause != "", p.Cause)
	add(p.Flapping, "flapping")
	add(!p.Breaker.IsZero(), "the breaker is open: understudy resume goes on")
	add(!p.PausedUntil.IsZero(), "left alone for "+span(time.Until(p.PausedUntil))+" after trouble")
	add(!p.Greylists.IsZero(), "greylists us")
	add(p.Inline+p.Warm > 0, fmt.Sprintf("inline: %d transactions, %d sessions ready", p.Inline, p.Warm))
	return strings.Join(list, "; ")
}
