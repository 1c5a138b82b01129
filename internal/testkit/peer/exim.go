package peer

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

// Exim is an Exim of the test's own.
type Exim struct{ *server }

// NewExim makes a primary that takes all mail but for the local part "bad" and puts it into one Maildir; Start starts it.
// Settings are lines of the main section. It has what Debian's light daemon has, which is not PROXY.
func NewExim(t testing.TB, settings string) *Exim {
	t.Helper()
	return newExim(t, "exim", settings, eximPrimary)
}

// NewEximHeavy is NewExim with Debian's heavy daemon.
func NewEximHeavy(t testing.TB, settings string) *Exim {
	t.Helper()
	return newExim(t, "exim-heavy", settings, eximPrimary)
}

// NewEximACL is NewExim, or NewEximHeavy, with other statements in its ACL for RCPT. No mailbox is named "nobody".
func NewEximACL(t testing.TB, heavy bool, settings, acl string) *Exim {
	t.Helper()
	folder := "exim"
	if heavy {
		folder = "exim-heavy"
	}
	return newExim(t, folder, settings, strings.Replace(eximPrimary, eximRCPT, acl, 1))
}

// NewEximRelay makes a sender: what Send gives it goes to the relay, over TLS.
func NewEximRelay(t testing.TB, relay string) *Exim {
	t.Helper()
	_, port, err := net.SplitHostPort(relay)
	if err != nil {
		t.Fatal(err)
	}
	return newExim(t, "exim", "smtputf8_advertise_hosts = *", strings.ReplaceAll(eximRelay, "PORT", port))
}

func newExim(t testing.TB, folder, settings, rest string) *Exim {
	t.Helper()
	Require(t)
	e := &Exim{newServer(t)}
	bin := program(t, folder+"/usr/sbin/exim4")
	e.root = true
	if err := os.Chown(e.dir, lookupUID(t, "Debian-exim"), -1); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(e.Addr)
	if err != nil {
		t.Fatal(err)
	}
	conf := strings.NewReplacer("BIN", bin, "DIR", e.dir, "PORT", port).Replace(eximMain) + settings + "\n" +
		strings.ReplaceAll(rest, "DIR", e.dir)
	write(t, e.path("exim.conf"), conf)
	e.argv = []string{bin, "-C", e.path("exim.conf"), "-bdf", "-q10s"}
	return e
}

const eximMain = `exim_path = BIN
exim_user = Debian-exim
exim_group = Debian-exim
primary_hostname = mx1.example.org
spool_directory = DIR/spool
log_file_path = DIR/%s.log
pid_file_path = DIR/exim.pid
keep_environment =
local_interfaces = 127.0.0.1
daemon_smtp_ports = PORT
message_size_limit = 100M
acl_smtp_rcpt = rcpt
acl_smtp_mail = mail
queue_only = false
queue_only_load = 1000
`

const eximRCPT = `  deny message = no such user
       local_parts = bad
  accept
`

const eximPrimary = `begin acl
mail:
  accept
rcpt:
` + eximRCPT + `begin routers
all:
  driver = accept
  local_parts = ! nobody
  transport = box
begin transports
box:
  driver = appendfile
  directory = DIR/mail
  maildir_format
  create_directory
  user = Debian-exim
  return_path_add = false
`

const eximRelay = `begin acl
mail:
  accept
rcpt:
  accept
begin routers
all:
  driver = manualroute
  transport = out
  route_list = * 127.0.0.1
  self = send
begin transports
out:
  driver = smtp
  port = PORT
  hosts_require_tls = *
  hosts_try_chunking = *
begin retry
* * F,1h,1m
`

// Send gives it a message, with LF line ends, and returns when it was sent on, or is to be tried again.
func (e *Exim) Send(content, from string, to ...string) {
	e.t.Helper()
	cmd := e.command(append([]string{e.argv[0], "-C", e.path("exim.conf"), "-odf", "-oi", "-f", from}, to...)...)
	cmd.Stdin = strings.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		e.t.Fatalf("exim: %v\n%s\n%s", err, out, e.Log())
	}
}

// Messages reads the Maildir. Newlines are as in a file: LF.
func (e *Exim) Messages() [][]byte { return Maildir(e.t, e.path("mail/new")) }

// Log is what it said and logged.
func (e *Exim) Log() string {
	main, _ := os.ReadFile(e.path("main.log"))
	reject, _ := os.ReadFile(e.path("reject.log"))
	return fmt.Sprintf("%s%s%s", e.server.Log(), main, reject)
}
