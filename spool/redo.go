package spool

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"understudy/internal/mta"
)

// isFresh reports whether a generation was never closed, or not opened again since: all that was committed to it is in its
// journal, and its database can be made anew. orphans are tables that Badger will delete.
func isFresh(g *generation, orphans []string) bool {
	tables, err := filepath.Glob(filepath.Join(g.dir, "*.sst"))
	if err != nil || len(tables) > len(orphans) {
		return false
	}
	if _, err := os.Stat(filepath.Join(g.dir, redoneFile)); !errors.Is(err, os.ErrNotExist) {
		return false
	}
	_, err = os.Stat(filepath.Join(g.dir, journalFile))
	return err == nil
}

// checkJournal reports whether the journal of a closed generation is as long as it was.
func checkJournal(g *generation, clean cleanInfo) error {
	if clean.Journal == 0 {
		return nil
	}
	fi, err := os.Stat(filepath.Join(g.dir, journalFile))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if fi.Size() < clean.Journal {
		return fmt.Errorf("%w: the journal has %d octets, %d at the last close", ErrDamaged, fi.Size(), clean.Journal)
	}
	return nil
}

// takeLogs takes the logs of a fresh generation's database away: they were not synced, so they may lack what was
// promised, and have what was not. All that they are good for is to bear witness against a journal that is damaged. So
// they stay while there is no room for what is to take their place, and the mark of a close that was cut short goes
// before them: without a log it would speak for a database that is not there.
func (s *Store) takeLogs(g *generation, aside string) ([]logReport, error) {
	done, err := s.space.need(openRoom(g.info.Memtable))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", g.dir, err)
	}
	done()
	if err := unmark(g.dir); err != nil {
		return nil, err
	}
	logs, err := filepath.Glob(filepath.Join(g.dir, "*.mem"))
	if err != nil {
		return nil, err
	}
	var reports []logReport
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		l, _ := openLog(g.dir, b, g.key) // without its key it tells less
		r := l.read(filepath.Base(path))
		if err := s.copyLog(filepath.Join(aside, r.name), b[:r.size]); err != nil {
			s.log.Warn("log not copied aside before it is replayed", slog.String("file", path), slog.Any("err", err))
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		reports = append(reports, r)
	}
	return reports, nil
}

// redo makes the database of a fresh generation anew from its journal, and reports whether the copies of its logs, which
// reports are of, should be kept.
func (s *Store) redo(g *generation, d *database, aside string, logs []logReport) (keep bool, err error) {
	known := make(map[mta.ID]struct{})
	batch, cost := []entry{versionEntry()}, int64(entryCost)
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := d.write(batch)
		batch, cost = nil, 0
		return err
	}
	report, err := d.log.read(journalHead, func(entries []entry) error {
		more := int64(0)
		for i := range entries {
			e := &entries[i]
			more += int64(len(e.key)+len(e.value)) + entryCost
			if id, ok := e.message(); ok {
				known[id] = struct{}{}
			}
		}
		if cost+more > stepCost {
			if err := flush(); err != nil {
				return err
			}
		}
		batch, cost = append(batch, entries...), cost+more
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err == nil {
		err = d.log.secure(report, s.tune.sync)
	}
	if err == nil { // from now on the log has what the journal lacks
		err = touchFile(filepath.Join(g.dir, redoneFile))
	}
	if err != nil {
		return true, fmt.Errorf("redo %s: %w", g.dir, err)
	}
	return s.tellJournal(g, aside, report, witness(g, known, report, logs)), nil
}

// testimony is what logs have that the journal lacks.
type testimony struct {
	commits int
	ids     []mta.ID
}

func witness(g *generation, known map[mta.ID]struct{}, j journalReport, logs []logReport) testimony {
	w := testimony{commits: -1 - j.groups} // the first commit is the log's alone
	if g.key == nil {
		w.commits = math.MinInt32 // the messages' IDs say it better
	}
	for _, r := range logs {
		w.commits += r.commits
		for _, id := range r.ids {
			if _, ok := known[id]; !ok {
				w.ids = append(w.ids, id)
			}
		}
	}
	w.commits = max(w.commits, 0)
	return w
}

// tellJournal tells what a journal lacks, and reports whether something is amiss.
func (s *Store) tellJournal(g *generation, aside string, r journalReport, w testimony) bool {
	attrs := []any{slog.String("dir", g.dir), slog.String("file", journalFile), slog.Int("commits", r.groups), slog.Int64("end", r.end)}
	switch {
	case r.lost > 0:
		missing := append(r.missing, w.ids...)
		slices.SortFunc(missing, func(a, b mta.ID) int { return bytes.Compare(a[:], b[:]) })
		s.log.Error("journal is damaged: some commits can't be read", append(attrs, slog.Int("lost", r.lost),
			slog.String("held", joinIDs(r.held)), slog.String("missing", joinIDs(slices.Compact(missing))), slog.String("copy", aside))...)
		s.damagedGeneration(g, fmt.Errorf("%w: its journal, at %d places", ErrDamaged, r.lost))
		return true
	case w.commits > 0 || len(w.ids) > 0:
		s.tellDoubt(g, w.ids, aside, attrs)
		return true
	case r.torn:
		s.log.Warn("log ends in a commit that was not finished", attrs...)
	}
	return false
}

// makeGood brings back the messages that a MANIFEST lost with the tables that they were in. How far they had come is lost,
// so some may be delivered twice.
func (s *Store) makeGood(g *generation, d *database) error {
	s.damagedGeneration(g, fmt.Errorf("%w: its MANIFEST does not name a table that is whole", ErrDamaged))
	if d.log == nil {
		return nil
	}
	known := make(map[uint32]bool)
	err := view(d.db, func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.Prefix, o.PrefetchValues, o.AllVersions = []byte{'m'}, false, true // those that ended, too
		it := txn.NewIterator(o)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			known[seqOf(it.Item().Key())] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	var lost []entry
	if _, err := d.log.read(journalHead, func(entries []entry) error {
		for _, e := range entries {
			if _, ok := e.message(); ok && !known[seqOf(e.key)] {
				lost = append(lost, e)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for _, e := range lost {
		if err := d.write([]entry{e}); err != nil {
			return fmt.Errorf("make good %s: %w", g.dir, err)
		}
	}
	return nil
}
