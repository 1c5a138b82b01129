package forwarder

import (
	"math"
	"time"
)

const (
	// calm is the least time between two cuts: one event shows itself in many sessions at once.
	calm = time.Second
	// settling is how long after a change nothing is measured: sessions have yet to come or go.
	settling = time.Second
	// A measure takes so long, and ends when acknowledgements came at so many moments: they come in bursts, where a primary
	// answers many commands in one go. It also ends when it took twice as long as the one before, or the longest time.
	measureMin, measureMax = 2 * time.Second, time.Minute
	measureMoments         = 50
	moment                 = 20 * time.Millisecond
	// noise is the share by which two measures may differ and be the same.
	noise = 0.05
	// fallen is the share of the usual rate below which something has changed.
	fallen = 0.7
	// So many measures are between two trials, at least and at most.
	patienceMin, patienceMax = 4, 32
)

// ramp says how many sessions a route may have. The first goes alone; each message taken allows one more, until trouble
// halves what is allowed; from there on it grows slowly.
//
// More sessions are not always faster: a primary can be so busy with many that it takes less in all. So where the growth
// has come to its end the acknowledgements are counted, and now and then a quarter of the sessions is given up for a
// while, or half as many are added; what was not worse with fewer, or was better with more, stays. After a trial that changed
// nothing the next one comes later, up to minutes; when the rate falls half of the sessions is given up at once.
type ramp struct {
	limit, most int
	threshold   int // growth is slow from here
	taken       int // messages since the last step of slow growth
	cut         time.Time

	ceiling  int           // where growth ends, by what was measured; at most most
	began    time.Time     // of this measure; zero: none runs
	acks     int           // in this measure
	moments  int           // at which they came
	last     time.Time     // the last moment's begin
	span     time.Duration // of the last measure
	usual    float64       // acknowledgements a second with this limit; 0: not known
	low      bool          // the last measure was far below that
	best     float64       // in this run of trials
	trial    int           // the limit before the trial that runs; 0: none runs
	up       bool          // the next trial is one of more sessions
	patience int           // measures from one trial to the next
	waited   int           // measures since the last one
}

func newRamp(most int) ramp {
	return ramp{limit: 1, most: most, threshold: most, ceiling: most, patience: patienceMin, span: measureMax}
}

// ok is told of each message taken, and how many sessions there are.
func (r *ramp) ok(now time.Time, sessions int) {
	if r.limit >= r.ceiling {
		r.count(now, sessions)
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
	if r.trial > 0 { // whatever it was to show, it is over
		r.ceiling, r.trial = r.trial, 0
	}
	r.limit = max(1, r.limit/2)
	r.threshold, r.taken, r.cut = r.limit, 0, now
	r.usual, r.low, r.began = 0, false, time.Time{}
}

// starved is told that sessions wait for mail, or may not send as fast as they could: what is acknowledged then says
// nothing about the primary.
func (r *ramp) starved() { r.began = time.Time{} }

// count measures, and draws its conclusions where a measure is complete. It does not measure while sessions that were given
// up still wait for their replies, nor where fewer are wanted than are allowed.
func (r *ramp) count(now time.Time, sessions int) {
	if sessions > r.limit || 4*sessions < 3*r.limit {
		r.began = time.Time{}
		return
	}
	if r.began.IsZero() {
		r.began, r.acks, r.moments, r.last = now.Add(settling), 0, 0, time.Time{}
	}
	if now.Before(r.began) {
		return
	}
	r.acks++
	if now.Sub(r.last) >= moment {
		r.last = now
		r.moments++
	}
	took := now.Sub(r.began)
	if took < measureMin || r.moments < measureMoments && took < min(2*r.span, measureMax) {
		return
	}
	rate, doubt := float64(r.acks)/took.Seconds(), noise+1/math.Sqrt(float64(r.moments))
	r.began, r.acks, r.moments, r.span = now, 0, 0, took
	r.measured(rate, doubt)
}

// measured judges a trial, or decides whether one is to begin. doubt is the share by which the rate may be off.
func (r *ramp) measured(rate, doubt float64) {
	if r.trial > 0 {
		r.judge(rate, doubt)
		return
	}
	low := r.usual > 0 && rate < fallen*r.usual
	fell := low && r.low
	r.low = low && !fell
	if r.low { // once, it may have been a few large messages
		return
	}
	if r.usual == 0 || fell {
		r.usual = rate
	}
	r.usual += (rate - r.usual) / 4
	r.best = r.usual
	r.waited++
	switch {
	case fell:
		r.up, r.patience = false, patienceMin
		r.try(2)
	case r.waited >= r.patience || r.patience == patienceMin && r.waitedLong():
		r.try(4)
	}
}

// waitedLong reports that the measures since the last trial took as long as the fewest of them can: where a primary is slow, a
// measure takes long.
func (r *ramp) waitedLong() bool {
	return time.Duration(r.waited)*r.span >= patienceMin*measureMin
}

// try begins a trial: of fewer sessions, by one part in so many, or of half as many more.
func (r *ramp) try(parts int) {
	r.waited = 0
	to := r.limit - max(1, r.limit/parts)
	if r.up {
		to = min(r.most, r.limit+(r.limit+1)/2)
	}
	if to < 1 || to == r.limit { // nothing to try in this direction
		r.up, r.patience = !r.up, min(2*r.patience, patienceMax)
		return
	}
	r.trial = r.limit
	r.set(to)
}

// set changes the limit and lets the sessions settle.
func (r *ramp) set(to int) { r.limit, r.ceiling, r.low, r.began = to, to, false, time.Time{} }

// judge ends a trial. A success is followed by the next in the same direction, in a larger step where it was a clear one,
// and against the best rate so far, so that many small losses do not add up.
func (r *ramp) judge(rate, doubt float64) {
	before := r.trial
	r.trial = 0
	better := rate >= r.best*(1+doubt)
	if better || !r.up && rate >= r.best*(1-noise) {
		r.best, r.usual, r.patience = max(r.best, rate), rate, patienceMin
		parts := 4
		if better {
			parts = 2
		}
		r.try(parts)
		return
	}
	r.set(before)
	r.usual = r.best
	r.up, r.patience = !r.up, min(2*r.patience, patienceMax)
}
