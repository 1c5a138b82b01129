package smtpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// lastWords is how long the reader may still find what the primary said before writing failed: the reason, often.
const lastWords = 5 * time.Second

// errSession says that the reader has ended the session; why is in stream.err.
var errSession = errors.New("session over")

// farewell ends the session from the writer's side: QUIT if all is well, else the last words.
func (s *stream) farewell(ctx context.Context) {
	if s.empty(ctx) == nil {
		s.mu.Lock()
		s.leaving = true
		s.owed = append(s.owed, expect{step: StepQUIT})
		s.mu.Unlock()
		s.c.nc.SetReadDeadline(time.Now().Add(s.c.limits.of(StepQUIT)))
		s.c.w.WriteString("QUIT\r\n")
		if s.flush() == nil {
			return
		}
	}
	s.mu.Lock()
	s.leaving = true
	s.mu.Unlock()
	s.c.nc.SetReadDeadline(time.Now().Add(lastWords))
}

// next gives the next message; before it has to wait for one, all that was written leaves.
func (s *stream) next(ctx context.Context) *Message {
	for {
		m := s.src.Next(ctx, false)
		if m == nil {
			if s.flush() != nil {
				return nil
			}
			if m = s.src.Next(ctx, true); m == nil {
				return nil
			}
		}
		if s.fit(ctx, m) {
			return m
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// fit refuses what can't be sent over this session.
func (s *stream) fit(ctx context.Context, m *Message) bool {
	r := Result{Fate: Unsendable}
	if ctx.Err() != nil { // it came while the session went
		r = Result{Fate: Unsent, Err: &Error{Step: StepNone, Addr: s.c.addr, Err: io.ErrUnexpectedEOF}}
	} else if r.Err = s.c.sendable(m); r.Err == nil {
		return true
	}
	m.free()
	s.src.Done(m, r)
	return false
}

// begin opens a transaction in the books.
func (s *stream) begin(m *Message) *tx {
	t := &tx{m: m, began: time.Now(), rcpts: make([]Answer, len(m.Rcpts)), dsn: s.c.caps.DSN}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.txs = append(s.txs, t)
	s.bytes += m.Size
	return t
}

// envelope writes RSET, MAIL and RCPT. RSET comes first always where replies are not awaited: some servers keep a
// transaction open after content that had no valid recipient, and the next message would go out under its sender.
func (s *stream) envelope(t *tx, extra ...Step) {
	es := make([]expect, 0, len(t.m.Rcpts)+4)
	es = append(es, expect{step: StepRSET, tx: t}, expect{step: StepMAIL, tx: t})
	for i := range t.m.Rcpts {
		es = append(es, expect{step: StepRCPT, tx: t, rcpt: i})
	}
	for _, x := range extra {
		es = append(es, expect{step: x, tx: t})
	}
	s.push(es...)
	w := s.c.w
	w.WriteString("RSET\r\n")
	w.WriteString(s.c.mailLine(t.m))
	w.WriteString("\r\n")
	for i := range t.m.Rcpts {
		w.WriteString(s.c.rcptLine(&t.m.Rcpts[i]))
		w.WriteString("\r\n")
	}
}

// flush sends what was written. An error ends the writing; the reader may know better why.
func (s *stream) flush() error { return s.c.w.Flush() }

// await waits until cond, which is asked under mu, or the session is over. All that was written leaves first.
func (s *stream) await(ctx context.Context, cond func() bool) error {
	flushed := false
	for {
		s.mu.Lock()
		ok, over := cond(), s.err != nil
		s.mu.Unlock()
		switch {
		case over || ctx.Err() != nil:
			return errSession
		case ok:
			return nil
		case !flushed:
			if err := s.flush(); err != nil {
				return err
			}
			flushed = true
			continue
		}
		select {
		case <-s.news:
		case <-ctx.Done():
		}
	}
}

// empty waits until no reply is owed.
func (s *stream) empty(ctx context.Context) error {
	return s.await(ctx, func() bool { return len(s.owed) == 0 })
}

// continuous keeps the way full: no message waits for the reply to another, up to the window.
func (s *stream) continuous(ctx context.Context) {
	for {
		if s.await(ctx, func() bool { return len(s.txs) < s.win.size }) != nil {
			return
		}
		m := s.next(ctx)
		if m == nil {
			return
		}
		roomy := func() bool { return len(s.txs) == 0 || s.bytes+m.Size <= windowBytes }
		err := s.await(ctx, roomy)
		t := s.begin(m)
		if err == nil {
			err = s.ship(ctx, t)
		}
		if err != nil {
			return
		}
	}
}

// ship sends one message by BDAT. What is too large to be in memory waits until a recipient was accepted.
func (s *stream) ship(ctx context.Context, t *tx) error {
	if t.m.Content == nil && t.m.Open != nil {
		return s.shipLarge(ctx, t)
	}
	s.envelope(t, StepFinal)
	s.mu.Lock()
	t.doubtful = true
	t.sent = time.Now()
	s.mu.Unlock()
	s.bdat(t)
	_, err := s.c.w.Write(t.m.Content)
	t.m.free()
	return err
}

func (s *stream) bdat(t *tx) { fmt.Fprintf(s.c.w, "BDAT %d LAST\r\n", t.m.Size) }

func (s *stream) shipLarge(ctx context.Context, t *tx) error {
	s.envelope(t)
	taken := false
	err := s.await(ctx, func() bool { taken = len(t.waiting) > 0; return s.rcptsAnswered(t) })
	if err != nil {
		return err
	}
	if !taken {
		s.finish(t)
		return nil
	}
	s.bodyBegins(t, true)
	s.push(expect{step: StepFinal, tx: t})
	s.bdat(t)
	err = s.stream(t, func(b []byte) error { _, err := s.c.w.Write(b); return err })
	return s.bodyEnds(ctx, t, err)
}

// rcptsAnswered reports that nothing is owed for t; mu is held.
func (s *stream) rcptsAnswered(t *tx) bool {
	for _, e := range s.owed {
		if e.tx == t {
			return false
		}
	}
	return true
}

// finish ends a transaction whose recipients were all refused.
func (s *stream) finish(t *tx) {
	s.mu.Lock()
	t.done = true
	s.drop(t)
	s.mu.Unlock()
	t.m.free()
	s.src.Done(t.m, t.result())
}

// stream writes a content that is not in memory.
func (s *stream) stream(t *tx, write func([]byte) error) error {
	r, err := t.m.Open()
	if err != nil {
		return contentError(err)
	}
	defer r.Close()
	return copyContent(r, t.m.Size, write)
}

func (s *stream) bodyBegins(t *tx, doubtful bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.writing, t.doubtful = true, doubtful
}

// bodyEnds lets the clock of the final reply run. A content that turned out bad can't be taken back by any command: all
// that was sent before it is awaited, then the connection is cut, and the primary drops the part that it got.
func (s *stream) bodyEnds(ctx context.Context, t *tx, err error) error {
	if errors.Is(err, ErrContent) {
		s.await(ctx, func() bool { return len(s.txs) == 0 || s.txs[0] == t })
		s.spoil(t, err)
		return err
	}
	s.mu.Lock()
	t.writing, t.sent = false, time.Now()
	if len(s.owed) > 0 && s.owed[0].tx == t {
		s.arm()
	}
	s.mu.Unlock()
	t.m.free()
	return err
}

// spoil ends the session for a content that can't be sent to its end.
func (s *stream) spoil(t *tx, err error) {
	s.mu.Lock()
	s.give(&Error{Step: StepBody, Addr: s.c.addr, Err: err})
	answered := t.done // an early refusal
	t.done = true
	s.drop(t)
	s.mu.Unlock()
	s.c.Close()
	t.m.free()
	if !answered {
		s.src.Done(t.m, Result{Fate: Unsendable, Err: err, Took: time.Since(t.began)})
	}
}

// grouped sends content, dot, and the next message's commands in one group, and waits for all of its replies.
func (s *stream) grouped(ctx context.Context) {
	var t *tx // has its 354
	for {
		var m *Message
		if t == nil {
			if m = s.next(ctx); m == nil {
				return
			}
		} else {
			if s.content(ctx, t) != nil {
				return
			}
			if m = s.src.Next(ctx, false); m != nil && !s.fit(ctx, m) {
				m = nil
			}
		}
		if t = nil; m != nil {
			t = s.begin(m)
			s.envelope(t, StepDATA)
			s.c.w.WriteString("DATA\r\n")
		}
		if s.empty(ctx) != nil {
			return
		}
		if t != nil && s.over(t) { // DATA was refused
			t.m.free()
			t = nil
		}
	}
}

// over reports that t has ended.
func (s *stream) over(t *tx) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.done
}

// content writes a content as DATA wants it, with the dot. Where every recipient was refused and the primary said 354
// all the same, the dot alone ends it (RFC 2920, 3.1).
func (s *stream) content(ctx context.Context, t *tx) error {
	s.mu.Lock()
	wanted := len(t.waiting) > 0
	s.mu.Unlock()
	s.bodyBegins(t, false)
	s.push(expect{step: StepFinal, tx: t})
	dots := stuffer{w: s.c.w}
	var err error
	switch {
	case !wanted:
	case t.m.Content != nil || t.m.Open == nil:
		err = dots.write(t.m.Content)
	default:
		err = s.stream(t, dots.write)
	}
	if err == nil {
		s.mu.Lock()
		t.doubtful = wanted
		s.mu.Unlock()
		err = dots.end()
	}
	return s.bodyEnds(ctx, t, err)
}

// lockStep waits for each reply.
func (s *stream) lockStep(ctx context.Context) {
	for {
		m := s.next(ctx)
		if m == nil || s.step(ctx, s.begin(m)) != nil {
			return
		}
	}
}

// step does one transaction in lock-step.
func (s *stream) step(ctx context.Context, t *tx) error {
	if s.dirty {
		if err := s.ask(ctx, expect{step: StepRSET, tx: t}, "RSET"); err != nil {
			return err
		}
	}
	s.dirty = true
	if err := s.ask(ctx, expect{step: StepMAIL, tx: t}, s.c.mailLine(t.m)); err != nil {
		return err
	}
	for i := range t.m.Rcpts {
		s.mu.Lock()
		refused := t.mail
		if refused.Code != 0 {
			t.rcpts[i] = Answer{Step: StepMAIL, Reply: refused}
		}
		s.mu.Unlock()
		if refused.Code != 0 {
			continue
		}
		if err := s.ask(ctx, expect{step: StepRCPT, tx: t, rcpt: i}, s.c.rcptLine(&t.m.Rcpts[i])); err != nil {
			return err
		}
	}
	s.mu.Lock()
	wanted := len(t.waiting) > 0
	s.mu.Unlock()
	if !wanted {
		s.finish(t)
		return nil
	}
	if err := s.ask(ctx, expect{step: StepDATA, tx: t}, "DATA"); err != nil {
		return err
	}
	if s.over(t) {
		t.m.free()
		return nil
	}
	if err := s.content(ctx, t); err != nil {
		return err
	}
	if err := s.empty(ctx); err != nil {
		return err
	}
	s.dirty = false // RFC 5321, 4.1.1.4: the end of content ends the transaction, whatever the reply
	return nil
}

// ask writes one line and waits for its reply.
func (s *stream) ask(ctx context.Context, e expect, line string) error {
	s.push(e)
	s.c.w.WriteString(line)
	s.c.w.WriteString("\r\n")
	return s.empty(ctx)
}
