package healthprobe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/smtpc"
	"understudy/internal/testkit"
)

// mode is what a host of the world does with who comes.
type mode string

const (
	takes   mode = "takes mail"
	refuses mode = "refuses connections"
	drops   mode = "is behind a dropped route"
	freezes mode = "is frozen"
	resets  mode = "resets"
	garbles mode = "talks nonsense"
	says421 mode = "says 421"
	says452 mode = "is full"
	says554 mode = "refuses all"
)

// want is what must be believed of each, and at which step it fails.
var want = map[mode]struct {
	state State
	step  string
}{
	takes: {Up, ""}, refuses: {Down, "dial"}, drops: {Down, "dial"}, freezes: {Down, "banner"}, resets: {Down, "banner"}, garbles: {Down, "banner"},
	says421: {Refusing, "banner"}, says452: {Refusing, "mail"}, says554: {Refusing, "rcpt"},
}

// host is one machine of the world.
type host struct {
	primary *testkit.Primary
	mu      sync.Mutex
	mode    mode
	since   time.Time
	change  chan struct{}
	dials   int
}

func newHost(t *testing.T, m mode) *host {
	h := &host{primary: testkit.NewPrimary(t), mode: m, since: time.Now(), change: make(chan struct{})}
	h.primary.Discard = true
	h.primary.SetScript(func(at testkit.Point) testkit.Action {
		switch m, _ := h.now(); {
		case m == resets && at.Step == testkit.AtBanner:
			return testkit.ResetNow
		case m == garbles && at.Step == testkit.AtBanner:
			return testkit.Garbage
		case m == says421 && at.Step == testkit.AtBanner:
			return testkit.Bye("421 4.3.2 shutting down")
		case m == says452 && at.Step == testkit.AtMAIL:
			return testkit.Say("452 4.3.1 insufficient system storage")
		case m == says554 && at.Step == testkit.AtRCPT:
			return testkit.Say("554 5.7.1 relay access denied")
		}
		return testkit.Action{}
	})
	return h
}

func (h *host) now() (mode, chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mode, h.change
}

func (h *host) dialled() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dials
}

func (h *host) set(m mode) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mode, h.since = m, time.Now()
	close(h.change)
	h.change = make(chan struct{})
}

// world is a network in memory.
type world struct {
	hosts map[string]*host
	stop  chan struct{}
	wg    sync.WaitGroup

	mu           sync.Mutex
	dialling, at int // now, and at most
}

// most is how many dials there were at the same time.
func (w *world) most() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at
}

func (w *world) count(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dialling += n
	w.at = max(w.at, w.dialling)
}

func newWorld(t *testing.T) *world {
	w := &world{hosts: make(map[string]*host), stop: make(chan struct{})}
	t.Cleanup(func() { close(w.stop); w.wg.Wait() })
	return w
}

func (w *world) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	w.count(1)
	defer w.count(-1)
	h := w.hosts[addr]
	h.mu.Lock()
	h.dials++
	h.mu.Unlock()
	m, _ := h.now()
	switch m {
	case refuses:
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	case drops: // a SYN that was dropped is not sent again in this world
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ours, theirs := net.Pipe()
	w.wg.Go(func() {
		for {
			m, change := h.now()
			if m != freezes {
				break
			}
			select {
			case <-change: // it wakes up, and goes on where it was
			case <-w.stop:
				theirs.Close()
				return
			}
		}
		h.primary.Session(theirs, w.stop)
	})
	return ours, nil
}

func (w *world) dialer() *smtpc.Dialer {
	return &smtpc.Dialer{Hostname: "mx2.example.org", Net: w.dial}
}

// quietly is for worlds that would log thousands of lines.
func quietly() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestDaysOfAWorld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { days(t, rand.New(rand.NewPCG(5, 5))) })
}

// days lets two primaries come and go for two days, and looks every other second whether what is believed is true.
func days(t *testing.T, r *rand.Rand) {
	const (
		notice = 65 * time.Second // the slowest: frozen, three probes of 15 s after 16.5 s of quiet
		revive = 9 * time.Second  // after an hour: 5.5 s until the next probe, a dropped one takes 3 s, and 0.1 s
	)
	w := newWorld(t)
	domains := make(map[string]Domain)
	next := make(map[string]time.Time)
	for i := range 2 {
		addr := fmt.Sprintf("192.0.2.%d:25", 10+i)
		w.hosts[addr] = newHost(t, takes)
		for d := range 4 {
			domains[fmt.Sprintf("d%d-%d.test", i, d)] = Domain{Primaries: []string{addr}}
		}
		next[addr] = time.Now().Add(time.Duration(r.Int64N(int64(time.Hour))))
	}
	p := start(t, DefaultConfig(), domains, Deps{Dialer: w.dialer(), Log: quietly()})
	broken := []mode{refuses, drops, freezes, resets, garbles, says421, says452, says554}
	outages := make(map[string]int)
	length := 48 * time.Hour
	if testing.Short() {
		length = 12 * time.Hour
	}
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(2 * time.Second) {
		for addr, h := range w.hosts {
			m, _ := h.now()
			in := time.Since(h.since)
			s := p.one(addr)
			if s.Open && m != takes && in > notice {
				t.Fatalf("%s %s for %v, and is open", addr, m, in)
			}
			if !s.Open && m == takes && in > revive {
				t.Fatalf("%s %s for %v, and is not open: %+v", addr, m, in, s)
			}
			if !s.Open && m != takes && in > notice && (s.State != want[m].state || s.Step != want[m].step) {
				t.Fatalf("%s %s, and is believed to be %v at %q (%s)", addr, m, s.State, s.Step, s.Why)
			}
			if time.Now().After(next[addr]) {
				to, lasts := takes, 6*time.Hour
				if m == takes {
					to, lasts = broken[r.IntN(len(broken))], time.Hour
					outages[addr]++
				}
				h.set(to)
				next[addr] = time.Now().Add(10*time.Minute + time.Duration(r.Int64N(int64(lasts))))
			}
		}
	}
	for addr, n := range outages {
		t.Logf("%s: %d outages, %d probes", addr, n, w.hosts[addr].dialled())
		got := p.Outages(OutageQuery{Primary: addr})
		if len(got) != n {
			t.Errorf("%s had %d outages, %d were noted", addr, n, len(got))
		}
		for _, o := range got[1:] {
			if o.End.IsZero() || o.Begin.After(o.End) || len(o.Phases) != 1 {
				t.Errorf("an outage was noted as %+v", o)
			}
		}
	}
}

func (p *Prober) one(primary string) PrimaryStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status(p.watches[primary], time.Now())
}

func TestAFirstSuccessIsConfirmedAtOnce(t *testing.T) {
	for _, m := range []mode{refuses, says421, says452} {
		t.Run(string(m), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				const addr = "192.0.2.10:25"
				w.hosts[addr] = newHost(t, m)
				p := start(t, DefaultConfig(), map[string]Domain{"example.org": {Primaries: []string{addr}}}, Deps{Dialer: w.dialer()})
				time.Sleep(30 * time.Second)
				w.hosts[addr].set(takes)
				recovered := time.Now()
				for !p.Open(addr) {
					<-p.Changed()
				}
				if took := time.Since(recovered); took > 1300*time.Millisecond {
					t.Errorf("open after %v", took)
				}
				w.hosts[addr].set(m)
				p.Observe(addr, errors.New("it hung up"))
				fell := time.Now()
				for p.Open(addr) {
					<-p.Changed()
				}
				if took := time.Since(fell); took > 1300*time.Millisecond {
					t.Errorf("a delivery failed, and it was closed after %v", took)
				}
				time.Sleep(2 * time.Hour)
				w.hosts[addr].set(takes)
				p.Hint("example.org")
				recovered = time.Now()
				for !p.Open(addr) {
					<-p.Changed()
				}
				if took := time.Since(recovered); took > 250*time.Millisecond {
					t.Errorf("with a hint it was open after %v", took)
				}
			})
		})
	}
}

func TestAHintDoesNotWaitForAProbeThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const addr = "192.0.2.10:25"
		h := newHost(t, takes)
		w.hosts[addr] = h
		var stuck atomic.Bool // a session whose server has died: it stays so when the server is back
		h.primary.SetScript(func(at testkit.Point) testkit.Action {
			if stuck.Load() && at.Step == testkit.AtBanner {
				return testkit.StallNow
			}
			return testkit.Action{}
		})
		p := start(t, DefaultConfig(), map[string]Domain{"example.org": {Primaries: []string{addr}}}, Deps{Dialer: w.dialer()})
		time.Sleep(time.Second)
		stuck.Store(true)
		time.Sleep(2 * time.Minute)
		for n := h.dialled(); h.dialled() == n; {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(5 * time.Second) // a probe hangs, for ten seconds more
		stuck.Store(false)
		if p.Open(addr) {
			t.Fatal("it is open although every session stalled")
		}
		before := h.dialled()
		p.Hint("example.org")
		hinted := time.Now()
		for !p.Open(addr) {
			p.Hint("example.org")
			time.Sleep(20 * time.Millisecond)
		}
		if took := time.Since(hinted); took > 300*time.Millisecond {
			t.Errorf("open after %v", took)
		}
		if n := h.dialled() - before; n > 4 {
			t.Errorf("it took %d probes", n)
		}
	})
}

func TestHintsByTheHundredLetASlowProbeEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const addr = "192.0.2.10:25"
		h := newHost(t, refuses)
		w.hosts[addr] = h
		p := start(t, DefaultConfig(), map[string]Domain{"example.org": {Primaries: []string{addr}}}, Deps{Dialer: &smtpc.Dialer{
			Hostname: "mx2.example.org", Net: func(ctx context.Context, network, addr string) (net.Conn, error) {
				time.Sleep(2 * time.Second) // a long way
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				return w.dial(ctx, network, addr)
			},
		}})
		time.Sleep(10 * time.Second)
		h.set(takes)
		for range 200 {
			p.Hint("example.org")
			time.Sleep(100 * time.Millisecond)
		}
		if !p.Open(addr) {
			t.Errorf("it is %+v", p.one(addr))
		}
	})
}

func TestProbesAreAsManyAsTheScheduleSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const addr = "192.0.2.10:25"
		h := newHost(t, takes)
		w.hosts[addr] = h
		domains := make(map[string]Domain)
		for i := range 1000 {
			domains[fmt.Sprintf("d%d.test", i)] = Domain{Primaries: []string{addr}}
		}
		p := start(t, DefaultConfig(), domains, Deps{Dialer: w.dialer(), Log: quietly()})
		check := func(what string, d time.Duration, least, most int, each func()) {
			t.Helper()
			before := h.dialled()
			for range int(d / time.Second) {
				time.Sleep(time.Second)
				each()
			}
			synctest.Wait()
			if n := h.dialled() - before; n < least || n > most {
				t.Errorf("%s: %d probes, want %d to %d", what, n, least, most)
			}
		}
		nothing := func() {}
		check("an hour up, with a thousand domains", time.Hour, 225, 260, nothing)
		check("an hour up, and it takes mail each second", time.Hour, 45, 65, func() { p.Observe(addr, nil) })
		h.set(refuses)
		time.Sleep(time.Minute)
		check("down", 50*time.Minute, 2900, 3200, nothing)
		time.Sleep(10 * time.Minute)
		check("long down", time.Hour, 690, 760, nothing)
		check("hints by the hundred are bounded", time.Minute, 60, 620, func() {
			for range 100 {
				p.Hint("d1.test")
			}
		})
		h.set(says554)
		time.Sleep(2 * time.Minute)
		check("refusing", time.Hour, 690, 760, nothing)
	})
}

// It runs in real time: hundreds of dials at one moment of a bubble are too much for the race detector of Go 1.26.
func TestManyDeadPrimariesCostBoundedSockets(t *testing.T) {
	w := newWorld(t)
	cfg := DefaultConfig()
	cfg.EveryDown, cfg.Confirm, cfg.DialTimeout = 10*time.Millisecond, time.Millisecond, 30*time.Millisecond
	cfg.MaxProbes = 50
	domains := make(map[string]Domain)
	live := 0
	for i := range 1000 {
		addr := fmt.Sprintf("192.0.%d.%d:25", i/200, i%200+1)
		h := newHost(t, drops)
		if i%20 == 0 {
			h.set(takes)
			live++
		}
		w.hosts[addr] = h
		domains[fmt.Sprintf("d%d.test", i)] = Domain{Primaries: []string{addr}}
	}
	p := start(t, cfg, domains, Deps{Dialer: w.dialer(), Log: quietly()})
	await(t, p, "all that live", func() bool {
		up, known := 0, 0
		for _, s := range p.Status() {
			if s.Open {
				up++
			}
			if s.State != Unknown {
				known++
			}
		}
		return up == live && known == len(domains)
	})
	if n := w.most(); n > cfg.MaxProbes {
		t.Errorf("%d connections at the same time, want at most %d", n, cfg.MaxProbes)
	}
}

func TestFlappingRaisesAnAlarmAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const addr = "192.0.2.10:25"
		h := newHost(t, takes)
		w.hosts[addr] = h
		var j journal
		p := start(t, DefaultConfig(), map[string]Domain{"example.org": {Primaries: []string{addr}}}, Deps{Dialer: w.dialer(), Events: j.add})
		for range 8 {
			h.set(refuses)
			time.Sleep(30 * time.Second)
			h.set(takes)
			time.Sleep(30 * time.Second)
		}
		if s := p.one(addr); !s.Flapping || !s.Open {
			t.Errorf("status %+v", s)
		}
		time.Sleep(15 * time.Minute)
		if s := p.one(addr); s.Flapping {
			t.Errorf("status %+v", s)
		}
		got := strings.Join(j.lines(), ", ")
		if strings.Count(got, "primary_flapping alarm") != 1 || strings.Count(got, "primary_flapping over") != 1 {
			t.Errorf("events: %s", got)
		}
		if strings.Count(got, "primary_away alarm") != 8 || strings.Count(got, "primary_away over") != 8 {
			t.Errorf("events: %s", got)
		}
	})
}

func TestATierIsUpWhileAnyMemberIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const one, two = "192.0.2.10:25", "192.0.2.11:25"
		w.hosts[one], w.hosts[two] = newHost(t, refuses), newHost(t, takes)
		p := start(t, DefaultConfig(), map[string]Domain{"example.org": {Primaries: []string{one, two}}}, Deps{Dialer: w.dialer()})
		time.Sleep(time.Second)
		if d, _ := p.Domain("example.org"); d.State != Up || p.Open(one) || !p.Open(two) {
			t.Errorf("the route is %v", d.State)
		}
		w.hosts[two].set(says554)
		time.Sleep(time.Minute)
		if d, _ := p.Domain("example.org"); d.State != Down {
			t.Errorf("the route is %v, want what its best primary is", d.State)
		}
	})
}

func TestADomainThatThePrimaryDoesNotKnowClosesItToNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const addr = "192.0.2.10:25"
		h := newHost(t, refuses)
		w.hosts[addr] = h
		h.primary.SetScript(func(at testkit.Point) testkit.Action {
			if at.Step == testkit.AtRCPT && strings.HasSuffix(at.Arg, "@bad.test") {
				return testkit.Say("550 relay not permitted")
			}
			return testkit.Action{}
		})
		p := start(t, DefaultConfig(), map[string]Domain{"bad.test": {Primaries: []string{addr}}, "good.test": {Primaries: []string{addr}}}, Deps{Dialer: w.dialer()})
		time.Sleep(5 * time.Second)
		h.set(takes)
		time.Sleep(10 * time.Second)
		if !p.Open(addr) {
			t.Errorf("it is %+v", p.one(addr))
		}
	})
}

func TestTheProbesRecipientIsTheConfigs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const one, two = "192.0.2.10:25", "192.0.2.11:25"
		asked := make(chan string, 100)
		for _, addr := range []string{one, two} {
			w.hosts[addr] = newHost(t, takes)
			w.hosts[addr].primary.SetScript(func(at testkit.Point) testkit.Action {
				if at.Step == testkit.AtRCPT {
					asked <- at.Arg
				}
				return testkit.Action{}
			})
		}
		p := start(t, DefaultConfig(), map[string]Domain{
			"a.test": {Primaries: []string{one}}, "b.test": {Primaries: []string{two}, ProbeRecipient: "canary@b.test"},
		}, Deps{Dialer: w.dialer()})
		time.Sleep(5 * time.Second)
		p.Hint("") // all, at once
		time.Sleep(time.Second)
		synctest.Wait()
		got := map[string]int{}
		for len(asked) > 0 {
			got[<-asked]++
		}
		if len(got) != 2 || got["postmaster@a.test"] != 2 || got["canary@b.test"] != 2 {
			t.Errorf("asked for %v", got)
		}
		if d := p.Domains(); len(d) != 2 || d[0].Domain != "a.test" || d[0].State != Up || d[0].Source != "config" {
			t.Errorf("domains are %+v", d)
		}
	})
}

func TestAServerThatIsBackWithoutItsUsersStaysClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const addr = "192.0.2.10:25"
		h := newHost(t, takes)
		w.hosts[addr] = h
		var nobody atomic.Bool
		h.primary.SetScript(func(at testkit.Point) testkit.Action {
			if at.Step == testkit.AtRCPT && nobody.Load() {
				return testkit.Say("550 5.1.1 unknown user")
			}
			return testkit.Action{}
		})
		var tb tables
		deps := Deps{Dialer: w.dialer(), Tables: &tb}
		domains := map[string]Domain{"example.org": {Primaries: []string{addr}}}
		p := prepare(t, DefaultConfig(), domains, deps)
		stop := run(t, p)
		time.Sleep(time.Minute)
		nobody.Store(true) // an alias was removed: no reason to stop
		time.Sleep(time.Minute)
		if s := p.one(addr); !s.Open || !strings.Contains(s.Last.Note, "does not know postmaster@example.org") {
			t.Errorf("it is %+v", s)
		}
		stop()
		p = start(t, DefaultConfig(), domains, deps)
		time.Sleep(time.Minute)
		if s := p.one(addr); s.State != Refusing || s.Why != "550 5.1.1 unknown user" {
			t.Errorf("after a restart it is %+v", s)
		}
	})
}

func TestWhatCallsItselfByOurNameIsNoPrimary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const addr = "192.0.2.10:25"
		h := newHost(t, takes)
		h.primary.Hostname = "MX2.example.org"
		w.hosts[addr] = h
		p := start(t, DefaultConfig(), map[string]Domain{"example.org": {Primaries: []string{addr}}}, Deps{Dialer: w.dialer()})
		time.Sleep(10 * time.Second)
		if s := p.one(addr); s.Open || !strings.Contains(s.Why, "our own name") {
			t.Errorf("it is %+v", s)
		}
	})
}

func TestDepths(t *testing.T) {
	for depth, fails := range map[string][]mode{
		"connect": {}, "banner": {says421}, "ehlo": {says421}, "starttls": {says421}, "mail": {says421, says452}, "rcpt": {says421, says452, says554},
	} {
		t.Run(depth, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				cfg := DefaultConfig()
				cfg.Depth = depth
				domains := make(map[string]Domain)
				addrs := make(map[mode]string)
				for i, m := range []mode{takes, says421, says452, says554} {
					addrs[m] = fmt.Sprintf("192.0.2.%d:25", i)
					w.hosts[addrs[m]] = newHost(t, m)
					domains[fmt.Sprintf("d%d.test", i)] = Domain{Primaries: []string{addrs[m]}}
				}
				p := start(t, cfg, domains, Deps{Dialer: w.dialer()})
				time.Sleep(10 * time.Second)
				for m, addr := range addrs {
					closed := strings.Contains(fmt.Sprint(fails), string(m))
					if p.Open(addr) == closed {
						t.Errorf("one that %s: open %v", m, !closed)
					}
				}
			})
		})
	}
}

func TestReloadKeepsWhatIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const one, two = "192.0.2.10:25", "192.0.2.11:25"
		w.hosts[one], w.hosts[two] = newHost(t, takes), newHost(t, takes)
		domains := map[string]Domain{"a.test": {Primaries: []string{one}}, "b.test": {Primaries: []string{one}}}
		p := start(t, DefaultConfig(), domains, Deps{Dialer: w.dialer()})
		time.Sleep(time.Minute)
		p.Reload(DefaultConfig(), map[string]Domain{"a.test": {Primaries: []string{one}}, "c.test": {Primaries: []string{two}}})
		if !p.Open(one) || p.Open(two) {
			t.Error("what stays must be open still, what is new not yet")
		}
		time.Sleep(time.Second)
		if !p.Open(two) {
			t.Error("what is new was not probed at once")
		}
		p.Reload(DefaultConfig(), map[string]Domain{"c.test": {Primaries: []string{two}}})
		if s := p.Status(); len(s) != 1 || s[0].Primary != two {
			t.Errorf("watched are %+v", s)
		}
		before := w.hosts[one].dialled()
		time.Sleep(time.Hour)
		if w.hosts[one].dialled() != before {
			t.Error("what no domain has is probed")
		}
		if _, err := p.Route(t.Context(), "a.test"); err == nil {
			t.Error("a domain that is gone has a route")
		}
	})
}
