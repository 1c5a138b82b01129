package spool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/errgroup"

	"understudy/internal/mta"
)

// findings are what the generations hold, while they are read.
type findings struct {
	unclean   sync.Mutex // held while a log is replayed: on a full disk there is room for one at a time
	mu        sync.Mutex // guards what follows
	overrides []override
	files     map[string]struct{} // names of bodies that records speak of
	stale     []stored            // copies that a later one stands for
	amends    []*change           // what has to be written to make the disk agree with the index
}

// stored is a message as a record has it.
type stored struct {
	at  loc
	msg *message
	p   *progress
}

// recoverers read generations side by side.
const recoverers = 3

// recover reads all generations into the index. Only a format or key that is not ours, or a want of the moment (room,
// descriptors), keeps the spool from opening; a generation that can't be read is left alone, with an alert, and the
// others go on.
func (s *Store) recover(ctx context.Context) error {
	s.found = &findings{files: make(map[string]struct{})}
	gens, err := s.findGenerations()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(recoverers)
	for _, g := range gens {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return s.recoverGeneration(g)
		})
	}
	if err := group.Wait(); err != nil {
		s.abandon()
		return err
	}
	if err := s.applyOverrides(); err != nil {
		s.abandon()
		return err
	}
	s.amendStale()
	s.sweepBodies()
	s.tidyAside()
	return nil
}

// abandon closes what recover had opened.
func (s *Store) abandon() {
	for _, g := range s.snapshot() {
		g.closeIdle(s)
	}
}

// findGenerations lists the folders and finishes removals.
func (s *Store) findGenerations() ([]*generation, error) {
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var gens []*generation
	for _, e := range list {
		num, gone, ok := parseGeneration(e.Name())
		if !ok {
			continue
		}
		s.next = max(s.next, num+1)
		dir := filepath.Join(s.dir, e.Name())
		if gone {
			if err := os.RemoveAll(dir); err != nil {
				s.log.Warn("removed generation is still there", slog.String("dir", dir), slog.Any("err", err))
			}
			continue
		}
		g, err := s.identify(dir, num)
		if err != nil {
			return nil, err
		}
		if g != nil {
			gens = append(gens, g)
			s.gens[num] = g
		}
	}
	return gens, nil
}

// identify reads what a folder is; nil if it is to be left alone.
func (s *Store) identify(dir string, num uint32) (*generation, error) {
	var info generationInfo
	err := readJSON(filepath.Join(dir, generationFile), &info)
	if (err == nil || errors.Is(err, os.ErrNotExist)) && isUnfinished(dir) {
		err := os.RemoveAll(dir)
		s.log.Warn("generation whose making was cut short is removed", slog.String("dir", dir), slog.Any("err", err))
		return nil, nil
	}
	if err == nil && info.Version > generationVersion {
		return nil, fmt.Errorf("%s has format version %d; this release knows up to %d: use the release that wrote it", dir, info.Version, generationVersion)
	}
	if err == nil && (info.Number != num || info.Memtable < smallMemtable || info.Memtable > int64(maxGeneration)) {
		err = fmt.Errorf("%s is not of this folder: %+v", generationFile, info)
	}
	if err != nil {
		s.breakGeneration(dir, err)
		return nil, nil
	}
	key, err := s.keys.find(info.KeyID, dir)
	if err != nil {
		return nil, err
	}
	g := newGeneration(dir, info, key)
	if why, err := os.ReadFile(filepath.Join(dir, damagedFile)); err == nil {
		g.damaged.Store(true)
		s.tellDamaged(g, errors.New(strings.TrimSpace(string(why))))
	}
	return g, nil
}

// isUnfinished reports whether the making of a folder was cut short, before anything was promised from it. Badger makes
// its MANIFEST first, then a log, then a value log.
func isUnfinished(dir string) bool {
	for _, pattern := range []string{"*.sst", "*.mem", "*.vlog", cleanFile, damagedFile} {
		if found, err := filepath.Glob(filepath.Join(dir, pattern)); err != nil || len(found) > 0 {
			return false
		}
	}
	return true
}

// breakGeneration tells of a generation that can't be opened. Nothing in it is touched.
func (s *Store) breakGeneration(dir string, err error) {
	s.stats.damaged.Inc()
	s.found.mu.Lock()
	s.broken = append(s.broken, dir)
	s.found.mu.Unlock()
	s.log.Error("generation can't be opened, its mail waits for an operator", slog.String("dir", dir), slog.Any("err", err))
}

// leftovers are what the last process left in a generation's folder.
type leftovers struct {
	logs    int        // an open database always has one, and a second one while the first is written out as a table
	orphans []string   // tables that Badger will delete
	fresh   bool       // see isFresh
	clean   *cleanInfo // nil: there is no mark of a clean close
	torn    bool       // its MANIFEST lost tables: set by saveFiles
}

// examine makes a folder fit to be opened and tells what is in it.
func examine(g *generation) (leftovers, error) {
	logs, err := filepath.Glob(filepath.Join(g.dir, "*.mem")) // before empty ones are dropped
	if err != nil {
		return leftovers{}, err
	}
	l := leftovers{logs: len(logs)}
	if l.orphans, err = inspect(g.dir); err != nil {
		return l, err
	}
	l.fresh = isFresh(g, l.orphans)
	var clean cleanInfo
	if readJSON(filepath.Join(g.dir, cleanFile), &clean) == nil {
		l.clean = &clean
	}
	return l, nil
}

// recoverGeneration reads one generation. One that was closed well is read as it is; any other one has its log copied
// aside and replayed, and every block of it is verified.
func (s *Store) recoverGeneration(g *generation) error {
	left, err := examine(g)
	switch {
	case err != nil:
	case left.clean != nil && left.logs == 0 && !left.fresh:
		err = s.recoverClean(g, left)
	default:
		err = s.recoverUnclean(g, left)
	}
	switch {
	case err == nil:
		return nil
	case passing(err):
		return err
	}
	// Even if Badger says that the key is wrong: it has the right ID, so it is Badger's registry of keys that is damaged.
	s.breakGeneration(g.dir, err)
	s.mu.Lock()
	delete(s.gens, g.num)
	s.mu.Unlock()
	return nil
}

func hasLogs(dir string) bool {
	logs, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	return err != nil || len(logs) > 0
}

func (s *Store) recoverClean(g *generation, left leftovers) error {
	if len(left.orphans) > 0 {
		return fmt.Errorf("%w: MANIFEST does not name %s", errNotBadger, left.orphans)
	}
	log := crier{s.log, func(error) {}}
	db, err := openBadger(badgerOptions(g.dir, smallMemtable, g.key, log).WithReadOnly(true))
	if err != nil {
		return err
	}
	defer db.Close()
	if err := s.scan(g, db); err != nil {
		return err
	}
	if err := checkJournal(g, *left.clean); err != nil {
		s.damagedGeneration(g, err)
	}
	s.checkRecords(g, db, left.clean)
	return nil
}

// checkRecords holds what was found against what was there at the last close.
func (s *Store) checkRecords(g *generation, db *badger.DB, clean *cleanInfo) {
	if n := g.records.Load(); n != clean.Records {
		s.damagedGeneration(g, fmt.Errorf("%d commit records, %d at the last close: %w", n, clean.Records, errors.Join(ErrDamaged, verifyTables(db))))
	}
}

// recoverUnclean closes the generation again: its log's room is wanted for the next one.
func (s *Store) recoverUnclean(g *generation, left leftovers) error {
	s.found.unclean.Lock()
	defer s.found.unclean.Unlock()
	if err := s.replay(g, left); err != nil {
		return err
	}
	s.closeGeneration(g)
	return nil
}

// replay has Badger replay the log, after it was copied aside, and reads what is there then.
func (s *Store) replay(g *generation, left leftovers) error {
	aside := filepath.Join(s.dir, asideDir, generationName(g.num)+"-"+time.Now().UTC().Format("20060102T150405.000"))
	keep, logs, err := s.saveFiles(g, &left, aside)
	if err != nil {
		return err
	}
	d, err := g.use(s)
	if err != nil {
		return err
	}
	defer g.release()
	switch {
	case left.fresh && d.log != nil:
		keep, err = s.redo(g, d, aside, logs)
	case left.torn:
		err = s.makeGood(g, d)
	}
	if err != nil {
		return err
	}
	if err := s.scan(g, d.db); err != nil {
		return err
	}
	if err := verifyTables(d.db); err != nil {
		s.damagedGeneration(g, err)
		keep = true
	}
	switch {
	case left.fresh:
	case left.logs == 0:
		s.damagedGeneration(g, fmt.Errorf("%w: it was in use, and has no log", ErrDamaged))
	case left.clean != nil: // nothing was written since
		s.checkRecords(g, d.db, left.clean)
	}
	if keep {
		return nil
	}
	return os.RemoveAll(aside)
}

// saveFiles keeps what Badger may destroy, and reports whether something is amiss. A fresh generation needs none of it.
func (s *Store) saveFiles(g *generation, left *leftovers, aside string) (keep bool, logs []logReport, err error) {
	if left.fresh {
		logs, err = s.takeLogs(g, aside)
		return false, logs, err
	}
	keep, err = s.saveOrphans(g, left.orphans, aside)
	if err != nil {
		return keep, nil, err
	}
	// A table comes out of a log that stays until the MANIFEST names it, beside a new one or the mark of a close.
	left.torn = keep && left.logs < 2 && left.clean == nil
	keepLogs, err := s.saveLogs(g, aside, left.clean != nil)
	return keep || keepLogs, nil, err
}

// damagedGeneration tells of a generation that can be read only in part. It is never removed, and that is written down:
// the next Open would find what is left of it, and nothing amiss.
func (s *Store) damagedGeneration(g *generation, err error) {
	if g.damaged.Swap(true) {
		return
	}
	s.tellDamaged(g, err)
	if err := writeFile(filepath.Join(g.dir, damagedFile), []byte(err.Error()+"\n")); err != nil {
		s.log.Warn("damage not written down", slog.String("dir", g.dir), slog.Any("err", err))
	}
}

func (s *Store) tellDamaged(g *generation, err error) {
	s.stats.damaged.Inc()
	s.log.Error("generation is damaged, some of its mail may be missing", slog.String("dir", g.dir), slog.Any("err", err))
}

// scan reads the records of a generation: progress first, so that each message is known with its own.
func (s *Store) scan(g *generation, db *badger.DB) error {
	return view(db, func(txn *badger.Txn) error {
		progress := make(map[uint32][]byte)
		err := each(txn, 'r', func(k, v []byte) error {
			progress[seqOf(k)] = slices.Clone(v)
			return nil
		})
		if err != nil {
			return err
		}
		err = each(txn, 'o', func(k, v []byte) error { return s.foundOverride(g, k, v) })
		if err != nil {
			return err
		}
		return each(txn, 'm', func(k, v []byte) error {
			g.records.Add(1)
			seq := seqOf(k)
			g.seq.Store(max(g.seq.Load(), seq))
			if err := s.foundMessage(g, seq, v, progress[seq]); err != nil {
				s.damagedGeneration(g, fmt.Errorf("message %d: %w", seq, err))
			}
			return nil
		})
	})
}

// each calls f for the keys that begin with a letter, in order.
func each(txn *badger.Txn, letter byte, f func(key, value []byte) error) error {
	o := badger.DefaultIteratorOptions
	o.Prefix = []byte{letter}
	o.PrefetchValues = false
	it := txn.NewIterator(o)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		item := it.Item()
		if err := item.Value(func(v []byte) error { return f(item.Key(), v) }); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) foundOverride(g *generation, k, v []byte) error {
	o, err := decodeOverride(slices.Clone(v))
	if err != nil || len(k) != 9 {
		s.damagedGeneration(g, fmt.Errorf("override %x: %w", k, errors.Join(ErrDamaged, err)))
		return nil
	}
	o.at, o.by = loc{seqOf(k), seqOf(k[4:])}, g.num
	s.found.mu.Lock()
	s.found.overrides = append(s.found.overrides, o)
	s.found.mu.Unlock()
	return nil
}

// seqOf reads the number behind a key's first octet.
func seqOf(k []byte) uint32 {
	return uint32(k[1])<<24 | uint32(k[2])<<16 | uint32(k[3])<<8 | uint32(k[4])
}

func (s *Store) foundMessage(g *generation, seq uint32, record, progress []byte) error {
	m, err := decodeMessage(record)
	if err != nil {
		return err
	}
	p := begin(m.env)
	if progress != nil {
		if p, err = decodeProgress(progress, m.env); err != nil {
			return err
		}
	}
	s.found.mu.Lock()
	defer s.found.mu.Unlock()
	if m.file != 0 {
		s.found.files[bodyName(m.env.ID, m.file)] = struct{}{}
	}
	if p.damaged {
		s.isBad(m.env.ID, "the content was found damaged")
	}
	s.index(stored{at: loc{g.num, seq}, msg: m, p: p})
	return nil
}

// index takes a message in; of two copies the one in the later generation is valid. It needs found.mu.
func (s *Store) index(n stored) {
	id := n.msg.env.ID
	if row, ok := s.idx.find(id); ok {
		old := s.idx.msgs.at(row).loc
		if old.gen > n.at.gen {
			s.found.stale = append(s.found.stale, n)
			return
		}
		s.found.stale = append(s.found.stale, stored{at: old, msg: &message{env: &mta.Envelope{ID: id}}})
		s.idx.remove(row)
		s.countLive(old.gen, -1)
	}
	s.idx.add(n.msg.env, n.at, n.msg.size, n.p)
	s.countLive(n.at.gen, 1)
}

func (s *Store) countLive(num uint32, n int64) {
	if g, ok := s.generation(num); ok {
		g.live.Add(n)
	}
}

// applyOverrides brings messages to what was stored about them in later generations.
func (s *Store) applyOverrides() error {
	slices.SortFunc(s.found.overrides, func(a, b override) int { return cmp.Compare(a.by, b.by) })
	for _, o := range s.found.overrides {
		row, ok := s.idx.find(o.id)
		if !ok || s.idx.msgs.at(row).loc != o.at {
			continue // it ended, or was moved
		}
		err := s.applyOverride(row, o)
		if passing(err) {
			return fmt.Errorf("override of %s: %w", o.id, err)
		}
		if err != nil {
			s.damagedGeneration(s.gens[o.by], fmt.Errorf("override of %s: %w", o.id, err))
		}
	}
	return nil
}

func (s *Store) applyOverride(row uint32, o override) error {
	c := &change{id: o.id, at: o.at, override: o.by}
	if o.progress == nil { // it ended: its content is swept once its record is gone
		s.idx.remove(row)
		s.found.amends = append(s.found.amends, c)
		return nil
	}
	m, p, err := s.load(o.at)
	if err != nil {
		return err
	}
	later, err := decodeProgress(o.progress, m.env)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if later.rev <= p.rev {
		return nil
	}
	c.msg, c.p = m, later
	s.overrides[o.at] = o.progress
	s.idx.update(row, m.env, later)
	s.found.amends = append(s.found.amends, c)
	return nil
}

// amendStale has copies deleted that a later one stands for: once that one is gone, they must not come back.
func (s *Store) amendStale() {
	for _, n := range s.found.stale {
		s.countLive(n.at.gen, 1) // the amendment takes it off
		s.found.amends = append(s.found.amends, &change{id: n.msg.env.ID, at: n.at})
	}
}

// sweepBodies removes content that no record names: its 250 was never said, or its message has ended. While anything
// is damaged nobody knows what may be missing, and nothing is swept.
func (s *Store) sweepBodies() {
	if len(s.broken)+len(s.amiss) > 0 || slices.ContainsFunc(s.snapshot(), func(g *generation) bool { return g.damaged.Load() }) {
		return
	}
	dir := filepath.Join(s.dir, bodiesDir)
	list, err := os.ReadDir(dir)
	if err != nil {
		s.log.Warn("bodies not swept", slog.Any("err", err))
		return
	}
	for _, e := range list {
		if _, ok := s.found.files[e.Name()]; ok {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			s.log.Warn("body not swept", slog.String("file", e.Name()), slog.Any("err", err))
		}
	}
}

func sortedGenerations(m map[uint32]*generation) []*generation {
	list := make([]*generation, 0, len(m))
	for _, g := range m {
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b *generation) int { return cmp.Compare(a.num, b.num) })
	return list
}
