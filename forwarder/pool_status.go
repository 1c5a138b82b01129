package forwarder

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// PoolStatus is what goes inline to one route now, for people.
type PoolStatus struct {
	Route    string    `json:"route"`
	Busy     int       `json:"busy"`    // transactions, each with a session of its own
	Limit    int       `json:"limit"`   // of these
	Waiting  int       `json:"waiting"` // transactions without a session yet
	Warm     int       `json:"warm"`    // sessions that wait for any client
	Own      int       `json:"own"`     // sessions that wait for the client that the primary was told of
	LastUsed time.Time `json:"last_used,omitzero"`
}

// Pools lists the routes that mail goes inline to, sorted by name.
func (f *Forwarder) Pools() []PoolStatus {
	limit := f.config().Inline.Sessions
	var list []PoolStatus
	for _, p := range f.pools.list() {
		p.mu.Lock()
		s := PoolStatus{Route: p.name, Busy: p.taken, Limit: limit, Waiting: len(p.queue), LastUsed: p.last}
		for _, l := range p.idle {
			if l.key == "" {
				s.Warm++
				continue
			}
			s.Own++
		}
		p.mu.Unlock()
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b PoolStatus) int { return cmp.Compare(a.Route, b.Route) })
	return list
}

// sessions counts the sessions with each primary: those that are used, and those that wait.
func (ps *pools) sessions() (used, waiting map[string]int) {
	used, waiting = make(map[string]int), make(map[string]int)
	for _, p := range ps.list() {
		p.mu.Lock()
		for _, primary := range p.busy {
			used[primary]++
		}
		for _, l := range p.idle {
			waiting[l.primary]++
		}
		p.mu.Unlock()
	}
	return used, waiting
}

// Broken reports that the breaker of one of a destination's primaries is open: it has come back and refuses far too much.
func (f *Forwarder) Broken(dest string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	to, err := f.routeOf(ctx, dest)
	if err != nil {
		return false
	}
	for _, tier := range to.Tiers {
		for _, x := range tier {
			f.mu.Lock()
			h := f.hosts[x.String()]
			f.mu.Unlock()
			if h != nil && h.broken() {
				return true
			}
		}
	}
	return false
}

// broken reports that the breaker is open.
func (h *host) broken() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.tripped.IsZero()
}
