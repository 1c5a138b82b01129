package smtpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy/internal/mta"
)

// Transaction is one message that is sent step by step, for a caller that passes on each reply as it comes. MAIL goes out
// with the first RCPT where the primary allows it, so that it costs no round trip of its own. Like its Conn it is used by
// one goroutine at a time.
type Transaction struct {
	c     *Conn
	m     Message
	mail  mta.Reply // to MAIL; Code 0: it was not answered yet
	asked bool      // MAIL was written
	taken int       // recipients
	ended bool      // by the end of the content, so that the primary has none open
}

// SendOptions are how a Transaction's content is sent.
type SendOptions struct {
	Method Method        // below Continuous: never by BDAT
	Final  time.Duration // how long the final reply is awaited; 0: as the Dialer's Timeouts say
}

// Begin prepares a transaction; nothing is written yet. size is what the sender declared, -1 if it did not. An error says
// what stands against the message with this primary, and leaves the session as it is.
func (c *Conn) Begin(from mta.Path, p mta.Params, size int64) (*Transaction, error) {
	t := &Transaction{c: c, m: Message{From: from, Params: p, Size: size}}
	if err := c.mailable(&t.m); err != nil {
		return nil, err
	}
	return t, nil
}

// Rcpt names a recipient and gives the primary's answer, whatever its class: to RCPT, or to MAIL where that was refused, and
// then to every recipient. ErrUnsafe and ErrNeedsUTF8 are about this recipient alone; any other error is an *Error and has
// ended the session.
func (t *Transaction) Rcpt(ctx context.Context, r *mta.Recipient) (Answer, error) {
	c := t.c
	if !safe(r.Addr) || r.Addr.IsNull() {
		return Answer{}, ErrUnsafe
	}
	if !r.Addr.IsASCII() && !needsUTF8(&t.m) {
		if t.asked || !c.caps.SMTPUTF8 {
			return Answer{}, ErrNeedsUTF8
		}
		t.m.Params.SMTPUTF8 = true
	}
	if !t.asked {
		return t.first(ctx, c.rcptLine(r))
	}
	if t.mail.Code/100 != 2 {
		return Answer{Step: StepMAIL, Reply: t.mail}, nil
	}
	reply, err := c.ask(ctx, StepRCPT, c.rcptLine(r))
	return t.noted(reply, err)
}

// first says MAIL and the first RCPT, in one group where the primary takes that.
func (t *Transaction) first(ctx context.Context, rcpt string) (Answer, error) {
	c := t.c
	t.asked = true
	mail := c.mailLine(&t.m)
	if c.caps.Pipelining {
		mail, rcpt = mail+"\r\n"+rcpt, ""
	}
	var err error
	if t.mail, err = c.ask(ctx, StepMAIL, mail); err != nil {
		return Answer{}, err
	}
	refused := t.mail.Code/100 != 2
	if refused && rcpt != "" {
		return Answer{Step: StepMAIL, Reply: t.mail}, nil
	}
	reply, err := c.ask(ctx, StepRCPT, rcpt)
	if !refused {
		return t.noted(reply, err)
	}
	if err == nil && reply.Code/100 == 2 { // one of us lost count
		c.Close()
	}
	return Answer{Step: StepMAIL, Reply: t.mail}, nil // the reason, not what came of it at RCPT
}

func (t *Transaction) noted(r mta.Reply, err error) (Answer, error) {
	if err != nil {
		return Answer{}, err
	}
	if r.Code/100 == 2 {
		t.taken++
	}
	return Answer{Step: StepRCPT, Reply: r}, nil
}

// Send sends the content and gives the primary's reply to it, whatever its class. ErrNeeds8Bit leaves the session as it is;
// ErrContent has ended it where a part was written. Any other error is an *Error, has ended the session, and tells by its
// step what became of the message: before StepFinal the primary did not take it for sure; at StepFinal it may have.
func (t *Transaction) Send(ctx context.Context, content mta.Content, o SendOptions) (mta.Reply, error) {
	c := t.c
	if t.taken == 0 {
		return mta.Reply{}, errors.New("smtpc: content for no recipient")
	}
	if err := t.eightBit(content); err != nil {
		return mta.Reply{}, err
	}
	chunk := c.caps.Chunking && (o.Method == Best || o.Method == Continuous)
	if !chunk {
		r, err := c.ask(ctx, StepDATA, "DATA")
		if err == nil && r.Code != 354 && sequence(r.Code) { // with recipients that it accepted, it has not seen what we sent
			err = c.fail(StepDATA, &r, ErrOutOfStep)
		}
		if err != nil || r.Code != 354 {
			return r, err
		}
	}
	if err := t.write(ctx, content, chunk); err != nil {
		if errors.Is(err, ErrContent) { // no command takes back what was written
			c.Close()
			return mta.Reply{}, err
		}
		return t.lastWords(ctx, err)
	}
	if o.Final > 0 {
		c.limits.Final = o.Final
	}
	r, err := c.ask(ctx, StepFinal, "")
	if err == nil && chunk && sequence(r.Code) {
		err = c.fail(StepFinal, &r, ErrOutOfStep)
	}
	t.ended = err == nil
	return r, err
}

// eightBit holds back what was announced as 8-bit, and is, from a primary that does not take that.
func (t *Transaction) eightBit(content mta.Content) error {
	if t.c.caps.EightBitMIME || !announced8Bit(&t.m) {
		return nil
	}
	r, err := content.Open()
	if err != nil {
		return contentError(err)
	}
	defer r.Close()
	return copyContent(r, content.Size, func(b []byte) error {
		if !isASCII(b) {
			return ErrNeeds8Bit
		}
		return nil
	})
}

// write writes the content whole or returns an error: the primary has its last octet only after a nil.
func (t *Transaction) write(ctx context.Context, content mta.Content, chunk bool) error {
	c := t.c
	r, err := content.Open()
	if err != nil {
		return contentError(err)
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	c.block = c.limits.of(StepBody)
	if chunk {
		fmt.Fprintf(c.w, "BDAT %d LAST\r\n", content.Size)
		err = copyContent(r, content.Size, func(b []byte) error { _, err := c.w.Write(b); return err })
	} else {
		dots := stuffer{w: c.w}
		if err = copyContent(r, content.Size, dots.write); err == nil {
			err = dots.end()
		}
	}
	if err != nil {
		return err
	}
	return c.w.Flush()
}

// lastWords looks for what the primary said before the content could be written to its end. A refusal of the content is
// as good as one after it.
func (t *Transaction) lastWords(ctx context.Context, werr error) (mta.Reply, error) {
	c := t.c
	c.nc.SetReadDeadline(time.Now().Add(lastWords))
	r, err := readReply(c.r)
	switch {
	case err != nil || ctx.Err() != nil:
		return mta.Reply{}, c.broken(ctx, StepBody, werr)
	case r.Code == 421:
		return r, c.fail(StepBody, &r, nil)
	case r.Code < 400: // of what it has not seen whole
		return r, c.fail(StepFinal, &r, ErrGarbage)
	}
	c.Close()
	return r, nil
}

// Idle reports that the primary has nothing of the transaction to forget.
func (t *Transaction) Idle() bool { return !t.asked || t.ended }

// Abort ends the transaction, so that the session can have another one. An error has ended the session.
func (t *Transaction) Abort(ctx context.Context) error {
	c := t.c
	if t.Idle() {
		return nil
	}
	t.ended = true
	r, err := c.ask(ctx, StepRSET, "RSET")
	if err == nil && r.Code/100 != 2 {
		err = c.fail(StepRSET, &r, nil)
	}
	return err
}

// ask says line, if there is one, and takes any reply that can follow it. An error has ended the session.
func (c *Conn) ask(ctx context.Context, s Step, line string) (mta.Reply, error) {
	r, err := c.roundTrip(ctx, s, line)
	if err != nil {
		return r, err
	}
	if e, ok := errors.AsType[*Error](c.judge(s, r)); ok && (e.Err != nil || r.Code == 421) {
		return r, e
	}
	return r, nil
}
