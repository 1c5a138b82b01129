package smtpc

import (
	"math"
	"time"
)

const (
	windowMin   = 8
	windowStart = 16
	windowMax   = 128     // so many may arrive twice when a session is cut
	windowBytes = 8 << 20 // likewise; a single larger message goes alone
	windowRound = 5 * time.Millisecond
)

// window says how many messages may be unanswered: one and a half times what the way holds, which is its delay times the
// rate at which the primary answers. Less would make the primary wait for us; more would only be in doubt when a session
// is cut. It starts small and triples with each round trip as long as the rate grows with it.
type window struct {
	size, max int
	steady    bool          // the rate has stopped growing
	delay     time.Duration // the least seen from a message's end to its reply
	rate      float64       // messages a second, the best of late
	began     time.Time     // of the round that is measured
	acks      int
}

func newWindow(start, most int) window {
	if most <= 0 || most > windowMax {
		most = windowMax
	}
	if start <= 0 {
		start = windowStart
	}
	return window{size: min(start, most), max: most}
}

// acked is told of each answer, and how long it took.
func (w *window) acked(now time.Time, took time.Duration) {
	if w.delay == 0 || took < w.delay {
		w.delay = max(took, time.Microsecond)
	}
	if w.began.IsZero() {
		w.began = now
		return
	}
	w.acks++
	if !w.steady {
		w.size = min(w.size+2, w.max)
	}
	round := now.Sub(w.began)
	if round < max(w.delay, windowRound) {
		return
	}
	rate := float64(w.acks) / round.Seconds()
	w.steady = w.steady || rate < 1.25*w.rate
	w.rate = max(rate, 0.9*w.rate)
	w.began, w.acks = now, 0
	if w.steady {
		want := int(math.Ceil(1.5 * w.rate * w.delay.Seconds()))
		w.size = min(max(want, windowMin), w.max)
	}
}
