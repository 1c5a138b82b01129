package healthprobe

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// play feeds results a second apart: + took, r refused, x failed, ! a delivery failed. It returns the states after each
// probe, by their first letters.
func play(b belief, script string, rules rules) (belief, string) {
	var states strings.Builder
	now := epoch
	for _, c := range script {
		now = now.Add(time.Second)
		switch c {
		case '!':
			b.doubt = true
			continue
		case '+':
			b = b.observe(took, now, rules)
		case 'r':
			b = b.observe(refused, now, rules)
		case 'x':
			b = b.observe(failed, now, rules)
		}
		states.WriteByte(b.state.String()[0])
	}
	return b, states.String()
}

func TestTheMachine(t *testing.T) {
	c := DefaultConfig()
	tests := []struct{ name, script, want string }{
		{"the first probe decides", "+", "u"},
		{"the first probe decides, down", "x", "d"},
		{"the first probe decides, refusing", "r", "r"},
		{"three failures in a row make it down", "+xxx", "uuud"},
		{"two do not", "+xx+xx+", "uuuuuuu"},
		{"the last of the failures gives it the name", "+xxr", "uuur"},
		{"and the other way round", "+rrx", "uuud"},
		{"two successes in a row make it up", "x++", "ddu"},
		{"one does not", "x+x+x++", "ddddddu"},
		{"from refusing too", "r++", "rru"},
		{"what is away changes its name at once", "xrx", "drd"},
		{"a refusal breaks a row of successes", "x+r+x++", "ddrrddu"},
		{"a delivery's failure and a probe's are two", "+!xx", "uud"},
		{"a delivery's failure alone is nothing", "+!+!+!+!+", "uuuuu"},
		{"a delivery's failure counts once a probe", "+!!!!xx", "uud"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, got := play(belief{}, tt.script, c.rules()); got != tt.want {
				t.Errorf("%s led through %s, want %s", tt.script, got, tt.want)
			}
		})
	}
}

func TestFallAndRiseAreTheConfigs(t *testing.T) {
	for _, n := range []int{1, 2, 5} {
		r := DefaultConfig()
		r.Fall, r.Rise = n, n+1
		script := "+" + strings.Repeat("x", n) + strings.Repeat("+", n+1)
		want := "u" + strings.Repeat("u", n-1) + "d" + strings.Repeat("d", n) + "u"
		if _, got := play(belief{}, script, r.rules()); got != want {
			t.Errorf("%s led through %s, want %s", script, got, want)
		}
	}
}

func TestFlappingRaisesTheBarAndTimeLowersIt(t *testing.T) {
	c := DefaultConfig()
	r := c.rules()
	b, _ := play(belief{}, "+", r)
	now := epoch.Add(time.Minute)
	var bars []int
	for range 12 {
		for b.state == Up {
			b = b.observe(failed, now, r)
		}
		bars = append(bars, b.bar(now, r))
		for b.state != Up {
			b = b.observe(took, now, r)
		}
		now = now.Add(10 * time.Second)
	}
	if got, want := fmt.Sprint(bars), "[2 2 2 2 2 4 8 16 16 16 16 16]"; got != want {
		t.Errorf("successes in a row that were wanted: %s, want %s", got, want)
	}
	if !b.flapping(now, r) {
		t.Error("it does not say that it flaps")
	}
	if now = now.Add(r.flapWindow); b.flapping(now, r) || b.bar(now, r) != r.rise {
		t.Error("a quiet window does not end the flapping")
	}
	if len(b.falls) > 12 {
		t.Errorf("%d falls are remembered", len(b.falls))
	}
}

func TestFallsOutsideTheWindowAreForgotten(t *testing.T) {
	c := DefaultConfig()
	r := c.rules()
	b, _ := play(belief{}, "+", r)
	now := epoch
	for range 1000 {
		now = now.Add(time.Hour)
		for range r.fall {
			b = b.observe(failed, now, r)
		}
		for range r.rise {
			b = b.observe(took, now, r)
		}
	}
	if len(b.falls) != 1 || b.state != Up {
		t.Errorf("%d falls are remembered in state %v, want 1 in up", len(b.falls), b.state)
	}
}

func TestInterval(t *testing.T) {
	c := DefaultConfig()
	many := make([]time.Time, c.FlapFalls)
	for i := range many {
		many[i] = epoch
	}
	at := func(d time.Duration) time.Time { return epoch.Add(d) }
	tests := []struct {
		name string
		b    belief
		now  time.Time
		want time.Duration
	}{
		{"up", belief{state: Up}, epoch, 15 * time.Second},
		{"up, but the last probe failed", belief{state: Up, fails: 1}, epoch, time.Second},
		{"down", belief{state: Down, gone: epoch}, at(time.Minute), time.Second},
		{"down for nearly an hour", belief{state: Down, gone: epoch}, at(time.Hour - 1), time.Second},
		{"down for an hour", belief{state: Down, gone: epoch}, at(time.Hour), 5 * time.Second},
		{"a first success", belief{state: Down, gone: epoch, wins: 1}, at(2 * time.Hour), 100 * time.Millisecond},
		{"a success of one that flaps", belief{state: Down, gone: epoch, wins: 1, falls: many}, at(time.Minute), time.Second},
		{"refusing for a moment", belief{state: Refusing, gone: epoch}, at(time.Second), time.Second},
		{"refusing", belief{state: Refusing, gone: epoch}, at(time.Minute), 5 * time.Second},
		{"refusing for a day", belief{state: Refusing, gone: epoch}, at(24 * time.Hour), 5 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := c.interval(tt.b, tt.now); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			least, most := c.wait(tt.b, tt.now, 0), c.wait(tt.b, tt.now, 0.999999)
			if least != tt.want*9/10 || most < tt.want || most > tt.want*11/10 {
				t.Errorf("jitter gives %v to %v", least, most)
			}
		})
	}
}
