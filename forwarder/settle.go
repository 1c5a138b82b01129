package forwarder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"understudy/internal/mta"
)

const (
	settleBatch = 256 // settlements stored in one step
	settleTries = 30  // a second apart; then the lease lapses and the message goes again
	settlePause = time.Second
	// settleGather is how long the first outcome waits for others: each batch is a sync, and the disk has other work. What
	// a crash meanwhile costs is a duplicate.
	settleGather = 10 * time.Millisecond
)

// settled is one outcome on its way to the spool.
type settled struct {
	j     *job
	p     plan
	took  time.Duration
	tries int
	// silent tells that the primary took the message and sends no reports itself.
	silent  bool
	reports []mta.Report
}

// settler writes outcomes in batches: while one batch is being stored the next gathers.
type settler struct {
	f      *Forwarder
	mu     sync.Mutex
	queue  []settled
	closed bool
	wake   chan struct{} // holds one
}

func newSettler(f *Forwarder) *settler { return &settler{f: f, wake: make(chan struct{}, 1)} }

// put never blocks. What is queued is bounded by the leases that are out.
func (s *settler) put(x settled) {
	s.mu.Lock()
	s.queue = append(s.queue, x)
	s.mu.Unlock()
	s.signal()
}

func (s *settler) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// close lets run return once all is stored.
func (s *settler) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.signal()
}

// take gives the next batch; over tells that none will come.
func (s *settler) take() (batch []settled, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(s.queue), settleBatch)
	batch, s.queue = s.queue[:n:n], s.queue[n:]
	return batch, s.closed
}

func (s *settler) run() {
	for {
		batch, over := s.take()
		if len(batch) == 0 {
			if over {
				return
			}
			<-s.wake
			time.Sleep(settleGather)
			continue
		}
		again := s.store(batch)
		if len(again) == 0 {
			continue
		}
		if over {
			again = s.lastTry(again)
		}
		s.mu.Lock()
		s.queue = append(s.queue, again...)
		s.mu.Unlock()
		time.Sleep(settlePause)
	}
}

// lastTry bounds a stop: three tries, then the message is sent again after the restart.
func (s *settler) lastTry(xs []settled) []settled {
	for i := range xs {
		xs[i].tries = max(xs[i].tries, settleTries-3)
	}
	return xs
}

// store writes a batch and returns what has to be tried again.
func (s *settler) store(batch []settled) (again []settled) {
	ctx := context.Background() // what a primary said must be kept, whoever hangs up
	var stay []settled
	var list []mta.Settlement
	for _, x := range batch {
		if !x.p.release && x.tries == 0 {
			x.reports = s.f.returns(ctx, &x)
		}
		if x.p.release {
			s.release(ctx, x)
			continue
		}
		stay = append(stay, x)
		list = append(list, mta.Settlement{Ref: x.j.lease.LeaseRef, Results: x.p.results, NextDue: x.p.next, Reports: x.reports})
	}
	if len(list) == 0 {
		return nil
	}
	start := time.Now()
	errs := s.f.q.Settle(ctx, list...)
	s.f.m.settle.Observe(time.Since(start).Seconds())
	for i, x := range stay {
		if errs[i] == nil {
			s.f.report(ctx, x)
			x.j.route.settled(x.j)
			continue
		}
		lost := s.f.lost != nil && errors.Is(errs[i], s.f.lost)
		if x.tries++; x.tries < settleTries && !lost {
			again = append(again, x)
			continue
		}
		s.f.fault(ctx, fmt.Sprintf("spool: settle %s", x.j.lease.ID), errs[i])
		x.j.route.settled(x.j)
	}
	return again
}

func (s *settler) release(ctx context.Context, x settled) {
	if err := s.f.q.Release(ctx, x.p.next, x.j.lease.LeaseRef); err != nil {
		s.f.log.LogAttrs(ctx, slog.LevelWarn, "lease not given back", slog.String("id", x.j.lease.ID.String()), slog.Any("err", err))
	}
	x.j.route.settled(x.j)
}

// report logs and counts what became of each recipient, after it was stored.
func (f *Forwarder) report(ctx context.Context, x settled) {
	now := time.Now()
	env := x.j.lease.Envelope
	for i, r := range x.p.results {
		f.m.results.WithLabelValues(r.Outcome.String()).Inc()
		level, what := slog.LevelInfo, "delivered"
		switch r.Outcome {
		case mta.Delivered:
			f.m.delay.Observe(now.Sub(env.Received).Seconds())
		case mta.Returned:
			what = "returned"
		case mta.Quarantined:
			level, what = slog.LevelWarn, "quarantined"
		default:
			what = "deferred"
		}
		attrs := []slog.Attr{
			slog.String("id", x.j.lease.ID.String()), slog.String("from", env.From.String()), slog.String("to", x.j.msg.Rcpts[i].Addr.String()),
			slog.String("primary", r.Primary), slog.Int("code", r.Reply.Code), slog.String("reply", r.Reply.String()),
			slog.Int("tries", x.j.lease.Attempts+1), slog.Duration("delay", now.Sub(env.Received)), slog.Duration("took", x.took),
		}
		if r.Outcome == mta.Deferred {
			attrs = append(attrs, slog.Time("next", x.p.next))
		}
		f.log.LogAttrs(ctx, level, what, attrs...)
		if f.ended != nil {
			f.ended(Ended{Envelope: env, Rcpt: x.j.msg.Rcpts[i], Outcome: r.Outcome, Reply: r.Reply, Step: x.p.step(i), Hindsight: x.j.hindsight})
		}
	}
}
