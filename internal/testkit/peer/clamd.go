package peer

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"testing"
)

// Clamd is ClamAV's daemon with two signatures: Eicar-Test-Signature, whose content is Eicar, and Understudy.Test of
// ClamdMarker anywhere in a message.
type Clamd struct {
	*server
	Socket string // a unix socket that it listens on besides
}

// ClamdMarker is found as Understudy.Test.UNOFFICIAL.
const ClamdMarker = "understudy test signature: not a virus at all"

// Eicar is the test file that every virus scanner finds. It is put together here so that scanners don't find this file.
func Eicar() string {
	return `X5O!P%@AP[4\PZX54(P^)7CC)7}` + `$EICAR-STANDARD-` + `ANTIVIRUS-TEST-FILE!$H+H*`
}

// NewClamd writes configuration and signatures; Start starts it. Settings are lines of clamd.conf.
func NewClamd(t testing.TB, settings ...string) *Clamd {
	t.Helper()
	Require(t, "clamd")
	c := &Clamd{server: newServer(t)}
	c.Socket = c.path("clamd.sock")
	eicar := Eicar()
	write(t, c.path("sigs/eicar.hdb"), fmt.Sprintf("%x:%d:Eicar-Test-Signature\n", md5.Sum([]byte(eicar)), len(eicar)))
	write(t, c.path("sigs/test.ndb"), "Understudy.Test:0:*:"+hex.EncodeToString([]byte(ClamdMarker))+"\n")
	host, port, err := net.SplitHostPort(c.Addr)
	if err != nil {
		t.Fatal(err)
	}
	conf := []string{"Foreground yes", "DatabaseDirectory " + c.path("sigs"), "TCPSocket " + port, "TCPAddr " + host,
		"LocalSocket " + c.Socket, "TemporaryDirectory " + c.dir, "LogTime yes", "MaxThreads 2"}
	write(t, c.path("clamd.conf"), strings.Join(append(conf, settings...), "\n")+"\n")
	c.argv = []string{"clamd", "--config-file=" + c.path("clamd.conf")}
	return c
}
