package spool

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// generationVersion is the version of a generation's folder: its files and the keys in its database.
const generationVersion = 2

// Files beside Badger's own in a generation's folder.
const (
	generationFile = "generation.json" // what it is; written before anything else
	cleanFile      = "clean.json"      // with no log beside it: the database was closed well
	redoneFile     = "redone"          // the database has been told more than the journal: it was made anew from it, or opened again
	damagedFile    = "damaged"         // why some of it can't be read; it is never removed
)

// generationInfo is generation.json.
type generationInfo struct {
	Version  int    `json:"version"`
	Number   uint32 `json:"number"`
	Memtable int64  `json:"memtable"`         // never opened with less: Badger could not replay its log
	KeyID    string `json:"key_id,omitempty"` // the key it is encrypted with
}

// cleanInfo is clean.json: what a reader must find, since Badger passes over blocks that it can't read.
type cleanInfo struct {
	Records int64 `json:"records"`           // commit records
	Journal int64 `json:"journal,omitempty"` // octets of the journal
}

// generation is one folder of the spool. Only the active one takes new mail.
type generation struct {
	num  uint32
	dir  string
	info generationInfo
	key  []byte // nil: not encrypted

	seq     atomic.Uint32 // the last number given to a message
	live    atomic.Int64  // messages whose record here is the valid one
	records atomic.Int64  // commit records that its database holds
	damaged atomic.Bool   // something in it can't be read: it is never removed (see damagedFile)
	doubts  int           // the keeper's: see holds

	mu      sync.Mutex
	idle    sync.Cond           // on mu: refs became 0
	db      *database           // nil while closed
	refs    int                 // users of db
	recycle bool                // db is to be closed before anyone uses it again
	touched time.Time           // last use
	created time.Time           // or found
	pins    map[uint32]struct{} // generations that overrides here are about
	left    bool                // poisoned: what lives is copied out, then it is removed
	gone    bool                // its folder is away: Badger would make a new one
	stuck   bool                // its database is being closed, for longer than anybody waits
}

func newGeneration(dir string, info generationInfo, key []byte) *generation {
	g := &generation{num: info.Number, dir: dir, info: info, key: key, pins: make(map[uint32]struct{}), created: time.Now(), touched: time.Now()}
	g.idle.L = &g.mu
	return g
}

func generationName(num uint32) string { return fmt.Sprintf("g%08d", num) }

// parseGeneration reads a folder's name; gone is set for one whose removal had begun.
func parseGeneration(name string) (num uint32, gone, ok bool) {
	base, gone := strings.CutSuffix(name, goneSuffix)
	if len(base) != 9 {
		return 0, false, false
	}
	if _, err := fmt.Sscanf(base, "g%08d", &num); err != nil || generationName(num) != base {
		return 0, false, false
	}
	return num, gone, true
}

const goneSuffix = ".gone"

// use gives the open database; release must follow. It opens it, if need be, after asking for room. errMoved: the
// generation was removed.
func (g *generation) use(s *Store) (*database, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.recycle && g.refs > 0 {
		g.idle.Wait()
	}
	switch {
	case g.gone:
		return nil, errMoved
	case g.stuck:
		return nil, fmt.Errorf("%s: %w", g.dir, errStuck)
	}
	if g.recycle && g.db != nil {
		if err := g.closeLocked(s); err != nil {
			return nil, err
		}
	}
	g.recycle = false
	if g.db == nil {
		if err := g.openLocked(s); err != nil {
			return nil, err
		}
	}
	g.refs++
	g.touched = time.Now()
	return g.db, nil
}

func (g *generation) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refs--
	if g.refs == 0 {
		g.idle.Broadcast()
	}
}

// renew has the database closed and opened again before its next use: its log is full.
func (g *generation) renew(d *database) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.db == d {
		g.recycle = true
	}
}

// openLocked needs g.mu. The mark of a clean close goes before anything can be written, and while there is a log: so a
// folder without mark and log is one that lost something.
func (g *generation) openLocked(s *Store) error {
	orphans, err := inspect(g.dir)
	if err != nil {
		return err
	}
	memtable, anew := g.memtable(orphans), isFresh(g, orphans) && !hasLogs(g.dir)
	done, err := s.space.need(openRoom(memtable))
	if err != nil {
		s.cramped.Store(true)
		s.wake()
		return fmt.Errorf("open %s: %w", g.dir, err)
	}
	defer done()
	d, err := s.openDatabase(g.dir, memtable, g.key)
	if err != nil {
		return err
	}
	err = d.settleDown()
	if err == nil && d.log != nil && !anew {
		err = touchFile(filepath.Join(g.dir, redoneFile))
	}
	if err == nil {
		err = unmark(g.dir)
	}
	if err != nil {
		d.abandon()
		return fmt.Errorf("open %s: %w", g.dir, err)
	}
	g.db = d
	return nil
}

// unmark takes the mark of a clean close away.
func unmark(dir string) error {
	err := os.Remove(filepath.Join(dir, cleanFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// openNeed is what Badger's other files may take when a database is opened.
const openNeed = 4 << 20

// openRoom is what must be free to open a database.
func openRoom(memtable int64) int64 { return 2*memtable + openNeed }

// memtable is the size to open with: the recorded one while there is a log to replay or a database to make anew, a
// small one otherwise.
func (g *generation) memtable(orphans []string) int64 {
	if hasLogs(g.dir) || isFresh(g, orphans) {
		return g.info.Memtable
	}
	return min(g.info.Memtable, smallMemtable)
}

// closeLocked needs g.mu and no users.
func (g *generation) closeLocked(s *Store) error {
	d := g.db
	if d.poisoned() != nil {
		// Its log on disk is what was promised. Closing would write a table and remove the log, on a disk that just failed.
		g.abandonLocked()
		return nil
	}
	done, err := s.space.need(d.used.Load() + openNeed)
	if err != nil {
		return fmt.Errorf("close %s: %w", g.dir, err) // Badger's table would not fit: stay open
	}
	defer done()
	// The mark counts once the log is gone, and that is what Badger removes last.
	if err := writeJSON(filepath.Join(g.dir, cleanFile), cleanInfo{Records: g.records.Load(), Journal: d.journalSize()}); err != nil {
		return err
	}
	g.db, g.recycle = nil, false
	return g.endDatabase(d, d.close)
}

// abandonLocked leaves the database as a crash would. It needs g.mu and no users.
func (g *generation) abandonLocked() {
	d := g.db
	g.db, g.recycle = nil, false
	g.endDatabase(d, func() error { d.abandon(); return nil })
}

var errStuck = errors.New("the disk does not answer, and the generation is not closed yet")

// endDatabase waits for an end of the database, though not for ever: on a disk that does not answer a sync may take as
// long as it likes, and Badger tries again and again to write its table. Until then nobody opens it a second time, and
// only those wait who want mail of this generation. It needs g.mu.
func (g *generation) endDatabase(d *database, end func() error) error {
	done := make(chan error, 1)
	go func() { done <- end() }()
	timer := time.NewTimer(d.patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
	}
	g.stuck = true
	go func() {
		<-done
		g.mu.Lock()
		defer g.mu.Unlock()
		g.stuck = false
	}()
	return fmt.Errorf("close %s: %w", g.dir, errStuck)
}

// closeIdle closes the database if nobody uses it, and reports whether it is closed.
func (g *generation) closeIdle(s *Store) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.db == nil {
		return true, nil
	}
	if g.refs > 0 {
		return false, nil
	}
	return true, g.closeLocked(s)
}

// abandon leaves an open database as a crash would.
func (g *generation) abandon() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.db != nil {
		g.abandonLocked()
	}
}

// pin keeps this generation while another one is there: an override here is the truth about a message there. 0 is none.
func (g *generation) pin(num uint32) {
	if num == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pins[num] = struct{}{}
}

// writeJSON replaces a small file so that a crash leaves the old or the new one.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'))
}

func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

// touchFile makes an empty file, if it is not there.
func touchFile(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return writeFile(path, nil)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
