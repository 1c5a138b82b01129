package dnsbl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/dnsx"
	"understudy/internal/dnsx/dnstest"
	"understudy/internal/mta"
)

// told gathers events.
type told struct {
	mu   sync.Mutex
	list []string
}

func (t *told) raise(e mta.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = append(t.list, fmt.Sprintf("%s %s %s", e.Kind, e.Subject, e.Level))
}

func (t *told) all() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.list)
}

// alive are the test points of a list that works.
func alive(z dnstest.Zones, lists ...string) dnstest.Zones {
	for _, l := range lists {
		z["2.0.0.127."+l] = []string{"A 127.0.0.2"}
	}
	return z
}

func config(t testing.TB, entries ...string) Config {
	t.Helper()
	parsed, faults := ParseEntries(entries)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	return Config{Entries: parsed, Wait: 2 * time.Second}
}

// asking makes lists that ask a server over real packets.
func asking(t testing.TB, z dnstest.Zones, entries ...string) (*Lists, *dnstest.Server, *told) {
	t.Helper()
	srv := dnstest.New(t, z)
	cfg := dnsx.DefaultConfig()
	cfg.Resolvers, cfg.Timeout, cfg.Tries = []string{srv.Addr()}, 200*time.Millisecond, 1
	r, err := dnsx.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	events := &told{}
	return New(config(t, entries...), r, events.raise), srv, events
}

func shown(hits []Hit) string {
	var b strings.Builder
	for _, h := range hits {
		fmt.Fprintf(&b, "%s%v%+g ", h.List, h.Replies, h.Weight)
	}
	return strings.TrimSpace(b.String())
}

func TestListsAreAskedAndWeighed(t *testing.T) {
	z := alive(dnstest.Zones{
		"99.2.0.192.bl.example":     {"A 127.0.0.4", "A 127.0.0.10"},
		"99.2.0.192.wl.example":     {"A 127.0.5.1"},
		"98.2.0.192.bl.example":     {"A 127.0.0.1"},
		"97.2.0.192.bl.example":     {"SERVFAIL"},
		"96.2.0.192.bl.example":     {"TIMEOUT"},
		"96.2.0.192.second.example": {"A 127.0.0.2"},
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.bl.example": {"A 127.0.0.3"},
		"1.0.168.192.bl.example": {"A 127.0.0.2"},
	}, "bl.example", "wl.example", "second.example")
	l, srv, events := asking(t, z, "bl.example=127.0.0.[2..9]*3", "wl.example=127.0.[0..255].[1..3]*-2", "bl.example=127.0.0.10*1.5", "bl.example=127.0.0.11*7", "second.example")
	for client, want := range map[string]string{
		"192.0.2.99":        "bl.example[127.0.0.4 127.0.0.10]+4.5 wl.example[127.0.5.1]-2",
		"::ffff:192.0.2.99": "bl.example[127.0.0.4 127.0.0.10]+4.5 wl.example[127.0.5.1]-2",
		"192.0.2.98":        "", // 127.0.0.1 lists nothing
		"192.0.2.97":        "", // SERVFAIL is no opinion
		"192.0.2.96":        "second.example[127.0.0.2]+1",
		"192.0.2.1":         "",
		"2001:db8::1":       "bl.example[127.0.0.3]+3",
		"192.168.0.1":       "", // nobody can list it
		"127.0.0.2":         "",
	} {
		if got := shown(l.Check(t.Context(), netip.MustParseAddr(client))); got != want {
			t.Errorf("%s: got %q, want %q", client, got, want)
		}
	}
	l.Check(t.Context(), netip.MustParseAddr("192.0.2.99"))
	if n := srv.Asked("99.2.0.192.bl.example", "A"); n != 1 {
		t.Errorf("a list with three entries was asked %d times", n)
	}
	if n := srv.Asked("99.2.0.192.bl.example", "AAAA"); n != 0 {
		t.Errorf("lists have no AAAA records, and were asked for one %d times", n)
	}
	if got := events.all(); len(got) > 0 {
		t.Errorf("alarms: %v", got)
	}
}

func TestAListThatDoesNotAnswerAsAListIsLeftAlone(t *testing.T) {
	tests := []struct {
		name string
		zone dnstest.Zones
		want State
		why  string
	}{
		{"it has ceased", dnstest.Zones{"99.2.0.192.l.example": {"A 127.0.0.2"}}, Dead, "test point"},
		{"it lists everyone", dnstest.Zones{"2.0.0.127.l.example": {"A 127.0.0.2"}, "1.0.0.127.l.example": {"A 127.0.0.2"}}, Dead, "everyone"},
		{"a registrar answers", dnstest.Zones{"2.0.0.127.l.example": {"A 203.0.113.9"}, "1.0.0.127.l.example": {"A 203.0.113.9"}}, Dead, "no list does"},
		{"it refuses the resolver", dnstest.Zones{"2.0.0.127.l.example": {"A 127.255.255.254"}}, Refusing, "a resolver of your own"},
		{"it finds us greedy", dnstest.Zones{"2.0.0.127.l.example": {"A 127.255.255.255"}}, Refusing, "too often"},
		{"it lists the IPv6 point that nobody may", dnstest.Zones{"2.0.0.127.l.example": {"A 127.0.0.2"}, mustNot6("l.example"): {"A 127.0.0.2"}}, Dead, "everyone"},
		{"it does not answer", dnstest.Zones{"2.0.0.127.l.example": {"SERVFAIL"}}, Untested, ""},
		{"it may list everyone", dnstest.Zones{"2.0.0.127.l.example": {"A 127.0.0.2"}, "1.0.0.127.l.example": {"SERVFAIL"}}, Untested, ""},
		{"it works", dnstest.Zones{"2.0.0.127.l.example": {"A 127.0.0.2"}}, Alive, ""},
		{"it works for IPv6 alone", dnstest.Zones{must6("l.example"): {"A 127.0.0.2"}}, Alive, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.zone["99.2.0.192.l.example"] = []string{"A 127.0.0.2"}
			l, srv, events := asking(t, tt.zone, "l.example*5")
			got := l.Check(t.Context(), netip.MustParseAddr("192.0.2.99"))
			s := l.Status()[0]
			if s.State != tt.want || !strings.Contains(s.Why, tt.why) {
				t.Errorf("it is %s: %s", s.State, s.Why)
			}
			if (len(got) > 0) != (tt.want == Alive) {
				t.Errorf("it was believed: %v", got)
			}
			if tt.want != Alive && srv.Asked("99.2.0.192.l.example", "A") > 0 {
				t.Error("it was asked about a client")
			}
			if alarms := events.all(); (len(alarms) == 1) != (tt.want == Dead || tt.want == Refusing) {
				t.Errorf("alarms: %v", alarms)
			}
		})
	}
}

func must6(list string) string    { _, _, m, _ := points(list); return m }
func mustNot6(list string) string { _, _, _, m := points(list); return m }

func TestAnAnswerAboutAClientCanEndTheTrust(t *testing.T) {
	z := alive(dnstest.Zones{"99.2.0.192.a.example": {"A 127.255.255.254"}, "99.2.0.192.b.example": {"A 198.51.100.1"}}, "a.example", "b.example")
	l, _, events := asking(t, z, "a.example", "b.example")
	if got := l.Check(t.Context(), netip.MustParseAddr("192.0.2.99")); len(got) > 0 {
		t.Errorf("got %v", got)
	}
	st := l.Status()
	if st[0].State != Refusing || time.Until(st[0].Until) < 59*time.Minute || st[1].State != Dead {
		t.Errorf("got %+v", st)
	}
	l.Reload(Config{Wait: time.Second})
	got := events.all()
	slices.Sort(got)
	want := []string{"dns_list_dead a.example alarm", "dns_list_dead a.example over", "dns_list_dead b.example alarm", "dns_list_dead b.example over"}
	if !slices.Equal(got, want) {
		t.Errorf("events %q", got)
	}
}

func TestAListsSecretKeyStaysHere(t *testing.T) {
	const list = "s3cret.zen.dq.example"
	z := alive(dnstest.Zones{"99.2.0.192." + list: {"A 127.0.0.2"}, "98.2.0.192." + list: {"A 198.51.100.1"}}, list)
	l, _, events := asking(t, z, list)
	l.Reload(Config{Entries: config(t, list).Entries, Names: map[string]string{list: "zen"}, Wait: time.Second})
	out := shown(l.Check(t.Context(), netip.MustParseAddr("192.0.2.99")))
	l.Check(t.Context(), netip.MustParseAddr("192.0.2.98"))
	out += fmt.Sprintf("%v %+v", events.all(), l.Status())
	l.Reload(Config{Wait: time.Second})
	out += fmt.Sprint(events.all())
	if strings.Contains(out, "s3cret") || !strings.Contains(out, "zen[127.0.0.2]+1") || !strings.Contains(out, "dns_list_dead zen over") {
		t.Error(out)
	}
}

func TestReloadsChecksAndTestsMeet(t *testing.T) {
	z := &zone{names: map[string]string{"2.0.0.127.a.example": "127.0.0.2", "99.2.0.192.a.example": "127.0.0.2", "99.2.0.192.b.example": "198.51.100.1"}}
	events := &told{}
	l := New(config(t, "a.example"), z, events.raise)
	var g sync.WaitGroup
	for i := range 4 {
		g.Go(func() {
			for range 200 {
				switch i {
				case 0:
					l.Reload(config(t, "a.example*2", "b.example"))
					l.Reload(Config{Entries: config(t, "b.example").Entries, Names: map[string]string{"b.example": "b"}, Wait: time.Second})
				case 1:
					l.Test(t.Context())
				default:
					l.Check(t.Context(), netip.MustParseAddr("192.0.2.99"))
					l.Status()
				}
			}
		})
	}
	g.Wait()
	l.Reload(Config{Wait: time.Second})
	on := map[string]int{}
	for _, e := range events.all() {
		f := strings.Fields(e)
		on[f[1]] += map[string]int{"alarm": 1, "over": -1}[f[2]]
		if n := on[f[1]]; n != 0 && n != 1 {
			t.Fatalf("%s: %d alarms at once", f[1], n)
		}
	}
	for subject, n := range on {
		if n != 0 {
			t.Errorf("%s: %d alarms are left on", subject, n)
		}
	}
}

// zone answers from memory, and changes as a test goes on.
type zone struct {
	mu    sync.Mutex
	names map[string]string // to an address; "?" is trouble
	asked atomic.Int64
	most  atomic.Int64
	now   atomic.Int64
	delay time.Duration
}

func (z *zone) set(name, addr string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.names[name] = addr
}

func (z *zone) LookupList(ctx context.Context, name string) ([]netip.Addr, error) {
	z.asked.Add(1)
	z.most.Store(max(z.most.Load(), z.now.Add(1)))
	defer z.now.Add(-1)
	if z.delay > 0 {
		select {
		case <-time.After(z.delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	switch a := z.names[name]; a {
	case "":
		return nil, dnsx.ErrNoName
	case "?":
		return nil, errors.New("SERVFAIL")
	default:
		return []netip.Addr{netip.MustParseAddr(a)}, nil
	}
}

func TestADayOfAList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{names: map[string]string{"2.0.0.127.l.example": "127.0.0.2", "99.2.0.192.l.example": "127.0.0.2"}}
		events := &told{}
		l := New(config(t, "l.example"), z, events.raise)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		synctest.Wait()
		is := func(want State, hits int) {
			t.Helper()
			synctest.Wait()
			if got := l.Status()[0]; got.State != want {
				t.Errorf("it is %s (%s), want %s", got.State, got.Why, want)
			}
			if got := l.Check(ctx, netip.MustParseAddr("192.0.2.99")); len(got) != hits {
				t.Errorf("hits: %v", got)
			}
		}
		is(Alive, 1)
		z.set("2.0.0.127.l.example", "") // it ceases
		time.Sleep(50 * time.Minute)
		is(Alive, 1)
		time.Sleep(11 * time.Minute)
		is(Dead, 0)
		z.set("2.0.0.127.l.example", "127.0.0.2") // and comes back
		time.Sleep(61 * time.Minute)
		is(Alive, 1)
		z.set("99.2.0.192.l.example", "127.255.255.255")
		is(Alive, 0)
		is(Refusing, 0)
		asked := z.asked.Load()
		time.Sleep(59 * time.Minute)
		is(Refusing, 0)
		if n := z.asked.Load() - asked; n > 0 {
			t.Errorf("a list that refuses was asked %d times", n)
		}
		z.set("99.2.0.192.l.example", "127.0.0.2")
		time.Sleep(2 * time.Minute)
		is(Alive, 1)
		z.set("2.0.0.127.l.example", "?") // trouble changes no mind
		time.Sleep(5 * time.Hour)
		is(Alive, 1)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		const alarm, over = "dns_list_dead l.example alarm", "dns_list_dead l.example over"
		if got := events.all(); !slices.Equal(got, []string{alarm, over, alarm, over}) {
			t.Errorf("events %q", got)
		}
	})
}

func TestAllListsShareOneDeadlineAndABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{names: map[string]string{}, delay: 10 * time.Millisecond}
		var entries []string
		for i := range 40 {
			entries = append(entries, fmt.Sprintf("l%d.example", i))
			z.set(fmt.Sprintf("2.0.0.127.l%d.example", i), "127.0.0.2")
		}
		l := New(config(t, entries...), z, nil)
		l.Test(t.Context())
		var g sync.WaitGroup
		for i := range 100 {
			g.Go(func() { l.Check(t.Context(), netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})) })
		}
		g.Wait()
		if n := z.most.Load(); n > maxAsking {
			t.Errorf("%d questions at the same time", n)
		}
		z.delay = time.Hour
		start := time.Now()
		l.Check(t.Context(), netip.MustParseAddr("192.0.2.200"))
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestTheFirstTestOutlivesTheClientThatBeganIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{names: map[string]string{"2.0.0.127.l.example": "127.0.0.2"}, delay: 100 * time.Millisecond}
		l := New(config(t, "l.example"), z, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		l.Check(ctx, netip.MustParseAddr("192.0.2.1"))
		if s := l.Status()[0]; s.State != Alive {
			t.Errorf("it is %s", s.State)
		}
	})
}
