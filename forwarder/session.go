package forwarder

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

const (
	tellEvery = time.Second // how often the health hears that a primary takes mail
	learnFrom = 10          // messages that a session must have had for its 421 to be a limit of messages
)

// session feeds one session with the jobs of one key. It is the smtpc.Source.
type session struct {
	r       *route
	key     string
	primary mta.Primary
	name    string // of the primary
	t       *trouble
	cfg     Config

	given int // messages; the writer's

	off     bool // written off; under route.mu
	dialing bool // being opened; under route.mu

	mu      sync.Mutex
	taken   int // messages that the primary took
	told    time.Time
	doubted bool // something was left unanswered after its content was written
}

func newSession(r *route, key string, p mta.Primary) *session {
	s := &session{r: r, key: key, primary: p, name: p.String(), cfg: r.f.config(), dialing: true}
	s.t = r.f.trouble(s.name)
	return s
}

// run opens the session and keeps it busy until it ends. ctx ends what has not begun, work all.
func (s *session) run(ctx, work context.Context) {
	f := s.r.f
	conn, err := f.dialer.DialWith(ctx, s.primary, smtpc.Options{})
	s.r.mu.Lock()
	s.r.connected(s)
	s.r.mu.Unlock()
	if err == nil {
		f.log.LogAttrs(work, slog.LevelDebug, "session", slog.String("primary", s.name), slog.Bool("tls", conn.TLS() != nil))
		err = conn.Stream(work, s, smtpc.StreamOptions{Method: s.t.method(time.Now()), Window: s.cfg.Window, Start: s.t.start()})
	}
	if ctx.Err() != nil && err != nil {
		f.m.sessions.WithLabelValues("stopped").Inc()
		return
	}
	s.ended(work, err)
}

// Next gives the oldest job of the key. nil ends the session: the gate closed, it had its share, too many run, or nothing
// came for a while.
func (s *session) Next(ctx context.Context, wait bool) *smtpc.Message {
	var idle *time.Timer
	for {
		j, more, over := s.take()
		switch {
		case j != nil:
			s.given++
			return &j.msg
		case over || !wait:
			return nil
		}
		if idle == nil {
			idle = time.NewTimer(s.cfg.Idle)
			defer idle.Stop()
		}
		select {
		case <-more:
		case <-idle.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// take gives a job, or what to wait for, or that the session is to end.
func (s *session) take() (j *job, more <-chan struct{}, over bool) {
	r := s.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions > r.ramp.limit || s.given >= min(s.cfg.SessionMessages, s.t.most()) {
		r.writeOff(s)
	}
	if s.off {
		return nil, nil, true
	}
	j = r.shelf.take(s.key)
	if j == nil {
		if r.shelf.n > 0 { // others wait for a session of their own
			r.writeOff(s)
		}
		return nil, r.more, s.off
	}
	if r.shelf.n < shelfMax/2 {
		r.cond.Signal()
	}
	return j, nil, false
}

// Done takes what became of a message. It does not block: the settler stores it.
func (s *session) Done(m *smtpc.Message, res smtpc.Result) {
	j := m.Tag.(*job)
	f := s.r.f
	now := time.Now()
	t := try{lease: &j.lease, primary: s.name, result: res, now: now, jitter: rand.Float64()}
	switch {
	case res.Fate == smtpc.Answered:
		f.cleared(j.lease.ID)
	case res.Suspect:
		t.suspects = f.suspect(j.lease.ID)
	}
	p := s.cfg.decide(t)
	if p.alert != "" {
		f.log.LogAttrs(context.Background(), slog.LevelError, "delivery alert", slog.String("id", j.lease.ID.String()),
			slog.String("primary", s.name), slog.String("why", p.alert), slog.String("reply", firstReply(p)), slog.Any("err", res.Err))
	}
	if j.flush != nil && !p.release {
		j.flush.done(j.lease.ID)
	}
	s.note(now, res, p)
	f.settler.put(settled{j: j, p: p, took: res.Took})
}

func firstReply(p plan) string {
	for _, r := range p.results {
		if r.Outcome != mta.Delivered {
			return r.Reply.String()
		}
	}
	return ""
}

// note draws from a result what it says of the primary.
func (s *session) note(now time.Time, res smtpc.Result, p plan) {
	if res.Fate == smtpc.InDoubt {
		s.mu.Lock()
		s.doubted = true
		s.mu.Unlock()
	}
	for _, r := range p.results {
		if r.Outcome == mta.Delivered {
			s.took(now, res.Window)
			return
		}
	}
}

// took notes that the primary took a message.
func (s *session) took(now time.Time, window int) {
	r := s.r
	s.t.worked(window)
	r.mu.Lock()
	before := r.ramp.limit
	r.ramp.ok()
	grown := r.ramp.limit > before
	r.last = now
	r.mu.Unlock()
	if grown {
		r.signal()
	}
	s.mu.Lock()
	s.taken++
	tell := now.Sub(s.told) >= tellEvery
	if tell {
		s.told = now
	}
	s.mu.Unlock()
	if tell {
		r.f.health.Observe(s.name, nil)
	}
}

// ended judges the end of a session.
func (s *session) ended(ctx context.Context, err error) {
	f, now := s.r.f, time.Now()
	e, failed := errors.AsType[*smtpc.Error](err)
	switch {
	case err == nil || errors.Is(err, smtpc.ErrContent) || ctx.Err() != nil: // the last two are our own doing
		f.m.sessions.WithLabelValues("ok").Inc()
		return
	case failed && e.Reply != nil && e.Reply.Code == 421 && s.taken >= learnFrom:
		f.m.sessions.WithLabelValues("limit").Inc()
		s.t.learn(s.taken)
		return
	}
	step := smtpc.StepNone
	if failed {
		step = e.Step
	}
	f.m.sessions.WithLabelValues(step.String()).Inc()
	if lost := errors.Is(err, smtpc.ErrOutOfStep) || errors.Is(err, smtpc.ErrGarbage); lost || s.doubted {
		s.t.strayed(now, lost)
	}
	s.t.failed(now, err)
	s.r.mu.Lock()
	s.r.ramp.trouble(now)
	s.r.mu.Unlock()
	level, what := slog.LevelWarn, "session failed"
	if failed && e.Permanent() {
		level, what = slog.LevelError, "primary refuses our sessions" // an alert: mail waits until someone sees to it
	}
	f.log.LogAttrs(ctx, level, what, slog.String("primary", s.name), slog.String("step", step.String()), slog.Any("err", err))
	f.health.Observe(s.name, err)
}
