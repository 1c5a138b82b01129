package inbound

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/emersion/go-smtp"

	"understudy/internal/mta"
)

// session is one client's conversation as go-smtp leads it. All its methods run on the connection's goroutine. What
// the client hears is what say was told; the error that go-smtp gets only steers its state.
type session struct {
	srv    *Server
	w      *wire
	log    *slog.Logger
	ctx    context.Context // until Logout; go-smtp's callbacks have none
	cancel context.CancelFunc

	name   string // the client's confirmed name, once looked up
	looked bool

	env    *mta.Envelope // the transaction; nil outside of one
	size   int64         // as declared at MAIL; 0 if not
	roomy  []string      // destinations that the spool has room for
	dest   string        // where its recipients are placed
	road   mta.Road
	inline inline
}

// newSession is called at the first HELO or EHLO.
func (s *Server) newSession(c *smtp.Conn) (smtp.Session, error) {
	w := c.Conn().(*wire)
	ctx, cancel := context.WithCancel(s.base())
	return &session{srv: s, w: w, log: s.log, ctx: ctx, cancel: cancel}, nil
}

// Reset ends the transaction.
func (s *session) Reset() {
	if s.inline.tx != nil && s.w.owed {
		s.w.flush() // the sender need not wait until the session with the primary is given back
	}
	s.abort()
	s.env, s.size, s.roomy = nil, 0, s.roomy[:0]
	s.dest, s.road, s.inline = "", mta.Spooled, inline{}
}

// Logout ends the session.
func (s *session) Logout() error {
	s.abort()
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

// pass leaves the primary's answer with the wire, to which nothing of ours is added.
func (s *session) pass(r *mta.Reply) error {
	s.w.theirs = true
	return s.say(r)
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
	reply, err := s.rcpt()
	if err == nil && taken(*reply) {
		return s.pass(reply)
	}
	to, _, _ := splitPath(s.w.cmd.arg, "TO:")
	attrs := []slog.Attr{slog.Any("peer", s.w.remote), slog.String("from", s.env.From.String()), slog.String("to", to)}
	say := s.pass
	if err == nil {
		attrs = append(attrs, slog.String("road", "inline"))
	} else {
		reply, say = replyTo(err, s.log, s.w.remote), s.say
	}
	attrs = append(attrs, slog.Int("code", reply.Code), slog.String("reply", reply.String()))
	s.log.LogAttrs(s.ctx, refusalLevel(reply), "recipient refused", attrs...)
	return say(reply)
}

// refusalLevel keeps a full spool, of which there is an alarm, from filling the log as well.
func refusalLevel(r *mta.Reply) slog.Level {
	if r.Enhanced == "4.3.1" {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// rcpt gives what is said of the recipient, or the error that refuses it for us.
func (s *session) rcpt() (*mta.Reply, error) {
	to, p, err := s.forwardPath()
	if err != nil {
		return nil, err
	}
	r, road, err := s.place(to)
	if err != nil {
		return nil, err
	}
	r.Notify, r.ORcpt = p.notify, p.orcpt
	if road == mta.Inline {
		reply, err := s.relay(r)
		if !errors.Is(err, mta.ErrAway) {
			return reply, err
		}
		step := "rcpt"
		if s.inline.tx == nil {
			step = "begin"
		}
		s.leave(step, err)
	}
	return recipientOK, s.spool(to, p)
}

// forwardPath reads the argument of RCPT.
func (s *session) forwardPath() (mta.Path, rcptParams, error) {
	raw, rest, _ := splitPath(s.w.cmd.arg, "TO:")
	p, reply := parseRcptParams(rest, s.w.offers(), s.env.Params.SMTPUTF8)
	if reply != nil {
		return mta.Path{}, p, reply
	}
	to, err := mta.ParsePath(raw)
	switch {
	case err != nil || to.IsNull():
		return to, p, badPath("5.1.3", raw, s.env.Params.SMTPUTF8)
	case !s.env.Params.SMTPUTF8 && !to.IsASCII():
		return to, p, mta.NewReply(553, "5.6.7", "this address needs SMTPUTF8")
	case strings.HasPrefix(to.Domain, "["):
		return to, p, mta.NewReply(550, "5.7.1", "mail to address literals is not relayed")
	}
	return to, p, nil
}

// place asks for a recipient's destination and road. All recipients of a transaction have the same: the primary answers
// for the message as a whole, and so does what we know of a domain.
func (s *session) place(to mta.Path) (mta.Recipient, mta.Road, error) {
	if s.srv.deps.Judge == nil {
		return mta.Recipient{}, mta.Spooled, nil
	}
	r, road, err := s.srv.deps.Judge.Admit(s.ctx, s.env, to)
	if err != nil {
		return r, road, fmt.Errorf("inbound: admit %s: %w", to, err)
	}
	if s.srv.deps.Relay == nil || s.inline.left != "" && s.dest == r.Dest {
		road = mta.Spooled
	}
	if s.dest == r.Dest && s.road == road {
		return r, road, nil
	}
	if len(s.env.Rcpts) > 0 {
		return r, road, otherRoad
	}
	s.abort() // of a primary that took no recipient
	s.dest, s.road, s.inline = r.Dest, road, inline{}
	return r, road, nil
}

// spool decides about a recipient whose mail would be kept here.
func (s *session) spool(to mta.Path, p rcptParams) error {
	if j := s.srv.deps.Judge; j != nil && s.env.Verdict == nil {
		s.env.Verdict = j.Sender(s.ctx, s.env)
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
	if slices.Contains(s.roomy, dest) {
		return nil
	}
	if err := s.srv.deps.Spool.Room(s.ctx, dest, s.size); err != nil {
		return fmt.Errorf("inbound: room for %s: %w", dest, err)
	}
	s.roomy = append(s.roomy, dest)
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
