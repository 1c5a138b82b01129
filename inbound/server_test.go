package inbound

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/mta"
)

// spooled is a message that a memorySpool took.
type spooled struct {
	env     mta.Envelope
	content string
}

// memorySpool keeps messages for tests to look at. put and room, if set, decide instead.
type memorySpool struct {
	mu       sync.Mutex
	messages []spooled
	put      func(ctx context.Context, env *mta.Envelope, body io.Reader) error
	room     func(dest string, size int64) error
}

func (s *memorySpool) Put(ctx context.Context, env *mta.Envelope, body io.Reader) error {
	if s.put != nil {
		return s.put(ctx, env, body)
	}
	content, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages = append(s.messages, spooled{*env, string(content)})
	return nil
}

func (s *memorySpool) Room(_ context.Context, dest string, size int64) error {
	if s.room != nil {
		return s.room(dest, size)
	}
	return nil
}

func (s *memorySpool) all() []spooled {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.messages
}

// testPolicy takes mail for example.org, example.com and an IDN, and refuses some local parts in telling ways.
type testPolicy struct{}

func (testPolicy) Recipient(_ context.Context, _ *mta.Envelope, to mta.Path) (mta.Recipient, error) {
	if to.Domain == "" {
		to.Domain = "example.org"
	}
	switch d := to.DomainKey(); d {
	case "example.org", "example.com", "xn--bcher-kva.example":
		switch to.Local {
		case "unknown":
			return mta.Recipient{}, mta.NewReply(550, "5.1.1", "no such recipient")
		case "later":
			return mta.Recipient{}, fmt.Errorf("wrapped: %w", mta.NewReply(450, "4.1.1", "not known yet\nask again"))
		case "broken":
			return mta.Recipient{}, errors.New("secret detail")
		case "goodbye":
			return mta.Recipient{}, mta.NewReply(421, "4.7.0", "enough of you")
		case "panic":
			panic("a bug in a policy")
		}
		return mta.Recipient{Addr: to, Dest: d}, nil
	}
	return mta.Recipient{}, mta.NewReply(550, "5.7.1", "relaying denied")
}

// testConfig is the default configuration on an ephemeral port, without trust in anybody.
func testConfig(t testing.TB) Config {
	cfg := DefaultConfig()
	cfg.Hostname = "mx2.example.org"
	cfg.Listen = []Listener{{Address: "127.0.0.1:0"}}
	cfg.Trusted = nil
	cfg.Pregreet.Wait = 0
	cfg.Tarpit = 0
	cfg.TempDir = t.TempDir()
	cfg.StateDir = stateDir(t)
	return cfg
}

// stateDir is shared, so that not each test makes a key.
func stateDir(t testing.TB) string {
	t.Helper()
	if _, err := selfSigned(sharedDir, "mx2.example.org", time.Now(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return sharedDir
}

// running is a server that serves until the test ends.
type running struct {
	*Server
	spool *memorySpool
	log   *safeBuffer
	stop  context.CancelFunc
	done  chan error
}

// start runs a server; change, if not nil, may alter its parts.
func start(t testing.TB, cfg Config, change func(*Deps)) *running {
	t.Helper()
	r := &running{spool: &memorySpool{}, log: &safeBuffer{}, done: make(chan error, 1)}
	deps := Deps{Spool: r.spool, Policy: testPolicy{}, Log: slog.New(slog.NewTextHandler(r.log, nil))}
	if change != nil {
		change(&deps)
	}
	s, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.Server, r.stop = s, stop
	go func() { r.done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-r.done; err != nil {
			t.Errorf("Run: %v", err)
		}
		r.done <- nil
	})
	return r
}

func (r *running) addr() string { return r.Addrs()[0].String() }

// end stops the server and waits until Run has returned.
func (r *running) end(t *testing.T) {
	t.Helper()
	r.stop()
	err := <-r.done
	r.done <- nil
	if err != nil {
		t.Fatal(err)
	}
}

// safeBuffer is a bytes.Buffer for several goroutines.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// talk is a client that a test leads by hand.
type talk struct {
	t        testing.TB
	conn     net.Conn
	buf      []byte
	patience time.Duration
}

func dial(t testing.TB, addr string) *talk {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &talk{t: t, conn: c, patience: 20 * time.Second}
}

// line reads one line of a reply without its newline; "" at the end of the connection.
func (c *talk) line() string {
	c.t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(c.patience))
	for {
		if i := bytes.IndexByte(c.buf, '\n'); i >= 0 {
			line := strings.TrimSuffix(string(c.buf[:i]), "\r")
			c.buf = c.buf[i+1:]
			return line
		}
		p := make([]byte, 4096)
		n, err := c.conn.Read(p)
		c.buf = append(c.buf, p[:n]...)
		if n == 0 && err != nil {
			if errors.Is(err, io.EOF) {
				return ""
			}
			c.t.Fatalf("read: %v (after %q)", err, c.buf)
		}
	}
}

// reply reads a whole reply, its lines joined by \n.
func (c *talk) reply() string {
	c.t.Helper()
	var lines []string
	for {
		l := c.line()
		lines = append(lines, l)
		if len(l) < 4 || l[3] != '-' {
			return strings.Join(lines, "\n")
		}
	}
}

func (c *talk) send(s string) {
	c.t.Helper()
	c.conn.SetWriteDeadline(time.Now().Add(c.patience))
	if _, err := io.WriteString(c.conn, s); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// say sends a line and wants a reply that begins so.
func (c *talk) say(line, want string) string {
	c.t.Helper()
	c.send(line + "\r\n")
	return c.want(want)
}

func (c *talk) want(want string) string {
	c.t.Helper()
	got := c.reply()
	if !strings.HasPrefix(got, want) {
		c.t.Fatalf("got %q, want %q", got, want)
	}
	return got
}

// hello reads the greeting and says EHLO.
func (c *talk) hello() *talk {
	c.t.Helper()
	c.want("220 mx2.example.org ESMTP")
	c.say("EHLO client.example.net", "250-mx2.example.org")
	return c
}

// transaction opens one with one recipient.
func (c *talk) transaction() *talk {
	c.t.Helper()
	c.say("MAIL FROM:<bob@example.net>", "250 2.1.0")
	c.say("RCPT TO:<alice@example.org>", "250 2.1.5")
	return c
}

func TestMessageIsSpooledBefore250(t *testing.T) {
	r := start(t, testConfig(t), func(d *Deps) {
		d.Names = func(context.Context, netip.Addr) string { return "client.example.net" }
	})
	c := dial(t, r.addr()).hello().transaction()
	c.say("DATA", "354 ")
	c.send("Subject: hi\r\n\r\n..dot\r\n.\r\n")
	got := c.want("250 2.0.0 ok, queued as ")
	m := r.spool.all()[0]
	if !strings.HasSuffix(got, m.env.ID.String()) {
		t.Errorf("reply %q has not the id %s", got, m.env.ID)
	}
	_, rest, _ := strings.Cut(m.content, "\r\nSubject:")
	if rest != " hi\r\n\r\n.dot\r\n" {
		t.Errorf("content is %q", m.content)
	}
	if !strings.HasPrefix(m.content, "Received: from client.example.net (client.example.net [127.0.0.1])\r\n\tby mx2.example.org (Understudy) with ESMTP id "+m.env.ID.String()+"\r\n\t(envelope-from <bob@example.net>)\r\n\tfor <alice@example.org>; ") {
		t.Errorf("trace is %q", m.content)
	}
	c.say("QUIT", "221 2.0.0")
}

func TestIdleClientsAreToldOfShutdownAtOnce(t *testing.T) {
	r := start(t, testConfig(t), nil)
	idle := dial(t, r.addr()).hello()
	busy := dial(t, r.addr()).hello().transaction()
	busy.say("DATA", "354 ")
	busy.send("Subject: half")
	begun := time.Now()
	r.stop()
	idle.want("421 4.3.2")
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the idle client heard of it after %s", took)
	}
	idle.conn.Close()
	busy.send(" and half\r\n.\r\n")
	busy.want("250 2.0.0")
	busy.want("421 4.3.2")
	busy.conn.Close()
	r.end(t)
	if n := len(r.spool.all()); n != 1 {
		t.Errorf("%d messages spooled, want 1", n)
	}
}

func TestShutdownIsBounded(t *testing.T) {
	cfg := testConfig(t)
	cfg.ShutdownGrace = 50 * time.Millisecond
	r := start(t, cfg, nil)
	c := dial(t, r.addr()).hello().transaction()
	c.say("DATA", "354 ")
	r.end(t)
	if n := len(r.spool.all()); n != 0 {
		t.Errorf("%d messages spooled of half a message", n)
	}
}
