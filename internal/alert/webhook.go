package alert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"text/template"
	"time"

	"understudy/internal/mta"
)

// webhook tells one receiver.
type webhook struct {
	cfg      Webhook
	name     string // its host: the rest of a URL may be secret
	by       sender
	timeout  time.Duration
	template *template.Template // nil: a format
	headers  map[string]*template.Template
	client   *http.Client
	log      *slog.Logger
	metrics  *metrics
	wake     chan struct{}

	mu  sync.Mutex
	box *box
}

func newWebhook(c *Config, w Webhook, a *Alerter) (*webhook, error) {
	u, err := url.Parse(w.URL)
	if err != nil {
		return nil, err
	}
	h := &webhook{
		cfg: w, name: u.Host, by: sender{a.host, hold(c.Repeat)}, timeout: c.Timeout, client: a.client, log: a.log, metrics: a.metrics,
		headers: make(map[string]*template.Template), wake: make(chan struct{}, 1), box: newBox(c),
	}
	if w.Template != "" {
		if h.template, err = parse(w.Template); err != nil {
			return nil, err
		}
	}
	for name, text := range w.Headers {
		if h.headers[name], err = parse(text); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// hold is twice the time until an alarm is said again; of one that never is, a year.
func hold(repeat time.Duration) time.Duration {
	if repeat == 0 {
		return 365 * 24 * time.Hour
	}
	return 2*repeat + time.Hour
}

func (h *webhook) wants(e mta.Event) bool {
	if h.cfg.AlarmsOnly && e.Level == mta.Notice {
		return false
	}
	return len(h.cfg.Kinds) == 0 || slices.Contains(h.cfg.Kinds, e.Kind)
}

func (h *webhook) put(e mta.Event) {
	if !h.wants(e) {
		return
	}
	h.mu.Lock()
	h.box.put(e, time.Now())
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// run sends what is due until ctx is done.
func (h *webhook) run(ctx context.Context) {
	const gather = 100 * time.Millisecond // what comes together is sent together
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
			select {
			case <-ctx.Done():
				return
			case <-time.After(gather):
			}
		case <-timer.C:
		}
		for _, m := range h.take() {
			h.settle(ctx, m, h.send(ctx, m))
		}
		timer.Reset(h.sleep())
	}
}

func (h *webhook) take() []batch {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	h.box.tidy(now)
	return h.box.take(now)
}

func (h *webhook) sleep() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, ok := h.box.next()
	if !ok {
		return time.Hour
	}
	return max(time.Until(at), 10*time.Millisecond)
}

// settle notes what became of a message.
func (h *webhook) settle(ctx context.Context, m batch, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.metrics.sent.WithLabelValues(h.name, "sent").Inc()
		h.box.sent(m, time.Now())
		return
	}
	if ctx.Err() != nil {
		return
	}
	h.metrics.sent.WithLabelValues(h.name, "failed").Inc()
	lost := h.box.lost
	h.box.failed(m, time.Now())
	h.metrics.lost.Add(float64(h.box.lost - lost))
	h.log.LogAttrs(ctx, slog.LevelError, "webhook failed", slog.String("webhook", h.name),
		slog.Int("events", len(m.events)), slog.Int("lost", h.box.lost-lost), slog.Any("err", err))
}

// send posts one message. Only 2xx is taken for a success.
func (h *webhook) send(ctx context.Context, m batch) error {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	req, err := h.request(ctx, m)
	if err != nil {
		return fmt.Errorf("alert: %w", err)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok { // it would tell the URL, and with it a secret
			err = ue.Err
		}
		return fmt.Errorf("alert: post: %w", err)
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("alert: post: %s: %s", resp.Status, oneLine(string(said)))
	}
	return nil
}

func (h *webhook) request(ctx context.Context, m batch) (*http.Request, error) {
	v := view{m.summary(), h.by.host}
	msg, err := h.message(m, v)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.cfg.URL, bytes.NewReader(msg.body))
	if err != nil {
		return nil, errors.New("the URL is not valid")
	}
	req.Header.Set("Content-Type", msg.contentType)
	req.Header.Set("User-Agent", "understudy")
	for name, value := range msg.headers {
		req.Header.Set(name, value)
	}
	for name, t := range h.headers {
		value, err := fill(t, v)
		if err != nil {
			return nil, fmt.Errorf("header %s: %w", name, err)
		}
		req.Header.Set(name, oneLine(value))
	}
	if h.cfg.TokenFile != "" {
		token, err := os.ReadFile(h.cfg.TokenFile) // each time: tokens are changed
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	return req, nil
}

func (h *webhook) message(m batch, v view) (message, error) {
	if h.template == nil {
		return formats[h.cfg.Format](m, h.by)
	}
	body, err := fill(h.template, v)
	msg := message{body: []byte(body), contentType: h.cfg.ContentType}
	if msg.contentType == "" {
		msg.contentType = "application/json"
	}
	return msg, err
}
