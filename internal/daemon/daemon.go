package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"understudy/forwarder"
	"understudy/healthprobe"
	"understudy/inbound"
	"understudy/internal/admin"
	"understudy/internal/alert"
	"understudy/internal/config"
	"understudy/internal/dnsx"
	"understudy/internal/parity"
	"understudy/internal/smtpc"
	"understudy/policy"
	"understudy/spool"
)

// Options is what the process around the daemon gives it.
type Options struct {
	// Load reads the configuration: once at Open and again at each Reload.
	Load func() (*config.Config, error)
	// Version is shown by status.
	Version string
	// Log gets every event. Level is its level, set from the configuration.
	Log   *slog.Logger
	Level *slog.LevelVar
	// Sockets were passed by the service manager, by name.
	Sockets map[string][]net.Listener
	// Notify tells the service manager of a change of state ("READY=1", sd_notify(3)); nil tells nobody.
	Notify func(state string)
}

// Daemon is a running, or soon running, backup MX.
type Daemon struct {
	opts   Options
	store  *spool.Store
	policy *policy.Policy
	parity *parity.Tally
	prober *healthprobe.Prober
	fwd    *forwarder.Forwarder
	in     *inbound.Server
	admin  *admin.Server
	alerts *alert.Alerter
	dialer *smtpc.Dialer
	dns    *dnsx.Resolver
	tables spool.State // small tables; losing them is an inconvenience

	reloading sync.Mutex     // one reload at a time
	mu        sync.Mutex     // guards cfg
	cfg       *config.Config // as last loaded
}

// Open reads the configuration, opens the spool, loads the lists and binds the listeners. When it returns without an
// error nothing that an operator could have got wrong is left to fail.
func Open(ctx context.Context, opts Options) (_ *Daemon, err error) {
	cfg, err := opts.Load()
	if err != nil {
		return nil, err
	}
	opts.Level.Set(cfg.Log.Level)
	d := &Daemon{opts: opts, cfg: cfg}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	if d.store, err = spool.Open(ctx, cfg.Spool, opts.Log, reg); err != nil {
		return nil, err
	}
	d.tables = d.openTables(ctx, cfg)
	defer func() {
		if err != nil {
			d.tables.Close()
			d.store.Close()
		}
	}()
	if err := d.build(cfg, reg); err != nil {
		return nil, err
	}
	if err := d.policy.Load(ctx); err != nil {
		return nil, err
	}
	d.parity.Load(ctx)
	if err := d.in.Listen(); err != nil {
		return nil, err
	}
	if err := d.admin.Listen(); err != nil {
		return nil, err
	}
	return d, nil
}

// build makes the parts that do no I/O yet and fits them together.
func (d *Daemon) build(cfg *config.Config, reg *prometheus.Registry) error {
	log := d.opts.Log
	var err error
	if d.alerts, err = alert.New(cfg.Alerts, cfg.Hostname, log, reg); err != nil {
		return err
	}
	d.dns, err = dnsx.New(cfg.DNS)
	if err != nil {
		return err
	}
	d.parity, err = parity.New(counting(cfg.Policy.Parity), parity.Deps{State: d.tables, Events: d.alerts.Raise, Log: log, Metrics: reg})
	if err != nil {
		return err
	}
	d.policy, err = policy.New(cfg.Policy, cfg.PolicyDomains(), policy.Deps{
		Log: log, Metrics: reg, Events: d.alerts.Raise, State: d.tables, Callout: d.callout, Resolver: d.dns,
		Up: func(domain string) bool { return d.prober.Up(domain) }, Fragile: d.fragile, PrimaryNames: d.primaryNames, Parity: d.parity.Add,
	})
	if err != nil {
		return err
	}
	d.dialer = &smtpc.Dialer{Hostname: cfg.Hostname, Lookup: d.dns.LookupAddrs, TLSA: tlsaOf(d.dns)}
	d.prober, err = healthprobe.New(cfg.Healthprobe, cfg.HealthprobeDomains(), healthprobe.Deps{
		Dialer: d.dialer, Resolver: d.dns, Log: log, Metrics: reg, Tables: d.tables, Events: d.alerts.Raise, Backlog: d.backlog,
		Options: func(domain string) smtpc.Options { return d.fwd.Options(domain) },
	})
	if err != nil {
		return err
	}
	// The prober remembers the addresses that worked, so a DNS failure strands no mail.
	d.dialer = &smtpc.Dialer{Hostname: cfg.Hostname, Lookup: d.prober.LookupAddrs, TLSA: tlsaOf(d.dns)}
	d.fwd, err = forwarder.New(cfg.Forwarder, cfg.ForwarderDomains(), forwarder.Deps{
		Queue: d.store, Routes: d.prober, Health: d.prober, Dialer: d.dialer, LeaseLost: spool.ErrLeaseLost,
		STS:    &forwarder.STS{TXT: d.dns.LookupTXT, Keep: d.tables},
		Events: d.alerts.Raise, Ended: d.ended, Proof: proof, Hindsight: d.policy.Hindsight, HindsightAfter: d.policy.HindsightAfter,
		Log: log, Metrics: reg,
	})
	if err != nil {
		return err
	}
	d.in, err = inbound.New(cfg.Inbound, inbound.Deps{
		Spool: &intake{d.store, d.prober, d.fwd}, Policy: d.policy, Judge: d.policy, Relay: relay{d.fwd},
		Names: d.dns.ConfirmedName, Recovered: d.recovered, Primaries: d.primaryAddrs, Domains: d.domains, Bounds: d.prober.Bounds, Connected: d.prober.HintFrom, Sockets: d.opts.Sockets, Log: log, Metrics: reg,
	})
	if err != nil {
		return err
	}
	d.admin = admin.New(cfg.Admin, admin.Deps{
		Hostname: cfg.Hostname, Version: d.opts.Version, Domains: d.domains, Spool: d.store, Store: d.store, Health: d.prober,
		Forwarder: d.fwd, Recipients: d.policy, Parity: d.parity, Reload: d.Reload, Alarms: d.alerts.Active, Helpers: d.helpers, Gatherer: reg, Log: log,
	})
	return nil
}

// SMTPAddrs are the addresses that take mail.
func (d *Daemon) SMTPAddrs() []net.Addr { return d.in.Addrs() }

func (d *Daemon) domains() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := make([]string, 0, len(d.cfg.Domains))
	for name := range d.cfg.Domains {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Reload reads the configuration and the lists again and puts in force what can change without a restart. On an error
// everything goes on as it was.
func (d *Daemon) Reload(ctx context.Context) (admin.Reloaded, error) {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	cfg, err := d.opts.Load()
	if err == nil {
		err = d.policy.Reload(ctx, cfg.Policy, cfg.PolicyDomains())
	}
	if err != nil {
		d.opts.Log.LogAttrs(ctx, slog.LevelError, "reload refused, the old configuration goes on", slog.Any("err", err))
		return admin.Reloaded{}, err
	}
	if err := d.alerts.Reload(cfg.Alerts); err != nil { // a token file; everything else was validated
		d.opts.Log.LogAttrs(ctx, slog.LevelError, "alerts not reloaded, the old ones go on", slog.Any("err", err))
	}
	d.parity.Reload(counting(cfg.Policy.Parity))
	d.prober.Reload(cfg.Healthprobe, cfg.HealthprobeDomains())
	d.fwd.Reload(cfg.Forwarder, cfg.ForwarderDomains())
	d.opts.Level.Set(cfg.Log.Level)
	d.mu.Lock()
	done := admin.Reloaded{NeedRestart: config.NeedRestart(d.cfg, cfg), Strays: d.strays(ctx, cfg)}
	d.cfg = cfg
	d.mu.Unlock()
	d.opts.Log.LogAttrs(ctx, slog.LevelInfo, "reloaded", slog.Int("domains", len(cfg.Domains)),
		slog.Any("need_restart", done.NeedRestart), slog.Any("strays", done.Strays))
	return done, nil
}

// strays are destinations that have mail here and are not configured: somebody may have removed a domain too early.
// Reports to senders are no strays.
func (d *Daemon) strays(ctx context.Context, cfg *config.Config) []string {
	stats, err := d.store.Stats(ctx)
	if err != nil {
		return nil // an operator's convenience; the spool says elsewhere what is wrong
	}
	var list []string
	for _, st := range stats {
		_, now := cfg.Domains[st.Dest]
		_, before := d.cfg.Domains[st.Dest]
		if !now && before {
			list = append(list, st.Dest)
		}
	}
	return list
}

func texts(addrs []net.Addr) []string {
	list := make([]string, len(addrs))
	for i, a := range addrs {
		list[i] = a.String()
	}
	return list
}

// part is one piece that runs until it is told to stop.
type part struct {
	name string
	run  func(context.Context) error
	stop context.CancelFunc
	done chan error
}

// Run serves until ctx is done or a part fails, then stops the parts in order and closes the spool.
func (d *Daemon) Run(ctx context.Context) error {
	parts := []*part{ // in the order in which they stop
		{name: "inbound", run: d.in.Run},
		{name: "forwarder", run: d.fwd.Run},
		{name: "policy", run: d.policy.Run},
		{name: "parity", run: d.parity.Run},
		{name: "healthprobe", run: d.prober.Run},
		{name: "levels", run: d.watchLevels},
		{name: "admin", run: d.admin.Run},
		{name: "alerts", run: d.alerts.Run},
	}
	failed := make(chan struct{}, len(parts))
	for _, p := range slices.Backward(parts) {
		p.start(context.WithoutCancel(ctx), failed)
	}
	d.notify("READY=1")
	d.opts.Log.LogAttrs(ctx, slog.LevelInfo, "ready", slog.String("hostname", d.cfg.Hostname), slog.Any("listen", texts(d.SMTPAddrs())))
	select {
	case <-ctx.Done():
	case <-failed:
	}
	d.notify("STOPPING=1")
	d.opts.Log.LogAttrs(ctx, slog.LevelInfo, "stopping")
	var errs []error
	for _, p := range parts {
		p.stop()
		if err := <-p.done; err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
	}
	errs = append(errs, d.tables.Close(), d.store.Close())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.opts.Log.LogAttrs(ctx, slog.LevelInfo, "stopped")
	return nil
}

// start runs the part; its end before it was stopped is a failure of the whole.
func (p *part) start(ctx context.Context, failed chan<- struct{}) {
	ctx, p.stop = context.WithCancel(ctx)
	p.done = make(chan error, 1)
	go func() {
		err := p.run(ctx)
		if err == nil && ctx.Err() == nil {
			err = errors.New("ended by itself")
		}
		p.done <- err
		if ctx.Err() == nil {
			failed <- struct{}{}
		}
	}()
}

func (d *Daemon) notify(state string) {
	if d.opts.Notify != nil {
		d.opts.Notify(state)
	}
}
