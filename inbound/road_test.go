package inbound

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"understudy/internal/mta"
)

// deliver sends a message on a connection that has said EHLO, and gives the final reply.
func (c *talk) deliver(from, to, content string) string {
	c.t.Helper()
	c.say("MAIL FROM:<"+from+">", "250")
	c.say("RCPT TO:<"+to+">", "250")
	c.say("DATA", "354")
	c.send(content + ".\r\n")
	return c.reply()
}

func TestWhereThePrimaryWentAwayIsLogged(t *testing.T) {
	for _, tt := range []struct{ step, from, to, subject string }{
		{"begin", "away", "alice", "x"}, {"rcpt", "bob", "lost", "x"}, {"content", "bob", "alice", "away"},
	} {
		t.Run(tt.step, func(t *testing.T) {
			r, p, j := startInline(t, testConfig(t))
			c := dial(t, r.addr()).hello()
			reply := c.deliver(tt.from+"@example.net", tt.to+"@example.org", "Subject: "+tt.subject+"\r\n")
			c.conn.Close()
			r.end(t)
			_, id, ok := strings.Cut(reply, "250 2.0.0 ok, queued as ")
			if want := `msg="judged here and spooled, for the primary went away" id=` + id + " dest=example.org step=" + tt.step + "\n"; !ok || !strings.Contains(r.log.String(), want) {
				t.Errorf("got %q; the log lacks %q:\n%s", reply, want, r.log)
			}
			if want := `msg="primary went away" dest=example.org step=` + tt.step; !strings.Contains(r.log.String(), want) {
				t.Errorf("the log lacks %q:\n%s", want, r.log)
			}
			if n := testutil.ToFloat64(r.metrics.inline.left.WithLabelValues(tt.step)); n != 1 {
				t.Errorf("counted %v times", n)
			}
			if asked := j.asked(); asked != "sender content" && asked != "clean sender content" {
				t.Errorf("the judge was asked for %s", asked)
			}
			m := r.spool.all()
			if len(m) != 1 || m[0].env.Verdict == nil || m[0].env.ID.String() != id || strings.Count(m[0].content, "Received: ") != 1 || !strings.Contains(m[0].content, id) {
				t.Errorf("spooled %+v", m)
			}
			p.checkIdle(t)
		})
	}
}

// That one domain's primary is away opens no other domain's spool.
func TestOneDomainsPrimaryBeingAwayIsNoOthers(t *testing.T) {
	p, j := &scripted{}, &testJudge{road: func(mta.Path) mta.Road { return mta.Inline }}
	r := start(t, testConfig(t), func(d *Deps) { d.Relay, d.Judge = p, j })
	c := dial(t, r.addr()).hello()
	p.begin = func() error {
		if len(p.dests) == 1 {
			return errReset
		}
		return nil
	}
	c.say("MAIL FROM:<bob@example.net>", "250")
	c.say("RCPT TO:<unknown@example.com>", "550 5.1.1 no such recipient")
	c.say("RCPT TO:<alice@example.org>", "250 2.1.5 Ok by the primary")
	c.say("DATA", "354")
	c.say(".", "250 2.0.0 Ok")
	if len(r.spool.all()) != 0 || len(p.all()) != 1 {
		t.Errorf("the spool has %d, the primary %d", len(r.spool.all()), len(p.all()))
	}
}

func TestIDOfInlineMailIsInItsReceivedFieldAndTheLog(t *testing.T) {
	r, p, j := startInline(t, testConfig(t))
	c := dial(t, r.addr()).hello()
	if got := c.deliver("bob@example.net", "alice@example.org", "Subject: x\r\n"); got != "250 2.0.0 Ok: queued as 4Xq1" {
		t.Fatalf("got %q", got)
	}
	m := p.all()[0]
	_, rest, _ := strings.Cut(m.content, "with ESMTP id ")
	id, _, _ := strings.Cut(rest, "\r\n")
	if _, err := mta.ParseID(id); err != nil || !strings.Contains(r.log.String(), "id="+id) || !strings.Contains(r.log.String(), `msg="message passed on"`) {
		t.Errorf("id %q (%v) is not in the log:\n%s", id, err, r.log)
	}
	if !strings.Contains(m.content, "\r\n\tfor <alice@example.org>; ") || j.asked() != "clean shadow" || len(r.spool.all()) != 0 {
		t.Errorf("content %q, judge asked for %s, %d spooled", m.content, j.asked(), len(r.spool.all()))
	}
	if n := testutil.ToFloat64(r.metrics.inline.messages.accepted); n != 1 {
		t.Errorf("%v messages counted", n)
	}
}

func TestSpoolsRoomIsAskedOnItsRoadAlone(t *testing.T) {
	full := mta.NewReply(452, "4.3.1", "no room")
	p, j := &scripted{}, &testJudge{}
	r := start(t, testConfig(t), func(d *Deps) {
		d.Relay, d.Judge = p, j
		d.Spool.(*memorySpool).room = func(string, int64) error { return full }
	})
	c := dial(t, r.addr()).hello()
	if got := c.deliver("bob@example.net", "alice@example.org", strings.Repeat("Subject: large\r\n", 1<<15)); got != "250 2.0.0 Ok: queued as 4Xq1" {
		t.Errorf("inline: %q", got)
	}
	if got := c.deliver("bob@example.net", "alice@example.org", "Subject: away\r\n"); !strings.HasPrefix(got, "452 4.3.1 no room") {
		t.Errorf("when the primary went away: %q", got)
	}
	r.files.Store(maxInlineFiles + 1) // so much of others that the disk may be in danger
	if got := c.deliver("bob@example.net", "alice@example.org", strings.Repeat("Subject: large\r\n", 1<<15)); !strings.HasPrefix(got, "452 4.3.1 no room") {
		t.Errorf("inline beside very much else: %q", got)
	}
	c.say("MAIL FROM:<bob@example.net>", "250")
	c.say("RCPT TO:<carol@example.com>", "452 4.3.1")
}

func TestInlineTransactionsOfOneNetworkAreBounded(t *testing.T) {
	cfg := testConfig(t)
	cfg.MaxInlinePerClient = 2
	r, p, _ := startInline(t, cfg)
	var open []*talk
	for range 2 {
		open = append(open, dial(t, r.addr()).hello().transaction())
	}
	third := dial(t, r.addr()).hello()
	third.say("MAIL FROM:<bob@example.net>", "250")
	third.say("RCPT TO:<alice@example.org>", "451 4.7.0 too many messages at once from your network")
	third.say("RCPT TO:<carol@example.com>", "250") // the spool is open to it
	third.say("RSET", "250")
	open[0].say("RSET", "250")
	third.transaction()
	open[1].conn.Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		c := dial(t, r.addr()).hello()
		c.say("MAIL FROM:<bob@example.net>", "250")
		c.send("RCPT TO:<alice@example.org>\r\n")
		if strings.HasPrefix(c.reply(), "250") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a client that hung up kept its transaction")
		}
	}
	if p.most != 2 {
		t.Errorf("%d transactions at once", p.most)
	}
	r.end(t)
	p.checkIdle(t)
}

func TestTrustedClientsMayHaveAnyNumberOfTransactions(t *testing.T) {
	cfg := testConfig(t)
	cfg.MaxInlinePerClient, cfg.Trusted = 1, DefaultConfig().Trusted
	r, p, _ := startInline(t, cfg)
	for range 3 {
		dial(t, r.addr()).hello().transaction()
	}
	if p.most != 3 {
		t.Errorf("%d transactions at once", p.most)
	}
	r.end(t)
	p.checkIdle(t)
}

// Whom our own gate refuses, the primary never hears of.
func TestRefusedAtTheGateNeverReachesThePrimary(t *testing.T) {
	talks := func(c *talk) {
		c.conn.Write([]byte("EHLO x\r\nMAIL FROM:<bob@example.net>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\n"))
		io.Copy(io.Discard, c.conn)
	}
	t.Run("early", func(t *testing.T) {
		cfg := testConfig(t)
		cfg.Pregreet.Wait = 10 * time.Second
		r, p, _ := startInline(t, cfg)
		talks(dial(t, r.addr()))
		r.end(t)
		if n := p.begun(); n != 0 || !strings.Contains(r.log.String(), "talked before the greeting") {
			t.Errorf("%d transactions:\n%s", n, r.log)
		}
	})
	t.Run("too many", func(t *testing.T) {
		cfg := testConfig(t)
		cfg.MaxPerNetwork = 1
		r, p, _ := startInline(t, cfg)
		dial(t, r.addr()).hello()
		talks(dial(t, r.addr()))
		r.end(t)
		if n := p.begun(); n != 0 {
			t.Errorf("%d transactions", n)
		}
	})
}

// A sender that hangs up while the primary is at work changes nothing: the message is the primary's, once.
func TestSenderThatHangsUpDuringSendChangesNothing(t *testing.T) {
	cfg := testConfig(t)
	cfg.ShutdownGrace = 20 * time.Second
	r, p, _ := startInline(t, cfg)
	sending, gone := make(chan bool), make(chan bool)
	p.send = func(ctx context.Context, content string) (mta.Reply, error) {
		close(sending)
		<-gone
		return mta.Reply{Code: 250, Text: "Ok"}, ctx.Err()
	}
	c := dial(t, r.addr()).hello().transaction()
	c.say("DATA", "354")
	c.send("Subject: x\r\n.\r\nQUIT\r\n")
	<-sending
	c.conn.Close()
	r.stop() // neither does a shutdown, within its grace
	close(gone)
	r.end(t)
	if len(p.all()) != 1 || len(r.spool.all()) != 0 || !strings.Contains(r.log.String(), `msg="message passed on"`) {
		t.Errorf("the primary has %d, the spool %d:\n%s", len(p.all()), len(r.spool.all()), r.log)
	}
	p.checkIdle(t)
}

func TestShutdownGivesIdleTransactionsBack(t *testing.T) {
	r, p, _ := startInline(t, testConfig(t))
	c := dial(t, r.addr()).hello().transaction()
	r.stop()
	c.want("421 4.3.2")
	c.conn.Close()
	r.end(t)
	p.checkIdle(t)
}

// A primary that refuses MAIL is not asked again for each recipient.
func TestRefusedMailIsAskedOnce(t *testing.T) {
	r, p, _ := startInline(t, testConfig(t))
	c := dial(t, r.addr()).hello()
	c.say("MAIL FROM:<blocked@example.net>", "250")
	for i := range 5 {
		c.say(fmt.Sprintf("RCPT TO:<a%d@example.org>", i), "550 5.7.1 client host blocked")
	}
	if n := p.begun(); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
}

// A refusal may be softened, but what the primary took is never refused, nor the reverse.
func TestPolicyDoesNotContradictThePrimary(t *testing.T) {
	r, p, j := startInline(t, testConfig(t))
	c := dial(t, r.addr()).hello()
	c.say("MAIL FROM:<bob@example.net>", "250")
	j.heard = func(mta.Reply) mta.Reply { return mta.Reply{Code: 250, Text: "welcome"} }
	c.say("RCPT TO:<unknown@example.org>", "550 5.1.1 <unknown")
	j.heard = func(mta.Reply) mta.Reply { return mta.Reply{Code: 451, Text: "no"} }
	c.say("RCPT TO:<alice@example.org>", "250 2.1.5 Ok by the primary")
	c.say("DATA", "354")
	c.say(".", "250")
	if m := p.all(); len(m) != 1 || len(m[0].env.Rcpts) != 1 {
		t.Errorf("the primary has %+v", m)
	}
}

// A primary is not kept waiting for a slow sender. It is asked again, and its word still counts.
func TestSlowSenderDoesNotGetAroundThePrimary(t *testing.T) {
	drip := func(c *talk, command string) {
		for i := range len(command) {
			time.Sleep(time.Second)
			c.send(command[i : i+1])
		}
	}
	silent := func(*talk) { time.Sleep(patience + time.Second) }
	for _, tt := range []struct {
		name   string
		slow   func(c *talk)
		begin  error // of the second transaction
		known  func(local string) bool
		want   string
		begun  int
		passed int
	}{
		{"silent", silent, nil, nil, "250 2.0.0 primary", 2, 1},
		{"one octet a second", func(c *talk) { drip(c, strings.Repeat("x", 20)) }, nil, nil, "250 2.0.0 primary", 2, 1},
		{"not slow enough", func(*talk) { time.Sleep(patience - time.Second) }, nil, nil, "250 2.0.0 primary", 1, 1},
		{"away meanwhile", silent, errReset, nil, "250 2.0.0 ok, queued as", 2, 0},
		{"blocked meanwhile", silent, mta.NewReply(550, "5.7.1", "blocked"), nil, "550 5.7.1 blocked", 2, 0},
		{"too many meanwhile", silent, fmt.Errorf("%w", crowded), nil, "451 4.7.0", 2, 0},
		{"recipient removed meanwhile", silent, nil, func(string) bool { return false }, "451 4.3.0 the primary server did not wait", 2, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, j := &scripted{}, &testJudge{}
				p.begin = func() error {
					if len(p.dests) == 2 {
						p.known = tt.known
						return tt.begin
					}
					return nil
				}
				p.send = func(context.Context, string) (mta.Reply, error) { return mta.ParseReply(250, "2.0.0 primary"), nil }
				r, dial := bubble(t, testConfig(t), func(d *Deps) { d.Relay, d.Judge = p, j })
				c := dial().hello().transaction()
				c.say("DATA", "354")
				tt.slow(c)
				synctest.Wait()
				if p.begun() == 1 && p.open != 2-tt.begun {
					t.Errorf("%d transactions are open while the sender is slow", p.open)
				}
				c.send("\r\nSubject: x\r\n.\r\n")
				c.want(tt.want)
				spooled := 0
				if strings.Contains(tt.want, "queued") {
					spooled = 1
				}
				if p.begun() != tt.begun || len(p.all()) != tt.passed || len(r.spool.all()) != spooled {
					t.Errorf("%d transactions, the primary has %d, the spool %d", p.begun(), len(p.all()), len(r.spool.all()))
				}
				c.say("QUIT", "221")
				c.line()
				synctest.Wait()
				p.checkIdle(t)
			})
		})
	}
}

func TestSenderWhoDripsRecipientsDoesNotMakeThePrimaryHearThemForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, j := &scripted{}, &testJudge{}
		_, dial := bubble(t, testConfig(t), func(d *Deps) { d.Relay, d.Judge = p, j })
		c := dial().hello().transaction()
		for range maxReopens {
			time.Sleep(patience + time.Second)
			c.say("RCPT TO:<carol@example.org>", "250 2.1.5 Ok by the primary")
		}
		for range 5 {
			time.Sleep(patience + time.Second)
			c.say("RCPT TO:<carol@example.org>", "451 4.3.0 the primary server did not wait")
		}
		if n := p.begun(); n != 1+maxReopens {
			t.Errorf("the primary was asked %d times", n)
		}
		p.checkIdle(t)
	})
}

// Between commands it is the same.
func TestIdleSenderKeepsNoPrimaryWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, j := &scripted{}, &testJudge{}
		_, dial := bubble(t, testConfig(t), func(d *Deps) { d.Relay, d.Judge = p, j })
		c := dial().hello().transaction()
		for range 20 {
			time.Sleep(time.Second)
			c.say("NOOP", "250")
		}
		p.checkIdle(t)
		c.say("RCPT TO:<unknown@example.org>", "550 5.1.1 <unknown")
		c.say("RCPT TO:<carol@example.org>", "250 2.1.5 Ok by the primary")
		time.Sleep(time.Minute)
		p.checkIdle(t)
		c.say("DATA", "354")
		c.say(".", "250 2.0.0 Ok: queued as 4Xq1")
		if m := p.all(); len(m) != 1 || len(m[0].env.Rcpts) != 2 || p.begun() != 3 {
			t.Errorf("after %d transactions the primary has %+v", p.begun(), m)
		}
	})
}

// A message of any size goes inline with its exact size, whatever is left out of it.
func TestLargeContentGoesInlineWhole(t *testing.T) {
	r, p, _ := startInline(t, testConfig(t))
	c := dial(t, r.addr()).hello()
	header := strings.Repeat("X-Keep: "+strings.Repeat("k", 80)+"\r\nX-Spam-Report: "+strings.Repeat("s", 80)+"\r\n", 4000)
	text := "\r\n" + strings.Repeat("line of text\r\n", 50_000)
	if got := c.deliver("bob@example.net", "alice@example.org", header+text); !strings.HasPrefix(got, "250 2.0.0 Ok") {
		t.Fatalf("got %q", got)
	}
	_, content, _ := strings.Cut(p.all()[0].content, "; ")
	_, content, _ = strings.Cut(content, "\r\n")
	want := strings.Repeat("X-Keep: "+strings.Repeat("k", 80)+"\r\n", 4000) + text
	if content != want {
		t.Errorf("%d octets came, want %d", len(content), len(want))
	}
}

// What the judge takes a copy of can be read as long as he wants, by several readers at once, and is gone after that.
func TestShadowMayReadOnAfterTheReply(t *testing.T) {
	for name, size := range map[string]int{"memory": 100, "file": 600 << 10} {
		t.Run(name, func(t *testing.T) {
			r, _, j := startInline(t, testConfig(t))
			type loan struct {
				c       mta.Content
				final   mta.Reply
				release func()
			}
			loans := make(chan loan, 1)
			j.shadow = func(c mta.Content, final mta.Reply, release func()) bool {
				loans <- loan{c, final, release}
				return true
			}
			want := message(size)
			c := dial(t, r.addr()).hello()
			if got := c.deliver("bob@example.net", "alice@example.org", want); !strings.HasPrefix(got, "250 2.0.0 Ok") {
				t.Fatal(got)
			}
			c.say("QUIT", "221")
			l := <-loans
			var readers sync.WaitGroup
			for range 4 {
				readers.Go(func() {
					if got := read(l.c); got != want {
						t.Errorf("read %d octets, want %d", len(got), len(want))
					}
				})
			}
			readers.Wait()
			if l.final.Code != 250 || l.c.Size != int64(len(want)) || r.chunks.Load() == 0 {
				t.Errorf("final reply %v, size %d, %d chunks", l.final, l.c.Size, r.chunks.Load())
			}
			ended := make(chan bool)
			r.stop()
			go func() {
				r.end(t)
				close(ended)
			}()
			select {
			case <-ended:
				t.Error("Run returned before the copy was given back")
			case <-time.After(20 * time.Millisecond):
			}
			l.release()
			<-ended
			if r.chunks.Load() != 0 || r.files.Load() != 0 {
				t.Errorf("%d chunks and %d octets in files are left", r.chunks.Load(), r.files.Load())
			}
		})
	}
}

func TestShutdownDoesNotWaitForeverForACopy(t *testing.T) {
	cfg := testConfig(t)
	cfg.ShutdownGrace = 50 * time.Millisecond
	r, _, j := startInline(t, cfg)
	j.shadow = func(mta.Content, mta.Reply, func()) bool { return true }
	c := dial(t, r.addr()).hello()
	c.deliver("bob@example.net", "alice@example.org", "Subject: x\r\n")
	c.conn.Close()
	r.end(t)
}

// Ten thousand guesses: none is answered 250, ten of them end a connection, and nothing is left of them.
func TestDictionaryAttack(t *testing.T) {
	for name, road := range map[string]mta.Road{"down": mta.Spooled, "inline": mta.Inline} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.MaxPerMinute = 1 << 20
			p, j := &scripted{}, &testJudge{road: func(mta.Path) mta.Road { return road }}
			r := start(t, cfg, func(d *Deps) { d.Relay, d.Judge, d.Policy, d.Log = p, j, nobody{}, nil })
			const guesses = 10_000
			sent, closed, before := 0, 0, uint64(0)
			for sent < guesses {
				c := dial(t, r.addr()).hello()
				c.say("MAIL FROM:<eve@example.net>", "250")
				var all strings.Builder
				for i := range 20 {
					fmt.Fprintf(&all, "RCPT TO:<guess%d@example.org>\r\n", sent+i)
				}
				c.send(all.String())
				for range 10 {
					if got := c.reply(); got[:3] != "550" && got[:3] != "450" {
						t.Fatalf("guess %d: %q", sent, got)
					}
					sent++
				}
				c.want("421 4.7.0 too many")
				closed++
				c.conn.Close()
				if sent == guesses/10 {
					before = heap()
				}
			}
			r.end(t)
			if grown := int64(heap()) - int64(before); grown > 4<<20 {
				t.Errorf("the heap grew by %d octets", grown)
			}
			if closed != guesses/10 || testutil.ToFloat64(r.metrics.recipients.accepted) != 0 {
				t.Errorf("%d connections were ended", closed)
			}
			p.checkIdle(t)
		})
	}
}

// nobody knows no recipient.
type nobody struct{}

func (nobody) Recipient(context.Context, *mta.Envelope, mta.Path) (mta.Recipient, error) {
	return mta.Recipient{}, mta.NewReply(450, "4.1.1", "not known yet")
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestRepliesInOurName(t *testing.T) {
	for _, tt := range []struct {
		code       int
		text, want string
	}{
		{550, "5.1.1 mail.example.org says no", "550 5.1.1 mail.example.org says no"},
		{421, "4.7.0 mail.example.org Error: too many errors", "421 4.7.0 mx2.example.org Error: too many errors"},
		{421, "mail.example.org: going down", "421 mx2.example.org going down"},
		{421, "mail.example.org", "421 mx2.example.org"},
		{421, "4.3.2 Service not available", "421 4.3.2 mx2.example.org Service not available"},
		{421, "", "421 mx2.example.org"},
	} {
		if got := inOurName(mta.ParseReply(tt.code, tt.text), "mx2.example.org").String(); got != tt.want {
			t.Errorf("%d %s: got %q, want %q", tt.code, tt.text, got, tt.want)
		}
	}
}

func TestWhatAPrimarySaysOfUsIsNoVerdict(t *testing.T) {
	for text, want := range map[string]bool{
		"250 2.1.5 Ok": false, "450 4.2.0 greylisted": false, "550 5.1.1 unknown": false, "501 5.1.3 bad address": false, "504 5.5.2 need a full name": false,
		"500 5.7.1 refused by policy": false, "552 5.3.4 too large": false, "554 5.7.1 spam": false,
		"500 5.5.2 what?": true, "502 what?": true, "503 5.5.1 need MAIL": true, "521 no mail here": true, "530 5.7.0 STARTTLS first": true, "535 5.7.8 no": true,
		"555 5.5.4 unsupported": true, "354 go ahead": true, "199 x": true, "600 x": true,
	} {
		var code int
		fmt.Sscan(text, &code)
		if got := aboutUs(mta.ParseReply(code, text[4:])); got != want {
			t.Errorf("%s: got %v", text, got)
		}
	}
}

// Whatever a primary says, the sender hears one reply, of the primary's code and in lines that are none too long.
func FuzzPrimaryReply(f *testing.F) {
	f.Add(550, "5.1.1 no such user\n5.1.1 really")
	f.Add(421, "4.3.2 mail.example.org\r\n250 2.0.0 fine")
	f.Add(554, strings.Repeat("x", 1000)+"\n5.7.1\n\x00\x1b[2J\u00fc")
	f.Add(250, "")
	f.Fuzz(func(t *testing.T, code int, text string) {
		r := mta.ParseReply(code, text)
		if aboutUs(r) {
			return
		}
		out := string(appendReply(nil, inOurName(r, "mx2.example.org")))
		lines := strings.Split(strings.TrimSuffix(out, "\r\n"), "\r\n")
		for i, line := range lines {
			sep := "-"
			if i == len(lines)-1 {
				sep = " "
			}
			if !strings.HasPrefix(line, fmt.Sprintf("%d%s", code, sep)) || len(line) > 510 || !isPrintableASCII(line) {
				t.Errorf("%d %q is said as %q", code, text, out)
			}
		}
	})
}
