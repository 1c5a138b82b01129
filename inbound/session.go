package inbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/emersion/go-smtp"

	"understudy/internal/mta"
)

// roomStep is how much content comes in between two questions whether there is still room for it.
const roomStep = 1 << 20

// maxHops is how many Received fields a message may come with (RFC 5321, 6.3: at least 100).
const maxHops = 100

// session is one client's conversation as go-smtp leads it. All its methods run on the connection's goroutine. What
// the client hears is what say was told; the error that go-smtp gets only steers its state.
type session struct {
	srv    *Server
	w      *wire
	log    *slog.Logger
	ctx    context.Context // until Logout; go-smtp's callbacks have none
	cancel context.CancelFunc

	env    *mta.Envelope // the transaction; nil outside of one
	size   int64         // as declared at MAIL; 0 if not
	roomy  map[string]bool
	name   string // the client's confirmed name, once looked up
	looked bool
}

// newSession is called at the first HELO or EHLO.
func (s *Server) newSession(c *smtp.Conn) (smtp.Session, error) {
	w := c.Conn().(*wire)
	ctx, cancel := context.WithCancel(s.base())
	return &session{srv: s, w: w, log: s.log, ctx: ctx, cancel: cancel}, nil
}

// Reset ends the transaction.
func (s *session) Reset() { s.env, s.size, s.roomy = nil, 0, nil }

// Logout ends the session.
func (s *session) Logout() error {
	s.cancel()
	return nil
}

// refusal makes go-smtp take a callback for refused. Its words are not said.
var refusal = &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "refused"}

var (
	senderOK    = mta.NewReply(250, "2.1.0", "sender ok")
	recipientOK = mta.NewReply(250, "2.1.5", "recipient ok")
)

// say leaves the answer with the wire. It is the only way out of a callback.
func (s *session) say(r *mta.Reply) error {
	s.w.answer = r
	if r.Code >= 400 {
		return refusal
	}
	return nil
}

// Mail begins a transaction.
func (s *session) Mail(string, *smtp.MailOptions) error {
	env, size, err := s.mail()
	if err != nil {
		return s.say(replyTo(err, s.log, s.w.remote))
	}
	s.env, s.size = env, size
	return s.say(senderOK)
}

func (s *session) mail() (*mta.Envelope, int64, error) {
	if s.env != nil { // go-smtp would join the new sender to the old recipients
		return nil, 0, mta.NewReply(503, "5.5.1", "a transaction is open already")
	}
	raw, rest, _ := splitPath(s.w.cmd.arg, "FROM:") // the wire has seen that it can be split
	p, reply := parseMailParams(rest, s.w.offers())
	if reply != nil {
		return nil, 0, reply
	}
	from, err := mta.ParsePath(raw)
	if err != nil || from.Domain == "" && !from.IsNull() {
		return nil, 0, badPath("5.1.7", raw, p.SMTPUTF8)
	}
	if !p.SMTPUTF8 && !from.IsASCII() {
		return nil, 0, mta.NewReply(553, "5.6.7", "this address needs SMTPUTF8")
	}
	if p.size > int64(s.srv.cfg.MaxMessageSize) {
		return nil, 0, s.tooLarge()
	}
	return &mta.Envelope{Node: s.srv.cfg.Hostname, Peer: s.peer(p.SMTPUTF8), From: from, Params: p.Params}, max(p.size, 0), nil
}

// peer is the client, with its name if it has one that is its own.
func (s *session) peer(smtputf8 bool) mta.Peer {
	p := s.w.peer(smtputf8)
	if !s.looked {
		s.looked = true
		s.name = s.w.lookup(s.ctx)
	}
	p.Name = s.name
	return p
}

// badPath refuses an address that can't be read; an octet outside ASCII is the more telling reason.
func badPath(enhanced, raw string, smtputf8 bool) *mta.Reply {
	if !smtputf8 && !isASCII(raw) {
		return mta.NewReply(553, "5.6.7", "this address needs SMTPUTF8")
	}
	return mta.NewReply(501, enhanced, "address %s is not valid", printable(raw))
}

func (s *session) tooLarge() *mta.Reply {
	return mta.NewReply(552, "5.3.4", "a message may have %d octets at most", int64(s.srv.cfg.MaxMessageSize))
}

// Rcpt adds a recipient.
func (s *session) Rcpt(string, *smtp.RcptOptions) error {
	if err := s.rcpt(); err != nil {
		r := replyTo(err, s.log, s.w.remote)
		to, _, _ := splitPath(s.w.cmd.arg, "TO:")
		s.log.Log(s.ctx, refusalLevel(r), "recipient refused", "peer", s.w.remote, "from", s.env.From, "to", to, "code", r.Code, "reply", r.String())
		return s.say(r)
	}
	return s.say(recipientOK)
}

// refusalLevel keeps a full spool, of which there is an alarm, from filling the log as well.
func refusalLevel(r *mta.Reply) slog.Level {
	if r.Enhanced == "4.3.1" {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

func (s *session) rcpt() error {
	raw, rest, _ := splitPath(s.w.cmd.arg, "TO:")
	p, reply := parseRcptParams(rest, s.w.offers(), s.env.Params.SMTPUTF8)
	if reply != nil {
		return reply
	}
	to, err := mta.ParsePath(raw)
	switch {
	case err != nil || to.IsNull():
		return badPath("5.1.3", raw, s.env.Params.SMTPUTF8)
	case !s.env.Params.SMTPUTF8 && !to.IsASCII():
		return mta.NewReply(553, "5.6.7", "this address needs SMTPUTF8")
	case strings.HasPrefix(to.Domain, "["):
		return mta.NewReply(550, "5.7.1", "mail to address literals is not relayed")
	}
	r, err := s.srv.deps.Policy.Recipient(s.ctx, s.env, to)
	if err != nil {
		return fmt.Errorf("inbound: recipient %s: %w", to, err)
	}
	r.Notify, r.ORcpt = p.notify, p.orcpt
	if err := s.bounded(r.Dest, s.size); err != nil {
		return err
	}
	if err := s.room(r.Dest); err != nil {
		return err
	}
	s.add(r)
	return nil
}

// bounded refuses now what the primaries of dest would refuse later, when the sender is gone.
func (s *session) bounded(dest string, size int64) error {
	if s.srv.deps.Bounds == nil {
		return nil
	}
	if r := s.srv.deps.Bounds(dest).Check(size, s.env.Params); r != nil {
		return r
	}
	return nil
}

// room asks, once for each destination, whether the spool could take the message: better no content than lost content.
func (s *session) room(dest string) error {
	if s.roomy[dest] {
		return nil
	}
	if err := s.srv.deps.Spool.Room(s.ctx, dest, s.size); err != nil {
		return fmt.Errorf("inbound: room for %s: %w", dest, err)
	}
	if s.roomy == nil {
		s.roomy = map[string]bool{}
	}
	s.roomy[dest] = true
	return nil
}

// stillRoom asks again while content comes in: many large messages at once, in files beside the spool, must not use up
// what it keeps in reserve.
func (s *session) stillRoom(size int64) error {
	for _, dest := range s.env.Dests() {
		if err := s.srv.deps.Spool.Room(s.ctx, dest, size); err != nil {
			return fmt.Errorf("inbound: room for %s: %w", dest, err)
		}
	}
	return nil
}

// add keeps a recipient once, however often it is named.
func (s *session) add(r mta.Recipient) {
	for i := range s.env.Rcpts {
		if have := s.env.Rcpts[i].Addr; have.Local == r.Addr.Local && have.DomainKey() == r.Addr.DomainKey() {
			return
		}
	}
	s.env.Rcpts = append(s.env.Rcpts, r)
}

// Data takes the content from the wire; go-smtp's reader holds nothing but the dot. A 250 makes the message ours
// (RFC 5321, 4.2.5), so nothing may follow Put that can fail.
func (s *session) Data(io.Reader) error {
	begun := time.Now()
	env := s.env
	b := &body{dir: s.srv.cfg.TempDir, chunks: &s.srv.chunks}
	defer b.Close()
	err := s.take(b)
	for _, dest := range env.Dests() {
		if err == nil {
			err = s.bounded(dest, b.size)
		}
	}
	if err != nil && s.w.content.err != nil && !errors.Is(s.w.content.err, io.EOF) {
		s.log.LogAttrs(s.ctx, slog.LevelInfo, "message cut short", slog.Any("peer", s.w.remote), slog.String("from", env.From.String()),
			slog.Int64("size", b.size), slog.Duration("took", time.Since(begun)), slog.Any("err", err))
		return refusal // the message never ended, and who would hear of it is gone
	}
	if err == nil {
		err = s.keep(env, b)
	}
	reply := &mta.Reply{Code: 250, Enhanced: "2.0.0", Text: "ok, queued as " + env.ID.String()}
	if err != nil {
		reply = replyTo(err, s.log, s.w.remote)
	}
	s.srv.metrics.messages.of(reply.Code).Inc()
	s.logMessage(env, b.size, reply, time.Since(begun))
	s.w.junk = 0
	return s.say(reply)
}

// take reads the content into b and judges what can be told from it alone.
func (s *session) take(b *body) error {
	c := s.w.content
	limit := int64(s.srv.cfg.MaxMessageSize)
	next := int64(headChunks * chunkSize) // where the content begins to take room on the disk
	var h hops
	for {
		run, err := c.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if !c.whole() && b.size+int64(len(run)) > limit {
			return s.tooLarge()
		}
		if b.size >= next {
			next = b.size + roomStep
			if err := s.stillRoom(next); err != nil {
				return err
			}
		}
		h.Write(run)
		if _, err := b.Write(run); err != nil {
			return fmt.Errorf("inbound: content: %w", err)
		}
	}
	if c.framer.bare && s.srv.cfg.BareNewline == RejectBareNewlines {
		return mta.NewReply(550, "5.6.0", "the message has a CR or LF that stands alone")
	}
	if h.n >= maxHops {
		return mta.NewReply(554, "5.4.6", "the message has been through %d hosts: a loop", h.n)
	}
	return nil
}

// keep hands the message to the spool. A client that hangs up now undoes nothing, so the context is the server's.
func (s *session) keep(env *mta.Envelope, b *body) error {
	env.Received = time.Now()
	env.ID = mta.NewID(env.Received)
	content, err := b.Reader(received(env, s.srv.cfg.Hostname))
	if err != nil {
		return fmt.Errorf("inbound: content: %w", err)
	}
	err = s.srv.deps.Spool.Put(s.srv.base(), env, content)
	s.srv.metrics.put.Observe(time.Since(env.Received).Seconds())
	if err != nil {
		return fmt.Errorf("inbound: store %s: %w", env.ID, err)
	}
	s.srv.metrics.octets.Add(float64(b.size))
	return nil
}

func (s *session) logMessage(env *mta.Envelope, size int64, r *mta.Reply, took time.Duration) {
	if !s.log.Enabled(s.ctx, slog.LevelInfo) {
		return
	}
	attrs := []slog.Attr{
		slog.Any("peer", s.w.remote), slog.String("helo", printable(env.Peer.Helo)), slog.String("from", env.From.String()),
		slog.Int("recipients", len(env.Rcpts)), slog.Int64("size", size), slog.Duration("took", took),
	}
	if r.Code >= 400 {
		attrs = append(attrs, slog.Int("code", r.Code), slog.String("reply", r.String()))
		s.log.LogAttrs(s.ctx, slog.LevelInfo, "message refused", attrs...)
		return
	}
	attrs = append(attrs, slog.String("id", env.ID.String()), slog.String("to", recipientList(env)), slog.String("proto", env.Peer.Proto))
	s.log.LogAttrs(s.ctx, slog.LevelInfo, "message accepted", attrs...)
}

// recipientList names the first recipients of a message for the log.
func recipientList(env *mta.Envelope) string {
	const most = 10
	var b strings.Builder
	for i := range env.Rcpts {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(env.Rcpts)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(env.Rcpts[i].Addr.String())
	}
	return b.String()
}
