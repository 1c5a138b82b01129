package forwarder

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/internal/testkit"
	"understudy/spool"
)

// gates is a Health whose gates a test opens and closes.
type gates struct {
	mu       sync.Mutex
	closed   map[string]bool
	changed  chan struct{}
	observed map[string][]error
}

func newGates() *gates {
	return &gates{closed: map[string]bool{}, changed: make(chan struct{}), observed: map[string][]error{}}
}

func (g *gates) Open(primary string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.closed[primary]
}

func (g *gates) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

func (g *gates) Observe(primary string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.observed[primary] = append(g.observed[primary], err)
}

func (g *gates) set(primary string, open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed[primary] = !open
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gates) troubles(primary string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, err := range g.observed[primary] {
		if err != nil {
			n++
		}
	}
	return n
}

// table is a Routes of a fixed table.
type table struct {
	mu    sync.Mutex
	tiers map[string][][]mta.Primary
}

func (r *table) Route(_ context.Context, domain string) (mta.Route, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	tiers, ok := r.tiers[domain]
	if !ok {
		return mta.Route{}, fmt.Errorf("no route for %s", domain)
	}
	return mta.NewRoute(tiers), nil
}

// world is a forwarder with all that it needs.
type world struct {
	t       testing.TB
	spool   *spool.Memory
	gates   *gates
	routes  *table
	dialer  *smtpc.Dialer
	cfg     Config
	log     *lines
	f       *Forwarder
	n       int
	stop    func()
	queue   Queue // instead of spool, if set
	domains map[string]Domain
	proof   func(*mta.Envelope) Proof
	sts     *STS
	deps    func(*Deps) // sets what else is wanted
}

// lines is a log that a test can read.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) has(s string) bool { return l.count(s) > 0 }

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

func newWorld(t testing.TB, domain string, tiers ...[]mta.Primary) *world {
	t.Helper()
	w := &world{t: t, spool: spool.NewMemory(), gates: newGates(), routes: &table{tiers: map[string][][]mta.Primary{domain: tiers}}, log: &lines{},
		dialer: &smtpc.Dialer{Hostname: "mx2.example.org"}, cfg: DefaultConfig(), stop: func() {}}
	w.cfg.Idle = 50 * time.Millisecond
	t.Cleanup(func() { w.stop() })
	return w
}

// start runs a forwarder; stop waits for its end.
func (w *world) start() {
	w.t.Helper()
	q := w.queue
	if q == nil {
		q = w.spool
	}
	level := slog.LevelInfo
	if _, ok := w.t.(*testing.B); ok {
		level = slog.LevelWarn
	}
	d := Deps{Queue: q, Routes: w.routes, Health: w.gates, Dialer: w.dialer, LeaseLost: spool.ErrLeaseLost, Proof: w.proof, STS: w.sts,
		Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: level}))}
	if w.deps != nil {
		w.deps(&d)
	}
	f, err := New(w.cfg, w.domains, d)
	if err != nil {
		w.t.Fatal(err)
	}
	w.f = f
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	w.stop = func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.t.Errorf("Run: %v", err)
			}
		case <-time.After(time.Minute):
			w.t.Error("Run did not end")
		}
		w.stop = func() {}
	}
}

// put spools a message for recipients at domains and returns its ID; the sender is s1@, s2@ and so on.
func (w *world) put(content string, rcpts ...string) mta.ID {
	w.t.Helper()
	w.n++
	env := &mta.Envelope{ID: mta.NewID(time.Now()), Received: time.Now(), From: mta.Path{Local: fmt.Sprintf("s%d", w.n), Domain: "example.net"}}
	for _, r := range rcpts {
		p, err := mta.ParsePath(r)
		if err != nil {
			w.t.Fatal(err)
		}
		env.Rcpts = append(env.Rcpts, mta.Recipient{Addr: p, Dest: p.DomainKey()})
	}
	w.putEnv(env, content)
	return env.ID
}

func (w *world) putEnv(env *mta.Envelope, content string) {
	w.t.Helper()
	if err := w.spool.Put(context.Background(), env, strings.NewReader(content)); err != nil {
		w.t.Fatal(err)
	}
}

// items are the deliveries of a message that are left.
func (w *world) items(id mta.ID) []spool.Item {
	items, err := w.spool.Get(context.Background(), id)
	if err != nil {
		return nil
	}
	return items
}

// eventually waits for a condition.
func (w *world) eventually(what string, cond func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.log.mu.Lock()
			defer w.log.mu.Unlock()
			log := w.log.b.String()
			w.t.Fatalf("waited for %s\n%s", what, log[max(0, len(log)-4000):])
		}
	}
}

func (w *world) left() int64 {
	u, err := w.spool.Usage(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return u.Messages
}

func started(t testing.TB, set func(*testkit.Primary)) *testkit.Primary {
	t.Helper()
	p := testkit.NewPrimary(t)
	if set != nil {
		set(p)
	}
	p.Start()
	return p
}

func tier(ps ...*testkit.Primary) []mta.Primary {
	var list []mta.Primary
	for _, p := range ps {
		list = append(list, p.Primary())
	}
	return list
}
