package policy

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

const (
	maxAskTime  = 5 * time.Second // a sender waits for the answer
	maxAskConns = 8
	askRest     = 10 * time.Second // for which a database that failed is left alone
	proveEvery  = 10 * time.Second // how long a database that knows somebody is believed to know everybody
	minProven   = 3                // addresses that it must have known before it can be doubted
	maxProven   = 16
)

var (
	errAskRest = errors.New("policy: the database failed a moment ago")
	errDoubt   = errors.New("policy: the database has none of the recipients any more that it had")
)

// asker asks a database about one address at a time, and remembers the answers.
type asker struct {
	cfg Source

	mu      sync.Mutex // guards what follows
	db      *sql.DB    // nil: not needed yet
	closed  bool
	answers map[string]askAnswer
	rest    time.Time // nothing is asked before
	proven  []string  // addresses that it had lately
	proved  time.Time // when it last had one of them
}

type askAnswer struct {
	found bool
	at    time.Time
}

func newAsker(cfg Source) *asker {
	return &asker{cfg: cfg, answers: map[string]askAnswer{}}
}

// pool gives the connections. It is made when it is needed, so that a file with a password that can't be read now
// keeps nobody from starting.
func (a *asker) pool() (*sql.DB, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, sql.ErrConnDone
	}
	if a.db == nil {
		db, err := openSQL(a.cfg.SQL, min(a.cfg.Timeout, maxAskTime))
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(maxAskConns)
		db.SetConnMaxIdleTime(time.Minute)
		a.db = db
	}
	return a.db, nil
}

// ping tells whether the database can be reached.
func (a *asker) ping(ctx context.Context) error {
	db, err := a.pool()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	return db.PingContext(ctx)
}

func (a *asker) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed = true; a.db != nil {
		a.db.Close()
	}
}

// ask tells whether the database has the address, and when it said so. While it does not answer, that it has the
// address holds until it is stale, that it has it not ends: it may have been made since. An error says that nothing is
// known.
func (a *asker) ask(ctx context.Context, address string, now time.Time) (bool, time.Time, error) {
	a.mu.Lock()
	old, ok := a.answers[address]
	rest := now.Before(a.rest)
	a.mu.Unlock()
	if ok && now.Sub(old.at) < a.cfg.SQL.CacheFor {
		return old.found, old.at, nil
	}
	found, err := false, errAskRest
	if !rest {
		found, err = a.query(ctx, address, now)
	}
	if err == nil && !found {
		err = a.prove(ctx, now)
	}
	if err != nil && ok && old.found && now.Sub(old.at) < a.cfg.StaleAfter {
		return old.found, old.at, nil
	}
	if err != nil {
		return false, time.Time{}, err
	}
	a.remember(address, askAnswer{found, now})
	return found, now, nil
}

// prove tells whether the database can be believed that it has not got an address: it still has others. One that was
// restored with an empty table of users would have everybody refused for good.
func (a *asker) prove(ctx context.Context, now time.Time) error {
	a.mu.Lock()
	proven, proved := slices.Clone(a.proven), a.proved
	a.mu.Unlock()
	if len(proven) < minProven || now.Sub(proved) < proveEvery {
		return nil
	}
	for _, address := range proven {
		found, err := a.query(ctx, address, now)
		if err != nil {
			return err
		}
		if found {
			a.mu.Lock()
			a.proved = now
			a.mu.Unlock()
			return nil
		}
	}
	a.mu.Lock()
	a.rest = now.Add(askRest)
	a.mu.Unlock()
	return errDoubt
}

func (a *asker) query(ctx context.Context, address string, now time.Time) (found bool, err error) {
	limited, cancel := context.WithTimeout(ctx, min(a.cfg.Timeout, maxAskTime))
	defer cancel()
	defer func() {
		if err != nil && ctx.Err() == nil { // it was not the client who left
			a.mu.Lock()
			a.rest = now.Add(askRest)
			a.mu.Unlock()
		}
	}()
	db, err := a.pool()
	if err != nil {
		return false, err
	}
	rows, err := db.QueryContext(limited, a.cfg.SQL.Lookup, address)
	if err != nil {
		return false, fmt.Errorf("policy: ask about a recipient: %w", err)
	}
	defer rows.Close()
	found = rows.Next()
	if err := rows.Err(); err != nil {
		return false, fmt.Errorf("policy: ask about a recipient: %w", err)
	}
	return found, nil
}

// remember keeps the answer, in the place of an older one if there is no room.
func (a *asker) remember(address string, said askAnswer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.answers[address]; !known && len(a.answers) >= a.cfg.SQL.CacheSize {
		delete(a.answers, oldestOfSome(a.answers, func(x askAnswer) (int64, bool) {
			if x.found { // after the others, of which a flood brings many
				return math.MaxInt64, true
			}
			return x.at.UnixNano(), true
		}))
	}
	a.answers[address] = said
	if said.found && !slices.Contains(a.proven, address) {
		if len(a.proven) == maxProven {
			a.proven = slices.Delete(a.proven, 0, 1)
		}
		a.proven = append(a.proven, address)
	}
}

// oldestOfSome gives the key of the oldest of a few entries that the map happens to give first, among those that may
// go: good enough to make room by, at no cost.
func oldestOfSome[K comparable, V any](m map[K]V, age func(V) (at int64, mayGo bool)) K {
	var oldest K
	var least int64
	n := 0
	for k, v := range m {
		at, mayGo := age(v)
		if !mayGo {
			continue
		}
		if n == 0 || at < least {
			oldest, least = k, at
		}
		if n++; n == 8 {
			break
		}
	}
	return oldest
}
