package smtpc

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"understudy/internal/mta"
)

// Method is how messages are put onto the wire.
type Method uint8

const (
	Best       Method = iota // the fastest that the last EHLO allows
	LockStep                 // each command waits for its reply
	Grouped                  // content, dot, and the next MAIL, RCPT, DATA in one group (RFC 2920)
	Continuous               // RSET, MAIL, RCPT, BDAT LAST again and again, replies read meanwhile (RFC 2920, 3030)
)

var methodNames = [...]string{"best", "lock-step", "grouped", "continuous"}

func (m Method) String() string { return methodNames[m] }

// StreamOptions bound a stream.
type StreamOptions struct {
	Method Method // no faster than this; Best: no bound
	Window int    // most messages unanswered; 0: 128
	Start  int    // so many at first; 0: 16
}

// ErrOutOfStep is in the chain when the primary's replies stopped making sense for what was sent: this host is better
// spoken to by a slower method.
var ErrOutOfStep = errors.New("the primary lost step")

// best is the fastest method up to m.
func (c *Conn) best(m Method) Method {
	fastest := LockStep
	switch {
	case c.caps.Pipelining && c.caps.Chunking:
		fastest = Continuous
	case c.caps.Pipelining:
		fastest = Grouped
	}
	if m == Best || m > fastest {
		return fastest
	}
	return m
}

// Stream sends the messages of src until it has no more, awaits every reply, and says QUIT. Each message that src gave
// has been Done when it returns. A session that the primary closed while nothing was unanswered ended well; any other end
// is an *Error. ctx cuts the session; a planned end is src's to bring about.
func (c *Conn) Stream(ctx context.Context, src Source, o StreamOptions) error {
	s := &stream{c: c, src: src, method: c.best(o.Method), win: newWindow(o.Start, o.Window), news: make(chan struct{}, 1)}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	wctx, over := context.WithCancel(ctx)
	defer over()
	c.nc.SetReadDeadline(time.Time{})
	// While earlier messages are unanswered the primary may be busy with one for as long as a final reply may take, and
	// reads nothing meanwhile.
	c.block = c.limits.of(StepBody)
	if s.method == Continuous {
		c.block = max(c.block, c.limits.of(StepFinal))
	}
	var reader sync.WaitGroup
	reader.Go(func() {
		defer over()
		s.read()
	})
	switch s.method {
	case Continuous:
		s.continuous(wctx)
	case Grouped:
		s.grouped(wctx)
	default:
		s.lockStep(wctx)
	}
	s.farewell(wctx)
	reader.Wait()
	return s.end(ctx)
}

// stream is one use of a session. The writer (Stream's goroutine) owns c.w; the reader owns c.r; what they share is
// below mu.
type stream struct {
	c      *Conn
	src    Source
	method Method
	dirty  bool          // writer: a transaction may be open on the other side
	news   chan struct{} // something below mu changed; holds one

	mu       sync.Mutex
	owed     []expect // replies to come, in order
	txs      []*tx    // not done, in order
	bytes    int64    // of txs
	win      window
	answered int  // transactions that ended
	leaving  bool // QUIT was said, or the session is given up: deadlines are set elsewhere
	err      *Error
}

// tx is one message on its way. Its fields are under stream.mu, but for m and began.
type tx struct {
	m        *Message
	began    time.Time
	sent     time.Time // the end of its content was written
	mail     mta.Reply // a refusal of MAIL
	rcpts    []Answer
	waiting  []int // recipients that were accepted and have no final reply
	writing  bool  // content is being written, which has time limits of its own
	doubtful bool  // content was written that the primary could take for whole
	done     bool
	window   int // when it was answered
	dsn      bool
}

// expect is one reply that is owed.
type expect struct {
	step Step
	tx   *tx // nil at QUIT
	rcpt int
}

// push notes replies to come; it is called before their commands are written.
func (s *stream) push(es ...expect) {
	s.mu.Lock()
	defer s.mu.Unlock()
	idle := len(s.owed) == 0
	s.owed = append(s.owed, es...)
	if idle {
		s.arm()
	}
}

// arm sets the time limit for the next reply: from now, which is the later of the last reply and the command.
func (s *stream) arm() {
	if s.leaving {
		return
	}
	var limit time.Time
	if len(s.owed) > 0 && !(s.owed[0].step == StepFinal && s.owed[0].tx.writing) {
		limit = time.Now().Add(s.c.limits.of(s.owed[0].step))
	}
	s.c.nc.SetReadDeadline(limit)
}

// signal wakes the writer.
func (s *stream) signal() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// read takes replies until the session is over. It never waits for the writer, so the primary can always get rid of
// its replies and goes on reading.
func (s *stream) read() {
	defer s.signal()
	for {
		r, err := readReply(s.c.r)
		if err != nil {
			s.lost(err)
			return
		}
		finished, goOn := s.took(r)
		if finished != nil {
			s.src.Done(finished.m, finished.result())
		}
		s.signal()
		if !goOn {
			return
		}
	}
}

// lost notes the end of the connection.
func (s *stream) lost(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	step := StepNone
	if len(s.owed) > 0 {
		step = s.owed[0].step
		if step == StepFinal && s.owed[0].tx.writing {
			step = StepBody
		}
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	s.give(&Error{Step: step, Addr: s.c.addr, Err: err})
}

// give keeps the first reason.
func (s *stream) give(e *Error) {
	if s.err == nil {
		s.err = e
	}
}

// took matches one reply with what is owed.
func (s *stream) took(r mta.Reply) (finished *tx, goOn bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.owed) == 0 {
		return nil, s.stop(StepNone, r, ErrOutOfStep)
	}
	e := s.owed[0]
	if r.Code == 421 { // RFC 5321, 3.8
		return nil, s.stop(e.step, r, nil)
	}
	if e.step == StepQUIT {
		s.owed = nil
		return nil, false
	}
	if !s.fits(e, r) {
		return nil, s.stop(e.step, r, ErrOutOfStep)
	}
	if !s.apply(e, r) {
		s.owed = s.owed[1:]
	}
	s.arm()
	if e.tx.done {
		s.drop(e.tx)
		return e.tx, true
	}
	return nil, true
}

// stop ends the session for a reply.
func (s *stream) stop(at Step, r mta.Reply, err error) bool {
	if r.Code == 421 {
		err = nil
	}
	s.give(&Error{Step: at, Addr: s.c.addr, Reply: &r, Err: err})
	return false
}

// fits tells whether r can be the answer to e. Where it can't, one of us lost count, and what follows would be laid
// to the wrong message.
func (s *stream) fits(e expect, r mta.Reply) bool {
	class := r.Code / 100
	switch e.step {
	case StepRSET:
		return class == 2
	case StepMAIL:
		return class != 3
	case StepRCPT:
		return class != 3 && !(class == 2 && e.tx.mail.Code != 0)
	case StepDATA:
		return class != 2 && (class != 3 || r.Code == 354) && !(len(e.tx.waiting) > 0 && sequence(r.Code))
	}
	// With recipients that it accepted, a primary that finds fault with the order of commands has not seen what we sent.
	return class != 3 && !(len(e.tx.waiting) > 0 && sequence(r.Code))
}

// sequence reports the codes by which a server says that it does not understand, which are no verdict on a message.
func sequence(code int) bool { return code >= 500 && code <= 503 }

// apply notes r. It returns true if more replies are owed for the same command (LMTP).
func (s *stream) apply(e expect, r mta.Reply) (more bool) {
	t := e.tx
	switch e.step {
	case StepMAIL:
		if class := r.Code / 100; class != 2 {
			t.mail = r
		}
	case StepRCPT:
		s.applyRcpt(e, r)
	case StepDATA:
		if r.Code != 354 {
			t.answer(StepDATA, r)
			t.done = true
		}
	case StepFinal:
		if s.c.lmtp && len(t.waiting) > 1 {
			t.rcpts[t.waiting[0]] = Answer{Step: StepFinal, Reply: r}
			t.waiting = t.waiting[1:]
			return true
		}
		t.answer(StepFinal, r)
		t.done = true
		if now := time.Now(); !t.sent.IsZero() {
			s.win.acked(now, now.Sub(t.sent))
			t.window = s.win.size
		}
	}
	return false
}

func (s *stream) applyRcpt(e expect, r mta.Reply) {
	t := e.tx
	if t.mail.Code != 0 { // the refusal of MAIL is the reason, not this 503
		t.rcpts[e.rcpt] = Answer{Step: StepMAIL, Reply: t.mail}
		return
	}
	t.rcpts[e.rcpt] = Answer{Step: StepRCPT, Reply: r}
	if r.Code/100 == 2 {
		t.waiting = append(t.waiting, e.rcpt)
	}
}

// answer gives r to all recipients that still wait.
func (t *tx) answer(at Step, r mta.Reply) {
	for _, n := range t.waiting {
		t.rcpts[n] = Answer{Step: at, Reply: r}
	}
	t.waiting = nil
}

func (t *tx) result() Result {
	return Result{Fate: Answered, Rcpts: t.rcpts, Took: time.Since(t.began), Window: t.window, DSN: t.dsn}
}

// drop takes t off the list; mu is held.
func (s *stream) drop(t *tx) {
	for i, x := range s.txs {
		if x == t {
			s.txs = append(s.txs[:i], s.txs[i+1:]...)
			s.bytes -= t.m.Size
			s.answered++
			return
		}
	}
}

// end says what became of the messages that got no answer, and why the session ended.
func (s *stream) end(ctx context.Context) error {
	s.mu.Lock()
	err, rest := s.err, s.txs
	s.txs = nil
	idle := len(rest) == 0 && s.answered > 0 && (err == nil || err.Step == StepNone && !errors.Is(err, ErrOutOfStep))
	s.mu.Unlock()
	if err == nil && len(rest) > 0 {
		err = &Error{Step: StepNone, Addr: s.c.addr, Err: net.ErrClosed}
	}
	if err != nil && ctx.Err() != nil {
		err = &Error{Step: err.Step, Addr: err.Addr, Err: context.Cause(ctx)}
	}
	for i, t := range rest {
		// After a reply that ended the session the primary read nothing more, so only the one it answered could be
		// in doubt, and that it refused. Without a reply, all that was written is.
		r := Result{Fate: Unsent, Err: err, Suspect: i == 0, Took: time.Since(t.began)}
		if t.doubtful && (err.Reply == nil || errors.Is(err, ErrOutOfStep)) {
			r.Fate = InDoubt
		}
		t.m.free()
		s.src.Done(t.m, r)
	}
	if idle || err == nil {
		return nil
	}
	return err
}
