package testkit

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"understudy/internal/mta"
)

// Message is one message that a Primary answered 250.
type Message struct {
	From    string   // as in MAIL FROM, without brackets
	Params  string   // what followed the path in MAIL
	Rcpts   []string // the accepted ones
	RParams []string // what followed each path in RCPT
	Content []byte   // undotted, CRLF line ends
	Conn    int      // which session
	Helo    string
	XClient string // the attributes given, in the order given, "" if none
	TLS     bool
	At      time.Time

	asked int // RCPT commands so far
}

// Primary is a scripted primary. Its fields are set before Start; a test that changes Script later does so by SetScript.
type Primary struct {
	Hostname string      // default primary.test
	Caps     []string    // EHLO lines; nil: PIPELINING, CHUNKING, 8BITMIME, SMTPUTF8, DSN, SIZE and ENHANCEDSTATUSCODES
	TLS      *tls.Config // offers STARTTLS
	XCLIENT  bool        // offers XCLIENT NAME ADDR PORT PROTO HELO
	PROXY    bool        // demands a PROXY v2 header
	LMTP     bool
	Discard  bool // count messages, don't keep them: for benchmarks

	t    testing.TB
	addr string

	mu       sync.Mutex
	script   func(Point) Action
	messages []Message
	accepted int
	seen     []string
	conns    int
	live     map[net.Conn]struct{}
	ln       net.Listener
	stopped  chan struct{}
	changed  chan struct{}
	gate     chan struct{}
	sessions sync.WaitGroup
}

// NewPrimary makes a primary that is not started yet. It is stopped at the end of the test.
func NewPrimary(t testing.TB) *Primary {
	p := &Primary{t: t, Hostname: "primary.test", addr: "127.0.0.1:0", live: map[net.Conn]struct{}{}, changed: make(chan struct{}), gate: make(chan struct{})}
	t.Cleanup(p.Stop)
	return p
}

// SetScript says what happens at each step from now on; nil is the usual.
func (p *Primary) SetScript(f func(Point) Action) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.script = f
}

// On makes every session do a at step s, from now on.
func (p *Primary) On(s Step, a Action) {
	p.SetScript(func(at Point) Action {
		if at.Step == s {
			return a
		}
		return Action{}
	})
}

// Start listens: at any port the first time, at the same one again after Stop.
func (p *Primary) Start() {
	p.t.Helper()
	ln, err := net.Listen("tcp", p.addr)
	if err != nil {
		p.t.Fatalf("testkit: primary: %v", err)
	}
	p.addr = ln.Addr().String()
	p.Serve(ln)
}

// Serve takes sessions from ln until Stop: for listeners of other kinds.
func (p *Primary) Serve(ln net.Listener) {
	p.mu.Lock()
	p.ln, p.stopped = ln, make(chan struct{})
	stopped := p.stopped
	p.mu.Unlock()
	p.sessions.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			p.sessions.Go(func() { p.Session(nc, stopped) })
		}
	})
}

// Stop closes the port and resets every session. It returns when all are gone.
func (p *Primary) Stop() {
	p.mu.Lock()
	if p.ln != nil {
		p.ln.Close()
		close(p.stopped)
		p.ln = nil
	}
	for nc := range p.live {
		reset(nc)
	}
	p.mu.Unlock()
	p.sessions.Wait()
}

// reset closes with RST where the connection knows that.
func reset(nc net.Conn) {
	if tc, ok := nc.(*net.TCPConn); ok {
		tc.SetLinger(0)
	}
	nc.Close()
}

// Session plays one session on nc, until it ends or stopped is closed: for tests without a listener.
func (p *Primary) Session(nc net.Conn, stopped <-chan struct{}) {
	p.mu.Lock()
	p.conns++
	n := p.conns
	p.live[nc] = struct{}{}
	p.notify()
	p.mu.Unlock()
	select {
	case <-stopped: // accepted while Stop was running
	default:
		s := &session{p: p, nc: nc, raw: nc, n: n, stopped: stopped, r: bufio.NewReaderSize(nc, 64<<10), w: bufio.NewWriterSize(nc, 16<<10)}
		s.run()
	}
	nc.Close()
	p.mu.Lock()
	delete(p.live, nc)
	p.notify()
	p.mu.Unlock()
}

// notify wakes whoever waits for a condition; p.mu is held.
func (p *Primary) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Proceed lets everything go on that an Action with Delay holds back, once.
func (p *Primary) Proceed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.gate)
	p.gate = make(chan struct{})
}

// Addr is "127.0.0.1:port", known after the first Start.
func (p *Primary) Addr() string { return p.addr }

// Primary is its address as a part of a route.
func (p *Primary) Primary() mta.Primary {
	a := netip.MustParseAddrPort(p.addr)
	return mta.Primary{Host: a.Addr().String(), Port: a.Port()}
}

// Messages is every message that was answered 250 (in LMTP: for at least one recipient).
func (p *Primary) Messages() []Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.messages)
}

// Accepted counts the messages answered 250.
func (p *Primary) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Conns counts the sessions since the first Start.
func (p *Primary) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conns
}

// Live counts the sessions now.
func (p *Primary) Live() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.live)
}

// Commands lists each command line of all sessions, in the order of arrival. Nothing is listed with Discard.
func (p *Primary) Commands() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.seen)
}

// WaitFor waits until cond is true, which is asked whenever something happened. It fails the test after a minute.
func (p *Primary) WaitFor(ctx context.Context, what string, cond func(*Primary) bool) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		if cond(p) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			p.t.Fatalf("testkit: primary: waited for %s: %v (%d messages, %d sessions)", what, context.Cause(ctx), p.Accepted(), p.Conns())
		}
	}
}

// WaitMessages waits for n messages in all.
func (p *Primary) WaitMessages(ctx context.Context, n int) {
	p.t.Helper()
	p.WaitFor(ctx, "messages", func(p *Primary) bool { return p.Accepted() >= n })
}
