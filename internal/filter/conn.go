package filter

import (
	"context"
	"net"
	"time"
)

// conn is a connection to a filter that ends with its context: by the deadline, or at once when that is cancelled.
type conn struct {
	net.Conn
	stop func() bool
}

func dial(ctx context.Context, address string) (*conn, error) {
	var d net.Dialer
	network, at := endpoint(address)
	c, err := d.DialContext(ctx, network, at)
	if err != nil {
		return nil, err
	}
	if t, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(t) // fails only where c is closed, and then so does all else
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	return &conn{Conn: c, stop: stop}, nil
}

func (c *conn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// closeWrite tells the other side that no more comes.
func (c *conn) closeWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok { // TCP and unix sockets
		return h.CloseWrite()
	}
	return nil
}

// dialer ignores the address that it is given.
func dialer(network, at string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, at)
	}
}
