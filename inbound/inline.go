package inbound

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"understudy/internal/mta"
)

// inline is what a transaction has to do with the primary.
type inline struct {
	tx      Transaction // nil: none is open, or none any more because the sender was slow
	refused error       // Begin's refusal: MAIL is asked once
	reopens int         // how often it was opened anew
	left    string      // the step at which the primary went away: begin, rcpt or content; from then on all is spooled
}

// patience is how long a primary is kept waiting for a slow sender. Then its session is for others, and the transaction is
// opened anew when the sender has come to the point. Busy primaries end sessions soon (Postfix under stress after 10
// seconds): without this, slowness would be a way around them.
const patience = 8 * time.Second

// maxReopens is how often a transaction is opened anew: each time the primary hears all its recipients again.
const maxReopens = 10

// relay asks the primary about a recipient.
func (s *session) relay(r mta.Recipient) (*mta.Reply, error) {
	if err := s.bounded(r.Dest, s.size); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(s.ctx, rcptLimit)
	defer cancel()
	if s.inline.tx == nil {
		if err := s.open(ctx); err != nil {
			return s.answered(err)
		}
	}
	reply, err := s.inline.tx.Rcpt(ctx, r)
	if err != nil {
		return s.answered(fmt.Errorf("inbound: inline recipient %s: %w", r.Addr, err))
	}
	s.w.tiredAt = time.Now().Add(patience)
	s.srv.metrics.inline.recipients.of(reply.Code).Inc()
	if aboutUs(reply) {
		return s.disturbed("rcpt", reply), nil
	}
	said := s.srv.deps.Judge.Heard(s.ctx, s.env, r, reply)
	if taken(said) != taken(reply) {
		said = reply // two truths about one recipient would lose mail or double it
	}
	if taken(reply) {
		s.add(r)
	}
	return inOurName(said, s.srv.cfg.Hostname), nil
}

// open opens the transaction, for the first time or with the recipients that the primary took before.
func (s *session) open(ctx context.Context) error {
	if s.inline.reopens++; s.inline.reopens > maxReopens+1 {
		return notAgain
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	for _, r := range s.env.Rcpts {
		reply, err := s.inline.tx.Rcpt(ctx, r)
		if err != nil {
			return fmt.Errorf("inbound: inline recipient %s again: %w", r.Addr, err)
		}
		if !taken(reply) {
			s.abort()
			return notAgain
		}
	}
	s.w.tiredAt = time.Now().Add(patience)
	return nil
}

// begin opens the transaction with a primary, if the client's network may have one more.
func (s *session) begin(ctx context.Context) error {
	if s.inline.refused != nil {
		return s.inline.refused
	}
	a := s.w.remote.Addr()
	if !s.srv.gate.enterInline(a, s.srv.trusts(a)) {
		s.srv.metrics.inline.crowded.Inc()
		return crowded
	}
	if s.env.ID.IsZero() {
		s.env.ID = mta.NewID(time.Now()) // so that the log of the other side knows it
	}
	tx, err := s.srv.deps.Relay.Begin(ctx, s.env, s.dest)
	if err != nil {
		s.srv.gate.leaveInline(a, s.srv.trusts(a))
		err = fmt.Errorf("inbound: inline transaction for %s: %w", s.dest, err)
		if _, refused := errors.AsType[*mta.Reply](err); refused && !errors.Is(err, mta.ErrAway) {
			s.inline.refused = err
		}
		return err
	}
	s.inline.tx = tx
	s.w.tired, s.w.tiredAt = s.pause, time.Now().Add(patience)
	s.srv.metrics.inline.open.Inc()
	return nil
}

// answered takes a reply out of an error of the relay: the primary's to MAIL, which may come with the first recipient, or
// the relay's own. An error without one, or with one of ours, stays.
func (s *session) answered(err error) (*mta.Reply, error) {
	r, ok := errors.AsType[*mta.Reply](err)
	if !ok || errors.Is(err, mta.ErrAway) || r == crowded || r == notAgain {
		return nil, err
	}
	if aboutUs(*r) {
		return s.disturbed("mail", *r), nil
	}
	return inOurName(*r, s.srv.cfg.Hostname), nil
}

// disturbed keeps from the sender what the primary said of us.
func (s *session) disturbed(step string, r mta.Reply) *mta.Reply {
	s.log.LogAttrs(s.ctx, slog.LevelWarn, "primary refused our command", slog.String("dest", s.dest), slog.String("step", step),
		slog.Int("code", r.Code), slog.String("reply", r.String()))
	return disturbed
}

// abort ends the transaction with the primary, if there is one.
func (s *session) abort() {
	if s.inline.tx == nil {
		return
	}
	s.inline.tx.Abort()
	s.inline.tx, s.w.tired = nil, nil
	a := s.w.remote.Addr()
	s.srv.gate.leaveInline(a, s.srv.trusts(a))
	s.srv.metrics.inline.open.Dec()
}

// pause gives the session with the primary back for now: the sender is slow.
func (s *session) pause() {
	s.srv.metrics.inline.paused.Inc()
	s.abort()
}

// leave takes the spool's road for what is left of the transaction. Recipients that the primary took stay taken.
func (s *session) leave(step string, err error) {
	s.abort()
	s.road, s.inline.left = mta.Spooled, step
	s.srv.metrics.inline.left.WithLabelValues(step).Inc()
	s.log.LogAttrs(s.ctx, slog.LevelInfo, "primary went away", slog.String("dest", s.dest), slog.String("step", step),
		slog.Any("peer", s.w.remote), slog.Any("err", err))
}

// handOn sends a whole message to the primary and gives what the sender is to hear. A client that hangs up now changes
// nothing, so the context is the server's.
func (s *session) handOn(m *incoming) (*mta.Reply, error) {
	edit, err := s.srv.deps.Judge.Clean(m.env, m.body.content())
	if err != nil {
		return nil, fmt.Errorf("inbound: clean %s: %w", m.env.ID, err)
	}
	ctx, cancel := context.WithTimeout(s.srv.base(), sendLimit)
	defer cancel()
	begun := time.Now()
	if s.inline.tx == nil {
		if err := s.open(ctx); err != nil {
			return s.answered(err)
		}
	}
	final, err := s.inline.tx.Send(ctx, m.body.edited(edit, m.trace))
	s.srv.metrics.inline.send.Observe(time.Since(begun).Seconds())
	if errors.Is(err, mta.ErrAway) {
		return nil, err
	}
	if err != nil {
		s.srv.metrics.inline.unsure.Inc()
		s.log.LogAttrs(s.ctx, slog.LevelWarn, "primary did not confirm", slog.String("id", m.env.ID.String()), slog.String("dest", s.dest),
			slog.String("from", m.env.From.String()), slog.Any("peer", s.w.remote), slog.Any("err", err))
		return unsure, nil
	}
	s.srv.metrics.inline.messages.of(final.Code).Inc()
	if aboutUs(final) {
		return s.disturbed("content", final), nil
	}
	m.final = &final
	return inOurName(final, s.srv.cfg.Hostname), nil
}
