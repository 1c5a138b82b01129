package forwarder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

const (
	leaseTime   = 15 * time.Minute // of a claim; the keeper extends it while a session is slow
	maxLookups  = 32               // routes resolved at the same time
	lookupLimit = time.Minute
	homeFor     = time.Minute      // how long a route is taken for granted when nothing changes
	askAgain    = 30 * time.Second // the same when there was none
	maxSuspects = 10_000
	maxHosts    = 20_000 // primaries and destinations remembered
)

// Forwarder hands mail over. Run must be running for anything to happen.
type Forwarder struct {
	q         Queue
	routes    Routes
	health    Health
	dialer    *smtpc.Dialer
	log       *slog.Logger
	m         *metrics
	memory    *semaphore.Weighted // octets of content read ahead
	lost      error               // Deps.LeaseLost
	proof     func(*mta.Envelope) Proof
	sts       *STS
	events    func(mta.Event) // Deps.Events
	ended     func(Ended)     // Deps.Ended
	hindsight hindsight

	kick    chan struct{}
	out     leases
	settler *settler
	pools   *pools

	mu       sync.Mutex
	cfg      Config
	domains  map[string]Domain
	active   map[string]*route // that have work, by name
	homes    map[string]home   // by destination
	looking  map[string]struct{}
	hosts    map[string]*host  // by primary
	flushes  map[string]*flush // by destination
	wishes   []wish
	suspects map[mta.ID]int
	held     map[string]struct{} // destinations whose drain an operator holds
	fresh    map[string][]mta.ID // by destination
	freshN   int
	ours     map[netip.Addr]bool // addresses of this host
	oursAt   time.Time
	reports  pace
}

// home is where a destination's mail goes, as of a time.
type home struct {
	route mta.Route
	at    time.Time
}

// New makes a Forwarder. It does no I/O.
func New(cfg Config, domains map[string]Domain, d Deps) (*Forwarder, error) {
	if faults := cfg.Validate(); len(faults) > 0 {
		return nil, fmt.Errorf("forwarder: %s: %s", faults[0].Key, faults[0].Text)
	}
	if d.Queue == nil || d.Routes == nil || d.Health == nil || d.Dialer == nil || d.Log == nil {
		return nil, errors.New("forwarder: a dependency is missing")
	}
	f := &Forwarder{
		q: d.Queue, routes: d.Routes, health: d.Health, log: d.Log, lost: d.LeaseLost, proof: d.Proof, sts: d.STS, events: d.Events, ended: d.Ended,
		hindsight: hindsight{judge: d.Hindsight, after: d.HindsightAfter},
		memory:    semaphore.NewWeighted(int64(cfg.Memory)),
		kick:      make(chan struct{}, 1), out: leases{out: make(map[*job]struct{})},
		cfg: cfg, domains: domains, active: make(map[string]*route), homes: make(map[string]home), looking: make(map[string]struct{}),
		hosts: make(map[string]*host), flushes: make(map[string]*flush), suspects: make(map[mta.ID]int), held: make(map[string]struct{}), fresh: make(map[string][]mta.ID),
	}
	dialer := *d.Dialer
	for _, s := range cfg.Source {
		a, _ := netip.ParseAddr(s) // Validate has seen it
		dialer.Source = append(dialer.Source, a)
	}
	f.dialer = &dialer
	f.pools = newPools(f)
	f.m = newMetrics(d.Metrics, f)
	f.settler = newSettler(f)
	return f, nil
}

// Reload puts what can change without a restart in force: all but memory and source.
func (f *Forwarder) Reload(cfg Config, domains map[string]Domain) {
	f.mu.Lock()
	f.cfg, f.domains = cfg, domains
	f.mu.Unlock()
}

func (f *Forwarder) config() Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cfg
}

// Run hands mail over until ctx is done. Then no new try begins; sessions that wait for replies get them, within the
// configured grace; all results are stored before it returns.
func (f *Forwarder) Run(ctx context.Context) error {
	work, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(nil)
	var background, routes sync.WaitGroup
	end := make(chan struct{})
	background.Go(f.settler.run)
	background.Go(func() { f.keep(work, end) })
	background.Go(func() { f.expire(ctx) })
	routes.Go(func() { f.pools.run(ctx, work) })
	f.dispatch(ctx, work, &routes)
	grace := time.AfterFunc(f.config().ShutdownGrace, func() { cut(errors.New("stopping")) })
	routes.Wait()
	grace.Stop()
	close(end)
	f.settler.close()
	background.Wait()
	return nil
}

// dispatch waits for signs of work and starts routes, until ctx is done.
func (f *Forwarder) dispatch(ctx, work context.Context, routes *sync.WaitGroup) {
	var lookups sync.WaitGroup
	defer lookups.Wait()
	d := &dispatcher{f: f, ctx: ctx, work: work, routes: routes, lookups: &lookups, slots: make(chan struct{}, maxLookups)}
	poll := time.NewTimer(0)
	defer poll.Stop()
	var watch <-chan string
	changed := f.health.Changed()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed: // taken anew before looking, so that no change falls between
			changed = f.health.Changed()
			f.lookAround()
			d.scan()
		case dest, ok := <-watch:
			if !ok {
				watch = nil
				continue
			}
			d.enlist(dest)
		case <-f.kick:
			for _, dest := range f.grant(ctx) {
				d.enlist(dest)
			}
			d.scan()
		case <-poll.C:
			if watch == nil {
				watch = d.watch()
			}
			d.scan()
			poll.Reset(d.nextLook())
		}
	}
}

// lookAround takes in that gates or routes changed: routes are asked for again, and a primary whose gate opened has its
// past forgiven.
func (f *Forwarder) lookAround() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.homes)
	for name, h := range f.hosts {
		if h.look(f.health.Open(name)) {
			clear(f.suspects) // whose fault it was is open again
		}
		if len(f.hosts) > maxHosts && h.idle(time.Now()) {
			delete(f.hosts, name)
		}
	}
}

// dispatcher is the state of dispatch.
type dispatcher struct {
	f         *Forwarder
	ctx, work context.Context // the part's life, and that of what it started
	routes    *sync.WaitGroup
	lookups   *sync.WaitGroup
	slots     chan struct{}
}

func (d *dispatcher) watch() <-chan string {
	ch, err := d.f.q.Watch(d.ctx)
	if err != nil {
		d.f.fault(d.ctx, "spool: watch", err)
		return nil
	}
	return ch
}

// scan enlists every destination that has something due.
func (d *dispatcher) scan() {
	dests, err := d.f.q.DueDests(d.ctx, false)
	if err != nil {
		d.f.fault(d.ctx, "spool: destinations", err)
		return
	}
	for _, dest := range append(dests, d.f.flushed()...) {
		d.enlist(dest)
	}
}

// nextLook is the time until the next scan: when something becomes due, or the poll.
func (d *dispatcher) nextLook() time.Duration {
	poll := d.f.config().Poll
	next, err := d.f.q.NextDue(d.ctx)
	if err != nil || next.IsZero() {
		return poll
	}
	wait := time.Until(next)
	if wait <= 0 { // due, and waiting for a gate or a session
		return poll
	}
	return min(wait, poll)
}

// enlist starts the work on a destination, after its route was looked up if need be.
func (d *dispatcher) enlist(dest string) {
	f := d.f
	f.mu.Lock()
	h, ok := f.homes[dest]
	_, looking := f.looking[dest]
	fresh := ok && time.Since(h.at) < homeFor
	if !fresh && !looking {
		f.looking[dest] = struct{}{}
	}
	f.mu.Unlock()
	switch {
	case fresh:
		d.start(h.route, dest)
	case !looking:
		d.lookups.Go(func() { d.lookup(dest) })
	}
}

// lookup resolves a destination's route and starts the work.
func (d *dispatcher) lookup(dest string) {
	f := d.f
	var route mta.Route
	var err error
	select {
	case d.slots <- struct{}{}:
		ctx, cancel := context.WithTimeout(d.ctx, lookupLimit)
		route, err = f.routes.Route(ctx, dest)
		cancel()
		<-d.slots
	case <-d.ctx.Done():
		err = d.ctx.Err()
	}
	f.mu.Lock()
	delete(f.looking, dest)
	h := home{route: route, at: time.Now()}
	if err != nil {
		h = home{at: h.at.Add(askAgain - homeFor)}
	}
	if len(f.homes) >= maxHosts {
		clear(f.homes)
	}
	f.homes[dest] = h
	f.mu.Unlock()
	if err == nil {
		d.start(route, dest)
		return
	}
	if d.ctx.Err() == nil {
		f.log.LogAttrs(d.ctx, slog.LevelWarn, "no route", slog.String("domain", dest), slog.Any("err", err))
	}
}

// start puts a destination to its route, if mail may be sent that way now.
func (d *dispatcher) start(to mta.Route, dest string) {
	f := d.f
	usable := f.anyUsable(to.Tiers)
	f.mu.Lock()
	defer f.mu.Unlock()
	if to.Held {
		f.held[dest] = struct{}{}
		return
	}
	delete(f.held, dest)
	if !usable || d.ctx.Err() != nil {
		return
	}
	dom := f.domains[dest]
	name := to.Name
	if k := dom.key(dest); k != "" {
		name += " " + k
	}
	r := f.active[name]
	if r == nil {
		r = newRoute(f, name, to, dom, dest)
		f.active[name] = r
		d.routes.Go(func() { r.run(d.ctx, d.work) })
	}
	r.add(dest)
}

// anyUsable looks at every gate, so that one that opens later is seen to, and at the breakers.
func (f *Forwarder) anyUsable(tiers [][]mta.Primary) bool {
	any := false
	for _, tier := range tiers {
		for _, p := range tier {
			any = f.usable(p.String()) || any
		}
	}
	return any
}

// usable reports that a primary may be sent mail now.
func (f *Forwarder) usable(primary string) bool {
	open := f.health.Open(primary)
	h := f.host(primary)
	h.look(open)
	return h.admitted(time.Now(), f.config().Breaker.RetryAfter) && open
}

func (f *Forwarder) host(primary string) *host {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[primary]
	if h == nil {
		h = newHost(primary)
		f.hosts[primary] = h
	}
	return h
}

// Resume closes the breaker of a primary, or of all if it is empty, and reports whether one was open.
func (f *Forwarder) Resume(primary string) bool {
	f.mu.Lock()
	resumed := false
	for name, h := range f.hosts {
		if primary == "" || primary == name {
			resumed = h.resume() || resumed
		}
	}
	f.mu.Unlock()
	f.nudge()
	return resumed
}

// nudge makes Run look for work.
func (f *Forwarder) nudge() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

// isHeld reports whether an operator holds a destination's drain.
func (f *Forwarder) isHeld(dest string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, held := f.held[dest]
	return held
}

// raise tells the operator of an event.
func (f *Forwarder) raise(e mta.Event) {
	if f.events != nil {
		e.At = time.Now()
		f.events(e)
	}
}

// Options are how a primary of a domain is dialled, so that a probe meets what a delivery would meet.
func (f *Forwarder) Options(domain string) smtpc.Options {
	f.mu.Lock()
	dom := f.domains[domain]
	f.mu.Unlock()
	tls, err := f.policy(&dom)
	if err != nil { // as a route that can't read its files: nothing goes out, and the log says why
		tls = smtpc.TLSPolicy{Mode: smtpc.TLSVerify}
	}
	return smtpc.Options{LMTP: dom.LMTP, TLS: tls, Proxy: dom.ClientIdentity == "proxy_v2"}
}

// suspect counts the sessions that ended while they were busy with a message.
func (f *Forwarder) suspect(id mta.ID) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.suspects) >= maxSuspects {
		clear(f.suspects)
	}
	f.suspects[id]++
	return f.suspects[id]
}

func (f *Forwarder) cleared(id mta.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.suspects, id)
}

// fault logs trouble of our own that mail waits for.
func (f *Forwarder) fault(ctx context.Context, what string, err error) {
	if ctx.Err() != nil {
		return
	}
	f.m.faults.Inc()
	f.log.LogAttrs(ctx, slog.LevelError, "forwarder fault", slog.String("at", what), slog.Any("err", err))
}

// expiry is how old a destination's mail may become.
func (f *Forwarder) expiry(dest string) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.domains[dest].Expire; d > 0 {
		return d
	}
	return f.cfg.Expire
}

// keep extends the leases of what takes long.
func (f *Forwarder) keep(ctx context.Context, end <-chan struct{}) {
	tick := time.NewTicker(leaseTime / 15)
	defer tick.Stop()
	for {
		select {
		case <-end:
			return
		case now := <-tick.C:
			for _, j := range f.out.ending(now.Add(2 * leaseTime / 3)) {
				until, err := f.q.Extend(ctx, j.lease.LeaseRef, leaseTime)
				if err != nil { // it may go out twice, or an operator dropped it
					f.log.LogAttrs(ctx, slog.LevelWarn, "lease not extended", slog.String("id", j.lease.ID.String()), slog.Any("err", err))
					continue
				}
				f.out.extended(j, until)
			}
		}
	}
}
