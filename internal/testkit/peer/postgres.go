package peer

import (
	"net"
	"path/filepath"
	"slices"
	"testing"
)

// Postgres is a PostgreSQL server of the test's own, with a database "postgres" that anybody on loopback may use.
type Postgres struct{ *server }

// NewPostgres makes an empty one; Start starts it.
func NewPostgres(t testing.TB) *Postgres {
	t.Helper()
	Require(t)
	versions, err := filepath.Glob("/usr/lib/postgresql/*/bin") // Debian keeps them off the path
	if err != nil || len(versions) == 0 {
		t.Fatal("UNDERSTUDY_PEERS is set: PostgreSQL is not installed")
	}
	bin := slices.Max(versions)
	p := &Postgres{newServer(t)}
	p.prepare(filepath.Join(bin, "initdb"), "-D", p.path("data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
	_, port, err := net.SplitHostPort(p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	p.argv = []string{filepath.Join(bin, "postgres"), "-D", p.path("data"), "-h", "127.0.0.1", "-p", port, "-k", p.dir, "-F"}
	return p
}

// DSN is how to connect.
func (p *Postgres) DSN() string { return "postgres://postgres@" + p.Addr + "/postgres?sslmode=disable" }
