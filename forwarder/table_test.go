package forwarder

import (
	"crypto/tls"
	"fmt"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/internal/testkit"
)

// ways are the four ways to send, each by what the primary offers.
var ways = map[string]struct {
	caps []string
	lmtp bool
}{
	"continuous": {caps: []string{"PIPELINING", "CHUNKING", "SIZE"}},
	"grouped":    {caps: []string{"PIPELINING"}},
	"lock-step":  {caps: []string{"8BITMIME"}},
	"LMTP":       {caps: []string{"PIPELINING"}, lmtp: true},
}

// failures of a primary at one step.
var failures = map[string]testkit.Action{
	"4yz": testkit.Say("451 4.3.0 later"), "5yz": testkit.Say("554 5.7.0 never"), "421": testkit.Bye("421 4.3.2 stopping"),
	"reset": testkit.ResetNow, "silence": testkit.StallNow, "garbage": testkit.Garbage, "half a reply": testkit.Half,
}

// cell is one step, one failure, one way. The second of three messages meets the failure, once; or the first session does.
type cell struct {
	step    testkit.Step
	failure string
	way     string
}

// end is what becomes of the message that met the failure.
func (c cell) end() string {
	spoken := c.failure == "4yz" || c.failure == "5yz"
	switch c.step {
	case testkit.AtRCPT, testkit.AtDATA, testkit.AtFinal:
		if c.failure == "5yz" {
			return "held"
		}
		if spoken {
			return "deferred"
		}
	case testkit.AtMAIL: // on our own session 5yz is a word about us
		if spoken {
			return "deferred"
		}
	}
	return "delivered"
}

// possible leaves out what can't be: content is not answered in the middle, and not each way has each step.
func (c cell) possible() bool {
	switch c.step {
	case testkit.AtBody:
		return c.failure != "4yz" && c.failure != "5yz"
	case testkit.AtDATA:
		return c.way != "continuous"
	case testkit.AtRSET: // where replies are awaited it is only said when it is needed
		return c.way != "lock-step"
	}
	return true
}

// twice tells that messages may come twice: the primary went on and took what we had sent, while we had stopped to
// understand it.
func (c cell) twice() bool {
	switch {
	case c.step == testkit.AtBody, c.way == "continuous" && (c.step == testkit.AtMAIL || c.step == testkit.AtRCPT || c.step == testkit.AtFinal):
		return c.failure == "garbage"
	case c.way == "continuous" && c.step == testkit.AtRSET:
		return c.failure == "garbage" || c.failure == "4yz" || c.failure == "5yz"
	}
	return false
}

func TestEachFailureAtEachStepInEachWay(t *testing.T) {
	steps := []testkit.Step{testkit.AtBanner, testkit.AtEHLO, testkit.AtSTARTTLS, testkit.AtRSET, testkit.AtMAIL, testkit.AtRCPT, testkit.AtDATA,
		testkit.AtBody, testkit.AtFinal, testkit.AtQUIT}
	cert, _ := testkit.Certificate(t, "127.0.0.1")
	for way := range ways {
		for _, step := range steps {
			for failure := range failures {
				c := cell{step, failure, way}
				if !c.possible() {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", way, step, failure), func(t *testing.T) {
					t.Parallel()
					c.play(t, cert)
				})
			}
		}
	}
}

func (c cell) play(t *testing.T, cert tls.Certificate) {
	p := testkit.NewPrimary(t)
	p.Caps, p.LMTP = ways[c.way].caps, ways[c.way].lmtp
	p.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	met := make(chan struct{}, 1)
	done := false
	p.SetScript(func(at testkit.Point) testkit.Action {
		ofMessage := c.step == testkit.AtMAIL || c.step == testkit.AtRCPT || c.step == testkit.AtDATA || c.step == testkit.AtBody || c.step == testkit.AtFinal
		if at.Step != c.step || done || ofMessage && at.From != "s2@example.net" {
			return testkit.Action{}
		}
		done = true // one session at a time
		met <- struct{}{}
		return failures[c.failure]
	})
	p.Start()
	w := newWorld(t, "example.org", tier(p))
	w.cfg.Sessions, w.cfg.Idle = 1, 20*time.Millisecond
	w.domains = map[string]Domain{"example.org": {LMTP: ways[c.way].lmtp, TLS: "require"}}
	w.dialer.Timeouts = smtpc.Timeouts{Banner: 100 * time.Millisecond, EHLO: 100 * time.Millisecond, TLS: 300 * time.Millisecond, Mail: 100 * time.Millisecond,
		Rcpt: 100 * time.Millisecond, Data: 100 * time.Millisecond, Block: 100 * time.Millisecond, Final: 100 * time.Millisecond}
	ids := []mta.ID{w.put("one\r\n", "a@example.org"), w.put("two\r\n", "a@example.org"), w.put("three\r\n", "a@example.org")}
	w.start()
	select {
	case <-met:
	case <-time.After(10 * time.Second):
		t.Fatal("the failure was not met")
	}
	want := 3
	if c.end() != "delivered" {
		want = 2
	}
	w.eventually("the others", func() bool {
		w.f.mu.Lock() // no pause: the table has many cells
		for _, h := range w.f.hosts {
			h.pause(time.Time{})
		}
		for _, r := range w.f.active {
			r.signal()
		}
		w.f.mu.Unlock()
		left := w.left() == int64(3-want)
		if i := w.items(ids[1]); c.end() == "held" {
			left = left && len(i) == 1 && i[0].Held
		}
		return p.Accepted() >= want && left
	})
	w.stop()
	if n := p.Accepted(); n < want || n > want && !c.twice() {
		t.Errorf("%d deliveries, want %d", n, want)
	}
	second := w.items(ids[1])
	switch c.end() {
	case "held":
		if len(second) != 1 || !second[0].Held || second[0].Reason.Code != 554 {
			t.Errorf("not held: %+v", second)
		}
	case "deferred":
		if len(second) != 1 || second[0].Held || second[0].Attempts != 1 || time.Until(second[0].Due) < 30*time.Second {
			t.Errorf("not deferred: %+v", second)
		}
	}
}

func TestAPrimaryThatIsNotThereIsTriedAgain(t *testing.T) {
	p := started(t, nil)
	w := newWorld(t, "example.org", tier(p))
	p.Stop()
	id := w.put("x\r\n", "a@example.org")
	w.start()
	w.eventually("trouble", func() bool { return w.gates.troubles(p.Addr()) > 0 })
	if i := w.items(id); len(i) != 1 || i[0].Attempts != 0 {
		t.Errorf("%+v", i)
	}
	p.Start()
	w.eventually("delivery", func() bool { return w.left() == 0 })
}

// TestASettlementThatIsLostCostsADuplicateAndNothingElse crashes after the primary took everything and before any of that
// was stored.
func TestASettlementThatIsLostCostsADuplicateAndNothingElse(t *testing.T) {
	for way, c := range ways {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			p := started(t, func(p *testkit.Primary) { p.Caps, p.LMTP = c.caps, c.lmtp })
			w := newWorld(t, "example.org", tier(p))
			w.domains = map[string]Domain{"example.org": {LMTP: c.lmtp}}
			w.queue = &flaky{Queue: w.spool, fail: 1 << 30}
			for range 20 {
				w.put("x\r\n", "a@example.org")
			}
			w.start()
			p.WaitMessages(t.Context(), 20)
			w.stop()
			w.spool = w.spool.Restart()
			w.queue = nil
			w.start()
			w.eventually("an empty spool", func() bool { return w.left() == 0 })
			count := map[string]int{}
			for _, m := range p.Messages() {
				count[m.From]++
			}
			for from, n := range count {
				if n != 2 {
					t.Errorf("%s came %d times", from, n)
				}
			}
			if len(count) != 20 {
				t.Errorf("%d of 20 came", len(count))
			}
		})
	}
}
