package forwarder

import "time"

// backoff is the pause before try n+1 when n have been made: least, doubling, at most most. jitter, 0 to 1, spreads it over
// the last fifth, so that what was deferred together does not come back together.
func backoff(n int, least, most time.Duration, jitter float64) time.Duration {
	d := least
	for range min(n-1, 62) {
		if d >= most/2 {
			d = most
			break
		}
		d *= 2
	}
	return d - time.Duration(jitter*float64(d)/5)
}
