package smtpc_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/internal/testkit"
)

// queue is a Source of a fixed list.
type queue struct {
	mu      sync.Mutex
	left    []*smtpc.Message
	results map[*smtpc.Message]smtpc.Result
}

func (q *queue) Next(context.Context, bool) *smtpc.Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.left) == 0 {
		return nil
	}
	m := q.left[0]
	q.left = q.left[1:]
	return m
}

func (q *queue) Done(m *smtpc.Message, r smtpc.Result) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.results == nil {
		q.results = map[*smtpc.Message]smtpc.Result{}
	}
	if _, twice := q.results[m]; twice {
		panic("Done twice")
	}
	q.results[m] = r
}

func path(t testing.TB, s string) mta.Path {
	t.Helper()
	p, err := mta.ParsePath(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func message(t testing.TB, n int, content string, rcpts ...string) *smtpc.Message {
	m := &smtpc.Message{From: path(t, fmt.Sprintf("s%d@example.net", n)), Size: int64(len(content)), Content: []byte(content)}
	if len(rcpts) == 0 {
		rcpts = []string{fmt.Sprintf("r%d@example.org", n)}
	}
	for _, r := range rcpts {
		m.Rcpts = append(m.Rcpts, mta.Recipient{Addr: path(t, r), Dest: "example.org"})
	}
	return m
}

var methods = []smtpc.Method{smtpc.LockStep, smtpc.Grouped, smtpc.Continuous}

func stream(t testing.TB, p *testkit.Primary, m smtpc.Method, lmtp bool, msgs ...*smtpc.Message) (*queue, error) {
	t.Helper()
	d := dialer()
	c, err := d.DialWith(t.Context(), p.Primary(), smtpc.Options{LMTP: lmtp})
	if err != nil {
		t.Fatal(err)
	}
	q := &queue{left: msgs}
	freed := make([]int, len(msgs))
	for i, m := range msgs {
		m.Free = func() { freed[i]++ }
	}
	defer func() {
		for i, n := range freed {
			if _, ended := q.results[msgs[i]]; ended && n != 1 {
				t.Errorf("the content of message %d was given back %d times", i, n)
			}
		}
	}()
	err = c.Stream(t.Context(), q, smtpc.StreamOptions{Method: m})
	return q, err
}

func contents() []string {
	r := rand.New(rand.NewPCG(1, 2))
	big := make([]byte, 300<<10)
	for i := range big {
		big[i] = byte('a' + r.IntN(26))
		if i%78 == 77 {
			big[i-1], big[i] = '\r', '\n'
		}
	}
	return []string{"", "x", "\r\n", ".\r\n", "..\r\n.", "a\r\n.\r\nb\r\n", "Subject: x\r\n\r\n.dot\r\n..two\r\nno end", string(big), "\r\n\r\n.\r\n\r\n"}
}

func TestEveryContentArrivesAsItIs(t *testing.T) {
	for _, lmtp := range []bool{false, true} {
		for _, m := range methods {
			t.Run(fmt.Sprint(m, lmtp), func(t *testing.T) {
				p := started(t, func(p *testkit.Primary) { p.LMTP = lmtp })
				var msgs []*smtpc.Message
				for i, c := range contents() {
					msgs = append(msgs, message(t, i, c))
					streamed := message(t, 100+i, c)
					streamed.Content = nil
					streamed.Open = func() (io.ReadCloser, error) { return io.NopCloser(dribbling(c)), nil }
					msgs = append(msgs, streamed)
				}
				q, err := stream(t, p, m, lmtp, msgs...)
				if err != nil {
					t.Fatal(err)
				}
				got := map[string]string{}
				for _, m := range p.Messages() {
					got[m.From] = string(m.Content)
				}
				for i, c := range contents() {
					for _, n := range []int{i, 100 + i} {
						want := c
						if m != smtpc.Continuous && c != "" && !strings.HasSuffix(c, "\r\n") {
							want += "\r\n" // DATA can't do without
						}
						if g, ok := got[fmt.Sprintf("s%d@example.net", n)]; !ok || g != want {
							t.Errorf("message %d: %.60q, want %.60q", n, g, want)
						}
					}
				}
				for _, r := range q.results {
					if r.Fate != smtpc.Answered || r.Rcpts[0].Reply.Code != 250 || r.Rcpts[0].Step != smtpc.StepFinal {
						t.Errorf("result %+v", r)
					}
				}
			})
		}
	}
}

// dribbling gives odd pieces.
func dribbling(s string) io.Reader { return &dribble{s: s} }

type dribble struct {
	s string
	n int
}

func (d *dribble) Read(b []byte) (int, error) {
	if d.s == "" {
		return 0, io.EOF
	}
	d.n = d.n%7919 + 1
	n := copy(b[:min(len(b), d.n)], d.s)
	d.s = d.s[n:]
	return n, nil
}

func TestEachRecipientHasItsReply(t *testing.T) {
	for _, lmtp := range []bool{false, true} {
		for _, m := range methods {
			t.Run(fmt.Sprint(m, lmtp), func(t *testing.T) {
				p := started(t, func(p *testkit.Primary) { p.LMTP = lmtp })
				p.SetScript(func(at testkit.Point) testkit.Action {
					switch {
					case at.Step == testkit.AtMAIL && at.Arg == "s1@example.net":
						return testkit.Say("451 4.7.1 not you")
					case at.Step == testkit.AtRCPT && strings.HasPrefix(at.Arg, "no"):
						return testkit.Say("550 5.1.1 nobody")
					case at.Step == testkit.AtRCPT && strings.HasPrefix(at.Arg, "later"):
						return testkit.Say("450 4.2.0 later")
					case at.Step == testkit.AtDATA && at.From == "s4@example.net":
						return testkit.Say("554 5.7.1 no content from you")
					case at.Step == testkit.AtFinal && at.Arg == "full@example.org":
						return testkit.Say("452 4.2.2 full")
					}
					return testkit.Action{}
				})
				msgs := []*smtpc.Message{
					message(t, 0, "a\r\n", "ok@example.org", "no@example.org", "later@example.org", "full@example.org"),
					message(t, 1, "b\r\n", "ok@example.org", "no@example.org"),
					message(t, 2, "c\r\n", "no1@example.org", "no2@example.org"),
					message(t, 3, "d\r\n"),
					message(t, 4, "e\r\n"),
				}
				q, err := stream(t, p, m, lmtp, msgs...)
				if err != nil {
					t.Fatal(err)
				}
				full := "final 250"
				if lmtp {
					full = "final 452"
				}
				want := []string{"final 250, rcpt 550, rcpt 450, " + full, "mail 451, mail 451", "rcpt 550, rcpt 550", "final 250", "data 554"}
				taken := 2
				if m == smtpc.Continuous { // there is no DATA to refuse
					want[4], taken = "final 250", 3
				}
				for i, m := range msgs {
					var got []string
					for _, a := range q.results[m].Rcpts {
						got = append(got, fmt.Sprint(a.Step, " ", a.Reply.Code))
					}
					if strings.Join(got, ", ") != want[i] {
						t.Errorf("message %d: %s, want %s", i, strings.Join(got, ", "), want[i])
					}
				}
				if n := p.Accepted(); n != taken {
					t.Errorf("%d messages taken, want %d", n, taken)
				}
			})
		}
	}
}

func TestADamagedContentIsNeverDelivered(t *testing.T) {
	big := strings.Repeat("0123456789abcdef0123456789abcdef0123456789abcdef0123456789ab\r\n", 5000)
	bad := map[string]func() io.Reader{
		"error at the end": func() io.Reader { return io.MultiReader(strings.NewReader(big), failing{}) },
		"error midway":     func() io.Reader { return io.MultiReader(strings.NewReader(big[:len(big)/2]), failing{}) },
		"too short":        func() io.Reader { return strings.NewReader(big[:len(big)-2]) },
		"too long":         func() io.Reader { return strings.NewReader(big + "x\r\n") },
		"bare LF":          func() io.Reader { return strings.NewReader(big[:len(big)-4] + "x\n\r\n") },
	}
	for name, r := range bad {
		for _, m := range methods {
			t.Run(fmt.Sprint(name, " ", m), func(t *testing.T) {
				p := started(t, nil)
				broken := message(t, 1, big)
				broken.Content, broken.Open = nil, func() (io.ReadCloser, error) { return io.NopCloser(r()), nil }
				msgs := []*smtpc.Message{message(t, 0, "a\r\n"), broken, message(t, 2, "c\r\n")}
				q, err := stream(t, p, m, false, msgs...)
				if err == nil {
					t.Error("the session went on after half a content")
				}
				if got := q.results[broken]; got.Fate != smtpc.Unsendable {
					t.Errorf("broken: %+v", got)
				}
				if got := q.results[msgs[0]]; got.Fate != smtpc.Answered {
					t.Errorf("the one before: %+v", got)
				}
				for _, m := range p.Messages() {
					if m.From == "s1@example.net" {
						t.Error("the damaged one was delivered")
					}
				}
			})
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestWhatThePrimaryCantTakeIsNotSent(t *testing.T) {
	p := started(t, func(p *testkit.Primary) { p.Caps = []string{"PIPELINING", "SIZE 100"} })
	utf8 := message(t, 1, "x\r\n")
	utf8.Params.SMTPUTF8 = true
	eight := message(t, 2, "\xe4\r\n")
	eight.Params.Body = "8BITMIME"
	really7 := message(t, 3, "x\r\n")
	really7.Params.Body = "8BITMIME"
	requires := message(t, 4, "x\r\n")
	requires.Params.RequireTLS = true
	bare := message(t, 5, "x\ny\r\n")
	smuggle := message(t, 6, "x\r\n")
	smuggle.From = mta.Path{Local: "a\r\nRCPT TO:<b@c>", Domain: "example.net"}
	smuggle2 := message(t, 7, "x\r\n")
	smuggle2.Rcpts[0].Addr = mta.Path{Local: "a", Domain: "b> X=<"}
	big := message(t, 8, strings.Repeat("x", 101))
	msgs := []*smtpc.Message{utf8, eight, really7, requires, bare, smuggle, smuggle2, big}
	q, err := stream(t, p, smtpc.Best, false, msgs...)
	if err != nil {
		t.Fatal(err)
	}
	want := []error{smtpc.ErrNeedsUTF8, smtpc.ErrNeeds8Bit, nil, smtpc.ErrNeedsRequireTLS, smtpc.ErrContent, smtpc.ErrUnsafe, smtpc.ErrUnsafe, smtpc.ErrTooBig}
	for i, m := range msgs {
		r := q.results[m]
		if want[i] == nil && r.Fate != smtpc.Answered || want[i] != nil && (r.Fate != smtpc.Unsendable || !isErr(r.Err, want[i])) {
			t.Errorf("message %d: %v %v, want %v", i, r.Fate, r.Err, want[i])
		}
	}
}

func isErr(err, want error) bool { return err != nil && strings.HasPrefix(err.Error(), want.Error()) }

func TestParametersReachThePrimaryUnchanged(t *testing.T) {
	p := started(t, nil)
	m := message(t, 1, "x\r\n")
	m.Params = mta.Params{Body: "8bitmime", SMTPUTF8: true, Ret: "HDRS", EnvID: "a+b=c d"}
	m.Rcpts[0].Notify = mta.NotifySuccess | mta.NotifyFailure
	m.Rcpts[0].ORcpt = "rfc822;a+b@example.org"
	quoted := message(t, 2, "x\r\n")
	quoted.From = path(t, `<"a> SIZE=1"@example.net>`)
	quoted.Rcpts[0].Notify = mta.NotifyNever
	quoted.Rcpts[0].ORcpt = "utf-8;ü@example.org"
	if _, err := stream(t, p, smtpc.Best, false, m, quoted); err != nil {
		t.Fatal(err)
	}
	got := p.Messages()
	if len(got) != 2 {
		t.Fatalf("%d messages", len(got))
	}
	if got[0].Params != "SIZE=3 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+2Bb+3Dc+20d" || got[0].RParams[0] != "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;a+2Bb@example.org" {
		t.Errorf("%q %q", got[0].Params, got[0].RParams)
	}
	if got[1].From != `"a> SIZE=1"@example.net` || got[1].Params != "SIZE=3" || got[1].RParams[0] != `NOTIFY=NEVER ORCPT=utf-8;\x{FC}@example.org` {
		t.Errorf("%q %q %q", got[1].From, got[1].Params, got[1].RParams)
	}
}

func TestManyMessagesOverOneSession(t *testing.T) {
	for _, m := range methods {
		p := started(t, nil)
		content := strings.Repeat(strings.Repeat("x", 62)+"\r\n", 64)
		var msgs []*smtpc.Message
		for i := range 3000 {
			msgs = append(msgs, message(t, i, content))
		}
		start := time.Now()
		q, err := stream(t, p, m, false, msgs...)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d messages, %.0f a second", m, len(q.results), float64(len(msgs))/time.Since(start).Seconds())
		if p.Accepted() != len(msgs) || p.Conns() != 1 {
			t.Errorf("%s: %d messages over %d sessions", m, p.Accepted(), p.Conns())
		}
		seen := map[string]bool{}
		for _, m := range p.Messages() {
			if seen[m.From] || !bytes.Equal(m.Content, []byte(content)) {
				t.Fatalf("%s came twice or changed", m.From)
			}
			seen[m.From] = true
		}
	}
}
