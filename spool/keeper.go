package spool

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"understudy/internal/mta"
)

// evacuateWrites are moved under one taking of locks; evacuateShare: a generation is moved when what lives in it is less
// than 1/4 of what it takes on disk.
const (
	evacuateShare  = 4
	evacuateWrites = 64
)

// keep is the keeper: it closes, moves out of and removes generations, until ctx is done. Each of its steps can be cut
// short by a crash.
func (s *Store) keep(ctx context.Context) {
	tick := time.NewTicker(s.tune.tick)
	defer tick.Stop()
	var evacuated time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.work:
		case <-tick.C:
			s.watchLimits()
		}
		s.renewActive()
		if time.Since(evacuated) > s.tune.evacuateEvery {
			evacuated = time.Now()
			s.evacuateAll(ctx)
		}
		s.evacuateLeft(ctx)
		s.closeSome()
		s.removeDrained()
	}
}

// wake asks the keeper to look now.
func (s *Store) wake() { poke(s.work) }

// poke wakes who waits for c, now or when it waits next.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// watchLimits looks at what others use up too.
func (s *Store) watchLimits() {
	open, most := files()
	if crowded := most-open < minFiles; crowded != s.crowded.Swap(crowded) {
		s.log.Warn("file descriptors", slog.Int64("open", open), slog.Int64("limit", most), slog.Bool("refusing", crowded))
	}
	if err := s.space.restore(); err != nil {
		s.log.Warn("no ballast", slog.Any("err", err))
	}
}

// renewActive makes a new active generation where there is none, or where it is old.
func (s *Store) renewActive() {
	s.mu.Lock()
	g := s.active
	s.mu.Unlock()
	if g != nil && (g.seq.Load() == 0 || !g.olderThan(s.tune.sealAge)) {
		return
	}
	if _, err := s.roll(g); err != nil {
		s.log.Error("no generation for new mail", slog.Any("err", err))
	}
}

func (g *generation) olderThan(age time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Since(g.created) > age
}

// closeSome closes generations that were filled, that nobody uses, and the least used beyond the limit. Where there is no
// room to open one, the room of those that are open and not in use is wanted at once.
func (s *Store) closeSome() {
	idle := s.tune.idleClose
	if s.cramped.Swap(false) {
		idle = 0
	}
	var open []*generation
	for _, g := range s.snapshot() {
		if s.isActive(g) {
			continue
		}
		switch g.closable(idle) {
		case closeNow:
			s.closeGeneration(g)
		case closeMaybe:
			open = append(open, g)
		}
	}
	slices.SortFunc(open, func(a, b *generation) int { return a.lastUse().Compare(b.lastUse()) })
	for _, g := range open[:max(0, len(open)-s.cfg.OpenGenerations)] {
		s.closeGeneration(g)
	}
}

type closability int

const (
	closeNot closability = iota
	closeMaybe
	closeNow
)

func (g *generation) closable(idle time.Duration) closability {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.db == nil:
		return closeNot
	case g.db.poisoned() != nil && g.live.Load() > 0:
		return closeNot // its copy in memory is the best there is
	case g.db.fresh && g.live.Load() > 0:
		return closeNow
	case time.Since(g.touched) > idle:
		return closeNow
	}
	return closeMaybe
}

func (g *generation) lastUse() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.touched
}

func (s *Store) closeGeneration(g *generation) {
	if _, err := g.closeIdle(s); err != nil {
		s.log.Warn("generation not closed", slog.String("dir", g.dir), slog.Any("err", err))
	}
}

// evacuateAll copies what lives out of generations that are mostly done, so that a few stragglers don't pin the disk.
func (s *Store) evacuateAll(ctx context.Context) {
	content := s.contentByGeneration()
	for _, g := range s.snapshot() {
		if ctx.Err() != nil {
			return
		}
		if s.isActive(g) || g.live.Load() == 0 || g.damaged.Load() || time.Since(g.lastUse()) < s.tune.evacuateIdle {
			continue
		}
		if content[g.num]*evacuateShare < diskUsed(g.dir) {
			s.evacuate(ctx, g)
		}
	}
}

// contentByGeneration sums up what lives in the databases; a record counts as much as a small body.
func (s *Store) contentByGeneration() map[uint32]int64 {
	const record = 512
	sum := make(map[uint32]int64)
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	s.idx.each(func(_ uint32, row *msgRow) bool {
		sum[row.loc.gen] += record
		if row.size <= inlineMax {
			sum[row.loc.gen] += row.size
		}
		return true
	})
	return sum
}

// evacuateLeft empties generations that were left behind after a failed commit.
func (s *Store) evacuateLeft(ctx context.Context) {
	for _, g := range s.snapshot() {
		g.mu.Lock()
		left := g.left
		g.mu.Unlock()
		if left && g.live.Load() > 0 && !g.damaged.Load() && !s.isActive(g) {
			s.evacuate(ctx, g)
		}
	}
}

// evacuate copies the messages of a generation to the active one, a few at a time.
func (s *Store) evacuate(ctx context.Context, g *generation) {
	var ids []mta.ID
	s.queue.mu.Lock()
	s.idx.each(func(_ uint32, row *msgRow) bool {
		if row.loc.gen == g.num {
			ids = append(ids, row.id)
		}
		return true
	})
	s.queue.mu.Unlock()
	for group := range slices.Chunk(ids, evacuateWrites) {
		if err := s.enter(ctx); err != nil {
			return
		}
		err := s.move(g, group)
		s.leave()
		if err != nil {
			s.log.Warn("generation not evacuated", slog.String("dir", g.dir), slog.Any("err", err))
			return
		}
	}
}

// move copies messages, under their locks: the copy and the end of the original are one commit.
func (s *Store) move(g *generation, ids []mta.ID) error {
	defer s.queue.lock(ids...)()
	for _, id := range ids {
		at, ok := s.where(id)
		if !ok || at.gen != g.num {
			continue
		}
		if err := s.moveOne(id, at); err != nil && !errors.Is(err, errInDoubt) {
			return err
		}
	}
	return nil
}

// moveOne needs the message's lock.
func (s *Store) moveOne(id mta.ID, at loc) error {
	m, p, err := s.load(at)
	if err != nil {
		return s.cantMove(at, err)
	}
	var content []byte
	var left *message // whose file is not needed after
	if m.file == 0 {
		content, err = s.inline(at, m)
		content = notNil(content)
	} else {
		m, left, err = s.reseal(m)
	}
	if err != nil {
		return s.cantMove(at, err)
	}
	to, err := s.add(func(seq uint32) []entry {
		entries := []entry{{messageKey(seq), m.encode(), content}, {key: overrideKey(at), value: encodeOverride(id, nil)}}
		if p.rev > 0 {
			entries = append(entries, entry{key: progressKey(seq), value: p.encode()})
		}
		return entries
	}, 1, 0)
	if err != nil {
		return err // a resealed file is swept by the next Open
	}
	s.queue.mu.Lock()
	if row, ok := s.idx.find(id); ok {
		s.idx.msgs.at(row).loc = to
	}
	s.queue.mu.Unlock()
	s.stats.moved.Inc()
	// Of the original only its file, if it has one of its own, goes now.
	s.persistGroup(at.gen, []*change{{id: id, at: at, msg: left, override: to.gen}})
	return nil
}

// cantMove keeps a generation whose content can't be read.
func (s *Store) cantMove(at loc, err error) error {
	if g, ok := s.generation(at.gen); ok && (errors.Is(err, ErrDamaged) || errors.Is(err, errMoved)) {
		s.damagedGeneration(g, err)
	}
	return err
}

// removeDrained removes generations that nothing lives in.
func (s *Store) removeDrained() {
	for _, g := range s.snapshot() {
		if s.isActive(g) || g.live.Load() > 0 || g.damaged.Load() || s.pinned(g) {
			continue
		}
		if err := s.remove(g); err != nil {
			s.log.Warn("generation not removed", slog.String("dir", g.dir), slog.Any("err", err))
		}
	}
}

// pinned reports whether overrides in g are about a generation that is still there.
func (s *Store) pinned(g *generation) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for num := range g.pins {
		if _, ok := s.generation(num); ok && num != g.num {
			return true
		}
	}
	return false
}

// remove takes a generation off the disk.
func (s *Store) remove(g *generation) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone || g.refs > 0 || g.live.Load() > 0 || s.holds(g) {
		return nil
	}
	if g.db != nil {
		if err := g.closeLocked(s); err != nil {
			return err
		}
	}
	gone, err := hide(g.dir)
	if err != nil {
		return err
	}
	g.gone = true
	s.mu.Lock()
	delete(s.gens, g.num)
	for at := range s.overrides {
		if at.gen == g.num {
			delete(s.overrides, at)
		}
	}
	s.mu.Unlock()
	s.stats.removed.Inc()
	return os.RemoveAll(gone)
}

// hide gives a generation's folder the name of one that may go: a crash leaves all of it, or that name.
func hide(dir string) (gone string, err error) {
	gone = dir + goneSuffix
	if err := os.Rename(dir, gone); err != nil {
		return "", err
	}
	return gone, syncDir(filepath.Dir(dir))
}

// takeAway removes a generation's folder that nothing was promised from.
func takeAway(dir string) error {
	gone, err := hide(dir)
	if err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// doubtsMax is how often in a row the index may know of messages that a generation does not count. A settlement
// lowers the count a moment before it reaches the index, so once or twice is no fault.
const doubtsMax = 10

// holds asks the index, whatever the generation counted: what it knows of is never removed.
func (s *Store) holds(g *generation) bool {
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	held := false
	s.idx.each(func(_ uint32, row *msgRow) bool {
		held = row.loc.gen == g.num
		return !held
	})
	if !held {
		g.doubts = 0
		return false
	}
	if g.doubts++; g.doubts == doubtsMax {
		s.log.Error("generation counts no messages but has some", slog.String("dir", g.dir))
	}
	return true
}
