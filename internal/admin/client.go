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

	"understudy/healthprobe"
	"understudy/internal/mta"
	"understudy/spool"
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

// Operate holds, releases, retries, drops or redirects messages.
func (c *Client) Operate(ctx context.Context, op string, o Operation) (Operated, error) {
	return call[Operated](ctx, c, http.MethodPost, "/v1/queue/"+url.PathEscape(op), o)
}

// Primaries asks for all that is known of the primaries.
func (c *Client) Primaries(ctx context.Context) (Primaries, error) {
	return call[Primaries](ctx, c, http.MethodGet, "/v1/primaries", nil)
}

// Probe has a domain's primaries probed now; "" is all.
func (c *Client) Probe(ctx context.Context, domain string) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/v1/probe", FlushRequest{Domain: domain})
	return err
}

// Resume closes the breaker of a primary; "" is all.
func (c *Client) Resume(ctx context.Context, primary string) (Resumed, error) {
	return call[Resumed](ctx, c, http.MethodPost, "/v1/resume", ResumeRequest{Primary: primary})
}

// Recipient asks whether mail for an address would be taken now, and who says so.
func (c *Client) Recipient(ctx context.Context, address string) (Answer, error) {
	return call[Answer](ctx, c, http.MethodGet, "/v1/recipients/"+url.PathEscape(address), nil)
}

// Sources asks how the sources of recipients are.
func (c *Client) Sources(ctx context.Context) (Sources, error) {
	return call[Sources](ctx, c, http.MethodGet, "/v1/sources", nil)
}

// OperateSource has a source read now ("refresh"), or its loss of recipients confirmed ("confirm").
func (c *Client) OperateSource(ctx context.Context, op string, r SourceRequest) (Sources, error) {
	return call[Sources](ctx, c, http.MethodPost, "/v1/sources/"+url.PathEscape(op), r)
}

// Override orders a maintenance or holds a drain.
func (c *Client) Override(ctx context.Context, o healthprobe.Override) (Overrides, error) {
	return call[Overrides](ctx, c, http.MethodPost, "/v1/overrides", o)
}

// EndOverride takes back what was ordered.
func (c *Client) EndOverride(ctx context.Context, kind healthprobe.OverrideKind, subject string) (Overrides, error) {
	v := url.Values{"kind": {string(kind)}, "subject": {subject}}
	return call[Overrides](ctx, c, http.MethodDelete, "/v1/overrides?"+v.Encode(), nil)
}

// Outages asks for the history of the last days; 0 is the newest ones.
func (c *Client) Outages(ctx context.Context, domain string, days int) (Outages, error) {
	v := url.Values{}
	if domain != "" {
		v.Set("domain", domain)
	}
	if days > 0 {
		v.Set("days", strconv.Itoa(days))
	}
	return call[Outages](ctx, c, http.MethodGet, "/v1/outages?"+v.Encode(), nil)
}

// Alarms asks for the alarms that are on.
func (c *Client) Alarms(ctx context.Context) (Alarms, error) {
	return call[Alarms](ctx, c, http.MethodGet, "/v1/alarms", nil)
}

// Usage asks how full the spool is.
func (c *Client) Usage(ctx context.Context) (spool.Usage, error) {
	return call[spool.Usage](ctx, c, http.MethodGet, "/v1/spool", nil)
}

// Content writes a message's content to w. After an error what was written is not whole.
func (c *Client) Content(ctx context.Context, id mta.ID, w io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/queue/"+id.String()+"/content", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}

// Backup writes all messages to w as a tar file. After an error what was written is not whole.
func (c *Client) Backup(ctx context.Context, w io.Writer) (spool.Transfer, error) {
	var t spool.Transfer
	resp, err := c.do(ctx, http.MethodGet, "/v1/spool/backup", nil)
	if err != nil {
		return t, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return t, err
	}
	if err := json.Unmarshal([]byte(resp.Trailer.Get(transferTrailer)), &t); err != nil {
		return t, fmt.Errorf("the backup did not end: %w", err)
	}
	return t, nil
}

// Verify has all that is stored read; progress is told how far it is.
func (c *Client) Verify(ctx context.Context, progress func(Progress)) (spool.Verification, error) {
	return long[spool.Verification](ctx, c, "/v1/spool/verify", nil, progress)
}

// Restore has a backup taken in.
func (c *Client) Restore(ctx context.Context, r io.Reader, progress func(Progress)) (spool.Transfer, error) {
	return long[spool.Transfer](ctx, c, "/v1/spool/restore", r, progress)
}

// long does a request whose answer comes in lines: progress, at last the result.
func long[T any](ctx context.Context, c *Client, path string, body io.Reader, progress func(Progress)) (T, error) {
	var none T
	resp, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return none, err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var line struct {
			Progress
			Result *T     `json:"result"`
			Error  string `json:"error"`
		}
		if err := dec.Decode(&line); err != nil {
			return none, fmt.Errorf("read the answer: %w", err)
		}
		switch {
		case line.Error != "":
			return none, errors.New(line.Error)
		case line.Result != nil:
			return *line.Result, nil
		}
		progress(line.Progress)
	}
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

// call does one request and reads its JSON answer.
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
	resp, err := c.do(ctx, method, path, r)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&out); err != nil {
		return out, fmt.Errorf("read the answer: %w", err)
	}
	return out, nil
}

// do sends a request; an answer that is not 2xx becomes an error with the daemon's words.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return nil, refused(path, resp, b)
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
