package peer

import (
	"fmt"
	"net"
	"testing"
)

// OpenDKIM is an OpenDKIM of the test's own: a milter that verifies and refuses a bad signature. It asks no DNS.
type OpenDKIM struct{ *server }

// NewOpenDKIM writes the configuration; Start starts it. Keys are the TXT records ("v=DKIM1; p=…") by the names under
// which they would be in the DNS ("sel._domainkey.example.net"); settings are lines of opendkim.conf.
func NewOpenDKIM(t testing.TB, keys map[string]string, settings string) *OpenDKIM {
	t.Helper()
	Require(t, "opendkim")
	o := &OpenDKIM{server: newServer(t)}
	var txt string
	for name, record := range keys {
		txt += name + " " + record + "\n"
	}
	write(t, o.path("keys"), txt)
	host, port, err := net.SplitHostPort(o.Addr)
	if err != nil {
		t.Fatal(err)
	}
	write(t, o.path("opendkim.conf"), fmt.Sprintf(opendkimConf, port, host, o.path("keys"), o.path("opendkim.pid"), o.dir)+settings)
	o.argv = []string{"opendkim", "-f", "-x", o.path("opendkim.conf")}
	return o
}

const opendkimConf = `Socket inet:%s@%s
Mode v
AuthservID mx2.example.org
TestPublicKeys %s
PidFile %s
TemporaryDirectory %s
Syslog no
AutoRestart no
On-BadSignature reject
`
