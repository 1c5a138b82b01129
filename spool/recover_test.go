package spool

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy/internal/mta"
)

// unsynced makes commits cheap, for tests in which nothing but the process is lost.
func unsynced(tune tuning) tuning {
	tune.sync = func(*os.File) error { return nil }
	return tune
}

// failsWhile is a disk that fails for some time.
func failsWhile(fails *atomic.Bool) func(*os.File) error {
	return func(*os.File) error {
		if fails.Load() {
			return errDisk
		}
		return nil
	}
}

// putMany stores n messages of one octet: nearly all that they take is their records.
func putMany(t *testing.T, s *Store, n int, rcpts ...string) {
	t.Helper()
	const workers = 50
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				if err := s.Put(t.Context(), testEnvelope(rcpts...), strings.NewReader("x")); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func wantMessages(t *testing.T, s *Store, n int64) {
	t.Helper()
	u, err := s.Usage(t.Context())
	if err != nil || u.Messages != n {
		t.Errorf("%d messages, want %d: %v, damages %v", u.Messages, n, err, s.Damages())
	}
}

func TestAGenerationFullOfRecordsComesBackFromItsJournal(t *testing.T) {
	for _, key := range []bool{false, true} {
		cfg := testConfig(t)
		cfg.GenerationSize = DefaultConfig().GenerationSize
		if key {
			cfg.KeyFile = writeKey(t)
		}
		s := openTest(t, cfg, unsynced(slow()))
		const n = 20_000
		putMany(t, s, n, "ann@example.org")
		if used := s.active.db.used.Load(); s.generations() > 1 || used < smallMemtable {
			t.Fatalf("%d generations, %d octets of records: that shows nothing", s.generations(), used)
		}
		for range 2 {
			crash(s)
			s = openTest(t, cfg, unsynced(slow()))
			wantMessages(t, s, n)
		}
		closeTest(t, s)
		s = openTest(t, cfg, unsynced(slow()))
		wantMessages(t, s, n)
		crash(s)
	}
}

func TestTheMarkOfACloseThatWasCutShortIsNotBelieved(t *testing.T) {
	for _, logs := range []string{"there", "away"} {
		cfg := testConfig(t)
		s := openTest(t, cfg, slow())
		var ids []mta.ID
		for range 5 {
			ids = append(ids, mustPut(t, s, 3000, "ann@example.org").ID)
		}
		g := s.active
		mark := cleanInfo{Records: g.records.Load(), Journal: g.db.journalSize()}
		if err := writeJSON(filepath.Join(g.dir, cleanFile), mark); err != nil {
			t.Fatal(err)
		}
		crash(s)
		if logs == "away" { // another Open had begun to make the database anew
			for _, path := range glob(t, g.dir, "*.mem") {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 2 {
			s = openTest(t, cfg, slow())
			for _, id := range ids {
				wantBody(t, s, id, 3000)
			}
			if d := s.Damages(); len(d) > 0 {
				t.Errorf("logs %s: %v", logs, d)
			}
			crash(s)
		}
	}
}

func glob(t testing.TB, dir, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestALogWithoutRoomForItsSuccessorStays(t *testing.T) {
	cfg := testConfig(t)
	s := openTest(t, cfg, slow())
	mustPut(t, s, 3000, "ann@example.org")
	g := s.active
	crash(s)
	s.space.pledged = 1 << 50
	if _, err := s.takeLogs(g, filepath.Join(cfg.Dir, asideDir, "x")); !errors.Is(err, errNoSpace) {
		t.Errorf("got %v", err)
	}
	if len(glob(t, g.dir, "*.mem")) == 0 {
		t.Error("the log is gone")
	}
}

// A message is copied to the active generation, and the process is killed between the write of the copy and its sync. The
// recovery takes the copy for the later one and gives the original up: from then on a power cut must not undo the copy.
func TestWhatARecoveryBuildsOnIsOnStableStorage(t *testing.T) {
	cfg := testConfig(t)
	tune := slow()
	flaky := newFlaky(0, false)
	var fails atomic.Bool
	tune.sync = func(f *os.File) error {
		if fails.Load() && filepath.Base(f.Name()) == journalFile {
			return flaky.fail(f)
		}
		return flaky.sync(f)
	}
	s := openTest(t, cfg, tune)
	m := mustPut(t, s, 3000, "ann@example.org")
	first := s.active
	if _, err := s.roll(first); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, 3000, "keep@example.net")
	fails.Store(true)
	s.evacuate(t.Context(), first)
	fails.Store(false)
	crash(s)
	s = openTest(t, cfg, tune)
	s.removeDrained()
	if at, _ := s.where(m.ID); at.gen == first.num || len(glob(t, cfg.Dir, filepath.Base(first.dir))) > 0 {
		t.Fatalf("it is at %v, the folders are %v: that shows nothing", at, folders(t, cfg))
	}
	crash(s)
	flaky.powerCut(t, cfg.Dir)
	s = openTest(t, cfg, slow())
	wantBody(t, s, m.ID, 3000)
	closeTest(t, s)
}

func TestDamageIsRememberedAndNothingOfItIsRemoved(t *testing.T) {
	cfg := testConfig(t)
	s := openTest(t, cfg, slow())
	for range 3 {
		mustPut(t, s, 3000, "ann@example.org")
	}
	large := mustPut(t, s, 200<<10, "ann@example.org") // its content has a file of its own
	mustPut(t, s, 3000, "ann@example.org")
	first := s.active
	crash(s)
	path := filepath.Join(first.dir, journalFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[bytes.Index(b, large.ID[:])+40] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s = openTest(t, cfg, quick())
		if len(s.Damages()) == 0 {
			t.Error("the damage is forgotten")
		}
		if len(glob(t, cfg.Dir, bodiesDir+"/*")) != 1 {
			t.Error("the content of the message that can't be read was swept")
		}
		deliver(t, s, "example.org", func(mta.ID) bool { return false })
		for range 3 {
			s.removeDrained()
		}
		if len(glob(t, cfg.Dir, filepath.Base(first.dir))) != 1 {
			t.Error("the damaged generation was removed")
		}
		closeTest(t, s)
	}
}

func TestARemovedGenerationIsNotMadeAnew(t *testing.T) {
	cfg := testConfig(t)
	s := openTest(t, cfg, slow())
	mustPut(t, s, 100, "ann@example.org")
	stale := s.active
	if _, err := s.roll(stale); err != nil {
		t.Fatal(err)
	}
	deliver(t, s, "example.org", func(mta.ID) bool { return false })
	s.removeDrained()
	if len(glob(t, cfg.Dir, filepath.Base(stale.dir))) > 0 {
		t.Fatal("it was not removed")
	}
	if _, err := stale.use(s); !errors.Is(err, errMoved) {
		t.Errorf("got %v, want errMoved", err)
	}
	v := &Verification{}
	if err := s.verifyGeneration(t.Context(), stale, v); err != nil || len(v.Damages) > 0 {
		t.Errorf("%v %v", v, err)
	}
	closeTest(t, s)
	if found := glob(t, cfg.Dir, filepath.Base(stale.dir)); len(found) > 0 {
		t.Error(found)
	}
}

// A mapping that can't be read is a signal, not an error: here because the file was cut, else because of a bad sector.
func TestAPageThatCantBeReadIsDamageAndNotTheEnd(t *testing.T) {
	cfg := testConfig(t)
	s := openTest(t, cfg, slow())
	env := mustPut(t, s, 3000, "ann@example.org")
	closeTest(t, s)
	s = openTest(t, cfg, slow())
	at, _ := s.where(env.ID)
	g, _ := s.generation(at.gen)
	if _, err := g.use(s); err != nil {
		t.Fatal(err)
	}
	for _, path := range glob(t, g.dir, "*.sst") {
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := readBody(t, s, env.ID); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v, want ErrDamaged", err)
	}
	if err := verifyTables(g.db.db); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v, want ErrDamaged", err)
	}
	g.release()
	crash(s)
}

func TestAGenerationThatCantBeMadeLeavesNothingBehind(t *testing.T) {
	cfg := testConfig(t)
	tune := slow()
	var fails atomic.Bool
	tune.sync = failsWhile(&fails)
	s := openTest(t, cfg, tune)
	defer closeTest(t, s)
	fails.Store(true)
	before, _ := files()
	for range 10 {
		if _, err := s.create(s.number()); !errors.Is(err, errDisk) {
			t.Fatal(err)
		}
	}
	if after, _ := files(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	if f := folders(t, cfg); len(f) != 1 {
		t.Errorf("folders %v", f)
	}
	fails.Store(false)
}

// Badger is told of an end before that is on the disk, and the index only after.
func TestAnEndOnItsWayToTheDiskIsNoDamage(t *testing.T) {
	cfg := testConfig(t)
	tune := slow()
	entered, goOn := make(chan struct{}), make(chan struct{})
	var blocks atomic.Bool
	tune.sync = func(*os.File) error {
		if blocks.CompareAndSwap(true, false) {
			close(entered)
			<-goOn
		}
		return nil
	}
	s := openTest(t, cfg, tune)
	defer closeTest(t, s)
	env := mustPut(t, s, 100, "ann@example.org")
	l := mustClaim(t, s, mta.ClaimRequest{Dest: "example.org"})
	blocks.Store(true)
	settled := make(chan error, 1)
	go func() { settled <- s.Settle(t.Context(), settlement(l, mta.Delivered, 250))[0] }()
	<-entered
	read := make(chan error, 2)
	go func() { _, err := readBody(t, s, env.ID); read <- err }()
	go func() { _, err := s.Get(t.Context(), env.ID); read <- err }()
	waitFor(t, "Badger knows of the end", func() bool {
		at, ok := s.where(env.ID)
		_, _, err := s.load(at)
		return ok && errors.Is(err, errMoved)
	})
	close(goOn)
	for range 2 {
		if err := <-read; err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("read: %v", err)
		}
	}
	if err := <-settled; err != nil {
		t.Error(err)
	}
	if d := s.Damages(); len(d) > 0 {
		t.Error(d)
	}
}

func TestASettlementThatCouldNotBeStoredDamagesNothing(t *testing.T) {
	cfg := testConfig(t)
	tune := quick()
	var fails atomic.Bool
	tune.sync = failsWhile(&fails)
	s := openTest(t, cfg, tune)
	env := mustPut(t, s, 100, "ann@example.org")
	for range 5 {
		mustPut(t, s, 100, "ann@example.net")
	}
	first := s.active
	l := mustClaim(t, s, mta.ClaimRequest{Dest: "example.org"})
	fails.Store(true)
	if err := s.Settle(t.Context(), settlement(l, mta.Delivered, 250))[0]; err == nil {
		t.Fatal("it was stored on a disk that fails")
	}
	fails.Store(false)
	if f := s.LastFault(); f.At.IsZero() || !errors.Is(f.Err, errDisk) {
		t.Errorf("the fault is not told: %+v", f)
	}
	waitFor(t, "all others are evacuated", func() bool { return first.live.Load() == 1 })
	if _, err := s.Get(t.Context(), env.ID); !errors.Is(err, errInDoubt) {
		t.Errorf("got %v, want errInDoubt", err)
	}
	if d := s.Damages(); len(d) > 0 {
		t.Errorf("damages %v", d)
	}
	if err := s.Settle(t.Context(), settlement(l, mta.Delivered, 250))[0]; err != nil {
		t.Errorf("said once more: %v", err)
	}
	waitFor(t, "the generation is removed", func() bool { return len(glob(t, cfg.Dir, filepath.Base(first.dir))) == 0 })
	closeTest(t, s)
}

func TestADamagedRegistryOfKeysIsItsGenerationsFaultAlone(t *testing.T) {
	cfg := testConfig(t)
	cfg.KeyFile = writeKey(t)
	s := openTest(t, cfg, slow())
	mustPut(t, s, 100, "ann@example.org")
	first := s.active
	if _, err := s.roll(first); err != nil {
		t.Fatal(err)
	}
	other := mustPut(t, s, 100, "ann@example.org")
	closeTest(t, s)
	path := filepath.Join(first.dir, "KEYREGISTRY")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[20] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, cfg, slow())
	defer closeTest(t, s)
	wantBody(t, s, other.ID, 100)
	if d := s.Damages(); len(d) != 1 || d[0].Dir != first.dir {
		t.Errorf("damages %v", d)
	}
}

func TestASealedFileWithADamagedKeyIDIsHeld(t *testing.T) {
	cfg := testConfig(t)
	cfg.KeyFile = writeKey(t)
	s := openTest(t, cfg, slow())
	defer closeTest(t, s)
	env := mustPut(t, s, 200<<10, "ann@example.org")
	path := glob(t, cfg.Dir, bodiesDir+"/*")[0]
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(sealMagic)] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readBody(t, s, env.ID); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v, want ErrDamaged", err)
	}
	if d := s.Damages(); len(d) != 1 || d[0].ID != env.ID {
		t.Errorf("damages %v", d)
	}
}

func TestADiskThatDoesNotAnswerHoldsUpNobodyForEver(t *testing.T) {
	cfg := testConfig(t)
	tune := slow()
	tune.patience = 50 * time.Millisecond
	var hangs atomic.Bool
	goOn := make(chan struct{})
	tune.sync = func(f *os.File) error {
		if hangs.Load() {
			<-goOn
		}
		return nil
	}
	s := openTest(t, cfg, tune)
	before := mustPut(t, s, 100, "ann@example.org")
	first := s.active
	hangs.Store(true)
	env := testEnvelope("ann@example.org")
	err := s.Put(t.Context(), env, bytes.NewReader(contentOf(env.ID, 100)))
	if !errors.Is(err, ErrUnknown) && !errors.Is(err, errPoisoned) {
		t.Fatalf("got %v: a commit that was not answered is no 250", err)
	}
	if _, err := first.closeIdle(s); err != nil {
		t.Error(err) // it is poisoned, so it is only left
	}
	if _, err := first.use(s); !errors.Is(err, errStuck) {
		t.Errorf("got %v, want errStuck", err)
	}
	if _, err := s.Get(t.Context(), before.ID); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
	hangs.Store(false)
	close(goOn)
	waitFor(t, "the disk has answered", func() bool {
		_, err := s.Get(t.Context(), before.ID)
		return err == nil
	})
	wantBody(t, s, before.ID, 100)
	closeTest(t, s)
	s = openTest(t, cfg, slow())
	wantBody(t, s, before.ID, 100)
	closeTest(t, s)
}

// Badger deletes tables that its MANIFEST does not name, and a MANIFEST that is cut off is no error to it.
func TestWhatAMANIFESTLostComesBackFromTheJournal(t *testing.T) {
	for _, key := range []bool{false, true} {
		cfg := testConfig(t)
		if key {
			cfg.KeyFile = writeKey(t)
		}
		s := openTest(t, cfg, slow())
		var ids []mta.ID
		for range 5 {
			ids = append(ids, mustPut(t, s, 3000, "ann@example.org").ID)
		}
		first := s.active
		closeTest(t, s)
		s = openTest(t, cfg, slow())
		l := mustClaim(t, s, mta.ClaimRequest{ID: ids[0]})
		if err := s.Settle(t.Context(), settlement(l, mta.Delivered, 250))[0]; err != nil {
			t.Fatal(err)
		}
		crash(s)
		harmFile(t, filepath.Join(first.dir, "MANIFEST"), func(b []byte) { clear(b[16:]) }) // all but its head
		for range 2 {
			s = openTest(t, cfg, slow())
			for _, id := range ids[1:] {
				wantBody(t, s, id, 3000)
			}
			if _, err := s.Get(t.Context(), ids[0]); !errors.Is(err, ErrNotFound) {
				t.Errorf("what was settled is back: %v", err) // its end is in the log
			}
			if d := s.Damages(); len(d) != 1 || d[0].Dir != first.dir {
				t.Errorf("damages %v", d)
			}
			crash(s)
		}
	}
}

// interrupted has f change a closed generation and others, and gives what a kill leaves that came when the others were
// written and the closed one was not.
func interrupted(t *testing.T, s *Store, g *generation, f func()) {
	t.Helper()
	s.closeGeneration(g)
	before := filepath.Join(t.TempDir(), "before")
	if err := os.CopyFS(before, os.DirFS(g.dir)); err != nil {
		t.Fatal(err)
	}
	f()
	crash(s)
	if err := errors.Join(os.RemoveAll(g.dir), os.CopyFS(g.dir, os.DirFS(before))); err != nil {
		t.Fatal(err)
	}
}

func TestAMovedMessageDoesNotComeBackFromWhereItWas(t *testing.T) {
	cfg := testConfig(t)
	s := openTest(t, cfg, slow())
	moved, stays := mustPut(t, s, 3000, "ann@example.org"), mustPut(t, s, 3000, "bob@example.net")
	first := s.active
	if _, err := s.roll(first); err != nil {
		t.Fatal(err)
	}
	second := s.active
	interrupted(t, s, first, func() {
		if err := s.move(first, []mta.ID{moved.ID}); err != nil {
			t.Fatal(err)
		}
	})
	s = openTest(t, cfg, slow())
	wantBody(t, s, moved.ID, 3000)
	deliver(t, s, "example.org", func(mta.ID) bool { return false })
	s.removeDrained()
	if len(glob(t, cfg.Dir, filepath.Base(second.dir))) > 0 {
		t.Fatal("the copy's generation is still there: that shows nothing")
	}
	crash(s)
	s = openTest(t, cfg, slow())
	defer closeTest(t, s)
	wantBody(t, s, stays.ID, 3000)
	if _, err := s.Get(t.Context(), moved.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("it was delivered, and is back: %v", err)
	}
}

func TestWhatAReportSaysOfAnotherGenerationHolds(t *testing.T) {
	cfg := testConfig(t)
	s := openTest(t, cfg, slow())
	ended, tried := mustPut(t, s, 3000, "ann@example.org"), mustPut(t, s, 3000, "bob@example.net", "cat@example.net")
	first := s.active
	if _, err := s.roll(first); err != nil {
		t.Fatal(err)
	}
	var reports []mta.Report
	interrupted(t, s, first, func() {
		for _, env := range []*mta.Envelope{ended, tried} {
			l := mustClaim(t, s, mta.ClaimRequest{ID: env.ID})
			st := settlement(l, mta.Returned, 550)
			st.Results = st.Results[:1] // of two recipients one waits on
			r := mta.Report{Envelope: testEnvelope("eve@example.com")}
			r.Content = contentOf(r.Envelope.ID, 100)
			st.Reports = []mta.Report{r}
			if err := s.Settle(t.Context(), st)[0]; err != nil {
				t.Fatal(err)
			}
			reports = append(reports, r)
		}
	})
	for range 2 {
		s = openTest(t, cfg, slow())
		for _, r := range reports {
			wantBody(t, s, r.Envelope.ID, 100)
		}
		if _, err := s.Get(t.Context(), ended.ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("it was returned, and is back: %v", err)
		}
		items, err := s.Get(t.Context(), tried.ID)
		if err != nil || items[0].Rcpts[0].Outcome != mta.Returned || items[0].Rcpts[1].Outcome != mta.Deferred {
			t.Errorf("%+v %v", items, err)
		}
		crash(s)
	}
}
