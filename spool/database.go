package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// database is an open generation: one Badger that never does by itself what could lose or stop something. It does not
// compact, has no value log to speak of, and never changes its log file: before the log is full the database is left
// for the next one.
//
// In a new generation a commit must reach one file, the journal, and Badger's log may lag behind it. In one that was
// closed before, the log is the one file that a commit must reach. Either has its room taken beforehand, and is synced
// here, once for all that share a commit, where an error can't be overlooked.
//
// run is the only goroutine that writes.
type database struct {
	dir      string
	db       *badger.DB
	wal      *os.File // the log that Badger writes through a mapping
	log      *journal // nil in a generation of format 1, or if it is lost
	limit    int64    // what the log and the tree may take
	fresh    bool     // it was made for new mail: commits go to the journal
	batch    int64    // what one commit may take
	queue    chan *write
	done     chan struct{} // closed when run ended
	used     atomic.Int64  // of limit; changed by run alone
	held     *write        // owned by run: taken from queue, did not fit into the last commit
	next     string        // Badger's next log file: that it exists means that the log was changed
	stats    *metrics
	syncer   func(*os.File) error
	patience time.Duration         // how long a commit may take
	fail     atomic.Pointer[error] // the first fault; nothing is written after it
}

var (
	errFull     = errors.New("generation is full")
	errPoisoned = errors.New("generation is left after a failed commit")
)

// write is one caller's part of a commit: all of it or nothing.
type write struct {
	entries  []entry
	cost     int64 // for the database
	contents int64
	length   int64      // of all keys, values and contents
	done     chan error // capacity 1
}

// entry sets a key, or deletes it if value is nil. content, if not nil, is that of the message whose record value is.
type entry struct{ key, value, content []byte }

// entryCost is an upper bound for what an entry takes besides its octets: a node of Badger's tree, and the log's header
// and checksum.
const entryCost = 160

// Badger's limits, from its source: a commit takes at most 15 % of the memtable, a value at most 1 MiB inline.
const (
	batchPercent   = 15
	valueThreshold = 1 << 20
	valueLogSize   = 1 << 20 // the least; nothing is ever in it
	smallMemtable  = 4 << 20 // for generations that take no new mail
)

// keyRotation is how long Badger keeps a database's data key: for good, since a new generation is the rotation. It must
// be less than the time since 1970, or Badger takes the key that it has not made yet for a fresh one, and encrypts
// nothing.
const keyRotation = 10 * 365 * 24 * time.Hour

func badgerOptions(dir string, memtable int64, key []byte, log badger.Logger) badger.Options {
	o := badger.DefaultOptions(dir).
		WithLogger(log).
		WithSyncWrites(false). // run syncs
		WithDetectConflicts(false).
		WithBypassLockGuard(true). // the folder's own lock guards all generations
		WithNumCompactors(0).
		WithNumLevelZeroTables(1 << 20).
		WithNumLevelZeroTablesStall(1 << 21).
		WithNumMemtables(2).
		WithMemTableSize(memtable).
		WithValueThreshold(min(valueThreshold, memtable*batchPercent/100)).
		WithValueLogFileSize(valueLogSize).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithMetricsEnabled(false).
		WithChecksumVerificationMode(options.OnBlockRead)
	if len(key) > 0 {
		o = o.WithEncryptionKey(key).
			WithEncryptionKeyRotationDuration(keyRotation).
			WithBlockCacheSize(1 << 20).
			WithIndexCacheSize(4 << 20)
	}
	return o
}

// crier is Badger's logger. Badger says some failures only here, so an error line is a fault of the database.
type crier struct {
	log *slog.Logger
	cry func(error)
}

func (c crier) Errorf(format string, args ...any) {
	err := errors.New("badger: " + strings.TrimSpace(fmt.Sprintf(format, args...)))
	c.log.Error("database error", slog.Any("err", err))
	c.cry(err)
}

func (c crier) Warningf(format string, args ...any) {
	c.log.Warn("database warning", slog.String("err", strings.TrimSpace(fmt.Sprintf(format, args...))))
}

func (c crier) Infof(string, ...any)  {}
func (c crier) Debugf(string, ...any) {}

// openDatabase opens or creates a generation's database for writing.
func (s *Store) openDatabase(dir string, memtable int64, key []byte) (*database, error) {
	d := &database{
		dir: dir, limit: memtable - 64<<10, batch: memtable * batchPercent / 100 * 9 / 10,
		queue: make(chan *write, 1024), done: make(chan struct{}), stats: s.stats, syncer: s.tune.sync, patience: s.tune.patience,
	}
	db, err := openBadger(badgerOptions(dir, memtable, key, crier{s.log, d.poison}))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	d.db = db
	if d.log, err = openJournal(dir, key); err == nil {
		err = d.takeLog(memtable)
	}
	if err != nil {
		d.closeJournal()
		db.Close() // nothing was written yet
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	go d.run()
	return d, nil
}

// begin has all later commits go to a journal.
func (d *database) begin(log *journal) {
	d.closeJournal() // the same, opened for reading
	d.log, d.fresh = log, true
}

// journalSize is how long the journal has to be; 0 if there is none.
func (d *database) journalSize() int64 {
	switch {
	case d.log == nil:
		return 0
	case d.fresh:
		return d.log.end.Load()
	}
	fi, err := d.log.f.Stat()
	if err != nil {
		return 0
	}
	return fi.Size()
}

func (d *database) closeJournal() error {
	if d.log == nil {
		return nil
	}
	return d.log.f.Close()
}

// openBadger wants some descriptors to be free: Badger ends the process when it can't open one of its files.
func openBadger(o badger.Options) (db *badger.DB, err error) {
	if open, most := files(); most-open < openFiles {
		return nil, fmt.Errorf("%w: %d are open, the limit is %d", errNoFiles, open, most)
	}
	err = guarded(func() error {
		db, err = badger.Open(o)
		return err
	})
	return db, err
}

// takeLog finds the log that Badger writes now and takes its room on disk: through a mapping a full disk would be the
// end of the process (SIGBUS), not an error.
func (d *database) takeLog(memtable int64) error {
	fid, err := lastLog(d.dir)
	if err != nil {
		return err
	}
	d.next = logPath(d.dir, fid+1)
	if d.wal, err = os.OpenFile(logPath(d.dir, fid), os.O_RDWR, 0); err != nil {
		return err
	}
	err = preallocate(d.wal, memtable+memtable*batchPercent/100)
	if err != nil && !errors.Is(err, errNoPrealloc) { // where that can't be, the reserve has to do
		d.wal.Close()
		return fmt.Errorf("take room for %s: %w", d.wal.Name(), err)
	}
	if err := syncDir(d.dir); err != nil {
		d.wal.Close()
		return err
	}
	return nil
}

func logPath(dir string, fid int) string { return filepath.Join(dir, fmt.Sprintf("%05d.mem", fid)) }

// lastLog is the number of the newest log file.
func lastLog(dir string) (int, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return 0, err
	}
	last := -1
	for _, name := range names {
		var fid int
		if _, err := fmt.Sscanf(filepath.Base(name), "%05d.mem", &fid); err == nil {
			last = max(last, fid)
		}
	}
	if last < 0 {
		return 0, fmt.Errorf("%s has no log file", dir)
	}
	return last, nil
}

// poison ends all writing. The first fault is kept.
func (d *database) poison(err error) {
	if d.fail.CompareAndSwap(nil, &err) {
		d.stats.poisoned.Inc()
	}
}

// poisoned is why nothing may be written any more, or nil.
func (d *database) poisoned() error {
	if p := d.fail.Load(); p != nil {
		return fmt.Errorf("%w: %w", errPoisoned, *p)
	}
	return nil
}

// low reports that it is time to make the next generation.
func (d *database) low() bool {
	return d.used.Load() > d.limit/4 || d.fresh && d.log.end.Load() > d.log.limit/4
}

// write makes entries durable, together with what others write now. errFull and errPoisoned mean that nothing was
// written; ErrUnknown that it may have been.
func (d *database) write(entries []entry) error {
	w := &write{entries: entries, done: make(chan error, 1)}
	for i := range entries {
		e := &entries[i]
		w.cost += int64(len(e.key)+len(e.value)) + entryCost
		w.contents += int64(len(e.content))
		if e.content != nil && !d.fresh {
			return errFull // new mail goes to new generations
		}
	}
	w.length = w.cost - int64(len(entries))*entryCost + w.contents
	if w.cost > d.batch || d.fresh && w.length > d.log.limit/2 {
		return fmt.Errorf("%d octets are too much for one commit", w.length)
	}
	if err := d.poisoned(); err != nil {
		return err
	}
	timer := time.NewTimer(d.patience)
	defer timer.Stop()
	select {
	case d.queue <- w:
	case <-timer.C:
		d.poison(fmt.Errorf("no commit for %s", d.patience))
		return d.poisoned()
	}
	select {
	case err := <-w.done:
		return err
	case <-timer.C:
		d.poison(fmt.Errorf("no commit for %s", d.patience))
		return fmt.Errorf("%w: %w", ErrUnknown, d.poisoned())
	}
}

// run commits what is in the queue, as much as fits at once, until the queue is closed.
func (d *database) run() {
	defer close(d.done)
	var group []*write
	for {
		w := d.held
		d.held = nil
		if w == nil {
			var ok bool
			if w, ok = <-d.queue; !ok {
				return
			}
		}
		runtime.Gosched() // who was answered just now may have more
		group = d.gather(group[:0], w)
		err := d.commit(group)
		for _, w := range group {
			w.done <- err
		}
		clear(group)
	}
}

// gather takes what waits already; nobody waits for more to come.
func (d *database) gather(group []*write, w *write) []*write {
	group = append(group, w)
	cost, contents := w.cost, w.contents
	for {
		select {
		case w, ok := <-d.queue:
			if !ok {
				return group
			}
			cost += w.cost
			if contents += w.contents; cost > d.batch || contents > maxContents {
				d.held = w
				return group
			}
			group = append(group, w)
		default:
			return group
		}
	}
}

// commit writes a group in one transaction and syncs the log.
func (d *database) commit(group []*write) error {
	if err := d.poisoned(); err != nil {
		return err
	}
	var cost int64
	for _, w := range group {
		cost += w.cost
	}
	if d.used.Load()+cost > d.limit || d.fresh && !d.log.fits(group) {
		return errFull
	}
	d.used.Add(cost)
	err := d.store(group)
	if err == nil {
		err = d.check()
	}
	if err != nil {
		d.poison(err)
		return fmt.Errorf("%w: %w", ErrUnknown, d.poisoned())
	}
	d.stats.commits.Inc()
	d.stats.commitLen.Observe(float64(len(group)))
	return nil
}

// store brings a group to stable storage and into the database.
func (d *database) store(group []*write) error {
	if !d.fresh {
		if err := d.transact(group); err != nil {
			return err
		}
		return d.sync(d.wal)
	}
	if err := d.log.write(group); err != nil {
		return err
	}
	// The database may be told before the journal is safe: nobody is answered until both are done, and after a crash
	// the journal alone counts.
	synced := make(chan error, 1)
	go func() { synced <- d.sync(d.log.f) }()
	err := d.transact(group)
	return errors.Join(<-synced, err)
}

// transact writes a group to the database.
func (d *database) transact(group []*write) error {
	txn := d.db.NewTransaction(true)
	defer txn.Discard()
	for _, w := range group {
		for i := range w.entries {
			e := &w.entries[i]
			var err error
			if e.value == nil {
				err = txn.Delete(e.key)
			} else {
				err = txn.Set(e.key, e.value)
			}
			if err != nil {
				return err
			}
		}
	}
	return txn.Commit()
}

func (d *database) sync(f *os.File) error {
	start := time.Now()
	if err := d.syncer(f); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	d.stats.syncTime.Observe(time.Since(start).Seconds())
	return nil
}

// check asks what could have gone wrong unnoticed.
func (d *database) check() error {
	if err := d.poisoned(); err != nil {
		return err
	}
	if _, err := os.Lstat(d.next); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the log was changed to %s (%v)", d.next, err)
	}
	return nil
}

// get reads one value; badger.ErrKeyNotFound if there is none.
func (d *database) get(key []byte) ([]byte, error) {
	var value []byte
	err := view(d.db, func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if err != nil {
			return err
		}
		value, err = item.ValueCopy(nil)
		return err
	})
	return value, err
}

// stop ends run; what waits in the queue is committed before.
func (d *database) stop() {
	close(d.queue)
	<-d.done
}

// settleDown waits until Badger has turned the logs that it replayed into a table, so that their room is not counted on
// twice.
func (d *database) settleDown() error {
	for limit := time.Now().Add(d.patience); ; time.Sleep(5 * time.Millisecond) {
		logs, err := filepath.Glob(filepath.Join(d.dir, "*.mem"))
		if err != nil || len(logs) <= 1 {
			return err
		}
		if err := d.poisoned(); err != nil {
			return err
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%s: log not written out for %s", d.dir, d.patience)
		}
	}
}

// abandon stops and leaves all files as they are. Badger's memory stays taken: this is for what must not be closed.
func (d *database) abandon() {
	d.stop()
	d.wal.Close()
	d.closeJournal()
}

// close stops and closes; Badger writes its table now, so there must be room.
func (d *database) close() error {
	d.stop()
	err := d.db.Close()
	if d.fresh && err == nil {
		err = d.log.finish()
	}
	err = errors.Join(err, d.wal.Close(), d.closeJournal())
	if err != nil {
		return fmt.Errorf("close %s: %w", d.dir, err)
	}
	return d.poisoned()
}

// The keys of a generation: a letter and the message's number.
func bodyKey(seq uint32) []byte     { return key('b', seq) }
func messageKey(seq uint32) []byte  { return key('m', seq) }
func progressKey(seq uint32) []byte { return key('r', seq) }

func key(letter byte, seq uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{letter}, seq)
}

// overrideKey is of a message in another generation.
func overrideKey(at loc) []byte {
	return binary.BigEndian.AppendUint32(key('o', at.gen), at.seq)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
