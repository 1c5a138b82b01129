package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"understudy/internal/mta"
)

// source is one of policy.sources at work.
type source struct {
	name   string
	cfg    Source
	serves []string // the domains that name it, sorted
	ask    *asker   // if it is asked for each address
	born   time.Time

	checked atomic.Int64 // when what we have was last found to be what the source says, in Unix nanoseconds; 0 is never
	saving  sync.Mutex   // held while the copy on disk is written

	// Policy.mu guards what follows.
	got      *content // in force; nil: none yet
	pending  *content // read, but it lost too much: in force only where it did not
	held     []Shrink // what it lost
	failures int      // in a row
	err      error    // of the last look
	next     time.Time
	looking  bool
	alarms   map[string]bool // raised and not over, by kind
}

func newSource(name string, cfg Source, serves []string, now time.Time) *source {
	s := &source{name: name, cfg: cfg, serves: serves, born: now, next: now, alarms: map[string]bool{}}
	if cfg.asks() {
		s.ask = newAsker(cfg)
	}
	return s
}

// servedBy gives for each source the domains that name it.
func servedBy(domains map[string]Domain) map[string][]string {
	served := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(domains)) {
		for _, s := range domains[name].Sources {
			if s != learnedSource {
				served[s] = append(served[s], name)
			}
		}
	}
	return served
}

// view is what the source says of a domain. Policy.mu is held.
func (s *source) view(domain string, c *verdictCounters) *view {
	v := &view{name: s.name, counters: c, complete: s.cfg.Complete, src: s, ask: s.ask, read: s.ask != nil}
	if s.got != nil {
		v.set = s.got.sets[domain]
		v.read = slices.Contains(s.got.serves, domain)
	}
	v.held = slices.ContainsFunc(s.held, func(h Shrink) bool { return h.Domain == domain })
	return v
}

// carry takes over what an earlier source of the same name had. Policy.mu is held.
func (s *source) carry(old *source) {
	if old == nil {
		return
	}
	s.alarms = old.alarms
	if s.ask == nil && old.got != nil {
		s.got, s.pending, s.held = old.got, old.pending, old.held
		s.checked.Store(old.checked.Load())
	}
}

func (s *source) same(cfg Source, serves []string) bool {
	return reflect.DeepEqual(s.cfg, cfg) && slices.Equal(s.serves, serves)
}

// job is the next look. Policy.mu is held. What was read for other domains must be read again, whatever its tag says.
func (s *source) job() job {
	j := job{name: s.name, cfg: s.cfg, serves: s.serves}
	if s.got != nil && len(s.held) == 0 && slices.Equal(s.got.serves, s.serves) {
		j.have = s.got.tag
	}
	return j
}

// look reads a source once. Whoever calls it has set looking.
func (p *Policy) look(ctx context.Context, s *source) error {
	p.mu.Lock()
	j := s.job()
	p.mu.Unlock()
	began := time.Now()
	var c *content
	var err error
	if s.ask != nil {
		if err = s.ask.ping(ctx); err == nil {
			err = errUnchanged
		}
	} else {
		c, err = fetch(ctx, j)
	}
	return p.looked(ctx, s, c, err, began)
}

// looked puts in force what a look brought. Its error is that of the look.
func (p *Policy) looked(ctx context.Context, s *source, c *content, err error, began time.Time) error {
	now := time.Now()
	p.mu.Lock()
	s.looking = false
	if p.sources[s.name] != s { // a reload has put another one in its place
		p.mu.Unlock()
		return nil
	}
	if err != nil && !errors.Is(err, errUnchanged) {
		defer p.mu.Unlock()
		return p.lookFailed(ctx, s, err, now)
	}
	s.failures, s.err = 0, nil
	s.next = nextLook(now, s.cfg.Every, 0, rand.Float64())
	s.checked.Store(now.UnixNano())
	changed := c != nil && !s.has(c)
	switch {
	case changed:
		p.adopt(ctx, s, c, now.Sub(began))
	case c != nil && s.pending == nil:
		got := *s.got
		got.tag = c.tag
		s.got = &got
	}
	p.mu.Unlock()
	p.metrics.look(s.name, "ok")
	p.wakeUp()
	p.keep(ctx, s, changed, now)
	return nil
}

// has tells whether c is what was read last. Policy.mu is held.
func (s *source) has(c *content) bool {
	last := s.got
	if s.pending != nil {
		last = s.pending
	}
	return last != nil && c.digest == last.digest && slices.Equal(c.serves, last.serves)
}

// lookFailed notes that a look brought nothing. What was in force stays so. Policy.mu is held.
func (p *Policy) lookFailed(ctx context.Context, s *source, err error, now time.Time) error {
	if ctx.Err() != nil { // we stop, or nobody waits for it any more
		return fmt.Errorf("policy: source %s: %w", s.name, err)
	}
	s.failures++
	s.err = err
	s.next = nextLook(now, s.cfg.Every, s.failures, rand.Float64())
	p.metrics.look(s.name, "failed")
	p.log.LogAttrs(ctx, slog.LevelWarn, "recipient source can't be read, what it said last stays in force",
		slog.String("source", s.name), slog.Int("tries", s.failures), slog.Any("err", err))
	p.wakeUp()
	return fmt.Errorf("policy: source %s: %w", s.name, err)
}

// adopt puts a changed content in force, but for the domains that would lose too much. Policy.mu is held.
func (p *Policy) adopt(ctx context.Context, s *source, c *content, took time.Duration) {
	var lost []Shrink
	if s.got != nil {
		lost = shrunk(s.got, c, s.cfg.MaxShrink)
	}
	if len(lost) > 0 && (s.pending == nil || s.pending.digest != c.digest) {
		for _, l := range lost {
			p.log.LogAttrs(ctx, slog.LevelError, "recipient source lost too many recipients, the old ones stay in force until an operator confirms it",
				slog.String("source", s.name), slog.String("domain", l.Domain), slog.Int("had", l.Had), slog.Int("has", l.Has))
		}
	}
	s.pending, s.held = nil, lost
	if len(lost) > 0 {
		s.pending = c
		c = c.holding(s.got, lost)
	}
	s.got = c
	p.rebuild()
	p.log.LogAttrs(ctx, slog.LevelInfo, "recipient source read", slog.String("source", s.name), slog.Int("recipients", c.total()),
		slog.Int("domains", len(c.sets)), slog.Int("foreign", c.foreign), slog.Int("odd", c.odd), slog.Duration("took", took))
}

// keep makes the copy on disk what is in force. That it can't is no reason not to use what was read.
func (p *Policy) keep(ctx context.Context, s *source, changed bool, now time.Time) {
	if s.ask != nil {
		return
	}
	s.saving.Lock()
	defer s.saving.Unlock()
	p.mu.Lock()
	dir, c := p.cfg.StateDir, s.got
	p.mu.Unlock()
	if c == nil {
		return
	}
	var err error
	if !changed {
		err = touchCopy(dir, s.name, now)
	}
	if changed || errors.Is(err, fs.ErrNotExist) {
		err = saveCopy(dir, s.name, c)
	}
	if err != nil {
		p.log.LogAttrs(ctx, slog.LevelError, "last good copy of a recipient source can't be kept", slog.String("source", s.name), slog.Any("err", err))
	}
}

// recall puts the last good copy in force. Policy.mu is held.
func (p *Policy) recall(ctx context.Context, s *source) {
	if s.ask != nil || s.got != nil {
		return
	}
	c, checked, err := loadCopy(p.cfg.StateDir, s.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		p.log.LogAttrs(ctx, slog.LevelError, "last good copy of a recipient source can't be used", slog.String("source", s.name), slog.Any("err", err))
	default:
		s.got = c
		s.checked.Store(checked.UnixNano())
	}
}

// Confirm puts in force what a source lost: for one of its domains, or with "" for all.
func (p *Policy) Confirm(ctx context.Context, name, domain string) error {
	p.mu.Lock()
	s := p.sources[name]
	if s == nil || s.pending == nil {
		p.mu.Unlock()
		return fmt.Errorf("policy: source %q has nothing to confirm", name)
	}
	left := slices.DeleteFunc(slices.Clone(s.held), func(h Shrink) bool { return domain == "" || h.Domain == domain })
	if len(left) == len(s.held) {
		p.mu.Unlock()
		return fmt.Errorf("policy: source %q has nothing to confirm at %q", name, domain)
	}
	s.got = s.pending.holding(s.got, left)
	if s.held = left; len(left) == 0 {
		s.pending = nil
	}
	p.rebuild()
	p.mu.Unlock()
	p.log.LogAttrs(ctx, slog.LevelInfo, "loss of recipients confirmed", slog.String("source", name), slog.String("domain", domain))
	p.keep(ctx, s, true, time.Now())
	p.wakeUp()
	return nil
}

// Refresh reads a source now, for an operator who wants to see it done.
func (p *Policy) Refresh(ctx context.Context, name string) error {
	p.mu.Lock()
	s := p.sources[name]
	if s == nil || s.looking {
		p.mu.Unlock()
		if s == nil {
			return fmt.Errorf("policy: there is no source %q that a domain names", name)
		}
		return fmt.Errorf("policy: source %q is being read", name)
	}
	s.looking = true
	p.mu.Unlock()
	return p.look(ctx, s)
}

// SourceStatus is how a source stands.
type SourceStatus struct {
	Name       string        `json:"name"`
	Kind       string        `json:"kind"`
	Domains    []string      `json:"domains"`
	Recipients int           `json:"recipients"`
	Complete   bool          `json:"complete"`
	Fresh      bool          `json:"fresh"`
	Age        time.Duration `json:"age"`                // since the last good look; -1: never
	Err        string        `json:"err,omitempty"`      // of the last look
	Failures   int           `json:"failures,omitempty"` // in a row
	Held       []Shrink      `json:"held,omitempty"`     // waits for Confirm
}

// Sources tells how all sources stand, by name.
func (p *Policy) Sources() []SourceStatus {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]SourceStatus, 0, len(p.sources))
	for _, name := range slices.Sorted(maps.Keys(p.sources)) {
		s := p.sources[name]
		st := SourceStatus{
			Name: name, Kind: s.cfg.kind(), Domains: slices.Clone(s.serves), Complete: s.cfg.Complete, Age: -1,
			Failures: s.failures, Held: slices.Clone(s.held), Fresh: !s.stale(now) && len(s.held) == 0,
		}
		if s.got != nil {
			st.Recipients = s.got.total()
		}
		if at := s.checked.Load(); at != 0 {
			st.Age = now.Sub(time.Unix(0, at))
		}
		if s.err != nil {
			st.Err = s.err.Error()
		}
		all = append(all, st)
	}
	return all
}

func (s *source) stale(now time.Time) bool {
	return now.Sub(time.Unix(0, s.checked.Load())) >= s.cfg.StaleAfter
}

// events are the alarms that begin and end now. Policy.mu is held.
func (s *source) events(now time.Time) []mta.Event {
	never := s.checked.Load() == 0
	stale := s.stale(now) && (!never || s.failures > 0 || now.Sub(s.born) > s.cfg.StaleAfter)
	text := fmt.Sprintf("The recipients of source %s could not be read for %v: unlisted ones are deferred", s.name, s.cfg.StaleAfter)
	if never {
		text = fmt.Sprintf("The recipients of source %s could never be read", s.name)
	}
	details := map[string]string{}
	if s.err != nil {
		details["err"] = s.err.Error()
	}
	events := s.alarm(nil, stale, mta.Event{Kind: mta.EventListStale, Subject: s.name, At: now, Text: text, Details: details},
		fmt.Sprintf("The recipients of source %s can be read again", s.name))
	lost := map[string]string{}
	for _, h := range s.held {
		lost[h.Domain] = fmt.Sprintf("%d of %d left", h.Has, h.Had)
	}
	return s.alarm(events, len(s.held) > 0, mta.Event{
		Kind: mta.EventListShrunk, Subject: s.name, At: now, Details: lost,
		Text: fmt.Sprintf("Source %s lost too many recipients at once; the old ones stay in force until somebody confirms the loss", s.name),
	}, fmt.Sprintf("The loss of recipients of source %s is confirmed, or was none", s.name))
}

func (s *source) alarm(events []mta.Event, on bool, e mta.Event, over string) []mta.Event {
	switch was := s.alarms[e.Kind]; {
	case on && !was:
		e.Level = mta.Alarm
	case was && !on:
		e.Level, e.Text, e.Details = mta.Over, over, nil
	default:
		return events
	}
	s.alarms[e.Kind] = on
	return append(events, e)
}
