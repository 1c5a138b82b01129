package policy

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"understudy/internal/mta"
)

// pairs are what a policy tells of its verdicts.
type pairs struct {
	mu  sync.Mutex // guards all
	all []mta.Pair
}

func (p *pairs) add(x mta.Pair) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, x)
}

func (p *pairs) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []string
	for _, x := range p.all {
		list = append(list, fmt.Sprintf("%v %s %v %v %s %d", x.Kind, x.Domain, x.Ours, x.Theirs, strings.Join(x.Reasons, ","), x.Reply.Code))
	}
	p.all = nil
	return list
}

func (p *pairs) want(t *testing.T, want ...string) {
	t.Helper()
	if got := p.take(); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// message is content, and how often it was released.
type message struct {
	text     string
	err      error
	released int
}

func (m *message) content() mta.Content {
	return mta.Content{Size: int64(len(m.text)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(m.text)), m.err
	}}
}

func (m *message) release() { m.released++ }

func TestOurVerdictIsHeldAgainstThePrimarysForTheSameMail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := &pairs{}
		cfg := DefaultConfig()
		cfg.Parity.Sample = 1
		p, stop := admitting(t, cfg, map[string]Domain{"example.org": {AcceptAll: true}}, Deps{Parity: told.add})
		synctest.Wait()
		env := from(t, "192.0.2.1", "bob@example.net")
		env.ID, env.Rcpts = mta.NewID(env.Received), []mta.Recipient{{Addr: path(t, "a@example.org"), Dest: "example.org"}}
		m := &message{text: "From: bob@example.net\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\nSubject: x\r\n\r\nhello\r\n"}
		for _, r := range []mta.Reply{{Code: 250}, {Code: 554, Enhanced: "5.7.1"}, {Code: 451}} {
			if !p.Shadow(env, m.content(), r, m.release) {
				t.Fatal("it is not wanted")
			}
			synctest.Wait()
		}
		told.want(t, "shadow example.org accept accepted  250", "shadow example.org accept refused  554", "shadow example.org accept deferred  451")
		if m.released != 3 {
			t.Errorf("released %d times, want 3", m.released)
		}
		m.err = errors.New("no such file")
		if !p.Shadow(env, m.content(), mta.Reply{Code: 250}, m.release) {
			t.Fatal("it is not wanted")
		}
		synctest.Wait()
		told.want(t)
		stop()
		if p.Shadow(env, m.content(), mta.Reply{Code: 250}, m.release) || m.released != 4 {
			t.Errorf("taken after the end, or released %d times", m.released)
		}
	})
}

func TestAShadowThatDoesNotFitIsNotTaken(t *testing.T) {
	told := &pairs{}
	cfg := DefaultConfig()
	cfg.Parity.Sample = 1
	p, err := New(cfg, map[string]Domain{"example.org": {AcceptAll: true}}, Deps{Log: quiet.Log, Parity: told.add})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.shadows.take(true) // as Run does, but nobody works
	env := from(t, "192.0.2.1", "bob@example.net")
	env.Rcpts = []mta.Recipient{{Dest: "example.org"}}
	m := &message{text: "From: a@b.example\r\n\r\n"}
	taken := 0
	for range 100 {
		if p.Shadow(env, m.content(), mta.Reply{Code: 250}, m.release) {
			taken++
		}
	}
	if taken != shadowQueue || m.released != 0 {
		t.Errorf("%d taken, %d released", taken, m.released)
	}
	cfg.Parity.Sample = 0
	if err := p.Reload(t.Context(), cfg, p.domains); err != nil {
		t.Fatal(err)
	}
	if p.Shadow(env, m.content(), mta.Reply{Code: 250}, m.release) {
		t.Error("taken though nothing is sampled")
	}
}

func TestARefusalAtRcptIsHeldAgainstWhatWeKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := &pairs{}
		cfg := DefaultConfig()
		cfg.Parity.Sample = 1
		file := t.TempDir() + "/list"
		write(t, file, "alice@example.org\n")
		p, stop := admitting(t, cfg, map[string]Domain{"example.org": {Recipients: file}, "example.net": {Sources: []string{"learned"}}}, Deps{Parity: told.add})
		defer stop()
		synctest.Wait()
		env := from(t, "192.0.2.1", "bob@example.com")
		refuse := func(to, enhanced string) {
			addr := path(t, to)
			p.Heard(t.Context(), env, mta.Recipient{Addr: addr, Dest: addr.DomainKey()}, mta.Reply{Code: 550, Enhanced: enhanced})
			synctest.Wait()
		}
		refuse("alice@example.org", "5.1.1")
		refuse("nobody@example.org", "5.1.1")
		told.want(t, "shadow example.org accept no_recipient  550", "shadow example.org reject no_recipient recipient:unknown 550")
		refuse("x@example.net", "5.1.1")
		told.want(t, "shadow example.net defer no_recipient recipient:unknown 550")
		refuse("alice@example.org", "5.7.1") // the client: once a transaction
		refuse("alice@example.org", "5.7.1")
		told.want(t, "shadow example.org accept refused  550")
		p.Heard(t.Context(), env, mta.Recipient{Addr: path(t, "alice@example.org")}, mta.Reply{Code: 250})
		p.Heard(t.Context(), env, mta.Recipient{Addr: path(t, "alice@example.org")}, mta.Reply{Code: 450})
		told.want(t)
	})
}

func TestWhatTheDrainBringsIsHeldAgainstBothVerdicts(t *testing.T) {
	told := &pairs{}
	p, err := New(DefaultConfig(), map[string]Domain{"example.org": {AcceptAll: true}}, Deps{Log: quiet.Log, Parity: told.add})
	if err != nil {
		t.Fatal(err)
	}
	mark := &mta.Verdict{Action: mta.Mark, Findings: []mta.Finding{{Name: "dnswl:x", Weight: -1}, {Name: "spf:softfail", Weight: 1}, {Name: "dnsbl:x", Weight: 3}}}
	env, to := &mta.Envelope{Verdict: mark}, mta.Recipient{Dest: "example.org"}
	ok, spam, gone := mta.Reply{Code: 250}, mta.Reply{Code: 554, Enhanced: "5.7.1"}, mta.Reply{Code: 550, Enhanced: "5.1.1"}

	p.Settled(env, nil, to, mta.Delivered, ok, false)
	told.want(t, "receipt example.org mark accepted dnsbl:x,spf:softfail 250")
	p.Settled(env, &mta.Verdict{}, to, mta.Quarantined, spam, false)
	told.want(t, "receipt example.org mark refused dnsbl:x,spf:softfail 554", "hindsight example.org accept refused  554")
	p.Settled(env, nil, to, mta.Quarantined, gone, true)
	told.want(t, "receipt example.org accept no_recipient  550")
	p.Settled(env, nil, to, mta.Quarantined, mta.Reply{Code: 450}, true) // it expired
	told.want(t, "receipt example.org mark deferred dnsbl:x,spf:softfail 450")
	p.Settled(env, nil, to, mta.Deferred, spam, false)    // not believed
	p.Settled(env, nil, to, mta.Dropped, ok, false)       // an operator's doing
	p.Settled(env, nil, to, mta.Quarantined, mta.Reply{}, // nobody said anything
		false)
	p.Settled(&mta.Envelope{}, nil, to, mta.Delivered, ok, false) // nobody had judged it
	told.want(t)
}
