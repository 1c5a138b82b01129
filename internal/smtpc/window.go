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
// rate at which the primary answers. Less would make it wait for us; more would only be in doubt when a session is cut.
type window struct {
	size, max int
	delay     time.Duration // the least seen from a message's end to its reply
	rate      float64       // messages a second, the best of late
	began     time.Time     // of the round that is measured
	acks      int
}

func newWindow(most int) window {
	if most <= 0 || most > windowMax {
		most = windowMax
	}
	return window{size: min(windowStart, most), max: most}
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
	round := now.Sub(w.began)
	if round < max(w.delay, windowRound) {
		return
	}
	w.rate = max(float64(w.acks)/round.Seconds(), 0.9*w.rate)
	w.began, w.acks = now, 0
	want := int(math.Ceil(1.5 * w.rate * w.delay.Seconds()))
	w.size = min(max(want, windowMin), w.max)
}
