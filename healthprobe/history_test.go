package healthprobe

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/mta"
)

// stage is one domain with one primary, in a bubble.
type stage struct {
	*world
	h       *host
	p       *Prober
	stop    func()
	events  journal
	tables  tables
	backlog atomic.Int64
}

const stageAddr = "192.0.2.10:25"

func newStage(t *testing.T, m mode) *stage {
	s := &stage{world: newWorld(t)}
	s.h = newHost(t, m)
	s.hosts[stageAddr] = s.h
	s.restart(t)
	return s
}

// restart begins a new Prober over the same tables.
func (s *stage) restart(t *testing.T) {
	if s.stop != nil {
		s.stop()
	}
	s.p = prepare(t, DefaultConfig(), map[string]Domain{"example.org": {Primaries: []string{stageAddr}}, "example.net": {Primaries: []string{stageAddr}}}, Deps{
		Dialer: s.dialer(), Tables: &s.tables, Events: s.events.add,
		Backlog: func(context.Context) (map[string]int64, error) {
			return map[string]int64{"example.net": s.backlog.Load(), "other.test": 7}, nil
		},
	})
	s.stop = run(t, s.p)
}

func (s *stage) last(t *testing.T) Outage {
	t.Helper()
	list := s.p.Outages(OutageQuery{})
	if len(list) == 0 {
		t.Fatal("no outage was noted")
	}
	return list[0]
}

func TestAnOutageIsNotedWithItsCausesAndItsDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, takes)
		time.Sleep(time.Hour)
		if n := len(s.p.Outages(OutageQuery{})); n != 0 {
			t.Fatalf("%d outages of a primary that is up", n)
		}
		fell := time.Now()
		s.h.set(says421)
		time.Sleep(time.Minute)
		s.h.set(refuses)
		for range 5 {
			s.p.Taken("example.net")
			s.backlog.Add(1)
		}
		s.p.Taken("other.test")
		time.Sleep(10 * time.Minute)
		back := time.Now()
		s.h.set(takes)
		time.Sleep(3 * time.Second)
		s.p.Observe(stageAddr, nil)
		first := time.Now()
		s.backlog.Store(0)
		time.Sleep(time.Minute)

		o := s.last(t)
		if d := o.Begin.Sub(fell); d < 0 || d > 17*time.Second {
			t.Errorf("it began %v after it did", d)
		}
		if d := o.End.Sub(back); d < 0 || d > 1300*time.Millisecond {
			t.Errorf("it ended %v after it did", d)
		}
		if o.Taken != 5 || o.Domains != 2 || !o.First.Equal(first) || o.Drained.Sub(first) > 2*time.Second || o.Drained.Before(first) {
			t.Errorf("it was noted as %+v", o)
		}
		if len(o.Phases) != 2 || o.Phases[0].State != Refusing || o.Phases[0].Why != "421 4.3.2 shutting down" || o.Phases[1].Why != "connection refused" ||
			o.Cause() != "banner: 421 4.3.2 shutting down" {
			t.Errorf("its phases are %+v", o.Phases)
		}
		want := "primary_away alarm 192.0.2.10:25, primary_away alarm 192.0.2.10:25, primary_away over 192.0.2.10:25, drained notice 192.0.2.10:25"
		if got := strings.Join(s.events.lines(), ", "); got != want {
			t.Errorf("events %s", got)
		}
		s.restart(t)
		synctest.Wait()
		if got := s.last(t); got.Taken != 5 || !got.Drained.Equal(o.Drained) || len(got.Phases) != 2 {
			t.Errorf("after a restart it is %+v", got)
		}
		if q := s.p.Outages(OutageQuery{Domain: "example.org", Since: back.Add(-time.Minute), Limit: 1}); len(q) != 1 {
			t.Errorf("a query gave %+v", q)
		}
		if q := s.p.Outages(OutageQuery{Primary: "192.0.2.99:25"}); len(q) != 0 {
			t.Errorf("a query gave %+v", q)
		}
		if q := s.p.Outages(OutageQuery{Since: back.Add(time.Hour)}); len(q) != 0 {
			t.Errorf("a query gave %+v", q)
		}
	})
}

func TestAnOutageGoesOnOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, refuses)
		time.Sleep(2 * time.Hour)
		began := s.last(t).Begin
		s.restart(t)
		before := s.h.dialled()
		time.Sleep(time.Minute)
		if o := s.last(t); !o.Begin.Equal(began) || !o.End.IsZero() || len(s.p.Outages(OutageQuery{})) != 1 {
			t.Errorf("after a restart it is %+v", o)
		}
		if n := s.h.dialled() - before; n > 20 {
			t.Errorf("%d probes in a minute: the schedule forgot that it is long down", n)
		}
		s.h.set(takes)
		s.restart(t)
		time.Sleep(time.Second)
		if o := s.last(t); !o.Begin.Equal(began) || o.End.IsZero() {
			t.Errorf("when it was back it is %+v", o)
		}
		if !s.events.has("primary_away over " + stageAddr) {
			t.Errorf("nobody was told: %q", s.events.lines())
		}
	})
}

func TestPhasesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, refuses)
		for range 200 {
			s.h.set(says554)
			time.Sleep(2 * time.Second)
			s.h.set(refuses)
			time.Sleep(6 * time.Second)
		}
		if o := s.last(t); len(o.Phases) != maxPhases || time.Since(o.Phases[maxPhases-1].Since) > time.Minute {
			t.Errorf("%d phases", len(o.Phases))
		}
	})
}

func TestWhatTheStoreRefusesIsWrittenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, takes)
		s.tables.setFail(true)
		time.Sleep(time.Minute)
		s.h.set(refuses)
		time.Sleep(time.Minute)
		if n := s.tables.len(nsOutage); n != 0 {
			t.Fatalf("%d outages are written", n)
		}
		s.tables.setFail(false)
		time.Sleep(keepRetry)
		synctest.Wait()
		if n := s.tables.len(nsOutage); n != 1 {
			t.Errorf("%d outages are written, want 1", n)
		}
	})
}

func TestMaintenanceClosesAPrimaryUntilItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, takes)
		time.Sleep(time.Minute)
		o := Override{Kind: Maintenance, Subject: stageAddr, Until: time.Now().Add(time.Hour), Why: "new disks"}
		if err := s.p.Override(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		if s.p.Open(stageAddr) {
			t.Error("it is open")
		}
		s.restart(t)
		time.Sleep(time.Minute)
		if st := s.p.one(stageAddr); s.p.Open(stageAddr) || st.Open || st.State != Up || st.Override == nil || st.Override.Why != "new disks" {
			t.Errorf("after a restart it is %+v", st)
		}
		end := time.Now()
		for !s.p.Open(stageAddr) {
			<-s.p.Changed()
		}
		if took := time.Since(end); took != 59*time.Minute {
			t.Errorf("it ended after %v more", took)
		}
		if len(s.p.Overrides()) != 0 {
			t.Error("it is listed still")
		}
		if err := s.p.Override(t.Context(), Override{Kind: Maintenance, Subject: stageAddr, Until: time.Now().Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
		if ok, err := s.p.EndOverride(t.Context(), Maintenance, stageAddr); !ok || err != nil || !s.p.Open(stageAddr) {
			t.Errorf("taking it back: %v, %v", ok, err)
		}
		if ok, err := s.p.EndOverride(t.Context(), Maintenance, stageAddr); ok || err != nil {
			t.Errorf("taking it back twice: %v, %v", ok, err)
		}
	})
}

func TestAMaintenanceRaisesNoAlarmUntilItIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, takes)
		time.Sleep(time.Minute)
		for _, back := range []bool{true, false} {
			if err := s.p.Override(t.Context(), Override{Kind: Maintenance, Subject: stageAddr, Until: time.Now().Add(time.Hour)}); err != nil {
				t.Fatal(err)
			}
			s.h.set(refuses)
			time.Sleep(30 * time.Minute)
			if back {
				s.h.set(takes)
			}
			time.Sleep(time.Hour)
		}
		want := "maintenance notice 192.0.2.10:25, maintenance notice 192.0.2.10:25, " + // begin and end of the first
			"maintenance notice 192.0.2.10:25, maintenance notice 192.0.2.10:25, primary_away alarm 192.0.2.10:25"
		if got := strings.Join(s.events.lines(), ", "); got != want {
			t.Errorf("events %s", got)
		}
		if n := len(s.p.Outages(OutageQuery{})); n != 2 {
			t.Errorf("%d outages were noted, want 2", n)
		}
	})
}

func TestAHoldIsOnTheRoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, takes)
		time.Sleep(time.Minute)
		held := func(domain string) bool {
			r, err := s.p.Route(t.Context(), domain)
			if err != nil {
				t.Fatal(err)
			}
			return r.Held
		}
		if err := s.p.Override(t.Context(), Override{Kind: Hold, Subject: "example.org"}); err != nil {
			t.Fatal(err)
		}
		if !held("example.org") || held("example.net") || !s.p.Open(stageAddr) {
			t.Error("a domain's hold is that domain's")
		}
		if err := s.p.Override(t.Context(), Override{Kind: Hold, Subject: stageAddr, Until: time.Now().Add(time.Minute)}); err != nil {
			t.Fatal(err)
		}
		if !held("example.net") {
			t.Error("a route's hold is all its domains'")
		}
		if d, _ := s.p.Domain("example.net"); d.Hold == nil {
			t.Error("it is not shown")
		}
		time.Sleep(2 * time.Minute)
		if !held("example.org") || held("example.net") {
			t.Error("the one without an end must stay, the other be over")
		}
	})
}

func TestOverridesThatMakeNoSense(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, takes)
		soon := time.Now().Add(time.Hour)
		for _, o := range []Override{
			{Kind: Maintenance, Subject: stageAddr}, {Kind: Maintenance, Subject: "192.0.2.99:25", Until: soon},
			{Kind: Maintenance, Subject: stageAddr, Until: time.Now().Add(-1)}, {Kind: Hold, Subject: "nowhere.test"}, {Kind: "siesta", Subject: stageAddr},
		} {
			if err := s.p.Override(t.Context(), o); err == nil {
				t.Errorf("%+v was taken", o)
			}
		}
		s.tables.setFail(true)
		if err := s.p.Override(t.Context(), Override{Kind: Hold, Subject: "example.org"}); err == nil || len(s.p.Overrides()) != 0 {
			t.Error("an override that would not survive a restart was taken")
		}
	})
}

func TestBoundsAreWhatThePrimaryOfferedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, refuses)
		s.h.primary.Caps = []string{"PIPELINING", "SIZE 10000", "8BITMIME"}
		time.Sleep(time.Minute)
		if b := s.p.Bounds("example.org"); b.Known {
			t.Errorf("bounds of one that never spoke: %+v", b)
		}
		s.h.set(takes)
		time.Sleep(time.Minute)
		want := mta.Bounds{Known: true, Size: 10000 - traceRoom, EightBitMIME: true}
		if b := s.p.Bounds("example.org"); b != want {
			t.Errorf("bounds are %+v, want %+v", b, want)
		}
		s.h.set(refuses)
		s.restart(t)
		time.Sleep(time.Minute)
		if b := s.p.Bounds("example.org"); b != want {
			t.Errorf("after a restart they are %+v, want %+v", b, want)
		}
		if b := s.p.Bounds("nowhere.test"); b.Known {
			t.Errorf("bounds of a stranger: %+v", b)
		}
	})
}

func TestTierBoundsAreTheLeastOfItsMembers(t *testing.T) {
	p := prepare(t, DefaultConfig(), nil, Deps{})
	m := func(host string) mta.Primary { return mta.Primary{Host: host, Port: 25} }
	know := func(host string, mem memory) mta.Primary {
		p.watches[m(host).String()] = &watch{memory: mem}
		return m(host)
	}
	big := know("big.test", memory{Known: true, Size: 1 << 30, SMTPUTF8: true, EightBitMIME: true, RequireTLS: true})
	small := know("small.test", memory{Known: true, Size: 1 << 20, EightBitMIME: true})
	free := know("free.test", memory{Known: true, SMTPUTF8: true, EightBitMIME: true, RequireTLS: true})
	silent := know("silent.test", memory{})
	tests := []struct {
		name  string
		tiers [][]mta.Primary
		want  mta.Bounds
	}{
		{"equals", [][]mta.Primary{{big, small, silent}}, mta.Bounds{Known: true, Size: 1<<20 - traceRoom, EightBitMIME: true}},
		{"no limit and a limit", [][]mta.Primary{{free, big}}, mta.Bounds{Known: true, Size: 1<<30 - traceRoom, EightBitMIME: true, SMTPUTF8: true, RequireTLS: true}},
		{"the best tier decides", [][]mta.Primary{{big}, {small}}, mta.Bounds{Known: true, Size: 1<<30 - traceRoom, EightBitMIME: true, SMTPUTF8: true, RequireTLS: true}},
		{"the next one, if the best never spoke", [][]mta.Primary{{silent}, {small}}, mta.Bounds{Known: true, Size: 1<<20 - traceRoom, EightBitMIME: true}},
		{"nobody spoke", [][]mta.Primary{{silent}}, mta.Bounds{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p.domains["example.org"] = &domain{route: mta.NewRoute(tt.tiers)}
			if got := p.Bounds("example.org"); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestADomainIsUpWithItsPrimaryAndKnowsWhenThatRecovered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, takes)
		time.Sleep(time.Minute)
		if !s.p.Up("example.org") || s.p.Up("other.test") || !s.p.Recovered("example.org").IsZero() {
			t.Error("without an outage something has recovered, or is down")
		}
		s.h.set(refuses)
		time.Sleep(10 * time.Minute)
		if s.p.Up("example.org") || !s.p.Recovered("example.org").IsZero() {
			t.Error("a primary that is down is up, or has recovered")
		}
		back := time.Now()
		s.h.set(takes)
		time.Sleep(time.Minute)
		if d := s.p.Recovered("example.org").Sub(back); !s.p.Up("example.org") || d < 0 || d > 2*time.Second {
			t.Errorf("it recovered %v after it did", d)
		}
	})
}
