package inbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"understudy/internal/mta"
)

// scripted is a relay to a primary that does what local parts and subjects tell it (see their switches). It keeps what it took
// as a spool would.
type scripted struct {
	mu       sync.Mutex
	messages []spooled
	dests    []string // of Begin
	open     int      // transactions
	most     int      // of them at once
	rcpts    int

	known func(local string) bool                                      // if set, who is
	begin func() error                                                 // if set, decides instead
	send  func(ctx context.Context, content string) (mta.Reply, error) // likewise
}

// scriptedTransaction is one at it.
type scriptedTransaction struct {
	p       *scripted
	env     mta.Envelope // with the recipients that were taken
	aborted bool
}

var errReset = fmt.Errorf("connection reset by the primary: %w", mta.ErrAway)

func (p *scripted) Begin(_ context.Context, env *mta.Envelope, dest string) (Transaction, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dests = append(p.dests, dest)
	if p.begin != nil {
		if err := p.begin(); err != nil {
			return nil, err
		}
	}
	switch env.From.Local {
	case "away":
		return nil, errReset
	case "blocked":
		return nil, fmt.Errorf("MAIL: %w", mta.NewReply(550, "5.7.1", "client host blocked"))
	case "exhausted":
		return nil, mta.NewReply(451, "4.3.2", "the primary server is busy")
	case "untrusted":
		return nil, mta.NewReply(530, "5.7.0", "Must issue a STARTTLS command first")
	case "broken":
		return nil, errors.New("secret detail")
	}
	p.open++
	p.most = max(p.most, p.open)
	t := &scriptedTransaction{p: p, env: *env}
	t.env.Rcpts = nil
	return t, nil
}

func (t *scriptedTransaction) Rcpt(_ context.Context, r mta.Recipient) (mta.Reply, error) {
	t.p.mu.Lock()
	t.p.rcpts++
	known := t.p.known
	t.p.mu.Unlock()
	local := r.Addr.Local
	switch {
	case known != nil && !known(local):
		return mta.ParseReply(550, "5.1.1 unknown"), nil
	case t.aborted:
		return mta.Reply{}, errors.New("used after Abort")
	case local == "unknown", local == "amnesia", strings.HasPrefix(local, "guess"):
		return mta.ParseReply(550, "5.1.1 <"+r.Addr.String()+">: Recipient address rejected: User unknown"), nil
	case local == "plain":
		return mta.ParseReply(550, "Unrouteable address"), nil
	case local == "grey":
		return mta.ParseReply(450, "4.2.0 Greylisted, see http://postgrey.example.org"), nil
	case local == "talkative":
		return mta.ParseReply(550, "5.7.1 first\n5.7.1 second\n5.7.23 third"), nil
	case local == "bye":
		return mta.ParseReply(421, "4.7.0 mail.example.org Error: too many errors"), nil
	case local == "short":
		return mta.ParseReply(421, "bye"), nil
	case local == "confused":
		return mta.ParseReply(503, "5.5.1 Error: need MAIL command"), nil
	case local == "odd":
		return mta.ParseReply(354, "go ahead"), nil
	case local == "blocked":
		return mta.Reply{}, fmt.Errorf("MAIL: %w", mta.NewReply(550, "5.7.1", "client host blocked"))
	case local == "lost":
		return mta.Reply{}, errReset
	case local == "broken":
		return mta.Reply{}, errors.New("secret detail")
	case local == "panic":
		panic("a bug in a relay")
	}
	t.env.Rcpts = append(t.env.Rcpts, r)
	return mta.ParseReply(250, "2.1.5 Ok by the primary"), nil
}

func (t *scriptedTransaction) Send(ctx context.Context, c mta.Content) (mta.Reply, error) {
	if t.aborted || len(t.env.Rcpts) == 0 {
		return mta.Reply{}, errors.New("used after Abort, or without recipients")
	}
	r, err := c.Open()
	if err != nil {
		return mta.Reply{}, err
	}
	defer r.Close()
	all, err := io.ReadAll(r)
	if err != nil || int64(len(all)) != c.Size {
		return mta.Reply{}, fmt.Errorf("%d octets were promised, %d came: %w", c.Size, len(all), err)
	}
	content := string(all)
	if t.p.send != nil {
		reply, err := t.p.send(ctx, content)
		if err == nil {
			t.keep(content)
		}
		return reply, err
	}
	for _, s := range []struct {
		mark  string
		reply mta.Reply
		err   error
	}{
		{"Subject: away", mta.Reply{}, errReset},
		{"Subject: doubt", mta.Reply{}, errors.New("no reply after the dot")},
		{"Subject: spam", mta.ParseReply(554, "5.7.1 Spam message rejected"), nil},
		{"Subject: later", mta.ParseReply(451, "4.7.1 Try again later"), nil},
		{"Subject: closing", mta.ParseReply(421, "4.3.0 mail.example.org: System shutting down"), nil},
		{"Subject: confused", mta.ParseReply(503, "5.5.1 Error: need RCPT command"), nil},
	} {
		if strings.Contains(content, s.mark) {
			return s.reply, s.err
		}
	}
	t.keep(content)
	return mta.ParseReply(250, "2.0.0 Ok: queued as 4Xq1"), nil
}

func (t *scriptedTransaction) keep(content string) {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	t.p.messages = append(t.p.messages, spooled{t.env, content})
}

func (t *scriptedTransaction) Abort() {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	if !t.aborted {
		t.aborted = true
		t.p.open--
	}
}

func (p *scripted) all() []spooled {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.messages
}

func (p *scripted) begun() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.dests)
}

// checkIdle wants every transaction to have been given back.
func (p *scripted) checkIdle(t testing.TB) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open != 0 {
		t.Errorf("%d transactions with the primary were left open", p.open)
	}
}

// testJudge sends mail for example.org inline and spools what is for other domains, and judges by marks in the content.
type testJudge struct {
	mu     sync.Mutex
	calls  []string // sender, content, clean, shadow: what it was asked
	road   func(to mta.Path) mta.Road
	shadow func(c mta.Content, final mta.Reply, release func()) bool
	heard  func(r mta.Reply) mta.Reply
}

func (j *testJudge) note(call string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.calls = append(j.calls, call)
}

func (j *testJudge) asked() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.calls, " ")
}

func (j *testJudge) Admit(ctx context.Context, env *mta.Envelope, to mta.Path) (mta.Recipient, mta.Road, error) {
	if to.Domain == "" {
		to.Domain = "example.org"
	}
	if to.DomainKey() == "elsewhere.example" {
		return mta.Recipient{}, mta.Spooled, mta.NewReply(550, "5.7.1", "relaying denied")
	}
	road := mta.Spooled
	if to.DomainKey() == "example.org" && to.Local != "tuple" {
		road = mta.Inline
	}
	if j.road != nil {
		road = j.road(to)
	}
	return mta.Recipient{Addr: to, Dest: to.DomainKey()}, road, nil
}

func (j *testJudge) Heard(_ context.Context, _ *mta.Envelope, to mta.Recipient, r mta.Reply) mta.Reply {
	if j.heard != nil {
		return j.heard(r)
	}
	if to.Addr.Local == "amnesia" {
		return *mta.NewReply(451, "4.1.1", "this recipient was known before")
	}
	return r
}

func (j *testJudge) Sender(context.Context, *mta.Envelope) *mta.Verdict {
	j.note("sender")
	return &mta.Verdict{Score: 1}
}

// Content drops X-Spam fields, and stamps what it judged.
func (j *testJudge) Content(_ context.Context, env *mta.Envelope, c mta.Content) (mta.Verdict, mta.Edit, error) {
	j.note("content")
	v, content := *env.Verdict, read(c)
	switch {
	case strings.Contains(content, "X-Bad:"):
		v.Action, v.Findings = mta.Reject, []mta.Finding{{Name: "bad", Text: "bad mail", Action: mta.Reject}}
	case strings.Contains(content, "X-Hold:"):
		v.Action = mta.Quarantine
	case strings.Contains(content, "X-Broken:"):
		return v, mta.Edit{}, errors.New("secret detail")
	case strings.Contains(content, "X-Silent:"):
		return v, mta.Edit{}, fmt.Errorf("wrapped: %w", mta.NewReply(451, "4.7.1", "the filter does not answer"))
	}
	return v, mta.Edit{Drop: spamFields(content)}, nil
}

func (j *testJudge) Clean(_ *mta.Envelope, c mta.Content) (mta.Edit, error) {
	j.note("clean")
	content := read(c)
	if strings.Contains(content, "X-Unclean:") {
		return mta.Edit{}, errors.New("secret detail")
	}
	return mta.Edit{Drop: spamFields(content)}, nil
}

func (j *testJudge) Shadow(_ *mta.Envelope, c mta.Content, final mta.Reply, release func()) bool {
	j.note("shadow")
	return j.shadow != nil && j.shadow(c, final, release)
}

func read(c mta.Content) string {
	r, err := c.Open()
	if err != nil {
		panic(err)
	}
	defer r.Close()
	all, err := io.ReadAll(r)
	if err != nil {
		panic(err)
	}
	return string(all)
}

func spamFields(content string) []mta.Span {
	var drop []mta.Span
	at := int64(0)
	for line := range strings.SplitAfterSeq(content, "\r\n") {
		if line == "\r\n" {
			break
		}
		if strings.HasPrefix(line, "X-Spam") {
			drop = append(drop, mta.Span{Start: at, End: at + int64(len(line))})
		}
		at += int64(len(line))
	}
	return drop
}

// startInline runs a server whose mail for example.org goes inline.
func startInline(t testing.TB, cfg Config) (*running, *scripted, *testJudge) {
	t.Helper()
	p, j := &scripted{}, &testJudge{}
	return start(t, cfg, func(d *Deps) { d.Relay, d.Judge = p, j }), p, j
}
