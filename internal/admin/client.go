package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
)

// maxAnswer bounds what a client reads of one answer.
const maxAnswer = 64 << 20

// Client talks to a running daemon.
type Client struct {
	http  *http.Client
	base  string
	token string
	where string
}

// NewClient makes a client for a unix socket's path, or for the URL of a TCP listener ("http://127.0.0.1:8025"),
// which wants the token.
func NewClient(where, token string) *Client {
	if strings.HasPrefix(where, "http://") || strings.HasPrefix(where, "https://") {
		return &Client{http: &http.Client{}, base: strings.TrimSuffix(where, "/"), token: token, where: where}
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", where)
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial}}, base: "http://understudy", where: where}
}

// Status asks for the whole picture.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Queue asks for one page of messages.
func (c *Client) Queue(ctx context.Context, q QueueQuery) (Queue, error) {
	return call[Queue](ctx, c, http.MethodGet, "/v1/queue?"+q.values().Encode(), nil)
}

// Message asks for one message's deliveries.
func (c *Client) Message(ctx context.Context, id string) (Queue, error) {
	return call[Queue](ctx, c, http.MethodGet, "/v1/queue/"+url.PathEscape(id), nil)
}

// Flush asks for tries now.
func (c *Client) Flush(ctx context.Context, r FlushRequest) (Flushed, error) {
	return call[Flushed](ctx, c, http.MethodPost, "/v1/flush", r)
}

// Reload asks the daemon to read its configuration and lists again.
func (c *Client) Reload(ctx context.Context) (Reloaded, error) {
	return call[Reloaded](ctx, c, http.MethodPost, "/v1/reload", struct{}{})
}

func (q QueueQuery) values() url.Values {
	v := url.Values{}
	for key, val := range map[string]string{"domain": q.Domain, "from": q.From, "rcpt": q.Rcpt, "after": q.After} {
		if val != "" {
			v.Set(key, val)
		}
	}
	if q.Held != nil {
		v.Set("held", strconv.FormatBool(*q.Held))
	}
	if q.Limit != 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	return v
}

// call does one request and reads its JSON answer; an answer that is not 2xx becomes an error with the daemon's words.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var out T
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return out, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, r)
	if err != nil {
		return out, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return out, c.explain(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return out, fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return out, refused(path, resp, b)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return out, fmt.Errorf("read the answer: %w", err)
	}
	return out, nil
}

// ErrNotFound says that the daemon knows no such message or domain.
var ErrNotFound = errors.New("not found")

// notFound is an ErrNotFound whose text says all.
type notFound string

func (e notFound) Error() string        { return string(e) }
func (e notFound) Is(target error) bool { return target == ErrNotFound }

func refused(path string, resp *http.Response, body []byte) error {
	var e apiError
	if json.Unmarshal(body, &e) != nil || e.Error == "" {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	if resp.StatusCode == http.StatusNotFound {
		return notFound(e.Error)
	}
	return errors.New(e.Error)
}

// explain turns the two errors that everybody meets first into what to do about them.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no understudy answers at %s; is it running with this configuration? (--config, --admin)", c.where)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("no permission to open %s; run as the service's user or root", c.where)
	}
	return err
}
