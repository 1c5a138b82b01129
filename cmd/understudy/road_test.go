package main

import (
	"bytes"
	"fmt"
	"net/smtp"
	"net/textproto"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/admin"
	"understudy/internal/testkit"
)

// acceptAll is the configuration of one domain with one primary.
func acceptAll(p *testkit.Primary) string {
	return fmt.Sprintf("domains: {example.org: {accept_all: true, primaries: [%q]}}", p.Addr())
}

// away is a primary that has an address and does not listen there yet.
func away(t testing.TB) *testkit.Primary {
	p := testkit.NewPrimary(t)
	p.Start()
	p.Stop()
	return p
}

// send gives messages first to last-1 over one connection and tells which were answered 250.
func send(addr string, first, last int) (taken []int, err error) {
	c, err := smtp.Dial(addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.Hello("client.example.net"); err != nil {
		return nil, err
	}
	for n := first; n < last; n++ {
		if err := sendOne(c, "bob@example.org", numbered(n)); err != nil {
			return taken, err
		}
		taken = append(taken, n)
	}
	return taken, c.Quit()
}

func sendOne(c *smtp.Client, to string, content []byte) error {
	if err := c.Mail("alice@example.net"); err != nil {
		return err
	}
	if err := c.Rcpt(to); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	// The writer dots the content; what is dotted already in the message stays one dot longer at both ends.
	if _, err := w.Write(content); err != nil {
		return err
	}
	return w.Close()
}

// ours are the fields that we add: what we found out about the sender, and Received.
var ours = regexp.MustCompile(`\A(?:(?:Authentication-Results|Received-SPF|X-Understudy-Verdict): [^\n]*\n(?:[ \t][^\n]*\n)*)*` +
	`Received: from [^\n]*\n(?:[ \t][^\n]*\n)*`)

// untraced takes our fields off, and says whether it was there.
func untraced(content []byte) ([]byte, bool) {
	loc := ours.FindIndex(content)
	if loc == nil {
		return content, false
	}
	return content[loc[1]:], true
}

// numberOf finds which numbered message a content is, and that it is so byte for byte but for our Received.
func numberOf(t *testing.T, content []byte) int {
	t.Helper()
	rest, traced := untraced(content)
	if !traced {
		t.Fatalf("no Received field of ours:\n%s", content)
	}
	var n int
	if _, err := fmt.Sscanf(string(rest[bytes.Index(rest, []byte("Subject: ")):]), "Subject: no. %d", &n); err != nil {
		t.Fatalf("a message that nobody sent:\n%s", content)
	}
	if !bytes.Equal(rest, numbered(n)) {
		t.Fatalf("message %d was changed on its way:\n%q\nwant\n%q", n, rest, numbered(n))
	}
	return n
}

func TestMailOfAnOutageIsHandedOverOnceWhenThePrimaryIsBack(t *testing.T) {
	const messages, senders = 500, 5
	p := away(t)
	s := newServer(t, acceptAll(p))
	s.start()
	s.untilPrimary("down")
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			if _, err := send(s.smtp, i*messages/senders, (i+1)*messages/senders); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.waiting(); n != messages {
		t.Fatalf("%d messages wait, want %d", n, messages)
	}
	back := time.Now()
	p.Start()
	p.WaitMessages(t.Context(), messages)
	t.Logf("all %d delivered %v after recovery", messages, time.Since(back).Round(time.Millisecond))
	s.until("the queue is empty", func() bool { return s.waiting() == 0 })
	seen := map[int]int{}
	for _, m := range p.Messages() {
		seen[numberOf(t, m.Content)]++
	}
	for n := range messages {
		if seen[n] != 1 {
			t.Errorf("message %d was delivered %d times", n, seen[n])
		}
	}
	s.stop()
}

func TestWhatGotA250SurvivesKill9(t *testing.T) {
	p := away(t)
	s := newServer(t, acceptAll(p))
	taken := map[int]bool{}
	const rounds, each = 4, 2000
	for round := range rounds {
		s.start()
		var mu sync.Mutex
		var wg sync.WaitGroup
		var count int
		for i := range 4 {
			wg.Go(func() {
				first := round*each + i*each/4
				got, _ := send(s.smtp, first, first+each/4) // ends with the kill
				mu.Lock()
				defer mu.Unlock()
				count += len(got)
				for _, n := range got {
					taken[n] = true
				}
			})
		}
		before := s.waiting()
		s.until("some were taken", func() bool { return s.waiting() > before+20 })
		s.kill()
		wg.Wait()
		if count == each {
			t.Log("the kill came after the last message")
		}
	}
	s.start()
	p.Start()
	s.until("the queue is empty", func() bool { return s.waiting() == 0 })
	delivered := map[int]int{}
	for _, m := range p.Messages() {
		delivered[numberOf(t, m.Content)]++
	}
	for n := range taken {
		if delivered[n] != 1 {
			t.Errorf("message %d got a 250 and was delivered %d times", n, delivered[n])
		}
	}
	t.Logf("%d messages got a 250, %d were delivered", len(taken), len(delivered))
	s.stop()
}

func TestRepliesOfThePrimaryDecide(t *testing.T) {
	p := testkit.NewPrimary(t)
	p.SetScript(func(at testkit.Point) testkit.Action {
		switch {
		case at.Step == testkit.AtRCPT && strings.HasPrefix(at.Arg, "gone@"):
			return testkit.Say("550 5.1.1 no such user")
		case at.Step == testkit.AtRCPT && strings.HasPrefix(at.Arg, "busy@"):
			return testkit.Say("451 4.7.1 later")
		}
		return testkit.Action{}
	})
	p.Start()
	s := newServer(t, strings.Replace(acceptAll(p), "accept_all", "while_up: accept, accept_all", 1))
	s.start()
	c, err := smtp.Dial(s.smtp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, to := range []string{"bob@example.org", "gone@example.org", "busy@example.org"} {
		if err := sendOne(c, to, numbered(1)); err != nil {
			t.Fatal(err)
		}
	}
	p.WaitMessages(t.Context(), 1)
	s.until("one is held and one waits", func() bool { return s.held() == 1 && s.waiting() == 1 })
	var page admin.Queue
	s.until("the reply is on record", func() bool {
		s.runJSON(&page, "queue", "list")
		return len(page.Messages) == 2 && page.Messages[1].Attempts == 1
	})
	want := map[string]string{"gone@example.org": "550 5.1.1 no such user", "busy@example.org": "451 4.7.1 later"}
	for _, m := range page.Messages {
		r := m.Rcpts[0]
		if r.Reply != want[r.Addr.String()] {
			t.Errorf("%s: reply %q, want %q", r.Addr, r.Reply, want[r.Addr.String()])
		}
		if wantHeld := strings.HasPrefix(r.Addr.String(), "gone@"); (m.State == "held") != wantHeld {
			t.Errorf("%s: state %s", r.Addr, m.State)
		}
	}
	p.SetScript(nil)
	if out, err := s.run("flush", "--domain", "example.org", "--wait", "--timeout", "20s"); err != nil {
		t.Fatalf("flush: %v\n%s", err, out)
	}
	if s.waiting() != 0 || s.held() != 1 || p.Accepted() != 2 {
		t.Errorf("after the flush %d wait, %d are held, %d were delivered; want 0, 1, 2", s.waiting(), s.held(), p.Accepted())
	}
	s.stop()
}

func TestRecipientsAndRelaying(t *testing.T) {
	p := away(t)
	s := newServer(t, fmt.Sprintf("domains: {example.org: {recipients: list, primaries: [%q]}}", p.Addr()))
	s.write("list", "# people\nbob@example.org\nCarol@Example.ORG\n")
	s.start()
	rcpt := func(to string) string {
		c, err := textproto.Dial("tcp", s.smtp)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var last string
		for _, cmd := range []string{"", "EHLO x.example.net", "MAIL FROM:<>", "RCPT TO:" + to} {
			if cmd != "" {
				c.PrintfLine("%s", cmd)
			}
			code, text, _ := c.ReadResponse(0)
			last = fmt.Sprintf("%d %s", code, text)
		}
		return last
	}
	for _, tt := range []struct{ to, want string }{
		{"<bob@example.org>", "250 "},
		{"<carol@EXAMPLE.org>", "250 "},
		{"<dave@example.org>", "550 5.1.1 "},
		{"<postmaster@example.org>", "250 "},
		{"<Postmaster>", "250 "},
		{"<bob@example.com>", "550 5.7.1 "},
		{"<bob@sub.example.org>", "550 5.7.1 "},
		{"bob", "501 "},
		{"<bob@example.org", "501 "},
		{"<bob@[127.0.0.1]>", "550 5.7.1 "},
	} {
		if got := rcpt(tt.to); !strings.HasPrefix(got, tt.want) {
			t.Errorf("RCPT TO:%s: %q, want %q", tt.to, got, tt.want)
		}
	}
	s.write("list", "dave@example.org\n")
	if out, err := s.run("reload"); err != nil {
		t.Fatalf("reload: %v\n%s", err, out)
	}
	if got := rcpt("<dave@example.org>"); !strings.HasPrefix(got, "250 ") {
		t.Errorf("after the reload: %q", got)
	}
	if err := os.Remove(s.dir + "/list"); err != nil {
		t.Fatal(err)
	}
	if out, err := s.run("reload"); err != nil {
		t.Fatalf("reload without the list: %v\n%s", err, out)
	}
	if got := rcpt("<dave@example.org>"); !strings.HasPrefix(got, "250 ") {
		t.Errorf("with the list gone: %q, want the old one to go on", got)
	}
	s.configure("domains: {example.org: {recipient: list}}")
	if out, err := s.run("reload"); err == nil || !strings.Contains(out, "understudy.yaml:4:25") {
		t.Errorf("reload of a broken configuration: %v\n%s", err, out)
	}
	if got := rcpt("<dave@example.org>"); !strings.HasPrefix(got, "250 ") {
		t.Errorf("after a refused reload: %q", got)
	}
	s.stop()
	if !strings.Contains(s.log.String(), `"level":"ERROR"`) {
		t.Error("no alert in the log for the list that can't be read")
	}
	s.configure("domains: {example.org: {recipients: list}}")
	if out, err := s.run("serve"); err == nil || !strings.Contains(out, "list") {
		t.Errorf("start without the list: %v\n%s", err, out)
	}
}

func TestAStopLetsAMessageInProgressEnd(t *testing.T) {
	p := away(t)
	s := newServer(t, acceptAll(p))
	s.start()
	idle, err := textproto.Dial("tcp", s.smtp)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if _, _, err := idle.ReadResponse(220); err != nil {
		t.Fatal(err)
	}
	busy, err := smtp.Dial(s.smtp)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	if err := busy.Mail("alice@example.net"); err != nil {
		t.Fatal(err)
	}
	if err := busy.Rcpt("bob@example.org"); err != nil {
		t.Fatal(err)
	}
	w, err := busy.Data()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("Subject: half\r\n")); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); s.stop() }()
	if _, _, err := idle.ReadResponse(421); err != nil {
		t.Errorf("the idle client was told %v", err)
	}
	if _, err := w.Write([]byte("\r\nthe other half\r\n")); err != nil {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Errorf("the message in progress was told %v", err)
	}
	<-stopped
	s.start()
	if n := s.waiting(); n != 1 {
		t.Errorf("%d messages wait after the restart, want 1", n)
	}
	s.stop()
}
