package inbound

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/internal/testkit/peer"
)

// peerServer is a server for real senders on loopback, which are strangers to it.
func peerServer(t *testing.T, change func(*Deps)) *running {
	t.Helper()
	return start(t, testConfig(t), change)
}

// await waits until n messages were spooled. Real processes give nothing else to wait for.
func (r *running) await(t *testing.T, n int, log func() string) []spooled {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); len(r.spool.all()) < n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d messages, want %d\n%s\n%s", len(r.spool.all()), n, r.log, log())
		}
	}
	return r.spool.all()
}

// runPeer runs a program to its end.
func runPeer(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// checkDelivered wants a message over TLS with this body. Senders add header fields of their own.
func checkDelivered(t *testing.T, m spooled, proto, body string) {
	t.Helper()
	if m.env.Peer.TLS == nil || m.env.Peer.Proto != proto {
		t.Errorf("%s: proto %s, TLS %v; want %s", m.env.ID, m.env.Peer.Proto, m.env.Peer.TLS, proto)
	}
	if body = "\r\n\r\n" + body; !strings.HasSuffix(m.content, body) {
		t.Errorf("%s: content does not end with the %d octets that were sent: %s", m.env.ID, len(body), firstDifference(m.content, body))
	}
}

// firstDifference looks from the end, as the beginning has trace fields.
func firstDifference(got, want string) string {
	n := 0
	for n < min(len(got), len(want)) && got[len(got)-1-n] == want[len(want)-1-n] {
		n++
	}
	return fmt.Sprintf("%.60q, want %.60q", got[max(0, len(got)-n-30):], want[max(0, len(want)-n-30):])
}

// largeBody has lines that begin with dots, and is larger than what is held in memory.
func largeBody() string {
	var b strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&b, ".line %d\r\n.\r\n..\r\n", i)
	}
	return b.String()
}

// submit gives a message to another server, for it to send on.
func submit(t *testing.T, addr, from string, to []string, params, content string) {
	t.Helper()
	c := dial(t, addr)
	c.want("220")
	c.say("EHLO submitter.example.net", "250")
	c.say("MAIL FROM:<"+from+">"+params, "250")
	for _, r := range to {
		c.say("RCPT TO:<"+r+">", "250")
	}
	c.say("DATA", "354")
	c.send(strings.ReplaceAll("\r\n"+content, "\r\n.", "\r\n..")[2:])
	c.say(".", "250")
	c.say("QUIT", "221")
}

// startWithTLS adds the process that Postfix's TLS needs.
func startWithTLS(t *testing.T, p *peer.Postfix) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(p.ConfigDir(), "master.cf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("tlsmgr unix - - n 1000? 1 tlsmgr\n"); err != nil {
		t.Fatal(err)
	}
	p.Start()
}

func TestPostfixDelivers(t *testing.T) {
	peer.Require(t)
	r := peerServer(t, nil)
	p := peer.NewPostfix(t, map[string]string{
		"relayhost": "[127.0.0.1]:" + port(r.addr()), "smtp_tls_security_level": "encrypt", "smtputf8_enable": "yes",
		"smtp_tls_loglevel": "1", "virtual_mailbox_domains": "elsewhere.example",
	})
	startWithTLS(t, p)
	submit(t, p.Addr, "bob@example.net", []string{"alice@example.org"}, "", "Subject: large\r\n\r\n"+largeBody())
	submit(t, p.Addr, "jürgen@example.net", []string{"älice@example.org"}, " SMTPUTF8 BODY=8BITMIME", "Subject: grüße\r\n\r\nx\r\n")
	messages := r.await(t, 2, p.Log)
	slices.SortFunc(messages, func(a, b spooled) int { return len(b.content) - len(a.content) })
	checkDelivered(t, messages[0], "ESMTPS", largeBody())
	checkDelivered(t, messages[1], "UTF8SMTPS", "x\r\n")
	if got := messages[1].env; got.From.Local != "jürgen" || got.Rcpts[0].Addr.Local != "älice" || !got.Params.SMTPUTF8 {
		t.Errorf("envelope %+v", got)
	}
}

// Many connections at once, each of one message, over TLS.
func TestPostfixDeliversInParallel(t *testing.T) {
	peer.Require(t)
	r := peerServer(t, nil)
	p := peer.NewPostfix(t, map[string]string{
		"relayhost": "[127.0.0.1]:" + port(r.addr()), "smtp_tls_security_level": "encrypt",
		"virtual_mailbox_domains": "elsewhere.example", "smtp_destination_recipient_limit": "1",
	})
	startWithTLS(t, p)
	const n = 30
	var to []string
	for i := range n {
		to = append(to, fmt.Sprintf("user%d@example.org", i))
	}
	submit(t, p.Addr, "bob@example.net", to, "", "Subject: x\r\n\r\nx\r\n")
	messages := r.await(t, n, p.Log)
	seen := map[string]bool{}
	for _, m := range messages {
		checkDelivered(t, m, "ESMTPS", "x\r\n")
		for _, rcpt := range m.env.Rcpts {
			seen[rcpt.Addr.Local] = true
		}
	}
	if len(seen) != n {
		t.Errorf("%d of %d recipients", len(seen), n)
	}
}

func TestEximDeliversInChunks(t *testing.T) {
	peer.Require(t)
	r := peerServer(t, nil)
	e := peer.NewEximRelay(t, r.addr())
	body := largeBody()
	e.Send("Subject: large\n\n"+strings.ReplaceAll(body, "\r\n", "\n"), "bob@example.net", "alice@example.org", "carol@example.org")
	messages := r.await(t, 1, e.Log)
	checkDelivered(t, messages[0], "ESMTPS", body)
	if len(messages[0].env.Rcpts) != 2 {
		t.Errorf("recipients %v", messages[0].env.Rcpts)
	}
	if !strings.Contains(e.Log(), " K ") {
		t.Errorf("Exim did not use CHUNKING:\n%s", e.Log())
	}
}

func TestOpenSMTPDDelivers(t *testing.T) {
	peer.Require(t)
	r := peerServer(t, nil)
	o := peer.NewOpenSMTPDRelay(t, r.addr())
	o.Start()
	submit(t, o.Addr, "bob@example.net", []string{"alice@example.org"}, "", "Subject: large\r\n\r\n"+largeBody())
	messages := r.await(t, 1, o.Log)
	checkDelivered(t, messages[0], "ESMTPS", largeBody())
}

func TestSwaksDelivers(t *testing.T) {
	peer.Require(t, "swaks")
	r := peerServer(t, nil)
	for _, args := range [][]string{{"--tls"}, {"--pipeline"}, {"--tls", "--pipeline"}} {
		args = append(args, "--server", "127.0.0.1", "--port", port(r.addr()), "--from", "bob@example.net",
			"--to", "alice@example.org,carol@example.com", "--body", "hello\n.dot\n")
		runPeer(t, "", "swaks", args...)
	}
	messages := r.spool.all()
	if len(messages) != 3 {
		t.Fatalf("%d messages, want 3", len(messages))
	}
	for _, i := range []int{0, 2} {
		checkDelivered(t, messages[i], "ESMTPS", "hello\r\n.dot\r\n\r\n\r\n")
	}
}

func TestFetchmailAsksForMail(t *testing.T) {
	peer.Require(t, "fetchmail")
	asked := make(chan string, 10)
	cfg := testConfig(t)
	cfg.ETRN.Networks = DefaultConfig().Trusted
	r := start(t, cfg, func(d *Deps) {
		d.Recovered = func(_ context.Context, domain string) error {
			asked <- domain
			return nil
		}
	})
	rc := filepath.Join(t.TempDir(), "rc")
	text := fmt.Sprintf("set no bouncemail\npoll 127.0.0.1 protocol ETRN service %s fetchdomains example.org sslproto ''\n", port(r.addr()))
	if err := os.WriteFile(rc, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out := runPeer(t, "", "fetchmail", "-f", rc, "--nodetach", "-v", "--pidfile", rc+".pid")
	select {
	case got := <-asked:
		if got != "example.org" {
			t.Errorf("asked for %s", got)
		}
	default:
		t.Errorf("nobody asked:\n%s\n%s", out, r.log)
	}
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}
