package forwarder

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"understudy/internal/mta"
)

const (
	flushTried = 100_000          // deliveries that one flush remembers to have tried; more end it
	flushLife  = 10 * time.Minute // a flush is for now: what it did not come to by then goes by its schedule
)

// flush is an operator's wish that a destination's mail is tried now, due or not, and each delivery once.
type flush struct {
	until time.Time

	mu     sync.Mutex
	ids    []mta.ID // only these; none: all
	all    bool
	tried  map[mta.ID]struct{}
	parked []mta.LeaseRef // tried already, kept out of the way until the flush ends
}

// Flush tries mail now, due or not: all, that of one destination, or one message. The gate still decides.
func (f *Forwarder) Flush(_ context.Context, dest string, id mta.ID) {
	f.mu.Lock()
	f.wishes = append(f.wishes, wish{dest: dest, id: id})
	for _, h := range f.hosts {
		h.pause(time.Time{})
	}
	f.mu.Unlock()
	f.nudge()
}

type wish struct {
	dest string
	id   mta.ID
}

// grant turns the wishes into flushes of destinations and returns these.
func (f *Forwarder) grant(ctx context.Context) []string {
	f.mu.Lock()
	wishes := f.wishes
	f.wishes = nil
	f.mu.Unlock()
	if len(wishes) == 0 {
		return nil
	}
	dests, err := f.q.DueDests(ctx, true)
	if err != nil {
		f.fault(ctx, "spool: destinations", err)
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var flushed []string
	for _, d := range dests {
		for _, w := range wishes {
			if w.dest == "" || w.dest == d {
				f.flushLocked(d, w.id)
				flushed = append(flushed, d)
			}
		}
	}
	return flushed
}

func (f *Forwarder) flushLocked(dest string, id mta.ID) {
	fl := f.flushes[dest]
	if fl == nil || time.Now().After(fl.until) || !fl.running() {
		fl = &flush{tried: make(map[mta.ID]struct{})}
		f.flushes[dest] = fl
	}
	fl.until = time.Now().Add(flushLife)
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if id.IsZero() {
		fl.all = true
		return
	}
	fl.ids = append(fl.ids, id)
}

func (fl *flush) running() bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.all || len(fl.ids) > 0
}

// flushed lists the destinations that are being flushed.
func (f *Forwarder) flushed() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.flushes))
}

// flushing gives the flush of a destination, if one runs.
func (f *Forwarder) flushing(dest string) *flush {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.flushes[dest]
	if fl == nil {
		return nil
	}
	if time.Now().After(fl.until) || !fl.running() {
		delete(f.flushes, dest)
		return nil
	}
	return fl
}

// claim leases what the flush did not try yet; nothing means that it has ended, or that its one message is no more.
func (fl *flush) claim(ctx context.Context, q Queue, dest string, most int) ([]mta.Lease, error) {
	for {
		r := mta.ClaimRequest{Dest: dest, Max: most, Lease: leaseTime, IgnoreDue: true}
		fl.mu.Lock()
		if len(fl.ids) > 0 {
			r.ID, fl.ids = fl.ids[0], fl.ids[1:]
		}
		fl.mu.Unlock()
		leases, err := q.Claim(ctx, r)
		if err != nil || !r.ID.IsZero() {
			return leases, err
		}
		fresh, parked := fl.sift(leases)
		if len(leases) == 0 || parked > flushTried {
			fl.end(ctx, q)
			return fresh, nil
		}
		if len(fresh) > 0 {
			return fresh, nil
		}
	}
}

// sift keeps the ones out that were tried already.
func (fl *flush) sift(leases []mta.Lease) (fresh []mta.Lease, parked int) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for _, l := range leases {
		if _, ok := fl.tried[l.ID]; ok {
			fl.parked = append(fl.parked, l.LeaseRef)
			continue
		}
		fresh = append(fresh, l)
	}
	return fresh, len(fl.parked)
}

// done notes that a delivery was tried.
func (fl *flush) done(id mta.ID) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.tried[id] = struct{}{}
}

// end gives back what was parked; it is due when it was.
func (fl *flush) end(ctx context.Context, q Queue) {
	fl.mu.Lock()
	parked := fl.parked
	fl.all, fl.parked = false, nil
	fl.mu.Unlock()
	if len(parked) > 0 {
		q.Release(ctx, time.Time{}, parked...) // a lease that is not given back lapses
	}
}
