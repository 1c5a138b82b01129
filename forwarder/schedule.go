package forwarder

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	"understudy/internal/mta"
)

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

// aboutHost reports a deferral that is not about one mailbox or address (RFC 3463, 3.2 and 3.3).
func aboutHost(r mta.Reply) bool {
	return r.Code != 0 && !strings.HasPrefix(r.Enhanced, "4.1.") && !strings.HasPrefix(r.Enhanced, "4.2.")
}

// greylisting reports a reply of a primary that greylists us, in the words of the programs that do.
func greylisting(r mta.Reply) bool {
	if !r.Temporary() {
		return false
	}
	t := strings.ToLower(strings.NewReplacer("-", "", " ", "").Replace(r.Text))
	return strings.Contains(t, "greylist") || strings.Contains(t, "graylist")
}

var waitText = regexp.MustCompile(`(?i)\b(\d{1,4}) ?(s|sec|secs|seconds?|m|min|mins|minutes?)\b`)

// greyWait is how long a greylisting primary wants us to wait, as far as it says so; 0 if it does not greylist.
func greyWait(r mta.Reply) time.Duration {
	if !greylisting(r) {
		return 0
	}
	m := waitText.FindStringSubmatch(r.Text)
	if m == nil {
		return 5 * time.Minute // what most of them want
	}
	n, _ := strconv.Atoi(m[1]) // four digits
	unit := time.Second
	if strings.HasPrefix(strings.ToLower(m[2]), "m") {
		unit = time.Minute
	}
	return time.Duration(n)*unit + time.Second
}
