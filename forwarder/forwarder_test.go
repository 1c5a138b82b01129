package forwarder

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/internal/testkit"
)

func TestMailWaitsForTheGateAndThenAllOfItGoes(t *testing.T) {
	p := started(t, nil)
	w := newWorld(t, "example.org", tier(p))
	w.routes.tiers["example.com"] = w.routes.tiers["example.org"]
	w.gates.set(p.Addr(), false)
	w.start()
	for i := range 200 {
		w.put(fmt.Sprintf("Subject: %d\r\n\r\n.dots\r\n", i), "a@example.org")
		w.put(fmt.Sprintf("Subject: %d\r\n\r\n.dots\r\n", i), "b@example.com", "c@example.org")
	}
	if p.Conns() != 0 {
		t.Error("a session while the gate is closed")
	}
	start := time.Now()
	w.gates.set(p.Addr(), true)
	p.WaitMessages(t.Context(), 600)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the drain took %s", took)
	}
	w.eventually("an empty spool", func() bool { return w.left() == 0 })
	if n := p.Accepted(); n != 600 {
		t.Errorf("%d deliveries, want 600", n)
	}
}

func TestEachRecipientEndsAsThePrimarySays(t *testing.T) {
	p := started(t, nil)
	p.SetScript(func(at testkit.Point) testkit.Action {
		switch {
		case at.Step == testkit.AtRCPT && strings.HasPrefix(at.Arg, "no"):
			return testkit.Say("550 5.1.1 nobody here")
		case at.Step == testkit.AtRCPT && strings.HasPrefix(at.Arg, "later"):
			return testkit.Say("450 4.2.0 later")
		}
		return testkit.Action{}
	})
	w := newWorld(t, "example.org", tier(p))
	id := w.put("x\r\n", "yes@example.org", "no@example.org", "later@example.org")
	before := time.Now()
	w.start()
	w.eventually("a try", func() bool { i := w.items(id); return len(i) == 1 && i[0].Attempts == 1 })
	item := w.items(id)[0]
	got := map[string]string{}
	for _, r := range item.Rcpts {
		got[r.Addr.Local] = fmt.Sprint(r.Outcome, " ", r.Reply, " ", r.Primary)
	}
	want := map[string]string{
		"no": "quarantined 550 5.1.1 nobody here " + p.Addr(), "later": "deferred 450 4.2.0 later " + p.Addr(), "yes": "delivered 250 2.0.0 taken " + p.Addr(),
	}
	for k, v := range got {
		if want[k] != v {
			t.Errorf("%s: %s, want %s", k, v, want[k])
		}
	}
	if wait := item.Due.Sub(before); wait < 48*time.Second || wait > 70*time.Second {
		t.Errorf("next try after %s", wait)
	}
}

func TestARefusalOfOurSessionReturnsNothing(t *testing.T) {
	for _, at := range []testkit.Step{testkit.AtBanner, testkit.AtEHLO, testkit.AtMAIL} {
		t.Run(string(at), func(t *testing.T) {
			p := started(t, nil)
			p.On(at, testkit.Say("554 5.7.1 go away"))
			w := newWorld(t, "example.org", tier(p))
			id := w.put("x\r\n", "a@example.org")
			w.start()
			w.eventually("an alert", func() bool { return w.log.has("level=ERROR") })
			w.stop()
			items := w.items(id)
			if len(items) != 1 || items[0].Held || items[0].Rcpts[0].Outcome != mta.Deferred {
				t.Fatalf("items %+v", items)
			}
			if want := map[bool]int{true: 1}[at == testkit.AtMAIL]; items[0].Attempts != want {
				t.Errorf("%d attempts, want %d", items[0].Attempts, want)
			}
		})
	}
}

func TestTroubleOfTheHostIsNoAttempt(t *testing.T) {
	actions := map[string]testkit.Action{"reset": testkit.ResetNow, "421": testkit.Bye("421 4.3.2 stopping"), "garbage": testkit.Garbage, "half": testkit.Half}
	for _, at := range []testkit.Step{testkit.AtBanner, testkit.AtEHLO, testkit.AtMAIL, testkit.AtRCPT, testkit.AtBody, testkit.AtFinal} {
		for name, a := range actions {
			t.Run(string(at)+" "+name, func(t *testing.T) {
				p := started(t, nil)
				p.On(at, a)
				w := newWorld(t, "example.org", tier(p))
				id := w.put("x\r\n", "a@example.org")
				w.start()
				w.eventually("trouble", func() bool { return w.gates.troubles(p.Addr()) > 0 })
				w.gates.set(p.Addr(), false)
				w.eventually("the lease back", func() bool { return !w.items(id)[0].Leased })
				if i := w.items(id)[0]; i.Attempts != 0 || i.Held {
					t.Errorf("item %+v", i)
				}
				p.SetScript(nil)
				w.gates.set(p.Addr(), true)
				w.eventually("delivery", func() bool { return w.left() == 0 })
			})
		}
	}
}

func TestTheSecondPrimaryTakesOver(t *testing.T) {
	bad, equal, worse := started(t, nil), started(t, nil), started(t, nil)
	bad.On(testkit.AtBanner, testkit.ResetNow)
	equal.On(testkit.AtEHLO, testkit.Say("451 4.3.0 no"))
	w := newWorld(t, "example.org", tier(bad, equal), tier(worse))
	w.put("x\r\n", "a@example.org")
	w.start()
	worse.WaitMessages(t.Context(), 1)
	if w.gates.troubles(bad.Addr()) == 0 || w.gates.troubles(equal.Addr()) == 0 {
		t.Error("the better ones were not tried first")
	}
}

func TestAMessageThatBreaksSessionsDoesNotHoldUpTheOthers(t *testing.T) {
	p := started(t, nil)
	p.SetScript(func(at testkit.Point) testkit.Action {
		if at.Step == testkit.AtFinal && at.Arg == "s1@example.net" {
			return testkit.ResetNow
		}
		return testkit.Action{}
	})
	w := newWorld(t, "example.org", tier(p))
	poison := w.put("poison\r\n", "a@example.org")
	for range 50 {
		w.put("x\r\n", "a@example.org")
	}
	w.start()
	w.eventually("the others", func() bool { return w.left() == 1 })
	w.eventually("the poison put aside", func() bool {
		i := w.items(poison)
		return len(i) == 1 && i[0].Attempts == 0 && time.Until(i[0].Due) > 30*time.Second
	})
}

func TestAStopReadsTheRepliesToWhatWasSent(t *testing.T) {
	p := started(t, nil)
	p.On(testkit.AtFinal, testkit.Action{Say: "250 2.0.0 late\r\n", Delay: true})
	w := newWorld(t, "example.org", tier(p))
	w.put("x\r\n", "a@example.org")
	w.start()
	p.WaitFor(t.Context(), "the content", func(p *testkit.Primary) bool { return strings.HasPrefix(last(p.Commands()), "BDAT") })
	stopped := make(chan struct{})
	go func() { w.stop(); close(stopped) }()
	time.Sleep(20 * time.Millisecond) // so that the stop is under way; either order is right
	p.Proceed()
	<-stopped
	if w.left() != 0 {
		t.Error("the reply was not waited for, or not stored")
	}
}

func last(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[len(s)-1]
}

func TestAFlushTriesEachMessageOnceDueOrNot(t *testing.T) {
	p := started(t, nil)
	p.On(testkit.AtRCPT, testkit.Say("450 4.2.0 greylisted, come back in 60 seconds"))
	w := newWorld(t, "example.org", tier(p))
	var ids []mta.ID
	for range 150 {
		ids = append(ids, w.put("x\r\n", "a@example.org"))
	}
	w.start()
	tried := func(n int) func() bool {
		return func() bool {
			for _, id := range ids {
				if i := w.items(id); len(i) != 1 || i[0].Attempts != n || i[0].Leased {
					return false
				}
			}
			return true
		}
	}
	w.eventually("a first try of all", tried(1))
	w.f.Flush(t.Context(), "", mta.ID{})
	w.eventually("a second try of all", tried(2))
	w.f.Flush(t.Context(), "example.org", ids[7])
	w.eventually("a third try of one", func() bool { return w.items(ids[7])[0].Attempts == 3 })
	if n := w.items(ids[8])[0].Attempts; n != 2 {
		t.Errorf("another was tried %d times", n)
	}
	p.SetScript(nil)
	w.f.Flush(t.Context(), "", mta.ID{})
	w.eventually("delivery", func() bool { return w.left() == 0 })
}

func TestLargeAndDamagedContents(t *testing.T) {
	p := started(t, nil)
	w := newWorld(t, "example.org", tier(p))
	w.cfg.Memory = mta.MiB
	big := strings.Repeat(strings.Repeat("x", 76)+"\r\n", 40_000)
	w.put(big, "a@example.org")
	bad := w.put(big, "a@example.org")
	small := w.put("x\r\n", "a@example.org")
	w.put("y\r\n", "a@example.org")
	w.spool.Damage(bad)
	w.spool.Damage(small)
	w.start()
	w.eventually("the whole ones", func() bool { return p.Accepted() == 2 && w.left() == 2 })
	for _, m := range p.Messages() {
		if string(m.Content) != big && string(m.Content) != "y\r\n" {
			t.Error("something else was delivered")
		}
	}
	if n := w.gates.troubles(p.Addr()); n != 0 {
		t.Errorf("the primary was blamed %d times", n)
	}
}

func TestASettlementThatFailsIsTriedAgain(t *testing.T) {
	p := started(t, nil)
	w := newWorld(t, "example.org", tier(p))
	w.queue = &flaky{Queue: w.spool, fail: 2}
	w.put("x\r\n", "a@example.org")
	w.start()
	w.eventually("an empty spool", func() bool { return w.left() == 0 })
	if p.Accepted() != 1 {
		t.Errorf("delivered %d times", p.Accepted())
	}
}
