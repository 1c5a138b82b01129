package forwarder

import (
	"context"
	"log/slog"
	"time"

	"understudy/internal/mta"
)

const (
	expireEvery = time.Minute
	expireBatch = 256
)

// Expiry is how old a destination's mail may become, for who sets Envelope.Expires.
func (f *Forwarder) Expiry(dest string) time.Duration { return f.expiry(dest) }

// expire puts what is past its Envelope.Expires into quarantine, from time to time, whether its primary is there or not.
func (f *Forwarder) expire(ctx context.Context) {
	tick := time.NewTicker(expireEvery)
	defer tick.Stop()
	for {
		for f.expireSome(ctx) {
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// expireSome ends one batch and reports whether there may be more.
func (f *Forwarder) expireSome(ctx context.Context) bool {
	leases, err := f.q.Claim(ctx, mta.ClaimRequest{Expired: true, Max: expireBatch, Lease: leaseTime})
	if err != nil {
		f.fault(ctx, "spool: claim expired", err)
		return false
	}
	if len(leases) == 0 {
		return false
	}
	settlements := make([]mta.Settlement, len(leases))
	for i := range leases {
		l := &leases[i]
		s := mta.Settlement{Ref: l.LeaseRef}
		for _, r := range l.Rcpts {
			reply := expiredReply(l.Envelope.Expires.Sub(l.Envelope.Received), r.Reply)
			s.Results = append(s.Results, mta.RcptResult{N: r.N, Outcome: mta.Quarantined, Reply: reply, Primary: r.Primary})
		}
		settlements[i] = s
	}
	stored := true
	for i, err := range f.q.Settle(context.WithoutCancel(ctx), settlements...) {
		if err != nil {
			f.fault(ctx, "spool: settle "+leases[i].ID.String(), err)
			stored = false
			continue
		}
		f.m.results.WithLabelValues(mta.Quarantined.String()).Add(float64(len(leases[i].Rcpts)))
		f.log.LogAttrs(ctx, slog.LevelError, "expired", slog.String("id", leases[i].ID.String()), slog.String("domain", leases[i].Dest),
			slog.String("from", leases[i].Envelope.From.String()), slog.Duration("delay", time.Since(leases[i].Envelope.Received)))
	}
	return stored && len(leases) == expireBatch
}
