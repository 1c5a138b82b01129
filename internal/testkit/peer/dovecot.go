package peer

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

// Dovecot is a Dovecot of the test's own that speaks LMTP and nothing else.
type Dovecot struct{ *server }

// NewDovecot writes the configuration; Start starts it. It knows these users, by local part, and no other.
func NewDovecot(t testing.TB, users ...string) *Dovecot {
	t.Helper()
	Require(t, "dovecot")
	d := &Dovecot{newServer(t)}
	d.root = true
	if err := os.Chown(d.dir, 0, 0); err != nil { // its master wants to own its folders
		t.Fatal(err)
	}
	if err := os.Mkdir(d.path("mail"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(d.path("mail"), mailUID, mailUID); err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	for _, u := range users {
		fmt.Fprintf(&table, "%s::%d:%d::%s::\n", u, mailUID, mailUID, d.path("mail/"+u))
	}
	write(t, d.path("users"), table.String())
	_, port, err := net.SplitHostPort(d.Addr)
	if err != nil {
		t.Fatal(err)
	}
	write(t, d.path("dovecot.conf"), strings.NewReplacer("DIR", d.dir, "PORT", port).Replace(dovecotConf))
	d.argv = []string{"dovecot", "-F", "-c", d.path("dovecot.conf")}
	return d
}

const dovecotConf = `protocols = lmtp
base_dir = DIR/run
state_dir = DIR/state
log_path = /dev/stderr
ssl = no
hostname = mx1.example.org
first_valid_uid = 1
mail_location = maildir:DIR/mail/%n
auth_username_format = %n
passdb {
  driver = static
  args = nopassword=y
}
userdb {
  driver = passwd-file
  args = DIR/users
}
service lmtp {
  inet_listener lmtp {
    address = 127.0.0.1
    port = PORT
  }
}
service stats {
  unix_listener stats-writer {
    mode = 0666
  }
}
`

// Messages reads a user's mailbox. Newlines are as in a file: LF.
func (d *Dovecot) Messages(user string) [][]byte {
	return Maildir(d.t, d.path("mail/"+user+"/new"))
}
