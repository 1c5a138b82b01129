package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy/internal/admin"
)

// watchEvery is how often a waiting flush looks at the queue.
const watchEvery = 250 * time.Millisecond

func (a *app) flushCmd() *cobra.Command {
	var req admin.FlushRequest
	var wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "flush",
		Short: "Try now what waits, due or not",
		Long: "Try now what waits, due or not: everything, one domain or one message. The primaries are probed at once;\n" +
			"mail for one that is down goes the moment that it is up. Held messages stay held.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			done, err := c.Flush(cmd.Context(), req)
			if err != nil {
				return err
			}
			if a.json && !wait {
				return a.printJSON(done)
			}
			if !a.json {
				a.printFlushed(done)
			}
			if !wait {
				return nil
			}
			return a.waitFlushed(cmd.Context(), c, req, timeout)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&req.Domain, "domain", "d", "", "only mail for this `DOMAIN`")
	f.StringVar(&req.ID, "id", "", "only the message with this queue `ID`")
	f.BoolVarP(&wait, "wait", "w", false, "wait until it is delivered, with a progress line")
	f.DurationVar(&timeout, "timeout", 0, "with --wait: give up after this `TIME` (default: never)")
	return cmd
}

func (a *app) printFlushed(done admin.Flushed) {
	fmt.Fprintf(a.out, "%d messages to try\n", done.Messages)
	if done.Held > 0 {
		fmt.Fprintf(a.out, "%d held messages stay\n", done.Held)
	}
	if len(done.Closed) > 0 {
		fmt.Fprintf(a.out, "waiting for %s, which is not up\n", strings.Join(done.Closed, ", "))
	}
}

// flushResult is what a waiting flush prints for programs.
type flushResult struct {
	Delivered int64 `json:"left_queue"`
	Waiting   int64 `json:"waiting"`
}

// waitFlushed watches the queue until nothing of what was flushed waits any more.
func (a *app) waitFlushed(ctx context.Context, c *admin.Client, req admin.FlushRequest, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	begun, start := time.Now(), int64(-1)
	for {
		waiting, err := countWaiting(ctx, c, req)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			if start < 0 {
				start = waiting
			}
			if !a.json {
				fmt.Fprintf(a.out, "\r%d of %d gone, %d waiting, %s ", max(0, start-waiting), start, waiting, span(time.Since(begun)))
			}
			if waiting == 0 {
				return a.endFlush(flushResult{Delivered: start})
			}
		}
		select {
		case <-ctx.Done():
			if err := a.endFlush(flushResult{Delivered: max(0, start-waiting), Waiting: waiting}); err != nil {
				return err
			}
			return fmt.Errorf("%d messages still wait", waiting)
		case <-time.After(watchEvery):
		}
	}
}

func (a *app) endFlush(r flushResult) error {
	if a.json {
		return a.printJSON(r)
	}
	_, err := fmt.Fprintln(a.out)
	return err
}

// countWaiting counts what a flush request still waits for.
func countWaiting(ctx context.Context, c *admin.Client, req admin.FlushRequest) (int64, error) {
	if req.ID != "" {
		page, err := c.Message(ctx, req.ID)
		if errors.Is(err, admin.ErrNotFound) {
			return 0, nil
		}
		var n int64
		for _, m := range page.Messages {
			if m.State != "held" {
				n++
			}
		}
		return n, err
	}
	st, err := c.Status(ctx)
	var n int64
	for _, d := range st.Domains {
		if req.Domain == "" || strings.EqualFold(d.Domain, req.Domain) {
			n += d.Messages
		}
	}
	return n, err
}

func (a *app) reloadCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Make the daemon read its configuration and lists again",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			done, err := c.Reload(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(done)
			}
			fmt.Fprintln(a.out, "reloaded")
			for _, key := range done.NeedRestart {
				fmt.Fprintf(a.out, "%s changed: it takes effect at the next restart\n", key)
			}
			for _, domain := range done.Strays {
				fmt.Fprintf(a.out, "%s is not configured any more and has mail here: it goes where the DNS says\n", domain)
			}
			return nil
		},
	}
}
