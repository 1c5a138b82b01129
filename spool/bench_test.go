//go:build linux

package spool_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/mta"
	"understudy/spool"
	"understudy/spool/spooltest"
)

// benchDir is on the disk that is to be measured: SPOOL_BENCH_DIR, or the default for temporary files.
func benchDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp(os.Getenv("SPOOL_BENCH_DIR"), "spool-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func benchStore(b *testing.B, dir string) *spool.Store {
	b.Helper()
	cfg := spool.DefaultConfig()
	cfg.Dir = dir
	s, err := spool.Open(b.Context(), cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

var committers = []int{1, 20, 100}

// message is 4 KiB of content.
var message = bytes.Repeat([]byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n"), 64)

// BenchmarkPut is durable messages a second into the spool, beside the two floors: what the disk gives to one who
// appends to one file with a sync shared by all who wait, and to one who makes a file a message, as Postfix does.
func BenchmarkPut(b *testing.B) {
	for _, n := range committers {
		b.Run(fmt.Sprintf("spool/committers=%d", n), func(b *testing.B) {
			s := benchStore(b, benchDir(b))
			proto := spooltest.Envelope(b, "ann@example.org")
			share(b, n, func() error {
				env := *proto
				env.ID = mta.NewID(time.Now())
				return s.Put(b.Context(), &env, bytes.NewReader(message))
			})
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		})
		b.Run(fmt.Sprintf("append/committers=%d", n), func(b *testing.B) {
			f := newAppendFloor(b, benchDir(b))
			share(b, n, f.put)
			f.close()
		})
		b.Run(fmt.Sprintf("file/committers=%d", n), func(b *testing.B) {
			f := fileFloor{dir: benchDir(b)}
			share(b, n, f.put)
		})
	}
}

// share has n goroutines do b.N puts together and reports their rate and latency.
func share(b *testing.B, n int, put func() error) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	took := make([][]time.Duration, n)
	var wg sync.WaitGroup
	b.SetBytes(int64(len(message)))
	b.ResetTimer()
	for i := range n {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				start := time.Now()
				if err := put(); err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(start))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(took...)
	slices.Sort(all)
	if len(all) == 0 {
		return
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
}

// appendFloor appends to one file; one goroutine writes and syncs what waits. The file grows, and each sync notes that,
// which the spool's journal is spared by having its room taken beforehand: so the spool may be faster.
type appendFloor struct {
	b     *testing.B
	f     *os.File
	queue chan chan error
	done  chan struct{}
}

func newAppendFloor(b *testing.B, dir string) *appendFloor {
	f, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	a := &appendFloor{b: b, f: f, queue: make(chan chan error, 1024), done: make(chan struct{})}
	go a.run()
	return a
}

func (a *appendFloor) put() error {
	c := make(chan error, 1)
	a.queue <- c
	return <-c
}

func (a *appendFloor) run() {
	defer close(a.done)
	for c := range a.queue {
		group := []chan error{c}
		for len(group) < 1000 && len(a.queue) > 0 {
			group = append(group, <-a.queue)
		}
		_, err := a.f.Write(bytes.Repeat(message, len(group)))
		if err == nil {
			err = unix.Fdatasync(int(a.f.Fd()))
		}
		for _, c := range group {
			c <- err
		}
	}
}

func (a *appendFloor) close() {
	close(a.queue)
	<-a.done
	if err := a.f.Close(); err != nil {
		a.b.Fatal(err)
	}
}

// fileFloor makes one file a message and syncs it and its folder.
type fileFloor struct {
	dir string
	n   atomic.Int64
}

func (f *fileFloor) put() error {
	file, err := os.Create(filepath.Join(f.dir, fmt.Sprint(f.n.Add(1))))
	if err != nil {
		return err
	}
	_, err = file.Write(message)
	if err == nil {
		err = file.Sync()
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// BenchmarkDrain is claim, read and settle with 50 at work, and what is left on disk after.
func BenchmarkDrain(b *testing.B) {
	dir := benchDir(b)
	s := benchStore(b, dir)
	fillSpool(b, s, b.N)
	before := usage(b, s)
	b.SetBytes(int64(len(message)))
	b.ResetTimer()
	drain(b, s, 50)
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	b.ReportMetric(float64(before.DiskUsed)/float64(mta.MiB), "MiB-before")
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit) && generations(b, dir) > 1; {
		time.Sleep(50 * time.Millisecond)
	}
	b.ReportMetric(float64(usage(b, s).DiskUsed)/float64(mta.MiB), "MiB-after")
	b.ReportMetric(float64(generations(b, dir)), "generations-after")
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

func fillSpool(b testing.TB, s *spool.Store, n int) {
	b.Helper()
	proto := spooltest.Envelope(b, "ann@example.org")
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				env := *proto
				env.ID = mta.NewID(time.Now())
				if err := s.Put(b.Context(), &env, bytes.NewReader(message)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// drain claims, reads and settles all mail and returns how many messages there were.
func drain(b testing.TB, s *spool.Store, workers int) int {
	b.Helper()
	var n atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				leases, err := s.Claim(b.Context(), mta.ClaimRequest{Dest: "example.org", Max: 10, Lease: time.Hour})
				if err != nil {
					b.Error(err)
				}
				if len(leases) == 0 {
					return
				}
				settlements := make([]mta.Settlement, len(leases))
				for i, l := range leases {
					r, err := s.Body(b.Context(), l.ID)
					if err != nil {
						b.Error(err)
						continue
					}
					if _, err := io.Copy(io.Discard, r); err != nil {
						b.Error(err)
					}
					r.Close()
					settlements[i] = mta.Settlement{Ref: l.LeaseRef, Results: []mta.RcptResult{{Outcome: mta.Delivered, Reply: mta.Reply{Code: 250}}}}
				}
				for _, err := range s.Settle(b.Context(), settlements...) {
					if err != nil {
						b.Error(err)
					}
				}
				n.Add(int64(len(leases)))
			}
		})
	}
	wg.Wait()
	return int(n.Load())
}

func usage(b testing.TB, s spool.Spool) spool.Usage {
	b.Helper()
	u, err := s.Usage(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return u
}

// generations counts the folders of generations.
func generations(b testing.TB, dir string) int {
	b.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for _, e := range list {
		if e.IsDir() && strings.HasPrefix(e.Name(), "g") {
			n++
		}
	}
	return n
}
