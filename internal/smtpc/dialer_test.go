package smtpc_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/internal/testkit"
)

func dialer() *smtpc.Dialer { return &smtpc.Dialer{Hostname: "mx2.example.org"} }

func started(t *testing.T, set func(*testkit.Primary)) *testkit.Primary {
	t.Helper()
	p := testkit.NewPrimary(t)
	if set != nil {
		set(p)
	}
	p.Start()
	return p
}

func TestASessionReachesTheFirstMail(t *testing.T) {
	p := started(t, nil)
	c, err := dialer().Dial(t.Context(), p.Primary())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	caps := c.Caps()
	if !caps.Pipelining || !caps.Chunking || !caps.EightBitMIME || !caps.SMTPUTF8 || !caps.DSN || caps.SizeLimit != 64<<20 || caps.StartTLS {
		t.Errorf("caps %+v", caps)
	}
	if _, err := c.Mail(t.Context(), mta.Path{}); err != nil {
		t.Error(err)
	}
	if r, err := c.Rcpt(t.Context(), mta.Path{Local: "postmaster", Domain: "example.org"}); err != nil || r.Enhanced != "2.1.5" {
		t.Error(r, err)
	}
	if _, err := c.Reset(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Quit(t.Context()); err != nil {
		t.Error(err)
	}
	want := []string{"EHLO mx2.example.org", "MAIL FROM:<>", "RCPT TO:<postmaster@example.org>", "RSET", "QUIT"}
	if got := p.Commands(); !slices.Equal(got, want) {
		t.Errorf("commands %q, want %q", got, want)
	}
	var steps []smtpc.Step
	for _, f := range c.Trace() {
		steps = append(steps, f.Step)
	}
	if got := fmt.Sprint(steps); got != "[dial banner ehlo mail rcpt rset quit]" {
		t.Errorf("trace %s", got)
	}
}

func TestTheHostThatOnlyKnowsHELOIsSpokenTo(t *testing.T) {
	p := started(t, nil)
	asked := 0
	p.SetScript(func(at testkit.Point) testkit.Action {
		if at.Step == testkit.AtEHLO {
			if asked++; asked == 1 {
				return testkit.Say("502 what?")
			}
		}
		return testkit.Action{}
	})
	c, err := dialer().Dial(t.Context(), p.Primary())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Caps().ESMTP || c.Caps().Pipelining {
		t.Errorf("caps %+v after HELO", c.Caps())
	}
}

func TestSTARTTLSIsUsedWhereOffered(t *testing.T) {
	cert, _ := testkit.Certificate(t, "primary.test")
	p := started(t, func(p *testkit.Primary) { p.TLS = &tls.Config{Certificates: []tls.Certificate{cert}} })
	c, err := dialer().Dial(t.Context(), p.Primary())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.TLS() == nil || c.Caps().StartTLS || !c.Caps().Chunking {
		t.Errorf("tls %v, caps %+v", c.TLS(), c.Caps())
	}
}

func TestAFailedHandshakeGoesOnInClearWhenOpportunistic(t *testing.T) {
	for _, mode := range []smtpc.TLSMode{smtpc.TLSOpportunistic, smtpc.TLSRequire} {
		p := started(t, func(p *testkit.Primary) { p.TLS = &tls.Config{} }) // no certificate: no handshake
		c, err := dialer().DialWith(t.Context(), p.Primary(), smtpc.Options{TLS: smtpc.TLSPolicy{Mode: mode}})
		if mode == smtpc.TLSRequire {
			if e, ok := errors.AsType[*smtpc.Error](err); !ok || e.Step != smtpc.StepSTARTTLS {
				t.Errorf("require: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if c.TLS() != nil || c.TLSError() == nil || p.Conns() != 2 {
			t.Errorf("opportunistic: tls %v, why %v, sessions %d", c.TLS(), c.TLSError(), p.Conns())
		}
		c.Close()
	}
}

func TestWhatIsSaidBeforeTheHandshakeIsNotBelievedAfterIt(t *testing.T) {
	cert, _ := testkit.Certificate(t, "primary.test")
	p := started(t, func(p *testkit.Primary) { p.TLS = &tls.Config{Certificates: []tls.Certificate{cert}} })
	p.On(testkit.AtSTARTTLS, testkit.Action{Say: "220 go\r\n250 injected\r\n"})
	_, err := dialer().DialWith(t.Context(), p.Primary(), smtpc.Options{TLS: smtpc.TLSPolicy{Mode: smtpc.TLSRequire}})
	if !errors.Is(err, smtpc.ErrGarbage) {
		t.Error(err)
	}
}

func TestTheErrorNamesTheStepAndTheReply(t *testing.T) {
	steps := map[testkit.Step]smtpc.Step{testkit.AtBanner: smtpc.StepBanner, testkit.AtEHLO: smtpc.StepEHLO, testkit.AtMAIL: smtpc.StepMAIL}
	actions := map[string]testkit.Action{
		"4yz": testkit.Say("451 4.3.0 later"), "5yz": testkit.Say("554 5.7.1 no"), "421": testkit.Bye("421 4.3.2 stopping"),
		"reset": testkit.ResetNow, "silence": testkit.StallNow, "garbage": testkit.Garbage, "half": testkit.Half,
		"endless line": {Say: strings.Repeat("220 x", 2000)}, "endless reply": {Say: strings.Repeat("250-x\r\n", 200)},
		"two codes": {Say: "250-x\r\n220 y\r\n"},
	}
	for at, want := range steps {
		for name, a := range actions {
			t.Run(string(at)+" "+name, func(t *testing.T) {
				p := started(t, nil)
				p.On(at, a)
				d := dialer()
				d.Timeouts = smtpc.Timeouts{Banner: 50 * time.Millisecond, EHLO: 50 * time.Millisecond, Mail: 50 * time.Millisecond}
				c, err := d.Dial(t.Context(), p.Primary())
				if err == nil {
					_, err = c.Mail(t.Context(), mta.Path{})
					c.Close()
				}
				e, ok := errors.AsType[*smtpc.Error](err)
				if ok && want == smtpc.StepBanner && name == "reset" && e.Step == smtpc.StepDial {
					return // it can come before we know that we are connected
				}
				if !ok || e.Step != want {
					t.Fatalf("error %v, want one at %s", err, want)
				}
				if spoken := name == "4yz" || name == "5yz" || name == "421"; spoken != (e.Reply != nil) {
					t.Errorf("reply %v", e.Reply)
				}
				if _, ok := errors.AsType[*mta.Reply](err); ok {
					t.Error("the primary's reply is in the chain")
				}
			})
		}
	}
}

func TestEveryAddressIsTriedUntilOneGivesASession(t *testing.T) {
	p := started(t, nil)
	p.SetScript(func(at testkit.Point) testkit.Action {
		if at.Step == testkit.AtBanner && at.Conn == 1 {
			return testkit.Bye("421 4.3.2 not this one")
		}
		return testkit.Action{}
	})
	d := dialer()
	d.Lookup = func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")}, nil
	}
	var dialled []string
	d.Net = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialled = append(dialled, addr)
		if strings.HasPrefix(addr, "[2001") {
			return nil, errors.New("no route")
		}
		return (&net.Dialer{}).DialContext(ctx, network, p.Addr())
	}
	c, err := d.Dial(t.Context(), mta.Primary{Host: "mx1.example.org", Port: 25})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Addr().String() != "192.0.2.2:25" || len(dialled) != 3 {
		t.Errorf("session at %s after %q", c.Addr(), dialled)
	}
}

func TestAProbeStopsWhereItWants(t *testing.T) {
	p := started(t, nil)
	for stop, commands := range map[smtpc.Step]int{smtpc.StepDial: 0, smtpc.StepBanner: 0, smtpc.StepEHLO: 1} {
		before := len(p.Commands())
		c, err := dialer().DialWith(t.Context(), p.Primary(), smtpc.Options{Stop: stop})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if got := len(p.Commands()) - before; got != commands {
			t.Errorf("stop at %s: %d commands, want %d", stop, got, commands)
		}
	}
}

func TestAContextEndsAnyStep(t *testing.T) {
	p := started(t, nil)
	p.On(testkit.AtBanner, testkit.StallNow)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := dialer().Dial(ctx, p.Primary())
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
