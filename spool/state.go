package spool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// State keeps the small tables that should survive: known recipients, greylist, outage history, counts. Losing it is
// an inconvenience; it is not synced, and it is given up rather than let it harm the spool.
//
// A namespace is one table; it holds no NUL octet. A revision is never 0 and changes with every Put and Add.
type State interface {
	// Get returns a value and its revision, or ErrNotFound.
	Get(ctx context.Context, ns, key string) (val []byte, rev uint64, err error)
	// Put sets a value for ttl (0: for good). With ifRev the entry must be at that revision, or not exist for 0;
	// ErrConflict otherwise.
	Put(ctx context.Context, ns, key string, val []byte, ttl time.Duration, ifRev *uint64) (rev uint64, err error)
	// Add counts: it adds delta to a number that is 0 at first, and returns the sum.
	Add(ctx context.Context, ns, key string, delta int64, ttl time.Duration) (int64, error)
	// Delete removes an entry, if it is there.
	Delete(ctx context.Context, ns, key string) error
	// Scan calls f for entries in the order of their keys: those with the prefix, behind after, at most limit (0: all).
	// An error of f ends it. f must not call the State.
	Scan(ctx context.Context, ns, prefix, after string, limit int, f func(key string, val []byte, rev uint64) error) error
	Close() error
}

// ErrConflict says that an entry is not at the revision that a Put wanted.
var ErrConflict = errors.New("spool: state: revision conflict")

// stateStore is State in a small Badger database, or in memory where that can't be.
type stateStore struct {
	db    *badger.DB
	space *space
	files fileWatch
	stop  context.CancelFunc
	wg    sync.WaitGroup
	seed  maphash.Seed
	locks [64]sync.Mutex // by key: held from reading an entry until its change is committed

	life   sync.RWMutex // held for reading by each call
	closed bool         // guarded by life
}

const (
	stateDir      = "state"
	stateMemtable = 8 << 20
	// stateNeed is what Badger may take before it is asked again: logs and tables in the background. Below that
	// much free, nothing is written any more.
	stateNeed  = 64 << 20
	stateSweep = 10 * time.Minute
)

// OpenState opens the tables in the folder of the spool. A database that is damaged is put aside and begun anew; on a
// full disk the tables are kept in memory only.
func OpenState(ctx context.Context, cfg Config, log *slog.Logger) (State, error) {
	s, err := openState(ctx, cfg, log)
	if err != nil {
		return nil, fmt.Errorf("spool: open state in %s: %w", cfg.Dir, err)
	}
	return s, nil
}

// NewMemoryState keeps tables for as long as the process lives.
func NewMemoryState() State {
	db, err := badger.Open(badger.DefaultOptions("").WithInMemory(true).WithLogger(nil).WithMemTableSize(stateMemtable).WithNumCompactors(2))
	if err != nil {
		panic(err) // constant options, no I/O
	}
	return &stateStore{db: db, seed: maphash.MakeSeed(), stop: func() {}}
}

func openState(ctx context.Context, cfg Config, log *slog.Logger) (State, error) {
	keys, err := loadKeys(cfg)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	room := &space{dir: cfg.Dir, log: log, gone: true}
	if done, err := room.need(stateNeed); err != nil {
		log.Error("no room for the state tables, they are kept in memory", slog.Any("err", err))
		return NewMemoryState(), nil
	} else {
		done()
	}
	dir := stateFolder(cfg.Dir, keys)
	if err := dropOtherStates(cfg.Dir, dir, log); err != nil {
		return nil, err
	}
	db, err := openStateBadger(dir, keys.key, log)
	if err != nil {
		aside := dir + ".damaged-" + time.Now().UTC().Format("20060102T150405")
		log.Error("state tables can't be opened, they begin anew", slog.String("aside", aside), slog.Any("err", err))
		if err := os.Rename(dir, aside); err != nil {
			return nil, err
		}
		if db, err = openStateBadger(dir, keys.key, log); err != nil {
			return nil, err
		}
	}
	sweep, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &stateStore{db: db, space: room, seed: maphash.MakeSeed(), stop: stop}
	s.wg.Go(func() { s.sweep(sweep) })
	return s, nil
}

// stateFolder is one per key: a new key begins new tables.
func stateFolder(dir string, keys *keyring) string {
	name := stateDir
	if keys.id != "" {
		name += "-" + keys.id
	}
	return filepath.Join(dir, name)
}

// dropOtherStates removes tables under another key, or in clear: who changed the key does not want them to stay.
func dropOtherStates(dir, keep string, log *slog.Logger) error {
	list, err := filepath.Glob(filepath.Join(dir, stateDir+"*"))
	if err != nil {
		return err
	}
	for _, path := range list {
		if path == keep || strings.Contains(filepath.Base(path), ".damaged-") {
			continue
		}
		log.Warn("state tables of another key are removed", slog.String("dir", path))
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

func openStateBadger(dir string, key []byte, log *slog.Logger) (*badger.DB, error) {
	if _, err := inspect(dir); err != nil {
		return nil, err
	}
	o := badger.DefaultOptions(dir).
		WithLogger(crier{log, func(error) {}}).
		WithMemTableSize(stateMemtable).
		WithNumMemtables(2).
		WithNumCompactors(2).
		WithValueLogFileSize(16 << 20).
		WithBlockCacheSize(1 << 20).
		WithIndexCacheSize(4 << 20).
		WithMetricsEnabled(false)
	if len(key) > 0 {
		o = o.WithEncryptionKey(key)
	}
	return openBadger(o)
}

// sweep lets Badger give back the space of what expired.
func (s *stateStore) sweep(ctx context.Context) {
	tick := time.NewTicker(stateSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if s.room() == nil {
				_ = s.db.RunValueLogGC(0.5) // ErrNoRewrite: nothing to gain
			}
		}
	}
}

func (s *stateStore) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("spool: state: %w", err)
	}
	s.life.RLock()
	if s.closed {
		s.life.RUnlock()
		return ErrClosed
	}
	return nil
}

// room keeps Badger from writing through its mappings onto a full disk, and from making files without descriptors: either
// would end the process.
func (s *stateStore) room() error {
	if s.space == nil {
		return nil
	}
	if s.files.crowded() {
		return errNoFiles
	}
	done, err := s.space.need(stateNeed)
	if err != nil {
		return err
	}
	done()
	return nil
}

// maxStateKey and maxStateValue keep an entry within one of Badger's commits.
const (
	maxStateKey   = 4 << 10
	maxStateValue = 256 << 10
)

// stateKey is namespace, NUL, key.
func stateKey(ns, key string) ([]byte, error) {
	if ns == "" || strings.ContainsRune(ns, 0) || len(ns)+len(key) > maxStateKey {
		return nil, fmt.Errorf("namespace %q and key of %d octets are not allowed", ns, len(key))
	}
	return []byte(ns + "\x00" + key), nil
}

// Get implements State.
func (s *stateStore) Get(ctx context.Context, ns, key string) (val []byte, rev uint64, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, 0, err
	}
	defer s.life.RUnlock()
	k, err := stateKey(ns, key)
	if err == nil {
		err = s.db.View(func(txn *badger.Txn) error {
			val, rev, err = stateGet(txn, k)
			return err
		})
	}
	if err != nil {
		return nil, 0, fmt.Errorf("spool: state: get %s: %w", ns, err)
	}
	return val, rev, nil
}

func stateGet(txn *badger.Txn, k []byte) ([]byte, uint64, error) {
	item, err := txn.Get(k)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, 0, ErrNotFound
	}
	if err != nil {
		return nil, 0, err
	}
	val, err := item.ValueCopy(nil)
	return val, item.Version(), err
}

// Put implements State.
func (s *stateStore) Put(ctx context.Context, ns, key string, val []byte, ttl time.Duration, ifRev *uint64) (uint64, error) {
	rev, err := s.change(ctx, ns, key, ttl, func(_ []byte, rev uint64) ([]byte, error) {
		if ifRev != nil && rev != *ifRev {
			return nil, ErrConflict
		}
		return notNil(val), nil
	})
	if err != nil {
		return 0, fmt.Errorf("spool: state: put %s: %w", ns, err)
	}
	return rev, nil
}

// Add implements State.
func (s *stateStore) Add(ctx context.Context, ns, key string, delta int64, ttl time.Duration) (int64, error) {
	var sum int64
	_, err := s.change(ctx, ns, key, ttl, func(val []byte, rev uint64) ([]byte, error) {
		sum = delta
		if rev != 0 {
			if len(val) != 8 {
				return nil, errors.New("the entry is not a number")
			}
			sum += int64(binary.BigEndian.Uint64(val))
		}
		return binary.BigEndian.AppendUint64(nil, uint64(sum)), nil
	})
	if err != nil {
		return 0, fmt.Errorf("spool: state: add %s: %w", ns, err)
	}
	return sum, nil
}

// change replaces an entry by what f makes of it, and says its new revision.
func (s *stateStore) change(ctx context.Context, ns, key string, ttl time.Duration, f func(val []byte, rev uint64) ([]byte, error)) (uint64, error) {
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.life.RUnlock()
	k, err := stateKey(ns, key)
	if err != nil {
		return 0, err
	}
	if err := s.room(); err != nil {
		return 0, err
	}
	lock := &s.locks[maphash.Bytes(s.seed, k)%uint64(len(s.locks))]
	lock.Lock()
	defer lock.Unlock()
	err = s.db.Update(func(txn *badger.Txn) error {
		old, rev, err := stateGet(txn, k)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		val, err := f(old, rev)
		if err != nil {
			return err
		}
		if len(val) > maxStateValue {
			return fmt.Errorf("value of %d octets is longer than %d", len(val), maxStateValue)
		}
		e := badger.NewEntry(k, val)
		if ttl > 0 {
			e = e.WithTTL(max(ttl, time.Second)) // Badger counts seconds
		}
		return txn.SetEntry(e)
	})
	if err != nil {
		return 0, err
	}
	var rev uint64
	err = s.db.View(func(txn *badger.Txn) error { // the lock keeps it ours
		_, rev, err = stateGet(txn, k)
		return err
	})
	return rev, err
}

// Delete implements State.
func (s *stateStore) Delete(ctx context.Context, ns, key string) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.life.RUnlock()
	k, err := stateKey(ns, key)
	if err == nil {
		err = s.room()
	}
	if err == nil {
		lock := &s.locks[maphash.Bytes(s.seed, k)%uint64(len(s.locks))]
		lock.Lock()
		defer lock.Unlock()
		err = s.db.Update(func(txn *badger.Txn) error { return txn.Delete(k) })
	}
	if err != nil {
		return fmt.Errorf("spool: state: delete %s: %w", ns, err)
	}
	return nil
}

// Scan implements State.
func (s *stateStore) Scan(ctx context.Context, ns, prefix, after string, limit int, f func(key string, val []byte, rev uint64) error) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.life.RUnlock()
	base, err := stateKey(ns, "")
	if err != nil {
		return fmt.Errorf("spool: state: scan: %w", err)
	}
	return s.db.View(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.Prefix = append(base, prefix...)
		it := txn.NewIterator(o)
		defer it.Close()
		it.Seek([]byte(ns + "\x00" + max(prefix, after)))
		for n := 0; it.Valid() && (limit <= 0 || n < limit); it.Next() {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("spool: state: scan %s: %w", ns, err)
			}
			key := string(it.Item().Key()[len(ns)+1:])
			if after != "" && key <= after {
				continue
			}
			val, err := it.Item().ValueCopy(nil)
			if err != nil {
				return fmt.Errorf("spool: state: scan %s: %w", ns, err)
			}
			if err := f(key, val, it.Item().Version()); err != nil {
				return err
			}
			n++
		}
		return nil
	})
}

// Close implements State.
func (s *stateStore) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.stop()
	s.wg.Wait()
	if s.space != nil {
		if err := s.room(); err != nil {
			return nil // no room to close on: the next Open replays the log
		}
	}
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("spool: state: close: %w", err)
	}
	return nil
}

var _ State = (*stateStore)(nil)
var _ Spool = (*Store)(nil)
var _ Spool = (*Memory)(nil)
