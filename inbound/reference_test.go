package inbound

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"understudy/internal/mta"
)

// slowServer is what a connection promises, read octet by octet from a string that holds all of it: the codes of the
// replies, and the contents of the messages. It knows nothing of buffers, go-smtp or batches.
type slowServer struct {
	in       string
	codes    []int
	messages []string

	greeted, from, utf8, ended bool
	rcpts                      int
}

func (s *slowServer) run() {
	s.say(220)
	for !s.ended {
		line, ok := s.line()
		if !ok {
			return
		}
		s.obey(line)
	}
}

func (s *slowServer) say(code int) {
	s.codes = append(s.codes, code)
	if code == 421 || code == 221 {
		s.ended = true
	}
}

// line takes one command; what is too long is answered and skipped.
func (s *slowServer) line() (string, bool) {
	for {
		line, rest, ok := strings.Cut(s.in, "\n")
		if otherProtocol([]byte(line)) {
			s.say(421)
			return "", false
		}
		if len(line)+1 > maxCommand && isChunk([]byte(line)) {
			s.unreadable(line)
			return "", false
		}
		if !ok {
			return "", false
		}
		s.in = rest
		if len(line)+1 <= maxCommand {
			return strings.TrimSuffix(line, "\r"), true
		}
		s.say(500)
	}
}

func (s *slowServer) obey(line string) {
	cmd, reply := parseCommand([]byte(line))
	if reply != nil {
		s.unreadable(line)
		return
	}
	switch cmd.verb {
	case "HELO", "EHLO":
		if cmd.arg == "" || len(strings.Fields(cmd.arg)[0]) > 255 {
			s.say(501)
			return
		}
		s.greeted, s.from, s.rcpts = true, false, 0
		s.say(250)
	case "MAIL":
		s.mail(cmd.arg)
	case "RCPT":
		s.rcpt(cmd.arg)
	case "DATA":
		s.data(cmd.arg)
	case "BDAT":
		s.bdat(cmd.arg)
	case "RSET":
		if cmd.arg == "" {
			s.from, s.rcpts = false, 0
			s.say(250)
			return
		}
		s.say(501)
	case "QUIT":
		if cmd.arg == "" {
			s.say(221)
			return
		}
		s.say(501)
	case "NOOP":
		s.say(250)
	case "VRFY":
		s.say(252)
	case "HELP":
		s.say(214)
	case "EXPN", "AUTH", "ETRN":
		s.say(502)
	case "STARTTLS":
		if cmd.arg == "" {
			s.say(502)
			return
		}
		s.say(501)
	default:
		s.say(500)
	}
}

// unreadable refuses a line; if content was to follow it, that is the end.
func (s *slowServer) unreadable(line string) {
	if s.ended = len(line) >= 4 && strings.EqualFold(line[:4], "BDAT"); s.ended {
		s.say(501)
		return
	}
	s.say(500)
}

func (s *slowServer) mail(arg string) {
	raw, rest, ok := splitPath(arg, "FROM:")
	if !ok {
		s.say(501)
		return
	}
	if !s.greeted || s.from {
		s.say(503)
		return
	}
	p, reply := parseMailParams(rest, offers{true, true, true, false})
	from, err := mta.ParsePath(raw)
	switch {
	case reply != nil:
		s.say(reply.Code)
	case err != nil || from.Domain == "" && !from.IsNull():
		s.say(badPath("5.1.7", raw, p.SMTPUTF8).Code)
	case !p.SMTPUTF8 && !from.IsASCII():
		s.say(553)
	case p.size > int64(minMessageSize):
		s.say(552)
	default:
		s.from, s.utf8 = true, p.SMTPUTF8
		s.say(250)
	}
}

func (s *slowServer) rcpt(arg string) {
	raw, rest, ok := splitPath(arg, "TO:")
	switch {
	case !ok:
		s.say(501)
	case !s.greeted || !s.from:
		s.say(503)
	case s.rcpts == minRecipients:
		s.say(452)
	default:
		s.recipient(raw, rest)
	}
}

func (s *slowServer) recipient(raw, rest string) {
	_, reply := parseRcptParams(rest, offers{true, true, true, false}, s.utf8)
	to, err := mta.ParsePath(raw)
	switch {
	case reply != nil:
		s.say(reply.Code)
	case err != nil || to.IsNull():
		s.say(badPath("5.1.3", raw, s.utf8).Code)
	case !s.utf8 && !to.IsASCII():
		s.say(553)
	case !strings.EqualFold(to.Domain, "example.org"):
		s.say(550)
	default:
		s.rcpts++
		s.say(250)
	}
}

// oneDomain is a policy without surprises.
type oneDomain struct{}

func (oneDomain) Recipient(_ context.Context, _ *mta.Envelope, to mta.Path) (mta.Recipient, error) {
	if !strings.EqualFold(to.Domain, "example.org") {
		return mta.Recipient{}, mta.NewReply(550, "5.7.1", "relaying denied")
	}
	return mta.Recipient{Addr: to, Dest: "example.org"}, nil
}

// allInline sends the mail of one domain inline.
type allInline struct{ testJudge }

func (*allInline) Admit(ctx context.Context, env *mta.Envelope, to mta.Path) (mta.Recipient, mta.Road, error) {
	r, err := oneDomain{}.Recipient(ctx, env, to)
	return r, mta.Inline, err
}

func (*allInline) Clean(*mta.Envelope, mta.Content) (mta.Edit, error) { return mta.Edit{}, nil }

// willing is a relay to a primary that takes everything, and keeps it where the spool would.
type willing struct{ kept *memorySpool }

func (w willing) Begin(_ context.Context, env *mta.Envelope, _ string) (Transaction, error) {
	return &willingTransaction{w, env}, nil
}

type willingTransaction struct {
	willing
	env *mta.Envelope
}

func (*willingTransaction) Abort() {}

func (*willingTransaction) Rcpt(context.Context, mta.Recipient) (mta.Reply, error) {
	return mta.Reply{Code: 250, Text: "ok"}, nil
}

func (t *willingTransaction) Send(ctx context.Context, c mta.Content) (mta.Reply, error) {
	r, err := c.Open()
	if err != nil {
		return mta.Reply{}, err
	}
	defer r.Close()
	return mta.Reply{Code: 250, Text: "ok"}, t.kept.Put(ctx, t.env, r)
}

func (s *slowServer) data(arg string) {
	if arg != "" {
		s.say(501)
		return
	}
	if s.rcpts == 0 {
		s.say(503)
		return
	}
	s.say(354)
	content, rest, done, _ := slowFrame(s.in, true)
	if !done {
		s.ended = true
		return
	}
	s.in = s.in[len(s.in)-rest:]
	s.keep(content, len(content))
}

func (s *slowServer) keep(content string, counted int) {
	s.from, s.rcpts = false, 0
	if counted > int(minMessageSize) {
		s.say(552)
		return
	}
	s.messages = append(s.messages, content)
	s.say(250)
}

func (s *slowServer) chunk(arg string) (size int, last, ok bool) {
	num, rest, _ := strings.Cut(arg, " ")
	n, err := strconv.ParseInt(num, 10, 64)
	rest = strings.TrimSpace(rest)
	if err != nil || num[0] == '+' || n < 0 || rest != "" && !strings.EqualFold(rest, "LAST") {
		s.say(501)
		s.ended = true
		return 0, false, false
	}
	return int(n), rest != "", true
}

func (s *slowServer) bdat(arg string) {
	size, last, ok := s.chunk(arg)
	if !ok {
		return
	}
	if s.rcpts == 0 {
		s.say(503)
		if size > len(s.in) || size > int(minMessageSize) {
			s.ended = true
			return
		}
		s.in = s.in[size:]
		return
	}
	raw := ""
	for {
		if size > len(s.in) {
			s.ended = true
			return
		}
		raw += s.in[:size]
		s.in = s.in[size:]
		if last {
			content, _, _, _ := slowFrame(raw, false)
			s.keep(content, len(content))
			return
		}
		s.say(250)
		if size, last, ok = s.nextChunk(); !ok {
			return
		}
	}
}

// nextChunk reads on to the next BDAT. What gives the message up is obeyed.
func (s *slowServer) nextChunk() (size int, last, ok bool) {
	for {
		line, ok := s.line()
		if !ok {
			s.ended = true
			return 0, false, false
		}
		cmd, reply := parseCommand([]byte(line))
		switch {
		case reply != nil:
			if s.unreadable(line); s.ended {
				return 0, false, false
			}
		case cmd.verb == "BDAT":
			return s.chunk(cmd.arg)
		case cmd.verb == "NOOP":
			s.say(250)
		case cmd.verb == "RSET", cmd.verb == "QUIT", cmd.verb == "HELO", cmd.verb == "EHLO":
			s.from, s.rcpts = false, 0
			s.obey(line)
			return 0, false, false
		default:
			s.say(503)
		}
	}
}

// piecewise is a connection whose client sends in pieces of n octets and then hangs up.
type piecewise struct {
	memoryConn
	n int
}

func (c *piecewise) Read(p []byte) (int, error) { return c.in.Read(p[:min(len(p), c.n)]) }

// oneConn is a listener of one connection.
type oneConn struct{ conn net.Conn }

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	return nil, errors.New("no more")
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

func referenceConfig(t testing.TB) Config {
	cfg := testConfig(t)
	cfg.MaxMessageSize, cfg.MaxRecipients = minMessageSize, minRecipients
	cfg.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	cfg.Listen[0].Hide = []string{"STARTTLS", "REQUIRETLS"}
	return cfg
}

// FuzzWireAgreesWithSlowReference sends a connection's octets in pieces and compares with a server that sees all of
// them at once: the same commands are obeyed and the same content is kept, however they are cut.
func FuzzWireAgreesWithSlowReference(f *testing.F) {
	const open = "EHLO x\r\nMAIL FROM:<b@example.net>\r\nRCPT TO:<a@example.org>\r\n"
	for _, s := range []string{
		open + "DATA\r\nhi\r\n.\r\nQUIT\r\n",
		open + "DATA\r\n..a\r\r\n.\r\r\n.\n\r\n.\r\nNOOP\r\nmail from:<>\r\n",
		open + "BDAT 3\r\na\r\nBDAT 2 LAST\r\n\n.QUIT\r\n",
		open + "BDAT 3\r\nabcRSET\r\nBDAT 5 LAST\r\nQUIT\nVRFY x\r\n",
		open + "BDAT 3\r\nabcEHLO y\r\nDATA\r\nBDAT +1 LAST\r\nQUIT\r\n",
		open + "BDAT 1\r\nxBDAT -1\r\n", open + "DATA\r\nnever ends",
		open + "BDAT 4\r\n\r\r\r\rNOOP\nDATA\r\nGET / HTTP/1.1\r\n",
		open + "MAIL FROM:<x@example.net>\r\nRCPT TO:<\"\r\nDATA x\r\nAUTH PLAIN\r\nHELP\r\n",
		"HELO x\nMAIL FROM:<\"a>\"@example.net> SIZE=65536 BODY=8BITMIME\n\x00\r\nRSET now\r\nNOOP " + strings.Repeat("x", 4100) + "\r\nQUIT \r\n",
		open + "BDAT 1 " + strings.Repeat(" ", 4100) + "LAST\r\nQUIT\r\n", "BDAT" + strings.Repeat("x", 5000),
		open + "DATA\r\n" + strings.Repeat("x", 5000) + "\r\n.\r\n" + strings.Repeat("y", 4094) + "\r\n" + strings.Repeat("z", 4095) + "\r\nNOOP\r\n",
		"BDAT 4 LAST\r\nQUIT\r\nETRN x\r\nSTARTTLS\r\n\x16\x03\x01",
	} {
		for _, n := range []uint16{1, 6, 7, 4096} {
			f.Add(s, n)
		}
	}
	cfg := referenceConfig(f)
	f.Fuzz(func(t *testing.T, in string, n uint16) {
		if len(in) > 30_000 {
			t.Skip("sizes have tests of their own")
		}
		var want slowServer
		want.in = in
		want.run()

		spool := &memorySpool{}
		deps := Deps{Spool: spool, Policy: oneDomain{}}
		if n%2 == 1 { // inline, which must make no difference
			deps.Relay, deps.Judge = willing{spool}, &allInline{}
		}
		s, err := New(cfg, deps)
		if err != nil {
			t.Fatal(err)
		}
		c := &piecewise{memoryConn{in: bytes.NewReader([]byte(in))}, int(n) + 1}
		l := &listener{Listener: &oneConn{conn: c}, srv: s, hidden: map[string]bool{"STARTTLS": true}}
		s.smtp.Serve(l) // returns at the second Accept
		s.smtp.Shutdown(t.Context())

		if got := codes(t, c.out.String()); !slices.Equal(got, want.codes) {
			t.Fatalf("%q in pieces of %d:\ngot  %v\nwant %v\n%s", in, int(n)+1, got, want.codes, c.out.String())
		}
		var got []string
		for _, m := range spool.all() {
			_, content, _ := strings.Cut(m.content, "; ")
			_, content, _ = strings.Cut(content, "\r\n")
			got = append(got, content)
		}
		if !reflect.DeepEqual(got, want.messages) {
			t.Fatalf("%q in pieces of %d: kept %q, want %q", in, int(n)+1, got, want.messages)
		}
	})
}

// codes are those of the final lines of replies.
func codes(t *testing.T, out string) []int {
	t.Helper()
	var list []int
	for line := range strings.SplitSeq(strings.TrimSuffix(out, "\r\n"), "\r\n") {
		code, err := strconv.Atoi(line[:3])
		if err != nil || len(line) < 4 {
			t.Fatalf("reply line %q", line)
		}
		if line[3] == ' ' {
			list = append(list, code)
		}
	}
	return list
}
