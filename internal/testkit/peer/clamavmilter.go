package peer

import (
	"net"
	"strings"
	"testing"
)

// ClamAVMilter is ClamAV's milter, which asks a clamd and refuses what that finds.
type ClamAVMilter struct{ *server }

// NewClamAVMilter writes the configuration for a clamd that runs; Start starts it. Settings are lines of
// clamav-milter.conf.
func NewClamAVMilter(t testing.TB, clamd *Clamd, settings ...string) *ClamAVMilter {
	t.Helper()
	Require(t, "clamav-milter")
	m := &ClamAVMilter{newServer(t)}
	host, port, err := net.SplitHostPort(m.Addr)
	if err != nil {
		t.Fatal(err)
	}
	conf := []string{"Foreground yes", "MilterSocket inet:" + port + "@" + host, "ClamdSocket tcp:" + clamd.Addr,
		"TemporaryDirectory " + m.dir, "OnInfected Reject", "OnFail Defer", "RejectMsg found %v", "LogInfected Full"}
	write(t, m.path("clamav-milter.conf"), strings.Join(append(conf, settings...), "\n")+"\n")
	m.argv = []string{"clamav-milter", "--config-file=" + m.path("clamav-milter.conf")}
	return m
}
