package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"understudy/internal/admin"
)

func (a *app) queueCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "Look at the messages that wait, and move them",
	}
	cmd.AddCommand(a.queueListCmd(), a.queueShowCmd(), a.exportCmd(),
		a.operateCmd("hold", "Keep messages until they are released", "Keep messages, by ID or by a filter, until they are released. A delivery in progress ends as it ends.", false),
		a.operateCmd("release", "Give held messages back to the queue", "Give held messages, quarantined ones too, back to the queue: they are tried again now.", false),
		a.operateCmd("retry", "Try messages now instead of when they are due", "Make messages due now. Unlike flush this does not probe the primaries.", false),
		a.operateCmd("drop", "Delete messages; nobody is told", "Delete messages, by ID or by a filter. Nobody is told, and it can't be undone.", true),
		a.operateCmd("redirect", "Give messages to another address", "Give messages to another address, such as a rescue mailbox: each is spooled for that address and dropped here.", true))
	return cmd
}

func (a *app) queueListCmd() *cobra.Command {
	var q admin.QueueQuery
	var held bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List messages, oldest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("held") {
				q.Held = &held
			}
			page, err := c.Queue(cmd.Context(), q)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(page)
			}
			return a.printQueue(page)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&q.Domain, "domain", "d", "", "only mail for this `DOMAIN`")
	f.StringVar(&q.From, "from", "", "only senders that contain this `TEXT`")
	f.StringVar(&q.Rcpt, "rcpt", "", "only recipients that contain this `TEXT`")
	f.BoolVar(&held, "held", false, "only held messages (--held=false: only others)")
	f.StringVar(&q.After, "after", "", "go on after this `CURSOR` of the last page")
	f.IntVarP(&q.Limit, "limit", "n", 100, "at most this many")
	return cmd
}

func (a *app) printQueue(page admin.Queue) error {
	rows := [][]any{{"ID", "STATE", "AGE", "SIZE", "TRIES", "FROM", "TO"}}
	for _, m := range page.Messages {
		to := fmt.Sprintf("%d recipients at %s", len(m.Rcpts), m.Domain)
		if len(m.Rcpts) == 1 {
			to = m.Rcpts[0].Addr.String()
		}
		rows = append(rows, []any{m.ID, m.State, ago(m.Received), octets(m.Size), m.Attempts, sender(m.From), to})
	}
	if err := a.table(rows); err != nil {
		return err
	}
	if page.Next != "" {
		fmt.Fprintf(a.out, "\nmore: --after %s\n", page.Next)
	}
	return nil
}

func (a *app) queueShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show one message: who sent it, each recipient, the last replies",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			page, err := c.Message(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(page)
			}
			for _, m := range page.Messages {
				a.printMessage(m)
			}
			return nil
		},
	}
}

func (a *app) printMessage(m admin.Message) {
	line := func(key string, val any) { fmt.Fprintf(a.out, "%-9s %v\n", key, val) }
	line("id", m.ID)
	line("domain", m.Domain)
	line("state", m.State)
	line("from", sender(m.From))
	line("client", fmt.Sprintf("%s (HELO %q, %s)", m.Client, m.Helo, m.Proto))
	line("size", octets(m.Size))
	line("received", m.Received.Format(time.RFC3339))
	if !m.Due.IsZero() {
		line("due", m.Due.Format(time.RFC3339))
	}
	if !m.Expires.IsZero() {
		line("expires", m.Expires.Format(time.RFC3339))
	}
	line("tries", m.Attempts)
	for _, r := range m.Rcpts {
		line("to", fmt.Sprintf("%s  %s", r.Addr, r.Outcome))
		if r.Reply != "" {
			line("", fmt.Sprintf("  %s said at %s: %s", r.Primary, r.At.Format(time.RFC3339), r.Reply))
		}
	}
}
