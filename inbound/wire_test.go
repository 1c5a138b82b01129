package inbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/mta"
)

// pipes is a listener of connections in memory, for synctest bubbles.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

// bubble starts a server in a synctest bubble; dial gives a client's side of a connection.
func bubble(t *testing.T, cfg Config, change func(*Deps)) (r *running, dial func() *talk) {
	t.Helper()
	p := newPipes()
	cfg.Listen[0].Address = "systemd"
	r = start(t, cfg, func(d *Deps) {
		d.Sockets = map[string][]net.Listener{"smtp": {p}}
		if change != nil {
			change(d)
		}
	})
	return r, func() *talk {
		ours, theirs := net.Pipe()
		p.conns <- theirs
		t.Cleanup(func() { ours.Close() })
		return &talk{t: t, conn: ours, patience: time.Hour}
	}
}

// A message that a broken connection leaves in the middle is no message, in clear and under TLS.
func TestCutContentIsNeverAMessage(t *testing.T) {
	cuts := map[string]func(net.Conn){
		"close": func(c net.Conn) { c.Close() },
		"half-close": func(c net.Conn) {
			if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				panic(err)
			}
		},
	}
	for _, tt := range []struct{ name, send string }{
		{"DATA", "DATA\r\nSubject: x\r\n\r\nhalf\r\n"},
		{"DATA at the dot", "DATA\r\nhalf\r\n."},
		{"DATA at the dot and CR", "DATA\r\nhalf\r\n.\r"},
		{"BDAT in a chunk", "BDAT 100 LAST\r\nhalf\r\n"},
		{"BDAT between chunks", "BDAT 6\r\nhalf\r\n"},
		{"BDAT between chunk and command", "BDAT 6\r\nhalf\r\nBDAT 0 LAST"},
	} {
		for cut, do := range cuts {
			for _, secured := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/tls=%v", tt.name, cut, secured), func(t *testing.T) {
					t.Parallel()
					r := start(t, testConfig(t), nil)
					c := dial(t, r.addr())
					c.want("220")
					if secured {
						c.startTLS(nil)
					}
					c.say("EHLO x", "250")
					c.transaction()
					c.send(tt.send)
					do(c.conn)
					if cut == "half-close" {
						io.Copy(io.Discard, c.conn)
					}
					r.end(t)
					if n := len(r.spool.all()); n != 0 {
						t.Errorf("%d messages of a cut one", n)
					}
				})
			}
		}
	}
}

// A body that comes slowly is taken as long as it comes at all; one that drips is not, and is never obeyed.
func TestContentDeadlineRollsWithProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, dial := bubble(t, testConfig(t), nil)
		c := dial().hello().transaction()
		c.say("DATA", "354")
		line := strings.Repeat("x", 1022) + "\r\n"
		for range 30 * 60 / 10 { // half an hour, at 2 KiB a second
			c.send(strings.Repeat(line, 20))
			time.Sleep(10 * time.Second)
		}
		c.say(".", "250 2.0.0")
		c.say("QUIT", "221")
		r.end(t)
		if got := len(r.spool.all()); got != 1 {
			t.Errorf("%d messages, want 1", got)
		}
	})
}

func TestDrippingContentEndsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, dial := bubble(t, testConfig(t), nil)
		c := dial().hello().transaction()
		c.say("DATA", "354")
		begun := time.Now()
		var dripping sync.WaitGroup
		defer dripping.Wait()
		dripping.Go(func() {
			for { // each line would be a command
				if _, err := io.WriteString(c.conn, "RSET\r\n"); err != nil {
					return
				}
				time.Sleep(10 * time.Second)
			}
		})
		c.want("421 4.4.2")
		if took := time.Since(begun); took < 4*time.Minute || took > 6*time.Minute {
			t.Errorf("cut after %s, want 5m", took)
		}
		if got := c.line(); got != "" {
			t.Errorf("got %q after the 421", got)
		}
		r.end(t)
		if got := len(r.spool.all()); got != 0 {
			t.Errorf("%d messages, want none", got)
		}
	})
}

func TestSilentClientIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, dial := bubble(t, testConfig(t), nil)
		c := dial().hello()
		c.conn.SetReadDeadline(time.Time{})
		begun := time.Now()
		buf := make([]byte, 512)
		n, err := c.conn.Read(buf)
		if err != nil || !strings.HasPrefix(string(buf[:n]), "421 4.4.2") {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
		if took := time.Since(begun); took != 5*time.Minute {
			t.Errorf("told after %s", took)
		}
	})
}

// Octets of one command may not buy time one by one.
func TestOneCommandHasOneDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, dial := bubble(t, testConfig(t), nil)
		c := dial().hello()
		begun := time.Now()
		var dripping sync.WaitGroup
		defer dripping.Wait()
		dripping.Go(func() {
			for {
				if _, err := io.WriteString(c.conn, "x"); err != nil {
					return
				}
				time.Sleep(time.Minute)
			}
		})
		buf := make([]byte, 512)
		n, _ := c.conn.Read(buf)
		if took := time.Since(begun); took != 5*time.Minute || !strings.HasPrefix(string(buf[:n]), "421") {
			t.Errorf("got %q after %s", buf[:n], took)
		}
	})
}

// Whatever goes wrong with the spool is 451, and says nothing of itself; what it means is said.
func TestSpoolErrorsAreOurFault(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		err        error
	}{
		{"disk", "451 4.3.0 local trouble, please try again later", errors.New("/var/spool: no space left on device")},
		{"meant", "452 4.3.1 no room", fmt.Errorf("spool: %w", mta.NewReply(452, "4.3.1", "no room"))},
		{"cancelled", "451 4.3.0 local trouble, please try again later", context.Canceled},
		{"nonsense", "451 4.3.0 local trouble, please try again later", &mta.Reply{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t, testConfig(t), nil)
			r.spool.put = func(context.Context, *mta.Envelope, io.Reader) error { return tt.err }
			for _, content := range []string{"DATA\r\nhi\r\n.\r\n", "BDAT 4 LAST\r\nhi\r\n"} {
				c := dial(t, r.addr()).hello().transaction()
				c.send(content)
				got := c.reply()
				if strings.HasPrefix(got, "354") {
					got = c.reply()
				}
				if got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			}
		})
	}
}

func TestRoomIsAskedBeforeContent(t *testing.T) {
	r := start(t, testConfig(t), nil)
	r.spool.room = func(dest string, size int64) error {
		if dest == "example.org" && size == 1234 {
			return fmt.Errorf("spool: %w", mta.NewReply(452, "4.3.1", "no room"))
		}
		return nil
	}
	c := dial(t, r.addr()).hello()
	c.say("MAIL FROM:<bob@example.net> SIZE=1234", "250")
	c.say("RCPT TO:<alice@example.org>", "452 4.3.1 no room")
	c.say("RCPT TO:<alice@example.com>", "250")
}

// A disk that fills up while content comes in is noticed before it is full, and the message is refused for now.
func TestRoomIsAskedAgainForLargeContent(t *testing.T) {
	r := start(t, testConfig(t), nil)
	r.spool.room = func(_ string, size int64) error {
		if size > 3<<20 {
			return mta.NewReply(452, "4.3.1", "no room")
		}
		return nil
	}
	for size, want := range map[int]string{2 << 20: "250 2.0.0", 4 << 20: "452 4.3.1 no room"} {
		c := dial(t, r.addr()).hello().transaction()
		c.say("DATA", "354")
		c.send(strings.Repeat("0123456789abcdef0123456789abcd\r\n", size/32))
		c.say(".", want)
		c.say("NOOP", "250")
	}
}

// Clients that break a BDAT message off at any point race with nothing, and leave nothing behind.
func TestBrokenOffChunksLeaveNothing(t *testing.T) {
	r := start(t, testConfig(t), nil)
	for i := range 60 {
		c := dial(t, r.addr()).hello().transaction()
		switch c.send("BDAT 3\r\nabc"); i % 4 {
		case 0:
			c.send("RSET\r\nMAIL FROM:<eve@example.net>\r\nRCPT TO:<alice@example.org>\r\nBDAT 3\r\nxyz")
		case 1:
			c.send("BDAT 1000\r\n")
		case 2:
			c.send("QUIT\r\n")
		case 3:
			c.send("MAIL FROM:<eve@example.net>\r\n")
		}
		c.conn.Close()
	}
	r.end(t)
	if n := len(r.spool.all()); n != 0 {
		t.Errorf("%d messages of broken ones", n)
	}
	if strings.Contains(r.log.String(), "level=ERROR") {
		t.Errorf("a client can make us log errors: %s", r.log)
	}
}

// What the library logs of a client's doing does not fill the disk.
func TestLibraryLogIsLimited(t *testing.T) {
	r := start(t, testConfig(t), nil)
	for range 40 {
		c := dial(t, r.addr()).hello()
		c.say("MAIL FROM:<bob@example.net>", "250")
		c.say("RCPT TO:<panic@example.org>", "421 4.3.0")
		c.conn.Close()
	}
	r.end(t)
	if n := strings.Count(r.log.String(), "smtp library"); n < 1 || n > 20 {
		t.Errorf("%d lines of 40 panics", n)
	}
}

// A failed handshake does not go on in clear.
func TestFailedHandshakeEndsTheConnection(t *testing.T) {
	r := start(t, testConfig(t), nil)
	c := dial(t, r.addr()).hello()
	c.say("STARTTLS", "220")
	c.send("EHLO in.clear.example.net\r\nMAIL FROM:<bob@example.net>\r\n")
	rest, _ := io.ReadAll(c.conn)
	if bytes.Contains(rest, []byte("250")) {
		t.Errorf("went on in clear: %q", rest)
	}
	r.end(t)
	if !strings.Contains(r.log.String(), "TLS handshake failed") {
		t.Error("not logged")
	}
}

// What someone put before the handshake in clear is not obeyed after it.
func TestNothingIsInjectedBeforeTheHandshake(t *testing.T) {
	r := start(t, testConfig(t), nil)
	c := dial(t, r.addr()).hello()
	c.send("STARTTLS\r\nEHLO injected.example.net\r\nMAIL FROM:<eve@example.net>\r\n")
	c.want("220")
	conn := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	c.conn = conn
	c.say("NOOP", "250 2.0.0 done")
	c.say("RCPT TO:<alice@example.org>", "503 5.5.1 say EHLO first")
}

// Nor does anything said in clear count after it: a transaction begins anew.
func TestHandshakeForgetsTheTransaction(t *testing.T) {
	r := start(t, testConfig(t), nil)
	c := dial(t, r.addr())
	c.want("220")
	c.say("EHLO x", "250")
	c.transaction()
	c.say("STARTTLS", "220")
	conn := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true, ServerName: "mx2.example.org"})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	c.conn = conn
	c.say("DATA", "503 5.5.1 say EHLO first")
	c.say("EHLO x", "250")
	c.say("DATA", "503 5.5.1 no recipient")
	c.transaction()
	c.say("DATA", "354")
	c.say(".", "250")
	p := r.spool.all()[0].env.Peer
	if p.Proto != "ESMTPS" || p.TLS == nil || p.TLS.Version != "TLS 1.3" || p.TLS.Cipher == "" || p.TLS.ServerName != "mx2.example.org" {
		t.Errorf("peer %+v, TLS %+v", p, p.TLS)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	r := start(t, testConfig(t), nil)
	c := dial(t, r.addr()).hello()
	c.say("STARTTLS", "220")
	conn := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	if err := conn.Handshake(); err == nil {
		t.Fatal("TLS 1.1 was taken")
	}
}

// counting counts the writes to its connections.
type counting struct {
	net.Listener
	writes *atomic.Int64
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (l counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{c, l.writes}, nil
}

func (c countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

func TestRepliesOfAGroupLeaveInOneWrite(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var writes atomic.Int64
	cfg := testConfig(t)
	cfg.Listen[0].Address = "systemd:smtp"
	r := start(t, cfg, func(d *Deps) {
		d.Sockets = map[string][]net.Listener{"smtp": {counting{ln, &writes}}}
	})
	c := dial(t, r.addr()).hello()
	for _, group := range []struct {
		send   string
		want   []string
		writes int64
	}{
		{"MAIL FROM:<bob@example.net>\r\nRCPT TO:<alice@example.org>\r\nRCPT TO:<unknown@example.org>\r\nDATA\r\n", []string{"250", "250", "550", "354"}, 1},
		{".\r\n", []string{"250"}, 1},
		{"MAIL FROM:<bob@example.net>\r\nRCPT TO:<alice@example.org>\r\nBDAT 2\r\nhiBDAT 2 LAST\r\n\r\n", []string{"250", "250", "250", "250"}, 1},
		// A message's end does not wait for the next message to be stored.
		{"RSET\r\nMAIL FROM:<bob@example.net>\r\nRCPT TO:<alice@example.org>\r\nBDAT 4 LAST\r\nhi\r\n" +
			"RSET\r\nMAIL FROM:<bob@example.net>\r\nRCPT TO:<alice@example.org>\r\nBDAT 4 LAST\r\nhi\r\n",
			[]string{"250", "250", "250", "250", "250", "250", "250", "250"}, 2},
	} {
		before := writes.Load()
		c.send(group.send)
		for _, want := range group.want {
			c.want(want)
		}
		if n := writes.Load() - before; n != group.writes {
			t.Errorf("%d writes for %q, want %d", n, group.send, group.writes)
		}
	}
}

func TestLargeContentGoesThroughAFileWithoutAName(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg, nil)
	entries := -1
	r.spool.put = func(_ context.Context, env *mta.Envelope, body io.Reader) error {
		list, err := os.ReadDir(cfg.TempDir)
		if err != nil {
			return err
		}
		entries = len(list)
		content, err := io.ReadAll(body)
		r.spool.messages = append(r.spool.messages, spooled{*env, string(content)})
		return err
	}
	c := dial(t, r.addr()).hello().transaction()
	c.say("DATA", "354")
	var content strings.Builder
	for i := range 40_000 {
		fmt.Fprintf(&content, "line %d of a message that does not fit\r\n", i)
	}
	c.send(content.String())
	c.say(".", "250")
	if entries != 0 {
		t.Errorf("%d names in the folder", entries)
	}
	if got := r.spool.all()[0].content; !strings.HasSuffix(got, "\r\n"+content.String()) {
		t.Errorf("content of %d octets differs from the %d that were sent", len(got), content.Len())
	}
}

func TestTempFolderThatIsMissingIsOurFault(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg, nil)
	if err := os.Remove(cfg.TempDir); err != nil {
		t.Fatal(err)
	}
	c := dial(t, r.addr()).hello().transaction()
	c.say("DATA", "354")
	c.send(strings.Repeat("0123456789abcde\r\n", 20_000))
	c.say(".", "451 4.3.0 local trouble")
	c.say("NOOP", "250")
	if err := os.Mkdir(cfg.TempDir, 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestEndlessContentIsCutOff(t *testing.T) {
	cfg := testConfig(t)
	cfg.MaxMessageSize = 64 * mta.KiB
	r := start(t, cfg, nil)
	c := dial(t, r.addr()).hello().transaction()
	c.say("DATA", "354")
	go func() {
		for {
			if _, err := io.WriteString(c.conn, strings.Repeat("x", 4096)+"\r\n"); err != nil {
				return
			}
		}
	}()
	c.want("552 5.3.4")
}

// A busy client's large buffer is taken back when it falls silent, also in the middle of a command.
func TestSilentClientsBufferIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, dial := bubble(t, testConfig(t), nil)
		c := dial().hello()
		for range 3 {
			c.transaction()
			c.say("DATA", "354")
			c.send(strings.Repeat("x", 5000) + "\r\n")
			c.say(".", "250")
			c.send("NO")
			time.Sleep(2 * keepLarge)
			synctest.Wait()
			r.each(func(w *wire) {
				if w.large != nil || len(w.in) != smallBuffer {
					t.Errorf("%d octets are held", len(w.in))
				}
			})
			c.say("OP", "250 2.0.0 done")
		}
	})
}
