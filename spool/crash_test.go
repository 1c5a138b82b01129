package spool

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/mta"
)

// childConfig is what a child and its test open a folder with.
func childConfig(dir string) Config {
	cfg := DefaultConfig()
	cfg.Dir = dir
	cfg.Reserve, cfg.ReservePercent, cfg.Ballast = 8*mta.MiB, 0, 0
	cfg.GenerationSize = minGeneration
	return cfg
}

func childOpen(dir string, tune tuning) (*Store, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return open(context.Background(), childConfig(dir), log, newMetrics(nil), tune)
}

// startChild runs this test binary as a child; say is called with each line that it writes.
func startChild(t testing.TB, name, dir string, wrap []string, say func(line string)) (*exec.Cmd, func() error) {
	t.Helper()
	args := append(wrap, os.Args[0], dir)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			say(sc.Text())
		}
	}()
	return cmd, func() error {
		<-done
		err := cmd.Wait()
		if t.Failed() || err != nil {
			t.Logf("child said:\n%s", clip(stderr.String(), 8000))
		}
		return err
	}
}

// What a child says of what it was promised, a line each: stored, the end of a delivery begun, the end done, a failed
// attempt written down.
func sayStored(env *mta.Envelope, size int) {
	var rcpts []string
	for _, r := range env.Rcpts {
		rcpts = append(rcpts, r.Addr.String())
	}
	sayLine("P", env.ID, len(contentOf(env.ID, size)), strings.Join(rcpts, ","))
}

func sayEnding(id mta.ID, dest string)       { sayLine("s", id, dest) }
func sayEnded(id mta.ID, dest string)        { sayLine("D", id, dest) }
func sayTried(id mta.ID, dest string, n int) { sayLine("A", id, dest, n) }

// sayLine is one write: a kill leaves all of it or nothing.
func sayLine(a ...any) { os.Stdout.WriteString(fmt.Sprintln(a...)) }

// childStore puts a message and says so.
func childStore(s *Store, size int, rcpts ...string) (*mta.Envelope, error) {
	env := testEnvelope(rcpts...)
	err := s.Put(context.Background(), env, bytes.NewReader(contentOf(env.ID, size)))
	if err == nil {
		sayStored(env, size)
	}
	return env, err
}

// childLoad puts and settles as fast as it can.
func childLoad(dir string) error {
	s, err := childOpen(dir, quick())
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for {
				childPut(s)
			}
		})
	}
	for range 3 {
		wg.Go(func() {
			for {
				childSettle(s)
			}
		})
	}
	wg.Wait()
	return nil
}

func childPut(s *Store) {
	rcpts := []string{"ann@example.org", "bob@example.net"}[:1+rand.IntN(2)]
	size := []int{0, 100, 4000, 20000, 120 << 10, 130 << 10, 1 << 20}[rand.IntN(7)]
	childStore(s, size, rcpts...)
}

func childSettle(s *Store) {
	ctx := context.Background()
	dest := []string{"example.org", "example.net"}[rand.IntN(2)]
	leases, err := s.Claim(ctx, mta.ClaimRequest{Dest: dest, Max: 4, Lease: time.Hour})
	if err != nil || len(leases) == 0 {
		time.Sleep(time.Millisecond)
		return
	}
	var batch []mta.Settlement
	for _, l := range leases {
		st := settlement(l, mta.Deferred, 451)
		switch rand.IntN(6) {
		case 0, 1, 2:
			st = settlement(l, mta.Delivered, 250)
		case 3:
			st = settlement(l, mta.Returned, 550)
			report := testEnvelope("bob@example.net")
			st.Reports = []mta.Report{{Envelope: report, Content: contentOf(report.ID, reportSize)}}
		}
		batch = append(batch, st)
	}
	childSettled(s, leases, batch)
}

// childSettled settles and says what came of it.
func childSettled(s *Store, leases []mta.Lease, batch []mta.Settlement) error {
	for _, st := range batch {
		if st.Results[0].Outcome.Ended() {
			sayEnding(st.Ref.ID, st.Ref.Dest)
		}
	}
	errs := s.Settle(context.Background(), batch...)
	for i, err := range errs {
		if err != nil {
			continue
		}
		for _, r := range batch[i].Reports {
			sayStored(r.Envelope, reportSize)
		}
		if ref := batch[i].Ref; batch[i].Results[0].Outcome.Ended() {
			sayEnded(ref.ID, ref.Dest)
		} else {
			sayTried(ref.ID, ref.Dest, leases[i].Attempts+1)
		}
	}
	return errors.Join(errs...)
}

// ledger is what a child was promised, as its test heard it.
type ledger struct {
	mu            sync.Mutex
	stored        map[mta.ID]promised
	ending, ended map[Key]bool
	tries         map[Key]int
	heard         chan struct{}
}

// promised is a message that got its 250.
type promised struct {
	size  int
	rcpts []string
}

func newLedger() *ledger {
	return &ledger{
		stored: make(map[mta.ID]promised), ending: make(map[Key]bool), ended: make(map[Key]bool), tries: make(map[Key]int),
		heard: make(chan struct{}, 1),
	}
}

func (l *ledger) hear(line string) {
	words := append(strings.Fields(line), "", "", "")
	id, err := mta.ParseID(words[1])
	if err != nil {
		return // not of a message
	}
	key := Key{ID: id, Dest: words[2]}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch words[0] {
	case "P":
		size, _ := strconv.Atoi(words[2])
		l.stored[id] = promised{size, strings.Split(words[3], ",")}
	case "s":
		l.ending[key] = true
	case "D":
		l.ending[key], l.ended[key] = true, true
	case "A":
		n, _ := strconv.Atoi(words[3])
		l.tries[key] = max(l.tries[key], n)
	}
	poke(l.heard)
}

// end notes that a message was taken away by the test.
func (l *ledger) end(id mta.ID) {
	for dest := range l.stored[id].byDest() {
		l.ending[Key{id, dest}], l.ended[Key{id, dest}] = true, true
	}
}

func (p promised) byDest() map[string][]string {
	dests := make(map[string][]string)
	for _, r := range p.rcpts {
		_, dest, _ := strings.Cut(r, "@")
		dests[dest] = append(dests[dest], r)
	}
	return dests
}

// check holds a spool to what was promised, just after it was opened.
func (l *ledger) check(t testing.TB, s *Store) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, p := range l.stored {
		l.checkMessage(t, s, id, p)
	}
	ids, err := s.allIDs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		b, err := readBody(t, s, id)
		p, ok := l.stored[id]
		if err != nil || !bytes.Equal(b, contentOf(id, max(0, len(b)-1))) || ok && len(b) != p.size {
			t.Errorf("%s is half there: %d of %d octets, %v", id, len(b), p.size, err)
		}
	}
	if d := s.Damages(); len(d) > 0 {
		t.Errorf("damages %v", d)
	}
	if t.Failed() {
		t.Logf("%d messages promised, %d deliveries ended", len(l.stored), len(l.ended))
	}
}

// checkMessage needs l.mu.
func (l *ledger) checkMessage(t testing.TB, s *Store, id mta.ID, p promised) {
	t.Helper()
	items, err := s.Get(t.Context(), id)
	if err != nil && !errors.Is(err, ErrNotFound) {
		t.Errorf("%s got its 250: %v", id, err)
		return
	}
	found := make(map[string]Item)
	for _, i := range items {
		found[i.Dest] = i
	}
	for dest, rcpts := range p.byDest() {
		key := Key{id, dest}
		i, ok := found[dest]
		switch {
		case ok && l.ended[key]:
			t.Errorf("%s was settled for %s and is back", id, dest)
		case !ok && !l.ending[key]:
			t.Errorf("%s got its 250, and is lost for %s", id, dest)
		case ok && (i.Size != int64(p.size) || i.Attempts < l.tries[key] || !slices.Equal(addresses(i.Rcpts), rcpts)):
			t.Errorf("%s is for %v, of %d octets, after %d attempts; want %v, %d, at least %d", id, addresses(i.Rcpts), i.Size, i.Attempts, rcpts, p.size, l.tries[key])
		}
	}
}

func addresses(rcpts []mta.RcptStatus) (list []string) {
	for _, r := range rcpts {
		list = append(list, r.Addr.String())
	}
	return list
}

// wantNoStrays finds content that no message names, and folders whose removal was begun. It takes two recoveries: for the
// first one the record of what ended in another generation is still there.
func wantNoStrays(t testing.TB, s *Store) {
	t.Helper()
	ids, err := s.allIDs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	named := make(map[string]bool)
	for _, id := range ids {
		at, _ := s.where(id)
		m, _, err := s.load(at)
		if err != nil {
			t.Errorf("%s: %v", id, err)
			continue
		}
		named[bodyName(id, m.file)] = true
	}
	for _, path := range glob(t, s.dir, bodiesDir+"/*") {
		if !named[filepath.Base(path)] {
			t.Errorf("%s is of no message", path)
		}
	}
	waitFor(t, "the end of removals", func() bool { return len(glob(t, s.dir, "*"+goneSuffix)) == 0 })
}

// rounds is how often a test tries its luck: few by default, more by UNDERSTUDY_ROUNDS.
func rounds(few int) int {
	if testing.Short() {
		few = (few + 1) / 2
	}
	if n, err := strconv.Atoi(os.Getenv("UNDERSTUDY_ROUNDS")); err == nil && n > 0 {
		return n
	}
	return few
}

func TestKillAtRandomLosesNothing(t *testing.T) {
	dir := t.TempDir()
	l := newLedger()
	for round := range rounds(6) {
		cmd, wait := startChild(t, "load", dir, nil, l.hear)
		select {
		case <-l.heard:
		case <-time.After(30 * time.Second):
			cmd.Process.Kill()
			wait()
			t.Fatal("the child does nothing")
		}
		<-time.After(time.Duration(rand.IntN(900)) * time.Millisecond)
		cmd.Process.Kill()
		wait()
		s := openTest(t, childConfig(dir), slow())
		l.check(t, s)
		if round%2 == 0 {
			crash(s) // what recovery did half is recovered too
		} else {
			closeTest(t, s)
		}
		s = openTest(t, childConfig(dir), slow())
		l.check(t, s)
		wantNoStrays(t, s)
		closeTest(t, s)
		if t.Failed() {
			break
		}
		drainSome(t, l, dir)
	}
	t.Logf("%d messages promised, %d settled", len(l.stored), len(l.ended))
}

// drainSome keeps the disk from filling up over the rounds.
func drainSome(t *testing.T, l *ledger, dir string) {
	s := openTest(t, childConfig(dir), quick())
	defer closeTest(t, s)
	ids, err := s.allIDs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids[:len(ids)*3/4] {
		if n, err := s.Apply(t.Context(), Delete, time.Time{}, Key{ID: id}); err != nil || n == 0 {
			t.Fatalf("delete: %d %v", n, err)
		}
		l.end(id)
	}
}

// childOnce, childGroup and the other children are filled in beside their tests.
func childOnce(dir string) error {
	s, err := childOpen(dir, slow())
	if err != nil {
		return err
	}
	for i := range 20 {
		size := 4000
		if i%4 == 3 {
			size = 200 << 10 // content in a file of its own
		}
		if env, err := childStore(s, size, "ann@example.org"); err != nil {
			sayLine("F", env.ID)
		}
	}
	return nil
}
