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
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"understudy/internal/mta"
)

// killPoint is a step in whose middle a child kills itself.
type killPoint struct {
	name string
	do   func(v *victim) error
	// met tells by what the kill left whether it came there; nil where the child can't die elsewhere.
	met func(t testing.TB, dir string) bool
}

var killPoints = []killPoint{
	{"content is on its way", func(v *victim) error {
		env := testEnvelope("ann@example.org")
		return v.s.Put(context.Background(), env, io.MultiReader(bytes.NewReader(contentOf(env.ID, 700<<10)), deadly{}))
	}, func(t testing.TB, dir string) bool { return len(glob(t, dir, bodiesDir+"/*")) == 2 }},

	{"content is stored, its record not synced", func(v *victim) error {
		v.dieAtSync("g00000001/journal")
		_, err := childStore(v.s, 300<<10, "ann@example.org")
		return err
	}, nil},

	{"a message has ended, its content is there", func(v *victim) error {
		v.dieAtSync("g00000001/journal")
		return v.settle(v.large, mta.Delivered)
	}, func(t testing.TB, dir string) bool { return len(glob(t, dir, bodiesDir+"/*")) == 1 }},

	{"a roll has no journal yet", func(v *victim) error {
		v.dieAtSync("g00000002/journal")
		_, err := v.s.roll(v.s.active)
		return err
	}, func(t testing.TB, dir string) bool { return isUnfinished(filepath.Join(dir, generationName(2))) }},

	{"a roll has a database without a commit", func(v *victim) error {
		v.dieAtSync("g00000002/00001.mem")
		_, err := v.s.roll(v.s.active)
		return err
	}, nil},

	{"the next generation is made, and not active", func(v *victim) error {
		v.s.makeSpare()
		return die()
	}, func(t testing.TB, dir string) bool { return len(glob(t, dir, "g00000002/*.vlog")) == 1 }},

	{"a close has left its mark, and no table", func(v *victim) error {
		d := v.s.active.db
		real := d.done
		d.done = make(chan struct{}) // the close waits for it
		go func() { <-real; die() }()
		_, err := v.s.roll(v.s.active)
		return err
	}, func(t testing.TB, dir string) bool {
		return len(glob(t, dir, "g00000001/"+cleanFile)) == 1 && len(glob(t, dir, "g00000001/*.sst")) == 0
	}},

	{"a close writes its table", func(v *victim) error {
		go v.dieOnce(func() bool { return len(v.glob("g00000001/*.sst")) > 0 })
		_, err := v.s.roll(v.s.active)
		return err
	}, func(t testing.TB, dir string) bool {
		return len(glob(t, dir, "g00000001/*.sst")) == 1 && len(glob(t, dir, "g00000001/*.mem")) == 1
	}},

	{"a close has removed the log, and not cut the journal", func(v *victim) error {
		go v.dieOnce(func() bool { return len(v.glob("g00000001/*.mem")) == 0 })
		_, err := v.s.roll(v.s.active)
		return err
	}, func(t testing.TB, dir string) bool {
		fi, err := os.Stat(filepath.Join(dir, generationName(1), journalFile))
		return err == nil && fi.Size() == int64(minGeneration) && len(glob(t, dir, "g00000001/*.mem")) == 0
	}},

	{"a closed generation is written to again", func(v *victim) error {
		if err := v.close(); err != nil {
			return err
		}
		if err := v.settle(v.small, mta.Deferred); err != nil {
			return err
		}
		v.dieAtSync("g00000001/*.mem")
		return v.settle(v.small, mta.Deferred)
	}, nil},

	{"a removal has renamed the folder", func(v *victim) error {
		v.s.stats.removed = deadlyAt(v.s.stats.removed, 1)
		if _, err := v.s.roll(v.s.active); err != nil {
			return err
		}
		return v.deleteAll()
	}, func(t testing.TB, dir string) bool {
		return len(glob(t, dir, generationName(1)+goneSuffix)) == 1
	}},

	{"an evacuation has not synced a copy", func(v *victim) error {
		first := v.s.active
		if _, err := v.s.roll(first); err != nil {
			return err
		}
		v.dieAtSync("g00000002/journal")
		v.s.evacuate(context.Background(), first)
		return nil
	}, nil},

	{"an evacuation has a copy beside the original", func(v *victim) error { return v.evacuate(1) }, nil},
	{"an evacuation has moved a part", func(v *victim) error { return v.evacuate(3) }, nil},

	{"a recovery has not synced what it read", func(v *victim) error {
		crash(v.s)
		v.dieAtSync("g00000001/journal")
		return v.open(newStderrLog())
	}, func(t testing.TB, dir string) bool { return len(glob(t, dir, "g00000001/"+redoneFile)) == 0 }},

	{"a recovery has made the database anew, and not closed it", func(v *victim) error {
		g := v.s.active
		end := g.db.log.end.Load()
		crash(v.s)
		f, err := os.OpenFile(filepath.Join(g.dir, journalFile), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if _, err := f.WriteAt([]byte("a commit that was begun"), end); err != nil { // the recovery will say so
			return err
		}
		return v.open(slog.New(lineHandler{newStderrLog().Handler(), func(r slog.Record) {
			if r.Message == "log ends in a commit that was not finished" {
				die()
			}
		}}))
	}, func(t testing.TB, dir string) bool {
		return len(glob(t, dir, "g00000001/"+redoneFile)) == 1 && len(glob(t, dir, "g00000001/*.mem")) == 1 && len(glob(t, dir, "g00000001/"+cleanFile)) == 0
	}},

	{"a recovery writes the table", func(v *victim) error {
		crash(v.s)
		go v.dieOnce(func() bool { return len(v.glob("g00000001/*.sst")) > 0 })
		return v.open(newStderrLog())
	}, func(t testing.TB, dir string) bool {
		return len(glob(t, dir, "g00000001/*.sst")) == 1 && len(glob(t, dir, "g00000001/*.mem")) == 1
	}},
}

// die is a kill. It does not return.
func die() error {
	if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
		return err
	}
	select {}
}

// deadly is content that ends with its reader.
type deadly struct{}

func (deadly) Read([]byte) (int, error) { return 0, die() }

// deadlyCounter dies when it is to count for the n-th time.
type deadlyCounter struct {
	prometheus.Counter
	left *atomic.Int64
}

func deadlyAt(c prometheus.Counter, n int64) deadlyCounter {
	left := new(atomic.Int64)
	left.Store(n)
	return deadlyCounter{c, left}
}

func (c deadlyCounter) Inc() {
	if c.left.Add(-1) == 0 {
		die()
	}
	c.Counter.Inc()
}

// victim is a spool with a little of everything in its first generation.
type victim struct {
	dir          string
	s            *Store
	small, large *mta.Envelope
	deadly       atomic.Pointer[string] // pattern of the file whose sync is the end
}

func (v *victim) open(log *slog.Logger) (err error) {
	tune := slow()
	tune.sync = func(f *os.File) error {
		if pattern := v.deadly.Load(); pattern != nil {
			name, _ := filepath.Rel(v.dir, f.Name())
			if met, _ := filepath.Match(*pattern, name); met {
				die()
			}
		}
		return datasync(f)
	}
	v.s, err = open(context.Background(), childConfig(v.dir), log, newMetrics(nil), tune)
	return err
}

func (v *victim) dieAtSync(name string) { v.deadly.Store(&name) }

// dieOnce waits for what no hook tells of, without pause: it passes soon.
func (v *victim) dieOnce(seen func() bool) {
	for !seen() {
	}
	die()
}

func (v *victim) glob(pattern string) []string {
	found, _ := filepath.Glob(filepath.Join(v.dir, pattern)) // the pattern is a good one
	return found
}

// fill puts messages and brings each of them further in another way.
func (v *victim) fill() (err error) {
	if v.large, err = childStore(v.s, 300<<10, "ann@example.org", "bob@example.org"); err != nil {
		return err
	}
	for _, o := range []mta.Outcome{mta.Deferred, mta.Delivered, mta.Returned, mta.Quarantined, mta.Deferred} {
		if v.small, err = childStore(v.s, 3000, "ann@example.org", "bob@example.org", "cat@example.net"); err != nil {
			return err
		}
		if err := v.settle(v.small, o); err != nil {
			return err
		}
	}
	_, err = childStore(v.s, 0, "ann@example.org")
	return err
}

// settle gives the deliveries of a message to example.org one outcome.
func (v *victim) settle(env *mta.Envelope, o mta.Outcome) error {
	leases, err := v.s.Claim(context.Background(), mta.ClaimRequest{ID: env.ID, Dest: "example.org", Max: 1, Lease: time.Hour, IgnoreDue: true})
	if err != nil || len(leases) != 1 {
		return fmt.Errorf("claimed %d: %w", len(leases), err)
	}
	st := settlement(leases[0], o, 450)
	if o == mta.Returned {
		report := testEnvelope("bob@example.net")
		st.Reports = []mta.Report{{Envelope: report, Content: contentOf(report.ID, reportSize)}}
	}
	return childSettled(v.s, leases, []mta.Settlement{st})
}

// deleteAll empties the spool.
func (v *victim) deleteAll() error {
	items, _, err := v.s.List(context.Background(), Query{})
	if err != nil {
		return err
	}
	for _, i := range items {
		sayEnding(i.ID, i.Dest)
		if _, err := v.s.Apply(context.Background(), Delete, time.Time{}, Key{i.ID, i.Dest}); err != nil {
			return err
		}
		sayEnded(i.ID, i.Dest)
	}
	return nil
}

// close has the first generation closed, and another one take its place.
func (v *victim) close() error {
	first := v.s.active
	if _, err := v.s.roll(first); err != nil {
		return err
	}
	_, err := first.closeIdle(v.s)
	return err
}

// evacuate moves messages, up to the n-th copy.
func (v *victim) evacuate(n int64) error {
	first := v.s.active
	if _, err := v.s.roll(first); err != nil {
		return err
	}
	v.s.stats.moved = deadlyAt(v.s.stats.moved, n)
	v.s.evacuate(context.Background(), first)
	return nil
}

// childKill comes to one point.
func childKill(dir string) error {
	_, name, _ := strings.Cut(os.Getenv(childEnv), "/")
	v := &victim{dir: dir}
	if err := v.open(newStderrLog()); err != nil {
		return err
	}
	if err := v.fill(); err != nil {
		return err
	}
	i := slices.IndexFunc(killPoints, func(p killPoint) bool { return p.name == name })
	if err := killPoints[i].do(v); err != nil {
		return err
	}
	<-time.After(20 * time.Second) // it may be the keeper's
	return errors.New("came to no end")
}

func TestAKillAtEachPointLosesNothing(t *testing.T) {
	for _, p := range killPoints {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			for range 50 {
				if killAt(t, p) || t.Failed() {
					return
				}
			}
			t.Error("no kill came there")
		})
	}
}

// killAt reports whether the kill came in the middle of the step.
func killAt(t *testing.T, p killPoint) bool {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "spool")
	l := newLedger()
	_, wait := startChild(t, "kill/"+p.name, dir, nil, l.hear)
	if err := wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the child ended with %v, want its own kill", err)
	}
	if len(l.stored) != 8 || len(l.tries) == 0 || len(l.ended) == 0 {
		t.Fatalf("%d stored, %d tried, %d ended: that shows nothing", len(l.stored), len(l.tries), len(l.ended))
	}
	met := p.met == nil || p.met(t, dir)
	closes := func(s *Store) { closeTest(t, s) }
	empties := func(s *Store) { // none of it may come back
		for id := range l.stored {
			if _, err := s.Apply(t.Context(), Delete, time.Time{}, Key{ID: id}); err != nil && !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
			l.end(id)
		}
		s.removeDrained()
		crash(s)
	}
	for i, end := range []func(*Store){crash, crash, closes, empties, crash} {
		s := openTest(t, childConfig(dir), slow())
		l.check(t, s)
		if i > 0 {
			wantNoStrays(t, s)
		}
		end(s)
	}
	return met
}
