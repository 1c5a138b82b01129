package healthprobe

import (
	"time"

	"understudy/internal/mta"
)

// watch is one primary under observation, whatever number of domains it serves. Prober.mu guards it.
type watch struct {
	slot
	primary mta.Primary
	key     string // primary.String()
	domains map[string]bool

	belief  belief
	asked   string    // the domain whose postmaster the last probe named
	memory  memory    // what is remembered of it over restarts
	outage  *Outage   // the one that goes on, if it is away
	drain   *Outage   // the last one, while its mail is not handed over yet
	last    Probe     // zero before the first
	started time.Time // of the last probe
	proved  time.Time // when it last took mail from us
	running bool      // a probe is on its way
	again   bool      // and another was asked for meanwhile
	cancel  func()    // ends the running probe
	cut     bool      // it was ended so, for another
	firm    bool      // it is that other one, and is not to be ended
	dropped bool      // no domain has it as a primary any more

	awayAlarm, flapAlarm, certAlarm bool // raised
}

func newWatch(p mta.Primary) *watch {
	return &watch{slot: slot{index: -1}, primary: p, key: p.String(), domains: make(map[string]bool)}
}

// subject is the domain whose postmaster is named. It stays as long as it is not refused, so that a success can be
// confirmed, and changes after a refusal: one domain that the primary does not know must not close it to the others.
func (w *watch) subject() string {
	if w.domains[w.asked] && w.last.result != refused {
		return w.asked
	}
	other := w.asked
	for d := range w.domains { // the order is random
		if d != w.asked {
			return d
		}
		other = d
	}
	return other
}

// fresh reports that mail which the primary took makes a probe needless for now.
func (w *watch) fresh(now time.Time, every time.Duration) bool {
	return w.belief.state == Up && w.belief.fails == 0 && !w.belief.doubt && now.Sub(w.proved) < every &&
		now.Sub(w.started) < maxUnprobed*every
}
