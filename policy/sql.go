package policy

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// dsn is where the database is.
func (q *SQL) dsn() (string, error) {
	if q.DSNFile != "" {
		return readSecret(q.DSNFile)
	}
	return q.DSN, nil
}

// openSQL gives a pool of connections, none of which is made yet.
func openSQL(q SQL, limit time.Duration) (*sql.DB, error) {
	dsn, err := q.dsn()
	if err != nil {
		return nil, err
	}
	if err := checkDSN(q.Driver, dsn); err != nil {
		return nil, err
	}
	if q.Driver == "postgres" {
		cfg, err := pgx.ParseConfig(dsn)
		if err != nil {
			return nil, err
		}
		cfg.ConnectTimeout = limit
		cfg.DefaultQueryExecMode = pgx.QueryExecModeExec // statements are not prepared, so a pooler may stand between
		return stdlib.OpenDB(*cfg), nil
	}
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	cfg.Timeout, cfg.ReadTimeout, cfg.WriteTimeout = limit, limit, limit
	cfg.Logger = &mysql.NopLogger{}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// fetchSQL reads the first column of all rows. The protocols of both databases tell a result that ended from one that
// was cut off.
func fetchSQL(ctx context.Context, j job) (*content, error) {
	db, err := openSQL(j.cfg.SQL, j.cfg.Timeout)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, j.cfg.SQL.Query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	l, err := readRows(rows, j)
	if err != nil {
		return nil, err
	}
	return newContent(l, tag{}, time.Now())
}

func readRows(rows *sql.Rows, j job) (*list, error) {
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	if len(columns) == 0 {
		return nil, errors.New("query gives no column")
	}
	var address sql.NullString
	into := make([]any, len(columns))
	into[0] = &address
	for i := range into[1:] {
		into[i+1] = new(sql.RawBytes)
	}
	l, left := newList(j.name, j.serves), int64(j.cfg.MaxSize)
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		if left -= int64(len(address.String)); left < 0 {
			return nil, errors.New("is larger than max_size")
		}
		if l.cell(address.String) != nil { // no client could name such a recipient either (mta.Path)
			l.odd++
		}
	}
	return l, rows.Err()
}

const (
	maxAskTime  = 5 * time.Second // a sender waits for the answer
	maxAskConns = 8
	askRest     = 10 * time.Second // for which a database that failed is left alone
)

var errAskRest = errors.New("policy: the database failed a moment ago")

// asker asks a database about one address at a time, and remembers the answers.
type asker struct {
	cfg Source

	mu      sync.Mutex // guards what follows
	db      *sql.DB    // nil: not needed yet
	closed  bool
	answers map[string]askAnswer
	rest    time.Time // nothing is asked before
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
	if err != nil && ok && old.found && now.Sub(old.at) < a.cfg.StaleAfter {
		return old.found, old.at, nil
	}
	if err != nil {
		return false, time.Time{}, err
	}
	a.remember(address, askAnswer{found, now})
	return found, now, nil
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
		delete(a.answers, oldestOfSome(a.answers, func(x askAnswer) (int64, bool) { return x.at.UnixNano(), true }))
	}
	a.answers[address] = said
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
