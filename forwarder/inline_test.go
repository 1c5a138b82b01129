package forwarder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/internal/testkit"
)

// piped is a primary in a bubble: connections are pipes.
type piped struct {
	*testkit.Primary
	stopped chan struct{}
	wg      sync.WaitGroup
}

func (p *piped) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	p.wg.Go(func() { p.Session(far, p.stopped) })
	return near, nil
}

// inBubble runs a forwarder with one primary in virtual time. No warm sessions are made unless set asks for them. When body
// has returned nothing may be left open.
func inBubble(t *testing.T, set func(*piped, *world), body func(*world, *piped)) {
	synctest.Test(t, func(t *testing.T) {
		p := &piped{Primary: testkit.NewPrimary(t), stopped: make(chan struct{})}
		w := newWorld(t, "example.org", tier(p.Primary))
		w.dialer.Net = p.dial
		w.cfg.Inline.Warm = 0
		if set != nil {
			set(p, w)
		}
		w.start()
		synctest.Wait()
		body(w, p)
		w.unused()
		w.stop()
		close(p.stopped)
		p.wg.Wait()
		if n := p.Live(); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

// unused wants that no transaction holds anything.
func (w *world) unused() {
	w.t.Helper()
	for _, s := range w.f.Pools() {
		if s.Busy != 0 || s.Waiting != 0 {
			w.t.Errorf("transactions are left: %+v", s)
		}
	}
}

func letter(s string) mta.Content {
	return mta.Content{Size: int64(len(s)), Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }}
}

// envelope is one from a client. The sender's name tells the client.
func (w *world) envelope(client string) *mta.Envelope {
	env := &mta.Envelope{ID: mta.NewID(time.Now()), Received: time.Now(), From: mta.Path{Local: "s-" + strings.ReplaceAll(client, ":", "-"), Domain: "example.net"}}
	if client != "" {
		env.Peer = mta.Peer{Addr: netip.AddrPortFrom(netip.MustParseAddr(client), 4711), Helo: "mail.example.net", Proto: "ESMTP"}
	}
	return env
}

func rcpt(s string) mta.Recipient {
	p, err := mta.ParsePath(s)
	if err != nil {
		panic(err)
	}
	return mta.Recipient{Addr: p, Dest: p.DomainKey()}
}

// kind is an error in one word, or the reply that is in it.
func kind(err error) string {
	r, ok := errors.AsType[*mta.Reply](err)
	switch {
	case errors.Is(err, mta.ErrAway) && ok:
		return "away and a reply"
	case errors.Is(err, mta.ErrAway):
		return "away"
	case ok:
		return r.String()
	case errors.Is(err, ErrInDoubt):
		return "in doubt"
	}
	return "fault: " + err.Error()
}

// relay does one transaction as inbound does, and tells how it ended, and where.
func (w *world) relay(env *mta.Envelope, c mta.Content, to ...string) string {
	i, err := w.f.Inline(context.Background(), env, "example.org")
	if err != nil {
		return "begin: " + kind(err)
	}
	defer i.Abort()
	taken := 0
	last := ""
	for _, a := range to {
		r, err := i.Rcpt(context.Background(), rcpt(a))
		if err != nil {
			return "rcpt: " + kind(err)
		}
		if last = r.String(); r.Code/100 == 2 {
			taken++
		}
	}
	if taken == 0 {
		return "rcpt: " + last
	}
	r, err := i.Send(context.Background(), c)
	if err != nil {
		return "send: " + kind(err)
	}
	return "send: " + r.String()
}

const took = "send: 250 2.0.0 taken"

// troubles are what a primary can do at a step.
var troubles = map[string]testkit.Action{
	"4yz": testkit.Say("451 4.7.1 later"), "5yz": testkit.Say("550 5.7.1 no"), "421": testkit.Bye("421 4.3.2 going down"),
	"reset": testkit.ResetNow, "silence": testkit.StallNow, "garbage": testkit.Garbage, "half a reply": testkit.Half,
}

// TestEachStepOfEachTroubleHasOneEnd is the table of what the caller gets, for every way in which content is sent.
func TestEachStepOfEachTroubleHasOneEnd(t *testing.T) {
	ways := map[string][]string{
		"chunking": nil, "pipelining": {"PIPELINING", "8BITMIME"}, "lock-step": {"8BITMIME"}, "chunking in lock-step": {"CHUNKING"}, "LMTP": {"PIPELINING", "CHUNKING"},
	}
	steps := []testkit.Step{testkit.AtBanner, testkit.AtEHLO, testkit.AtMAIL, testkit.AtRCPT, testkit.AtDATA, testkit.AtBody, testkit.AtFinal}
	for way, caps := range ways {
		for _, step := range steps {
			for trouble, action := range troubles {
				for _, warm := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, %s at %s, warm %v", way, trouble, step, warm), func(t *testing.T) {
						set := func(p *piped, w *world) {
							p.Caps, p.LMTP = caps, way == "LMTP"
							w.domains = map[string]Domain{"example.org": {LMTP: p.LMTP}}
						}
						if step == testkit.AtBody && (trouble == "4yz" || trouble == "5yz") {
							action.Then = testkit.Close
						}
						chunks := caps == nil || slices.Contains(caps, "CHUNKING")
						inBubble(t, set, func(w *world, p *piped) {
							troubled(t, w, p, step, action, warm, wanted(step, trouble, warm, chunks))
						})
					})
				}
			}
		}
	}
}

// wanted is what the caller gets.
func wanted(step testkit.Step, trouble string, warm, chunks bool) string {
	said := map[string]string{"4yz": "451 4.7.1 later", "5yz": "550 5.7.1 no"}[trouble]
	switch {
	case warm && (step == testkit.AtBanner || step == testkit.AtEHLO), chunks && step == testkit.AtDATA:
		return "taken"
	case step == testkit.AtBanner || step == testkit.AtEHLO:
		return "begin: away"
	case step == testkit.AtMAIL && trouble == "5yz":
		return "rcpt: 451 4.3.0 the recipient's server does not take mail from us now, please try again later"
	case (step == testkit.AtMAIL || step == testkit.AtRCPT) && said != "":
		return "rcpt: " + said
	case step == testkit.AtMAIL || step == testkit.AtRCPT:
		return "rcpt: away"
	case said != "":
		return "send: " + said
	case step == testkit.AtFinal:
		return "send: in doubt"
	}
	return "send: away"
}

func troubled(t *testing.T, w *world, p *piped, step testkit.Step, action testkit.Action, warm bool, want string) {
	content := letter(strings.Repeat("a line of the content\r\n", 10_000)) // more than any buffer on the way
	if warm {
		if got := w.relay(w.envelope(""), letter("first\r\n"), "bob@example.org"); !strings.HasPrefix(got, "send: 250") {
			t.Fatalf("the first: %s", got)
		}
		synctest.Wait()
	}
	before := p.Accepted()
	p.On(step, action)
	start := time.Now()
	got := w.relay(w.envelope(""), content, "bob@example.org")
	if want == "taken" {
		want = strings.Split(got, " ")[0] + " 250" + strings.TrimPrefix(got, "send: 250")
		before++
	}
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if took := time.Since(start); took > 3*time.Minute {
		t.Errorf("took %s", took)
	}
	if p.Accepted() != before {
		t.Errorf("%d messages were taken, want %d", p.Accepted(), before)
	}
	if hurt := w.gates.troubles(p.Primary.Primary().String()) > 0; hurt != (strings.HasSuffix(want, "away") || strings.HasSuffix(want, "doubt")) {
		t.Errorf("the health was told of trouble: %v", hurt)
	}
	synctest.Wait()
	w.unused()
	p.SetScript(nil)
	time.Sleep(downFor + time.Second)
	if got := w.relay(w.envelope(""), content, "bob@example.org"); !strings.HasPrefix(got, "send: 250") {
		t.Errorf("after the trouble: %s", got)
	}
}

func TestASessionThatThePrimaryEndedIsReplacedUnseen(t *testing.T) {
	for name, action := range troubles {
		if name == "4yz" || name == "5yz" {
			continue
		}
		for _, step := range []testkit.Step{testkit.AtMAIL, testkit.AtRCPT} {
			t.Run(fmt.Sprintf("%s at %s", name, step), func(t *testing.T) {
				inBubble(t, nil, func(w *world, p *piped) {
					p.SetScript(func(at testkit.Point) testkit.Action {
						if at.Conn == 1 && at.Message == 2 && at.Step == step {
							return action
						}
						return testkit.Action{}
					})
					for n := range 3 {
						if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); got != took {
							t.Errorf("%d: %s", n, got)
						}
						synctest.Wait()
					}
					if p.Conns() != 2 || p.Accepted() != 3 {
						t.Errorf("%d sessions, %d messages", p.Conns(), p.Accepted())
					}
					if n := w.gates.troubles(p.Primary.Primary().String()); n != 0 {
						t.Errorf("the health was told of %d troubles", n)
					}
				})
			})
		}
	}
}

func TestARecipientThatWasAnsweredIsNotAskedAgainUnseen(t *testing.T) {
	inBubble(t, nil, func(w *world, p *piped) {
		w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org")
		synctest.Wait()
		p.SetScript(func(at testkit.Point) testkit.Action {
			if at.Conn == 1 && at.Rcpt == 1 {
				return testkit.CloseNow
			}
			return testkit.Action{}
		})
		if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org", "eve@example.org"); got != "rcpt: away" {
			t.Error(got)
		}
	})
}

func TestASessionThatDiedWhileItWaitedIsGone(t *testing.T) {
	inBubble(t, nil, func(w *world, p *piped) {
		w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org")
		synctest.Wait()
		if s := w.f.Pools(); s[0].Warm != 1 {
			t.Fatalf("%+v", s)
		}
		stopped := p.stopped
		p.stopped = make(chan struct{})
		close(stopped)
		p.Primary.Stop()
		synctest.Wait()
		if s := w.f.Pools(); s[0].Warm != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestSessionsAreKeptReadyOnlyWhileMailGoesInline(t *testing.T) {
	inBubble(t, func(_ *piped, w *world) { w.cfg.Inline.Warm = 4 }, func(w *world, p *piped) {
		for range 10 {
			if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); got != took {
				t.Fatal(got)
			}
			time.Sleep(20 * time.Second)
			synctest.Wait()
			if s := w.f.Pools(); s[0].Warm < 4 || s[0].Warm > 5 {
				t.Errorf("%+v", s)
			}
		}
		time.Sleep(2 * w.cfg.Inline.Idle)
		if s := w.f.Pools(); s[0].Warm != 0 || p.Live() != 0 {
			t.Errorf("%+v, %d live", s, p.Live())
		}
		time.Sleep(time.Hour)
		if s := w.f.Pools(); len(s) > 1 || len(s) == 1 && s[0].Warm != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestTransactionsWaitForTheirTurnAndNotForEver(t *testing.T) {
	inBubble(t, func(_ *piped, w *world) { w.cfg.Inline.Sessions = 2 }, func(w *world, p *piped) {
		open := func() *Inline {
			i, err := w.f.Inline(w.t.Context(), w.envelope(""), "example.org")
			if err != nil {
				t.Fatal(err)
			}
			return i
		}
		a, b := open(), open()
		start := time.Now()
		if _, err := w.f.Inline(w.t.Context(), w.envelope(""), "example.org"); kind(err) != crowded.String() {
			t.Errorf("exhausted: %v", err)
		}
		if waited := time.Since(start); waited != w.cfg.Inline.Wait {
			t.Errorf("waited %s", waited)
		}
		var later sync.WaitGroup
		for range 5 {
			later.Go(func() {
				if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); got != took {
					t.Error(got)
				}
			})
		}
		time.Sleep(time.Second)
		a.Abort()
		a.Abort()
		b.Abort()
		later.Wait()
		synctest.Wait()
		if p.Live() > 2 {
			t.Errorf("%d sessions", p.Live())
		}
		if !w.log.has("inline sessions exhausted") {
			t.Error("nothing is in the log")
		}
	})
}

func TestAWaiterWhoseSenderHangsUpLeavesTheQueue(t *testing.T) {
	inBubble(t, func(_ *piped, w *world) { w.cfg.Inline.Sessions = 1; w.cfg.Inline.Wait = time.Minute }, func(w *world, _ *piped) {
		a, err := w.f.Inline(w.t.Context(), w.envelope(""), "example.org")
		if err != nil {
			t.Fatal(err)
		}
		ctx, hangUp := context.WithTimeout(w.t.Context(), time.Second)
		defer hangUp()
		if _, err := w.f.Inline(ctx, w.envelope(""), "example.org"); err == nil || errors.Is(err, mta.ErrAway) {
			t.Error(err)
		}
		a.Abort()
		if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); got != took {
			t.Error(got)
		}
	})
}

func TestRefusedRecipientsLeaveASessionUsable(t *testing.T) {
	inBubble(t, nil, func(w *world, p *piped) {
		p.SetScript(func(at testkit.Point) testkit.Action {
			if at.Step == testkit.AtRCPT && strings.HasPrefix(at.Arg, "nobody") {
				return testkit.Say("550 5.1.1 <nobody@example.org>: Recipient address rejected: User unknown")
			}
			return testkit.Action{}
		})
		for range 5 {
			if got := w.relay(w.envelope(""), letter("x\r\n"), "nobody@example.org"); got != "rcpt: 550 5.1.1 <nobody@example.org>: Recipient address rejected: User unknown" {
				t.Error(got)
			}
			synctest.Wait() // its RSET
			if got := w.relay(w.envelope(""), letter("x\r\n"), "nobody@example.org", "bob@example.org"); got != took {
				t.Error(got)
			}
			synctest.Wait()
		}
		if p.Conns() != 1 {
			t.Errorf("%d sessions", p.Conns())
		}
		if n := w.gates.troubles(p.Primary.Primary().String()); n != 0 || w.f.Broken("example.org") {
			t.Errorf("%d troubles, breaker %v", n, w.f.Broken("example.org"))
		}
	})
}

func TestAnLMTPTransactionHasOneRecipient(t *testing.T) {
	set := func(p *piped, w *world) {
		p.LMTP = true
		w.domains = map[string]Domain{"example.org": {LMTP: true}}
	}
	inBubble(t, set, func(w *world, p *piped) {
		i, err := w.f.Inline(w.t.Context(), w.envelope(""), "example.org")
		if err != nil {
			t.Fatal(err)
		}
		if r, err := i.Rcpt(w.t.Context(), rcpt("bob@example.org")); err != nil || r.Code != 250 {
			t.Fatal(r, err)
		}
		if _, err := i.Rcpt(w.t.Context(), rcpt("eve@example.org")); kind(err)[:9] != "452 4.5.3" {
			t.Error(err)
		}
		if r, err := i.Send(w.t.Context(), letter("x\r\n")); err != nil || r.Code != 250 {
			t.Error(r, err)
		}
		if m := p.Messages(); len(m) != 1 || len(m[0].Rcpts) != 1 {
			t.Errorf("%+v", m)
		}
	})
}

func TestARefusalOfMAILIsPassedOnOnlyIfThePrimarySawTheClient(t *testing.T) {
	for _, tt := range []struct {
		xclient bool
		say     string
		want    string
		alarms  int
	}{
		{true, "550 5.7.1 go away", "rcpt: 550 5.7.1 go away", 0},
		{false, "550 5.7.1 go away", "rcpt: 451 4.3.0", 1},
		{true, "503 5.5.1 not now", "rcpt: 451 4.3.0", 1},
		{false, "550 5.1.8 no such domain", "rcpt: 451 4.3.0", 0},
		{false, "552 5.3.4 too big", "rcpt: 552 5.3.4 too big", 0},
		{false, "450 4.7.1 grey", "rcpt: 450 4.7.1 grey", 0},
	} {
		t.Run(fmt.Sprint(tt.xclient, tt.say), func(t *testing.T) {
			inBubble(t, func(p *piped, w *world) { p.XCLIENT = tt.xclient }, func(w *world, p *piped) {
				var mu sync.Mutex
				events := map[mta.Level]int{}
				w.f.events = func(e mta.Event) {
					mu.Lock()
					defer mu.Unlock()
					if e.Kind == mta.EventNotDelivered && e.Subject == p.Primary.Primary().String() {
						events[e.Level]++
					}
				}
				p.On(testkit.AtMAIL, testkit.Say(tt.say))
				for range 3 {
					if got := w.relay(w.envelope("192.0.2.10"), letter("x\r\n"), "bob@example.org", "eve@example.org"); !strings.HasPrefix(got, tt.want) {
						t.Errorf("got %q, want %q", got, tt.want)
					}
				}
				p.SetScript(nil)
				for range 2 {
					if got := w.relay(w.envelope("192.0.2.10"), letter("x\r\n"), "bob@example.org"); got != took {
						t.Error(got)
					}
				}
				if events[mta.Alarm] != tt.alarms || events[mta.Over] != tt.alarms {
					t.Errorf("events: %v", events)
				}
			})
		})
	}
}

func TestAClientThatThePrimaryTurnsAwayDoesNotGetInUnderOurName(t *testing.T) {
	for _, tt := range []struct {
		step testkit.Step
		say  testkit.Action
		want string
	}{
		{testkit.AtXCLIENT, testkit.Say("554 5.7.1 you are listed"), "begin: 554 5.7.1 you are listed"},
		{testkit.AtXCLIENT, testkit.Say("451 4.7.1 milter is tired"), "begin: 451 4.7.1 milter is tired"},
		{testkit.AtXCLIENT, testkit.Bye("421 4.7.0 too many connections from you"), "begin: 451 4.7.0 too many connections from you"},
		{testkit.AtXCLIENT, testkit.Bye("421 4.3.2 shutting down"), "begin: away"},
		{testkit.AtXCLIENT, testkit.Say("501 5.5.4 bad address family"), took},
		{testkit.AtXCLIENT, testkit.Say("550 5.7.0 insufficient authorization"), took},
	} {
		t.Run(string(tt.step)+" "+tt.say.Say, func(t *testing.T) {
			inBubble(t, func(p *piped, _ *world) { p.XCLIENT = true }, func(w *world, p *piped) {
				p.On(tt.step, tt.say)
				if got := w.relay(w.envelope("192.0.2.10"), letter("x\r\n"), "bob@example.org"); got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
				if told := w.gates.troubles(p.Primary.Primary().String()) > 0; told != (tt.want == "begin: away") {
					t.Errorf("the health was told: %v", told)
				}
			})
		})
	}
}

func TestAPrimaryThatIsSilentToOneClientIsThereForTheOthers(t *testing.T) {
	for _, others := range []bool{true, false} {
		inBubble(t, func(p *piped, _ *world) { p.XCLIENT = true }, func(w *world, p *piped) {
			p.SetScript(func(at testkit.Point) testkit.Action {
				if at.Step == testkit.AtXCLIENT && strings.Contains(at.Arg, "ADDR=198.51.100.66") {
					return testkit.StallNow
				}
				return testkit.Action{}
			})
			slow := make(chan string)
			go func() { slow <- w.relay(w.envelope("198.51.100.66"), letter("x\r\n"), "bob@example.org") }()
			time.Sleep(time.Second)
			want := "begin: away" // nobody knows better than that it answers nobody
			if others {
				want = took
				if got := w.relay(w.envelope("198.51.100.1"), letter("x\r\n"), "bob@example.org"); got != took {
					t.Error(got)
				}
			}
			if got := <-slow; got != "begin: away" {
				t.Errorf("the one that it is silent to: %q", got)
			}
			if got := w.relay(w.envelope("198.51.100.2"), letter("x\r\n"), "bob@example.org"); got != want {
				t.Errorf("others were answered meanwhile: %v; got %q, want %q", others, got, want)
			}
			if n := w.gates.troubles(p.Primary.Primary().String()); n == 0 {
				t.Error("the health was not told")
			}
			close(p.stopped)
			p.wg.Wait()
			p.stopped = make(chan struct{})
		})
	}
}

func TestAClientForWhomThePrimaryStallsUsesUpNoWaitingSessions(t *testing.T) {
	set := func(p *piped, w *world) { p.XCLIENT = true; w.cfg.Inline.Warm = 4 }
	inBubble(t, set, func(w *world, p *piped) {
		if got := w.relay(w.envelope("198.51.100.1"), letter("x\r\n"), "bob@example.org"); got != took {
			t.Error(got)
		}
		synctest.Wait()
		var stalled atomic.Int32
		p.SetScript(func(at testkit.Point) testkit.Action {
			if at.Step == testkit.AtXCLIENT && strings.Contains(at.Arg, "ADDR=198.51.100.66") {
				stalled.Add(1)
				return testkit.StallNow
			}
			return testkit.Action{}
		})
		begun := time.Now()
		if got := w.relay(w.envelope("198.51.100.66"), letter("x\r\n"), "bob@example.org"); got != "begin: away" {
			t.Error(got)
		}
		if took, n := time.Since(begun), stalled.Load(); took > 65*time.Second || n > 2 {
			t.Errorf("its transaction took %v, and %d sessions", took, n)
		}
		close(p.stopped)
		p.wg.Wait()
		p.stopped = make(chan struct{})
	})
}

func TestAWarmSessionThatEndsWhenItIsTakenIsReplacedUnseen(t *testing.T) {
	for _, action := range []testkit.Action{testkit.Bye("421 4.4.2 timeout"), testkit.ResetNow, testkit.Garbage} {
		set := func(p *piped, w *world) { p.XCLIENT = true; w.cfg.Inline.Warm = 2 }
		inBubble(t, set, func(w *world, p *piped) {
			if got := w.relay(w.envelope("198.51.100.1"), letter("x\r\n"), "bob@example.org"); got != took {
				t.Error(got)
			}
			synctest.Wait()
			made := p.Conns()
			p.SetScript(func(at testkit.Point) testkit.Action {
				if at.Step == testkit.AtXCLIENT && at.Conn <= made {
					return action
				}
				return testkit.Action{}
			})
			if got := w.relay(w.envelope("198.51.100.2"), letter("x\r\n"), "bob@example.org"); got != took || made != 3 {
				t.Error(got, made)
			}
			if n := w.gates.troubles(p.Primary.Primary().String()); n != 0 {
				t.Errorf("the health was told of %d troubles", n)
			}
		})
	}
}

func TestAPrimaryThatIsCrowdedIsNotAway(t *testing.T) {
	inBubble(t, nil, func(w *world, p *piped) {
		i, err := w.f.Inline(w.t.Context(), w.envelope(""), "example.org")
		if err != nil {
			t.Fatal(err)
		}
		p.On(testkit.AtBanner, testkit.Bye("421 too many at once"))
		if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); got != "begin: 451 too many at once" {
			t.Error(got)
		}
		p.SetScript(nil)
		if r, err := i.Rcpt(w.t.Context(), rcpt("bob@example.org")); err != nil || r.Code != 250 {
			t.Error(r, err)
		}
		i.l.conn.Close()
		i.Abort()
		p.On(testkit.AtBanner, testkit.Bye("421 4.7.0 too many connections"))
		if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); got != "begin: 451 4.7.0 too many connections" {
			t.Error(got)
		}
		p.On(testkit.AtRCPT, testkit.Bye("421 4.7.0 too many errors"))
		if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); got != "rcpt: 451 4.7.0 too many errors" {
			t.Error(got)
		}
		if n := w.gates.troubles(p.Primary.Primary().String()); n != 0 {
			t.Errorf("the health was told of %d troubles", n)
		}
	})
}

func TestWhatThePrimaryCannotTakeIsRefused(t *testing.T) {
	for _, tt := range []struct {
		caps   []string
		params mta.Params
		body   string
		want   string
	}{
		{[]string{"PIPELINING"}, mta.Params{SMTPUTF8: true}, "x\r\n", "begin: 550 5.6.7"},
		{[]string{"PIPELINING"}, mta.Params{RequireTLS: true}, "x\r\n", "begin: 550 5.7.30"},
		{[]string{"PIPELINING"}, mta.Params{Body: "8BITMIME"}, "x\r\n", took},
		{[]string{"PIPELINING"}, mta.Params{Body: "8BITMIME"}, "\xc3\xa4\r\n", "send: 554 5.6.3"},
		{nil, mta.Params{}, "bare\nline\r\n", "send: fault"},
	} {
		inBubble(t, func(p *piped, _ *world) { p.Caps = tt.caps }, func(w *world, p *piped) {
			env := w.envelope("")
			env.Params = tt.params
			if got := w.relay(env, letter(tt.body), "bob@example.org"); !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			synctest.Wait()
			if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); got != took {
				t.Error(got)
			}
			if n := w.gates.troubles(p.Primary.Primary().String()); n != 0 {
				t.Errorf("the health was told of %d troubles", n)
			}
		})
	}
}

func TestTheParametersReachThePrimary(t *testing.T) {
	inBubble(t, nil, func(w *world, p *piped) {
		env := w.envelope("")
		env.Params = mta.Params{Body: "8BITMIME", Ret: "HDRS", EnvID: "a b"}
		i, err := w.f.Inline(w.t.Context(), env, "example.org")
		if err != nil {
			t.Fatal(err)
		}
		r := rcpt("bob@example.org")
		r.Notify, r.ORcpt = mta.NotifySuccess|mta.NotifyFailure, "rfc822;bob+x@example.org"
		i.Rcpt(w.t.Context(), r)
		if r, err := i.Send(w.t.Context(), letter("..dots\r\n.\r\n")); err != nil || r.Code != 250 {
			t.Fatal(r, err)
		}
		m := p.Messages()[0]
		if m.Params != "BODY=8BITMIME RET=HDRS ENVID=a+20b" || m.RParams[0] != "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;bob+2Bx@example.org" || string(m.Content) != "..dots\r\n.\r\n" {
			t.Errorf("%+v", m)
		}
	})
}

func TestAStopLetsATransactionEndAndCutsOneThatDoesNot(t *testing.T) {
	inBubble(t, nil, func(w *world, p *piped) {
		good, err := w.f.Inline(w.t.Context(), w.envelope(""), "example.org")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := good.Rcpt(w.t.Context(), rcpt("bob@example.org")); err != nil {
			t.Fatal(err)
		}
		stuck, err := w.f.Inline(w.t.Context(), w.envelope(""), "example.org")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stuck.Rcpt(w.t.Context(), rcpt("bob@example.org")); err != nil {
			t.Fatal(err)
		}
		stopped := make(chan struct{})
		stop := w.stop
		go func() { stop(); close(stopped) }()
		w.stop = func() { <-stopped }
		time.Sleep(w.cfg.ShutdownGrace / 2)
		if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); got != "begin: "+stopping.String() {
			t.Error(got)
		}
		if r, err := good.Send(w.t.Context(), letter("x\r\n")); err != nil || r.Code != 250 {
			t.Error(r, err)
		}
		<-stopped
		if _, err := stuck.Send(w.t.Context(), letter("x\r\n")); kind(err) != stopping.String() {
			t.Error(err)
		}
	})
}

func TestASenderThatHangsUpIsNoTroubleOfThePrimary(t *testing.T) {
	inBubble(t, nil, func(w *world, p *piped) {
		p.On(testkit.AtRCPT, testkit.StallNow)
		i, err := w.f.Inline(w.t.Context(), w.envelope(""), "example.org")
		if err != nil {
			t.Fatal(err)
		}
		ctx, hangUp := context.WithTimeout(w.t.Context(), time.Second)
		defer hangUp()
		if _, err := i.Rcpt(ctx, rcpt("bob@example.org")); err == nil || errors.Is(err, mta.ErrAway) {
			t.Error(err)
		}
		i.Abort()
		if n := w.gates.troubles(p.Primary.Primary().String()); n != 0 {
			t.Errorf("the health was told of %d troubles", n)
		}
	})
}

func TestTheNextPrimaryIsTakenWhenOneCannotBeReached(t *testing.T) {
	first, second, backup := started(t, nil), started(t, nil), started(t, nil)
	w := newWorld(t, "example.org", tier(first, second), tier(backup))
	w.cfg.Inline.Warm = 0
	w.start()
	relay := func(want string) {
		t.Helper()
		if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	first.Stop()
	for range 8 {
		relay(took)
	}
	if backup.Conns() != 0 || second.Accepted() != 8 {
		t.Errorf("backup %d, second %d", backup.Conns(), second.Accepted())
	}
	w.gates.set(second.Primary().String(), false)
	relay(took)
	if backup.Accepted() != 1 {
		t.Error("the second tier was not asked")
	}
	w.gates.set(backup.Primary().String(), false)
	relay("begin: away")
	if w.gates.troubles(first.Primary().String()) == 0 {
		t.Error("the health was not told")
	}
	if got, err := w.f.Inline(w.t.Context(), w.envelope(""), "example.com"); got != nil || !errors.Is(err, mta.ErrAway) {
		t.Error("a domain without a route is away", err)
	}
	w.unused()
}

func TestAPrimaryIsChosenThatCanTakeTheMessage(t *testing.T) {
	poor, rich := started(t, func(p *testkit.Primary) { p.Caps = []string{"PIPELINING"} }), started(t, nil)
	w := newWorld(t, "example.org", tier(poor), tier(rich))
	w.start()
	for n := range 3 {
		env := w.envelope("")
		env.Params.SMTPUTF8 = true
		if got := w.relay(env, letter("x\r\n"), "jürgen@example.org"); got != took {
			t.Error(got)
		}
		if rich.Accepted() != n+1 {
			t.Error("the other one took it")
		}
	}
	w.gates.set(rich.Primary().String(), false)
	env := w.envelope("")
	env.Params.SMTPUTF8 = true
	if got := w.relay(env, letter("x\r\n"), "bob@example.org"); !strings.HasPrefix(got, "begin: 450 4.6.7") {
		t.Error(got)
	}
}

// TestNoSessionServesTwoClients sends for many clients at once and holds what the primary was told against the sender.
func TestNoSessionServesTwoClients(t *testing.T) {
	for _, identity := range []string{"xclient", "proxy_v2", "headers"} {
		t.Run(identity, func(t *testing.T) {
			p := started(t, func(p *testkit.Primary) { p.XCLIENT, p.PROXY = identity != "proxy_v2", identity == "proxy_v2" })
			w := newWorld(t, "example.org", tier(p))
			w.domains = map[string]Domain{"example.org": {ClientIdentity: identity}}
			w.cfg.Inline.Sessions = 8
			w.cfg.Inline.Wait = time.Minute
			w.start()
			var all sync.WaitGroup
			const clients, each = 12, 25
			for n := range clients {
				all.Go(func() {
					client := fmt.Sprintf("198.51.100.%d", n+1)
					if n == 0 {
						client = "10.0.0.1" // who is never told of
					}
					for range each {
						if got := w.relay(w.envelope(client), letter("x\r\n"), "bob@example.org"); got != took {
							t.Error(got)
						}
					}
				})
			}
			all.Wait()
			sessions := map[int]map[string]bool{}
			for _, m := range p.Messages() {
				client := strings.TrimSuffix(strings.TrimPrefix(m.From, "s-"), "@example.net")
				switch told := told(m.XClient); {
				case identity == "headers" && told != "", identity != "headers" && client != "10.0.0.1" && told != client, client == "10.0.0.1" && told != "":
					t.Fatalf("mail of %s under %q", client, m.XClient)
				}
				if sessions[m.Conn] == nil {
					sessions[m.Conn] = map[string]bool{}
				}
				if client != "10.0.0.1" { // a session of nobody may become somebody's
					sessions[m.Conn][client] = true
				}
			}
			if identity != "headers" {
				for _, s := range sessions {
					if len(s) > 1 {
						t.Errorf("one session for %v", slices.Collect(maps.Keys(s)))
					}
				}
			}
			if p.Accepted() != clients*each {
				t.Errorf("%d messages", p.Accepted())
			}
			w.unused()
			w.stop()
			p.WaitFor(w.t.Context(), "no sessions", func(p *testkit.Primary) bool { return p.Live() == 0 })
		})
	}
}

// told is the client's address that a primary was told.
func told(xclient string) string {
	if rest, ok := strings.CutPrefix(xclient, "PROXY "); ok {
		if a, err := netip.ParseAddrPort(rest); err == nil {
			return a.Addr().String()
		}
		return ""
	}
	_, addr, _ := strings.Cut(xclient, "ADDR=")
	addr, _, _ = strings.Cut(addr, " ")
	return addr
}

func TestManyClientsLeaveRoomForSessionsThatAnybodyCanUse(t *testing.T) {
	set := func(p *piped, w *world) {
		p.XCLIENT = true
		w.cfg.Inline.Sessions, w.cfg.Inline.Warm = 8, 2
	}
	inBubble(t, set, func(w *world, p *piped) {
		for n := range 40 {
			w.relay(w.envelope(fmt.Sprintf("192.0.2.%d", n+1)), letter("x\r\n"), "bob@example.org")
			synctest.Wait()
			if s := w.f.Pools()[0]; s.Warm < 2 || s.Own > 2 || p.Live() > 8 {
				t.Fatalf("after %d clients: %+v, %d sessions", n+1, s, p.Live())
			}
		}
	})
}

func TestAClientsSessionServesItsNextMessage(t *testing.T) {
	inBubble(t, func(p *piped, _ *world) { p.XCLIENT = true }, func(w *world, p *piped) {
		for range 3 {
			w.relay(w.envelope("192.0.2.10"), letter("x\r\n"), "bob@example.org")
			synctest.Wait()
			time.Sleep(time.Second)
		}
		if p.Conns() != 1 || w.f.Pools()[0].Own != 1 {
			t.Errorf("%d sessions, %+v", p.Conns(), w.f.Pools())
		}
		time.Sleep(2 * ownFor)
		if p.Live() != 0 || w.f.Pools()[0].Own != 0 {
			t.Errorf("it was kept: %+v", w.f.Pools())
		}
	})
}

func TestAWarmTransactionCostsTwoRoundTrips(t *testing.T) {
	const rtt = 100 * time.Millisecond
	p := started(t, nil)
	d := testkit.NewDelay(t, p.Addr(), rtt)
	w := newWorld(t, "example.org", at(t, d.Addr()))
	w.start()
	w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org")
	w.eventually("warm sessions", func() bool { return w.f.Pools()[0].Warm > 3 })
	best := time.Hour
	for range 5 {
		start := time.Now()
		if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); got != took {
			t.Fatal(got)
		}
		best = min(best, time.Since(start))
	}
	if best > rtt*27/10 {
		t.Errorf("took %s", best)
	}
}

func TestTheBreakerOfAnyPrimaryIsADomainsOwn(t *testing.T) {
	p := started(t, nil)
	w := newWorld(t, "example.org", tier(p))
	w.start()
	if w.f.Broken("example.org") || w.f.Broken("example.com") {
		t.Error("broken from the start")
	}
	h := w.f.host(p.Primary().String())
	h.mu.Lock()
	h.tripped = time.Now()
	h.mu.Unlock()
	if !w.f.Broken("example.org") {
		t.Error("it is open")
	}
	if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); got != took {
		t.Error("inline does not mind:", got)
	}
}

func TestNotToReadOurOwnFilesIsOurOwnFault(t *testing.T) {
	p := started(t, nil)
	w := newWorld(t, "example.org", tier(p))
	w.domains = map[string]Domain{"example.org": {TLS: "verify", TLSCA: t.TempDir() + "/none"}}
	w.start()
	if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); !strings.HasPrefix(got, "begin: fault") || p.Conns() != 0 {
		t.Error(got)
	}
	w.unused()
}

func TestTLSThatIsDemandedIsHadInlineToo(t *testing.T) {
	p := started(t, nil)
	w := newWorld(t, "example.org", tier(p))
	w.domains = map[string]Domain{"example.org": {TLS: "require"}}
	w.start()
	if got := w.relay(w.envelope(""), letter("x\r\n"), "bob@example.org"); got != "begin: away" {
		t.Error(got)
	}
	if !errors.Is(w.gates.last(p.Primary().String()), smtpc.ErrNoTLS) {
		t.Error("the health was not told why")
	}
}

func (g *gates) last(primary string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if o := g.observed[primary]; len(o) > 0 {
		return o[len(o)-1]
	}
	return nil
}

func TestInlineSettingsThatMakeNoSenseAreFaults(t *testing.T) {
	for key, set := range map[string]func(*InlineConfig){
		"inline.sessions":      func(c *InlineConfig) { c.Sessions, c.Warm = 0, 0 },
		"inline.warm":          func(c *InlineConfig) { c.Warm = 1001 },
		"inline.idle":          func(c *InlineConfig) { c.Idle = 5 * time.Minute },
		"inline.wait":          func(c *InlineConfig) { c.Wait = -1 },
		"inline.final_timeout": func(c *InlineConfig) { c.FinalTimeout = 10 * time.Minute },
	} {
		c := DefaultConfig()
		if f := c.Validate(); len(f) > 0 {
			t.Fatal(f)
		}
		set(&c.Inline)
		if f := c.Validate(); len(f) != 1 || f[0].Key != key {
			t.Errorf("%s: %v", key, f)
		}
	}
}
