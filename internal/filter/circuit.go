package filter

import "time"

const (
	opensAfter = 3                // failures in a row; a single one may be that message's fault
	asksAgain  = 10 * time.Second // a filter that restarts is back by then, and a stalled one costs one message a time-out each
)

// State tells whether a filter is asked.
type State string

const (
	Up      State = "up"      // it is asked; what it last said is in Status
	Down    State = "down"    // it failed too often and is not asked now
	Probing State = "probing" // one message asks it whether it is back
)

// circuit decides whether a filter is asked, from what became of the last questions. The zero value is up. It knows
// no clock: it is told now.
type circuit struct {
	state    State
	since    time.Time // of the state; zero: from the beginning
	failures int       // in a row
	last     string    // error
	lastAt   time.Time
	retry    time.Time // while it is down: when it is asked again
}

func (c *circuit) current() State {
	if c.state == "" {
		return Up
	}
	return c.state
}

func (c *circuit) enter(s State, now time.Time) { c.state, c.since = s, now }

// admit reports whether the filter may be asked now. Every true is followed by answered, failed or abandoned.
func (c *circuit) admit(now time.Time) bool {
	switch c.current() {
	case Down:
		if now.Before(c.retry) {
			return false
		}
		c.state = Probing // it is down since then all the same
		return true
	case Probing:
		return false
	}
	return true
}

// answered notes an answer, and reports that the circuit closed.
func (c *circuit) answered(now time.Time) (closed bool) {
	c.failures = 0
	if c.current() == Up {
		return false
	}
	c.enter(Up, now)
	return true
}

// failed notes a failure, and reports that the circuit opened.
func (c *circuit) failed(now time.Time, err string) (opened bool) {
	c.failures++
	c.last, c.lastAt, c.retry = err, now, now.Add(asksAgain)
	switch c.current() {
	case Probing:
		c.state = Down
	case Up:
		if c.failures >= opensAfter {
			c.enter(Down, now)
			return true
		}
	}
	return false
}

// hint lets the next message ask, for there are signs that the filter is back.
func (c *circuit) hint() { c.retry = time.Time{} }

// abandoned notes that a question ended without telling anything about the filter.
func (c *circuit) abandoned() {
	if c.state == Probing {
		c.state = Down
	}
}
