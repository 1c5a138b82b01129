package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/mta"
)

// testConfig is a small spool in a folder of its own.
func testConfig(t testing.TB) Config {
	cfg := DefaultConfig()
	cfg.Dir = t.TempDir()
	cfg.Reserve, cfg.ReservePercent, cfg.Ballast = 64*mta.MiB, 0, 0
	cfg.GenerationSize = minGeneration
	return cfg
}

// quick is a keeper that does not wait.
func quick() tuning {
	tune := defaultTuning()
	tune.tick, tune.evacuateEvery, tune.evacuateIdle, tune.idleClose = 10*time.Millisecond, 20*time.Millisecond, 0, 50*time.Millisecond
	return tune
}

// slow is a keeper that does nothing by itself.
func slow() tuning {
	tune := defaultTuning()
	tune.tick, tune.evacuateEvery = time.Hour, time.Hour
	return tune
}

func openTest(t testing.TB, cfg Config, tune tuning) *Store {
	t.Helper()
	var s *Store
	var err error
	waitFor(t, "the lock", func() bool { // a child that another test starts holds that of the last Store too, until its exec is done
		s, err = open(t.Context(), cfg, testLog(t), newMetrics(nil), tune)
		return !errors.Is(err, ErrInUse)
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// crash leaves the spool as a kill would: nothing is closed, flushed or written.
func crash(s *Store) {
	s.shut()
	s.stop()
	s.kept.Wait()
	s.hints.close()
	for _, g := range s.snapshot() {
		g.abandon()
	}
	if s.spare != nil {
		s.spare.abandon()
	}
	s.flock.Close()
}

func closeTest(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func testEnvelope(rcpts ...string) *mta.Envelope {
	now := time.Now().UTC()
	env := &mta.Envelope{ID: mta.NewID(now), Received: now, From: mta.Path{Local: "bob", Domain: "example.net"}}
	for _, r := range rcpts {
		local, domain, _ := strings.Cut(r, "@")
		env.Rcpts = append(env.Rcpts, mta.Recipient{Addr: mta.Path{Local: local, Domain: domain}, Dest: domain})
	}
	return env
}

// contentOf is content that only this message has.
func contentOf(id mta.ID, n int) []byte {
	return bytes.Repeat([]byte(id.String()+"\r\n"), n/28+1)
}

func mustPut(t testing.TB, s *Store, n int, rcpts ...string) *mta.Envelope {
	t.Helper()
	env := testEnvelope(rcpts...)
	if err := s.Put(t.Context(), env, bytes.NewReader(contentOf(env.ID, n))); err != nil {
		t.Fatalf("put: %v", err)
	}
	return env
}

func readBody(t testing.TB, s *Store, id mta.ID) ([]byte, error) {
	t.Helper()
	r, err := s.Body(t.Context(), id)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func wantBody(t testing.TB, s *Store, id mta.ID, n int) {
	t.Helper()
	b, err := readBody(t, s, id)
	if err != nil || !bytes.Equal(b, contentOf(id, n)) {
		t.Errorf("content of %s: %d octets, %v", id, len(b), err)
	}
}

func mustClaim(t testing.TB, s *Store, r mta.ClaimRequest) mta.Lease {
	t.Helper()
	r.Max, r.Lease, r.IgnoreDue = 1, time.Hour, true
	leases, err := s.Claim(t.Context(), r)
	if err != nil || len(leases) != 1 {
		t.Fatalf("claimed %d: %v", len(leases), err)
	}
	return leases[0]
}

func settlement(l mta.Lease, o mta.Outcome, code int) mta.Settlement {
	s := mta.Settlement{Ref: l.LeaseRef}
	for _, r := range l.Rcpts {
		s.Results = append(s.Results, mta.RcptResult{N: r.N, Outcome: o, Reply: mta.Reply{Code: code}})
	}
	return s
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%s: did not come", what)
		}
	}
}

// flakySync fails once, at the n-th sync, and remembers what each log was at its last good one: what a power cut
// would leave.
type flakySync struct {
	mu     sync.Mutex
	n      int // 0: never
	calls  int
	stored bool // the failing sync stores before it fails
	logs   map[string][]byte
}

var errDisk = errors.New("input/output error")

func (f *flakySync) sync(file *os.File) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.calls == f.n {
		if f.stored {
			f.remember(file)
		}
		return errDisk
	}
	f.remember(file)
	return nil
}

func (f *flakySync) remember(file *os.File) {
	b, err := os.ReadFile(file.Name())
	if err != nil {
		panic(err)
	}
	f.logs[file.Name()] = b
}

// powerCut puts the logs back to what was synced.
func (f *flakySync) powerCut(t *testing.T) {
	for name, b := range f.logs {
		if _, err := os.Stat(name); err != nil {
			continue // closed or removed in good order
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// script is what each fault is tried on. Each step tells what it was told: a nil error is a promise.
type script struct {
	t        *testing.T
	s        *Store
	stored   map[mta.ID]int // content's size, by message that got a nil
	over     map[mta.ID]bool
	attempts map[mta.ID]int
}

func (sc *script) put(n int, rcpts ...string) *mta.Envelope {
	env := testEnvelope(rcpts...)
	if err := sc.s.Put(sc.t.Context(), env, bytes.NewReader(contentOf(env.ID, n))); err == nil {
		sc.stored[env.ID] = n
	}
	return env
}

func (sc *script) settle(env *mta.Envelope, o mta.Outcome, code int, reports ...mta.Report) {
	leases, err := sc.s.Claim(sc.t.Context(), mta.ClaimRequest{ID: env.ID, Max: 1, Lease: time.Hour, IgnoreDue: true})
	if err != nil || len(leases) == 0 {
		return
	}
	st := settlement(leases[0], o, code)
	st.Reports = reports
	if err := sc.s.Settle(sc.t.Context(), st)[0]; err != nil {
		return
	}
	for _, r := range reports {
		sc.stored[r.Envelope.ID] = reportSize
	}
	if o.Ended() {
		sc.over[env.ID] = true
	} else {
		sc.attempts[env.ID] = leases[0].Attempts + 1
	}
}

func (sc *script) run() {
	a := sc.put(100, "ann@example.org")
	b := sc.put(4000, "bob@example.org")
	c := sc.put(300<<10, "cat@example.org")
	sc.settle(a, mta.Deferred, 451)
	sc.settle(b, mta.Delivered, 250)
	d := sc.put(10, "dan@example.org")
	report := mta.Report{Envelope: testEnvelope("bob@example.net")}
	report.Content = contentOf(report.Envelope.ID, reportSize)
	sc.settle(d, mta.Returned, 550, report)
	sc.settle(a, mta.Deferred, 451)
	sc.settle(c, mta.Quarantined, 550)
	sc.put(20, "eve@example.org")
}

// check holds the spool to what was promised.
func (sc *script) check(s *Store) {
	sc.t.Helper()
	for id, n := range sc.stored {
		if sc.over[id] {
			if _, err := s.Get(sc.t.Context(), id); !errors.Is(err, ErrNotFound) {
				sc.t.Errorf("%s was settled and is there: %v", id, err)
			}
			continue
		}
		wantBody(sc.t, s, id, n)
		items, err := s.Get(sc.t.Context(), id)
		if err != nil || items[0].Attempts < sc.attempts[id] {
			sc.t.Errorf("%s: %+v %v, want %d attempts", id, items, err, sc.attempts[id])
		}
	}
	items, _, err := s.List(sc.t.Context(), Query{})
	if err != nil {
		sc.t.Fatal(err)
	}
	for _, i := range items { // what was not promised is whole or not there
		if _, err := readBody(sc.t, s, i.ID); err != nil {
			sc.t.Errorf("%s is half there: %v", i.ID, err)
		}
	}
}

func TestTheNthSyncFailsAndNothingPromisedIsLost(t *testing.T) {
	dry := &flakySync{logs: make(map[string][]byte)}
	runScript(t, dry, func(*script, Config) {})
	if dry.calls < 10 {
		t.Fatalf("the script syncs %d times", dry.calls)
	}
	for n := 1; n <= dry.calls; n++ {
		for _, stored := range []bool{false, true} {
			for e, end := range []string{"power cut", "kill", "close"} {
				if testing.Short() && (n+e)%3 != 0 {
					continue
				}
				t.Run(fmt.Sprintf("sync %d, stored %v, %s", n, stored, end), func(t *testing.T) {
					t.Parallel()
					flaky := &flakySync{n: n, stored: stored, logs: make(map[string][]byte)}
					runScript(t, flaky, func(sc *script, cfg Config) {
						switch end {
						case "power cut":
							crash(sc.s)
							flaky.powerCut(t)
						case "kill":
							crash(sc.s)
						case "close":
							closeTest(t, sc.s)
						}
					})
				})
			}
		}
	}
}

func runScript(t *testing.T, flaky *flakySync, end func(sc *script, cfg Config)) {
	cfg := testConfig(t)
	tune := slow()
	tune.sync = flaky.sync
	s, err := open(t.Context(), cfg, testLog(t), newMetrics(nil), tune)
	if err != nil {
		t.Fatal(err)
	}
	sc := &script{t: t, s: s, stored: make(map[mta.ID]int), over: make(map[mta.ID]bool), attempts: make(map[mta.ID]int)}
	sc.run()
	sc.check(s)
	if flaky.n > 2 && len(sc.stored) < 4 { // the first two are of a generation in the making
		t.Errorf("only %d puts worked around one failed sync", len(sc.stored))
	}
	end(sc, cfg)
	if flaky.n == 0 {
		closeTest(t, s)
	}
	for range 2 { // what the first recovery amended, the second must agree with
		s = openTest(t, cfg, slow())
		sc.check(s)
		crash(s)
	}
}

func TestAfterAFailedCommitTheGenerationIsEvacuatedAndRemoved(t *testing.T) {
	cfg := testConfig(t)
	flaky := &flakySync{n: 8, logs: make(map[string][]byte)}
	tune := quick()
	tune.sync = flaky.sync
	s := openTest(t, cfg, tune)
	var envs []*mta.Envelope
	var failures int
	for range 12 {
		env := testEnvelope("ann@example.org")
		switch err := s.Put(t.Context(), env, bytes.NewReader(contentOf(env.ID, 1000))); {
		case err == nil:
			envs = append(envs, env)
		case errors.Is(err, ErrUnknown) && errors.Is(err, errDisk):
			failures++
		default:
			t.Errorf("put: %v", err)
		}
	}
	if failures != 1 || len(envs) != 11 {
		t.Fatalf("%d puts failed, %d worked", failures, len(envs))
	}
	waitFor(t, "removal of the generation that failed", func() bool {
		_, err := os.Stat(filepath.Join(cfg.Dir, generationName(1)))
		return errors.Is(err, os.ErrNotExist)
	})
	for _, env := range envs {
		wantBody(t, s, env.ID, 1000)
	}
	crash(s)
	s = openTest(t, cfg, slow())
	defer closeTest(t, s)
	for _, env := range envs {
		wantBody(t, s, env.ID, 1000)
	}
	if items, _, err := s.List(t.Context(), Query{}); err != nil || len(items) != len(envs) {
		t.Errorf("%d messages, want %d: %v", len(items), len(envs), err)
	}
}

func TestADiskThatFailsForGoodGivesNo250(t *testing.T) {
	cfg := testConfig(t)
	tune := slow()
	broken := false
	tune.sync = func(*os.File) error {
		if broken {
			return errDisk
		}
		return nil
	}
	s := openTest(t, cfg, tune)
	env := mustPut(t, s, 100, "ann@example.org")
	broken = true
	for range 5 {
		if err := s.Put(t.Context(), testEnvelope("ann@example.org"), strings.NewReader("x")); err == nil {
			t.Fatal("a put on a broken disk worked")
		}
	}
	if err := s.Ready(t.Context()); err == nil {
		t.Error("ready on a broken disk")
	}
	err := s.Room(t.Context(), "example.org", 1)
	if r, ok := errors.AsType[*mta.Reply](err); !ok || r.Code != 451 {
		t.Errorf("room: %v, want 451", err)
	}
	wantBody(t, s, env.ID, 100) // what was taken can be delivered
	l := mustClaim(t, s, mta.ClaimRequest{Dest: "example.org"})
	if err := s.Settle(t.Context(), settlement(l, mta.Delivered, 250))[0]; err == nil {
		t.Error("a settlement on a broken disk was stored")
	}
	broken = false
	waitFor(t, "a new generation", func() bool {
		return s.Put(t.Context(), testEnvelope("ann@example.org"), strings.NewReader("x")) == nil
	})
	if err := s.Settle(t.Context(), settlement(l, mta.Delivered, 250))[0]; err != nil {
		t.Errorf("the settlement said again: %v", err)
	}
	if err := s.Ready(t.Context()); err != nil {
		t.Errorf("not ready: %v", err)
	}
	crash(s)
	s = openTest(t, cfg, slow())
	defer closeTest(t, s)
	if _, err := s.Get(t.Context(), env.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("a settled message is there again: %v", err)
	}
}

func TestAnErrorLineOfBadgerDuringACommitIsNo250(t *testing.T) {
	s := openTest(t, testConfig(t), slow())
	defer crash(s)
	var once sync.Once
	s.tune.sync = nil
	g, d, err := s.useActive()
	if err != nil {
		t.Fatal(err)
	}
	g.release()
	d.syncer = func(*os.File) error {
		once.Do(func() { crier{testLog(t), d.poison}.Errorf("Error while curlf sync: %v\n", errDisk) })
		return nil
	}
	s.tune.sync = defaultTuning().sync
	env := testEnvelope("ann@example.org")
	if err := s.Put(t.Context(), env, strings.NewReader("x")); !errors.Is(err, ErrUnknown) {
		t.Fatalf("put: %v, want ErrUnknown", err)
	}
	if _, err := s.Get(t.Context(), env.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("get: %v, want ErrNotFound", err)
	}
	mustPut(t, s, 100, "ann@example.org") // into a new generation
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active == nil || s.active.num != 2 {
		t.Errorf("the active generation is %v, want the second", s.active)
	}
}

func TestAHangUpAfterTheCommitBeganChangesNothing(t *testing.T) {
	tune := slow()
	ctx, cancel := context.WithCancel(t.Context())
	armed := false
	tune.sync = func(f *os.File) error {
		if armed {
			cancel()
		}
		return defaultTuning().sync(f)
	}
	s := openTest(t, testConfig(t), tune)
	defer closeTest(t, s)
	armed = true
	env := testEnvelope("ann@example.org")
	if err := s.Put(ctx, env, strings.NewReader("x")); err != nil {
		t.Fatalf("put: %v", err)
	}
	if _, err := s.Get(t.Context(), env.ID); err != nil {
		t.Error(err)
	}
}

const reportSize = 50
