package spool

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/mta"
)

// pretend has a spool believe for long that its disk is so.
func (s *space) pretend(d disk) { s.seen.Store(&seenDisk{d, time.Now().Add(time.Hour)}) }

func TestNewMailLeavesTheReserveAlone(t *testing.T) {
	const total = 1000 << 20
	plenty := int64(1 << 30)
	for _, c := range []struct {
		name    string
		space   *space
		disk    disk
		size    int64
		refused bool
	}{
		{"all is free", &space{reserve: 10 << 20, percent: 2}, disk{free: total, total: total, inodes: plenty}, 0, false},
		{"just the reserve", &space{reserve: 50 << 20}, disk{free: 50 << 20, total: total, inodes: plenty}, 0, false},
		{"an octet less", &space{reserve: 50 << 20}, disk{free: 50<<20 - 1, total: total, inodes: plenty}, 0, true},
		{"an octet more than fits", &space{reserve: 50 << 20}, disk{free: 51 << 20, total: total, inodes: plenty}, 1<<20 + 1, true},
		{"just fits", &space{reserve: 50 << 20}, disk{free: 51 << 20, total: total, inodes: plenty}, 1 << 20, false},
		{"just the percents", &space{reserve: 10 << 20, percent: 20}, disk{free: 200 << 20, total: total, inodes: plenty}, 0, false},
		{"an octet less than the percents", &space{reserve: 10 << 20, percent: 20}, disk{free: 200<<20 - 1, total: total, inodes: plenty}, 0, true},
		{"the reserve is more than the percents", &space{reserve: 300 << 20, percent: 20}, disk{free: 250 << 20, total: total, inodes: plenty}, 0, true},
		{"the ballast was given away", &space{reserve: 50 << 20, ballast: 20 << 20, gone: true}, disk{free: 69 << 20, total: total, inodes: plenty}, 0, true},
		{"the ballast is there", &space{reserve: 50 << 20, ballast: 20 << 20}, disk{free: 69 << 20, total: total, inodes: plenty}, 0, false},
		{"just the inodes", &space{reserve: 10 << 20}, disk{free: total, total: total, inodes: minInodes}, 0, false},
		{"an inode less", &space{reserve: 10 << 20}, disk{free: total, total: total, inodes: minInodes - 1}, 0, true},
	} {
		c.space.pretend(c.disk)
		err := c.space.room(c.size)
		if r, ok := errors.AsType[*mta.Reply](err); ok != c.refused || err != nil && (!ok || r.Code != 452) {
			t.Errorf("%s: %v, want refused %v", c.name, err, c.refused)
		}
	}
}

func TestADiskThatIsShortRefusesMailAndDelivers(t *testing.T) {
	cfg := testConfig(t)
	cfg.ReservePercent = 50
	for name, short := range map[string]disk{
		"percents": {free: 499 << 20, total: 1000 << 20, inodes: 1 << 30},
		"inodes":   {free: 1 << 40, total: 1 << 40, inodes: minInodes - 1},
	} {
		s := openTest(t, cfg, slow())
		well := disk{free: 1 << 40, total: 1 << 40, inodes: 1 << 30}
		s.space.pretend(well)
		large, small := mustPut(t, s, 300<<10, "ann@example.org"), mustPut(t, s, 3000, "ann@example.org")
		s.space.pretend(short)
		for _, err := range []error{
			s.Put(t.Context(), testEnvelope("ann@example.org"), strings.NewReader("x")),
			s.Put(t.Context(), testEnvelope("ann@example.org"), strings.NewReader(strings.Repeat("x", 2*inlineMax))),
			s.Room(t.Context(), "example.org", 1),
		} {
			if r, ok := errors.AsType[*mta.Reply](err); !ok || r.Code != 452 {
				t.Errorf("%s: %v, want 452", name, err)
			}
		}
		if s.Ready(t.Context()) == nil {
			t.Errorf("%s: ready", name)
		}
		wantBody(t, s, large.ID, 300<<10)
		wantBody(t, s, small.ID, 3000)
		deliver(t, s, "example.org", func(mta.ID) bool { return false })
		wantMessages(t, s, 0)
		if left := glob(t, cfg.Dir, bodiesDir+"/*"); len(left) > 0 {
			t.Errorf("%s: left %v", name, left)
		}
		s.space.pretend(well)
		deliver(t, s, mustPut(t, s, 10, "ann@example.org").Rcpts[0].Dest, func(mta.ID) bool { return false })
		closeTest(t, s)
	}
}

// A disk that does not answer is no place to promise from: who waits is told after a minute, and nobody after that waits.
func TestACommitThatTakesTooLongEndsItsGeneration(t *testing.T) {
	for _, c := range []struct {
		name    string
		room    int // of the queue
		unknown bool
	}{
		{"it is being written", 1, true},
		{"others are before it", 0, false}, // so nothing of it can be there
	} {
		synctest.Test(t, func(t *testing.T) {
			d := &database{batch: 1 << 20, limit: 1 << 20, queue: make(chan *write, c.room), stats: newMetrics(nil), patience: defaultTuning().patience} // nobody commits
			begin := time.Now()
			err := d.write([]entry{versionEntry()})
			if !errors.Is(err, errPoisoned) || errors.Is(err, ErrUnknown) != c.unknown || time.Since(begin) != time.Minute {
				t.Errorf("%s: %v after %s, want unknown %v", c.name, err, time.Since(begin), c.unknown)
			}
			begin = time.Now()
			if err := d.write([]entry{versionEntry()}); !errors.Is(err, errPoisoned) || errors.Is(err, ErrUnknown) || time.Since(begin) > 0 {
				t.Errorf("%s: the next: %v after %s", c.name, err, time.Since(begin))
			}
			if err := d.commit(nil); !errors.Is(err, errPoisoned) {
				t.Errorf("%s: a commit that comes late: %v", c.name, err)
			}
		})
	}
}

func TestAQuietGenerationIsSealedByAge(t *testing.T) {
	cfg := testConfig(t)
	tune := slow()
	s := openTest(t, cfg, tune)
	env := mustPut(t, s, 3000, "ann@example.org")
	first := s.active
	s.renewActive()
	if s.active != first {
		t.Error("sealed before its time")
	}
	closeTest(t, s)

	tune = quick()
	tune.sealAge, tune.evacuateEvery, tune.evacuateIdle = time.Millisecond, time.Hour, time.Hour // what is moved is new again
	s = openTest(t, cfg, tune)
	second := s.active.num
	other := mustPut(t, s, 3000, "ann@example.org")
	waitFor(t, "the close of the generation", func() bool {
		return isThere(filepath.Join(cfg.Dir, generationName(second), cleanFile)) && !hasLogs(filepath.Join(cfg.Dir, generationName(second)))
	})
	third := func() uint32 { s.mu.Lock(); defer s.mu.Unlock(); return s.active.num }
	empty := third()
	for range 3 {
		s.renewActive()
	}
	if empty <= second || third() != empty {
		t.Errorf("generation %d took over from %d, and %d from that, which had nothing", empty, second, third())
	}
	for range 2 {
		wantBody(t, s, env.ID, 3000)
		wantBody(t, s, other.ID, 3000)
		crash(s)
		s = openTest(t, cfg, slow())
	}
	deliver(t, s, "example.org", func(mta.ID) bool { return false })
	closeTest(t, s)
}
