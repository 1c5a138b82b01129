package forwarder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

const (
	tendEvery = time.Second
	poolFor   = 10 * time.Minute // a pool that nobody used is forgotten
	tellAgain = time.Hour        // how often an operator is told that a primary refuses our MAIL
)

// stopping is what a transaction gets that begins while we stop.
var stopping = mta.NewReply(451, "4.3.2", "shutting down, please try again")

// pools are those of all roads. run ends sessions in time, and closes them all in the end.
type pools struct {
	f      *Forwarder
	dialer *smtpc.Dialer
	kick   chan struct{}

	mu      sync.Mutex
	byName  map[string]*pool
	life    context.Context // of what is done beside transactions; nil before run
	stopped bool            // no transaction begins
	over    bool            // no goroutine begins
	open    int             // transactions
	drained chan struct{}   // closed when stopped and none is open
	tending bool            // run looks after the pools every tendEvery
	refused map[string]refusal
	heard   map[string]time.Time // when the health last heard that a primary takes mail

	work sync.WaitGroup
}

// refusal is that a primary refuses our own MAIL.
type refusal struct {
	told time.Time
	on   bool
}

func newPools(f *Forwarder) *pools {
	d := *f.dialer
	d.Timeouts = inlineLimits(d.Timeouts)
	return &pools{
		f: f, dialer: &d, kick: make(chan struct{}, 1), byName: make(map[string]*pool), drained: make(chan struct{}),
		refused: make(map[string]refusal), heard: make(map[string]time.Time),
	}
}

// of gives the pool of a destination.
func (ps *pools) of(ctx context.Context, dest string) (*pool, error) {
	f := ps.f
	to, err := f.routeOf(ctx, dest)
	if err != nil || len(to.Tiers) == 0 {
		return nil, awayFrom(dest, err)
	}
	f.mu.Lock()
	dom := f.domains[dest]
	f.mu.Unlock()
	name := to.Name
	if k := dom.key(dest); k != "" {
		name += " " + k
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.byName[name]
	if p == nil {
		p = &pool{all: ps, name: to.Name, road: road{f: f, tiers: to.Tiers, dom: dom, domain: dest}, busy: make(map[*Inline]string), down: make(map[string]time.Time), answered: make(map[string]time.Time)}
		ps.byName[name] = p
	}
	p.mu.Lock()
	p.last = time.Now()
	p.mu.Unlock()
	if !ps.tending {
		ps.tending = true
		select {
		case ps.kick <- struct{}{}:
		default:
		}
	}
	return p, nil
}

// routeOf is where a destination's mail goes.
func (f *Forwarder) routeOf(ctx context.Context, dest string) (mta.Route, error) {
	f.mu.Lock()
	h, ok := f.homes[dest]
	f.mu.Unlock()
	if ok && len(h.route.Tiers) > 0 && time.Since(h.at) < homeFor {
		return h.route, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	to, err := f.routes.Route(ctx, dest)
	if err != nil {
		return to, fmt.Errorf("no route for %s: %w", dest, err)
	}
	f.mu.Lock()
	if len(f.homes) >= maxHosts {
		clear(f.homes)
	}
	f.homes[dest] = home{route: to, at: time.Now()}
	f.mu.Unlock()
	return to, nil
}

// begin counts a transaction, unless we are stopping.
func (ps *pools) begin() bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if !ps.stopped {
		ps.open++
	}
	return !ps.stopped
}

func (ps *pools) end() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.open--
	if ps.stopped && ps.open == 0 {
		close(ps.drained)
	}
}

// waits starts a goroutine that waits with a session, unless no session is to be kept any more.
func (ps *pools) waits(fn func()) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if !ps.stopped {
		ps.work.Go(fn)
	}
	return !ps.stopped
}

// runs starts a goroutine that prepares something, for as long as run runs.
func (ps *pools) runs(fn func(ctx context.Context)) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.stopped || ps.life == nil {
		return false
	}
	ctx := ps.life
	ps.work.Go(func() { fn(ctx) })
	return true
}

// beside does what nobody waits for, or nothing if all is over.
func (ps *pools) beside(fn func()) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if !ps.over {
		ps.work.Go(fn)
	}
	return !ps.over
}

// quit says farewell to a primary.
func (ps *pools) quit(l *line) {
	said := ps.beside(func() {
		ctx, cancel := context.WithTimeout(context.Background(), abortLimit)
		defer cancel()
		l.conn.Quit(ctx)
	})
	if !said {
		l.conn.Close()
	}
}

// run looks after the pools until ctx is done. Then no transaction begins, those that have begun may end until work is done,
// and all sessions are closed when it returns.
func (ps *pools) run(ctx, work context.Context) {
	ps.mu.Lock()
	ps.life = ctx
	ps.mu.Unlock()
	tick := time.NewTimer(tendEvery)
	tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ps.kick:
			tick.Reset(tendEvery)
		case now := <-tick.C:
			if ps.tend(now) {
				tick.Reset(tendEvery)
			}
		}
	}
	tick.Stop()
	ps.mu.Lock()
	ps.stopped = true
	if ps.open == 0 {
		close(ps.drained)
	}
	ps.mu.Unlock()
	ps.each((*pool).close)
	select {
	case <-ps.drained:
	case <-work.Done():
		ps.each((*pool).cut)
	}
	ps.mu.Lock()
	ps.over = true
	ps.mu.Unlock()
	ps.work.Wait()
}

func (ps *pools) each(do func(*pool)) {
	for _, p := range ps.list() {
		do(p)
	}
}

func (ps *pools) list() []*pool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	list := make([]*pool, 0, len(ps.byName))
	for _, p := range ps.byName {
		list = append(list, p)
	}
	return list
}

// tend looks after every pool, forgets those that nobody needs, and reports whether it is to look again.
func (ps *pools) tend(now time.Time) bool {
	c := ps.f.config()
	alive := false
	for _, p := range ps.list() {
		alive = p.tend(now, &c) || alive
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for name, p := range ps.byName {
		p.mu.Lock()
		if p.taken+len(p.idle)+p.making+len(p.queue) == 0 && now.Sub(p.last) > poolFor {
			delete(ps.byName, name)
		}
		p.mu.Unlock()
	}
	ps.tending = alive
	return alive
}

// refusedUs notes that a primary refused MAIL for good to us ourselves, and reports whether the operator is to be told.
func (ps *pools) refusedUs(primary string, now time.Time) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	r, known := ps.refused[primary]
	if known && now.Sub(r.told) < tellAgain {
		return false
	}
	if len(ps.refused) >= maxHosts {
		clear(ps.refused)
	}
	ps.refused[primary] = refusal{told: now, on: true}
	return true
}

// tookMail notes that a primary took MAIL, and reports whether that ends an alarm.
func (ps *pools) tookMail(primary string) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	r := ps.refused[primary]
	if r.on {
		ps.refused[primary] = refusal{told: r.told}
	}
	return r.on
}

// took tells the health, now and then, that a primary takes mail.
func (ps *pools) took(primary string, now time.Time) {
	ps.mu.Lock()
	tell := now.Sub(ps.heard[primary]) >= tellEvery
	if tell {
		if len(ps.heard) >= maxHosts {
			clear(ps.heard)
		}
		ps.heard[primary] = now
	}
	ps.mu.Unlock()
	if tell {
		ps.f.health.Observe(primary, nil)
	}
}

// awayFrom is that no primary of dest takes mail now, and why.
func awayFrom(dest string, why error) error {
	return fmt.Errorf("forwarder: inline for %s: %w", dest, errors.Join(mta.ErrAway, why))
}
