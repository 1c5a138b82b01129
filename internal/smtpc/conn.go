package smtpc

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"understudy/internal/mta"
)

// Conn is one session. It is used by one goroutine at a time; only Close may be called beside it.
type Conn struct {
	primary  mta.Primary
	addr     netip.AddrPort
	hostname string
	lmtp     bool
	limits   Timeouts

	nc         net.Conn
	r          *bufio.Reader
	w          *bufio.Writer
	caps       Caps
	tls        *tls.ConnectionState
	tlsErr     error
	verified   bool // the primary's certificate is known to be its own
	identified bool
	clientErr  error
	trace      []StepFact
	dead       atomic.Bool
	block      time.Duration // limit for each write
}

func newConn(d *Dialer, p mta.Primary, o Options, at dialled) *Conn {
	c := &Conn{primary: p, addr: at.addr, hostname: d.Hostname, lmtp: o.LMTP, limits: d.Timeouts}
	c.attach(at.nc)
	return c
}

// attach puts the session onto nc: the first connection, or TLS over it.
func (c *Conn) attach(nc net.Conn) {
	c.nc = nc
	c.r = bufio.NewReaderSize(nc, maxReplyLine)
	c.w = bufio.NewWriterSize((*timedWriter)(c), 32<<10)
}

// timedWriter gives each write its time limit.
type timedWriter Conn

func (w *timedWriter) Write(b []byte) (int, error) {
	w.nc.SetWriteDeadline(time.Now().Add(w.block))
	return w.nc.Write(b)
}

// Primary is who the session is with.
func (c *Conn) Primary() mta.Primary { return c.primary }

// Addr is the address that the session is with.
func (c *Conn) Addr() netip.AddrPort { return c.addr }

// Caps is what the last EHLO offered.
func (c *Conn) Caps() Caps { return c.caps }

// TLS is the state of TLS, nil in clear.
func (c *Conn) TLS() *tls.ConnectionState { return c.tls }

// TLSError is why an opportunistic session is in clear although the primary offers STARTTLS; nil otherwise.
func (c *Conn) TLSError() error { return c.tlsErr }

// Trace is each step so far, those of addresses that gave no session included.
func (c *Conn) Trace() []StepFact { return c.trace }

// Close ends the session at once. It may be called at any time and more than once.
func (c *Conn) Close() error {
	c.dead.Store(true)
	return c.nc.Close()
}

func (c *Conn) closed() bool { return c.dead.Load() }

// greet reads the banner, says EHLO, does STARTTLS, and tells who the client was.
func (c *Conn) greet(ctx context.Context, o Options) error {
	if !o.wants(StepBanner) {
		return nil
	}
	if o.Proxy {
		if err := c.proxy(ctx, o.Client); err != nil {
			return err
		}
	}
	if _, err := c.await(ctx, StepBanner, ""); err != nil {
		return c.blameClient(err)
	}
	if !o.wants(StepEHLO) {
		return nil
	}
	if err := c.hello(ctx); err != nil {
		return c.blameClient(err)
	}
	if !o.wants(StepSTARTTLS) {
		return nil
	}
	again, err := c.starttls(ctx, &o.TLS)
	if err == nil && again {
		err = c.hello(ctx) // RFC 3207, 4.2: all that was learned in clear is forgotten
	}
	if err != nil || !o.wants(StepXCLIENT) {
		return err
	}
	return c.identify(ctx, o.Client)
}

// hello says LHLO, or EHLO and, where that is not known, HELO (RFC 5321, 3.2).
func (c *Conn) hello(ctx context.Context) error {
	verb := "EHLO "
	if c.lmtp {
		verb = "LHLO "
	}
	c.caps = Caps{}
	r, err := c.exchange(ctx, StepEHLO, verb+c.hostname)
	if err == nil {
		c.caps = parseCaps(r.Text)
		return nil
	}
	e, ok := errors.AsType[*Error](err)
	if c.lmtp || !ok || !e.Permanent() || c.closed() {
		return err
	}
	r, err = c.exchange(ctx, StepEHLO, "HELO "+c.hostname)
	if err == nil {
		c.caps.Name, _, _ = strings.Cut(r.Text, " ")
	}
	return err
}

// Mail begins a transaction from the path. An error is an *Error, with the reply if the primary refused.
func (c *Conn) Mail(ctx context.Context, from mta.Path) (mta.Reply, error) {
	return c.exchange(ctx, StepMAIL, "MAIL FROM:<"+from.String()+">")
}

// Rcpt names a recipient.
func (c *Conn) Rcpt(ctx context.Context, to mta.Path) (mta.Reply, error) {
	return c.exchange(ctx, StepRCPT, "RCPT TO:<"+to.String()+">")
}

// Reset ends a transaction.
func (c *Conn) Reset(ctx context.Context) (mta.Reply, error) {
	return c.exchange(ctx, StepRSET, "RSET")
}

// Quit says farewell, waits shortly for the answer, and closes whatever comes.
func (c *Conn) Quit(ctx context.Context) error {
	_, err := c.exchange(ctx, StepQUIT, "QUIT")
	c.Close()
	return err
}

// exchange says one line and awaits its reply.
func (c *Conn) exchange(ctx context.Context, s Step, line string) (mta.Reply, error) {
	return c.await(ctx, s, line)
}

// await writes line, if there is one, and reads a reply. A reply that is not 2yz (354 at DATA) is an *Error; the session
// goes on after it unless it was 421 or made no sense.
func (c *Conn) await(ctx context.Context, s Step, line string) (mta.Reply, error) {
	start := time.Now()
	r, err := c.roundTrip(ctx, s, line)
	fact := StepFact{Step: s, Addr: c.addr, Took: time.Since(start), Reply: r}
	if err == nil {
		err = c.judge(s, r)
	}
	if e, ok := errors.AsType[*Error](err); ok {
		fact.Err = e.Err
	}
	c.trace = append(c.trace, fact)
	return r, err
}

func (c *Conn) roundTrip(ctx context.Context, s Step, line string) (mta.Reply, error) {
	if c.closed() {
		return mta.Reply{}, &Error{Step: s, Addr: c.addr, Err: net.ErrClosed}
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	c.block = c.limits.of(s)
	c.nc.SetReadDeadline(time.Now().Add(c.block))
	if line != "" {
		if c.r.Buffered() > 0 { // a 421 of a primary that stops, or an answer to nothing
			return c.unasked(s)
		}
		c.w.WriteString(line)
		c.w.WriteString("\r\n")
		if err := c.w.Flush(); err != nil {
			return mta.Reply{}, c.broken(ctx, s, err)
		}
	}
	r, err := readReply(c.r)
	if err != nil {
		return r, c.broken(ctx, s, err)
	}
	return r, nil
}

// unasked ends a session in which the primary spoke out of turn. 421 is the one thing that it may say.
func (c *Conn) unasked(s Step) (mta.Reply, error) {
	r, err := readReply(c.r)
	if err == nil && r.Code == 421 {
		return r, c.fail(s, &r, nil)
	}
	return mta.Reply{}, c.fail(s, nil, ErrGarbage)
}

// judge tells whether r lets the session go on to the next step.
func (c *Conn) judge(s Step, r mta.Reply) error {
	switch {
	case r.Code == 421: // RFC 5321, 3.8: the primary closes
		return c.fail(s, &r, nil)
	case s == StepDATA && r.Code == 354, s != StepDATA && r.Code/100 == 2:
		return nil
	case r.Code < 400: // a positive reply that can't follow the command: we lost step
		return c.fail(s, &r, ErrGarbage)
	}
	return &Error{Step: s, Addr: c.addr, Reply: &r}
}

// fail closes the session and says why.
func (c *Conn) fail(s Step, r *mta.Reply, err error) error {
	c.Close()
	return &Error{Step: s, Addr: c.addr, Reply: r, Err: err}
}

// broken is fail for an error of the connection. When it was the context that ended it, the context's cause is told.
func (c *Conn) broken(ctx context.Context, s Step, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == io.EOF { // the primary hung up without a word
		err = io.ErrUnexpectedEOF
	}
	return c.fail(s, nil, err)
}
