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
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// swiftDir is a folder in memory, if there is room for it: for tests that say themselves what a disk would keep.
func swiftDir(t testing.TB) string {
	t.Helper()
	const shm = "/dev/shm"
	var fs unix.Statfs_t
	if err := unix.Statfs(shm, &fs); err != nil || int64(fs.Bavail)*int64(fs.Bsize) < int64(mta.GiB) {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(shm, "understudy-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
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

// crashFreed is crash for who does it often: what Badger holds is given back, and the folder is what it was before.
func crashFreed(t testing.TB, s *Store) {
	t.Helper()
	s.shut()
	s.stop()
	s.kept.Wait()
	s.hints.close()
	left := s.dir + ".left"
	copyTree(t, s.dir, left)
	gens := s.snapshot()
	if s.spare != nil {
		gens = append(gens, s.spare)
	}
	for _, g := range gens {
		if d := g.db; d != nil {
			d.stop()
			if err := errors.Join(d.db.Close(), d.wal.Close(), d.closeJournal()); err != nil {
				t.Error(err)
			}
		}
	}
	if err := errors.Join(s.flock.Close(), os.RemoveAll(s.dir), os.Rename(left, s.dir)); err != nil {
		t.Fatal(err)
	}
}

// copyTree copies a folder, with the times of its files.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return os.Chtimes(filepath.Join(to, rel), fi.ModTime(), fi.ModTime())
	})
	if err != nil {
		t.Fatal(err)
	}
}

func isThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
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

// flakySync fails once, at the n-th sync, and remembers what is on the disk: what a power cut would leave. What the failed
// sync covered stays lost, whatever sync follows: the system has marked it clean. It is written only if it is changed
// again, or by who opens the file anew and writes to it once more.
type flakySync struct {
	mu     sync.Mutex
	n      int // 0: never
	calls  int
	stored bool // the failing sync stores before it fails
	names  []string
	logs   map[string][]byte
	failed map[string]failedSync
	held   map[string]*os.File // so that no other file gets the same inode
}

// failedSync is one file when its sync failed.
type failedSync struct {
	f           *os.File
	disk, cache []byte
}

var errDisk = errors.New("input/output error")

func newFlaky(n int, stored bool) *flakySync {
	return &flakySync{n: n, stored: stored, logs: make(map[string][]byte), failed: make(map[string]failedSync), held: make(map[string]*os.File)}
}

// know forgets a file that was removed once another one has its name.
func (f *flakySync) know(name string) {
	if f.isKnown(name) {
		return
	}
	if old := f.held[name]; old != nil {
		old.Close()
	}
	delete(f.logs, name)
	delete(f.failed, name)
	var err error
	if f.held[name], err = os.Open(name); err != nil {
		panic(err)
	}
}

func (f *flakySync) isKnown(name string) bool {
	held, ok := f.held[name]
	if !ok {
		return false
	}
	before, err1 := held.Stat()
	now, err2 := os.Stat(name)
	return err1 == nil && err2 == nil && os.SameFile(before, now)
}

func (f *flakySync) sync(file *os.File) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	f.names = append(f.names, file.Name())
	f.know(file.Name())
	if f.calls == f.n {
		return f.fail(file)
	}
	b := readAll(file)
	if failed, ok := f.failed[file.Name()]; ok {
		if failed.f == file || failed.untouched() {
			failed.lose(b)
		} else {
			delete(f.failed, file.Name())
		}
	}
	f.logs[file.Name()] = b
	return nil
}

// fail is a sync that fails.
func (f *flakySync) fail(file *os.File) error {
	f.know(file.Name())
	b := readAll(file)
	if f.stored {
		f.logs[file.Name()] = b
	}
	f.failed[file.Name()] = failedSync{file, f.logs[file.Name()], b}
	if err := os.Chtimes(file.Name(), failedAt, failedAt); err != nil {
		panic(err)
	}
	return errDisk
}

// crash ends a store whose files are known, and knows them again.
func (f *flakySync) crash(t testing.TB, s *Store) {
	t.Helper()
	s.shut()
	s.stop()
	s.kept.Wait() // or the keeper goes on with the files
	var known []string
	for name := range f.held {
		if f.isKnown(name) {
			known = append(known, name)
		}
	}
	crashFreed(t, s)
	for _, name := range known {
		f.held[name].Close()
		var err error
		if f.held[name], err = os.Open(name); err != nil {
			t.Fatal(err)
		}
	}
}

// failedAt marks a file that nothing was written to since.
var failedAt = time.Unix(1, 0)

func (f failedSync) untouched() bool {
	fi, err := os.Stat(f.f.Name())
	return err == nil && fi.ModTime().Equal(failedAt)
}

// lose takes out of what a later sync finds in memory what it does not write.
func (f failedSync) lose(b []byte) {
	const page = 4096
	for at := 0; at < min(len(b), len(f.cache)); at += page {
		now, then := b[at:min(at+page, len(b))], f.cache[at:min(at+page, len(f.cache))]
		if !bytes.Equal(now, then) {
			continue // changed since: it is written
		}
		clear(now)
		if at < len(f.disk) {
			copy(now, f.disk[at:])
		}
	}
}

func readAll(file *os.File) []byte {
	b, err := os.ReadFile(file.Name())
	if err != nil {
		panic(err)
	}
	return b
}

// powerCut puts the logs back to what was synced; of one that never was nothing is there but its length.
func (f *flakySync) powerCut(t *testing.T, dir string) {
	t.Helper()
	for _, name := range append(glob(t, dir, "g*/*.mem"), glob(t, dir, "g*/"+journalFile)...) {
		f.know(name)
		b, ok := f.logs[name]
		if fi, err := os.Stat(name); err == nil && !ok {
			b = make([]byte, fi.Size())
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
	flaky    *flakySync
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
	e := sc.put(20, "eve@example.org")
	f, h := sc.put(3000, "fay@example.org"), sc.put(200<<10, "hal@example.org")
	sc.fillUp()
	// What follows is about a closed generation, whose own log is synced.
	sc.settle(a, mta.Deferred, 451)
	sc.settle(e, mta.Delivered, 250)
	report = mta.Report{Envelope: testEnvelope("bob@example.net")}
	report.Content = contentOf(report.Envelope.ID, reportSize)
	sc.settle(f, mta.Returned, 550, report)
	sc.settle(a, mta.Deferred, 451)
	sc.settle(h, mta.Delivered, 250)
	sc.put(30, "ida@example.org")
}

// fillUp has the active generation closed, and another one take its place.
func (sc *script) fillUp() {
	g, d, err := sc.s.useActive()
	if err != nil {
		return
	}
	g.release()
	if _, err := sc.s.roll(g); err != nil {
		return
	}
	waitFor(sc.t, "the close", func() bool { // it may be the keeper's
		closed, err := g.closeIdle(sc.s)
		return closed || err != nil || d.poisoned() != nil
	})
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
	dry := newFlaky(0, false)
	runScript(t, dry, func(*script, Config) {})
	reopened := -1 // once when it is made
	for _, name := range dry.names {
		if strings.Contains(name, generationName(1)) && strings.HasSuffix(name, ".mem") {
			reopened++
		}
	}
	if dry.calls < 20 || reopened < 4 {
		t.Fatalf("the script syncs %d times, %d of them the log of a generation that was closed", dry.calls, reopened)
	}
	for n := 1; n <= dry.calls; n++ {
		for _, stored := range []bool{false, true} {
			for e, end := range []string{"power cut", "kill", "close", "kill and power cut"} {
				if stored && !strings.HasSuffix(end, "power cut") || testing.Short() && (n+e)%3 != 0 {
					continue // what is on the disk matters after a power cut alone
				}
				t.Run(fmt.Sprintf("sync %d, stored %v, %s", n, stored, end), func(t *testing.T) {
					t.Parallel()
					runScript(t, newFlaky(n, stored), func(sc *script, cfg Config) { sc.end(end, cfg) })
				})
			}
		}
	}
}

// end ends a script.
func (sc *script) end(how string, cfg Config) {
	switch how {
	case "close":
		closeTest(sc.t, sc.s)
		return
	case "kill and power cut": // what the recovery in between built on stays
		sc.flaky.crash(sc.t, sc.s)
		tune := slow()
		tune.sync = sc.flaky.sync
		sc.s = openTest(sc.t, cfg, tune)
		sc.check(sc.s)
	}
	sc.flaky.crash(sc.t, sc.s)
	if how != "kill" {
		sc.flaky.powerCut(sc.t, cfg.Dir)
	}
}

func runScript(t *testing.T, flaky *flakySync, end func(sc *script, cfg Config)) {
	cfg := testConfig(t)
	cfg.Dir = swiftDir(t)
	tune := slow()
	tune.sync = flaky.sync
	s := openTest(t, cfg, tune)
	sc := &script{t: t, s: s, flaky: flaky, stored: make(map[mta.ID]int), over: make(map[mta.ID]bool), attempts: make(map[mta.ID]int)}
	sc.run()
	sc.check(s)
	if flaky.n > 2 && len(sc.stored) < 8 { // the first two are of a generation in the making
		t.Errorf("only %d puts worked around one failed sync", len(sc.stored))
	}
	end(sc, cfg)
	if flaky.n == 0 {
		closeTest(t, s)
	}
	for range 2 { // what the first recovery amended, the second must agree with
		s = openTest(t, cfg, slow())
		sc.check(s)
		crashFreed(t, s)
	}
}

func TestAfterAFailedCommitTheGenerationIsEvacuatedAndRemoved(t *testing.T) {
	cfg := testConfig(t)
	flaky := newFlaky(8, false)
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
	tune := slow()
	var cry func()
	tune.sync = func(f *os.File) error {
		if cry != nil {
			cry()
			cry = nil
		}
		return datasync(f)
	}
	s := openTest(t, testConfig(t), tune)
	defer crash(s)
	logger := s.active.db.db.Opts().Logger
	cry = func() { logger.Errorf("Error while curlf sync: %v\n", errDisk) }
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

// unsyncable ends content, and has what its file is by then be a device that can't be synced.
type unsyncable struct{ id mta.ID }

func (u unsyncable) Read([]byte) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return 0, err
	}
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil || !strings.Contains(to, u.id.String()) {
			continue
		}
		fd, err := strconv.Atoi(filepath.Base(link))
		if err == nil {
			err = unix.Dup3(int(null.Fd()), fd, unix.O_CLOEXEC)
		}
		if err == nil {
			err = io.EOF
		}
		return 0, err
	}
	return 0, errors.New("the content has no file")
}

func TestContentThatCantBeSyncedIsNo250(t *testing.T) {
	for _, key := range []string{"", writeKey(t)} {
		cfg := testConfig(t)
		cfg.KeyFile = key
		s := openTest(t, cfg, slow())
		env := testEnvelope("ann@example.org")
		body := io.MultiReader(bytes.NewReader(contentOf(env.ID, 300<<10)), unsyncable{env.ID})
		if err := s.Put(t.Context(), env, body); !errors.Is(err, unix.EINVAL) || errors.Is(err, ErrUnknown) {
			t.Errorf("put: %v, want that the sync is not possible, and nothing of the message there", err)
		}
		if found := glob(t, cfg.Dir, bodiesDir+"/*"); len(found) > 0 {
			t.Errorf("left: %v", found)
		}
		other := mustPut(t, s, 300<<10, "ann@example.org")
		for range 2 {
			if _, err := s.Get(t.Context(), env.ID); !errors.Is(err, ErrNotFound) {
				t.Errorf("get: %v, want ErrNotFound", err)
			}
			wantBody(t, s, other.ID, 300<<10)
			crash(s)
			s = openTest(t, cfg, slow())
		}
		closeTest(t, s)
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
