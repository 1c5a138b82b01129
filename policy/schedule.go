package policy

import "time"

// firstRetry is how soon a source is looked at again that failed for the first time; it doubles.
const firstRetry = 10 * time.Second

// nextLook is when to look at a source again. Jitter is between 0 and 1: many sources must not stay in step, nor many
// servers that were started together.
func nextLook(now time.Time, every time.Duration, failures int, jitter float64) time.Time {
	wait := every
	if failures > 0 {
		wait = min(every, firstRetry<<min(failures-1, 16))
	}
	return now.Add(wait - time.Duration(float64(wait)*0.1*jitter))
}
