package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"understudy/internal/mta"
)

// primary is whom callouts reach.
type primary struct {
	mu    sync.Mutex // guards what follows
	away  bool
	says  func(local string) mta.Reply
	asked map[string]int
}

func newPrimary(says func(local string) mta.Reply) *primary {
	return &primary{says: says, asked: map[string]int{}}
}

func (p *primary) callout(_ context.Context, _ string, to mta.Path) (mta.Reply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(to.Local) == 26 {
		p.asked["invented"]++
	} else {
		p.asked[to.Local]++
	}
	if p.away {
		return mta.Reply{}, errors.New("connection refused")
	}
	return p.says(to.Local), nil
}

func (p *primary) times(local string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[local]
}

func (p *primary) set(f func(*primary)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

// knows answers as a server that knows these, and says no without a reason.
func knows(locals ...string) func(string) mta.Reply {
	return func(local string) mta.Reply {
		for _, l := range append(locals, "postmaster") {
			if l == local {
				return mta.Reply{Code: 250}
			}
		}
		return mta.Reply{Code: 550, Text: "no"}
	}
}

// table is a State in memory.
type table struct {
	mu sync.Mutex // guards m
	m  map[string][]byte
}

func (s *table) Put(_ context.Context, ns, key string, val []byte, ttl time.Duration, _ *uint64) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ns != stateNamespace || ttl <= 0 {
		return 0, fmt.Errorf("put %s %s for %v", ns, key, ttl)
	}
	s.m[key] = val
	return 1, nil
}

func (s *table) Delete(_ context.Context, _, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, key)
	return nil
}

func (s *table) Scan(_ context.Context, ns, _, _ string, _ int, f func(string, []byte, uint64) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ns != stateNamespace {
		return nil
	}
	for k, v := range s.m {
		if err := f(k, v, 1); err != nil {
			return err
		}
	}
	return nil
}

// student runs a policy that knows example.org only from its primary.
func student(t *testing.T, pr *primary, state State) (*Policy, *prometheus.Registry, func()) {
	t.Helper()
	reg := prometheus.NewRegistry()
	d := Deps{Log: slog.New(slog.DiscardHandler), Metrics: reg, State: state}
	if pr != nil {
		d.Callout = pr.callout
	}
	p, err := New(DefaultConfig(), map[string]Domain{"example.org": {Sources: []string{"learned"}}}, d)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	return p, reg, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestAPrimaryIsAskedAboutWhoSomebodyWroteTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr := newPrimary(knows("alice"))
		p, reg, stop := student(t, pr, nil)
		defer stop()
		time.Sleep(time.Minute)
		wants(t, p, map[string]string{"alice@example.org": "450 4.1.1", "bob@example.org": "450 4.1.1"})
		time.Sleep(time.Minute)
		wants(t, p, map[string]string{"alice@example.org": "taken", "alice+x@example.org": "taken", "bob@example.org": "550 5.1.1"})
		time.Sleep(12*time.Hour + time.Second/2) // so that Run does not wake at the same instant
		if pr.times("alice") != 1 || pr.times("bob") != 1 || pr.times("invented") != 1 {
			t.Errorf("asked: %v", pr.asked)
		}
		wants(t, p, map[string]string{"bob@example.org": "550 5.1.1"}) // old enough to be asked for again
		pr.set(func(pr *primary) { pr.says = knows("bob") })
		time.Sleep(time.Minute)
		wants(t, p, map[string]string{"bob@example.org": "taken"})
		if got := testutil.ToFloat64(p.metrics.callouts.WithLabelValues("exists")); got != 3 { // alice, bob, postmaster
			t.Errorf("%v callouts found somebody", got)
		}
		if n, err := testutil.GatherAndCount(reg, "understudy_policy_learned_recipients"); err != nil || n != 2 {
			t.Errorf("%d gauges (%v)", n, err)
		}
	})
}

func TestAGoodEntryIsRenewedBeforeItEndsAndOutlivesAPrimaryWithoutMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr := newPrimary(knows("alice", "carol"))
		p, _, stop := student(t, pr, nil)
		defer stop()
		p.Learn(path(t, "alice@example.org"), mta.Reply{Code: 250}, ByDelivery)
		p.Learn(path(t, "carol@example.org"), mta.Reply{Code: 250}, ByDelivery)
		time.Sleep(40 * 24 * time.Hour) // nobody wrote
		wants(t, p, map[string]string{"alice@example.org": "taken"})
		if n := pr.times("carol"); n != 1 {
			t.Errorf("carol was asked for %d times, want once", n)
		}
		pr.set(func(pr *primary) { pr.says = knows() }) // restored with an empty table of users
		for range 14 {                                  // they were renewed on day 24, and 31 days hold until day 55
			time.Sleep(24 * time.Hour)
			wants(t, p, map[string]string{"alice@example.org": "taken", "carol@example.org": "taken"})
		}
		time.Sleep(20*24*time.Hour + time.Second/2)
		wants(t, p, map[string]string{"alice@example.org": "450 4.1.1"})
		time.Sleep(time.Minute)
		wants(t, p, map[string]string{"alice@example.org": "550 5.1.1"})
	})
}

func TestNothingIsLearnedOfAPrimaryThatTakesEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr := newPrimary(func(string) mta.Reply { return mta.Reply{Code: 250} })
		p, _, stop := student(t, pr, nil)
		defer stop()
		time.Sleep(time.Minute)
		p.Learn(path(t, "spam1@example.org"), mta.Reply{Code: 250}, ByDelivery)
		wants(t, p, map[string]string{"spam1@example.org": "450 4.1.1", "spam2@example.org": "450 4.1.1"})
		time.Sleep(72 * time.Hour)
		if n := pr.times("invented"); n < 3 || n > 4 {
			t.Errorf("%d invented recipients in three days, want one a day", n)
		}
		if pr.times("spam1") != 0 {
			t.Error("it was asked about a recipient")
		}
		pr.set(func(pr *primary) { pr.says = knows("alice") })
		time.Sleep(25*time.Hour + time.Second/2)
		wants(t, p, map[string]string{"alice@example.org": "450 4.1.1"})
		time.Sleep(time.Minute)
		wants(t, p, map[string]string{"alice@example.org": "taken"})
	})
}

func TestARefusalOfAPrimaryThatRefusesEverybodyIsNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr := newPrimary(func(string) mta.Reply { return mta.Reply{Code: 550, Enhanced: "5.1.1"} })
		p, _, stop := student(t, pr, nil)
		defer stop()
		time.Sleep(time.Minute)
		p.Learn(path(t, "known@example.org"), mta.Reply{Code: 250}, ByDelivery)
		wants(t, p, map[string]string{"alice@example.org": "450 4.1.1", "known@example.org": "taken"})
		time.Sleep(time.Minute)
		wants(t, p, map[string]string{"alice@example.org": "450 4.1.1", "known@example.org": "taken"})
	})
}

func TestAPrimaryThatIsAwayIsAskedSeldomAndTeachesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr := newPrimary(knows("alice"))
		p, _, stop := student(t, pr, nil)
		defer stop()
		time.Sleep(time.Minute)
		p.Learn(path(t, "alice@example.org"), mta.Reply{Code: 250}, ByRcpt)
		pr.set(func(pr *primary) { pr.away = true })
		before := pr.times("x")
		for i := range 600 { // a dictionary
			wants(t, p, map[string]string{fmt.Sprintf("x%d@example.org", i): "450 4.1.1", "alice@example.org": "taken"})
			time.Sleep(10 * time.Second)
		}
		asked := -before
		pr.set(func(pr *primary) {
			for local, n := range pr.asked {
				if strings.HasPrefix(local, "x") {
					asked += n
				}
			}
		})
		if asked > 14 { // 1, 2, 4, 8, 10, 10, … minutes apart
			t.Errorf("it was asked %d times in 100 minutes", asked)
		}
	})
}

func TestWhatWasLearnedOutlivesTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := &table{m: map[string][]byte{"example.org damaged": {9}, "elsewhere.example x": encodeState(1, 1, 1, 0)}}
		pr := newPrimary(knows("alice"))
		p, _, stop := student(t, pr, state)
		time.Sleep(time.Minute)
		p.Learn(path(t, "alice@example.org"), mta.Reply{Code: 250}, ByRcpt)
		p.Learn(path(t, "bob@example.org"), mta.Reply{Code: 550, Enhanced: "5.1.1"}, ByRcpt)
		stop() // before its next round: the end writes
		again, _, stop := student(t, pr, state)
		defer stop()
		wants(t, again, map[string]string{"alice@example.org": "taken", "bob@example.org": "550 5.1.1", "damaged@example.org": "450 4.1.1"})
		time.Sleep(time.Hour)
		if n := pr.times("invented"); n != 1 {
			t.Errorf("its nature was found out %d times, want once", n)
		}
		time.Sleep(4 * 24 * time.Hour)
		state.mu.Lock()
		defer state.mu.Unlock()
		if _, kept := state.m["example.org bob"]; kept {
			t.Error("an entry that is dead is still kept")
		}
	})
}

func TestTheTableStaysWithinItsBoundAndAFloodDoesNotPushOutOthers(t *testing.T) {
	rules := DefaultConfig().Learned
	rules.MaxEntries = 1000
	l := newLearned(rules, func() {})
	now := time.Unix(1_800_000_000, 0)
	for i := range 100 {
		l.learn("small.example", fmt.Sprint("good", i), exists, ByRcpt, now)
		l.learn("small.example", fmt.Sprint("bad", i), missing, ByRcpt, now)
	}
	for i := range 20_000 {
		l.learn("flooded.example", fmt.Sprint(i), missing, ByRcpt, now.Add(time.Second))
		l.look("flooded.example", fmt.Sprint("x", i), "", true, now)
	}
	good, bad := l.sizes()
	if good != 100 || bad > 250 {
		t.Errorf("%d good and %d bad entries, want 100 and at most 250", good, bad)
	}
	if d := l.domains["small.example"]; d.good != 100 || d.bad < 90 {
		t.Errorf("the small domain has %d and %d left", d.good, d.bad)
	}
	if n := len(l.domains["flooded.example"].wanted); n > maxWanted || l.wanted != n {
		t.Errorf("%d are wanted, and %d are counted", n, l.wanted)
	}
	for i := range 5000 {
		l.learn("flooded.example", fmt.Sprint("g", i), exists, ByRcpt, now)
	}
	if good, _ := l.sizes(); good > 750 || l.domains["small.example"].good < 90 {
		t.Errorf("%d good entries, of the small domain %d", good, l.domains["small.example"].good)
	}
	n := 0
	for _, d := range l.domains {
		n += len(d.entries)
	}
	if good, bad := l.sizes(); good+bad != n {
		t.Errorf("%d and %d are counted, there are %d", good, bad, n)
	}
	l.reload(rules, map[string]Domain{"small.example": {}})
	if l.wanted != 0 || l.domains["flooded.example"] != nil {
		t.Error("a domain that is no longer ours is remembered")
	}
}

func TestNothingIsLearnedWhereItIsNotNeeded(t *testing.T) {
	file := t.TempDir() + "/list"
	write(t, file, "alice@example.org\n")
	p := loaded(t, DefaultConfig(), map[string]Domain{"example.org": {Recipients: file}, "example.net": {AcceptAll: true}}, quiet.Log)
	for _, to := range []string{"alice@example.org", "alice+x@example.org", "postmaster@example.org", "a%b@example.org", "x@example.net", "x@elsewhere.example", "<>"} {
		p.Learn(path(t, to), mta.Reply{Code: 250}, ByDelivery)
	}
	for i := range 10 {
		p.Learn(path(t, "new@example.org"), mta.Reply{Code: 250}, ByDelivery)
		p.Learn(path(t, fmt.Sprintf("new+%d@example.org", i)), mta.Reply{Code: 250}, ByDelivery)
	}
	if good, bad := p.learned.sizes(); good != 1 || bad != 0 {
		t.Errorf("%d and %d were learned, want 1 and 0", good, bad)
	}
}
