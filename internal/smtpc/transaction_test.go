package smtpc_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/internal/testkit"
)

func content(b []byte) mta.Content {
	return mta.Content{Size: int64(len(b)), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
}

func to(local string) *mta.Recipient {
	return &mta.Recipient{Addr: mta.Path{Local: local, Domain: "example.org"}, Dest: "example.org"}
}

var from = mta.Path{Local: "s", Domain: "example.net"}

func connected(t *testing.T, p *testkit.Primary) *smtpc.Conn {
	t.Helper()
	c, err := dialer().Dial(t.Context(), p.Primary())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func begun(t *testing.T, c *smtpc.Conn) *smtpc.Transaction {
	t.Helper()
	tx, err := c.Begin(from, mta.Params{}, -1)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// TestATransactionArrivesAsItWasSent sends contents of many sizes over one session, in each way.
func TestATransactionArrivesAsItWasSent(t *testing.T) {
	cert, _ := testkit.Certificate(t, "127.0.0.1")
	for _, caps := range [][]string{nil, {"PIPELINING"}, {"CHUNKING"}, {}} {
		p := started(t, func(p *testkit.Primary) {
			p.Caps = caps
			p.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		})
		c := connected(t, p)
		var want [][]byte
		for _, n := range []int{0, 1, 100, 70_000, 1 << 20} {
			body := []byte(strings.Repeat(".a line of text, with dots.\r\n", n/29+1))
			if n == 0 {
				body = nil
			}
			want = append(want, body)
			tx := begun(t, c)
			for _, r := range []string{"a", "b"} {
				if a, err := tx.Rcpt(t.Context(), to(r)); err != nil || a.Step != smtpc.StepRCPT || a.Reply.Code != 250 {
					t.Fatal(a, err)
				}
			}
			if r, err := tx.Send(t.Context(), content(body), smtpc.SendOptions{Final: time.Minute}); err != nil || r.Code != 250 {
				t.Fatal(r, err)
			}
			if !tx.Idle() {
				t.Error("it is over")
			}
		}
		for i, m := range p.Messages() {
			if !bytes.Equal(m.Content, want[i]) || len(m.Rcpts) != 2 {
				t.Errorf("%v: message %d has %d octets, want %d", caps, i, len(m.Content), len(want[i]))
			}
		}
		if p.Conns() != 1 || slices.Contains(p.Commands(), "RSET") {
			t.Errorf("%d sessions: %v", p.Conns(), p.Commands())
		}
	}
}

func TestMAILLeavesWithTheFirstRecipient(t *testing.T) {
	p := started(t, nil)
	d := testkit.NewDelay(t, p.Addr(), 100*time.Millisecond)
	at, err := mta.ParsePrimary(d.Addr())
	if err != nil {
		t.Fatal(err)
	}
	c, err := dialer().Dial(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	best := time.Hour
	for range 3 {
		tx, start := begun(t, c), time.Now()
		if _, err := tx.Rcpt(t.Context(), to("a")); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
		if err := tx.Abort(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if best > 180*time.Millisecond {
		t.Errorf("the first recipient took %s over a way of 100 ms", best)
	}
}

func TestARefusedMAILIsTheAnswerToEveryRecipient(t *testing.T) {
	for _, caps := range [][]string{nil, {}} {
		p := started(t, func(p *testkit.Primary) { p.Caps = caps })
		p.On(testkit.AtMAIL, testkit.Say("550 5.7.1 no"))
		c := connected(t, p)
		tx := begun(t, c)
		for range 2 {
			if a, err := tx.Rcpt(t.Context(), to("a")); err != nil || a.Step != smtpc.StepMAIL || a.Reply.String() != "550 5.7.1 no" {
				t.Errorf("%v %v", a, err)
			}
		}
		if err := tx.Abort(t.Context()); err != nil {
			t.Error(err)
		}
		p.SetScript(nil)
		tx = begun(t, c)
		if a, err := tx.Rcpt(t.Context(), to("a")); err != nil || a.Reply.Code != 250 {
			t.Errorf("the session is lost: %v %v", a, err)
		}
	}
}

func TestNothingIsSentToNobody(t *testing.T) {
	p := started(t, nil)
	p.On(testkit.AtRCPT, testkit.Say("550 5.1.1 no"))
	tx := begun(t, connected(t, p))
	if a, err := tx.Rcpt(t.Context(), to("a")); err != nil || a.Reply.Code != 550 {
		t.Fatal(a, err)
	}
	if _, err := tx.Send(t.Context(), content(nil), smtpc.SendOptions{}); err == nil {
		t.Error("it was sent")
	}
	if err := tx.Abort(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestContentThatCannotBeReadIsNeverWhole(t *testing.T) {
	broken := errors.New("disk")
	for name, c := range map[string]mta.Content{
		"an error": {Size: 200_000, Open: func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader(strings.Repeat("x\r\n", 40_000)), breaks{broken})), nil
		}},
		"too short": {Size: 200_001, Open: content(bytes.Repeat([]byte("x\r\n"), 60_000)).Open},
		"too long":  {Size: 100, Open: content(bytes.Repeat([]byte("x\r\n"), 60_000)).Open},
		"bare LF":   content(append(bytes.Repeat([]byte("x\r\n"), 60_000), '\n')),
		"no reader": {Size: 3, Open: func() (io.ReadCloser, error) { return nil, broken }},
	} {
		for _, caps := range [][]string{nil, {}} {
			p := started(t, func(p *testkit.Primary) { p.Caps = caps })
			tx := begun(t, connected(t, p))
			if _, err := tx.Rcpt(t.Context(), to("a")); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Send(t.Context(), c, smtpc.SendOptions{}); !errors.Is(err, smtpc.ErrContent) {
				t.Errorf("%s: %v", name, err)
			}
			p.Stop()
			if n := p.Accepted(); n != 0 {
				t.Errorf("%s: %d messages were taken", name, n)
			}
		}
	}
}

type breaks struct{ err error }

func (f breaks) Read([]byte) (int, error) { return 0, f.err }

func TestAPrimaryThatDoesNotKnowBDATIsFoundOut(t *testing.T) {
	p := started(t, nil)
	p.On(testkit.AtFinal, testkit.Say("503 5.5.1 what?"))
	c := connected(t, p)
	tx := begun(t, c)
	tx.Rcpt(t.Context(), to("a"))
	if _, err := tx.Send(t.Context(), content([]byte("x\r\n")), smtpc.SendOptions{}); !errors.Is(err, smtpc.ErrOutOfStep) || !c.Closed() {
		t.Error(err)
	}
	c = connected(t, p)
	tx = begun(t, c)
	tx.Rcpt(t.Context(), to("a"))
	if r, err := tx.Send(t.Context(), content([]byte("x\r\n")), smtpc.SendOptions{Method: smtpc.Grouped}); err != nil || r.Code != 503 {
		t.Errorf("by DATA it is a word about the content: %v %v", r, err)
	}
}

func TestAWaitingSessionIsWokenUnharmed(t *testing.T) {
	cert, _ := testkit.Certificate(t, "127.0.0.1")
	for _, secure := range []bool{false, true} {
		p := started(t, func(p *testkit.Primary) {
			if secure {
				p.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
			}
		})
		c := connected(t, p)
		for range 20 {
			ctx, wake := context.WithCancel(t.Context())
			waited := make(chan error)
			go func() { waited <- c.Wait(ctx) }()
			wake()
			if err := <-waited; err != nil {
				t.Fatal(err)
			}
			tx := begun(t, c)
			if a, err := tx.Rcpt(t.Context(), to("a")); err != nil || a.Reply.Code != 250 {
				t.Fatal(a, err)
			}
			if err := tx.Abort(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		waited := make(chan error)
		go func() { waited <- c.Wait(t.Context()) }()
		p.Stop()
		if err := <-waited; err == nil || !c.Closed() {
			t.Errorf("TLS %v: it is gone, and nobody noticed", secure)
		}
	}
}

func TestXCLIENTTakesASessionOnce(t *testing.T) {
	p := started(t, func(p *testkit.Primary) { p.XCLIENT = true })
	c := connected(t, p)
	if c.Identified() {
		t.Error("not yet")
	}
	for range 2 {
		if err := c.Identify(t.Context(), peerOf("192.0.2.10:1234", "", "mail.example.net")); err != nil || !c.Identified() {
			t.Fatal(err)
		}
	}
	n := 0
	for _, l := range p.Commands() {
		if strings.HasPrefix(l, "XCLIENT") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d times: %v", n, p.Commands())
	}
}

func TestAClientThatIsTurnedAwayIsAnErrorOfItsOwn(t *testing.T) {
	p := started(t, func(p *testkit.Primary) { p.XCLIENT = true })
	p.On(testkit.AtXCLIENT, testkit.Say("554 5.7.1 listed"))
	c := connected(t, p)
	err := c.Identify(t.Context(), peerOf("192.0.2.10:1234", "", "mail.example.net"))
	if e, ok := errors.AsType[*smtpc.Error](err); !errors.Is(err, smtpc.ErrClient) || !ok || e.Reply.Code != 554 {
		t.Error(err)
	}
	q := started(t, func(p *testkit.Primary) { p.PROXY = true })
	q.On(testkit.AtBanner, testkit.Bye("554 5.7.1 listed"))
	_, err = dialer().DialWith(t.Context(), q.Primary(), smtpc.Options{Client: peerOf("192.0.2.10:1234", "", "x"), Proxy: true, ClientOnly: true})
	if !errors.Is(err, smtpc.ErrClient) || q.Conns() != 1 {
		t.Errorf("%v, %d sessions", err, q.Conns())
	}
}
