package testkit

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/pires/go-proxyproto"
)

// errOver ends a session.
var errOver = errors.New("session over")

// session is one client at a Primary.
type session struct {
	p       *Primary
	nc, raw net.Conn
	n       int
	stopped <-chan struct{}
	r       *bufio.Reader
	w       *bufio.Writer

	tls     bool
	helo    string
	client  string // what XCLIENT or PROXY told
	mails   int
	open    bool // in a transaction
	msg     Message
	content []byte // of BDAT so far
	chunks  bool   // a BDAT came in this transaction
}

func (s *session) run() {
	defer s.w.Flush()
	if s.p.PROXY && s.proxy() != nil {
		return
	}
	if ok, err := s.say(Point{Step: AtBanner}, "220 "+s.p.Hostname+" ESMTP"); !ok || err != nil {
		return
	}
	for {
		line, err := s.line()
		if err != nil || s.command(line) != nil {
			return
		}
	}
}

func (s *session) proxy() error {
	h, err := proxyproto.Read(s.r)
	if err != nil {
		return err
	}
	s.client = "PROXY LOCAL"
	if h.Command == proxyproto.PROXY {
		s.client = "PROXY " + h.SourceAddr.String()
	}
	return nil
}

// line reads a command; replies leave when nothing more is there to be read (RFC 2920, 3.2).
func (s *session) line() (string, error) {
	if err := s.flush(); err != nil {
		return "", err
	}
	l, err := s.r.ReadString('\n')
	return strings.TrimRight(l, "\r\n"), err
}

func (s *session) flush() error {
	if s.r.Buffered() > 0 {
		return nil
	}
	return s.w.Flush()
}

// say answers with the usual, or does what the script wants. ok tells whether the answer was 2yz or 3yz.
func (s *session) say(at Point, usual string) (ok bool, err error) {
	a := s.ask(at)
	if a.Say == "" && a.Then == GoOn {
		a.Say = usual + "\r\n"
	}
	s.w.WriteString(a.Say)
	if a.Then == GoOn {
		return strings.HasPrefix(a.Say, "2") || strings.HasPrefix(a.Say, "3"), nil
	}
	s.w.Flush()
	switch a.Then {
	case Stall:
		<-s.stopped
	case Reset:
		reset(s.raw)
	}
	return false, errOver
}

func (s *session) ask(at Point) Action {
	at.Conn, at.Message = s.n, s.mails
	if at.From == "" {
		at.From = s.msg.From
	}
	s.p.mu.Lock()
	script, gate := s.p.script, s.p.gate
	s.p.mu.Unlock()
	if script == nil {
		return Action{}
	}
	a := script(at)
	if a.Delay {
		s.w.Flush()
		select {
		case <-gate:
		case <-s.stopped:
			a.Then = Close
		}
	}
	return a
}

func (s *session) command(line string) error {
	if !s.p.Discard {
		s.p.mu.Lock()
		s.p.seen = append(s.p.seen, line)
		s.p.notify()
		s.p.mu.Unlock()
	}
	verb, arg, _ := strings.Cut(line, " ")
	switch strings.ToUpper(verb) {
	case "EHLO", "LHLO", "HELO":
		return s.hello(strings.ToUpper(verb), arg)
	case "STARTTLS":
		return s.starttls()
	case "XCLIENT":
		return s.xclient(arg)
	case "RSET":
		s.reset()
		return s.only(s.say(Point{Step: AtRSET}, "250 2.0.0 ok"))
	case "MAIL":
		return s.mail(arg)
	case "RCPT":
		return s.rcpt(arg)
	case "DATA":
		return s.data()
	case "BDAT":
		return s.chunk(arg)
	case "QUIT":
		if _, err := s.say(Point{Step: AtQUIT}, "221 2.0.0 bye"); err != nil {
			return err
		}
		return errOver
	case "NOOP":
		return s.plain("250 2.0.0 ok")
	}
	return s.plain("500 5.5.2 unknown command")
}

func (s *session) only(_ bool, err error) error { return err }

func (s *session) plain(l string) error {
	_, err := s.w.WriteString(l + "\r\n")
	return err
}

func (s *session) reset() {
	s.open, s.chunks, s.msg, s.content = false, false, Message{}, nil
}

func (s *session) hello(verb, name string) error {
	if s.p.LMTP != (verb == "LHLO") {
		return s.plain("500 5.5.1 wrong protocol")
	}
	s.helo = name
	s.reset()
	if verb == "HELO" {
		return s.only(s.say(Point{Step: AtEHLO, Arg: name}, "250 "+s.p.Hostname))
	}
	lines := append([]string{s.p.Hostname}, s.p.caps(s.tls)...)
	for i := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		lines[i] = "250" + sep + lines[i]
	}
	return s.only(s.say(Point{Step: AtEHLO, Arg: name}, strings.Join(lines, "\r\n")))
}

func (p *Primary) caps(inTLS bool) []string {
	caps := p.Caps
	if caps == nil {
		caps = []string{"PIPELINING", "CHUNKING", "8BITMIME", "SMTPUTF8", "DSN", "SIZE 67108864", "ENHANCEDSTATUSCODES"}
	}
	if p.TLS != nil && !inTLS {
		caps = append(caps[:len(caps):len(caps)], "STARTTLS")
	}
	if p.XCLIENT {
		caps = append(caps[:len(caps):len(caps)], "XCLIENT NAME ADDR PORT PROTO HELO")
	}
	return caps
}

func (s *session) starttls() error {
	if s.p.TLS == nil || s.tls {
		return s.plain("502 5.5.1 not here")
	}
	ok, err := s.say(Point{Step: AtSTARTTLS}, "220 2.0.0 go ahead")
	if err != nil || !ok {
		return err
	}
	if err := s.w.Flush(); err != nil {
		return err
	}
	tc := tls.Server(s.nc, s.p.TLS)
	if err := tc.Handshake(); err != nil {
		return err
	}
	s.nc, s.tls = tc, true
	s.r.Reset(tc)
	s.w.Reset(tc)
	s.reset()
	return nil
}

// xclient resets the session to where it was after connecting, as Postfix does: a banner is the answer.
func (s *session) xclient(arg string) error {
	if !s.p.XCLIENT {
		return s.plain("502 5.5.1 not here")
	}
	if s.open {
		return s.plain("503 5.5.1 in a transaction")
	}
	ok, err := s.say(Point{Step: AtXCLIENT, Arg: arg}, "220 "+s.p.Hostname+" ESMTP")
	if err == nil && ok {
		s.client = strings.TrimSpace(s.client + " " + arg)
	}
	return err
}

func (s *session) mail(arg string) error {
	path, params, ok := cutPath(arg, "FROM:")
	if !ok {
		return s.plain("501 5.5.4 bad syntax")
	}
	if s.open {
		return s.plain("503 5.5.1 nested MAIL")
	}
	s.mails++
	ok, err := s.say(Point{Step: AtMAIL, From: path, Arg: path}, "250 2.1.0 ok")
	if err == nil && ok {
		s.open = true
		s.msg = Message{From: path, Params: params, Conn: s.n, Helo: s.helo, XClient: s.client, TLS: s.tls}
	}
	return err
}

func (s *session) rcpt(arg string) error {
	path, params, ok := cutPath(arg, "TO:")
	if !ok {
		return s.plain("501 5.5.4 bad syntax")
	}
	if !s.open {
		return s.plain("503 5.5.1 MAIL first")
	}
	n := s.msg.asked
	s.msg.asked++
	ok, err := s.say(Point{Step: AtRCPT, Rcpt: n, Arg: path}, "250 2.1.5 ok")
	if err == nil && ok {
		s.msg.Rcpts = append(s.msg.Rcpts, path)
		s.msg.RParams = append(s.msg.RParams, params)
	}
	return err
}

func cutPath(arg, key string) (path, params string, ok bool) {
	if len(arg) < len(key) || !strings.EqualFold(arg[:len(key)], key) {
		return "", "", false
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(arg[len(key):]), "<")
	if !ok {
		return "", "", false
	}
	quoted := false
	for i := 0; i < len(rest); i++ {
		switch {
		case rest[i] == '\\' && quoted:
			i++
		case rest[i] == '"':
			quoted = !quoted
		case rest[i] == '>' && !quoted:
			return rest[:i], strings.TrimSpace(rest[i+1:]), true
		}
	}
	return "", "", false
}

func (s *session) data() error {
	if len(s.msg.Rcpts) == 0 || s.chunks {
		return s.plain("503 5.5.1 no valid recipients")
	}
	ok, err := s.say(Point{Step: AtDATA}, "354 go on")
	if err != nil || !ok {
		return err
	}
	if err := s.w.Flush(); err != nil {
		return err
	}
	half := func() error { return s.midway() }
	content, err := readDotted(s.r, half)
	if err != nil {
		return err
	}
	return s.final(content)
}

// midway is asked once, when the first part of the content has been read.
func (s *session) midway() error {
	a := s.ask(Point{Step: AtBody})
	if a.Say == "" && a.Then == GoOn {
		return nil
	}
	s.w.WriteString(a.Say)
	s.w.Flush()
	switch a.Then {
	case GoOn:
		return nil
	case Stall:
		<-s.stopped
	case Reset:
		reset(s.raw)
	}
	return errOver
}

func readDotted(r *bufio.Reader, half func() error) ([]byte, error) {
	var b bytes.Buffer
	for first := true; ; first = false {
		l, err := r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		if first {
			if err := half(); err != nil {
				return nil, err
			}
		}
		if string(l) == ".\r\n" {
			return b.Bytes(), nil
		}
		if atStart := b.Len() == 0 || bytes.HasSuffix(b.Bytes(), []byte("\r\n")); atStart && l[0] == '.' {
			l = l[1:]
		}
		b.Write(l)
	}
}

func (s *session) chunk(arg string) error {
	num, last, _ := strings.Cut(arg, " ")
	n, err := strconv.Atoi(num)
	if err != nil || n < 0 || last != "" && !strings.EqualFold(last, "LAST") {
		return s.plain("501 5.5.4 bad syntax")
	}
	if err := s.readChunk(n); err != nil {
		return err
	}
	if len(s.msg.Rcpts) == 0 {
		s.content = nil
		return s.plain("503 5.5.1 no valid recipients")
	}
	s.chunks = true
	if last == "" {
		return s.plain("250 2.0.0 chunk taken")
	}
	return s.final(s.content)
}

func (s *session) readChunk(n int) error {
	buf := make([]byte, n)
	if err := s.read(buf[:n/2]); err != nil {
		return err
	}
	if err := s.midway(); err != nil {
		return err
	}
	if err := s.read(buf[n/2:]); err != nil {
		return err
	}
	if s.content == nil {
		s.content = buf
		return nil
	}
	s.content = append(s.content, buf...)
	return nil
}

func (s *session) read(b []byte) error {
	if s.r.Buffered() < len(b) {
		if err := s.w.Flush(); err != nil {
			return err
		}
	}
	_, err := io.ReadFull(s.r, b)
	return err
}

// final answers for the content: once, or in LMTP once a recipient (RFC 2033, 4.2).
func (s *session) final(content []byte) error {
	m := s.msg
	m.Content, m.At = content, time.Now()
	s.reset()
	if !s.p.LMTP {
		ok, err := s.say(Point{Step: AtFinal, From: m.From, Arg: m.From}, "250 2.0.0 taken")
		if ok {
			s.p.take(m)
		}
		return err
	}
	taken := m
	taken.Rcpts = nil
	for i, r := range m.Rcpts {
		ok, err := s.say(Point{Step: AtFinal, From: m.From, Rcpt: i, Arg: r}, "250 2.1.5 taken")
		if err != nil {
			return err
		}
		if ok {
			taken.Rcpts = append(taken.Rcpts, r)
		}
	}
	if len(taken.Rcpts) > 0 {
		s.p.take(taken)
	}
	return nil
}

// take records a message before its 250 leaves.
func (p *Primary) take(m Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.accepted++
	if !p.Discard {
		p.messages = append(p.messages, m)
	}
	p.notify()
}
