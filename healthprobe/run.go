package healthprobe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"understudy/internal/dnsx"
	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

// lookupLimit bounds one lookup of a route, all its hosts included.
const lookupLimit = 30 * time.Second

// Run probes and looks up until ctx is done, and returns when all that it started has ended.
func (p *Prober) Run(ctx context.Context) error {
	p.load(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	if p.keep.tables != nil {
		wg.Go(func() { p.keep.run(ctx) })
	}
	if p.deps.Backlog != nil {
		wg.Go(func() { p.watchDrains(ctx) })
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(p.dispatch(ctx, &wg))
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-timer.C:
		}
	}
}

// load takes what former runs knew.
func (p *Prober) load(ctx context.Context) {
	routes := make(map[string]keptRoute)
	load(ctx, p.keep, nsRoute, func(name string, k keptRoute) { routes[name] = k })
	memories := make(map[string]memory)
	load(ctx, p.keep, nsPrimary, func(primary string, m memory) { memories[primary] = m })
	var outages []Outage
	load(ctx, p.keep, nsOutage, func(_ string, o Outage) { outages = append(outages, o) })
	var overrides []Override
	load(ctx, p.keep, nsOverride, func(_ string, o Override) { overrides = append(overrides, o) })

	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.memories = memories
	for _, w := range p.watches {
		w.memory = memories[w.key]
	}
	for name, k := range routes {
		p.loadRoute(name, k, now)
	}
	p.loadOutages(outages, now)
	for _, o := range overrides {
		p.overrides[o.key()] = o
	}
}

// idle is how long the dispatcher sleeps when nothing is due or nothing more may run: whoever changes that wakes it.
const idle = time.Hour

// dispatch starts all that is due, within the bounds, and returns how long nothing else will be.
func (p *Prober) dispatch(ctx context.Context, wg *sync.WaitGroup) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil {
		return idle
	}
	now := time.Now()
	for p.probing < p.cfg.MaxProbes {
		w, ok := p.probes.pop(now)
		if !ok {
			break
		}
		if !w.slot.at.IsZero() && w.fresh(now, p.cfg.Every) {
			p.probes.set(w, later(w.proved.Add(p.cfg.Every), now.Add(minGap)))
			continue
		}
		p.startProbe(ctx, wg, w, now)
	}
	for p.looking < p.cfg.MaxLookups {
		d, ok := p.lookups.pop(now)
		if !ok {
			break
		}
		p.looking++
		d.running = true
		wg.Go(func() { p.lookUp(ctx, d) })
	}
	return min(p.sleep(now), p.endOverrides(ctx, now))
}

// sleep is how long until the dispatcher has something to do. p.mu is held.
func (p *Prober) sleep(now time.Time) time.Duration {
	d := idle
	if at, ok := p.probes.next(); ok && p.probing < p.cfg.MaxProbes {
		d = min(d, at.Sub(now))
	}
	if at, ok := p.lookups.next(); ok && p.looking < p.cfg.MaxLookups {
		d = min(d, at.Sub(now))
	}
	return max(d, 0)
}

// startProbe begins the probe of w. p.mu is held.
func (p *Prober) startProbe(ctx context.Context, wg *sync.WaitGroup, w *watch, now time.Time) {
	subject := w.subject()
	w.asked = subject
	t := target{
		primary: w.primary, to: p.recipient(subject), knows: w.memory.Postmaster && w.belief.state != Up,
		depth: depths[p.cfg.Depth], hostname: p.deps.Dialer.Hostname, timeout: p.cfg.Timeout,
	}
	d := *p.deps.Dialer
	d.Lookup = p.LookupAddrs
	d.Timeouts = limits(&p.cfg)
	p.probing++
	p.metrics.running.Inc()
	w.running, w.again, w.started = true, false, now
	w.firm, w.cut = w.cut, false
	pctx, cancel := context.WithCancel(ctx)
	w.cancel = cancel
	wg.Go(func() {
		defer cancel()
		if p.deps.Options != nil {
			t.options = p.deps.Options(subject) // it may read files: not under the lock
		}
		p.finishProbe(ctx, w, probe(pctx, &d, t))
	})
}

// recipient is whom a probe for the domain names. p.mu is held.
func (p *Prober) recipient(name string) mta.Path {
	if d := p.domains[name]; d != nil && d.cfg.ProbeRecipient != "" {
		if to, err := mta.ParsePath(d.cfg.ProbeRecipient); err == nil {
			return to
		}
	}
	return mta.Path{Local: "postmaster", Domain: name}
}

// limits give each step of a probe the time of a whole probe, which its context bounds anyway.
func limits(c *Config) smtpc.Timeouts {
	t := c.Timeout
	return smtpc.Timeouts{Lookup: t, Dial: c.DialTimeout, Banner: t, EHLO: t, TLS: t, Mail: t, Rcpt: t}
}

// finishProbe takes the report of a probe into the belief.
func (p *Prober) finishProbe(ctx context.Context, w *watch, r Probe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.probing--
	p.metrics.running.Dec()
	w.running = false
	defer p.nudge()
	if w.dropped || ctx.Err() != nil { // a probe that our own stopping cut off says nothing
		return
	}
	if w.cut && !r.OK {
		p.probes.set(w, time.Time{})
		return
	}
	w.cut = false
	p.count(r)
	now := time.Now()
	if r.ours {
		p.deps.Log.LogAttrs(ctx, slog.LevelError, "probe failed for lack of our own resources",
			slog.String("primary", w.key), slog.Any("err", r.err))
		p.probes.set(w, now.Add(p.cfg.EveryLongDown))
		return
	}
	w.last = r
	if r.OK {
		p.remember(w, r, now)
	}
	old := w.belief
	w.belief = old.observe(r.result, now, p.cfg.rules())
	if w.belief.state != old.state {
		p.transition(ctx, w, old, now)
	}
	p.probeEvents(w, now)
	at := w.started.Add(p.cfg.wait(w.belief, now, rand.Float64()))
	if w.again {
		at = now
	}
	p.probes.set(w, later(at, now.Add(min(minGap, p.cfg.Confirm))))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (p *Prober) count(r Probe) {
	name := [...]string{took: "took", refused: "refused", failed: "failed"}[r.result]
	if r.ours {
		name = "ours"
	}
	p.metrics.probes.WithLabelValues(name).Inc()
	for _, f := range r.Facts {
		p.metrics.steps.WithLabelValues(f.Step).Observe(f.Took.Seconds())
	}
}

// transition tells the world that w is in another state than before. p.mu is held.
func (p *Prober) transition(ctx context.Context, w *watch, old belief, now time.Time) {
	p.metrics.transitions.WithLabelValues(w.belief.state.String()).Inc()
	attrs := []slog.Attr{slog.String("primary", w.key), slog.String("was", old.state.String()), slog.Int("domains", len(w.domains))}
	if !old.since.IsZero() {
		attrs = append(attrs, slog.Duration("took", now.Sub(old.since)))
	}
	if w.belief.flapping(now, p.cfg.rules()) {
		attrs = append(attrs, slog.Bool("flapping", true))
	}
	level, msg := slog.LevelInfo, "primary is up"
	if w.belief.state != Up {
		level, msg = slog.LevelWarn, "primary is down"
		if w.belief.state == Refusing {
			msg = "primary refuses mail"
		}
		attrs = append(attrs, slog.String("step", w.last.Step), slog.String("err", w.last.Why))
	}
	p.deps.Log.LogAttrs(ctx, level, msg, attrs...)
	p.stateEvent(w, now)
	if w.belief.state == Up {
		p.outageEnds(w, now, "")
	} else {
		p.outageGoesOn(w, now)
		w.belief.gone = w.outage.Begin // it may have begun before our start
	}
	p.tell()
}

// lookUp finds the route of d anew.
func (p *Prober) lookUp(ctx context.Context, d *domain) {
	lctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	f, err := p.find(lctx, d.name)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looking--
	d.running = false
	defer p.nudge()
	if ctx.Err() == nil {
		p.found(ctx, d, f, err)
	}
}

// found takes what a lookup brought. p.mu is held.
func (p *Prober) found(ctx context.Context, d *domain, f finding, err error) {
	if d.dropped || d.fromConf { // the config has changed meanwhile
		return
	}
	now := time.Now()
	p.countLookup(f, err)
	if err != nil {
		p.deps.Log.LogAttrs(ctx, slog.LevelWarn, "route can't be looked up", slog.String("domain", d.name),
			slog.Bool("kept", d.known), slog.Any("err", err))
	}
	if route, changed := d.learn(f, err, now); changed {
		p.setRoute(d, route, now)
		p.deps.Log.LogAttrs(ctx, slog.LevelInfo, "route found", slog.String("domain", d.name),
			slog.String("route", route.Name), slog.Any("notes", f.notes))
		p.tell()
	}
	for host, addrs := range f.addrs { // the primaries among them have a book by now
		if p.books[host] != nil {
			p.setAddrs(host, addrs)
		}
	}
	if err == nil {
		p.routeEvents(d, f, now)
		p.keepRoute(d, now)
	}
	p.lookups.set(d, now.Add(d.again(f, p.cfg.RouteMinTTL, p.cfg.RouteMaxTTL)))
}

func (p *Prober) countLookup(f finding, err error) {
	result := "found"
	switch {
	case err != nil:
		result = "failed"
	case f.none != "":
		result = "none"
	}
	p.metrics.lookups.WithLabelValues(result).Inc()
}

// Route tells where a domain's mail goes, the members of each tier in random order. For a configured domain an error
// is always temporary; no tiers mean that nothing is better than us, and mail waits. For any other domain, the DNS is
// asked, and a *mta.Reply in the error says that it takes no mail for certain.
func (p *Prober) Route(ctx context.Context, name string) (mta.Route, error) {
	p.mu.Lock()
	d := p.domains[name]
	if d != nil && d.known {
		defer p.mu.Unlock()
		return p.routeNow(d), nil
	}
	p.mu.Unlock()
	if d == nil {
		return p.foreign(ctx, name)
	}
	f, err := p.find(ctx, name)
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() == nil && !d.known {
		p.found(ctx, d, f, err)
	}
	if !d.known {
		return mta.Route{}, fmt.Errorf("healthprobe: route of %s: %w", name, err)
	}
	return p.routeNow(d), nil
}

// routeNow is the route of d, for one use. p.mu is held.
func (p *Prober) routeNow(d *domain) mta.Route {
	r := shuffled(d.route, rand.IntN)
	r.Held = p.held(d, time.Now()) != nil
	return r
}

// foreign finds the route of a domain that is not ours to back up: a report's recipient.
func (p *Prober) foreign(ctx context.Context, name string) (mta.Route, error) {
	f, err := p.find(ctx, name)
	switch {
	case err != nil:
		return mta.Route{}, fmt.Errorf("healthprobe: route of %s: %w", name, err)
	case f.null:
		return mta.Route{}, mta.NewReply(556, "5.1.10", "%s: %s", name, f.none)
	case f.none != "":
		return mta.Route{}, mta.NewReply(550, "5.1.2", "%s: %s", name, f.none)
	}
	return shuffled(mta.NewRoute(f.tiers), rand.IntN), nil
}

// LookupAddrs gives the addresses of a host. For a primary's host the last good answer holds while the DNS is in
// trouble: deliveries should dial by it too.
func (p *Prober) LookupAddrs(ctx context.Context, host string) ([]netip.Addr, error) {
	h, err := p.lookupHost(ctx, host)
	return h.Addrs, err
}

func (p *Prober) lookupHost(ctx context.Context, host string) (dnsx.Host, error) {
	h, err := p.deps.Resolver.LookupHost(ctx, host)
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.books[host]
	if b == nil {
		return h, err
	}
	if err == nil {
		p.setAddrs(host, h.Addrs)
		return h, nil
	}
	if !errors.Is(err, dnsx.ErrNotFound) && len(b.addrs) > 0 {
		return dnsx.Host{Addrs: slices.Clone(b.addrs), TTL: retryKnown}, nil
	}
	return h, err
}

// setAddrs writes a host's addresses into its book and into the index. p.mu is held.
func (p *Prober) setAddrs(host string, addrs []netip.Addr) {
	b := p.books[host]
	if slices.Equal(b.addrs, addrs) {
		return
	}
	for _, a := range b.addrs {
		delete(p.byAddr[a], host)
		if len(p.byAddr[a]) == 0 {
			delete(p.byAddr, a)
		}
	}
	b.addrs = slices.Clone(addrs)
	for _, a := range addrs {
		if p.byAddr[a] == nil {
			p.byAddr[a] = make(map[string]bool)
		}
		p.byAddr[a][host] = true
	}
}
