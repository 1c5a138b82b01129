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

// childLoad puts and settles as fast as it can and says what it was promised: "P id" stored, "s id" is being ended,
// "D id" ended.
func childLoad(dir string) error {
	s, err := childOpen(dir, quick())
	if err != nil {
		return err
	}
	var mu sync.Mutex
	say := func(what string, id mta.ID) {
		mu.Lock()
		defer mu.Unlock()
		os.Stdout.WriteString(what + " " + id.String() + "\n")
	}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for {
				childPut(s, say)
			}
		})
	}
	for range 3 {
		wg.Go(func() {
			for {
				childSettle(s, say)
			}
		})
	}
	wg.Wait()
	return nil
}

func childPut(s *Store, say func(string, mta.ID)) {
	env := testEnvelope("ann@example.org", "bob@example.net")
	env.Rcpts = env.Rcpts[:1+rand.IntN(2)]
	size := []int{0, 100, 4000, 20000, 120 << 10, 130 << 10, 1 << 20}[rand.IntN(7)]
	if err := s.Put(context.Background(), env, bytes.NewReader(contentOf(env.ID, size))); err == nil {
		say("P", env.ID)
	}
}

func childSettle(s *Store, say func(string, mta.ID)) {
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
			say("s", l.ID)
		case 3:
			st = settlement(l, mta.Returned, 550)
			report := testEnvelope("bob@example.net")
			st.Reports = []mta.Report{{Envelope: report, Content: contentOf(report.ID, 200)}}
			say("s", l.ID)
		}
		batch = append(batch, st)
	}
	for i, err := range s.Settle(ctx, batch...) {
		if err != nil {
			continue
		}
		for _, r := range batch[i].Reports {
			say("P", r.Envelope.ID)
		}
		if _, err := s.Get(ctx, leases[i].ID); errors.Is(err, ErrNotFound) {
			say("D", leases[i].ID)
		}
	}
}

// ledger is what a child was promised, as its test heard it.
type ledger struct {
	mu                    sync.Mutex
	stored, ending, ended map[mta.ID]bool
	heard                 chan struct{}
}

func newLedger() *ledger {
	return &ledger{stored: map[mta.ID]bool{}, ending: map[mta.ID]bool{}, ended: map[mta.ID]bool{}, heard: make(chan struct{}, 1)}
}

func (l *ledger) hear(line string) {
	what, text, _ := strings.Cut(line, " ")
	id, err := mta.ParseID(text)
	if err != nil {
		return // cut off by the kill
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch what {
	case "P":
		l.stored[id] = true
	case "s":
		l.ending[id] = true
	case "D":
		l.ending[id], l.ended[id] = true, true
	}
	select {
	case l.heard <- struct{}{}:
	default:
	}
}

// check holds a spool to what was promised.
func (l *ledger) check(t testing.TB, s *Store) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	lost, back := 0, 0
	for id := range l.stored {
		_, err := s.Get(t.Context(), id)
		switch {
		case l.ended[id] && !errors.Is(err, ErrNotFound):
			back++
		case !l.ending[id] && err != nil:
			lost++
			t.Errorf("%s got its 250: %v", id, err)
		}
	}
	if lost > 0 || back > 0 {
		t.Errorf("of %d promised %d are lost, %d that were settled are back", len(l.stored), lost, back)
	}
	ids, err := s.allIDs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		b, err := readBody(t, s, id)
		if err != nil || !bytes.Equal(b, bytes.Repeat([]byte(id.String()+"\r\n"), len(b)/28)) || len(b) == 0 {
			t.Errorf("%s is half there: %d octets, %v", id, len(b), err)
		}
	}
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
			s = openTest(t, childConfig(dir), quick())
			l.check(t, s)
		}
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
		l.ending[id], l.ended[id] = true, true
	}
}

// childOnce, childGroup and the other children are filled in beside their tests.
func childOnce(dir string) error {
	s, err := childOpen(dir, slow())
	if err != nil {
		return err
	}
	for range 20 {
		env := testEnvelope("ann@example.org")
		if err := s.Put(context.Background(), env, bytes.NewReader(contentOf(env.ID, 4000))); err != nil {
			fmt.Printf("F %s\n", env.ID)
			continue
		}
		os.Stdout.WriteString("P " + env.ID.String() + "\n")
	}
	return nil
}
