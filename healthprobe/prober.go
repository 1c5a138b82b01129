package healthprobe

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

// Deps are what a Prober works with.
type Deps struct {
	Dialer   *smtpc.Dialer // its Hostname is ours; its Lookup and limits of time are replaced
	Resolver Resolver
	Log      *slog.Logger
	Metrics  prometheus.Registerer // nil: none
	// Options says how a delivery for a domain would dial: TLS, LMTP, a PROXY header. A probe does the same, without a
	// client, or it would find a primary well that no mail can be brought to, or the other way round. nil: plainly.
	Options func(domain string) smtpc.Options
	// Own lists the addresses of this host; nil: those of its interfaces.
	Own func() []netip.Addr
	// Tables keep what must survive a restart; nil: nothing does.
	Tables Tables
	// Events tells the operator; nil: nobody. It must neither wait nor call the Prober.
	Events func(mta.Event)
	// Backlog counts, by domain, the messages that a drain has yet to try; nil: the end of drains is not noted.
	Backlog func(ctx context.Context) (map[string]int64, error)
}

// Prober watches primaries. All its methods may be called at any time by anyone.
type Prober struct {
	deps    Deps
	metrics *metrics
	wake    chan struct{} // something became due sooner
	keep    *keeper

	mu      sync.Mutex
	cfg     Config
	domains map[string]*domain
	watches map[string]*watch // by primary
	books   map[string]*book  // by host
	byAddr  map[netip.Addr]map[string]bool
	probes  queue[*watch]
	lookups queue[*domain]
	probing int
	looking int
	changed chan struct{} // closed at the next change

	overrides map[string]Override
	outages   []*Outage         // in the order of their begins
	memories  map[string]memory // of former runs, for primaries that are not watched yet
}

// New makes a Prober. Nothing is probed before Run.
func New(cfg Config, domains map[string]Domain, d Deps) (*Prober, error) {
	if f := cfg.Validate(); len(f) > 0 {
		return nil, fmt.Errorf("healthprobe: %s: %s", f[0].Key, f[0].Text)
	}
	for name, c := range domains {
		if f := c.Validate(); len(f) > 0 {
			return nil, fmt.Errorf("healthprobe: domain %s: %s: %s", name, f[0].Key, f[0].Text)
		}
	}
	if d.Own == nil {
		d.Own = interfaceAddrs
	}
	p := &Prober{
		deps:    d,
		wake:    make(chan struct{}, 1),
		cfg:     cfg,
		domains: make(map[string]*domain),
		watches: make(map[string]*watch),
		books:   make(map[string]*book),
		byAddr:  make(map[netip.Addr]map[string]bool),
		changed: make(chan struct{}),

		overrides: make(map[string]Override),
		memories:  make(map[string]memory),
	}
	p.keep = newKeeper(d.Tables, d.Log)
	p.metrics = newMetrics(d.Metrics, p)
	p.Reload(cfg, domains)
	return p, nil
}

// interfaceAddrs is what the machine calls its own. An error gives none: names still tell us from others.
func interfaceAddrs() []netip.Addr {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var addrs []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			addrs = append(addrs, p.Addr().Unmap())
		}
	}
	return addrs
}

// self is who we are now.
func (p *Prober) self() self {
	p.mu.Lock()
	cfg := p.cfg
	p.mu.Unlock()
	me := self{addrs: p.deps.Own()}
	for _, s := range append([]string{cfg.Hostname, p.deps.Dialer.Hostname}, cfg.Self...) {
		if a, err := netip.ParseAddr(s); err == nil {
			me.addrs = append(me.addrs, a.Unmap())
			continue
		}
		if d, err := mta.Domain(s); err == nil {
			me.names = append(me.names, d)
		}
	}
	return me
}

func (p *Prober) mxPort() uint16 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cfg.MXPort
}

func (p *Prober) routeMaxTTL() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cfg.RouteMaxTTL
}

// Reload takes a new, valid configuration. What is known of primaries that stay is kept.
func (p *Prober) Reload(cfg Config, domains map[string]Domain) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cfg = cfg
	for name, d := range p.domains {
		if _, ok := domains[name]; !ok {
			p.setRoute(d, mta.Route{}, now)
			p.lookups.remove(d)
			d.dropped = true
			p.clearDomainAlarms(d, now)
			delete(p.domains, name)
		}
	}
	for name, c := range domains {
		d := p.domains[name]
		if d == nil {
			d = &domain{slot: slot{index: -1}, name: name}
			p.domains[name] = d
		}
		p.configure(d, c, now)
	}
	p.tell()
}

// configure gives a domain its part of the configuration. p.mu is held.
func (p *Prober) configure(d *domain, c Domain, now time.Time) {
	d.cfg = c
	if len(c.Primaries) == 0 {
		if d.fromConf {
			d.fromConf, d.known = false, false // the old primaries stay watched until the DNS has answered
		}
		p.lookups.set(d, now)
		return
	}
	tiers, err := configured(c.Primaries)
	if err != nil { // Validate has seen to it
		return
	}
	p.lookups.remove(d)
	p.clearDomainAlarms(d, now)
	route := mta.NewRoute(tiers)
	p.setRoute(d, route, now)
	d.known, d.fromConf, d.notes, d.err, d.found = true, true, nil, nil, time.Time{}
}

// setRoute makes the members of route watched for d, and those of its old route no longer. p.mu is held.
func (p *Prober) setRoute(d *domain, route mta.Route, now time.Time) {
	old := d.route
	d.route = route
	for m := range primaries(route) {
		p.watch(m, now).domains[d.name] = true
	}
	if old.Name == route.Name {
		return
	}
	stays := make(map[mta.Primary]bool)
	for m := range primaries(route) {
		stays[m] = true
	}
	for m := range primaries(old) {
		if w := p.watches[m.String()]; w != nil && !stays[m] {
			delete(w.domains, d.name)
			if len(w.domains) == 0 {
				p.unwatch(w)
			}
		}
	}
}

// watch returns the watch of a primary, and begins it with a probe at once. p.mu is held.
func (p *Prober) watch(m mta.Primary, now time.Time) *watch {
	if w := p.watches[m.String()]; w != nil {
		return w
	}
	w := newWatch(m)
	w.memory = p.memories[w.key]
	p.watches[w.key] = w
	b := p.books[m.Host]
	if b == nil {
		b = &book{}
		p.books[m.Host] = b
	}
	b.watches = append(b.watches, w)
	if a, err := netip.ParseAddr(m.Host); err == nil {
		p.setAddrs(m.Host, []netip.Addr{a})
	}
	p.probes.set(w, now)
	p.nudge()
	return w
}

// unwatch forgets a primary that no domain has. p.mu is held.
func (p *Prober) unwatch(w *watch) {
	w.dropped = true
	p.outageEnds(w, time.Now(), "it was no primary any more")
	p.probes.remove(w)
	if w.memory.Known {
		p.memories[w.key] = w.memory
	}
	p.clearWatchAlarms(w, time.Now())
	delete(p.watches, w.key)
	b := p.books[w.primary.Host]
	for i, x := range b.watches {
		if x == w {
			b.watches = append(b.watches[:i:i], b.watches[i+1:]...)
			break
		}
	}
	if len(b.watches) == 0 {
		p.setAddrs(w.primary.Host, nil)
		delete(p.books, w.primary.Host)
	}
}

// nudge makes the dispatcher look again.
func (p *Prober) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// tell closes the channel of Changed. p.mu is held.
func (p *Prober) tell() {
	close(p.changed)
	p.changed = make(chan struct{})
	p.nudge()
}

// Open reports whether mail may be sent to a primary now. One that is not watched, because no configured domain has
// it, is not ours to judge: it is open.
func (p *Prober) Open(primary string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open(primary)
}

// open is Open. p.mu is held.
func (p *Prober) open(primary string) bool {
	w := p.watches[primary]
	if w == nil {
		return true
	}
	return w.belief.state == Up && p.overrideOf(Maintenance, primary, time.Now()) == nil
}

// Changed is closed at the next change of any state or route. Take it first, then look at what it is about.
func (p *Prober) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// Observe takes what a delivery saw: nil if the primary took mail, else the trouble of the host. Trouble brings a probe
// at once, which counts double if it agrees.
func (p *Prober) Observe(primary string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.watches[primary]
	if w == nil {
		return
	}
	now := time.Now()
	if err == nil {
		w.proved = now
		p.firstDelivery(w, now)
		w.belief = w.belief.proven()
		if w.belief.state != Up {
			p.probeNow(w, now)
		}
		return
	}
	w.belief.doubt = true
	p.probeNow(w, now)
}

// Hint probes the primaries of a domain now, and looks them up again; "" means all domains. It is never believed
// unprobed, so anyone may give one.
func (p *Prober) Hint(domain string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if domain == "" {
		for _, w := range p.watches {
			p.probeNow(w, now)
		}
		for _, d := range p.domains {
			p.lookUpNow(d, now)
		}
		return
	}
	d := p.domains[domain]
	if d == nil {
		return
	}
	p.lookUpNow(d, now)
	for m := range primaries(d.route) {
		if w := p.watches[m.String()]; w != nil {
			p.probeNow(w, now)
		}
	}
}

// HintFrom probes, now, what has the address: a primary that connects to us is awake. It is cheap enough to be called
// for every client. Primaries that are up are left alone.
func (p *Prober) HintFrom(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for host := range p.byAddr[addr.Unmap()] {
		for _, w := range p.books[host].watches {
			if w.belief.state != Up {
				p.probeNow(w, now)
			}
		}
	}
}

// probeNow puts w before all that is merely due. p.mu is held.
func (p *Prober) probeNow(w *watch, now time.Time) {
	if w.running {
		w.again = true
		if w.away() && !w.firm && now.Sub(w.started) >= hangs {
			w.cut = true
			w.cancel()
		}
		return
	}
	at := w.started.Add(minGap)
	if !at.After(now) {
		at = time.Time{}
	}
	if w.slot.at.Before(at) && w.slot.index >= 0 {
		return
	}
	p.probes.set(w, at)
	p.nudge()
}

// lookUpNow asks the DNS for a route that was not configured. p.mu is held.
func (p *Prober) lookUpNow(d *domain, now time.Time) {
	if d.fromConf || d.running || now.Sub(d.found) < minGap {
		return
	}
	p.lookups.set(d, now)
	p.nudge()
}
