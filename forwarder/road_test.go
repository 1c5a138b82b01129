package forwarder

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/internal/testkit"
)

// from spools a message that a client gave us.
func (w *world) from(client, helo, to string) mta.ID {
	w.t.Helper()
	w.n++
	p, err := mta.ParsePath(to)
	if err != nil {
		w.t.Fatal(err)
	}
	env := &mta.Envelope{ID: mta.NewID(time.Now()), Received: time.Now(), From: mta.Path{Local: fmt.Sprintf("s%d", w.n), Domain: "example.net"},
		Peer:  mta.Peer{Addr: netip.MustParseAddrPort(client), Helo: helo, Proto: "ESMTP", Local: netip.MustParseAddrPort("203.0.113.5:25")},
		Rcpts: []mta.Recipient{{Addr: p, Dest: p.DomainKey()}}}
	w.putEnv(env, "x\r\n")
	return env.ID
}

func TestAClientForWhomThePrimaryStallsDoesNotHoldUpTheDrain(t *testing.T) {
	inBubble(t, func(p *piped, _ *world) { p.XCLIENT = true }, func(w *world, p *piped) {
		p.SetScript(func(at testkit.Point) testkit.Action {
			if at.Step == testkit.AtXCLIENT && strings.Contains(at.Arg, "ADDR=198.51.100.66") {
				return testkit.StallNow
			}
			return testkit.Action{}
		})
		w.from("198.51.100.66:4711", "slow.example.net", "bob@example.org")
		time.Sleep(time.Second) // it is the canary
		for n := range 10 {
			w.from(fmt.Sprintf("198.51.100.1%d:4711", n), "fine.example.net", "bob@example.org")
		}
		time.Sleep(6 * time.Minute) // XCLIENT may take 5
		if n := p.Accepted(); n != 10 {
			t.Errorf("%d of 10 messages of other clients were delivered", n)
		}
		close(p.stopped)
		p.wg.Wait()
		p.stopped = make(chan struct{})
	})
}

func TestMailOfEachClientGoesUnderItsName(t *testing.T) {
	for _, way := range []string{"xclient", "proxy_v2"} {
		t.Run(way, func(t *testing.T) {
			p := started(t, func(p *testkit.Primary) { p.XCLIENT, p.PROXY = way == "xclient", way == "proxy_v2" })
			w := newWorld(t, "example.org", tier(p))
			w.domains = map[string]Domain{"example.org": {ClientIdentity: way}}
			for i := range 40 {
				w.from(fmt.Sprintf("198.51.100.%d:%d", i%8+1, 1000+i), fmt.Sprintf("h%d.example.net", i%8+1), "a@example.org")
			}
			for _, c := range []string{"127.0.0.1:99", "10.0.0.1:99", "203.0.113.5:99", "[::1]:99"} {
				w.from(c, "inside", "a@example.org")
			}
			w.start()
			w.eventually("an empty spool", func() bool { return w.left() == 0 })
			told := map[string]int{}
			for _, m := range p.Messages() {
				var n int
				fmt.Sscanf(m.From, "s%d@", &n)
				want, helo := fmt.Sprintf("198.51.100.%d", (n-1)%8+1), fmt.Sprintf("h%d.example.net", (n-1)%8+1)
				if n > 40 {
					want, helo = "", "mx2.example.org"
				}
				if m.Helo != helo || want != "" && !strings.Contains(m.XClient, want) || want == "" && m.XClient != "" && m.XClient != "PROXY LOCAL" {
					t.Errorf("message %d: told %q, EHLO %s, want %q", n, m.XClient, m.Helo, want)
				}
				told[m.XClient]++
			}
			if p.Accepted() != 44 || p.Conns() > 20 {
				t.Errorf("%d messages over %d sessions", p.Accepted(), p.Conns())
			}
		})
	}
}

func TestAPrimaryWithoutXCLIENTTakesMailOfManyClientsInOneSession(t *testing.T) {
	p := started(t, nil)
	w := newWorld(t, "example.org", tier(p))
	w.cfg.Sessions = 1
	for i := range 100 {
		w.from(fmt.Sprintf("198.51.100.%d:25", i+1), "h", "a@example.org")
	}
	w.start()
	w.eventually("an empty spool", func() bool { return w.left() == 0 })
	if p.Conns() != 1 {
		t.Errorf("%d sessions", p.Conns())
	}
}

func TestARefusalOfMAILIsBelievedOnceThePrimaryKnowsTheClient(t *testing.T) {
	for _, granted := range []bool{true, false} {
		p := started(t, func(p *testkit.Primary) { p.XCLIENT = granted })
		p.On(testkit.AtMAIL, testkit.Say("550 5.7.1 your SPF says no"))
		w := newWorld(t, "example.org", tier(p))
		id := w.from("198.51.100.9:25", "h", "a@example.org")
		w.start()
		w.eventually("an outcome", func() bool { i := w.items(id); return len(i) == 1 && i[0].Attempts == 1 && !i[0].Leased })
		if got := w.items(id)[0].Held; got != granted {
			t.Errorf("granted %v: held %v", granted, got)
		}
		w.stop()
	}
}

func TestMailGoesOnlyByTheTLSThatItsDomainWants(t *testing.T) {
	good, _ := testkit.Certificate(t, "127.0.0.1")
	other, _ := testkit.Certificate(t, "127.0.0.1")
	sum := sha256.Sum256(good.Leaf.RawSubjectPublicKeyInfo)
	for _, pin := range []string{hex.EncodeToString(sum[:]), "sha256/" + base64.StdEncoding.EncodeToString(sum[:])} {
		for _, cert := range []tls.Certificate{good, other} {
			p := started(t, func(p *testkit.Primary) { p.TLS = &tls.Config{Certificates: []tls.Certificate{cert}} })
			w := newWorld(t, "example.org", tier(p))
			w.domains = map[string]Domain{"example.org": {TLS: "pin", TLSPins: []string{pin}}}
			if faults := new(w.domains["example.org"]).Validate(); len(faults) > 0 {
				t.Fatal(faults)
			}
			w.put("x\r\n", "a@example.org")
			w.start()
			if &cert.Certificate[0][0] == &good.Certificate[0][0] {
				w.eventually("delivery", func() bool { return w.left() == 0 })
				if !p.Messages()[0].TLS {
					t.Error("in clear")
				}
			} else {
				w.eventually("trouble", func() bool { return w.gates.troubles(p.Addr()) > 0 })
				if p.Accepted() > 0 {
					t.Error("delivered to a stranger")
				}
			}
			w.stop()
		}
	}
}

func TestDomainsThatWantOtherTLSDoNotShareSessions(t *testing.T) {
	p := started(t, nil)
	w := newWorld(t, "example.org", tier(p))
	w.routes.tiers["example.com"] = w.routes.tiers["example.org"]
	w.domains = map[string]Domain{"example.org": {TLS: "require"}}
	strict := w.put("x\r\n", "a@example.org")
	w.put("x\r\n", "a@example.com")
	w.start()
	w.eventually("the other", func() bool { return p.Accepted() == 1 && w.left() == 1 })
	if i := w.items(strict); len(i) != 1 || i[0].Attempts != 0 {
		t.Errorf("%+v", i)
	}
}

func TestLMTPTellsEachRecipientsEnd(t *testing.T) {
	p := started(t, func(p *testkit.Primary) { p.LMTP = true })
	p.SetScript(func(at testkit.Point) testkit.Action {
		if at.Step == testkit.AtFinal && strings.HasPrefix(at.Arg, "full") {
			return testkit.Say("452 4.2.2 full")
		}
		return testkit.Action{}
	})
	w := newWorld(t, "example.org", tier(p))
	w.domains = map[string]Domain{"example.org": {LMTP: true}}
	id := w.put("x\r\n", "a@example.org", "full@example.org", "b@example.org")
	w.start()
	w.eventually("a try", func() bool { i := w.items(id); return len(i) == 1 && i[0].Attempts == 1 })
	var got []string
	for _, r := range w.items(id)[0].Rcpts {
		got = append(got, r.Addr.Local+" "+r.Outcome.String())
	}
	if s := strings.Join(got, ", "); s != "full deferred" && s != "a delivered, full deferred, b delivered" {
		t.Error(s)
	}
}

func TestAPrimaryThatDefersEverythingIsLeftAlone(t *testing.T) {
	p := started(t, nil)
	p.On(testkit.AtRCPT, testkit.Say("451 4.3.0 database down"))
	w := newWorld(t, "example.org", tier(p))
	w.cfg.Window = 8
	for range 1000 {
		w.put("x\r\n", "a@example.org")
	}
	w.start()
	w.eventually("the pause", func() bool { return w.log.has("primary defers everything") })
	w.stop()
	n := 0
	for _, c := range p.Commands() {
		if strings.HasPrefix(c, "RCPT") {
			n++
		}
	}
	if n > 100 {
		t.Errorf("%d messages were tried", n)
	}
}

func TestGreylistingIsWaitedFor(t *testing.T) {
	p := started(t, nil)
	p.On(testkit.AtRCPT, testkit.Say("450 4.2.0 Greylisted, see http://postgrey/ and try again in 300 seconds"))
	w := newWorld(t, "example.org", tier(p))
	var ids []mta.ID
	for range 50 {
		ids = append(ids, w.put("x\r\n", "a@example.org"))
	}
	w.start()
	w.eventually("a first try of all", func() bool {
		for _, id := range ids {
			if i := w.items(id); len(i) != 1 || i[0].Attempts != 1 {
				return false
			}
			if wait := time.Until(w.items(id)[0].Due); wait < 290*time.Second || wait > 302*time.Second {
				t.Fatalf("next try in %s", wait)
			}
		}
		return true
	})
	if n := w.log.count("primary greylists us"); n != 1 {
		t.Errorf("told %d times", n)
	}
}

func TestMailThatIsTooOldIsTriedOnceMoreAndQuarantined(t *testing.T) {
	p := started(t, nil)
	p.SetScript(func(at testkit.Point) testkit.Action {
		if at.Step == testkit.AtRCPT && strings.HasPrefix(at.Arg, "later") {
			return testkit.Say("450 4.2.0 later")
		}
		return testkit.Action{}
	})
	w := newWorld(t, "example.org", tier(p))
	w.domains = map[string]Domain{"example.org": {Expire: 24 * time.Hour}}
	old := func(to string) mta.ID {
		at := time.Now().Add(-25 * time.Hour)
		path, _ := mta.ParsePath(to)
		env := &mta.Envelope{ID: mta.NewID(at), Received: at, Rcpts: []mta.Recipient{{Addr: path, Dest: "example.org"}}}
		w.putEnv(env, "x\r\n")
		return env.ID
	}
	late, good := old("later@example.org"), old("a@example.org")
	w.start()
	w.eventually("quarantine", func() bool { i := w.items(late); return len(i) == 1 && i[0].Held })
	w.eventually("delivery", func() bool { return w.items(good) == nil })
	if r := w.items(late)[0].Rcpts[0].Reply; r.Enhanced != "5.4.7" || !strings.Contains(r.Text, "450 4.2.0 later") {
		t.Errorf("reply %s", r)
	}
}

func TestFreshMailIsNotStuckBehindABacklog(t *testing.T) {
	p := started(t, nil)
	w := newWorld(t, "example.org", tier(p))
	w.cfg.MessagesPerSecond = 200
	for range 1500 {
		w.put("x\r\n", "a@example.org")
	}
	w.start()
	p.WaitMessages(t.Context(), 20)
	id := w.put("fresh\r\n", "a@example.org")
	w.f.Arrived(id, "example.org")
	w.eventually("the fresh one", func() bool { return w.items(id) == nil })
	if left := w.left(); left < 500 {
		t.Errorf("only %d were left when it was delivered", left)
	}
}

func TestALimitOfRateIsKept(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(*Config)
	}{
		{"messages", func(c *Config) { c.MessagesPerSecond = 100 }},
		{"bytes", func(c *Config) { c.BytesPerSecond = 300 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := started(t, nil)
			w := newWorld(t, "example.org", tier(p))
			tt.set(&w.cfg)
			for range 60 {
				w.put("x\r\n", "a@example.org")
			}
			w.start()
			start := time.Now()
			p.WaitMessages(t.Context(), 60)
			if took := time.Since(start); took < 400*time.Millisecond || took > 2*time.Second {
				t.Errorf("60 messages in %s", took)
			}
		})
	}
}

func TestASessionThatThePrimaryLimitsIsNoTrouble(t *testing.T) {
	p := started(t, nil)
	p.SetScript(func(at testkit.Point) testkit.Action {
		if at.Step == testkit.AtMAIL && at.Message > 20 {
			return testkit.Bye("421 4.7.0 too many messages in this session")
		}
		return testkit.Action{}
	})
	w := newWorld(t, "example.org", tier(p))
	w.cfg.Sessions = 2
	for range 300 {
		w.put("x\r\n", "a@example.org")
	}
	w.start()
	w.eventually("an empty spool", func() bool { return w.left() == 0 })
	if p.Accepted() != 300 || w.gates.troubles(p.Addr()) != 0 {
		t.Errorf("%d deliveries, %d troubles", p.Accepted(), w.gates.troubles(p.Addr()))
	}
}

func TestMailPastItsTimeIsQuarantinedWhileThePrimaryIsAway(t *testing.T) {
	p := started(t, nil)
	w := newWorld(t, "example.org", tier(p))
	w.gates.set(p.Addr(), false)
	var ids []mta.ID
	for range 600 {
		at := time.Now().Add(-25 * time.Hour)
		env := &mta.Envelope{ID: mta.NewID(at), Received: at, Expires: at.Add(24 * time.Hour),
			Rcpts: []mta.Recipient{{Addr: mta.Path{Local: "a", Domain: "example.org"}, Dest: "example.org"}}}
		w.putEnv(env, "x\r\n")
		ids = append(ids, env.ID)
	}
	young := w.put("x\r\n", "a@example.org")
	w.start()
	w.eventually("quarantine", func() bool {
		for _, id := range ids {
			if i := w.items(id); len(i) != 1 || !i[0].Held || i[0].Reason.Enhanced != "5.4.7" {
				return false
			}
		}
		return true
	})
	if w.items(young)[0].Held {
		t.Error("a young one too")
	}
}

func TestDestinationsTakeTurns(t *testing.T) {
	p := started(t, nil)
	w := newWorld(t, "example.org", tier(p))
	w.routes.tiers["example.com"] = w.routes.tiers["example.org"]
	w.cfg.MessagesPerSecond = 1000
	for range 2000 {
		w.put("x\r\n", "a@example.org")
	}
	var few []mta.ID
	for range 20 {
		few = append(few, w.put("x\r\n", "a@example.com"))
	}
	w.start()
	w.eventually("the few", func() bool {
		for _, id := range few {
			if w.items(id) != nil {
				return false
			}
		}
		return true
	})
	if left := w.left(); left < 1000 {
		t.Errorf("only %d of the many were left by then", left)
	}
}
