package forwarder

import (
	"fmt"
	"net/textproto"
	"strings"
	"sync"
	"testing"

	"understudy/internal/testkit"
	"understudy/internal/testkit/peer"
)

// refusing is a Postfix that knows one user, greylists another, and reads subjects.
func refusing(t *testing.T, more map[string]string) *peer.Postfix {
	settings := map[string]string{
		"virtual_mailbox_maps": "inline:{bob@example.org=mail/, grey@example.org=mail/}",
		"smtpd_recipient_restrictions": "check_recipient_access inline:{ {grey@example.org = 450 4.2.0 Greylisted, come back later} }, " +
			"check_client_access inline:{ {198.51.100.66 = REJECT not from you} }, reject_unlisted_recipient, permit_mynetworks, reject_unauth_destination",
		"header_checks": "regexp:{{/^Subject:.*pills/ REJECT no pills here}}",
	}
	for k, v := range more {
		settings[k] = v
	}
	p := peer.NewPostfix(t, settings)
	p.Start()
	return p
}

// direct has the same conversation with a server itself, and gives the words of the first refusal, or of the end.
func direct(t *testing.T, addr, to, content string) string {
	t.Helper()
	c, err := textproto.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.ReadResponse(220)
	for _, line := range []string{"EHLO x.example.net", "MAIL FROM:<s@example.net>", "RCPT TO:<" + to + ">", "DATA", content + "."} {
		c.PrintfLine("%s", line)
		code, text, err := c.ReadResponse(0)
		if err != nil {
			t.Fatal(err)
		}
		if code >= 400 {
			return fmt.Sprintf("%d %s", code, strings.ReplaceAll(text, "\n", " "))
		}
	}
	return "250"
}

func TestPostfixAnswersTheSenderThroughUsWordForWord(t *testing.T) {
	for _, caps := range []string{"", "chunking", "pipelining, chunking"} {
		t.Run("without "+caps, func(t *testing.T) {
			p := refusing(t, map[string]string{"smtpd_authorized_xclient_hosts": "127.0.0.1", "smtpd_discard_ehlo_keywords": caps})
			w := newWorld(t, "example.org", at(t, p.Addr))
			w.start()
			for _, tt := range []struct{ to, content, code string }{
				{"bob@example.org", "Subject: news\r\n\r\nhello\r\n", "250"},
				{"nobody@example.org", "Subject: news\r\n\r\nhello\r\n", "550 5.1.1 "},
				{"grey@example.org", "Subject: news\r\n\r\nhello\r\n", "450 4.2.0 "},
				{"bob@example.org", "Subject: cheap pills\r\n\r\nhello\r\n", "550 5.7.1 "},
			} {
				want := direct(t, p.Addr, tt.to, tt.content)
				got := w.relay(w.envelope("198.51.100.7"), letter(tt.content), tt.to)
				if _, got, _ = strings.Cut(got, ": "); want == "250" {
					got = got[:3]
				}
				if got != want || !strings.HasPrefix(got, tt.code) {
					t.Errorf("%s, %q: through us %q, from itself %q", tt.to, tt.content, got, want)
				}
			}
			if got := w.relay(w.envelope("198.51.100.66"), letter("x\r\n"), "bob@example.org"); !strings.Contains(got, "rcpt: 554 5.7.1 ") || !strings.Contains(got, "not from you") {
				t.Errorf("the client that it does not want: %s", got)
			}
			if !strings.Contains(p.Log(), "client=unknown[198.51.100.7]") {
				t.Errorf("it never heard of the client:\n%s", p.Log())
			}
			w.eventually("two in the Maildir", func() bool { return p.Delivered() == 2 })
		})
	}
}

func TestPostfixTurnsAClientAwayAtTheDoor(t *testing.T) {
	p := refusing(t, map[string]string{
		"smtpd_authorized_xclient_hosts": "127.0.0.1", "smtpd_delay_reject": "no",
		"smtpd_client_restrictions": "check_client_access inline:{ {198.51.100.7 = REJECT you are listed} }",
	})
	w := newWorld(t, "example.org", at(t, p.Addr))
	w.start()
	if got := w.relay(w.envelope("198.51.100.7"), letter("x\r\n"), "bob@example.org"); !strings.HasPrefix(got, "begin: 554 5.7.1 ") || !strings.Contains(got, "you are listed") {
		t.Error(got)
	}
	if got := w.relay(w.envelope("198.51.100.8"), letter("x\r\n"), "bob@example.org"); !strings.HasPrefix(got, "send: 250") {
		t.Error(got)
	}
}

func TestPostfixThatEndsSessionsAfterErrorsStaysThePrimary(t *testing.T) {
	p := refusing(t, map[string]string{"smtpd_hard_error_limit": "5", "smtpd_soft_error_limit": "4", "smtpd_error_sleep_time": "0"})
	w := newWorld(t, "example.org", at(t, p.Addr))
	w.domains = map[string]Domain{"example.org": {ClientIdentity: "headers"}}
	w.start()
	for n := range 60 {
		if got := w.relay(w.envelope("198.51.100.7"), letter("x\r\n"), fmt.Sprintf("nobody%d@example.org", n)); !strings.HasPrefix(got, "rcpt: 550 5.1.1 ") {
			t.Fatalf("%d: %s", n, got)
		}
	}
	if n := w.gates.troubles(p.Addr); n != 0 {
		t.Errorf("the health was told of %d troubles", n)
	}
}

func TestPostfixThatWasRestartedIsMetAnew(t *testing.T) {
	p := refusing(t, map[string]string{"smtpd_authorized_xclient_hosts": "127.0.0.1"})
	w := newWorld(t, "example.org", at(t, p.Addr))
	w.start()
	relay := func(want string) {
		t.Helper()
		var all sync.WaitGroup
		for n := range 6 {
			all.Go(func() {
				if got := w.relay(w.envelope(fmt.Sprintf("198.51.100.%d", n+1)), letter("x\r\n"), "bob@example.org"); !strings.HasPrefix(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
		all.Wait()
	}
	relay("send: 250")
	p.Stop()
	relay("begin: away")
	p.Start()
	w.eventually("its pause is over", func() bool {
		return strings.HasPrefix(w.relay(w.envelope("198.51.100.7"), letter("x\r\n"), "bob@example.org"), "send: 250")
	})
	relay("send: 250")
}

func TestEximAnswersTheSenderThroughUs(t *testing.T) {
	p := peer.NewEximHeavy(t, "chunking_advertise_hosts = *\nhosts_proxy = 127.0.0.1")
	p.Start()
	w := newWorld(t, "example.org", at(t, p.Addr))
	w.domains = map[string]Domain{"example.org": {ClientIdentity: "proxy_v2"}}
	w.start()
	for n := range 5 {
		if got := w.relay(w.envelope(fmt.Sprintf("198.51.100.%d", n+1)), letter("Subject: x\r\n\r\nx\r\n"), "a@example.org"); !strings.HasPrefix(got, "send: 250 ") {
			t.Fatal(got, p.Log())
		}
		if got := w.relay(w.envelope(fmt.Sprintf("198.51.100.%d", n+1)), letter("Subject: x\r\n\r\nx\r\n"), "bad@example.org"); !strings.HasPrefix(got, "rcpt: 550 ") {
			t.Error(got)
		}
	}
	w.eventually("local delivery", func() bool { return len(p.Messages()) == 5 })
	for _, m := range p.Messages() {
		if !strings.Contains(string(m), "[198.51.100.") {
			t.Errorf("it never heard of the client: %.300s", m)
		}
	}
}

// BenchmarkInline is what a transaction costs us, beside a primary that answers at once.
func BenchmarkInline(b *testing.B) {
	p := testkit.NewPrimary(b)
	p.Discard = true
	p.Start()
	w := newWorld(b, "example.org", tier(p))
	w.start()
	content := letter(strings.Repeat("a line of the content of a message\r\n", 100))
	b.ReportAllocs()
	for b.Loop() {
		if got := w.relay(w.envelope(""), content, "bob@example.org"); got != took {
			b.Fatal(got)
		}
	}
}
