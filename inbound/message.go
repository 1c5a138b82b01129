package inbound

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"understudy/internal/mta"
)

// roomStep is how much content comes in between two questions whether there is still room for it.
const roomStep = 1 << 20

// maxHops is how many Received fields a message may come with (RFC 5321, 6.3: at least 100).
const maxHops = 100

// maxInlineFiles is how much content that goes inline may lie in files at once before the spool is asked for room all the
// same: it is well below the least reserve on a disk that they may share.
const maxInlineFiles = 256 << 20

// incoming is a message whose content comes in.
type incoming struct {
	env   *mta.Envelope
	body  *body
	begun time.Time
	trace string     // our Received field, once the message is whole
	final *mta.Reply // the primary's verdict of it; nil on the spool's road
}

// Data takes the content from the wire; go-smtp's reader holds nothing but the dot. A 250 of ours makes the message ours
// (RFC 5321, 4.2.5), so nothing may follow Put that can fail.
func (s *session) Data(io.Reader) error {
	m := &incoming{env: s.env, body: &body{dir: s.srv.cfg.TempDir, chunks: &s.srv.chunks, files: &s.srv.files}, begun: time.Now()}
	lent := false
	defer func() {
		if !lent {
			m.body.Close()
		}
	}()
	err := s.takeAll(m)
	if err != nil && s.w.content.err != nil && !errors.Is(s.w.content.err, io.EOF) {
		s.log.LogAttrs(s.ctx, slog.LevelInfo, "message cut short", slog.Any("peer", s.w.remote), slog.String("from", m.env.From.String()),
			slog.Int64("size", m.body.size), slog.Duration("took", time.Since(m.begun)), slog.Any("err", err))
		return refusal // the message never ended, and who would hear of it is gone
	}
	var reply *mta.Reply
	if err == nil {
		reply, err = s.finish(m)
	}
	s.w.theirs = m.final != nil
	if err != nil {
		reply = replyTo(err, s.log, s.w.remote)
	}
	s.count(m, reply)
	s.logMessage(m, reply)
	if m.final != nil {
		lent = s.srv.lend(m.env, m.body, *m.final)
	}
	return s.say(reply)
}

func (s *session) count(m *incoming, r *mta.Reply) {
	s.w.junk = 0
	s.srv.metrics.messages.of(r.Code).Inc()
	if taken(*r) {
		s.srv.metrics.octets.Add(float64(m.body.size))
	}
}

// takeAll reads the content and refuses what can be told to be wrong without asking anybody.
func (s *session) takeAll(m *incoming) error {
	if err := s.take(m.body); err != nil {
		return err
	}
	for _, dest := range m.env.Dests() {
		if err := s.bounded(dest, m.body.size); err != nil {
			return err
		}
	}
	return nil
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
		if b.size >= next && (s.road != mta.Inline || s.srv.files.Load() > maxInlineFiles) {
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

// finish decides a whole message: by the primary's word, or by ours and the spool's.
func (s *session) finish(m *incoming) (*mta.Reply, error) {
	m.env.Received = time.Now()
	if m.env.ID.IsZero() {
		m.env.ID = mta.NewID(m.env.Received)
	}
	m.trace = received(m.env, s.srv.cfg.Hostname)
	if s.road == mta.Inline {
		reply, err := s.handOn(m)
		if !errors.Is(err, mta.ErrAway) {
			return reply, err
		}
		s.leave("content", err)
	}
	edit, err := s.judge(m)
	if err != nil {
		return nil, err
	}
	if err := s.keep(m, edit); err != nil {
		return nil, err
	}
	return &mta.Reply{Code: 250, Enhanced: "2.0.0", Text: "ok, queued as " + m.env.ID.String()}, nil
}

// judge hears our own verdict of a message that the spool is to have.
func (s *session) judge(m *incoming) (mta.Edit, error) {
	if s.inline.left != "" { // nobody has asked before for those that the primary took
		if err := s.stillRoom(m.body.size); err != nil {
			return mta.Edit{}, err
		}
	}
	j := s.srv.deps.Judge
	if j == nil {
		return mta.Edit{}, nil
	}
	if m.env.Verdict == nil {
		m.env.Verdict = j.Sender(s.ctx, m.env)
	}
	verdict, edit, err := j.Content(s.ctx, m.env, m.body.content())
	if err != nil {
		return edit, fmt.Errorf("inbound: judge %s: %w", m.env.ID, err)
	}
	m.env.Verdict = &verdict
	if r := verdict.Reply(); r != nil {
		return edit, r
	}
	return edit, nil
}

// keep hands the message to the spool. A client that hangs up now undoes nothing, so the context is the server's.
func (s *session) keep(m *incoming, edit mta.Edit) error {
	content, err := m.body.edited(edit, m.trace).Open()
	if err != nil {
		return fmt.Errorf("inbound: content: %w", err)
	}
	defer content.Close()
	begun := time.Now()
	err = s.srv.deps.Spool.Put(s.srv.base(), m.env, content)
	s.srv.metrics.put.Observe(time.Since(begun).Seconds())
	if err != nil {
		return fmt.Errorf("inbound: store %s: %w", m.env.ID, err)
	}
	return nil
}

func (s *session) logMessage(m *incoming, r *mta.Reply) {
	if !s.log.Enabled(s.ctx, slog.LevelInfo) {
		return
	}
	env := m.env
	attrs := []slog.Attr{
		slog.Any("peer", s.w.remote), slog.String("helo", printable(env.Peer.Helo)), slog.String("from", env.From.String()),
		slog.Int("recipients", len(env.Rcpts)), slog.Int64("size", m.body.size), slog.Duration("took", time.Since(m.begun)),
	}
	if m.trace != "" {
		attrs = append(attrs, slog.String("id", env.ID.String()))
	}
	if v := env.Verdict; v != nil {
		attrs = append(attrs, slog.String("verdict", v.Action.String()), slog.Float64("score", v.Score))
	}
	if m.final != nil {
		attrs = append(attrs, slog.String("dest", s.dest), slog.String("road", "inline"))
	}
	if m.final != nil || !taken(*r) {
		attrs = append(attrs, slog.Int("code", r.Code), slog.String("reply", r.String()))
	}
	if !taken(*r) {
		s.log.LogAttrs(s.ctx, slog.LevelInfo, "message refused", attrs...)
		return
	}
	attrs = append(attrs, slog.String("to", recipientList(env)), slog.String("proto", env.Peer.Proto))
	if m.final != nil {
		s.log.LogAttrs(s.ctx, slog.LevelInfo, "message passed on", attrs...)
		return
	}
	s.log.LogAttrs(s.ctx, slog.LevelInfo, "message accepted", attrs...)
	if s.inline.left != "" {
		s.log.LogAttrs(s.ctx, slog.LevelInfo, "judged here and spooled, for the primary went away", slog.String("id", env.ID.String()),
			slog.String("dest", s.dest), slog.String("step", s.inline.left))
	}
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
