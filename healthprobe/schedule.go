package healthprobe

import "time"

const (
	// freshRefusal is how long a primary that refuses is asked as often as one that is down: servers refuse for a
	// moment while they start.
	freshRefusal = time.Minute
	// minGap is the least time between two probes of one primary, whoever asks for them.
	minGap = 100 * time.Millisecond
	// hangs is how long a probe of a primary that is away may take before a hint puts a new one in its place: it may
	// have begun before the primary was back, and wait for an answer that was lost.
	hangs = time.Second
	// maxUnprobed is for how many intervals mail that a primary takes may stand in for a probe: its certificate and
	// what it offers want to be seen now and then.
	maxUnprobed = 4
)

// wait is how long to wait from the begin of a probe, which led to b, to the begin of the next. jitter is in [0,1) and
// spreads the waits over ±10 %, so that primaries and fleets do not fall into step.
func (c *Config) wait(b belief, now time.Time, jitter float64) time.Duration {
	return time.Duration(float64(c.interval(b, now)) * (0.9 + 0.2*jitter))
}

func (c *Config) interval(b belief, now time.Time) time.Duration {
	away := now.Sub(b.gone)
	switch {
	case b.state == Unknown:
		return c.EveryDown
	case b.state == Up && b.fails == 0:
		return c.Every
	case b.state == Up:
		return min(c.EveryDown, c.Every)
	case b.wins > 0 && !b.flapping(now, c.rules()):
		return c.Confirm
	case b.wins > 0:
		return c.EveryDown
	case b.state == Refusing && away >= freshRefusal:
		return max(c.EveryRefusing, c.EveryDown)
	case away >= c.LongDown:
		return c.EveryLongDown
	}
	return c.EveryDown
}
