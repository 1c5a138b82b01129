package peer

import (
	"fmt"
	"maps"
	"testing"
)

// Rspamd is an rspamd of the test's own, with Debian's rules, no Redis, and no DNS unless it is given one. Addr is its
// normal worker (HTTP).
type Rspamd struct {
	*server
	MilterAddr     string // its proxy, as a milter
	ControllerAddr string
}

// NewRspamd writes the configuration; Start starts it. Files are put below its configuration folder and come after its
// own: "local.d/actions.conf", "rspamd.local.lua".
func NewRspamd(t testing.TB, files map[string]string) *Rspamd {
	t.Helper()
	Require(t, "rspamd")
	r := &Rspamd{server: newServer(t), MilterAddr: FreeAddr(t), ControllerAddr: FreeAddr(t)}
	all := map[string]string{
		// It takes half a minute to start where it compiles all rules and suffixes first, and asks for hosts of its makers.
		"override.d/options.inc":        fmt.Sprintf("disable_hyperscan = true;\nurl_tld = %q;\n", r.path("etc/tlds")),
		"tlds":                          "com\nnet\norg\ntest\n",
		"local.d/fuzzy_check.conf":      "enabled = false;\n",
		"local.d/logging.inc":           "type = \"console\";\nlevel = \"info\";\n",
		"local.d/options.inc":           "dns {\n nameserver = [\"127.0.0.1:1\"];\n timeout = 0.2s;\n retransmits = 1;\n}\n",
		"local.d/worker-normal.inc":     fmt.Sprintf("bind_socket = %q;\ncount = 1;\n", r.Addr),
		"local.d/worker-controller.inc": fmt.Sprintf("bind_socket = %q;\ncount = 1;\n", r.ControllerAddr),
		"local.d/worker-proxy.inc": fmt.Sprintf(
			"bind_socket = %q;\nmilter = yes;\ntimeout = 30s;\nupstream \"local\" {\n default = yes;\n self_scan = yes;\n}\n", r.MilterAddr),
	}
	maps.Copy(all, files)
	for name, content := range all {
		write(t, r.path("etc/"+name), content)
	}
	r.prepare("mkdir", r.path("db"), r.path("tmp"))
	r.argv = []string{"rspamd", "-f", "-i", "-c", "/etc/rspamd/rspamd.conf"}
	for _, v := range [][2]string{{"LOCAL_CONFDIR", "etc"}, {"DBDIR", "db"}, {"RUNDIR", "db"}, {"LOGDIR", "db"}} {
		r.argv = append(r.argv, "--var="+v[0]+"="+r.path(v[1]))
	}
	return r
}

// Start starts it and returns when all its workers take connections.
func (r *Rspamd) Start() {
	r.t.Helper()
	r.server.Start()
	r.listening(r.MilterAddr)
	r.listening(r.ControllerAddr)
}
