package forwarder

import (
	"context"
	"errors"
	"fmt"
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

// session feeds one session with jobs of one key. It is the smtpc.Source.
type session struct {
	r       *route
	key     string
	peer    *mta.Peer // whom it speaks for; nil: nobody
	primary mta.Primary
	name    string // of the primary
	host    *host
	cfg     Config

	given      int  // messages; the writer's
	any        bool // jobs of every key will do: the primary is told of no client
	identified bool // the primary believes that it talks to peer

	off     bool // gets no more messages; under route.mu
	gone    bool // does not count any more; under route.mu
	dialing bool // being opened; under route.mu

	mu      sync.Mutex
	taken   int // messages that the primary took
	told    time.Time
	doubted bool // something was left unanswered after its content was written
}

func newSession(r *route, first *job, p mta.Primary) *session {
	return &session{r: r, key: first.key, peer: first.peer, primary: p, name: p.String(), host: r.f.host(p.String()), cfg: r.f.config(), dialing: true}
}

// run opens the session and keeps it busy until it ends. ctx ends what has not begun, work all.
func (s *session) run(ctx, work context.Context) {
	f := s.r.f
	conn, err := s.dial(ctx)
	s.r.mu.Lock()
	s.r.connected(s)
	if err != nil && s.peer != nil { // the primary may be there for others
		s.r.shelf.later(s.key)
	}
	s.r.mu.Unlock()
	if err == nil {
		s.met(work, conn)
		err = conn.Stream(work, s, smtpc.StreamOptions{Method: s.host.method(time.Now()), Window: s.cfg.Window, Start: s.host.start()})
	}
	if ctx.Err() != nil && err != nil {
		f.m.sessions.WithLabelValues("stopped").Inc()
		return
	}
	s.ended(work, err)
}

// dial opens the session as its route wants it.
func (s *session) dial(ctx context.Context) (*smtpc.Conn, error) {
	tls, err := s.r.tlsTo(ctx, s.primary.Host)
	if err != nil {
		return nil, err
	}
	return s.r.f.dialer.DialWith(ctx, s.primary, smtpc.Options{LMTP: s.r.dom.LMTP, TLS: tls, Client: s.peer, Proxy: s.r.proxies()})
}

// met takes note of what a session that was opened is like.
func (s *session) met(ctx context.Context, conn *smtpc.Conn) {
	s.identified = conn.Identified()
	s.any = s.key == "" && s.peer == nil && s.r.dom.ClientIdentity == "headers" ||
		!s.identified && !s.r.proxies() && len(conn.Caps().XCLIENT) == 0
	log := s.r.f.log
	if s.host.met(conn) {
		log.LogAttrs(ctx, slog.LevelWarn, "tls downgrade", slog.String("primary", s.name), slog.Any("err", conn.TLSError()))
	}
	if err := conn.ClientError(); err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "true client refused", slog.String("primary", s.name), slog.String("peer", s.peer.Addr.String()), slog.Any("err", err))
	}
	log.LogAttrs(ctx, slog.LevelDebug, "session", slog.String("primary", s.name), slog.Bool("tls", conn.TLS() != nil), slog.Bool("identified", s.identified))
}

// Next gives the oldest job of the key. nil ends the session: the gate closed, it had its share, too many run, others
// wait for a session of their own, or nothing came for a while.
func (s *session) Next(ctx context.Context, wait bool) *smtpc.Message {
	var idle *time.Timer
	for {
		j, n := s.take(time.Now())
		switch {
		case j != nil:
			s.given++
			return &j.msg
		case n.over || !wait:
			return nil
		}
		if idle == nil {
			idle = time.NewTimer(s.cfg.Idle)
			defer idle.Stop()
		}
		if n.pause > 0 {
			n.more = nil
			idle.Reset(s.cfg.Idle + n.pause)
		}
		if !n.await(ctx, idle) {
			return nil
		}
	}
}

// none says why there is no job: what to wait for, or that the session is to end.
type none struct {
	more  <-chan struct{}
	pause time.Duration
	over  bool
}

// await returns true when it is worth to look again.
func (n *none) await(ctx context.Context, idle *time.Timer) bool {
	var paused <-chan time.Time
	if n.pause > 0 {
		t := time.NewTimer(n.pause)
		defer t.Stop()
		paused = t.C
	}
	select {
	case <-n.more:
		return true
	case <-paused:
		return true
	case <-idle.C:
		return false
	case <-ctx.Done():
		return false
	}
}

// take gives a job, or says why not.
func (s *session) take(now time.Time) (*job, none) {
	r := s.r
	busy := s.host.busy(now)
	r.mu.Lock()
	defer r.mu.Unlock()
	if busy || r.feeding > r.ramp.limit || s.given >= min(s.cfg.SessionMessages, s.host.most()) {
		r.dismiss(s)
	}
	if s.off {
		return nil, none{over: true}
	}
	if pause := max(r.messages.wait(now), r.bytes.wait(now)); pause > 0 && r.shelf.n > 0 {
		r.ramp.starved()
		return nil, none{pause: pause}
	}
	j := r.shelf.take(s.key)
	if j == nil && s.any {
		j = r.shelf.takeAny()
	}
	if j == nil {
		if r.shelf.n > 0 { // others wait for a session of their own
			r.dismiss(s)
		} else {
			r.ramp.starved()
		}
		return nil, none{more: r.more, over: s.off}
	}
	r.messages.spend(now, 1)
	r.bytes.spend(now, float64(j.lease.Size))
	if r.shelf.n < r.shelfMax()/2 {
		r.cond.Signal()
	}
	return j, none{}
}

// Done takes what became of a message. It does not block: the settler stores it.
func (s *session) Done(m *smtpc.Message, res smtpc.Result) {
	j := m.Tag.(*job)
	f := s.r.f
	t := try{lease: &j.lease, primary: s.name, identified: s.identified, result: res, now: time.Now(), jitter: rand.Float64()}
	t.expire = f.expiry(j.lease.Dest)
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
	s.note(t.now, res, p)
	x := settled{j: j, p: p, took: res.Took, silent: !res.DSN}
	if res.Fate != smtpc.Answered {
		f.settler.put(x)
		return
	}
	ready, tripped := s.host.weigh(t.now, &s.cfg, x, res.Rcpts)
	if tripped {
		f.m.trips.Inc()
		f.log.LogAttrs(context.Background(), slog.LevelError, "breaker open", slog.String("primary", s.name),
			slog.Int("refused", len(ready)), slog.String("reply", firstReply(p)), slog.Duration("retry_after", s.cfg.Breaker.RetryAfter))
		s.host.alarm()
		f.raise(mta.Event{
			Kind: mta.EventBreaker, Subject: s.name, Level: mta.Alarm,
			Text: fmt.Sprintf("%s refuses far too much for good (%s). Its drain has stopped and nothing is lost; see to its user table.", s.name, firstReply(p)),
		})
	}
	for _, x := range ready {
		f.settler.put(x)
	}
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
	if res.Fate != smtpc.Answered {
		return
	}
	deferred, grey := false, false
	for _, r := range p.results {
		switch r.Outcome {
		case mta.Delivered:
			s.took(now, res.Window)
			return
		case mta.Deferred:
			deferred = deferred || aboutHost(r.Reply)
			grey = grey || greylisting(r.Reply)
		}
	}
	if grey { // it wants to see each sender again, not to be left alone
		if s.host.greylists(now) {
			s.r.f.log.LogAttrs(context.Background(), slog.LevelWarn, "primary greylists us", slog.String("primary", s.name), slog.String("reply", firstReply(p)))
		}
		return
	}
	if !deferred {
		return
	}
	if pause := s.host.deferred(now); pause > 0 {
		s.r.mu.Lock()
		s.r.ramp.trouble(now)
		s.r.mu.Unlock()
		s.r.f.log.LogAttrs(context.Background(), slog.LevelWarn, "primary defers everything", slog.String("primary", s.name),
			slog.String("reply", firstReply(p)), slog.Duration("pause", pause))
	}
}

// took notes that the primary took a message.
func (s *session) took(now time.Time, window int) {
	r := s.r
	if s.host.worked(window) {
		for _, kind := range []string{mta.EventNotDelivered, mta.EventBreaker} {
			r.f.raise(mta.Event{Kind: kind, Subject: s.name, Level: mta.Over, Text: s.name + " takes mail again."})
		}
	}
	r.mu.Lock()
	before := r.ramp.limit
	r.ramp.ok(now, r.sessions)
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
	case failed && e.Reply != nil && e.Reply.Code == 421 && e.Step <= smtpc.StepMAIL && s.taken >= learnFrom:
		f.m.sessions.WithLabelValues("limit").Inc()
		s.host.learn(s.taken)
		return
	}
	step := smtpc.StepNone
	if failed {
		step = e.Step
	}
	f.m.sessions.WithLabelValues(step.String()).Inc()
	if what := smtpc.TLSFailure(err); what != "" {
		s.host.tlsFailed(what)
	}
	if lost := errors.Is(err, smtpc.ErrOutOfStep) || errors.Is(err, smtpc.ErrGarbage); lost || s.doubted {
		s.host.strayed(now, lost)
	}
	s.host.failed(now, err)
	s.r.mu.Lock()
	s.r.ramp.trouble(now)
	s.r.mu.Unlock()
	level, what := slog.LevelWarn, "session failed"
	if failed && e.Permanent() {
		level, what = slog.LevelError, "primary refuses our sessions"
		s.host.alarm()
		f.raise(mta.Event{
			Kind: mta.EventNotDelivered, Subject: s.name, Level: mta.Alarm,
			Text: fmt.Sprintf("%s refuses our sessions for good at %s (%v). Mail waits until someone sees to it.", s.name, step, err),
		})
	}
	f.log.LogAttrs(ctx, level, what, slog.String("primary", s.name), slog.String("step", step.String()), slog.Any("err", err))
	f.health.Observe(s.name, err)
}
