package policy

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"understudy/internal/mta"
)

// Parity says how our verdicts are measured against the primary's.
type Parity struct {
	// Sample is the share of the messages that go inline for which our own verdict is made beside the primary's, from
	// 0 to 1. It costs what judging costs, and delays nobody.
	Sample float64 `yaml:"sample"`
	// AlarmBypass is the bypass rate above which an alarm is raised, from 0 to 1. 1: never.
	AlarmBypass float64 `yaml:"alarm_bypass"`
	// AlarmMessages is how many messages that we take it needs before the rate is believed.
	AlarmMessages int `yaml:"alarm_messages"`
	// Keep is how long the counts of a day are kept.
	Keep time.Duration `yaml:"keep"`
}

// Validate reports every mistake.
func (c *Parity) Validate() []mta.Fault {
	var faults []mta.Fault
	if !(c.Sample >= 0 && c.Sample <= 1) { // so that NaN is none
		faults = append(faults, mta.NewFault("sample", "%v is not between 0 and 1", c.Sample))
	}
	if !(c.AlarmBypass >= 0 && c.AlarmBypass <= 1) {
		faults = append(faults, mta.NewFault("alarm_bypass", "%v is not between 0 and 1", c.AlarmBypass))
	}
	if c.AlarmMessages < 1 {
		faults = append(faults, mta.NewFault("alarm_messages", "must be at least 1"))
	}
	if c.Keep < 24*time.Hour || c.Keep > 3660*24*time.Hour {
		faults = append(faults, mta.NewFault("keep", "%v is not between a day and ten years", c.Keep))
	}
	return faults
}

// sampled tells whether this one is looked at.
func (c *Parity) sampled() bool { return rand.Float64() < c.Sample }

const (
	maxShadows  = 4  // judged at the same time: the mail that must be judged goes first
	shadowQueue = 16 // waiting; each holds its content
	shadowTime  = time.Minute
)

// shadow is a message, or the beginning of one, whose fate the primary decided while it came in.
type shadow struct {
	env     mta.Envelope
	dest    string
	content mta.Content // without Open: it was refused before
	reply   mta.Reply
	release func() // content is needed no more
}

// shadows are those that wait for our own verdict.
type shadows struct {
	jobs chan shadow

	mu      sync.Mutex // guards what follows
	open    bool       // Run takes jobs
	refused [64]*mta.Envelope
	next    int // in refused
}

func newShadows() *shadows { return &shadows{jobs: make(chan shadow, shadowQueue)} }

// offer tells whether the job was taken: then its release is called once.
func (s *shadows) offer(x shadow) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open {
		return false
	}
	select {
	case s.jobs <- x:
		return true
	default:
		return false
	}
}

// once tells whether a refused transaction was not told of before: it may be refused for each of its recipients.
func (s *shadows) once(env *mta.Envelope) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.refused[:], env) {
		return false
	}
	s.refused[s.next] = env
	s.next = (s.next + 1) % len(s.refused)
	return true
}

func (s *shadows) take(open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = open
}

// Shadow takes a copy of a message whose fate the primary has just decided inline, for our own verdict beside its. False:
// it is not wanted, for it is not in the sample or there is too much to do; release will not be called. True: release is
// called once, when c is needed no more. It never blocks.
func (p *Policy) Shadow(env *mta.Envelope, c mta.Content, final mta.Reply, release func()) bool {
	s := p.state.Load()
	if s == nil || p.deps.Parity == nil || len(env.Rcpts) == 0 || !s.cfg.Parity.sampled() {
		return false
	}
	taken := p.shadows.offer(shadow{copyOf(env), env.Rcpts[0].Dest, c, final, release})
	if !taken {
		p.metrics.shadows.WithLabelValues("busy").Inc()
	}
	return taken
}

func copyOf(env *mta.Envelope) mta.Envelope {
	c := *env
	c.Rcpts = slices.Clone(env.Rcpts)
	return c
}

// shadowing judges what Shadow took, until ctx is done.
func (p *Policy) shadowing(ctx context.Context) {
	var g sync.WaitGroup
	for range maxShadows {
		g.Go(func() {
			for {
				select {
				case x := <-p.shadows.jobs:
					p.judgeShadow(ctx, x)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	g.Wait()
	p.shadows.take(false)
	for {
		select {
		case x := <-p.shadows.jobs:
			x.release()
		default:
			return
		}
	}
}

func (p *Policy) judgeShadow(ctx context.Context, x shadow) {
	ctx, cancel := context.WithTimeout(ctx, shadowTime)
	defer cancel()
	v, err := p.shadowOpinion(ctx, &x)
	x.release()
	if err != nil || ctx.Err() != nil { // what was cut short is no verdict
		p.metrics.shadows.WithLabelValues("failed").Inc()
		return
	}
	p.metrics.shadows.WithLabelValues("judged").Inc()
	p.deps.Parity(mta.Pair{
		Kind: mta.PairShadow, Domain: x.dest, ID: x.env.ID, At: time.Now(), Ours: v.Action, Reasons: against(&v),
		Theirs: mta.FateOf(x.reply, x.content.Open == nil), Reply: x.reply,
	})
}

func (p *Policy) shadowOpinion(ctx context.Context, x *shadow) (mta.Verdict, error) {
	if x.content.Open != nil {
		return p.opinion(ctx, &x.env, x.content)
	}
	v := x.env.Verdict
	if v == nil {
		v = p.Sender(ctx, &x.env)
	}
	r := p.judging.Load().of(x.dest)
	return r.conclude(r.weigh(certain(v))), nil
}

// against names the findings that speak against a message, the one that decides first.
func against(v *mta.Verdict) []string {
	decider := v.Decider()
	if decider == nil {
		return nil
	}
	names := []string{decider.Name}
	for _, f := range v.Findings {
		if (f.Action > mta.Accept || f.Weight > 0) && !slices.Contains(names, f.Name) {
			names = append(names, f.Name)
		}
	}
	return names
}

// refusedInline holds the primary's refusal at RCPT against ours: what we would have said of the recipient, or, where the
// refusal is not about him, of the sender. There is no content to judge.
func (p *Policy) refusedInline(ctx context.Context, s *state, q question, env *mta.Envelope, r mta.Reply, now time.Time) {
	if p.deps.Parity == nil || env == nil {
		return
	}
	if mta.FateOf(r, true) == mta.RefusedContent {
		if p.shadows.once(env) && s.cfg.Parity.sampled() {
			p.shadows.offer(shadow{env: copyOf(env), dest: q.dest, reply: r, release: func() {}})
		}
		return
	}
	if !s.cfg.Parity.sampled() {
		return
	}
	pair := mta.Pair{Kind: mta.PairShadow, Domain: q.dest, ID: env.ID, At: now, Theirs: mta.RefusedRcpt, Reply: r}
	h := p.hear(ctx, s, q.known, q.dest, q.local, now)
	switch h.decide().verdict {
	case Defer:
		pair.Ours, pair.Reasons = mta.Defer, []string{reasonUnknown}
	case Reject:
		pair.Ours, pair.Reasons = mta.Reject, []string{reasonUnknown}
	}
	p.deps.Parity(pair)
}

// Settled is told of the end of a recipient whose mail was kept here, where the primary said it: to RCPT (atRcpt) or to
// the content. Its word is held against our verdict at receipt, and against that before the message was sent, if there
// was one.
func (p *Policy) Settled(env *mta.Envelope, hindsight *mta.Verdict, to mta.Recipient, outcome mta.Outcome, r mta.Reply, atRcpt bool) {
	if p.deps.Parity == nil || outcome == mta.Deferred || outcome == mta.Dropped || r.Code == 0 {
		return
	}
	theirs := mta.FateOf(r, atRcpt)
	for _, then := range []struct {
		kind    mta.PairKind
		verdict *mta.Verdict
	}{{mta.PairReceipt, env.Verdict}, {mta.PairHindsight, hindsight}} {
		if then.verdict == nil {
			continue
		}
		pair := mta.Pair{Kind: then.kind, Domain: to.Dest, ID: env.ID, At: time.Now(), Theirs: theirs, Reply: r}
		if theirs != mta.RefusedRcpt { // him we took, whatever we thought of the message
			pair.Ours, pair.Reasons = then.verdict.Action, against(then.verdict)
		}
		p.deps.Parity(pair)
	}
}

// reasonUnknown stands among our findings for a recipient of whom nothing is known, or who does not exist.
const reasonUnknown = "recipient:unknown"
