package smtpc

import (
	"testing"
	"time"
)

// run plays n rounds of a primary that answers at most rate messages a second over a way with the delay, the window full.
func run(w *window, delay time.Duration, rate float64, rounds int) {
	now := time.Unix(1e9, 0)
	for range rounds {
		n := w.size
		took := max(delay, time.Duration(float64(n)/rate*float64(time.Second)))
		for i := range n {
			w.acked(now.Add(took*time.Duration(i)/time.Duration(n)), max(delay, took*time.Duration(i)/time.Duration(n)))
		}
		now = now.Add(took)
	}
}

func TestTheWindowHoldsWhatTheWayHolds(t *testing.T) {
	tests := []struct {
		name     string
		delay    time.Duration
		rate     float64
		min, max int
	}{
		{"a long way to a fast primary", 100 * time.Millisecond, 1e6, 128, 128},
		{"a long way to a slow primary", 100 * time.Millisecond, 200, 20, 45},
		{"next door and fast", 50 * time.Microsecond, 20_000, windowMin, windowMin},
		{"next door and slow", 2 * time.Millisecond, 500, windowMin, windowMin},
	}
	for _, tt := range tests {
		w := newWindow(0, 0)
		run(&w, tt.delay, tt.rate, 60)
		if w.size < tt.min || w.size > tt.max {
			t.Errorf("%s: %d, want %d to %d", tt.name, w.size, tt.min, tt.max)
		}
	}
}

func TestTheWindowKeepsItsBounds(t *testing.T) {
	w := newWindow(500, 20)
	run(&w, 100*time.Millisecond, 1e6, 10)
	if w.size != 20 {
		t.Errorf("%d, want 20", w.size)
	}
}
