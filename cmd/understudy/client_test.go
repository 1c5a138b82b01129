package main

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// client is a sender that shows what it was answered, word for word.
type client struct {
	net.Conn
	r *bufio.Reader
}

// call connects to a server and greets it. With an address, it says by a PROXY header that it comes from there.
func call(addr, from string) (*client, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &client{nc, bufio.NewReader(nc)}
	c.SetDeadline(time.Now().Add(2 * limit))
	if from != "" {
		fmt.Fprintf(c, "PROXY TCP4 %s 192.0.2.1 40000 25\r\n", from)
	}
	if answer, err := c.reply(); err != nil || !strings.HasPrefix(answer, "220") {
		c.Close()
		return nil, fmt.Errorf("greeted with %q: %w", answer, err)
	}
	if answer, err := c.say("EHLO client.example.net"); err != nil || !strings.HasPrefix(answer, "250") {
		c.Close()
		return nil, fmt.Errorf("EHLO: %q: %w", answer, err)
	}
	return c, nil
}

// reply reads one reply; its lines are joined by LF.
func (c *client) reply() (string, error) {
	var lines []string
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return "", err
		}
		line = strings.TrimRight(line, "\r\n")
		lines = append(lines, line)
		if len(line) < 4 || line[3] == ' ' {
			return strings.Join(lines, "\n"), nil
		}
	}
}

func (c *client) say(line string) (string, error) {
	if _, err := fmt.Fprintf(c, "%s\r\n", line); err != nil {
		return "", err
	}
	return c.reply()
}

// give plays one transaction up to the first refusal, and tells the last answer. Content has CRLF line ends and no
// line that begins with a dot.
func (c *client) give(from, to string, content []byte) (string, error) {
	for _, line := range []string{"MAIL FROM:<" + from + ">", "RCPT TO:<" + to + ">", "DATA"} {
		answer, err := c.say(line)
		if err != nil || answer[0] > '3' {
			return answer, err
		}
	}
	if _, err := c.Write(content); err != nil {
		return "", err
	}
	return c.say(".")
}

// mail gives one message over a connection of its own.
func mail(t *testing.T, addr, client, to string, content []byte) string {
	t.Helper()
	c, err := call(addr, client)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answer, err := c.give("alice@example.net", to, content)
	if err != nil {
		t.Fatal(err)
	}
	c.say("QUIT")
	return answer
}

// letter is a plain message with a subject.
func letter(subject string) []byte {
	return fmt.Appendf(nil, "From: alice@example.net\r\nTo: bob@example.org\r\nSubject: %s\r\nMessage-ID: <%d@example.net>\r\n"+
		"Date: Mon, 23 Nov 2026 12:00:00 +0000\r\n\r\nHello.\r\n", subject, time.Now().UnixNano())
}
