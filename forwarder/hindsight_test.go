package forwarder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/internal/testkit"
	"understudy/spool"
)

// judge is a Hindsight whose word is in the message's content.
type judge struct {
	mu    sync.Mutex
	asked map[mta.ID]int
	ended []Ended
	most  int // at the same time
	now   int
	takes time.Duration
}

func (g *judge) fit(w *world) {
	g.asked = map[mta.ID]int{}
	w.deps = func(d *Deps) {
		d.Hindsight, d.HindsightAfter = g.hindsight, func() time.Duration { return 15 * time.Minute }
		d.Ended = func(e Ended) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.ended = append(g.ended, e)
		}
	}
}

func (g *judge) hindsight(_ context.Context, env *mta.Envelope, c mta.Content) (*mta.Verdict, error) {
	g.mu.Lock()
	g.asked[env.ID]++
	g.now++
	g.most = max(g.most, g.now)
	g.mu.Unlock()
	time.Sleep(g.takes)
	defer func() {
		g.mu.Lock()
		g.now--
		g.mu.Unlock()
	}()
	r, err := c.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != c.Size {
		return nil, fmt.Errorf("%d octets, want %d", len(b), c.Size)
	}
	v := &mta.Verdict{Findings: []mta.Finding{{Name: "dnsbl:zen", Text: "listed by now", Weight: 9}}}
	switch word, _, _ := strings.Cut(string(b), "\r\n"); word {
	case "quarantine":
		v.Action = mta.Quarantine
	case "reject":
		v.Action = mta.Reject
	case "mark":
		v.Action = mta.Mark
	case "defer":
		v.Action = mta.Defer
	case "error":
		return nil, errors.New("the filter is away")
	default:
		v.Action, v.Findings = mta.Accept, nil
	}
	return v, nil
}

func (g *judge) times(id mta.ID) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked[id]
}

func (g *judge) all() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.asked)
}

// someone is whom mail came from.
var someone = mta.Peer{Addr: netip.MustParseAddrPort("198.51.100.7:4000"), Helo: "h.example.net", Proto: "ESMTP"}

// waited spools a message that came so long ago.
func (w *world) waited(age time.Duration, content string, rcpts ...string) mta.ID {
	w.t.Helper()
	at := time.Now().Add(-age)
	env := &mta.Envelope{ID: mta.NewID(at), Received: at, Peer: someone, From: mta.Path{Local: "s", Domain: "example.net"}}
	for _, r := range rcpts {
		p, err := mta.ParsePath(r)
		if err != nil {
			w.t.Fatal(err)
		}
		env.Rcpts = append(env.Rcpts, mta.Recipient{Addr: p, Dest: p.DomainKey()})
	}
	w.putEnv(env, content)
	return env.ID
}

func TestMailThatWaitedIsJudgedAgainAndHeldIfItMust(t *testing.T) {
	p := started(t, nil)
	w := newWorld(t, "example.org", tier(p))
	var g judge
	g.fit(w)
	words := []string{"accept", "mark", "defer", "error", "quarantine", "reject"}
	ids := map[string]mta.ID{}
	for _, word := range words {
		ids[word] = w.waited(time.Hour, word+"\r\n", "a@example.org", "b@example.org")
	}
	large := w.waited(time.Hour, "quarantine\r\n"+strings.Repeat("x\r\n", 200_000), "a@example.org")
	young := w.waited(time.Minute, "quarantine\r\n", "a@example.org")
	at := time.Now().Add(-time.Hour)
	ours := &mta.Envelope{ID: mta.NewID(at), Received: at, Rcpts: []mta.Recipient{{Addr: mta.Path{Local: "a", Domain: "example.org"}, Dest: "example.org"}}}
	w.putEnv(ours, "quarantine\r\n")
	w.start()
	w.eventually("the held alone", func() bool {
		return w.left() == 3 && p.Accepted() == 6 && len(w.items(large)) == 1 && w.items(large)[0].Held
	})
	for _, word := range words {
		items := w.items(ids[word])
		if !slices.Contains(words[4:], word) {
			if len(items) != 0 {
				t.Errorf("%s: %+v", word, items)
			}
			continue
		}
		if len(items) != 1 || !items[0].Held {
			t.Fatalf("%s: %+v", word, items)
		}
		for _, r := range items[0].Rcpts {
			if r.Outcome != mta.Quarantined || r.Reply.Code != 550 || r.Reply.Enhanced != "5.7.1" || !strings.HasSuffix(r.Reply.Text, ": listed by now") {
				t.Errorf("%s: %s %s", word, r.Outcome, r.Reply)
			}
		}
	}
	if g.times(young) != 0 || g.times(ours.ID) != 0 {
		t.Error("what had hardly waited was judged, or a report of our own")
	}
	w.eventually("the log", func() bool { return w.log.count("not judged again") == 1 && w.log.count("msg=quarantined") == 5 })
}

func TestWhatAnOperatorReleasedIsNotHeldByHindsight(t *testing.T) {
	p := started(t, nil)
	p.On(testkit.AtRCPT, testkit.Say("450 4.2.0 busy"))
	w := newWorld(t, "example.org", tier(p))
	var g judge
	g.fit(w)
	id := w.waited(time.Hour, "quarantine\r\n", "a@example.org")
	at := time.Now().Add(-time.Hour)
	held := &mta.Envelope{ID: mta.NewID(at), Received: at, Peer: someone, Rcpts: []mta.Recipient{{Addr: mta.Path{Local: "b", Domain: "example.org"}, Dest: "example.org"}},
		Verdict: &mta.Verdict{Action: mta.Quarantine}}
	w.putEnv(held, "quarantine\r\n")
	release := func(id mta.ID) {
		if _, err := w.spool.Apply(t.Context(), spool.Unhold, time.Time{}, spool.Key{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	w.start()
	w.eventually("quarantine", func() bool { i := w.items(id); return len(i) == 1 && i[0].Held })
	release(id)
	release(held.ID)
	w.eventually("a deferral", func() bool { i := w.items(id); return len(i) == 1 && !i[0].Held && i[0].Attempts == 2 })
	w.stop() // what is only in memory is forgotten
	p.SetScript(nil)
	w.start()
	w.f.Flush(t.Context(), "", mta.ID{})
	w.eventually("an empty spool", func() bool { return w.left() == 0 })
	if n, m := g.times(id), g.times(held.ID); n != 1 || m != 0 {
		t.Errorf("judged %d and %d times, want 1 and 0", n, m)
	}
}

// TestASlowJudgeHoldsUpNoFreshMail has 160 messages wait for a judge who takes his time, while new mail comes.
func TestASlowJudgeHoldsUpNoFreshMail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMoody(t, 1)
		to := mta.Primary{Host: "192.0.2.1", Port: 25}
		w := newWorld(t, "example.org", []mta.Primary{to})
		w.dialer.Net = m.dial
		g := judge{takes: 10 * time.Second}
		g.fit(w)
		for range 160 {
			w.waited(time.Hour, "accept\r\n", "a@example.org")
		}
		w.start()
		time.Sleep(time.Second)
		id := w.put("x\r\n", "a@example.org")
		w.f.Arrived(id, "example.org")
		time.Sleep(time.Second)
		if n := m.Accepted(); n != 1 {
			t.Errorf("%d messages after a second, want the fresh one", n)
		}
		time.Sleep(100 * time.Second) // 160 / 16 at a time × 10 s
		if n := m.Accepted(); n != 161 || g.most != judges {
			t.Errorf("%d messages, judged %d at a time", n, g.most)
		}
		w.stop()
		m.become(away)
		m.wg.Wait()
	})
}

func TestAClosedGateAndAStopLeaveNobodyJudging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMoody(t, 1)
		to := mta.Primary{Host: "192.0.2.1", Port: 25}
		w := newWorld(t, "example.org", []mta.Primary{to})
		w.dialer.Net = m.dial
		g := judge{takes: 10 * time.Second}
		g.fit(w)
		for range 160 {
			w.waited(time.Hour, "accept\r\n", "a@example.org")
		}
		w.start()
		time.Sleep(time.Second)
		w.gates.set(to.String(), false)
		time.Sleep(time.Minute)
		if g.all() != judges || len(w.f.Status()) != 0 || w.left() != 160 {
			t.Errorf("%d judged, %d left, %+v", g.all(), w.left(), w.f.Status())
		}
		w.gates.set(to.String(), true)
		time.Sleep(5 * time.Second)
		w.stop()
		if n := w.left(); n != 160-int64(m.Accepted()) {
			t.Errorf("%d left, %d taken", n, m.Accepted())
		}
		m.become(away)
		m.wg.Wait()
	})
}

func TestEachEndIsToldWithTheStepThatMadeIt(t *testing.T) {
	p := started(t, nil)
	p.SetScript(func(at testkit.Point) testkit.Action {
		switch {
		case at.Step == testkit.AtRCPT && strings.HasPrefix(at.Arg, "no"):
			return testkit.Say("550 5.1.1 nobody here")
		case at.Step == testkit.AtRCPT && strings.HasPrefix(at.Arg, "later"):
			return testkit.Say("450 4.2.0 later")
		case at.Step == testkit.AtFinal && at.From == "s1@example.net":
			return testkit.Say("550 5.7.1 spam")
		}
		return testkit.Action{}
	})
	w := newWorld(t, "example.org", tier(p))
	w.cfg.Sessions, w.cfg.Breaker.Share = 1, 1
	var g judge
	g.fit(w)
	w.waited(2*time.Hour, "accept\r\n", "yes@example.org", "no@example.org", "later@example.org")
	w.put("x\r\n", "spam@example.org")
	w.waited(time.Hour, "reject\r\n", "held@example.org")
	w.start()
	w.eventually("all ends", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.ended) >= 5 })
	g.mu.Lock()
	defer g.mu.Unlock()
	got := map[string]string{}
	for _, e := range g.ended {
		got[e.Rcpt.Addr.Local] = fmt.Sprint(e.Outcome, " ", e.Step, " ", e.Reply.Code, " ", e.Hindsight != nil)
	}
	want := map[string]string{
		"yes": "delivered final 250 true", "no": "quarantined rcpt 550 true", "later": "deferred rcpt 450 true",
		"spam": "quarantined final 550 false", "held": fmt.Sprint("quarantined ", smtpc.StepNone, " 550 true"),
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %q, want %q", k, got[k], v)
		}
	}
}
