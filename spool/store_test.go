package spool

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/mta"
)

// deliver claims and settles everything for dest but what keep wants.
func deliver(t testing.TB, s *Store, dest string, keep func(id mta.ID) bool) {
	t.Helper()
	for {
		leases, err := s.Claim(t.Context(), mta.ClaimRequest{Dest: dest, Max: 50, Lease: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if len(leases) == 0 {
			return
		}
		var batch []mta.Settlement
		for _, l := range leases {
			if keep(l.ID) {
				st := settlement(l, mta.Deferred, 451)
				st.NextDue = time.Now().Add(time.Hour)
				batch = append(batch, st)
				continue
			}
			batch = append(batch, settlement(l, mta.Delivered, 250))
		}
		if err := errors.Join(s.Settle(t.Context(), batch...)...); err != nil {
			t.Fatal(err)
		}
	}
}

func folders(t testing.TB, cfg Config) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(cfg.Dir, "g*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestAFewStragglersDoNotPinTheDisk(t *testing.T) {
	cfg := testConfig(t)
	s := openTest(t, cfg, quick())
	stay := make(map[mta.ID]int)
	judged := testEnvelope("ann@example.org")
	judged.Verdict = &mta.Verdict{Action: mta.Quarantine}
	if err := s.Put(t.Context(), judged, bytes.NewReader(contentOf(judged.ID, 1000))); err != nil {
		t.Fatal(err)
	}
	for i := range 600 { // some eight generations
		n := 50 << 10
		if i%300 == 7 {
			n = 300 << 10 // one in a file of its own
		}
		env := mustPut(t, s, n, "ann@example.org")
		if i%100 == 7 {
			stay[env.ID] = n
		}
	}
	if n := len(folders(t, cfg)); n < 6 {
		t.Fatalf("%d generations", n)
	}
	deliver(t, s, "example.org", func(id mta.ID) bool { return stay[id] > 0 })
	waitFor(t, "one generation", func() bool { return len(folders(t, cfg)) <= 2 && diskUsed(cfg.Dir) < 24<<20 })
	for range 2 {
		for id, n := range stay {
			wantBody(t, s, id, n)
			items, err := s.Get(t.Context(), id)
			if err != nil || items[0].Attempts != 1 || time.Until(items[0].Due) < 50*time.Minute {
				t.Errorf("a straggler that was moved: %+v %v", items, err)
			}
		}
		wantBody(t, s, judged.ID, 1000)
		items, err := s.Get(t.Context(), judged.ID)
		if err != nil || !items[0].Held || items[0].Reason.Code != 550 || items[0].Envelope.Verdict == nil {
			t.Errorf("a quarantined message that was moved: %+v %v", items, err)
		}
		crash(s)
		s = openTest(t, cfg, quick())
	}
	stay[judged.ID] = 1000
	for id := range stay {
		if n, err := s.Apply(t.Context(), Delete, time.Time{}, Key{ID: id}); n != 1 || err != nil {
			t.Errorf("delete: %d %v", n, err)
		}
	}
	waitFor(t, "an empty disk", func() bool {
		bodies, err := os.ReadDir(filepath.Join(cfg.Dir, bodiesDir))
		return err == nil && len(bodies) == 0 && len(folders(t, cfg)) == 1
	})
	crash(s)
	s = openTest(t, cfg, slow())
	defer closeTest(t, s)
	if u, err := s.Usage(t.Context()); err != nil || u.Messages != 0 {
		t.Errorf("what was delivered is back: %+v %v", u, err)
	}
}

func TestBadgerNeverChangesItsLogByItself(t *testing.T) {
	cfg := testConfig(t)
	s := openTest(t, cfg, quick())
	defer closeTest(t, s)
	for _, n := range []int{0, 10, 500, 5000, 100000} {
		for range 300 {
			mustPut(t, s, n, "ann@example.org")
		}
	}
	// An old generation whose log fills up with progress is opened anew.
	for range 3 {
		deliver(t, s, "example.org", func(mta.ID) bool { return true })
		if _, err := s.ApplyWhere(t.Context(), Query{}, Reschedule, time.Time{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range s.snapshot() {
		g.mu.Lock()
		if g.db != nil && g.db.poisoned() != nil {
			t.Errorf("%s: %v", g.dir, g.db.poisoned())
		}
		g.mu.Unlock()
	}
	if u, err := s.Usage(t.Context()); err != nil || u.Messages != 1500 {
		t.Errorf("%+v %v", u, err)
	}
}

// A database is opened with the memtable that it was made with, whatever is configured now: less would hold neither what
// its log has nor what its journal has.
func TestAChangedGenerationSizeAcrossACrash(t *testing.T) {
	const n = 10_000
	rcpts := make([]string, 20) // the records are more than the smallest database takes
	for i := range rcpts {
		rcpts[i] = fmt.Sprintf("recipient.number.%d@example.org", i)
	}
	for _, c := range []struct {
		name           string
		sealed, redone bool
	}{
		{"its journal is read", false, false},
		{"its journal is read, encrypted", true, false},
		{"its log is replayed", false, true},
		{"its log is replayed, encrypted", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t)
			if c.sealed {
				cfg.KeyFile = writeKey(t)
			}
			cfg.GenerationSize = 64 * mta.MiB
			s := openTest(t, cfg, unsynced(slow()))
			putMany(t, s, n, rcpts...)
			body := mustPut(t, s, 100<<10, "ann@example.org")
			g := s.active
			if used := g.db.used.Load(); g.num != 1 || used < 2*smallMemtable {
				t.Fatalf("generation %d, %d octets of records: that shows nothing", g.num, used)
			}
			end := g.db.log.end.Load()
			crash(s)
			cfg.GenerationSize = minGeneration
			if c.redone {
				cfg.Dir = leftRedone(t, cfg, g, end)
			}
			for range 2 {
				s = openTest(t, cfg, unsynced(slow()))
				wantMessages(t, s, n+1)
				wantBody(t, s, body.ID, 100<<10)
				if d := s.Damages(); len(d) > 0 {
					t.Errorf("damages %v", d)
				}
				crash(s)
			}
		})
	}
}

// leftRedone gives a folder as a kill leaves it between the file redone and the close of the generation that was made
// anew: its log has what its journal has, and counts. The journal's end, at which a commit is begun here and not finished,
// has Open say a line at that moment.
func leftRedone(t *testing.T, cfg Config, g *generation, end int64) (dir string) {
	t.Helper()
	harmFile(t, filepath.Join(g.dir, journalFile), func(b []byte) { copy(b[end:], "a commit that was begun") })
	dir = filepath.Join(t.TempDir(), "spool")
	log := slog.New(lineHandler{testLog(t).Handler(), func(r slog.Record) {
		if r.Message != "log ends in a commit that was not finished" {
			return
		}
		if err := os.CopyFS(dir, os.DirFS(cfg.Dir)); err != nil {
			t.Error(err)
		}
	}})
	s, err := open(t.Context(), cfg, log, newMetrics(nil), unsynced(slow()))
	if err != nil {
		t.Fatal(err)
	}
	crash(s)
	left := filepath.Join(dir, filepath.Base(g.dir))
	if len(glob(t, left, redoneFile)) != 1 || len(glob(t, left, "*.mem")) != 1 || len(glob(t, left, "*.sst")) > 0 {
		t.Fatalf("left was %v: that shows nothing", glob(t, left, "*"))
	}
	return dir
}

// lineHandler is told of each line.
type lineHandler struct {
	slog.Handler
	told func(slog.Record)
}

func (h lineHandler) Handle(ctx context.Context, r slog.Record) error {
	h.told(r)
	return h.Handler.Handle(ctx, r)
}

// A sender that pauses in the middle of its content, and a reader that does, hold up nobody, and nobody's content is kept
// in memory for them.
func TestSlowSendersAndReadersHoldUpNobody(t *testing.T) {
	const senders, size = 8, 50 << 20
	s := openTest(t, testConfig(t), slow())
	defer closeTest(t, s)
	readers := make(map[mta.ID]io.ReadCloser)
	sizes := make(map[mta.ID]int)
	for _, n := range []int{100 << 10, 1 << 20} { // beside its record, and in a file
		env := mustPut(t, s, n, "slow@example.net")
		r, err := s.Body(t.Context(), env.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		readers[env.ID], sizes[env.ID] = r, n
	}
	head := make([]byte, 100)
	for id, r := range readers { // and no more, for now
		if _, err := io.ReadFull(r, head); err != nil || !bytes.Equal(head, contentOf(id, sizes[id])[:100]) {
			t.Fatalf("%q %v", head, err)
		}
	}
	before := memory()
	var wg sync.WaitGroup
	envs := make([]*mta.Envelope, senders)
	here, goOn := make(chan struct{}, senders), make(chan struct{})
	for i := range envs {
		envs[i] = testEnvelope("ann@example.org")
		p := &pattern{}
		body := io.MultiReader(io.LimitReader(p, size/2), pause{here, goOn}, io.LimitReader(p, size/2))
		wg.Go(func() {
			if err := s.Put(t.Context(), envs[i], body); err != nil {
				t.Error(err)
			}
		})
	}
	for range senders {
		<-here
	}
	if grown := memory() - before; grown > senders*size/2/4 {
		t.Errorf("%d MiB of content are under way, memory grew by %d MiB", senders*size/2>>20, grown>>20)
	}
	for range 50 { // all of it while they pause
		mustPut(t, s, 1000, "ann@example.com")
	}
	if _, err := s.roll(s.active); err != nil {
		t.Fatal(err)
	}
	deliver(t, s, "example.com", func(mta.ID) bool { return false })
	deliver(t, s, "example.net", func(mta.ID) bool { return false })
	s.removeDrained()
	wantMessages(t, s, 0)
	for id, r := range readers { // its message is gone, what it reads is not
		if rest, err := io.ReadAll(r); err != nil || !bytes.Equal(rest, contentOf(id, sizes[id])[100:]) {
			t.Errorf("the rest of %d octets: %d, %v", sizes[id], len(rest), err)
		}
	}
	close(goOn)
	wg.Wait()
	for _, env := range envs {
		wantPattern(t, s, env.ID, size)
	}
}

func TestAMessageOf100MiBGoesInAndOut(t *testing.T) {
	const size = 100 << 20
	for _, key := range []string{"", writeKey(t)} {
		cfg := testConfig(t)
		cfg.KeyFile = key
		s := openTest(t, cfg, slow())
		env := testEnvelope("ann@example.org")
		before := memory()
		if err := s.Put(t.Context(), env, io.LimitReader(&pattern{}, size)); err != nil {
			t.Fatal(err)
		}
		wantPattern(t, s, env.ID, size)
		if grown := memory() - before; grown > size/2 {
			t.Errorf("memory grew by %d MiB", grown>>20)
		}
		crash(s)
		s = openTest(t, cfg, slow())
		wantPattern(t, s, env.ID, size)
		deliver(t, s, "example.org", func(mta.ID) bool { return false })
		if left := glob(t, cfg.Dir, bodiesDir+"/*"); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		closeTest(t, s)
	}
}

// memory is what the process has of the system.
func memory() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys)
}

// pause says that it is reached, and ends when it is told to.
type pause struct{ here, goOn chan struct{} }

func (p pause) Read([]byte) (int, error) {
	p.here <- struct{}{}
	<-p.goOn
	return 0, io.EOF
}

// wantPattern holds content against the pattern, without having all of it in memory.
func wantPattern(t *testing.T, s *Store, id mta.ID, size int64) {
	t.Helper()
	r, err := s.Body(t.Context(), id)
	if err != nil {
		t.Error(err)
		return
	}
	defer r.Close()
	w := &patternWriter{}
	if n, err := io.Copy(w, r); n != size || err != nil {
		t.Errorf("%d octets, want %d: %v", n, size, err)
	}
}

// patternWriter takes the pattern and nothing else.
type patternWriter struct {
	p    pattern
	want []byte
}

func (w *patternWriter) Write(b []byte) (int, error) {
	at := w.p.n
	w.want = slices.Grow(w.want[:0], len(b))[:len(b)]
	if w.p.Read(w.want); !bytes.Equal(b, w.want) {
		return 0, fmt.Errorf("the octets from %d on are others", at)
	}
	return len(b), nil
}

// pattern is content without an end.
type pattern struct{ n int }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.n >> 6)
		p.n++
	}
	return len(b), nil
}

func TestASecondProcessIsRefused(t *testing.T) {
	cfg := testConfig(t)
	s := openTest(t, cfg, slow())
	defer closeTest(t, s)
	_, err := Open(t.Context(), cfg, testLog(t), nil)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("%v, want ErrInUse with the owner's pid", err)
	}
}

func TestALaterFormatIsRefused(t *testing.T) {
	cfg := testConfig(t)
	s := openTest(t, cfg, slow())
	mustPut(t, s, 10, "ann@example.org")
	closeTest(t, s)
	path := filepath.Join(cfg.Dir, generationName(1), generationFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(b, []byte(`"version":2`), []byte(`"version":3`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), cfg, testLog(t), nil); err == nil || !strings.Contains(err.Error(), "version 3") {
		t.Errorf("%v, want a word about version 3", err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	closeTest(t, openTest(t, cfg, slow())) // the refusal did no harm, and gave the lock back
}

func writeKey(t testing.TB) (path string) {
	t.Helper()
	key := make([]byte, keySize)
	rand.Read(key)
	path = filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(hex.EncodeToString(key)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMailIsEncryptedAtRest(t *testing.T) {
	cfg := testConfig(t)
	cfg.KeyFile = writeKey(t)
	s := openTest(t, cfg, slow())
	sizes := []int{0, 100, 60 << 10, 300 << 10, 64<<10*5 - 28, 3 << 20}
	envs := make(map[mta.ID]int)
	for _, n := range sizes {
		envs[mustPut(t, s, n, "secret@example.org").ID] = n
	}
	check := func(s *Store) {
		t.Helper()
		for id, n := range envs {
			wantBody(t, s, id, n)
		}
	}
	check(s)
	clear := func() {
		t.Helper()
		err := filepath.WalkDir(cfg.Dir, func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			for id := range envs {
				if bytes.Contains(b, []byte(id.String())) || bytes.Contains(b, id[:]) || bytes.Contains(b, []byte("secret")) {
					t.Errorf("%s holds mail in clear", path)
					break
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	clear()
	crash(s)
	s = openTest(t, cfg, slow())
	check(s)
	closeTest(t, s)
	clear()

	wrong := cfg
	wrong.KeyFile = writeKey(t)
	if _, err := Open(t.Context(), wrong, testLog(t), nil); err == nil || !strings.Contains(err.Error(), "old_key_files") {
		t.Errorf("another key: %v", err)
	}
	missing := cfg
	missing.KeyFile = ""
	if _, err := Open(t.Context(), missing, testLog(t), nil); err == nil || !strings.Contains(err.Error(), "key") {
		t.Errorf("no key: %v", err)
	}
	absent := cfg
	absent.KeyFile += ".gone"
	if _, err := Open(t.Context(), absent, testLog(t), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no key file: %v", err)
	}

	// A new key takes over generation by generation.
	wrong.OldKeyFiles = []string{cfg.KeyFile}
	s = openTest(t, wrong, quick())
	check(s)
	envs[mustPut(t, s, 500, "secret@example.org").ID] = 500
	waitFor(t, "the old generation's end", func() bool {
		s.queue.mu.Lock()
		defer s.queue.mu.Unlock()
		old := false
		s.idx.each(func(_ uint32, row *msgRow) bool { old = old || row.loc.gen == 1; return true })
		return !old
	})
	check(s)
	closeTest(t, s)
	wrong.OldKeyFiles = nil
	s = openTest(t, wrong, slow())
	check(s)
	closeTest(t, s)
}

func TestASealedFileThatWasTamperedWithIsDamaged(t *testing.T) {
	key := make([]byte, keySize)
	ring := &keyring{id: keyID(key), key: key, all: map[string][]byte{keyID(key): key}}
	plain := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	var sealed bytes.Buffer
	w, err := newSealer(&sealed, ring)
	if err != nil {
		t.Fatal(err)
	}
	for piece := range slices.Chunk(plain, 1000) {
		if _, err := w.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	read := func(b []byte) ([]byte, error) {
		r, err := newOpener(bytes.NewReader(b), ring)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	}
	if got, err := read(sealed.Bytes()); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("%d octets: %v", len(got), err)
	}
	frame := frameSize + 16
	head := sealed.Len() - len(plain) - 16*((len(plain)+frameSize-1)/frameSize)
	for name, b := range map[string][]byte{
		"flipped":          append(append(bytes.Clone(sealed.Bytes()[:1000]), sealed.Bytes()[1000]^1), sealed.Bytes()[1001:]...),
		"cut at a frame":   sealed.Bytes()[:head+frame],
		"cut in a frame":   sealed.Bytes()[:head+frame+50],
		"frames swapped":   slices.Concat(sealed.Bytes()[:head], sealed.Bytes()[head+frame:head+2*frame], sealed.Bytes()[head:head+frame], sealed.Bytes()[head+2*frame:]),
		"a frame left out": slices.Concat(sealed.Bytes()[:head], sealed.Bytes()[head+frame:]),
		"cut in the head":  sealed.Bytes()[:20],
		"goes on":          append(bytes.Clone(sealed.Bytes()), 0),
	} {
		if _, err := read(b); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
		}
	}
}

func TestBackupAndRestore(t *testing.T) {
	cfg := testConfig(t)
	s := openTest(t, cfg, slow())
	var envs []*mta.Envelope
	sizes := []int{0, 1000, 200 << 10}
	for i := range 30 {
		envs = append(envs, mustPut(t, s, sizes[i%3], "ann@example.org", "bob@example.net"))
	}
	l := mustClaim(t, s, mta.ClaimRequest{ID: envs[1].ID, Dest: "example.org"})
	if err := s.Settle(t.Context(), settlement(l, mta.Delivered, 250))[0]; err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(t.Context(), Hold, time.Time{}, Key{ID: envs[2].ID}); err != nil {
		t.Fatal(err)
	}
	judged := testEnvelope("ann@example.org", "bob@example.net")
	judged.Verdict = &mta.Verdict{Action: mta.Quarantine, Findings: []mta.Finding{{Name: "clamd:EICAR", Text: "a virus", Action: mta.Quarantine}}}
	if err := s.Put(t.Context(), judged, bytes.NewReader(contentOf(judged.ID, sizes[0]))); err != nil {
		t.Fatal(err)
	}
	envs = append(envs, judged)
	var backup bytes.Buffer
	calls := 0
	tr, err := s.Backup(t.Context(), &backup, func(done, total int) { calls++ })
	if err != nil || tr.Messages != 31 || len(tr.Skipped) != 0 || calls == 0 {
		t.Fatalf("%+v %v", tr, err)
	}
	closeTest(t, s)

	cfg2 := testConfig(t)
	s = openTest(t, cfg2, slow())
	for want := range 2 {
		tr, err = s.Restore(t.Context(), bytes.NewReader(backup.Bytes()), nil)
		if err != nil || tr.Messages != 31*(1-want) || tr.Present != 31*want {
			t.Fatalf("%+v %v", tr, err)
		}
	}
	crash(s)
	s = openTest(t, cfg2, slow())
	defer closeTest(t, s)
	for i, env := range envs {
		wantBody(t, s, env.ID, sizes[i%3])
		items, err := s.Get(t.Context(), env.ID)
		if err != nil {
			t.Fatal(err)
		}
		if want := map[bool]int{true: 1, false: 2}[i == 1]; len(items) != want || items[0].Held != (i == 2 || i == 30) {
			t.Errorf("message %d: %d deliveries, held %v", i, len(items), items[0].Held)
		}
		if i == 30 && items[0].Reason != (mta.Reply{Code: 550, Enhanced: "5.7.1", Text: "a virus"}) {
			t.Errorf("reason %+v", items[0].Reason)
		}
	}
	for name, b := range map[string][]byte{
		"cut":       backup.Bytes()[:backup.Len()/2],
		"no end":    backup.Bytes()[:backup.Len()-3*1024],
		"not one":   []byte("hello"),
		"empty":     nil,
		"a flipped": bytes.Replace(backup.Bytes(), []byte("backup.json"), []byte("backup.jsom"), 1),
	} {
		if _, err := s.Restore(t.Context(), bytes.NewReader(b), nil); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}

func TestVerifyReadsEverything(t *testing.T) {
	s := openTest(t, testConfig(t), slow())
	defer closeTest(t, s)
	for _, n := range []int{10, 1000, 300 << 10} {
		mustPut(t, s, n, "ann@example.org")
	}
	v, err := s.Verify(t.Context(), nil)
	if err != nil || v.Messages != 3 || len(v.Damages) != 0 || v.Bytes < 301<<10 {
		t.Errorf("%+v %v", v, err)
	}
}

func TestStateTablesThatAreDamagedBeginAnew(t *testing.T) {
	cfg := testConfig(t)
	st, err := OpenState(t.Context(), cfg, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Put(t.Context(), "a", "k", []byte("x"), 0, nil); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, stateDir, "MANIFEST"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if st, err = OpenState(t.Context(), cfg, testLog(t)); err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, _, err := st.Get(t.Context(), "a", "k"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	if aside, err := filepath.Glob(filepath.Join(cfg.Dir, "state.damaged-*")); err != nil || len(aside) != 1 {
		t.Errorf("%v %v", aside, err)
	}
}

func TestCloseWaitsForAStepThatBegan(t *testing.T) {
	tune := slow()
	began, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	armed := false
	tune.sync = func(f *os.File) error {
		if armed {
			once.Do(func() { close(began); <-goOn })
		}
		return defaultTuning().sync(f)
	}
	cfg := testConfig(t)
	s := openTest(t, cfg, tune)
	armed = true
	env := testEnvelope("ann@example.org")
	put := make(chan error)
	go func() { put <- s.Put(context.WithoutCancel(t.Context()), env, bytes.NewReader(contentOf(env.ID, 10))) }()
	<-began
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	select {
	case <-closed:
		t.Error("closed in the middle of a commit")
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if err := <-put; err != nil {
		t.Errorf("put: %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("close: %v", err)
	}
	s = openTest(t, cfg, slow())
	defer closeTest(t, s)
	wantBody(t, s, env.ID, 10)
}

func TestStateTablesAreEncryptedAtRest(t *testing.T) {
	cfg := testConfig(t)
	st, err := OpenState(t.Context(), cfg, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	put := func() {
		t.Helper()
		if _, err := st.Put(t.Context(), "recipients", "secret-key", []byte("secret-value"), 0, nil); err != nil {
			t.Fatal(err)
		}
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
	}
	put()
	cfg.KeyFile = writeKey(t)
	for range 2 { // what was there in clear goes
		if st, err = OpenState(t.Context(), cfg, testLog(t)); err != nil {
			t.Fatal(err)
		}
		put()
	}
	err = filepath.WalkDir(cfg.Dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("secret")) {
			t.Errorf("%s is in clear", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if st, err = OpenState(t.Context(), cfg, testLog(t)); err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if v, _, err := st.Get(t.Context(), "recipients", "secret-key"); err != nil || string(v) != "secret-value" {
		t.Errorf("%q %v", v, err)
	}
}
