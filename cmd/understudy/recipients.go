package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy/internal/admin"
)

func (a *app) recipientsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "recipients",
		Short: "Ask who would be taken, and where we know that from",
	}
	cmd.AddCommand(a.lookupCmd(), a.sourcesCmd(), a.sourceCmd("refresh", "Read a source of recipients now"),
		a.sourceCmd("confirm", "Confirm that a source has lost recipients, so that the shorter list is used"))
	return cmd
}

func (a *app) lookupCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "lookup ADDRESS",
		Short: "Show whether mail for an address would be taken now, and each source's own word",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			answer, err := c.Recipient(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(answer)
			}
			return a.printAnswer(answer)
		},
	}
}

func (a *app) printAnswer(answer admin.Answer) error {
	fmt.Fprintf(a.out, "%s: %s, because of %s\n", answer.Addr, answer.Verdict, answer.Source)
	if answer.Reply != nil {
		fmt.Fprintf(a.out, "  the sender is told %s\n", answer.Reply)
	}
	for _, s := range answer.Says {
		if _, err := fmt.Fprintf(a.out, "  %s: %s\n", s.Source, s.Says); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) sourcesCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "sources",
		Short: "Show where the recipients come from and how old that is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			all, err := c.Sources(cmd.Context())
			if err != nil {
				return err
			}
			return a.printSources(all)
		},
	}
}

func (a *app) printSources(all admin.Sources) error {
	if a.json {
		return a.printJSON(all)
	}
	rows := [][]any{{"SOURCE", "KIND", "RECIPIENTS", "AGE", "DOMAINS", "TROUBLE"}}
	for _, s := range all.Sources {
		age := "never read"
		if s.Age >= 0 {
			age = span(s.Age.Round(time.Second))
		}
		trouble := s.Err
		for _, h := range s.Held {
			trouble += fmt.Sprintf(" [%s went from %d to %d: confirm it]", h.Domain, h.Had, h.Has)
		}
		rows = append(rows, []any{s.Name, s.Kind, s.Recipients, age, strings.Join(s.Domains, " "), trouble})
	}
	return a.table(rows)
}

// sourceCmd is refresh or confirm.
func (a *app) sourceCmd(op, short string) *cobra.Command {
	var req admin.SourceRequest
	cmd := &cobra.Command{
		Use:   op + " SOURCE",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			req.Name = args[0]
			all, err := c.OperateSource(cmd.Context(), op, req)
			if err != nil {
				return err
			}
			return a.printSources(all)
		},
	}
	if op == "confirm" {
		cmd.Flags().StringVarP(&req.Domain, "domain", "d", "", "only for this `DOMAIN`")
	}
	return cmd
}

func (a *app) resumeCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "resume [PRIMARY]",
		Short: "Go on with a drain that the breaker has stopped",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			primary := ""
			if len(args) == 1 {
				primary = args[0]
			}
			done, err := c.Resume(cmd.Context(), primary)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(done)
			}
			text := "resumed"
			if !done.Was {
				text = "no breaker was open"
			}
			_, err = fmt.Fprintln(a.out, text)
			return err
		},
	}
}
