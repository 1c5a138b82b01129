package smtpc

import (
	"context"
	"errors"
	"os"
	"time"
)

// Wait watches a session that nobody uses. It returns nil when ctx is done: the session can be used then. Any other return is
// an *Error: the primary hung up, or spoke (421, when it had enough), which has ended the session.
func (c *Conn) Wait(ctx context.Context) error {
	c.nc.SetReadDeadline(time.Time{})
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.nc.SetReadDeadline(time.Unix(1, 0))
		close(woken)
	})
	_, err := c.r.Peek(1)
	if !stop() {
		<-woken // the next user's time limit must not be overwritten
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
	}
	if err != nil {
		return c.broken(context.Background(), StepNone, err)
	}
	c.nc.SetReadDeadline(time.Now().Add(lastWords))
	_, err = c.unasked(StepNone)
	return err
}

// Closed reports that the session has ended.
func (c *Conn) Closed() bool { return c.closed() }
