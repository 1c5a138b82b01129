package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"understudy/internal/mta"
)

// from is a transaction of a client.
func from(t testing.TB, client, sender string) *mta.Envelope {
	t.Helper()
	return &mta.Envelope{Peer: mta.Peer{Addr: netip.AddrPortFrom(netip.MustParseAddr(client), 4711)}, From: path(t, sender)}
}

// placed gives the road of a recipient, or the reply.
func placed(t testing.TB, p *Policy, env *mta.Envelope, to string) string {
	t.Helper()
	r, road, err := p.Admit(t.Context(), env, path(t, to))
	if reply, ok := errors.AsType[*mta.Reply](err); ok {
		return reply.String()
	}
	if err != nil {
		t.Fatalf("%s: %v", to, err)
	}
	return fmt.Sprintf("%s %s", map[mta.Road]string{mta.Spooled: "spooled", mta.Inline: "inline"}[road], r.Addr)
}

// primaries is what the policy is told of the primaries.
type primaries struct {
	mu          sync.Mutex // guards what follows
	up, fragile map[string]bool
}

func (p *primaries) set(of *map[string]bool, domain string, is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if *of == nil {
		*of = map[string]bool{}
	}
	(*of)[domain] = is
}

func (p *primaries) isUp(domain string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.up[domain]
}

func (p *primaries) isFragile(domain string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fragile[domain]
}

// admitting is a policy that is loaded and runs until the test ends.
func admitting(t *testing.T, cfg Config, domains map[string]Domain, d Deps) (*Policy, func()) {
	t.Helper()
	cfg.Hostname = "mx2.example.org"
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	p, err := New(cfg, domains, d)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	return p, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestTheRoadIsTheDomainsModeAndWhetherAPrimaryIsUp(t *testing.T) {
	pr := &primaries{}
	p, stop := admitting(t, DefaultConfig(), map[string]Domain{
		"example.org": {AcceptAll: true}, "defer.example": {AcceptAll: true, WhileUp: DeferWhileUp}, "accept.example": {AcceptAll: true, WhileUp: AcceptWhileUp},
	}, Deps{Up: pr.isUp})
	defer stop()
	env := from(t, "192.0.2.1", "bob@example.net")
	const relay = "550 5.7.1 relay not permitted: "
	tests := []struct{ to, down, up string }{
		{"a@example.org", "spooled a@example.org", "inline a@example.org"},
		{"a@defer.example", "spooled a@defer.example", "451 4.3.0 the mail server of defer.example takes mail now: send it there"},
		{"a@accept.example", "spooled a@accept.example", "spooled a@accept.example"},
		{"Postmaster@defer.example", "spooled Postmaster@defer.example", "inline Postmaster@defer.example"},
		{"postmaster", "spooled postmaster@example.org", "inline postmaster@example.org"},
		{"a@elsewhere.example", relay + "no mail for elsewhere.example is taken here", relay + "no mail for elsewhere.example is taken here"},
		{"a@[192.0.2.1]", relay + "no mail for that address is taken here", relay + "no mail for that address is taken here"},
		{"a%elsewhere.example@example.org", relay + "the address names a way through example.org to somewhere else", relay + "the address names a way through example.org to somewhere else"},
	}
	for _, up := range []bool{false, true} {
		for _, d := range []string{"example.org", "defer.example", "accept.example", "elsewhere.example"} {
			pr.set(&pr.up, d, up)
		}
		for _, tt := range tests {
			want := tt.down
			if up {
				want = tt.up
			}
			if got := placed(t, p, env, tt.to); got != want {
				t.Errorf("%s, up %v: got %q, want %q", tt.to, up, got, want)
			}
		}
	}
}

func TestNobodyIsPlacedBeforeTheListsAreRead(t *testing.T) {
	p, err := New(DefaultConfig(), map[string]Domain{"example.org": {AcceptAll: true}}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = p.Admit(t.Context(), from(t, "192.0.2.1", ""), path(t, "a@elsewhere.example"))
	if _, refused := errors.AsType[*mta.Reply](err); err == nil || refused {
		t.Errorf("got %v, want an error that is no reply", err)
	}
}

func TestAModeIsAWordOfThree(t *testing.T) {
	for _, w := range []WhileUp{InlineWhileUp, DeferWhileUp, AcceptWhileUp} {
		text, err := w.MarshalText()
		var back WhileUp
		if err != nil || back.UnmarshalText(text) != nil || back != w {
			t.Errorf("%v is read back as %v", w, back)
		}
	}
	var w WhileUp
	if err := w.UnmarshalText([]byte("spool")); err == nil || !strings.Contains(err.Error(), "inline, defer or accept") {
		t.Errorf("got %v", err)
	}
}

// Ten thousand addresses are tried on many connections while the primary is down: nobody learns more than the limit
// lets through, no unknown one is taken, and memory stays where it was.
func TestADictionaryAttackLearnsNoMoreThanTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		file := t.TempDir() + "/list"
		write(t, file, "alice@example.org\n")
		p, stop := admitting(t, DefaultConfig(), map[string]Domain{"example.org": {Recipients: file}, "example.net": {Sources: []string{"learned"}}}, Deps{Metrics: reg})
		defer stop()
		try := func(i int, to string) string {
			env := from(t, fmt.Sprintf("192.0.2.%d", i%256), fmt.Sprintf("x%d@spam%d.example", i, i))
			if said := placed(t, p, env, to); !strings.HasPrefix(said, "spooled ") {
				return said
			}
			_, err := p.Recipient(t.Context(), env, path(t, to))
			if err != nil {
				return err.Error()
			}
			return "taken"
		}
		var before runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		said := map[string]int{}
		for i := range 10_000 {
			r := try(i, fmt.Sprintf("u%d@%s", i, []string{"example.org", "example.net"}[i%2]))
			said[r[:min(9, len(r))]]++
			time.Sleep(time.Millisecond)
		}
		limits := DefaultConfig().Limits
		answered := float64(limits.ClientUnknownPerMinute) * (limits.Burst.Minutes() + 10.0/60)
		if n := said["550 5.1.1"] + said["450 4.1.1"]; said["taken"] != 0 || float64(n) > answered+1 || n+said["450 4.7.1"] != 10_000 {
			t.Errorf("got %v, want at most %.0f answers", said, answered)
		}
		if got := try(1, "alice@example.org"); !strings.HasPrefix(got, "450 4.7.1") {
			t.Errorf("a guess that is right is told apart: %q", got)
		}
		if got := placed(t, p, from(t, "198.51.100.1", "bob@example.net"), "alice@example.org"); got != "spooled alice@example.org" {
			t.Errorf("somebody else's mail: %q", got)
		}
		var after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
			t.Errorf("memory grew by %d octets", grown)
		}
		time.Sleep(time.Minute)
		if got := try(1, "alice@example.org"); got != "taken" {
			t.Errorf("a minute later: %q", got)
		}
		if n := testutil.ToFloat64(p.metrics.limited.WithLabelValues(limitUnknown)); n < 8000 {
			t.Errorf("%v are counted", n)
		}
	})
}

func TestALargeProviderInAnOutageMeetsNoLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop := admitting(t, DefaultConfig(), map[string]Domain{"example.org": {AcceptAll: true}}, Deps{})
		defer stop()
		for i := range 60_000 { // an hour, from one /24, after a burst that had waited in its queue
			env := from(t, fmt.Sprintf("203.0.113.%d", i%200), "bounces+x@provider.example")
			for range 1 + i%3 {
				if got := placed(t, p, env, "a@example.org"); got != "spooled a@example.org" {
					t.Fatalf("message %d: %q", i, got)
				}
				env.Rcpts = append(env.Rcpts, mta.Recipient{})
			}
			if i > 3000 {
				time.Sleep(time.Hour / 57_000)
			}
		}
	})
}

func TestEachLimitHoldsForItsOwn(t *testing.T) {
	burst := 2 * time.Minute
	tests := []struct {
		name   string
		limits Limits
		next   func(i int) (client, sender string, newMessage bool)
		passed int
	}{
		{"messages of a network", Limits{ClientMessagesPerMinute: 10}, func(i int) (string, string, bool) { return fmt.Sprintf("192.0.2.%d", i), "", true }, 20},
		{"messages of an IPv6 network", Limits{ClientMessagesPerMinute: 10}, func(i int) (string, string, bool) { return fmt.Sprintf("2001:db8::%d", i+1), "", true }, 20},
		{"an IPv4 client on an IPv6 socket", Limits{ClientMessagesPerMinute: 10}, func(i int) (string, string, bool) { return fmt.Sprintf("::ffff:192.0.2.%d", i), "", true }, 20},
		{"messages of many networks", Limits{ClientMessagesPerMinute: 10}, func(i int) (string, string, bool) { return fmt.Sprintf("192.0.%d.1", i), "", true }, 50},
		{"further recipients are no messages", Limits{ClientMessagesPerMinute: 10}, func(i int) (string, string, bool) { return "192.0.2.1", "", false }, 50},
		{"recipients of a network", Limits{ClientRecipientsPerMinute: 10}, func(i int) (string, string, bool) { return "192.0.2.1", "", i == 0 }, 20},
		{"recipients of a sender domain", Limits{SenderRecipientsPerMinute: 10}, func(i int) (string, string, bool) {
			return fmt.Sprintf("192.0.%d.1", i), fmt.Sprintf("x%d@Example.NET", i), true
		}, 20},
		{"reports have no sender", Limits{SenderRecipientsPerMinute: 10}, func(i int) (string, string, bool) { return "192.0.2.1", "", true }, 50},
		{"a trusted network", Limits{ClientMessagesPerMinute: 10, Trusted: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
			func(i int) (string, string, bool) { return "192.0.2.1", "a@example.net", true }, 50},
		{"no limit", Limits{}, func(i int) (string, string, bool) { return "192.0.2.1", "a@example.net", true }, 50},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.limits.Burst = burst
			l, now := newLimits(), time.Unix(1_800_000_000, 0)
			pass := func(i int) bool {
				client, sender, newMessage := tt.next(i)
				env := from(t, client, sender)
				if !newMessage {
					env.Rcpts = make([]mta.Recipient, 1)
				}
				limit, _ := l.take(tt.limits, env, now)
				return limit == ""
			}
			passed := 0
			for i := range 50 {
				if pass(i) {
					passed++
				}
			}
			if passed != tt.passed {
				t.Errorf("%d of 50 passed, want %d", passed, tt.passed)
			}
			now = now.Add(time.Minute)
			again := 0
			for i := range 50 {
				if pass(i) {
					again++
				}
			}
			if want := min(50, tt.passed); tt.passed == 20 && again != 10 || tt.passed == 50 && again != want {
				t.Errorf("a minute later %d of 50 passed", again)
			}
		})
	}
}

func TestAFullTableForgetsTheQuietest(t *testing.T) {
	r := newRecent[int, int](3)
	for i := range 3 {
		*r.get(i) = 10 + i
	}
	r.get(0)
	*r.get(3) = 13
	if got := []int{*r.get(0), *r.get(2), *r.get(3)}; got[0] != 10 || got[1] != 12 || got[2] != 13 || len(r.m) != 3 || r.order.Len() != 3 {
		t.Errorf("got %v of %d", got, len(r.m))
	}
	if *r.get(1) != 0 {
		t.Error("the quietest was kept")
	}
}

func TestLimitsThatMakeNoSenseAreFaults(t *testing.T) {
	l := defaultLimits()
	if faults := l.Validate(); len(faults) != 0 {
		t.Errorf("the defaults have %v", faults)
	}
	l = Limits{ClientMessagesPerMinute: -1, SenderRecipientsPerMinute: maxRate + 1}
	if faults := l.Validate(); len(faults) != 3 {
		t.Errorf("got %v", faults)
	}
	c := Parity{Sample: 2, AlarmBypass: -1}
	if faults := c.Validate(); len(faults) != 4 {
		t.Errorf("got %v", faults)
	}
}
