package main

import (
	"bufio"
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/testkit"
)

// dialogue plays lines against the server: "-> text" is sent, "<- code" must be answered. What stands in {braces} is
// repeated: "-> {Received: x|100}" sends that line a hundred times.
func dialogue(t *testing.T, addr, lines string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	text := textproto.NewConn(c)
	for line := range strings.Lines(lines) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "-> "):
			if err := say(text.Writer.W, line[3:]); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		case strings.HasPrefix(line, "<- "):
			code, msg, err := text.ReadResponse(0)
			if code == 0 {
				t.Fatalf("%s: %v", line, err)
			}
			if got := fmt.Sprintf("%d %s", code, msg); !strings.HasPrefix(got, line[3:]) {
				t.Fatalf("got %q, want %q", got, line[3:])
			}
		}
	}
}

func say(w *bufio.Writer, line string) error {
	n := 1
	if rest, ok := strings.CutPrefix(line, "{"); ok {
		if _, err := fmt.Sscanf(rest[strings.LastIndexByte(rest, '|')+1:], "%d}", &n); err != nil {
			return err
		}
		line = rest[:strings.LastIndexByte(rest, '|')]
	}
	for range n {
		fmt.Fprintf(w, "%s\r\n", line)
	}
	return w.Flush()
}

func TestBadInputIsRefusedWithTheRightCode(t *testing.T) {
	s := newServer(t, acceptAll(away(t))+"\ninbound: {listen: [\"SMTP\"], max_message_size: 64KiB, max_recipients: 100}\n")
	s.start()
	for name, lines := range map[string]string{
		"a SIZE too large": `
			<- 220 mx2.example.org
			-> EHLO client.example.net
			<- 250
			-> MAIL FROM:<alice@example.net> SIZE=65537
			<- 552 5.3.4
			-> MAIL FROM:<alice@example.net> SIZE=65536
			<- 250`,
		"content too large": `
			<- 220
			-> EHLO client.example.net
			<- 250
			-> MAIL FROM:<alice@example.net>
			<- 250
			-> RCPT TO:<bob@example.org>
			<- 250
			-> DATA
			<- 354
			-> {a line that is not so long|4000}
			-> .
			<- 552 5.3.4
			-> MAIL FROM:<alice@example.net>
			<- 250`,
		"syntax": `
			<- 220
			-> EHLO client.example.net
			<- 250
			-> MAIL FROM:alice
			<- 501
			-> MAIL TO:<alice@example.net>
			<- 501
			-> MAIL FROM:<alice@example.net> FOO=BAR
			<- 555
			-> RCPT TO:<bob@example.org>
			<- 503`,
		"a loop": `
			<- 220
			-> EHLO client.example.net
			<- 250
			-> MAIL FROM:<alice@example.net>
			<- 250
			-> RCPT TO:<bob@example.org>
			<- 250
			-> DATA
			<- 354
			-> {Received: from a by b; Mon, 23 Nov 2026 12:00:00 +0000|100}
			-> Subject: round and round
			->
			-> .
			<- 554 5.4.6`,
	} {
		t.Run(name, func(t *testing.T) { dialogue(t, s.smtp, strings.ReplaceAll(lines, "->\n", "-> \n")) })
	}
	t.Run("too many recipients", func(t *testing.T) {
		var b strings.Builder
		b.WriteString("<- 220\n-> EHLO x.example.net\n<- 250\n-> MAIL FROM:<>\n<- 250\n")
		for i := range 100 {
			fmt.Fprintf(&b, "-> RCPT TO:<user%d@example.org>\n<- 250\n", i)
		}
		b.WriteString("-> RCPT TO:<onemore@example.org>\n<- 452 4.5.3\n")
		dialogue(t, s.smtp, b.String())
	})
	if n := s.waiting(); n != 0 {
		t.Errorf("%d messages were taken", n)
	}
	s.stop()
}

func TestTheAdminEndpointsOfARealServer(t *testing.T) {
	s := newServer(t, acceptAll(away(t)))
	s.start()
	for path, want := range map[string]string{
		"/livez": "ok", "/readyz": "ok", "/metrics": "understudy_", "/v1/status": `"hostname":"mx2.example.org"`, "/v1/queue": `"messages":[]`,
	} {
		if code, body := s.get(path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.200s, want %q in it", path, code, body, want)
		}
	}
	s.stop()
}

func TestSIGHUPReadsTheConfigurationAgain(t *testing.T) {
	s := newServer(t, acceptAll(away(t)))
	s.start()
	s.configure("domains: {example.org: {accept_all: true, primaries: [\"127.0.0.1:1\"]}, example.com: {accept_all: true, primaries: [\"127.0.0.1:1\"]}}")
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.until("the new domain is there", func() bool { return len(s.status().Domains) == 2 })
	dialogue(t, s.smtp, `
		<- 220
		-> EHLO client.example.net
		<- 250
		-> MAIL FROM:<>
		<- 250
		-> RCPT TO:<bob@example.com>
		<- 250`)
	s.configure("domains: [broken")
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if out, err := s.run("reload"); err == nil {
		t.Errorf("a broken configuration was taken:\n%s", out)
	}
	if n := len(s.status().Domains); n != 2 {
		t.Errorf("%d domains after a refused reload, want 2", n)
	}
	s.stop()
}

func TestASecondServerOnTheSameFolderIsToldSo(t *testing.T) {
	s := newServer(t, acceptAll(away(t)))
	s.start()
	out, err := s.run("serve")
	if err == nil || !strings.Contains(out, "in use by another process") {
		t.Errorf("second server: %v\n%s", err, out)
	}
	s.stop()
}

func TestNothingIsAcceptedThatThePrimaryCouldNotTakeLater(t *testing.T) {
	p := testkit.NewPrimary(t)
	p.Caps = []string{"PIPELINING", "SIZE 100000", "8BITMIME"}
	p.Start()
	s := newServer(t, acceptAll(p))
	s.start()
	s.untilPrimary("up")
	p.Stop()
	s.stop()
	s.start() // what the primary can take is remembered
	dialogue(t, s.smtp, `
		<- 220
		-> EHLO client.example.net
		<- 250
		-> MAIL FROM:<alice@example.net> SIZE=200000
		<- 250
		-> RCPT TO:<bob@example.org>
		<- 552 5.3.4
		-> RSET
		<- 250
		-> MAIL FROM:<alice@example.net> SMTPUTF8
		<- 250
		-> RCPT TO:<bob@example.org>
		<- 550 5.6.7
		-> RSET
		<- 250
		-> MAIL FROM:<alice@example.net>
		<- 250
		-> RCPT TO:<bob@example.org>
		<- 250
		-> DATA
		<- 354
		-> {a line that is not so long|5000}
		-> .
		<- 552 5.3.4
		-> MAIL FROM:<alice@example.net>
		<- 250
		-> RCPT TO:<bob@example.org>
		<- 250
		-> DATA
		<- 354
		-> {a line that is not so long|3000}
		-> .
		<- 250`)
	if n := s.waiting(); n != 1 {
		t.Errorf("%d messages wait, want 1", n)
	}
	s.stop()
}
