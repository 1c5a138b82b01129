package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"understudy/internal/testkit/peer"
)

// behind is the configuration of one domain with a real Postfix as its primary.
func behind(p *peer.Postfix) string {
	return fmt.Sprintf("domains: {example.org: {accept_all: true, primaries: [%q]}}", p.Addr)
}

// added is what mail servers put above a message.
var added = regexp.MustCompile(`\A(?:(?:Return-Path|X-Original-To|Delivered-To|Received|Authentication-Results|Received-SPF|X-Understudy-Verdict):[^\n]*\n(?:[ \t][^\n]*\n)*)*`)

// delivered reads a Maildir message: which numbered one it is, and how many Received fields stand above it. It fails
// the test if anything but added fields differs from what was sent.
func delivered(t *testing.T, content []byte) (n, hops int) {
	t.Helper()
	top := added.Find(content)
	rest := content[len(top):]
	at := bytes.Index(rest, []byte("Subject: no. "))
	if at < 0 {
		t.Fatalf("a message that nobody sent:\n%s", content)
	}
	if _, err := fmt.Sscanf(string(rest[at:]), "Subject: no. %d", &n); err != nil {
		t.Fatalf("%v:\n%s", err, content)
	}
	// net/smtp dots what the test gives it, so each line arrives as it is in numbered.
	want := bytes.ReplaceAll(numbered(n), []byte("\r\n"), []byte("\n"))
	if !bytes.Equal(rest, want) {
		t.Fatalf("message %d was changed on its way:\n%q\nwant\n%q", n, rest, want)
	}
	return n, bytes.Count(top, []byte("Received:"))
}

func TestPostfixSendsThroughAnOutageOfItsPeer(t *testing.T) {
	const messages = 500
	primary := peer.NewPostfix(t, nil)
	s := newServer(t, behind(primary))
	sender := peer.NewPostfix(t, map[string]string{
		"myhostname": "client.example.net", "virtual_mailbox_domains": "", "relayhost": "[127.0.0.1]:" + port(s.smtp),
	})
	sender.Start()
	primary.Start()
	s.start()
	s.untilPrimary("up")
	primary.Stop()
	if taken, err := send(sender.Addr, 0, messages); err != nil || len(taken) != messages {
		t.Fatalf("the sender took %d messages: %v", len(taken), err)
	}
	s.until("all wait here", func() bool { return s.waiting() == messages })
	s.untilPrimary("down")
	primary.Start()
	back := time.Now()
	s.until("the queue is empty", func() bool { return s.waiting() == 0 })
	t.Logf("%d messages handed to Postfix %v after its return", messages, time.Since(back).Round(time.Millisecond))
	until(t, "all are in the Maildir", limit, func() bool { return primary.Delivered() >= messages })
	seen := map[int]int{}
	for _, m := range primary.Messages() {
		n, hops := delivered(t, m)
		if hops != 3 {
			t.Fatalf("message %d passed %d hops, want 3: sender, understudy, primary\n%s", n, hops, m)
		}
		seen[n]++
	}
	for n := range messages {
		if seen[n] != 1 {
			t.Errorf("message %d was delivered %d times", n, seen[n])
		}
	}
	s.stop()
}

func TestSmtpSourceSendsWhileThePrimaryIsDown(t *testing.T) {
	const messages = 500
	primary := peer.NewPostfix(t, nil)
	peer.Require(t, "smtp-source")
	s := newServer(t, behind(primary))
	s.start()
	s.untilPrimary("down")
	out, err := exec.Command("smtp-source", "-s", "10", "-m", fmt.Sprint(messages), "-l", "4096",
		"-f", "alice@example.net", "-t", "bob@example.org", s.smtp).CombinedOutput()
	if err != nil {
		t.Fatalf("smtp-source: %v\n%s", err, out)
	}
	if n := s.waiting(); n != messages {
		t.Fatalf("%d messages wait, want %d", n, messages)
	}
	primary.Start()
	s.until("the queue is empty", func() bool { return s.waiting() == 0 })
	until(t, "all are in the Maildir", limit, func() bool { return primary.Delivered() >= messages })
	if n := primary.Delivered(); n != messages {
		t.Errorf("%d messages in the Maildir, want %d", n, messages)
	}
	s.stop()
}

func TestPostfixRefusingARecipientEndsInQuarantineAndNoReport(t *testing.T) {
	primary := peer.NewPostfix(t, map[string]string{"smtpd_recipient_restrictions": "check_recipient_access inline:{gone@example.org=REJECT}, permit_mynetworks, reject"})
	s := newServer(t, behind(primary))
	s.start()
	s.untilPrimary("down")
	for _, to := range []string{"bob@example.org", "gone@example.org"} {
		out, err := exec.Command("swaks", "--server", s.smtp, "--from", "alice@example.net", "--to", to, "--helo", "client.example.net").CombinedOutput()
		if err != nil {
			t.Fatalf("swaks: %v\n%s", err, out)
		}
	}
	primary.Start()
	s.until("one is held and none waits", func() bool { return s.held() == 1 && s.waiting() == 0 })
	until(t, "the other is in the Maildir", limit, func() bool { return primary.Delivered() == 1 })
	out, err := s.run("queue", "list", "--held")
	if err != nil || !strings.Contains(out, "gone@example.org") {
		t.Errorf("queue list --held: %v\n%s", err, out)
	}
	s.stop()
}

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }
