package peer

import (
	"net"
	"testing"
)

// Spamd is SpamAssassin's spamd with Debian's rules and local tests only: it asks nobody.
type Spamd struct{ *server }

// NewSpamd writes the configuration; Start starts it. Settings are lines of local.cf: "required_score 3",
// "trusted_networks 192.0.2.1".
func NewSpamd(t testing.TB, settings string) *Spamd {
	t.Helper()
	Require(t, "spamd")
	s := &Spamd{server: newServer(t)}
	s.prepare("cp", "-r", "/etc/spamassassin", s.path("site"))
	write(t, s.path("site/local.cf"), "use_bayes 0\nuse_learner 0\n"+settings)
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	s.argv = []string{"spamd", "--local", "--listen=" + host, "--port=" + port, "--syslog=stderr", "--nouser-config", "--max-children=2",
		"--siteconfigpath=" + s.path("site"), "--helper-home-dir=" + s.dir, "--allowed-ips=127.0.0.1"}
	return s
}
