package peer

import (
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Postfix is a Postfix of the test's own. As a primary it takes mail for example.org and puts it into one Maildir.
type Postfix struct {
	Addr string // where its smtpd listens, also while it is stopped
	dir  string
	t    testing.TB
}

// mailUID is the unprivileged user (nobody) that owns the Maildir.
const mailUID = 65534

// NewPostfix writes the configuration; Start starts it. Settings are put into main.cf over the ones that make a
// primary for example.org: a smarthost is {"relayhost": "[127.0.0.1]:2525"}.
func NewPostfix(t testing.TB, settings map[string]string) *Postfix {
	t.Helper()
	Require(t, "postfix", "postconf", "postqueue")
	p := &Postfix{Addr: FreeAddr(t), dir: Dir(t), t: t}
	main := map[string]string{
		"compatibility_level":      "3.6",
		"myhostname":               "mx1.example.org",
		"mydestination":            "",
		"inet_interfaces":          "127.0.0.1",
		"inet_protocols":           "ipv4",
		"mynetworks":               "127.0.0.0/8",
		"queue_directory":          p.path("queue"),
		"data_directory":           p.path("data"),
		"maillog_file":             p.path("log"),
		"maillog_file_prefixes":    p.dir,
		"virtual_mailbox_domains":  "example.org",
		"virtual_mailbox_base":     p.dir,
		"virtual_mailbox_maps":     "static:mail/",
		"virtual_minimum_uid":      "1",
		"virtual_uid_maps":         fmt.Sprintf("static:%d", mailUID),
		"virtual_gid_maps":         fmt.Sprintf("static:%d", mailUID),
		"message_size_limit":       "104857600",
		"mailbox_size_limit":       "0",
		"virtual_mailbox_limit":    "0",
		"alias_maps":               "",
		"alias_database":           "",
		"smtpd_tls_security_level": "none",
		"smtpd_peername_lookup":    "no",
		"smtp_dns_support_level":   "disabled",
		"smtp_host_lookup":         "native",
	}
	maps.Copy(main, settings)
	var cf strings.Builder
	for _, k := range slices.Sorted(maps.Keys(main)) {
		fmt.Fprintf(&cf, "%s = %s\n", k, main[k])
	}
	write(t, p.path("etc/main.cf"), cf.String())
	write(t, p.path("etc/master.cf"), p.masterCF())
	for _, d := range []struct {
		name string
		uid  int
	}{{"queue", 0}, {"data", lookupUID(t, "postfix")}, {"mail", mailUID}} {
		if err := os.MkdirAll(p.path(d.name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(p.path(d.name), d.uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(p.Stop)
	return p
}

func (p *Postfix) path(name string) string { return filepath.Join(p.dir, name) }

// masterCF lists the services that a primary needs, none in a chroot.
func (p *Postfix) masterCF() string {
	services := `
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
`
	return p.Addr + " inet n - n - - smtpd\n" + services[1:]
}

// Start starts it and returns when it takes connections.
func (p *Postfix) Start() {
	p.t.Helper()
	p.command("start")
	deadline := time.Now().Add(20 * time.Second)
	for {
		c, err := net.Dial("tcp", p.Addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("postfix does not listen at %s: %v\n%s", p.Addr, err, p.Log())
		}
		time.Sleep(20 * time.Millisecond) // a real process: nothing to wait on but its port
	}
}

// Stop stops it if it runs, and returns when it is gone.
func (p *Postfix) Stop() {
	p.t.Helper()
	if p.pid() == 0 {
		return
	}
	p.command("stop")
	for deadline := time.Now().Add(20 * time.Second); p.pid() != 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("postfix does not stop\n%s", p.Log())
		}
	}
}

// Freeze stops its master process and all its children in their tracks (SIGSTOP), so that connections hang; Thaw lets them go on.
func (p *Postfix) Freeze() { p.signal(syscall.SIGSTOP) }

// Thaw ends a Freeze.
func (p *Postfix) Thaw() { p.signal(syscall.SIGCONT) }

func (p *Postfix) signal(sig syscall.Signal) {
	p.t.Helper()
	pid := p.pid()
	if pid == 0 {
		p.t.Fatal("postfix does not run")
	}
	if err := syscall.Kill(-pid, sig); err != nil { // master leads its own process group
		p.t.Fatal(err)
	}
}

// Reconfigure sets main.cf parameters ("name=value"); they hold from the next Start, or now if it runs.
func (p *Postfix) Reconfigure(settings ...string) {
	p.t.Helper()
	args := append([]string{"-c", p.path("etc"), "-e"}, settings...)
	if out, err := exec.Command("postconf", args...).CombinedOutput(); err != nil {
		p.t.Fatalf("postconf: %v\n%s", err, out)
	}
	if p.pid() != 0 {
		p.command("reload")
	}
}

func (p *Postfix) command(verb string) {
	p.t.Helper()
	out, err := exec.Command("postfix", "-c", p.path("etc"), verb).CombinedOutput()
	if err != nil {
		p.t.Fatalf("postfix %s: %v\n%s\n%s", verb, err, out, p.Log())
	}
}

// pid is its master's process id, 0 if it does not run.
func (p *Postfix) pid() int {
	b, err := os.ReadFile(p.path("queue/pid/master.pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || syscall.Kill(pid, 0) != nil {
		return 0
	}
	return pid
}

// Log is what it logged.
func (p *Postfix) Log() string {
	b, _ := os.ReadFile(p.path("log"))
	return string(b)
}

// Flush makes it try its whole queue now.
func (p *Postfix) Flush() {
	p.t.Helper()
	if out, err := exec.Command("postqueue", "-c", p.path("etc"), "-f").CombinedOutput(); err != nil {
		p.t.Fatalf("postqueue -f: %v\n%s", err, out)
	}
}

// ConfigDir is what -c of Postfix's commands wants.
func (p *Postfix) ConfigDir() string { return p.path("etc") }

// Delivered is the number of messages in the Maildir.
func (p *Postfix) Delivered() int {
	entries, _ := os.ReadDir(p.path("mail/new"))
	return len(entries)
}

// Messages reads the Maildir. Newlines are as in a file: LF.
func (p *Postfix) Messages() [][]byte {
	p.t.Helper()
	return Maildir(p.t, p.path("mail/new"))
}

func lookupUID(t testing.TB, name string) int {
	t.Helper()
	out, err := exec.Command("id", "-u", name).Output()
	if err != nil {
		t.Fatalf("user %s: %v", name, err)
	}
	uid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	return uid
}
