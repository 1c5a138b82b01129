package policy

import (
	"context"
	"math/rand/v2"
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

// refusedInline holds the primary's refusal of a recipient against what we would have said of him.
func (p *Policy) refusedInline(ctx context.Context, s *state, q question, env *mta.Envelope, r mta.Reply, now time.Time) {
	if p.deps.Parity == nil || mta.FateOf(r, true) != mta.RefusedRcpt || !s.cfg.Parity.sampled() {
		return
	}
	pair := mta.Pair{Kind: mta.PairShadow, Domain: q.dest, At: now, Theirs: mta.RefusedRcpt, Reply: r}
	h := p.hear(ctx, s, q.known, q.dest, q.local, now)
	switch h.decide().verdict {
	case Defer:
		pair.Ours, pair.Reasons = mta.Defer, []string{reasonUnknown}
	case Reject:
		pair.Ours, pair.Reasons = mta.Reject, []string{reasonUnknown}
	}
	if env != nil {
		pair.ID = env.ID
	}
	p.deps.Parity(pair)
}

// reasonUnknown stands among our findings for a recipient of whom nothing is known, or who does not exist.
const reasonUnknown = "recipient:unknown"
