package inbound

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func testGate(max, perNetwork, perMinute int) *gate {
	return newGate(&Config{MaxConnections: max, MaxPerNetwork: perNetwork, MaxPerMinute: perMinute}, 1<<20)
}

func TestGateCountsNeighboursAsOne(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name, first, second string
		refused             bool
	}{
		{"the same /24", "192.0.2.1", "192.0.2.200", true},
		{"another /24", "192.0.2.1", "192.0.3.1", false},
		{"the same /64", "2001:db8::1", "2001:db8::ffff:0:1", true},
		{"another /64", "2001:db8::1", "2001:db8:0:1::1", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := testGate(10, 1, 100)
			if _, r := g.enter(netip.MustParseAddr(tt.first), false, now); r != nil {
				t.Fatal(r)
			}
			_, r := g.enter(netip.MustParseAddr(tt.second), false, now)
			if (r != nil) != tt.refused {
				t.Errorf("got %v", r)
			}
			if r != nil && (r.Code != 421 || r.Enhanced != "4.7.0") {
				t.Errorf("got %v", r)
			}
			if !tt.refused {
				return
			}
			g.leave(netip.MustParseAddr(tt.first), false)
			if _, r := g.enter(netip.MustParseAddr(tt.second), false, now); r != nil {
				t.Errorf("after the first left: %v", r)
			}
		})
	}
}

func TestGateLimitsNewConnectionsByTheMinute(t *testing.T) {
	g := testGate(1000, 1000, 6)
	a, now := netip.MustParseAddr("192.0.2.1"), time.Now()
	for i := range 6 {
		if _, r := g.enter(a, false, now); r != nil {
			t.Fatalf("connection %d: %v", i, r)
		}
		g.leave(a, false)
	}
	if reason, r := g.enter(a, false, now); r == nil || reason != "rate" {
		t.Errorf("the seventh in a minute: %v", r)
	}
	if _, r := g.enter(a, false, now.Add(11*time.Second)); r != nil {
		t.Errorf("eleven seconds later: %v", r)
	}
}

func TestGateLimitsAllButTheTrusted(t *testing.T) {
	g := testGate(2, 2, 100)
	now := time.Now()
	for i := range 2 {
		if _, r := g.enter(netip.AddrFrom4([4]byte{192, 0, byte(i), 1}), false, now); r != nil {
			t.Fatal(r)
		}
	}
	if reason, r := g.enter(netip.MustParseAddr("198.51.100.1"), false, now); r == nil || reason != "full" {
		t.Errorf("the third: %v", r)
	}
	if _, r := g.enter(netip.MustParseAddr("127.0.0.1"), true, now); r != nil {
		t.Errorf("a trusted one: %v", r)
	}
}

func TestGateForgets(t *testing.T) {
	g := testGate(1<<20, 10, 10)
	now := time.Now()
	for i := range 1000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})
		g.enter(a, false, now)
		if i%2 == 0 {
			g.leave(a, false)
		}
	}
	g.enter(netip.MustParseAddr("192.0.2.1"), false, now.Add(2*time.Minute))
	if n := len(g.networks); n != 501 {
		t.Errorf("%d networks are remembered, want those 500 with a connection and the new one", n)
	}
	for i := range maxKnown + 10 {
		g.know(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if n := len(g.known); n != maxKnown {
		t.Errorf("%d clients are known, want %d", n, maxKnown)
	}
}

func TestTooManyConnectionsAreRefusedAtOnce(t *testing.T) {
	cfg := testConfig(t)
	cfg.MaxPerNetwork = 1
	cfg.Contact = "https://example.org/help"
	r := start(t, cfg, nil)
	first := dial(t, r.addr()).hello()
	second := dial(t, r.addr())
	second.want("421 4.7.0 too many connections from your network, try again later (help: https://example.org/help)")
	if got := second.line(); got != "" {
		t.Errorf("got %q after the 421", got)
	}
	first.say("QUIT", "221")
	first.line()
	for deadline := time.Now().Add(10 * time.Second); ; { // until the server has seen the end as well
		c := dial(t, r.addr())
		if strings.HasPrefix(c.reply(), "220") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place was not given back")
		}
	}
}

// The pregreet test costs a new client two seconds and one that it knows nothing.
func TestEarlyTalkersAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		action PregreetAction
		early  string // what the client says at once
		want   string // how our second line begins
	}{
		{"polite", PregreetRefuse, "", "220 mx2.example.org"},
		{"early", PregreetRefuse, "EHLO x\r\n", "521 5.5.1"},
		{"early, marked", PregreetMark, "EHLO x\r\n", "220 mx2.example.org"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := testConfig(t)
				cfg.Pregreet = Pregreet{Wait: 2 * time.Second, Action: tt.action}
				r, dial := bubble(t, cfg, nil)
				begun := time.Now()
				c := dial()
				if got := c.line(); !strings.HasPrefix(got, "220-mx2.example.org") {
					t.Fatalf("got %q", got)
				}
				if tt.early != "" {
					c.send(tt.early)
				}
				c.want(tt.want)
				took := time.Since(begun)
				if waited := took == 2*time.Second; waited != (tt.early == "") {
					t.Errorf("greeted after %s", took)
				}
				if tt.action == PregreetMark {
					c.want("250-mx2.example.org")
					c.transaction()
					c.say("DATA", "354")
					c.say(".", "250")
					if !r.spool.all()[0].env.Peer.Early {
						t.Error("not marked")
					}
					return
				}
				if tt.early != "" {
					return
				}
				c.conn.Close()
				begun = time.Now()
				dial().hello()
				if took := time.Since(begun); took != 0 {
					t.Errorf("a client that passed waits %s again", took)
				}
			})
		})
	}
}

// Many refusals make each further one slow, and then end the connection.
func TestRefusalsAreTarpitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig(t)
		cfg.MaxRefused, cfg.Tarpit = 10, 3*time.Second
		_, dial := bubble(t, cfg, nil)
		c := dial().hello()
		c.say("MAIL FROM:<bob@example.net>", "250")
		for i := 1; i <= 10; i++ {
			begun := time.Now()
			c.say(fmt.Sprintf("RCPT TO:<guess%d@elsewhere.example>", i), "550 5.7.1")
			if took := time.Since(begun); (took == 3*time.Second) != (i >= 5) {
				t.Errorf("refusal %d took %s", i, took)
			}
		}
		c.want("421 4.7.0")
	})
}

func TestTrustedClientsAreNotCounted(t *testing.T) {
	cfg := testConfig(t)
	cfg.Trusted = DefaultConfig().Trusted
	cfg.MaxRefused, cfg.MaxErrors, cfg.MaxPerNetwork = 2, 2, 1
	r := start(t, cfg, nil)
	dial(t, r.addr()).hello()
	c := dial(t, r.addr()).hello()
	for range 2 * maxJunk {
		c.say("NOOP", "250")
		c.say("NONSENSE", "500")
	}
}

func TestIdleCommandsBecomeErrors(t *testing.T) {
	cfg := testConfig(t)
	cfg.MaxErrors = 3
	r := start(t, cfg, nil)
	c := dial(t, r.addr()).hello()
	for range maxJunk - 1 { // EHLO was the first
		c.say("NOOP", "250")
	}
	c.say("NOOP", "503")
	c.say("NOOP", "503")
	c.say("NOOP", "503")
	c.want("421 4.7.0")
}

func TestDescriptorsLimitEvenTheTrusted(t *testing.T) {
	g := newGate(&Config{MaxConnections: 1000, MaxPerNetwork: 1000, MaxPerMinute: 1000}, 20)
	a := netip.MustParseAddr("127.0.0.1")
	for i := range 10 {
		if _, refusal := g.enter(a, true, time.Now()); refusal != nil {
			t.Fatalf("client %d: %v", i, refusal)
		}
	}
	if _, refusal := g.enter(a, true, time.Now()); refusal == nil || refusal.Code != 421 {
		t.Errorf("the eleventh of twenty descriptors: %v, want 421", refusal)
	}
	g.leave(a, true)
	if _, refusal := g.enter(a, true, time.Now()); refusal != nil {
		t.Errorf("after one has left: %v", refusal)
	}
}
