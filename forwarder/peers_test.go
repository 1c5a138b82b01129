package forwarder

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/internal/testkit/peer"
)

// peersDir is where CI unpacks the mail servers that can't be installed beside Postfix.
func peersDir() string {
	if dir := os.Getenv("UNDERSTUDY_PEERS_DIR"); dir != "" {
		return dir
	}
	return "/var/tmp/understudy-peers"
}

// program is one of theirs.
func program(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(peersDir(), name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("UNDERSTUDY_PEERS is set: %v", err)
	}
	return path
}

// process runs a server until the end of the test, once it listens at addr. What it says is in the returned buffer.
func process(t *testing.T, addr string, name string, args ...string) *lines {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // lets it end its children
	cmd.WaitDelay = 10 * time.Second
	out := &lines{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	ended.Go(func() { cmd.Wait() })
	t.Cleanup(func() {
		stop()
		ended.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return out
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen: %v\n%s", name, err, out.b.String())
		}
	}
}

func at(t *testing.T, addr string) []mta.Primary {
	t.Helper()
	p, err := mta.ParsePrimary(addr)
	if err != nil {
		t.Fatal(err)
	}
	return []mta.Primary{p}
}

// sized makes a message of about n octets with a number in it to know it by, and lines that begin with dots.
func sized(n, number int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Subject: number %d\r\n\r\n", number)
	r := rand.New(rand.NewPCG(uint64(number), uint64(n)))
	for b.Len() < n {
		line := make([]byte, min(r.IntN(76), n-b.Len())+1)
		for i := range line {
			line[i] = ". abcdefghijklmnopqrstuvwxyz"[r.IntN(28)]
		}
		b.Write(line)
		b.WriteString("\r\n")
	}
	return b.String()
}

var sizes = []int{0, 1, 100, 4 << 10, 70 << 10, 300 << 10, 5 << 20, 50 << 20}

// sendSizes hands one message of each size over, between small ones, and returns them all.
func sendSizes(t *testing.T, w *world, rcpt string) []string {
	t.Helper()
	var all []string
	add := func(content string) {
		all = append(all, content)
		w.put(content, rcpt)
	}
	for i, n := range sizes {
		add(sized(n, 1000*i))
		for k := range 10 {
			add(sized(200, 1000*i+k+1))
		}
	}
	w.start()
	for deadline := time.Now().Add(2 * time.Minute); w.left() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d left\n%.3000s", w.left(), w.log.b.String())
		}
	}
	return all
}

// intact wants each message once among what was delivered: with fields of the server's above it, and LF line ends.
func intact(t *testing.T, delivered [][]byte, want []string) {
	t.Helper()
	if len(delivered) != len(want) {
		t.Errorf("%d messages, want %d", len(delivered), len(want))
	}
	byNumber := map[string][]byte{}
	for _, m := range delivered {
		i := bytes.Index(m, []byte("Subject: number "))
		if i < 0 {
			t.Errorf("not ours: %.200q", m)
			continue
		}
		subject, _, _ := bytes.Cut(m[i:], []byte("\n"))
		if byNumber[string(subject)] != nil {
			t.Errorf("%s came twice", subject)
		}
		byNumber[string(subject)] = m[i:]
	}
	for _, c := range want {
		lf := strings.ReplaceAll(c, "\r\n", "\n")
		subject, _, _ := strings.Cut(lf, "\n")
		got := byNumber[subject]
		_, gotBody, _ := strings.Cut(string(got), "\n\n") // some add a Date
		_, body, _ := strings.Cut(lf, "\n\n")
		if strings.TrimRight(gotBody, "\n") != strings.TrimRight(body, "\n") {
			t.Errorf("%s changed: %d octets, want %d", subject, len(gotBody), len(body))
		}
	}
}

func TestPostfixGetsEverySizeIntact(t *testing.T) {
	for _, chunking := range []bool{true, false} {
		t.Run(fmt.Sprintf("chunking=%v", chunking), func(t *testing.T) {
			set := map[string]string{}
			if !chunking {
				set["smtpd_discard_ehlo_keywords"] = "chunking"
			}
			p := peer.NewPostfix(t, set)
			p.Start()
			w := newWorld(t, "example.org", at(t, p.Addr))
			want := sendSizes(t, w, "a@example.org")
			w.eventually("local delivery", func() bool { return p.Delivered() >= len(want) })
			intact(t, p.Messages(), want)
		})
	}
}

func TestPostfixSeesTheTrueClient(t *testing.T) {
	p := peer.NewPostfix(t, map[string]string{"smtpd_authorized_xclient_hosts": "127.0.0.1"})
	p.Start()
	w := newWorld(t, "example.org", at(t, p.Addr))
	for i := range 60 {
		w.n = 1000 + i
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i%6 + 1)}), uint16(2000+i))
		env := &mta.Envelope{ID: mta.NewID(time.Now()), Received: time.Now(), From: mta.Path{Local: "s", Domain: "example.net"},
			Peer:  mta.Peer{Addr: client, Helo: fmt.Sprintf("h%d.example.net", i%6+1), Name: fmt.Sprintf("rdns%d.example.net", i%6+1), Proto: "ESMTPS"},
			Rcpts: []mta.Recipient{{Addr: mta.Path{Local: "a", Domain: "example.org"}, Dest: "example.org"}}}
		w.putEnv(env, sized(100, i))
	}
	w.start()
	w.eventually("delivery", func() bool { return p.Delivered() == 60 })
	for _, m := range p.Messages() {
		_, rest, _ := strings.Cut(string(m), "Subject: number ")
		var n int
		fmt.Sscanf(rest, "%d", &n)
		want := fmt.Sprintf("from h%d.example.net (rdns%d.example.net [198.51.100.%d])", n%6+1, n%6+1, n%6+1)
		if !strings.Contains(string(m), want) {
			t.Errorf("no %q in %.500s", want, m)
		}
	}
}

func TestPostfixRefusesEveryThirdRecipient(t *testing.T) {
	p := peer.NewPostfix(t, map[string]string{"smtpd_recipient_restrictions": "check_recipient_access inline:{bad@example.org=REJECT}, permit_mynetworks, reject"})
	p.Start()
	w := newWorld(t, "example.org", at(t, p.Addr))
	w.cfg.Breaker.Share = 0.9
	var ids []mta.ID
	for i := range 100 {
		ids = append(ids, w.put(sized(100, i), "a@example.org", "b@example.org", "bad@example.org"))
	}
	w.start()
	w.eventually("an outcome of each", func() bool {
		for _, id := range ids {
			if i := w.items(id); len(i) != 1 || !i[0].Held {
				return false
			}
		}
		return true
	})
	w.eventually("local delivery", func() bool { return p.Delivered() == 200 })
	for _, id := range ids {
		for _, r := range w.items(id)[0].Rcpts {
			want := mta.Delivered
			if r.Addr.Local == "bad" {
				want = mta.Quarantined
			}
			if r.Outcome != want {
				t.Errorf("%s: %s, want %s (%s)", r.Addr, r.Outcome, want, r.Reply)
			}
		}
	}
}

// exim runs an Exim that puts all mail for example.org into one Maildir.
func exim(t *testing.T, settings string) (addr string, delivered func() [][]byte) {
	t.Helper()
	peer.Require(t)
	bin := program(t, "exim/usr/sbin/exim4")
	dir := peer.Dir(t)
	addr = peer.FreeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(dir, "exim.conf")
	text := fmt.Sprintf(`exim_path = %[1]s
exim_user = Debian-exim
exim_group = Debian-exim
primary_hostname = mx1.example.org
spool_directory = %[2]s/spool
log_file_path = %[2]s/%%s.log
pid_file_path = %[2]s/exim.pid
keep_environment =
local_interfaces = 127.0.0.1
daemon_smtp_ports = %[3]s
message_size_limit = 100M
acl_smtp_rcpt = rcpt
acl_smtp_mail = mail
queue_only = false
queue_only_load = 1000
%[4]s
begin acl
mail:
  accept
rcpt:
  deny message = no such user
       local_parts = bad
  accept
begin routers
all:
  driver = accept
  transport = box
begin transports
box:
  driver = appendfile
  directory = %[2]s/mail
  maildir_format
  create_directory
  user = Debian-exim
  return_path_add = false
`, bin, dir, port, settings)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chown", "Debian-exim", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	process(t, addr, bin, "-C", conf, "-bdf", "-q10s")
	return addr, func() [][]byte { return maildir(t, filepath.Join(dir, "mail/new")) }
}

func maildir(t *testing.T, dir string) [][]byte {
	var all [][]byte
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

func TestEximGetsEverySizeIntact(t *testing.T) {
	for _, settings := range []string{"chunking_advertise_hosts = *", "chunking_advertise_hosts =", "pipelining_advertise_hosts ="} {
		t.Run(settings, func(t *testing.T) {
			addr, delivered := exim(t, settings)
			w := newWorld(t, "example.org", at(t, addr))
			want := sendSizes(t, w, "a@example.org")
			w.eventually("local delivery", func() bool { return len(delivered()) >= len(want) })
			intact(t, delivered(), want)
		})
	}
}

func TestEximRefusesEveryThirdRecipientAndSessionsAreLimited(t *testing.T) {
	addr, delivered := exim(t, "smtp_accept_max_per_connection = 25\nchunking_advertise_hosts = *")
	w := newWorld(t, "example.org", at(t, addr))
	w.cfg.Breaker.Share = 0.9
	w.cfg.Sessions = 2
	var ids []mta.ID
	for i := range 100 {
		ids = append(ids, w.put(sized(100, i), "a@example.org", "bad@example.org", "b@example.org"))
	}
	w.start()
	w.eventually("an outcome of each", func() bool {
		for _, id := range ids {
			if i := w.items(id); len(i) != 1 || !i[0].Held {
				return false
			}
		}
		return true
	})
	w.eventually("local delivery", func() bool { return len(delivered()) >= 100 })
	if w.log.has("breaker") {
		t.Error("the breaker opened")
	}
}

func TestPostfixBehindPROXYSeesTheTrueClient(t *testing.T) {
	p := peer.NewPostfix(t, map[string]string{"smtpd_upstream_proxy_protocol": "haproxy", "smtpd_recipient_restrictions": "permit"})
	p.Start()
	w := newWorld(t, "example.org", at(t, p.Addr))
	w.domains = map[string]Domain{"example.org": {ClientIdentity: "proxy_v2"}}
	w.from("198.51.100.7:2525", "h.example.net", "a@example.org")
	w.from("127.0.0.1:2525", "inside", "a@example.org")
	w.start()
	w.eventually("delivery", func() bool { return p.Delivered() == 2 })
	told, ours := 0, 0
	for _, m := range p.Messages() {
		if bytes.Contains(m, []byte("from h.example.net (unknown [198.51.100.7])")) {
			told++
		}
		if bytes.Contains(m, []byte("from mx2.example.org (")) && bytes.Contains(m, []byte("[127.0.0.1])")) {
			ours++
		}
	}
	if told != 1 || ours != 1 {
		t.Errorf("told %d, ours %d: %q", told, ours, p.Messages())
	}
}

// OpenSMTPD has its folders compiled in, so it runs in a mount namespace of its own.
func TestOpenSMTPDGetsEverySizeIntact(t *testing.T) {
	peer.Require(t, "unshare")
	bin := program(t, "opensmtpd/usr/sbin/smtpd")
	dir, addr := peer.Dir(t), peer.FreeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(dir, "smtpd.conf")
	text := fmt.Sprintf(`listen on 127.0.0.1 port %s hostname mx1.example.org
smtp max-message-size 100M
table users { "@example.org" = nobody }
action "in" mda "/bin/sh %s/take" virtual <users>
match from any for domain "example.org" action "in"
`, port, dir)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	take := fmt.Sprintf("f=$(mktemp %[1]s/new/XXXXXXXXXX) && cat >$f && mv $f %[1]s/mail\n", dir)
	if err := os.WriteFile(filepath.Join(dir, "take"), []byte(take), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"new", "mail"} {
		if out, err := exec.Command("install", "-d", "-o", "nobody", filepath.Join(dir, name)).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	script := `mount -t tmpfs x /var/spool && mount -t tmpfs x /var/lib && mount -t tmpfs x /run && mount -t tmpfs x /usr/libexec &&
ln -s ` + filepath.Join(peersDir(), "opensmtpd/usr/libexec/opensmtpd") + ` /usr/libexec/opensmtpd &&
mkdir -p /var/spool/smtpd /var/lib/opensmtpd/empty && chmod 711 /var/spool/smtpd && exec ` + bin + ` -d -f ` + conf
	out := process(t, addr, "unshare", "-m", "sh", "-c", script)
	w := newWorld(t, "example.org", at(t, addr))
	want := sendSizes(t, w, "a@example.org")
	delivered := func() [][]byte { return maildir(t, filepath.Join(dir, "mail")) }
	for deadline := time.Now().Add(time.Minute); len(delivered()) < len(want); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d\n%.3000s", len(delivered()), len(want), out.b.String())
		}
	}
	intact(t, delivered(), want)
}

func TestPostfixsLMTPSinkTakesMail(t *testing.T) {
	peer.Require(t, "smtp-sink")
	addr := peer.FreeAddr(t)
	process(t, addr, "smtp-sink", "-u", "nobody", "-L", addr, "100")
	w := newWorld(t, "example.org", at(t, addr))
	w.domains = map[string]Domain{"example.org": {LMTP: true}}
	for i := range 200 {
		w.put(sized(2000, i), "a@example.org", "b@example.org")
	}
	w.start()
	w.eventually("an empty spool", func() bool { return w.left() == 0 })
}
