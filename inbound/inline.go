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
	tx      Transaction // nil: none is open
	dest    string      // whose primary
	refused error       // Begin's refusal: MAIL is asked once for each destination
	heard   time.Time   // when the primary was last heard of
	left    string      // the step at which the primary went away: begin, rcpt or content; from then on all is spooled
}

// patience is how long after its last reply a primary may have closed the session because of us: a session that was lost
// then is no sign that it is away.
const patience = 30 * time.Second

// relay asks the primary about a recipient.
func (s *session) relay(r mta.Recipient) (*mta.Reply, error) {
	if err := s.bounded(r.Dest, s.size); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(s.ctx, rcptLimit)
	defer cancel()
	if s.inline.tx == nil {
		if err := s.begin(ctx, r.Dest); err != nil {
			return s.refusedBegin(err)
		}
	}
	reply, err := s.inline.tx.Rcpt(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("inbound: inline recipient %s: %w", r.Addr, err)
	}
	s.inline.heard = time.Now()
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

// begin opens the transaction with a primary of dest, if the client's network may have one more.
func (s *session) begin(ctx context.Context, dest string) error {
	if s.inline.refused != nil && s.inline.dest == dest {
		return s.inline.refused
	}
	s.inline.dest, s.inline.refused = dest, nil
	a := s.w.remote.Addr()
	if !s.srv.gate.enterInline(a, s.srv.trusts(a)) {
		s.srv.metrics.inline.crowded.Inc()
		return crowded
	}
	tx, err := s.srv.deps.Relay.Begin(ctx, s.env, dest)
	if err != nil {
		s.srv.gate.leaveInline(a, s.srv.trusts(a))
		return fmt.Errorf("inbound: inline transaction for %s: %w", dest, err)
	}
	s.inline.tx, s.inline.heard = tx, time.Now()
	s.srv.metrics.inline.open.Inc()
	return nil
}

// refusedBegin is the answer to RCPT when no transaction could be opened. What refused MAIL would do so again.
func (s *session) refusedBegin(err error) (*mta.Reply, error) {
	r, ok := errors.AsType[*mta.Reply](err)
	if !ok || errors.Is(err, mta.ErrAway) || r == crowded {
		return nil, err
	}
	s.inline.refused = err
	if aboutUs(*r) {
		return s.disturbed("mail", *r), nil
	}
	return inOurName(*r, s.srv.cfg.Hostname), nil
}

// disturbed keeps from the sender what the primary said of us.
func (s *session) disturbed(step string, r mta.Reply) *mta.Reply {
	s.log.LogAttrs(s.ctx, slog.LevelWarn, "primary refused our command", slog.String("dest", s.inline.dest), slog.String("step", step),
		slog.Int("code", r.Code), slog.String("reply", r.String()))
	return disturbed
}

// abort ends the transaction with the primary, if there is one.
func (s *session) abort() {
	if s.inline.tx == nil {
		return
	}
	s.inline.tx.Abort()
	s.inline.tx = nil
	a := s.w.remote.Addr()
	s.srv.gate.leaveInline(a, s.srv.trusts(a))
	s.srv.metrics.inline.open.Dec()
}

// leave takes the spool's road for what is left of the transaction. Recipients that the primary took stay taken.
func (s *session) leave(step string, err error) {
	s.abort()
	s.road, s.inline.left = mta.Spooled, step
	s.srv.metrics.inline.left.WithLabelValues(step).Inc()
	s.log.LogAttrs(s.ctx, slog.LevelInfo, "primary went away", slog.String("dest", s.inline.dest), slog.String("step", step),
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
	c, begun := m.body.edited(edit, m.trace), time.Now()
	final, err := s.inline.tx.Send(ctx, c)
	if errors.Is(err, mta.ErrAway) && begun.Sub(s.inline.heard) > patience {
		if final, err = s.again(ctx, m.env, c); errors.Is(err, errNotTaken) {
			return notAgain, nil
		}
	}
	s.srv.metrics.inline.send.Observe(time.Since(begun).Seconds())
	if errors.Is(err, mta.ErrAway) {
		return nil, err
	}
	if err != nil {
		s.srv.metrics.inline.unsure.Inc()
		s.log.LogAttrs(s.ctx, slog.LevelWarn, "primary did not confirm", slog.String("id", m.env.ID.String()), slog.String("dest", s.inline.dest),
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

// errNotTaken says that a primary refuses now a recipient that it took before.
var errNotTaken = errors.New("recipient is refused now")

// again opens the transaction anew, once: the content came in slowly, and a primary does not wait for ever. So nobody
// gets around the primary's verdict by being slow.
func (s *session) again(ctx context.Context, env *mta.Envelope, c mta.Content) (mta.Reply, error) {
	s.abort()
	if err := s.begin(ctx, s.inline.dest); err != nil {
		if _, refused := errors.AsType[*mta.Reply](err); refused && !errors.Is(err, mta.ErrAway) {
			return mta.Reply{}, errNotTaken
		}
		return mta.Reply{}, err
	}
	for _, r := range env.Rcpts {
		reply, err := s.inline.tx.Rcpt(ctx, r)
		if err != nil {
			return mta.Reply{}, err
		}
		if !taken(reply) {
			return mta.Reply{}, errNotTaken
		}
	}
	return s.inline.tx.Send(ctx, c)
}
