package forwarder

import (
	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

// probation is how many results after a recovery the breaker looks at.
const probation = 100

// breaker watches the first results of a primary that came back. It is pure: who owns it guards it.
type breaker struct {
	watching bool
	n        int     // recipients answered since the recovery
	refused  float64 // of them, weighted
	usual    float64 // the share of refusals in normal times
}

// verdict is what a result led the breaker to.
type verdict uint8

const (
	wait verdict = iota // nothing yet
	pass                // the primary is in order
	trip                // it is not
)

// recovered begins a probation.
func (b *breaker) recovered() { b.watching, b.n, b.refused = true, 0, 0 }

// weigh is how much a refusal counts: of a recipient fully, of content a third.
func weigh(step smtpc.Step) float64 {
	if step == smtpc.StepRCPT {
		return 1
	}
	return 1.0 / 3
}

// observe is told of one recipient's end: taken, or refused for good at a step.
func (b *breaker) observe(c *Breaker, o mta.Outcome, step smtpc.Step) verdict {
	weight := 0.0
	switch o {
	case mta.Quarantined:
		weight = weigh(step)
	case mta.Delivered:
	default:
		return wait
	}
	if !b.watching {
		b.usual += (min(weight, 1) - b.usual) / 500
		return wait
	}
	b.n++
	b.refused += weight
	share := b.refused / float64(b.n)
	switch {
	case b.n == c.Streak && share == 1,
		b.n >= c.Results && share > c.Share && share > 2*b.usual:
		b.watching = false
		return trip
	case b.n >= max(probation, c.Results):
		b.watching = false
		return pass
	}
	return wait
}
