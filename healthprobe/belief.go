package healthprobe

import "time"

// result is what a probe brought.
type result uint8

const (
	took    result = iota // as deep as asked, all answers positive
	refused               // it answered, and would not take mail
	failed                // no answer, or none that is SMTP
)

// rules are the bars that beliefs are measured against.
type rules struct {
	fall, rise int
	flapFalls  int
	flapWindow time.Duration
	flapRise   int
}

func (c *Config) rules() rules {
	return rules{fall: c.Fall, rise: c.Rise, flapFalls: c.FlapFalls, flapWindow: c.FlapWindow, flapRise: c.FlapRise}
}

// belief is what we hold of one primary. It is a value: observe returns the next one.
type belief struct {
	state State
	since time.Time   // when state was entered
	gone  time.Time   // since when it is away: its first failure; meaningful while it is not up
	wins  int         // successes in a row
	fails int         // failures in a row
	bad   time.Time   // when the first of them was seen
	doubt bool        // a delivery has failed since the last probe
	falls []time.Time // the recent ends of being up, oldest first
}

// observe is the machine: the belief after a probe that ended at now.
func (b belief) observe(r result, now time.Time, rules rules) belief {
	doubt := b.doubt
	b.doubt = false
	if r == took {
		b.fails = 0
		b.wins++
		if b.state == Up || b.state != Unknown && b.wins < b.bar(now, rules) {
			return b
		}
		return b.enter(Up, now)
	}
	b.wins = 0
	if b.fails == 0 {
		b.bad = now
	}
	b.fails++
	if doubt { // a probe and a delivery agree: that is two
		b.fails++
	}
	if b.state == Up && b.fails < rules.fall {
		return b
	}
	if b.state == Up {
		b.falls = append(recent(b.falls, now, rules.flapWindow), now)
	}
	if r == refused {
		return b.enter(Refusing, now)
	}
	return b.enter(Down, now)
}

func (b belief) enter(s State, now time.Time) belief {
	if b.state == s {
		return b
	}
	if b.state == Up || b.state == Unknown {
		b.gone = b.bad
	}
	b.state, b.since = s, now
	b.wins, b.fails = 0, 0
	return b
}

// proven is the belief after the primary took mail.
func (b belief) proven() belief {
	if b.state == Up {
		b.fails, b.doubt = 0, false
	}
	return b
}

// recent returns a fresh copy of the falls within the window before now.
func recent(falls []time.Time, now time.Time, window time.Duration) []time.Time {
	var r []time.Time
	for _, f := range falls {
		if now.Sub(f) < window {
			r = append(r, f)
		}
	}
	return r
}

// flapping reports a primary that keeps falling.
func (b belief) flapping(now time.Time, rules rules) bool {
	return len(recent(b.falls, now, rules.flapWindow)) >= rules.flapFalls
}

// bar is how many successes in a row make a primary up: twice as many with each fall beyond what is normal.
func (b belief) bar(now time.Time, rules rules) int {
	bar := rules.rise
	for range len(recent(b.falls, now, rules.flapWindow)) - rules.flapFalls + 1 {
		if bar *= 2; bar >= rules.flapRise {
			return rules.flapRise
		}
	}
	return bar
}
