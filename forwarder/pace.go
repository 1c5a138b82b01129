package forwarder

import "time"

// burst is how much of a limit may be used at once.
const burst = 100 * time.Millisecond

// pace keeps to so much a second. The zero pace is no limit.
type pace struct {
	rate float64
	next time.Time
}

// wait is how long until something may be spent.
func (p *pace) wait(now time.Time) time.Duration {
	if p.rate <= 0 {
		return 0
	}
	return max(p.next.Sub(now), 0)
}

func (p *pace) spend(now time.Time, n float64) {
	if p.rate <= 0 {
		return
	}
	if least := now.Add(-burst); p.next.Before(least) {
		p.next = least
	}
	p.next = p.next.Add(time.Duration(n / p.rate * float64(time.Second)))
}
