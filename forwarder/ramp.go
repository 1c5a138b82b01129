package forwarder

import "time"

// calm is the least time between two cuts: one event shows itself in many sessions at once.
const calm = time.Second

// ramp says how many sessions a route may have. The first goes alone; each message taken allows one more, until trouble
// halves what is allowed; from there on it grows slowly.
type ramp struct {
	limit, most int
	threshold   int // growth is slow from here
	taken       int // messages since the last step of slow growth
	cut         time.Time
}

func newRamp(most int) ramp { return ramp{limit: 1, most: most, threshold: most} }

// ok is told of each message taken.
func (r *ramp) ok() {
	if r.limit >= r.most {
		return
	}
	if r.limit < r.threshold {
		r.limit++
		return
	}
	if r.taken++; r.taken >= 10*r.limit {
		r.taken = 0
		r.limit++
	}
}

// trouble is told of a session that failed or was told to slow down.
func (r *ramp) trouble(now time.Time) {
	if now.Sub(r.cut) < calm {
		return
	}
	r.limit = max(1, r.limit/2)
	r.threshold, r.taken, r.cut = r.limit, 0, now
}
