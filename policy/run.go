package policy

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"understudy/internal/mta"
)

const (
	maxLooks  = 16          // sources read at the same time
	calmRound = time.Minute // Run looks around at least so often …

	shortRound = 10 * time.Millisecond // … and, unless it is woken, at most so often
)

// Run reads the sources when they are due, asks the primaries about recipients, raises alarms and keeps what was
// learned, until ctx is done. It returns when all that it started has ended.
func (p *Policy) Run(ctx context.Context) error {
	var g sync.WaitGroup
	defer g.Wait()
	g.Go(func() { p.remembering(ctx) })
	p.shadows.take(true)
	g.Go(func() { p.shadowing(ctx) })
	if p.deps.Resolver != nil {
		g.Go(func() { p.lists.Run(ctx) })
	}
	looks, callouts := make(chan struct{}, maxLooks), make(chan struct{}, maxCallouts)
	for {
		now := time.Now()
		due, next := p.due(now, cap(looks)-len(looks))
		for _, s := range due {
			looks <- struct{}{} // there is room: only this loop fills it
			g.Go(func() {
				_ = p.look(ctx, s) // logged there
				<-looks
				p.wakeUp()
			})
		}
		asks, nextAsk := p.planned(cap(callouts)-len(callouts), now)
		for _, c := range asks {
			callouts <- struct{}{}
			g.Go(func() {
				p.callOut(ctx, c)
				<-callouts
				p.wakeUp()
			})
		}
		p.raise(now)
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-time.After(max(time.Until(earliest(next, nextAsk)), shortRound)):
		}
	}
}

// due takes the sources to be read now, at most n, and tells when the next one will be.
func (p *Policy) due(now time.Time, n int) (due []*source, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next = now.Add(calmRound)
	for _, name := range slices.Sorted(maps.Keys(p.sources)) {
		s := p.sources[name]
		switch {
		case s.looking:
		case s.next.After(now):
			next = earliest(next, s.next)
		case len(due) < n:
			s.looking = true
			due = append(due, s)
		}
	}
	return due, next
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// planned are the callouts of this round, at most n, and when to look again.
func (p *Policy) planned(n int, now time.Time) ([]callout, time.Time) {
	s := p.state.Load()
	if p.deps.Callout == nil || s == nil {
		return nil, now.Add(calmRound)
	}
	var teach []string
	for name, k := range s.domains { // in no order, so that none is always last
		if !k.acceptAll && !k.complete {
			teach = append(teach, name)
		}
	}
	return p.learned.plan(teach, n, now)
}

// raise tells of alarms that begin and end.
func (p *Policy) raise(now time.Time) {
	p.mu.Lock()
	events := p.gone
	p.gone = nil
	for _, name := range slices.Sorted(maps.Keys(p.sources)) {
		events = append(events, p.sources[name].events(now)...)
	}
	p.mu.Unlock()
	p.tell(append(events, p.calm(now)...))
}

func (p *Policy) tell(events []mta.Event) {
	if p.deps.Events == nil {
		return
	}
	for _, e := range events {
		p.deps.Events(e)
	}
}

// remembering writes what was learned now and then, and once more at the end.
func (p *Policy) remembering(ctx context.Context) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.remember(ctx)
			p.rememberTuples(ctx)
			p.rememberGreylist(ctx)
		case <-ctx.Done():
			p.remember(context.WithoutCancel(ctx))
			p.rememberTuples(context.WithoutCancel(ctx))
			p.rememberGreylist(context.WithoutCancel(ctx))
			return
		}
	}
}
