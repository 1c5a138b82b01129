package peer

import (
	"net"
	"testing"
)

// MariaDB is a MariaDB server of the test's own, with a database "test" that root on loopback may use.
type MariaDB struct{ *server }

// NewMariaDB makes an empty one; Start starts it.
func NewMariaDB(t testing.TB) *MariaDB {
	t.Helper()
	Require(t, "mariadbd", "mariadb-install-db")
	m := &MariaDB{newServer(t)}
	m.prepare("mariadb-install-db", "--no-defaults", "--datadir="+m.path("data"), "--auth-root-authentication-method=normal")
	_, port, err := net.SplitHostPort(m.Addr)
	if err != nil {
		t.Fatal(err)
	}
	m.argv = []string{
		"mariadbd", "--no-defaults", "--datadir=" + m.path("data"), "--bind-address=127.0.0.1", "--port=" + port,
		"--socket=" + m.path("socket"), "--pid-file=" + m.path("pid"), "--innodb-flush-log-at-trx-commit=0",
	}
	return m
}

// DSN is how to connect.
func (m *MariaDB) DSN() string { return "root@tcp(" + m.Addr + ")/test" }
