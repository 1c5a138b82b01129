package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"understudy/internal/admin"
	"understudy/internal/mta"
)

// selection is which messages an operator means, as flags.
type selection struct {
	op   admin.Operation
	held bool
	to   string
}

func (s *selection) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&s.op.Domain, "domain", "d", "", "mail for this `DOMAIN`")
	f.StringVar(&s.op.From, "from", "", "senders that contain this `TEXT`")
	f.StringVar(&s.op.Rcpt, "rcpt", "", "recipients that contain this `TEXT`")
	f.BoolVar(&s.held, "held", false, "held messages (--held=false: others)")
	f.DurationVar(&s.op.OlderThan, "older-than", 0, "messages that came more than this `TIME` ago")
	f.BoolVar(&s.op.All, "all", false, "everything in the queue")
}

// operation is what the flags and arguments say.
func (s *selection) operation(cmd *cobra.Command, ids []string) (admin.Operation, error) {
	o := s.op
	if cmd.Flags().Changed("held") {
		o.Held = &s.held
	}
	for _, text := range ids {
		id, err := mta.ParseID(text)
		if err != nil {
			return o, err
		}
		o.IDs = append(o.IDs, id)
	}
	if len(o.IDs) == 0 && !o.All && o.Domain == "" && o.From == "" && o.Rcpt == "" && o.Held == nil && o.OlderThan == 0 {
		return o, errors.New("name the messages, by ID or by a filter, or say --all")
	}
	if s.to != "" {
		to, err := mta.ParsePath(s.to)
		if err != nil {
			return o, err
		}
		o.To = to
	}
	return o, nil
}

// operateCmd is one of hold, release, retry, drop and redirect.
func (a *app) operateCmd(op, short, long string, ask bool) *cobra.Command {
	var sel selection
	var yes bool
	cmd := &cobra.Command{
		Use:   op + " [ID…]",
		Short: short,
		Long:  long,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := sel.operation(cmd, args)
			if err != nil {
				return err
			}
			if ask && !yes && !a.confirm(cmd.InOrStdin(), op) {
				return errors.New("not done; --yes says it without being asked")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			done, err := c.Operate(cmd.Context(), op, o)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(done)
			}
			_, err = fmt.Fprintf(a.out, "%s: %d\n", op, done.Messages)
			return err
		},
	}
	sel.flags(cmd)
	if ask {
		cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do it without asking")
	}
	if op == "redirect" {
		cmd.Flags().StringVar(&sel.to, "to", "", "the new `ADDRESS`")
		cmd.MarkFlagRequired("to")
	}
	return cmd
}

// confirm asks at a terminal; anywhere else the answer is no.
func (a *app) confirm(in io.Reader, op string) bool {
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return false
	}
	fmt.Fprintf(a.err, "really %s? It can't be undone. [y/N] ", op)
	answer, _ := bufio.NewReader(f).ReadString('\n')
	return strings.EqualFold(strings.TrimSpace(answer), "y")
}

func (a *app) exportCmd() *cobra.Command {
	var sel selection
	cmd := &cobra.Command{
		Use:   "export [ID]",
		Short: "Write messages out: one as it is, several as an mbox",
		Long: "Write one message to standard output as it would go to the primary (an .eml file), or, with a filter, all that\n" +
			"match as an mbox. The queue is not changed.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := sel.operation(cmd, args)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if len(o.IDs) == 1 {
				return c.Content(cmd.Context(), o.IDs[0], a.out)
			}
			return a.exportMbox(cmd.Context(), c, o)
		},
	}
	sel.flags(cmd)
	return cmd
}

// exportMbox writes an mbox in the mboxrd format.
func (a *app) exportMbox(ctx context.Context, c *admin.Client, o admin.Operation) error {
	q := admin.QueueQuery{Domain: o.Domain, From: o.From, Rcpt: o.Rcpt, Held: o.Held, Limit: 1000}
	seen := mta.ID{}
	for {
		page, err := c.Queue(ctx, q)
		if err != nil {
			return err
		}
		for _, m := range page.Messages {
			if m.ID == seen || o.OlderThan > 0 && time.Since(m.Received) < o.OlderThan { // several deliveries, one content
				continue
			}
			seen = m.ID
			var b bytes.Buffer
			if err := c.Content(ctx, m.ID, &b); err != nil {
				return fmt.Errorf("message %s: %w", m.ID, err)
			}
			from := m.From.String()
			if m.From.IsNull() {
				from = "MAILER-DAEMON"
			}
			if err := writeMbox(a.out, strings.ReplaceAll(from, " ", "_"), m.Received, b.Bytes()); err != nil {
				return err
			}
		}
		if page.Next == "" {
			return nil
		}
		q.After = page.Next
	}
}

// writeMbox writes one message: lines that begin with From, or with > before it, get one > more.
func writeMbox(w io.Writer, from string, at time.Time, content []byte) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "From %s %s\n", from, at.UTC().Format(time.ANSIC))
	for line := range bytes.Lines(content) {
		line = bytes.TrimRight(line, "\r\n")
		if bytes.HasPrefix(bytes.TrimLeft(line, ">"), []byte("From ")) {
			out.WriteByte('>')
		}
		out.Write(line)
		out.WriteByte('\n')
	}
	out.WriteByte('\n')
	return out.Flush()
}
