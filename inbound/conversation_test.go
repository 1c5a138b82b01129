package inbound

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
)

// The files in testdata/conversations are read by these rules. A line that begins with # is a comment.
//
//	config KEY VALUE     alters the server (see configure)
//	skip WAY …           a way in which the conversation can't be replayed: starttls, packet
//	only starttls        only under TLS
//	-> TEXT              the client sends TEXT and CR LF
//	=> "QUOTED"          the client sends the Go string as it is; => "QUOTED" * N sends it N times
//	<- TEXT              the server must send this line; * at the end stands for anything, <- * N for N lines
//	<- * EHLO            the server must send the reply to EHLO, however long
//	end                  the server must end the connection
//	spooled TEXT         the next message in the spool must be described so (see describe)
//	passed TEXT          the next message that the primary took, or may have taken, likewise
//	config inline yes    mail for example.org goes inline (see scripted)
//
// The greeting, and with STARTTLS the first EHLO and the handshake, are not in the file. At the end the client hangs
// up, and neither the spool nor the primary must hold anything else.
type conversation struct {
	config      [][2]string
	skip        map[string]bool
	onlySecured bool
	steps       []step
	spooled     []string
	passed      []string
	inline      bool
}

type step struct {
	line int
	op   string // "send", "want", "ehlo", "end"
	text string
}

func readConversation(t *testing.T, file string) *conversation {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := &conversation{skip: map[string]bool{}}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		if err := c.add(n, lines.Text()); err != nil {
			t.Fatalf("%s:%d: %v", file, n, err)
		}
	}
	return c
}

func (c *conversation) add(n int, line string) error {
	op, text, _ := strings.Cut(line, " ")
	switch op {
	case "", "#":
	case "config":
		key, value, _ := strings.Cut(text, " ")
		c.config = append(c.config, [2]string{key, value})
		c.inline = c.inline || key == "inline"
	case "skip":
		for way := range strings.FieldsSeq(text) {
			c.skip[way] = true
		}
	case "only":
		c.onlySecured = true
	case "->":
		c.steps = append(c.steps, step{n, "send", text + "\r\n"})
	case "=>":
		quoted, times, repeated := strings.Cut(text, " * ")
		s, err := strconv.Unquote(quoted)
		if err != nil {
			return err
		}
		if repeated {
			many, err := strconv.Atoi(times)
			if err != nil {
				return err
			}
			s = strings.Repeat(s, many)
		}
		c.steps = append(c.steps, step{n, "send", s})
	case "<-":
		many := 1
		if text == "* EHLO" {
			c.steps = append(c.steps, step{n, "ehlo", ""})
			return nil
		}
		if rest, ok := strings.CutPrefix(text, "* "); ok {
			var err error
			if many, err = strconv.Atoi(rest); err != nil {
				return err
			}
			text = "*"
		}
		for range many {
			c.steps = append(c.steps, step{n, "want", text})
		}
	case "end":
		c.steps = append(c.steps, step{n, "end", ""})
	case "spooled":
		c.spooled = append(c.spooled, text)
	case "passed":
		c.passed = append(c.passed, text)
	default:
		return fmt.Errorf("unknown operation %q", op)
	}
	return nil
}

// configure applies the config lines.
func (c *conversation) configure(t *testing.T, cfg *Config) {
	t.Helper()
	for _, kv := range c.config {
		n, _ := strconv.Atoi(kv[1])
		switch kv[0] {
		case "bare_newline":
			cfg.BareNewline = BareNewline(kv[1])
		case "max_message_size":
			cfg.MaxMessageSize = mta.Size(n)
		case "max_recipients":
			cfg.MaxRecipients = n
		case "max_errors":
			cfg.MaxErrors = n
		case "max_refused":
			cfg.MaxRefused = n
		case "max_unknown":
			cfg.MaxUnknown = n
		case "inline":
		case "contact":
			cfg.Contact = kv[1]
		case "requiretls":
			cfg.RequireTLS = true
		case "hide":
			cfg.Listen[0].Hide = strings.Fields(kv[1])
		case "etrn_networks":
			cfg.ETRN.Networks = []netip.Prefix{netip.MustParsePrefix(kv[1])}
		default:
			t.Fatalf("config %s is unknown", kv[0])
		}
	}
}

// describe is a message on one line: envelope, then content below our trace field as a Go string,
// of long content the beginning and the length.
func describe(t *testing.T, m spooled) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "<%s>", m.env.From)
	p := m.env.Params
	for _, s := range []struct{ name, value string }{{"body", p.Body}, {"ret", p.Ret}, {"envid", p.EnvID}} {
		if s.value != "" {
			fmt.Fprintf(&b, " %s=%s", s.name, s.value)
		}
	}
	if p.SMTPUTF8 {
		b.WriteString(" smtputf8")
	}
	if p.RequireTLS {
		b.WriteString(" requiretls")
	}
	for _, r := range m.env.Rcpts {
		fmt.Fprintf(&b, " <%s>@%s", r.Addr, r.Dest)
		if r.Notify != 0 {
			fmt.Fprintf(&b, " notify=%d", r.Notify)
		}
		if r.ORcpt != "" {
			fmt.Fprintf(&b, " orcpt=%s", r.ORcpt)
		}
	}
	content := m.content
	if !strings.HasPrefix(content, "Received: from ") {
		t.Fatalf("no trace field: %q", content)
	}
	for {
		_, rest, ok := strings.Cut(content, "\r\n")
		if !ok {
			t.Fatalf("no end of the trace field: %q", m.content)
		}
		content = rest
		if !strings.HasPrefix(content, "\t") {
			break
		}
	}
	if len(content) > 500 {
		fmt.Fprintf(&b, " %q… %d", content[:20], len(content))
	} else {
		fmt.Fprintf(&b, " %q", content)
	}
	return b.String()
}

// bytewise is a listener whose connections give one octet a read.
type bytewise struct{ net.Listener }

func (l bytewise) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return oneByte{c.(*net.TCPConn)}, nil
}

type oneByte struct{ *net.TCPConn }

func (c oneByte) Read(p []byte) (int, error) { return c.TCPConn.Read(p[:min(len(p), 1)]) }

func TestConversations(t *testing.T) {
	files, err := filepath.Glob("testdata/conversations/*.txt")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d conversations, %v", len(files), err)
	}
	for _, file := range files {
		c := readConversation(t, file)
		for _, secured := range []bool{false, true} {
			for _, way := range []string{"steps", "packet", "bytes"} {
				if secured && c.skip["starttls"] || !secured && c.onlySecured || c.skip[way] {
					continue
				}
				name := strings.TrimSuffix(filepath.Base(file), ".txt") + "/" + way
				if secured {
					name += "-starttls"
				}
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					c.replay(t, file, way, secured)
				})
			}
		}
	}
}

// replay holds the conversation in one way.
func (c *conversation) replay(t *testing.T, file, way string, secured bool) {
	cfg := testConfig(t)
	c.configure(t, &cfg)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if way == "bytes" {
		ln = bytewise{ln}
	}
	cfg.Listen[0].Address = "systemd"
	primary := &scripted{}
	r := start(t, cfg, func(d *Deps) {
		if c.inline {
			d.Relay, d.Judge = primary, &testJudge{}
		}
		d.Sockets = map[string][]net.Listener{"smtp": {ln}}
		d.Recovered = recovered
		d.Domains = func() []string { return []string{"example.org", "sub.example.org", "example.com"} }
		d.Primaries = func(domain string) []netip.Addr {
			if domain == "example.com" {
				return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
			}
			return nil
		}
	})
	talk := dial(t, r.addr())
	talk.want("220 ")
	if secured {
		talk.startTLS(nil)
	}
	c.lead(talk, file, way)
	if !c.ends() {
		talk.conn.Close()
	}
	r.end(t)
	check(t, "spooled", r.spool.all(), c.spooled)
	check(t, "passed", primary.all(), c.passed)
	primary.checkIdle(t)
}

func recovered(_ context.Context, domain string) error {
	switch domain {
	case "sub.example.org":
		return mta.NewReply(253, "2.0.0", "17 pending messages for %s started", domain)
	case "example.com":
		return errors.New("secret detail")
	}
	return nil
}

// startTLS says EHLO and STARTTLS and does the handshake.
func (c *talk) startTLS(conf *tls.Config) {
	c.t.Helper()
	if conf == nil {
		conf = &tls.Config{InsecureSkipVerify: true}
	}
	c.say("EHLO client.example.net", "250")
	c.say("STARTTLS", "220 2.0.0")
	conn := tls.Client(c.conn, conf)
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if err := conn.Handshake(); err != nil {
		c.t.Fatalf("handshake: %v", err)
	}
	c.conn = conn
}

func (c *conversation) lead(talk *talk, file, way string) {
	t := talk.t
	t.Helper()
	if way == "packet" {
		var all strings.Builder
		for _, s := range c.steps {
			if s.op == "send" {
				all.WriteString(s.text)
			}
		}
		talk.send(all.String())
	}
	for _, s := range c.steps {
		switch s.op {
		case "send":
			if way != "packet" {
				talk.send(s.text)
			}
		case "want":
			got := talk.line()
			prefix, wild := strings.CutSuffix(s.text, "*")
			if got != s.text && !(wild && got != "" && strings.HasPrefix(got, prefix)) {
				t.Fatalf("%s:%d: got %q, want %q", file, s.line, got, s.text)
			}
		case "ehlo":
			if got := talk.reply(); !strings.HasPrefix(got, "250-mx2.example.org\n") {
				t.Fatalf("%s:%d: got %q, want the reply to EHLO", file, s.line, got)
			}
		case "end":
			if got := talk.line(); got != "" {
				t.Fatalf("%s:%d: got %q, want the end", file, s.line, got)
			}
		}
	}
}

func (c *conversation) ends() bool {
	return len(c.steps) > 0 && c.steps[len(c.steps)-1].op == "end"
}

func check(t *testing.T, what string, messages []spooled, want []string) {
	t.Helper()
	for i, m := range messages {
		got := describe(t, m)
		if i >= len(want) {
			t.Errorf("%s besides: %s", what, got)
		} else if got != want[i] {
			t.Errorf("%s\n%s, want\n%s", what, got, want[i])
		}
	}
	for i := len(messages); i < len(want); i++ {
		t.Errorf("not %s: %s", what, want[i])
	}
}
