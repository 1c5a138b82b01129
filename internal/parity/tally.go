package parity

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"understudy/internal/mta"
)

// Deps is what a Tally works with.
type Deps struct {
	// State keeps the counts. nil: they end with the process.
	State State
	// Events is told of a bypass rate that is too high. nil: nobody is. It must not block.
	Events  func(mta.Event)
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: nowhere
}

// Tally counts pairs. Its methods may be called at any time from any goroutine.
type Tally struct {
	deps    Deps
	log     *slog.Logger
	metrics *metrics

	mu      sync.Mutex // guards what follows
	cfg     Config
	today   string
	records map[place]*record
	dirty   map[place]bool // not yet kept
	seen    *seen
	alarms  map[string]bool // by domain
}

// place is where a pair is counted.
type place struct {
	day    string // 2006-01-02, UTC
	domain string
	kind   mta.PairKind
}

const (
	alarmDays  = 7      // an alarm looks at so many days, today among them
	maxRecords = 50_000 // in memory; domains are the operator's, so it is not reached
	maxSeen    = 10_000
)

// New makes a Tally that has counted nothing. Load tells it what was counted before.
func New(cfg Config, d Deps) (*Tally, error) {
	t := &Tally{
		deps: d, log: d.Log, cfg: cfg, today: dayOf(time.Now()), records: map[place]*record{}, dirty: map[place]bool{},
		seen: newSeen(maxSeen), alarms: map[string]bool{},
	}
	var err error
	t.metrics, err = newMetrics(d.Metrics, t)
	if err != nil {
		return nil, fmt.Errorf("parity: metrics: %w", err)
	}
	return t, nil
}

// Reload puts another configuration in force.
func (t *Tally) Reload(cfg Config) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cfg = cfg
}

// Add counts a pair under its day. A message counts once for each fate that the primary gave it, however many recipients
// it has and whenever they were settled; a refused recipient counts by himself.
func (t *Tally) Add(p mta.Pair) {
	if int(p.Ours) >= actions || int(p.Theirs) >= fates || int(p.Kind) >= len(kinds) || p.Domain == "" {
		return
	}
	if p.At.IsZero() {
		p.At = time.Now()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.Theirs != mta.RefusedRcpt && !p.ID.IsZero() && t.seen.before(message{p.ID, p.Domain, p.Kind, p.Theirs}) {
		return
	}
	t.today = max(t.today, dayOf(p.At)) // a day that is over is never counted on: its reasons are no longer here
	at := place{t.today, p.Domain, p.Kind}
	r := t.records[at]
	if r == nil {
		if len(t.records) >= maxRecords {
			return
		}
		r = &record{}
		t.records[at] = r
	}
	r.count(p)
	t.dirty[at] = true
	t.metrics.pairs.WithLabelValues(p.Kind.String(), p.Ours.String(), p.Theirs.String()).Inc()
}

func dayOf(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// firstDay is the earliest of so many days that end with today.
func firstDay(now time.Time, days int) string { return dayOf(now.UTC().AddDate(0, 0, 1-days)) }

// message is what counts once.
type message struct {
	id     mta.ID
	domain string
	kind   mta.PairKind
	fate   mta.Fate
}

// seen remembers the last so many messages.
type seen struct {
	m    map[message]bool
	ring []message
	next int
}

func newSeen(n int) *seen { return &seen{m: map[message]bool{}, ring: make([]message, 0, n)} }

// before tells whether the message was seen, and remembers it.
func (s *seen) before(m message) bool {
	if s.m[m] {
		return true
	}
	s.m[m] = true
	if len(s.ring) < cap(s.ring) {
		s.ring = append(s.ring, m)
		return false
	}
	delete(s.m, s.ring[s.next])
	s.ring[s.next] = m
	s.next = (s.next + 1) % len(s.ring)
	return false
}
