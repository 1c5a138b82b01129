package filter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"understudy/internal/mta"
)

// limit is for all filters together: a sender waits ten minutes for the reply to its content (RFC 5321, 4.5.3.2.6), and
// several milters in a row must not use them up.
const limit = 2 * time.Minute

// Deps are what a Set needs of others.
type Deps struct {
	Hostname string // ours: filters see it as the mail server's name
	Log      *slog.Logger
	Metrics  prometheus.Registerer // may be nil
	Events   func(mta.Event)       // is told when a filter goes down and comes back; it must not block; may be nil
}

// Set is the filters of one configuration, in its order. Its methods may be called at the same time.
type Set struct {
	deps    Deps
	metrics *metrics

	mu      sync.RWMutex // guards filters, which is replaced and never changed
	filters []*filter
}

// New makes the filters. It connects to nobody.
func New(cfgs []Config, d Deps) (*Set, error) {
	m, err := newMetrics(d.Metrics)
	if err != nil {
		return nil, err
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	s := &Set{deps: d, metrics: m}
	if err := s.Reload(cfgs); err != nil {
		return nil, err
	}
	return s, nil
}

// Reload replaces the filters, or returns an error and changes nothing. A filter whose configuration is the same keeps
// what is known of it; messages that are being judged end with the filters they began with.
func (s *Set) Reload(cfgs []Config) error {
	if faults := Validate(cfgs); len(faults) > 0 {
		var errs []error
		for _, f := range faults {
			errs = append(errs, fmt.Errorf("filters%s: %s", f.Key, f.Text))
		}
		return errors.Join(errs...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make([]*filter, 0, len(cfgs))
	for _, c := range cfgs {
		if i := slices.IndexFunc(s.filters, func(f *filter) bool { return f.Config == c.completed() }); i >= 0 {
			next = append(next, s.filters[i])
			continue
		}
		f, err := newFilter(c)
		if err != nil {
			return err
		}
		next = append(next, f)
	}
	for _, f := range s.filters {
		if !slices.Contains(next, f) {
			s.forget(f)
		}
	}
	for _, f := range next {
		if !slices.Contains(s.filters, f) {
			s.metrics.up.WithLabelValues(f.Name).Set(1)
		}
	}
	s.filters = next
	return nil
}

// forget ends the alarm and the metrics of a filter that is not configured any more.
func (s *Set) forget(f *filter) {
	if f.status().State != Up {
		s.up(f)
	}
	s.metrics.forget(f.Name)
}

// Names are those of the filters, in their order.
func (s *Set) Names() []string {
	var names []string
	for _, f := range s.chosen(nil) {
		names = append(names, f.Name)
	}
	return names
}

// chosen are the filters with one of these names, in their own order; all if there are no names.
func (s *Set) chosen(names []string) []*filter {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(names) == 0 {
		return s.filters
	}
	var some []*filter
	for _, f := range s.filters {
		if slices.Contains(names, f.Name) {
			some = append(some, f)
		}
	}
	return some
}

// Judge asks the filters (all of them, or only those named) and returns what they found, in their order, within two
// minutes. A filter that finds nothing against the message gives no finding; one that gives no answer, or does not look
// at a message of that size, gives "filter:NAME-down" or "filter:NAME-skipped". The content is best what would be
// forwarded: without the fields that a sender forged.
func (s *Set) Judge(ctx context.Context, env *mta.Envelope, c mta.Content, auth mta.Auth, only ...string) []mta.Finding {
	filters := s.chosen(only)
	if len(filters) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	m := &message{env: env, content: c, auth: auth, hostname: s.deps.Hostname}
	found := make([][]mta.Finding, len(filters)) // each goroutine has places of its own
	var wg sync.WaitGroup
	var milters []int
	for i, f := range filters {
		if f.Kind == Milter {
			milters = append(milters, i)
			continue
		}
		wg.Go(func() { found[i] = s.judge(ctx, f, m) })
	}
	wg.Go(func() {
		for _, i := range milters {
			found[i] = s.judge(ctx, filters[i], m)
		}
	})
	wg.Wait()
	return slices.Concat(found...)
}

// Check asks each filter whether it is there, and returns why not, by name; nil is yes. One that is down and answers now
// is asked about the next message; only its answer to that ends the alarm.
func (s *Set) Check(ctx context.Context) map[string]error {
	filters := s.chosen(nil)
	errs := make([]error, len(filters))
	var wg sync.WaitGroup
	for i, f := range filters {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, f.Timeout)
			defer cancel()
			if errs[i] = f.ping(ctx); errs[i] == nil {
				f.mu.Lock()
				f.circuit.hint()
				f.mu.Unlock()
			}
		})
	}
	wg.Wait()
	all := make(map[string]error, len(filters))
	for i, f := range filters {
		all[f.Name] = errs[i]
	}
	return all
}

// Status is what is known of one filter, for operators. Since is when it went down or came back, zero if it never was
// down. Failures are those in a row; LastError is also of a filter that is up again. Busy is how many messages it is asked
// about now, Judged how many answers it gave.
type Status struct {
	Name           string    `json:"name"`
	Kind           string    `json:"kind"`
	Address        string    `json:"address"`
	State          State     `json:"state"`
	Since          time.Time `json:"since,omitzero"`
	Failures       int       `json:"failures"`
	LastError      string    `json:"last_error,omitempty"`
	LastErrorAt    time.Time `json:"last_error_at,omitzero"`
	Busy           int       `json:"busy"`
	MaxConnections int       `json:"max_connections"`
	Judged         uint64    `json:"judged"`
	OnFailure      string    `json:"on_failure"`
	VirusScanner   bool      `json:"virus_scanner,omitempty"`
}

// Status tells of each filter, in their order.
func (s *Set) Status() []Status {
	all := []Status{}
	for _, f := range s.chosen(nil) {
		all = append(all, f.status())
	}
	return all
}

func (f *filter) status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &f.circuit
	return Status{
		Name: f.Name, Kind: f.Kind, Address: f.Address, State: c.current(), Since: c.since, Failures: c.failures,
		LastError: c.last, LastErrorAt: c.lastAt, Busy: len(f.slots), MaxConnections: f.MaxConnections, Judged: f.judged,
		OnFailure: f.OnFailure, VirusScanner: f.VirusScanner,
	}
}
