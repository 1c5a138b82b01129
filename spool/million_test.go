package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/mta"
)

// many is how many messages go in and out: UNDERSTUDY_MESSAGES, or few.
func many() int {
	if n, err := strconv.Atoi(os.Getenv("UNDERSTUDY_MESSAGES")); err == nil && n > 0 {
		return n
	}
	return 20000
}

func manyConfig(dir string) Config {
	cfg := DefaultConfig()
	cfg.Dir = dir
	cfg.Reserve, cfg.ReservePercent, cfg.Ballast = 64*mta.MiB, 0, 0
	return cfg
}

// anonymous is the process's anonymous memory in MiB, now and at its peak since the last call of sample.
type anonymous struct{ peak atomic.Int64 }

func (a *anonymous) now() int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "RssAnon:")
	n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	a.peak.Store(max(a.peak.Load(), n>>10))
	return n >> 10
}

func (a *anonymous) watch(ctx context.Context) {
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			a.now()
		}
	}
}

// likeTheServer trades some of the processor's time for memory.
func likeTheServer() { debug.SetGCPercent(50) }

// childFill puts many messages and is killed.
func childFill(dir string) error {
	likeTheServer()
	ctx := context.Background()
	s, err := open(ctx, manyConfig(dir), newStderrLog(), newMetrics(nil), defaultTuning())
	if err != nil {
		return err
	}
	var mem anonymous
	go mem.watch(ctx)
	content := bytes.Repeat([]byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n"), 64)
	n := many()
	var left atomic.Int64
	left.Store(int64(n))
	var failed atomic.Int64
	var marks [2]time.Time
	begin := time.Now()
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for {
				i := left.Add(-1)
				if i < 0 {
					return
				}
				switch int(i) {
				case n - n/10:
					marks[0] = time.Now()
				case n / 10:
					marks[1] = time.Now()
				}
				env := testEnvelope("ann@example.org")
				if err := s.Put(ctx, env, bytes.NewReader(content)); err != nil {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 {
		return fmt.Errorf("%d puts failed", failed.Load())
	}
	tenth := float64(n) / 10
	fmt.Printf("put %d: %.0f/s; first tenth %.0f/s, last tenth %.0f/s; %d MiB anonymous, at most %d\n", n, float64(n)/time.Since(begin).Seconds(),
		tenth/marks[0].Sub(begin).Seconds(), tenth/time.Since(marks[1]).Seconds(), mem.now(), mem.peak.Load())
	return unix.Kill(os.Getpid(), unix.SIGKILL)
}

// childDrain opens what was left by the kill, and delivers it all.
func childDrain(dir string) error {
	likeTheServer()
	ctx := context.Background()
	var mem anonymous
	go mem.watch(ctx)
	start := time.Now()
	s, err := open(ctx, manyConfig(dir), newStderrLog(), newMetrics(nil), defaultTuning())
	if err != nil {
		return err
	}
	took := time.Since(start)
	u, err := s.Usage(ctx)
	if err != nil {
		return err
	}
	if u.Messages != int64(many()) {
		return fmt.Errorf("%d messages, want %d", u.Messages, many())
	}
	fmt.Printf("ready after %v; %d MiB anonymous, at most %d; %d MiB on disk in %d generations\n", took.Round(time.Millisecond), mem.now(), mem.peak.Load(),
		u.DiskUsed>>20, s.generations())
	mem.peak.Store(0)
	start = time.Now()
	if err := drainAll(ctx, s, 50); err != nil {
		return err
	}
	took = time.Since(start)
	fmt.Printf("claim, read, settle: %.0f/s; at most %d MiB anonymous\n", float64(many())/took.Seconds(), mem.peak.Load())
	for limit := time.Now().Add(30 * time.Second); s.generations() > 1; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(limit) {
			return fmt.Errorf("%d generations are left", s.generations())
		}
	}
	fmt.Printf("left: %d generation, %d MiB on disk\n", s.generations(), diskUsed(dir)>>20)
	return s.Close()
}

func drainAll(ctx context.Context, s *Store, workers int) error {
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for errs[w] == nil {
				leases, err := s.Claim(ctx, mta.ClaimRequest{Dest: "example.org", Max: 20, Lease: time.Hour})
				if err != nil || len(leases) == 0 {
					errs[w] = err
					return
				}
				var batch []mta.Settlement
				for _, l := range leases {
					if err := childRead(s, l.ID); err != nil {
						errs[w] = err
						return
					}
					batch = append(batch, settlement(l, mta.Delivered, 250))
				}
				errs[w] = errors.Join(s.Settle(ctx, batch...)...)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func TestManyMessagesInAndOut(t *testing.T) {
	if testing.Short() {
		t.Setenv("UNDERSTUDY_MESSAGES", "3000")
	}
	dir := t.TempDir()
	if base := os.Getenv("SPOOL_BENCH_DIR"); base != "" {
		var err error
		if dir, err = os.MkdirTemp(base, "spool-many-"); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
	}
	said := 0
	say := func(line string) { said++; t.Log(line) }
	_, wait := startChild(t, "fill", dir, nil, say)
	if err := wait(); err == nil || !strings.Contains(err.Error(), "killed") || said != 1 {
		t.Fatalf("the child that fills ended with %v", err)
	}
	_, wait = startChild(t, "drain", dir, nil, say)
	if err := wait(); err != nil || said != 4 {
		t.Fatalf("the child that drains ended with %v", err)
	}
}
