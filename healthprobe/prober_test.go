package healthprobe

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"understudy/internal/dnsx"
	"understudy/internal/dnsx/dnstest"
	"understudy/internal/smtpc"
	"understudy/internal/testkit"
)

// start runs a Prober until the test ends.
func start(t *testing.T, cfg Config, domains map[string]Domain, d Deps) *Prober {
	t.Helper()
	p := prepare(t, cfg, domains, d)
	run(t, p)
	return p
}

func prepare(t *testing.T, cfg Config, domains map[string]Domain, d Deps) *Prober {
	t.Helper()
	if d.Dialer == nil {
		d.Dialer = &smtpc.Dialer{Hostname: "mx2.example.org"}
	}
	if d.Resolver == nil {
		d.Resolver = inMemory(t, dnstest.Zones{})
	}
	if d.Own == nil {
		d.Own = func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.2")} }
	}
	if d.Log == nil {
		d.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	cfg.Hostname = "mx2.example.org"
	p, err := New(cfg, domains, d)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// run runs p until the test ends, and returns a func that ends it sooner.
func run(t *testing.T, p *Prober) func() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// inMemory is a resolver over zones, without sockets.
func inMemory(t *testing.T, z dnstest.Zones) *dnsx.Resolver {
	t.Helper()
	return resolver(t, dnstest.NewMemory(z))
}

func resolver(t *testing.T, s *dnstest.Server) *dnsx.Resolver {
	t.Helper()
	cfg := dnsx.DefaultConfig()
	cfg.Exchange = s.Exchange
	if s.Addr() != "" {
		cfg.Exchange, cfg.Resolvers = nil, []string{s.Addr()}
	}
	cfg.Timeout = 100 * time.Millisecond
	cfg.MinTTL, cfg.MaxNegativeTTL = 0, 0 // what a zone says at TTL 0 is asked for each time
	r, err := dnsx.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// await waits until cond is true, woken by each change of p and now and then.
func await(t *testing.T, p *Prober, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		changed := p.Changed()
		if cond() {
			return
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("waited for %s in vain: %+v", what, p.Status())
		}
	}
}

func (p *Prober) state(primary string) State {
	for _, s := range p.Status() {
		if s.Primary == primary {
			return s.State
		}
	}
	return Unknown
}

func TestAPrimaryIsOpenWhileItTakesMail(t *testing.T) {
	primary := testkit.NewPrimary(t)
	primary.Start()
	cfg := DefaultConfig()
	cfg.Every = 20 * time.Millisecond
	cfg.EveryDown = 10 * time.Millisecond
	cfg.Confirm = time.Millisecond
	domains := map[string]Domain{"example.org": {Primaries: []string{primary.Addr()}}}
	p := prepare(t, cfg, domains, Deps{})
	if p.Open(primary.Addr()) {
		t.Error("it is open before it was probed")
	}
	run(t, p)
	for range 3 {
		await(t, p, "up", func() bool { return p.Open(primary.Addr()) })
		primary.Stop()
		await(t, p, "down", func() bool { return p.state(primary.Addr()) == Down })
		primary.Start()
		await(t, p, "up", func() bool { return p.Open(primary.Addr()) })
		primary.On(testkit.AtRCPT, testkit.Say("554 5.7.1 go away"))
		await(t, p, "refusing", func() bool { return p.state(primary.Addr()) == Refusing })
		if s := p.Status()[0]; s.Why != "554 5.7.1 go away" || s.Step != "rcpt" || p.Open(primary.Addr()) {
			t.Errorf("status = %+v", s)
		}
		primary.SetScript(nil)
	}
	if !p.Open("192.0.2.77:25") {
		t.Error("what nobody watches is closed")
	}
	r, err := p.Route(t.Context(), "example.org")
	if err != nil || r.Name != primary.Addr() {
		t.Errorf("Route = %+v, %v", r, err)
	}
	if n := primary.Accepted(); n != 0 {
		t.Errorf("the probes sent %d messages", n)
	}
}
