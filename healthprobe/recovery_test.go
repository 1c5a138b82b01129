package healthprobe_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/forwarder"
	"understudy/healthprobe"
	"understudy/internal/dnsx"
	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/internal/testkit"
	"understudy/spool"
)

const (
	sinks  = 40 // side by side, so that none of them flaps
	rounds = 5  // outages of each
)

// BenchmarkRecovery measures, with default settings, from the moment that a primary listens again to the first message
// that it has taken: 200 outages, over spool (in memory), prober and forwarder.
func BenchmarkRecovery(b *testing.B) {
	for _, hint := range []bool{false, true} {
		name, median, worst := "unprompted", time.Second, 3*time.Second
		if hint {
			name, median, worst = "hinted", 300*time.Millisecond, 300*time.Millisecond
		}
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				took = append(took, recoveries(b, hint)...)
			}
			slices.Sort(took)
			n := len(took)
			b.ReportMetric(float64(n), "outages")
			b.ReportMetric(took[n/2].Seconds()*1e3, "median-ms")
			b.ReportMetric(took[n*99/100].Seconds()*1e3, "p99-ms")
			b.ReportMetric(took[n-1].Seconds()*1e3, "worst-ms")
			if took[n/2] > median || took[n-1] > worst {
				b.Errorf("median %v, worst %v; want at most %v and %v", took[n/2], took[n-1], median, worst)
			}
		})
	}
}

// road is all that lies between a spooled message and a primary.
type road struct {
	store  *spool.Memory
	prober *healthprobe.Prober
}

func newRoad(tb testing.TB, domains map[string]healthprobe.Domain) *road {
	tb.Helper()
	log := slog.New(slog.DiscardHandler)
	resolver, err := dnsx.New(dnsx.DefaultConfig())
	if err != nil {
		tb.Fatal(err)
	}
	r := &road{store: spool.NewMemory()}
	dialer := &smtpc.Dialer{Hostname: "mx2.example.org"}
	r.prober, err = healthprobe.New(healthprobe.DefaultConfig(), domains, healthprobe.Deps{Dialer: dialer, Resolver: resolver, Log: log})
	if err != nil {
		tb.Fatal(err)
	}
	fwd, err := forwarder.New(forwarder.DefaultConfig(), nil, forwarder.Deps{
		Queue: r.store, Routes: r.prober, Health: r.prober, Dialer: dialer, Log: log, LeaseLost: spool.ErrLeaseLost,
	})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(tb.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.prober.Run(ctx) })
	wg.Go(func() { fwd.Run(ctx) })
	tb.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

// spool puts one message for a domain.
func (r *road) spool(tb testing.TB, domain string) {
	now := time.Now()
	env := &mta.Envelope{
		ID: mta.NewID(now), Received: now, From: mta.Path{Local: "a", Domain: "example.net"},
		Rcpts: []mta.Recipient{{Addr: mta.Path{Local: "b", Domain: domain}, Dest: domain}},
	}
	if err := r.store.Put(tb.Context(), env, strings.NewReader("Subject: x\r\n\r\ny\r\n")); err != nil {
		tb.Error(err)
	}
}

// until waits for a state of the gate.
func (r *road) until(open bool, primary string) {
	for {
		changed := r.prober.Changed()
		if r.prober.Open(primary) == open {
			return
		}
		<-changed
	}
}

func recoveries(b *testing.B, hint bool) []time.Duration {
	domains := make(map[string]healthprobe.Domain)
	primaries := make(map[string]*testkit.Primary)
	for i := range sinks {
		name := fmt.Sprintf("d%d.test", i)
		p := testkit.NewPrimary(b)
		p.Start()
		primaries[name] = p
		domains[name] = healthprobe.Domain{Primaries: []string{p.Addr()}}
	}
	r := newRoad(b, domains)
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	for name, p := range primaries {
		wg.Go(func() {
			for range rounds {
				r.until(true, p.Addr())
				p.Stop()
				r.spool(b, name) // its failure is what tells the prober
				r.until(false, p.Addr())
				time.Sleep(rand.N(3 * time.Second)) // real time: recovery must not keep step with the probes
				had := p.Accepted()
				p.Start()
				back := time.Now()
				if hint {
					r.prober.Hint(name)
				}
				p.WaitMessages(b.Context(), had+1)
				d := p.Messages()[had].At.Sub(back)
				mu.Lock()
				took = append(took, d)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return took
}
