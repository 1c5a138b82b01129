package peer

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// OpenSMTPD is an OpenSMTPD of the test's own. It has its folders compiled in, so it runs in a mount namespace of its own.
type OpenSMTPD struct{ *server }

// NewOpenSMTPD makes a primary that puts mail for example.org into one folder; Start starts it. Settings are lines of
// smtpd.conf before its own.
func NewOpenSMTPD(t testing.TB, settings string) *OpenSMTPD {
	t.Helper()
	o := newOpenSMTPD(t)
	o.conf(settings + `
smtp max-message-size 100M
table users { "@example.org" = nobody }
action "in" mda "/bin/sh ` + o.dir + `/take" virtual <users>
match from any for domain "example.org" action "in"
`)
	write(t, o.path("take"), "f=$(mktemp "+o.dir+"/new/XXXXXXXXXX) && cat >$f && mv $f "+o.dir+"/mail\n")
	for _, name := range []string{"new", "mail"} {
		if err := os.Mkdir(o.path(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(o.path(name), mailUID, -1); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// NewOpenSMTPDRelay makes a sender: all that it takes goes to the relay, over TLS.
func NewOpenSMTPDRelay(t testing.TB, relay string) *OpenSMTPD {
	t.Helper()
	o := newOpenSMTPD(t)
	o.conf("action \"out\" relay host smtp+tls://" + relay + " tls no-verify\nmatch from any for any action \"out\"\n")
	return o
}

func newOpenSMTPD(t testing.TB) *OpenSMTPD {
	t.Helper()
	Require(t, "unshare")
	o := &OpenSMTPD{newServer(t)}
	o.root = true
	bin := program(t, "opensmtpd/usr/sbin/smtpd")
	helpers := filepath.Join(filepath.Dir(filepath.Dir(bin)), "libexec/opensmtpd")
	o.argv = []string{"unshare", "-m", "sh", "-c", `mount -t tmpfs x /var/spool && mount -t tmpfs x /var/lib && mount -t tmpfs x /run &&
mount -t tmpfs x /usr/libexec && ln -s ` + helpers + ` /usr/libexec/opensmtpd &&
mkdir -p /var/spool/smtpd /var/lib/opensmtpd/empty && chmod 711 /var/spool/smtpd && exec ` + bin + " -d -f " + o.path("smtpd.conf")}
	return o
}

func (o *OpenSMTPD) conf(rest string) {
	o.t.Helper()
	_, port, err := net.SplitHostPort(o.Addr)
	if err != nil {
		o.t.Fatal(err)
	}
	write(o.t, o.path("smtpd.conf"), "listen on 127.0.0.1 port "+port+" hostname mx1.example.org\n"+rest)
}

// Messages reads what was delivered. Newlines are as in a file: LF.
func (o *OpenSMTPD) Messages() [][]byte { return Maildir(o.t, o.path("mail")) }
