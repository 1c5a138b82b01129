package filter

import (
	"testing"
	"time"
)

// TestTheCircuit plays words: "ok", "fail" and "gone" are what became of an admitted question, "no" is one that must not
// be admitted, "wait" is asksAgain, "hint" a ping that was answered.
func TestTheCircuit(t *testing.T) {
	tests := []struct {
		name  string
		words []string
		state State
	}{
		{"from the beginning", nil, Up},
		{"two failures are chance", []string{"fail", "fail"}, Up},
		{"an answer forgives", []string{"fail", "fail", "ok", "fail", "fail"}, Up},
		{"three are not", []string{"fail", "fail", "fail", "no"}, Down},
		{"who hung up tells nothing", []string{"fail", "fail", "gone", "fail", "no"}, Down},
		{"it is asked again", []string{"fail", "fail", "fail", "wait", "ok", "fail", "ok"}, Up},
		{"and is not there yet", []string{"fail", "fail", "fail", "wait", "fail", "no", "wait", "ok"}, Up},
		{"and the sender hung up", []string{"fail", "fail", "fail", "wait", "gone", "ok"}, Up},
		{"at once after a hint", []string{"fail", "fail", "fail", "hint", "ok"}, Up},
		{"a hint is not believed", []string{"fail", "fail", "fail", "hint", "fail", "no"}, Down},
		{"by one only", []string{"fail", "fail", "fail", "wait", "ask", "no", "no"}, Probing},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
			var c circuit
			changes := 0
			for i, w := range tt.words {
				switch w {
				case "wait":
					now = now.Add(asksAgain)
					continue
				case "hint":
					c.hint()
					continue
				}
				if got := c.admit(now); got != (w != "no") {
					t.Fatalf("word %d, %s: admitted is %v", i, w, got)
				}
				changed := false
				switch w {
				case "ok":
					changed = c.answered(now)
				case "fail":
					changed = c.failed(now, "refused")
				case "gone":
					c.abandoned()
				}
				if changed {
					changes++
				}
			}
			if c.current() != tt.state {
				t.Errorf("it is %s, want %s", c.current(), tt.state)
			}
			if up := changes%2 == 0; up != (tt.state == Up) {
				t.Errorf("%d changes were told, and it is %s", changes, c.current())
			}
		})
	}
}

// TestALateAnswerClosesTheCircuit: it was asked before the others failed.
func TestALateAnswerClosesTheCircuit(t *testing.T) {
	now := time.Now()
	var c circuit
	c.admit(now)
	for range opensAfter {
		c.admit(now)
		c.failed(now, "refused")
	}
	if !c.answered(now) || c.current() != Up {
		t.Errorf("it is %s", c.current())
	}
}
