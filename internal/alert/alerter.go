package alert

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"understudy/internal/mta"
)

// Alerter takes events and tells the webhooks of them.
type Alerter struct {
	host    string
	client  *http.Client
	log     *slog.Logger
	metrics *metrics

	mu     sync.Mutex
	hooks  []*webhook
	reload chan struct{} // closed when hooks are replaced
	active map[subject]mta.Event
}

type metrics struct {
	events *prometheus.CounterVec
	sent   *prometheus.CounterVec
	lost   prometheus.Counter
	active prometheus.GaugeFunc
}

// New makes an Alerter for the host of that name. Nothing is sent before Run. reg may be nil.
func New(cfg Config, host string, log *slog.Logger, reg prometheus.Registerer) (*Alerter, error) {
	a := &Alerter{
		host: host, client: &http.Client{CheckRedirect: noRedirect}, log: log,
		reload: make(chan struct{}), active: make(map[subject]mta.Event),
	}
	a.metrics = newMetrics(reg, a)
	hooks, err := a.build(cfg)
	if err != nil {
		return nil, err
	}
	a.hooks = hooks
	return a, nil
}

// noRedirect keeps a token where the operator sent it.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func newMetrics(reg prometheus.Registerer, a *Alerter) *metrics {
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_alert_events_total", Help: "Events that were reported, by kind and level.",
		}, []string{"kind", "level"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "understudy_alert_posts_total", Help: "Posts to webhooks, by the webhook's host and result.",
		}, []string{"webhook", "result"}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "understudy_alert_lost_total", Help: "Events that a webhook was never told of, because it did not answer for long.",
		}),
		active: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "understudy_alert_active", Help: "Alarms that are on.",
		}, func() float64 { return float64(len(a.Active())) }),
	}
	if reg != nil {
		reg.MustRegister(m.events, m.sent, m.lost, m.active)
	}
	return m
}

func (a *Alerter) build(cfg Config) ([]*webhook, error) {
	if f := cfg.Validate(); len(f) > 0 {
		return nil, fmt.Errorf("alert: %s: %s", f[0].Key, f[0].Text)
	}
	var hooks []*webhook
	for i, w := range cfg.Webhooks {
		h, err := newWebhook(&cfg, w, a)
		if err != nil {
			return nil, fmt.Errorf("alert: webhooks[%d]: %w", i, err)
		}
		hooks = append(hooks, h)
	}
	return hooks, nil
}

// Reload replaces the webhooks. The new ones are told of the alarms that are on; what old ones had waiting is dropped.
func (a *Alerter) Reload(cfg Config) error {
	hooks, err := a.build(cfg)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.active {
		for _, h := range hooks {
			h.put(e)
		}
	}
	a.hooks = hooks
	close(a.reload)
	a.reload = make(chan struct{})
	return nil
}

// Raise logs an event and has the webhooks told of it. It never waits, and may be called from anywhere.
func (a *Alerter) Raise(e mta.Event) {
	a.metrics.events.WithLabelValues(e.Kind, e.Level.String()).Inc()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch e.Level {
	case mta.Alarm:
		a.active[subjectOf(e)] = e
	case mta.Over: // of an alarm of a former run, perhaps: it is told
		delete(a.active, subjectOf(e))
	}
	for _, h := range a.hooks {
		h.put(e)
	}
	level := slog.LevelInfo
	if e.Level == mta.Alarm {
		level = slog.LevelWarn
	}
	a.log.LogAttrs(context.Background(), level, "alert", slog.String("kind", e.Kind), slog.String("subject", e.Subject),
		slog.String("level", e.Level.String()), slog.String("text", e.Text))
}

// Active lists the alarms that are on, the oldest first.
func (a *Alerter) Active() []mta.Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := []mta.Event{}
	for _, e := range a.active {
		list = append(list, e)
	}
	slices.SortFunc(list, func(x, y mta.Event) int {
		if c := x.At.Compare(y.At); c != 0 {
			return c
		}
		return strings.Compare(x.Kind+x.Subject, y.Kind+y.Subject)
	})
	return list
}

// Run tells the webhooks until ctx is done.
func (a *Alerter) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		a.mu.Lock()
		hooks, reload := a.hooks, a.reload
		a.mu.Unlock()
		hctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		for _, h := range hooks {
			wg.Go(func() { h.run(hctx) })
		}
		select {
		case <-ctx.Done():
		case <-reload:
		}
		cancel()
		wg.Wait()
	}
	return nil
}
