package forwarder

import (
	"strings"
	"testing"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/internal/testkit"
)

func TestTheBreakerWeighsTheFirstResultsAfterARecovery(t *testing.T) {
	cfg := DefaultConfig().Breaker
	type step struct {
		n       int
		refused bool
		at      smtpc.Step
	}
	tests := []struct {
		name  string
		usual float64
		steps []step
		want  verdict
	}{
		{"all taken", 0, []step{{100, false, smtpc.StepFinal}}, pass},
		{"five unknown users at the start", 0, []step{{5, true, smtpc.StepRCPT}}, trip},
		{"four unknown users, then all is well", 0, []step{{4, true, smtpc.StepRCPT}, {96, false, smtpc.StepFinal}}, pass},
		{"every fourth is unknown", 0, []step{{3, false, smtpc.StepFinal}, {1, true, smtpc.StepRCPT}, {3, false, smtpc.StepFinal}, {1, true, smtpc.StepRCPT},
			{3, false, smtpc.StepFinal}, {1, true, smtpc.StepRCPT}, {6, false, smtpc.StepFinal}, {2, true, smtpc.StepRCPT}}, trip},
		{"every fourth is unknown, as always", 0.25, []step{{15, false, smtpc.StepFinal}, {5, true, smtpc.StepRCPT}, {75, false, smtpc.StepFinal}, {5, true, smtpc.StepRCPT}}, pass},
		{"a third is spam", 0, []step{{14, false, smtpc.StepFinal}, {7, true, smtpc.StepFinal}, {53, false, smtpc.StepFinal}, {26, true, smtpc.StepFinal}}, pass},
		{"all content is refused", 0, []step{{20, true, smtpc.StepFinal}}, trip},
	}
	for _, tt := range tests {
		b := breaker{usual: tt.usual}
		b.recovered()
		got := wait
		for _, s := range tt.steps {
			for range s.n {
				o := mta.Delivered
				if s.refused {
					o = mta.Quarantined
				}
				if v := b.observe(&cfg, o, s.at); v != wait && got == wait {
					got = v
				}
			}
		}
		if got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestARestoredServerWithAnEmptyUserTableCostsNoMessage(t *testing.T) {
	p := started(t, nil)
	p.On(testkit.AtRCPT, testkit.Say("550 5.1.1 nobody here"))
	w := newWorld(t, "example.org", tier(p))
	var ids []mta.ID
	for range 300 {
		ids = append(ids, w.put("x\r\n", "a@example.org"))
	}
	w.start()
	w.eventually("the breaker", func() bool { return w.log.has("breaker open") })
	w.eventually("all of it back", func() bool {
		for _, id := range ids {
			if i := w.items(id); len(i) != 1 || i[0].Leased || i[0].Held || i[0].Rcpts[0].Outcome != mta.Deferred {
				return false
			}
		}
		return true
	})
	if w.log.has("quarantined") {
		t.Error("something was quarantined")
	}
	conns := p.Conns()
	w.f.Flush(t.Context(), "", mta.ID{})
	w.gates.set(p.Addr(), false)
	w.gates.set(p.Addr(), true)
	if p.Conns() != conns || w.left() != 300 {
		t.Error("an open breaker let mail pass")
	}
	p.SetScript(nil)
	if !w.f.Resume(p.Addr()) {
		t.Error("nothing to resume")
	}
	w.f.Flush(t.Context(), "", mta.ID{})
	w.eventually("delivery", func() bool { return w.left() == 0 })
}

func TestAFewUnknownUsersAreRefusedAsUsual(t *testing.T) {
	p := started(t, nil)
	p.SetScript(func(at testkit.Point) testkit.Action {
		if at.Step == testkit.AtRCPT && strings.HasPrefix(at.Arg, "no") {
			return testkit.Say("550 5.1.1 nobody here")
		}
		return testkit.Action{}
	})
	w := newWorld(t, "example.org", tier(p))
	held := []mta.ID{w.put("x\r\n", "no@example.org"), w.put("x\r\n", "no@example.org")}
	for range 30 {
		w.put("x\r\n", "a@example.org")
	}
	w.start()
	w.eventually("the others", func() bool { return w.left() == 2 })
	w.eventually("quarantine", func() bool { return w.items(held[0])[0].Held && w.items(held[1])[0].Held })
}
