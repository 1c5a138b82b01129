package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"understudy/internal/testkit"
	"understudy/internal/testkit/peer"
)

// smuggle gives one message whose content has a false end in it, and tells what its true end was answered.
func smuggle(t *testing.T, addr string, secure bool, v testkit.Smuggled) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { c.Close() }()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(c)
	expect := func(send, want string) string {
		t.Helper()
		if _, err := c.Write([]byte(send)); err != nil {
			t.Fatal(err)
		}
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatalf("after %q: %v", send, err)
			}
			if len(line) > 3 && line[3] != '-' {
				if !strings.HasPrefix(line, want) {
					t.Fatalf("after %q: %q, want %q", send, line, want)
				}
				return line
			}
		}
	}
	expect("", "220")
	expect("EHLO client.example.net\r\n", "250")
	if secure {
		expect("STARTTLS\r\n", "220")
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		r = bufio.NewReader(c)
		expect("EHLO client.example.net\r\n", "250")
	}
	expect("MAIL FROM:<alice@example.net>\r\n", "250")
	expect("RCPT TO:<bob@example.org>\r\n", "250")
	expect("DATA\r\n", "354")
	answer := expect(v.Octets("bob@example.org"), "")
	expect("QUIT\r\n", "221")
	return answer
}

func TestWhatGoesInAsOneMessageComesOutOfPostfixAsOne(t *testing.T) {
	for _, mode := range []string{"normalize", "reject"} {
		for _, road := range []string{"spooled", "inline"} {
			t.Run(mode+"/"+road, func(t *testing.T) { testSmuggling(t, mode, road == "inline") })
		}
	}
}

func testSmuggling(t *testing.T, mode string, inline bool) {
	primary := peer.NewPostfix(t, nil)
	s := newServer(t, behind(primary)+fmt.Sprintf("\ninbound: {listen: [\"SMTP\"], bare_newline: %s}\n", mode))
	if inline {
		primary.Start()
	}
	s.start()
	if inline {
		s.untilPrimary("up")
	}
	taken, refused := 0, 0
	for _, secure := range []bool{false, true} {
		for _, v := range testkit.Smuggling() {
			switch answer := smuggle(t, s.smtp, secure, v); {
			case strings.HasPrefix(answer, "250 ") && strings.Contains(answer, "ok, queued as") != inline: // our own words
				taken++
			case strings.HasPrefix(answer, "550 5.6.0") && mode == "reject":
				refused++
			default:
				t.Errorf("%s: answered %q", v.Name, answer)
			}
		}
	}
	t.Logf("%d taken, %d refused", taken, refused)
	if taken == 0 || mode == "reject" && refused == 0 {
		t.Fatal("the matrix tried nothing")
	}
	if !inline {
		primary.Start()
	}
	s.until("the queue is empty", func() bool { return s.waiting() == 0 })
	until(t, "all are in the Maildir", limit, func() bool { return primary.Delivered() >= taken })
	if n := primary.Delivered(); n != taken || s.held() != 0 {
		t.Errorf("%d messages in, %d out, %d held", taken, n, s.held())
	}
	for _, m := range primary.Messages() {
		if bytes.Contains(m, []byte("Return-Path: <smuggled@")) || !bytes.Contains(m, []byte("\nouter")) || !bytes.Contains(m, []byte("inner")) {
			t.Errorf("not the message that went in:\n%q", m)
		}
	}
	s.stop()
}
