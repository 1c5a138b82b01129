package policy

import (
	"context"
	"time"

	"understudy/internal/mta"
)

// Admit places one recipient before anything else is asked: whether the domain is ours, whether the client and the
// sender stay within their limits, and which road the mail takes. Inline: a primary takes mail now, and it is the one to
// judge. A *mta.Reply in the error is a refusal; any other error is our own fault.
func (p *Policy) Admit(ctx context.Context, env *mta.Envelope, to mta.Path) (mta.Recipient, mta.Road, error) {
	s := p.state.Load()
	if s == nil {
		return mta.Recipient{}, mta.Spooled, errNotLoaded
	}
	q, now := s.place(to), time.Now()
	if reply := q.refused(); reply != nil {
		p.metrics.answer(finding{verdict: Reject, source: byRelay})
		return mta.Recipient{}, mta.Spooled, reply
	}
	if reply := p.limited(ctx, s.cfg.Limits, env, now); reply != nil {
		return mta.Recipient{}, mta.Spooled, reply
	}
	road, reply := p.road(q, env, now)
	if reply != nil {
		p.metrics.deferred.Inc()
		return mta.Recipient{}, mta.Spooled, reply
	}
	p.metrics.roads[road].Inc()
	return mta.Recipient{Addr: q.to, Dest: q.dest}, road, nil
}

// road is the way of one recipient's mail, or what is said to a sender who is to use the primary itself.
func (p *Policy) road(q question, env *mta.Envelope, now time.Time) (mta.Road, *mta.Reply) {
	if p.deps.Up == nil || !p.deps.Up(q.dest) {
		return mta.Spooled, nil
	}
	switch q.known.whileUp {
	case AcceptWhileUp:
		return mta.Spooled, nil
	case DeferWhileUp:
		// A sender that reaches us but not the primary would starve, so who keeps coming back is let through. Postmaster
		// is never put off (RFC 5321, 4.5.1).
		if !q.to.IsPostmaster() && !p.tuples.earned(tupleOf(env, q), now) {
			return mta.Spooled, mta.NewReply(451, "4.3.0", "the mail server of %s takes mail now: send it there", q.dest)
		}
	}
	return mta.Inline, nil
}

// AmnesiaWindow is how long after a primary's return its refusals are doubted, as configured now.
func (p *Policy) AmnesiaWindow() time.Duration {
	if s := p.state.Load(); s != nil {
		return s.cfg.AmnesiaWindow
	}
	return 0
}
