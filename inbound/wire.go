package inbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"understudy/internal/mta"
)

const (
	maxCommand   = 4096             // octets of a command line with its newline
	smallBuffer  = 1 << 10          // what an idle connection holds
	largeBuffer  = 32 << 10         // what content and pipelined groups are read into
	maxOut       = 16 << 10         // replies are sent at the latest when so many octets wait
	writeTimeout = 2 * time.Minute  // for one group of replies
	lingerTime   = time.Second      // how long a client that we hang up on may take to read why
	keepLarge    = time.Second      // how long a client may be silent before its large buffer is taken back
	maxJunk      = 100              // commands without effect between messages; each further one is an error
	tlsTimeout   = 60 * time.Second // for a handshake
	nameTimeout  = 5 * time.Second  // for the client's name: without it, mail is taken all the same
)

var largePool = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// errEnded is what reads return once the wire has said its last word.
var errEnded = errors.New("connection ended")

// errAborted is what content ends with when the client gave a message up between two chunks.
var errAborted = errors.New("message given up by the client")

// wire is the net.Conn below one go-smtp connection. It owns the socket, its deadlines, STARTTLS and all framing:
// go-smtp sees one well-formed command a Read, never content, and what it answers is put in our words. So go-smtp
// decides which command is in order, and the wire what a command, a message and a reply is.
//
// One goroutine, go-smtp's, uses a wire. Only poke and kill may be called from elsewhere.
type wire struct {
	srv      *Server
	listener *listener
	log      *slog.Logger
	raw      net.Conn // the socket
	conn     net.Conn // what is read and written: the socket, or TLS over it
	leave    func()   // gives the client's place at the gate back
	remote   netip.AddrPort
	local    netip.AddrPort
	secured  *tls.ConnectionState

	in    []byte // in[r:w] was read and not yet used
	r, w  int
	large *[largeBuffer]byte // what in is a part of, if it is large
	out   []byte             // replies that wait for the end of the group
	owed  bool               // one of them ends a message, and must not wait for the next one to be stored
	line  []byte             // the last command for go-smtp
	feed  []byte             // what go-smtp has still to read of it

	opened  bool // the greeting has begun
	greeted bool // HELO or EHLO was taken, since STARTTLS if there was one
	esmtp   bool
	helo    string
	early   bool // talked before the greeting was complete

	cmd     command  // what go-smtp is at
	held    *command // what ended a BDAT message, still to be obeyed
	content *content // the message that is coming in, from DATA or BDAT to go-smtp's reply
	answer  *mta.Reply
	theirs  bool   // answer is the primary's
	mute    bool   // go-smtp's next reply is for nobody
	tired   func() // somebody else waits for this client; may be nil
	tiredAt time.Time

	errors, refused, unknown, junk int

	ended  bool // the last word was said, or the client is gone
	closed bool
}

func (w *wire) LocalAddr() net.Addr              { return w.raw.LocalAddr() }
func (w *wire) RemoteAddr() net.Addr             { return w.raw.RemoteAddr() }
func (w *wire) SetDeadline(time.Time) error      { return nil } // the deadlines are the wire's own
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// poke wakes a client that waits for a command, so that it is told of the shutdown at once.
func (w *wire) poke() { w.raw.SetReadDeadline(time.Unix(1, 0)) }

// kill ends the connection now.
func (w *wire) kill() { w.raw.Close() }

// Read gives go-smtp its next command line. go-smtp reads only when it has answered the one before, so whatever the
// wire answers itself meanwhile is in its place.
func (w *wire) Read(p []byte) (int, error) {
	for len(w.feed) == 0 {
		if w.content != nil {
			w.endContent()
			continue
		}
		if w.ended {
			return 0, io.EOF
		}
		cmd, ok := w.nextCommand()
		if ok {
			w.obey(cmd)
		}
	}
	n := copy(p, w.feed)
	w.feed = w.feed[n:]
	return n, nil
}

// nextCommand reads a command. Not ok: it was answered, or the connection has ended.
func (w *wire) nextCommand() (command, bool) {
	if w.held != nil {
		cmd := *w.held
		w.held = nil
		return cmd, true
	}
	line, err := w.readLine(w.srv.cfg.CommandTimeout, false)
	if err != nil {
		return command{}, false
	}
	return w.parse(line)
}

func (w *wire) parse(line []byte) (command, bool) {
	if otherProtocol(line) {
		w.crossTalk()
		return command{}, false
	}
	cmd, reply := parseCommand(line)
	switch {
	case reply == nil:
		return cmd, true
	case isChunk(line):
		w.end(badChunk)
	default:
		w.reply("", reply)
	}
	return command{}, false
}

func (w *wire) crossTalk() {
	w.log.Info("not SMTP", "peer", w.remote)
	w.end(mta.NewReply(421, "4.7.0", "this is an SMTP server, and that was another protocol"))
}

// readLine reads a line and takes its newline off. A line that is too long is answered here, and the connection lives.
// inContent is true between the chunks of a BDAT message, which a shutdown lets finish.
func (w *wire) readLine(timeout time.Duration, inContent bool) ([]byte, error) {
	deadline := time.Now().Add(timeout)
	tooLong := false // the beginning of the line was dropped
	for !w.ended {
		at := w.in[w.r:w.w]
		i := bytes.IndexByte(at, '\n')
		if i >= 0 {
			w.r += i + 1
			at = at[:i]
			if !tooLong && (i+1 <= maxCommand || otherProtocol(at)) {
				return w.chomp(at)
			}
		}
		switch {
		case !tooLong && len(at) >= 2 && otherProtocol(at):
			w.crossTalk()
		case !tooLong && len(at)+1 > maxCommand && isChunk(at):
			w.end(badChunk)
		case i >= 0:
			tooLong = false
			w.reply("", mta.NewReply(500, "5.5.2", "a command may have %d octets at most", maxCommand))
		case len(at)+1 > maxCommand:
			tooLong = true
			w.r = w.w
			fallthrough
		default:
			w.fill(deadline, inContent)
		}
	}
	return nil, errEnded
}

// chomp takes the CR off, or ends the connection if there is none and that matters to the operator. To take a lone LF
// is safe here: content never ends with one.
func (w *wire) chomp(line []byte) ([]byte, error) {
	if n := len(line); n > 0 && line[n-1] == '\r' {
		return line[:n-1], nil
	}
	if w.srv.cfg.BareNewline == RejectBareNewlines {
		w.end(mta.NewReply(521, "5.5.2", "a line must end with CR LF"))
		return nil, errEnded
	}
	return line, nil
}

// fill reads more of the client's octets. All replies leave first, in one write: the client has nothing to wait for
// but them. An error ends the connection, and the client was told why if it can be.
func (w *wire) fill(deadline time.Time, inContent bool) error {
	if w.ended {
		return errEnded
	}
	w.flush()
	w.makeRoom(inContent)
	for {
		until := w.untilTired(deadline)
		if w.large != nil && !inContent {
			until = time.Now().Add(min(keepLarge, time.Until(until)))
		}
		w.raw.SetReadDeadline(until)
		if w.srv.closing.Load() && !inContent { // after the deadline was set: poke is not lost
			w.end(mta.NewReply(421, "4.3.2", "going down for a moment, please try again"))
			return errEnded
		}
		n, err := w.conn.Read(w.in[w.w:])
		w.w += n
		if n > 0 {
			return nil
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			w.lost(err)
			return io.ErrUnexpectedEOF
		}
		if time.Now().Before(deadline) { // poked, or the time of the large buffer or of who waits is up
			w.shrink(inContent)
			continue
		}
		w.end(mta.NewReply(421, "4.4.2", "waited too long for you"))
		return errEnded
	}
}

// untilTired is the deadline, or when somebody else ceases to wait for the client if that is sooner.
func (w *wire) untilTired(deadline time.Time) time.Time {
	switch {
	case w.tired == nil:
	case !time.Now().Before(w.tiredAt):
		w.tired()
	case w.tiredAt.Before(deadline):
		return w.tiredAt
	}
	return deadline
}

// makeRoom sees to it that in has room for a read: a small buffer for a command, a large one for content.
func (w *wire) makeRoom(inContent bool) {
	if w.r == w.w {
		w.r, w.w = 0, 0
	}
	if w.large == nil && (inContent || w.w > smallBuffer/2 || w.w == len(w.in) && w.w > 0) {
		w.large = largePool.Get().(*[largeBuffer]byte)
		w.w = copy(w.large[:], w.in[w.r:w.w])
		w.r = 0
		w.in = w.large[:]
		return
	}
	if w.in == nil {
		w.in = make([]byte, smallBuffer)
	}
	if w.w == len(w.in) { // full, but not with what is still to be used: a line is shorter
		w.w = copy(w.in, w.in[w.r:w.w])
		w.r = 0
	}
}

// shrink gives the large buffer of a silent client back.
func (w *wire) shrink(inContent bool) {
	if inContent || w.large == nil || w.w-w.r > smallBuffer/2 {
		return
	}
	small := make([]byte, smallBuffer)
	w.w = copy(small, w.in[w.r:w.w])
	w.r = 0
	w.in = small
	w.releaseLarge()
}

func (w *wire) releaseLarge() {
	if w.large != nil {
		largePool.Put(w.large)
		w.large = nil
	}
}

// flush sends the replies that wait.
func (w *wire) flush() {
	if len(w.out) == 0 {
		return
	}
	w.owed = false
	w.raw.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := w.conn.Write(w.out); err != nil {
		w.lost(err)
	}
	if cap(w.out) <= smallBuffer {
		w.out = w.out[:0]
		return
	}
	w.out = nil
}

// lost notes that the client is gone.
func (w *wire) lost(err error) {
	if !w.ended && !errors.Is(err, io.EOF) {
		w.log.Debug("connection lost", "peer", w.remote, "err", err)
	}
	w.ended = true
	w.out = nil
}

// end says the last word.
func (w *wire) end(r *mta.Reply) {
	if w.ended {
		return
	}
	w.out = appendReply(w.out, withContact(r, w.srv.cfg.Contact))
	w.flush()
	if !w.ended {
		w.ended = true
		w.linger()
	}
}

// linger lets the client read our last word: to close a socket with unread octets in it would reset the connection,
// and the reply would be lost.
func (w *wire) linger() {
	half, ok := w.conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	if w.conn != w.raw { // TLS has said its end, TCP has not
		if half, ok := w.raw.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
	}
	w.raw.SetReadDeadline(time.Now().Add(lingerTime))
	io.CopyN(io.Discard, w.raw, 1<<20)
}

// Close implements net.Conn.
func (w *wire) Close() error {
	if w.closed {
		return nil
	}
	w.flush()
	w.closed, w.ended = true, true // go-smtp reads once more after QUIT
	w.content, w.held, w.in, w.r, w.w = nil, nil, nil, 0, 0
	w.releaseLarge()
	w.conn.Close()
	w.raw.Close()
	if w.leave != nil { // a balancer that did not name its client took no place
		w.leave()
	}
	w.srv.forget(w)
	return nil
}

// Write takes go-smtp's replies, one line a call, and sends ours in their place.
func (w *wire) Write(p []byte) (int, error) {
	if len(p) < 4 || p[3] == '-' { // only EHLO has more than one line, and that we write ourselves
		return len(p), nil
	}
	if !w.opened {
		w.opened = true
		w.greet()
		return len(p), nil
	}
	if w.ended {
		return len(p), nil
	}
	w.translate(int(p[0]-'0')*100+int(p[1]-'0')*10+int(p[2]-'0'), p[4:])
	return len(p), nil
}

// translate decides what the client hears when go-smtp says this.
func (w *wire) translate(code int, text []byte) {
	answer, theirs := w.answer, w.theirs
	w.answer, w.theirs = nil, false
	switch {
	case w.mute:
		w.mute = false
	case code == 354:
		w.content.begun = true // the client is told when the session asks for the content
	case code == 421: // go-smtp caught a panic of ours
		w.end(mta.NewReply(421, "4.3.0", "local trouble, please try again later"))
	case answer != nil:
		w.owed = w.owed || w.cmd.verb == verbDATA || w.cmd.verb == verbBDAT
		w.respond(w.cmd.verb, answer, theirs)
	case code == 250 && w.cmd.verb == verbEHLO:
		w.out = appendEHLO(w.out, w.srv.cfg.Hostname, w.offered())
	case code == 250 && w.cmd.verb == verbHELO:
		w.out = appendReply(w.out, mta.NewReply(250, "", "%s", w.srv.cfg.Hostname))
	case code == 502: // a command that came too early
		w.reply(w.cmd.verb, sequenceFault(w.cmd.verb, string(text)))
	default:
		r := mta.ParseReply(code, strings.TrimRight(string(text), "\r\n"))
		w.reply(w.cmd.verb, &r)
	}
}

// reply sends a reply of ours.
func (w *wire) reply(verb string, r *mta.Reply) { w.respond(verb, r, false) }

// respond sends a reply, the primary's word for word, and keeps count of what the client does wrong.
func (w *wire) respond(verb string, r *mta.Reply, theirs bool) {
	if w.ended {
		return
	}
	if verb == verbRCPT {
		w.srv.metrics.recipients.of(r.Code).Inc()
	}
	tooMany := w.count(verb, r)
	if r.Code == 421 || r.Code == 521 {
		w.end(r)
		return
	}
	contact := w.srv.cfg.Contact
	if theirs {
		contact = ""
	}
	w.out = appendReply(w.out, withContact(r, contact))
	if tooMany {
		w.log.Info("too many refusals", "peer", w.remote, "errors", w.errors, "refused", w.refused, "unknown", w.unknown)
		w.end(mta.NewReply(421, "4.7.0", "too many refused commands or recipients"))
		return
	}
	if len(w.out) >= maxOut {
		w.flush()
	}
}

// count adds a refusal to the connection's account, lets the client wait for it if there were many, and tells when
// there were too many.
func (w *wire) count(verb string, r *mta.Reply) bool {
	refused := verb == verbRCPT && (r.Permanent() || r.Code == 450)
	switch {
	case w.srv.trusts(w.remote.Addr()):
		return false
	case refused && saysUnknown(r):
		w.unknown++
	case refused:
		w.refused++
	case r.Permanent():
		w.errors++
	default:
		return false
	}
	cfg := &w.srv.cfg
	if w.errors*2 >= cfg.MaxErrors || w.refused*2 >= cfg.MaxRefused || w.unknown*2 >= cfg.MaxUnknown {
		w.srv.wait(cfg.Tarpit)
	}
	return w.errors >= cfg.MaxErrors || w.refused >= cfg.MaxRefused || w.unknown >= cfg.MaxUnknown
}

// saysUnknown tells whether a refusal of RCPT is of an address that does not exist. Primaries without status codes say so by
// 550 alone.
func saysUnknown(r *mta.Reply) bool {
	return strings.HasSuffix(r.Enhanced, ".1.1") || r.Enhanced == "" && r.Code == 550
}

// peer is who we talk to, for the envelope.
func (w *wire) peer(smtputf8 bool) mta.Peer {
	p := mta.Peer{Addr: w.remote, Local: w.local, Helo: w.helo, Early: w.early, Proto: "SMTP"}
	switch {
	case smtputf8:
		p.Proto = "UTF8SMTP" // RFC 6531, 4.3
	case w.esmtp || w.secured != nil: // there is no keyword for HELO after STARTTLS, which took an EHLO
		p.Proto = "ESMTP"
	}
	if s := w.secured; s != nil {
		p.Proto += "S" // RFC 3848
		p.TLS = &mta.TLS{Version: tls.VersionName(s.Version), Cipher: tls.CipherSuiteName(s.CipherSuite), ServerName: s.ServerName}
	}
	return p
}

// lookup finds the client's confirmed name.
func (w *wire) lookup(ctx context.Context) string {
	if w.srv.deps.Names == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	return w.srv.deps.Names(ctx, w.remote.Addr())
}
