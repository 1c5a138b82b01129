package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/testkit"
	"understudy/internal/testkit/peer"
)

// judging are the settings of a Postfix that refuses in every way there is.
func judging() map[string]string {
	return map[string]string{
		"virtual_mailbox_maps": "inline:{bob@example.org=mail/, grey@example.org=mail/}",
		"smtpd_recipient_restrictions": "check_recipient_access inline:{{grey@example.org=450 4.2.0 Greylisted, come back later}}," +
			" reject_unlisted_recipient, permit_auth_destination, reject",
		"smtpd_authorized_xclient_hosts": "127.0.0.0/8",
		"header_checks":                  "regexp:{{/^Subject:.*pills/ REJECT no pills here}}",
	}
}

// proxied makes the server believe a PROXY header of loopback.
const proxied = "\ninbound: {listen: [{address: \"SMTP\", proxy_from: [127.0.0.0/8]}]}\n"

func TestWhileItIsUpThePrimaryItselfAnswersTheSender(t *testing.T) {
	primary := peer.NewPostfix(t, judging())
	s := newServer(t, behind(primary)+proxied)
	primary.Start()
	s.start()
	s.untilPrimary("up")
	for _, tt := range []struct{ to, subject string }{
		{"bob@example.org", "news"},
		{"nobody@example.org", "news"},
		{"grey@example.org", "news"},
		{"bob@example.org", "cheap pills"},
	} {
		through := mail(t, s.smtp, "192.0.2.10", tt.to, letter(tt.subject))
		direct := mail(t, primary.Addr, "", tt.to, letter(tt.subject))
		if through[:1] == "2" { // the queue ids differ
			through, direct = strings.Fields(through)[0], strings.Fields(direct)[0]
		}
		if through != direct {
			t.Errorf("%s, %s: through us %q, from the primary itself %q", tt.to, tt.subject, through, direct)
		}
	}
	if s.waiting() != 0 || s.held() != 0 {
		t.Errorf("%d messages wait and %d are held here; all were the primary's to decide", s.waiting(), s.held())
	}
	until(t, "the two good ones are in the Maildir", limit, func() bool { return primary.Delivered() == 2 })
	if !strings.Contains(primary.Log(), "192.0.2.10") {
		t.Errorf("the primary never heard of the true client:\n%s", primary.Log())
	}
	s.stop()
}

func TestAnEximThatIsUpAnswersTheSender(t *testing.T) {
	primary := peer.NewExim(t, "acl_smtp_data = ${if match{$h_subject:}{pills}{deny message = no pills here}"+
		"{${if match{$h_subject:}{slow}{defer message = come back later}{accept}}}}")
	s := newServer(t, fmt.Sprintf("domains: {example.org: {accept_all: true, primaries: [%q]}}", primary.Addr))
	primary.Start()
	s.start()
	s.untilPrimary("up")
	for _, tt := range []struct{ to, subject, want string }{
		{"bob@example.org", "news", "250"},
		{"bad@example.org", "news", "550"},
		{"bob@example.org", "cheap pills", "550"},
		{"bob@example.org", "slow", "451"},
	} {
		through := mail(t, s.smtp, "", tt.to, letter(tt.subject))
		direct := mail(t, primary.Addr, "", tt.to, letter(tt.subject))
		if tt.want == "250" { // the queue ids differ
			through, direct = through[:3], direct[:3]
		}
		if through != direct || !strings.HasPrefix(through, tt.want) {
			t.Errorf("%s, %s: through us %q, from the primary itself %q, want %s", tt.to, tt.subject, through, direct, tt.want)
		}
	}
	if s.waiting() != 0 || s.held() != 0 || len(primary.Messages()) != 2 {
		t.Errorf("%d messages wait here, %d are held, Exim has %d", s.waiting(), s.held(), len(primary.Messages()))
	}
	s.stop()
}

func TestTheSendersOwnServerMakesTheBounce(t *testing.T) {
	primary := peer.NewPostfix(t, judging())
	s := newServer(t, behind(primary))
	sender := peer.NewPostfix(t, map[string]string{ // alice reads her mail there
		"myhostname": "client.example.net", "virtual_mailbox_domains": "example.net", "transport_maps": "inline:{example.org=smtp:[127.0.0.1]:" + port(s.smtp) + "}",
	})
	sender.Start()
	primary.Start()
	s.start()
	s.untilPrimary("up")
	if answer := mail(t, sender.Addr, "", "nobody@example.org", letter("news")); !strings.HasPrefix(answer, "250") {
		t.Fatal(answer)
	}
	until(t, "the bounce is in alice's mailbox", limit, func() bool { return sender.Delivered() == 1 })
	bounce := string(sender.Messages()[0])
	if !strings.Contains(bounce, "by client.example.net") || !strings.Contains(bounce, "550 5.1.1 <nobody@example.org>") {
		t.Errorf("not the sender's own bounce with the primary's words:\n%s", bounce)
	}
	if s.waiting() != 0 || s.held() != 0 || primary.Delivered() != 0 {
		t.Error("something was kept")
	}
	s.stop()
}

// sendUntilDecided sends a message until it is answered 2yz or 5yz, as a mail server would, but sooner. It
// counts how often the primary did not confirm.
func sendUntilDecided(addr string, n int) (answer string, doubts int, err error) {
	for range 400 {
		c, err := call(addr, "")
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		answer, err = c.give("alice@example.net", "bob@example.org", undotted(n))
		c.Close()
		switch {
		case err != nil || answer == "":
			return "", doubts, fmt.Errorf("message %d: the connection broke: %w", n, err)
		case answer[0] != '4':
			return answer, doubts, nil
		case !strings.HasPrefix(answer, "452") && strings.Contains(answer, "confirm"):
			doubts++
		}
		time.Sleep(50 * time.Millisecond)
	}
	return "", doubts, fmt.Errorf("message %d: deferred again and again: %s", n, answer)
}

func undotted(n int) []byte {
	return fmt.Appendf(nil, "From: alice@example.net\r\nTo: bob@example.org\r\nSubject: no. %06d\r\nMessage-ID: <%06d@example.net>\r\n"+
		"Date: Mon, 23 Nov 2026 12:00:00 +0000\r\n\r\nLine one of %d.\r\n", n, n, n)
}

func TestAnOutageInTheMiddleOfTransactionsLosesAndDoublesNothing(t *testing.T) {
	const messages, senders = 1000, 10
	p := testkit.NewPrimary(t)
	p.Start()
	s := newServer(t, fmt.Sprintf("domains: {example.org: {accept_all: true, primaries: [%q]}}\nhealthprobe: {every_down: 100ms, confirm: 20ms}\n"+
		"forwarder: {inline: {sessions: 100}}\n", p.Addr()))
	s.start()
	s.untilPrimary("up")
	over := make(chan struct{})
	var outages sync.WaitGroup
	outages.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Duration(50+rand.IntN(300)) * time.Millisecond):
			}
			p.Stop()
			time.Sleep(time.Duration(20+rand.IntN(500)) * time.Millisecond)
			p.Start()
		}
	})
	var mu sync.Mutex
	decided, doubts := map[int]string{}, map[int]int{}
	var all sync.WaitGroup
	for i := range senders {
		all.Go(func() {
			for n := i; n < messages; n += senders {
				time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond) // long enough in all to meet some outages
				answer, d, err := sendUntilDecided(s.smtp, n)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				decided[n], doubts[n] = answer, d
				mu.Unlock()
			}
		})
	}
	all.Wait()
	close(over)
	outages.Wait()
	s.until("the queue is empty", func() bool { return s.waiting() == 0 })
	seen := map[int]int{}
	for _, m := range p.Messages() {
		var n int
		at := strings.Index(string(m.Content), "Subject: ")
		if _, err := fmt.Sscanf(string(m.Content[max(at, 0):]), "Subject: no. %d", &n); err != nil {
			t.Fatalf("a message that nobody sent:\n%s", m.Content)
		}
		seen[n]++
	}
	spooled, doubtful, twice := 0, 0, 0
	for n := range messages {
		if strings.Contains(decided[n], "queued as") {
			spooled++
		}
		doubtful += doubts[n]
		switch {
		case decided[n] == "" || decided[n][0] != '2':
			t.Errorf("message %d was answered %q", n, decided[n])
		case seen[n] == 0:
			t.Errorf("message %d was answered %q and is lost", n, decided[n])
		case seen[n] > 1:
			twice++
		}
	}
	t.Logf("%d messages: %d by the spool, the rest inline; %d times the primary did not confirm; %d arrived twice", messages, spooled, doubtful, twice)
	if spooled == 0 || spooled == messages {
		t.Error("the outages never met a transaction")
	}
	s.stop()
}
