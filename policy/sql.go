package policy

import (
	"context"
	"database/sql"
	"errors"
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
