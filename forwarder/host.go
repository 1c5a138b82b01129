package forwarder

import (
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

const (
	pauseMin   = time.Second
	pauseMax   = 5 * time.Second // the gate is open: it may be well again any moment
	stormMin   = 10 * time.Second
	stormMax   = 5 * time.Minute
	stormAfter = 20        // messages deferred in a row, and nothing taken between
	slowFor    = time.Hour // a primary that lost step is spoken to slowly for so long
	cutsToSlow = 3         // sessions in a row that were cut with content unanswered
)

// host is what the forwarder itself remembers of one primary, beside its health: the health may say that it is up while
// our sessions fail.
type host struct {
	name string

	mu      sync.Mutex
	open    bool // the gate, when it was last looked at
	fails   int  // sessions in a row that failed
	alarmed bool // the operator was told, and not yet that it is over
	until   time.Time
	last    error

	slow   time.Time // no continuous sending before
	cuts   int
	window int // that the last session came to
	limit  int // messages over one session, 0 if not known
	ended  int // messages of the last session that it ended

	deferrals int // messages in a row
	storms    int
	grey      time.Time // greylisting was told of

	breaker breaker
	tripped time.Time
	parked  []settled // refusals of a probation: what they are worth is not known yet

	strangers bool             // XCLIENT is not granted to us, or there is none
	hadTLS    bool             // a session was in TLS
	tls       map[string]int64 // sessions by what became of TLS
}

func newHost(name string) *host {
	h := &host{name: name, tls: make(map[string]int64)}
	h.breaker.recovered() // we do not know what was before us
	return h
}

// look takes the gate's state. When it opens, which is reported, the past is forgiven and the breaker watches. An open
// breaker stays so.
func (h *host) look(open bool) (opened bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	opened = open && !h.open
	if opened {
		h.fails, h.until, h.last, h.deferrals, h.storms, h.limit, h.ended = 0, time.Time{}, nil, 0, 0, 0, 0
		if h.tripped.IsZero() {
			h.breaker.recovered()
		}
	}
	h.open = open
	return opened
}

// idle reports that nothing of the host is worth remembering.
func (h *host) idle(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tripped.IsZero() && len(h.parked) == 0 && !h.alarmed && !h.until.After(now) && !h.slow.After(now)
}

// admitted reports that the breaker lets mail pass; retry is after how long an open one tries again, 0 for never.
func (h *host) admitted(now time.Time, retry time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tripped.IsZero() {
		return true
	}
	if retry <= 0 || now.Before(h.tripped.Add(retry)) {
		return false
	}
	h.resumeLocked()
	return true
}

// resume closes the breaker; it watches again. It reports whether it was open.
func (h *host) resume() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := !h.tripped.IsZero()
	h.resumeLocked()
	return was
}

func (h *host) resumeLocked() {
	h.tripped = time.Time{}
	h.breaker.recovered()
}

// pausing is until when no session is to be tried.
func (h *host) pausing() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.until
}

// busy reports that the host wants to be left alone now, or its breaker is open.
func (h *host) busy(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.until.After(now) || !h.tripped.IsZero()
}

func (h *host) pause(until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.until = until
}

// alarm notes that the operator was told of trouble with this primary.
func (h *host) alarm() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.alarmed = true
}

// worked is told of a message that the primary took, and of the window that the session had then. It reports whether
// that ends an alarm.
func (h *host) worked(window int) (over bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if window > 0 {
		h.window = window
	}
	h.fails, h.until, h.last, h.cuts, h.deferrals, h.storms = 0, time.Time{}, nil, 0, 0, 0
	over, h.alarmed = h.alarmed, false
	return over
}

// deferred is told of a message of which nothing was taken now. Where that goes on the primary is left alone for a while,
// which is returned.
func (h *host) deferred(now time.Time) (pause time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.deferrals++; h.deferrals < stormAfter {
		return 0
	}
	h.deferrals = 0
	h.storms++
	pause = backoff(h.storms, stormMin, stormMax, rand.Float64())
	h.until = now.Add(pause)
	return pause
}

// greylists notes that the primary greylists us; it reports true once an hour, for the log.
func (h *host) greylists(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Sub(h.grey) < time.Hour {
		return false
	}
	h.grey = now
	return true
}

// start is the window that a new session begins with: what the last one came to. 0 is not known.
func (h *host) start() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.window
}

// failed is told of a session that failed.
func (h *host) failed(now time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = err
	h.window = 0
	if now.Before(h.until) {
		return // one trouble ends all sessions of the moment, and counts once
	}
	h.fails++
	h.until = now.Add(backoff(h.fails, pauseMin, pauseMax, rand.Float64()))
}

// strayed is told of a session that lost step, or was cut with content unanswered.
func (h *host) strayed(now time.Time, lostStep bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cuts++
	if lostStep || h.cuts >= cutsToSlow {
		h.slow = now.Add(slowFor)
	}
}

// method is the fastest that is wise.
func (h *host) method(now time.Time) smtpc.Method {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Before(h.slow) {
		return smtpc.Grouped
	}
	return smtpc.Best
}

// learn notes that the primary ended a session after n messages. Twice the same number is a limit that it has; once, it may
// have been about to stop.
func (h *host) learn(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended == n {
		h.limit = n
	}
	h.ended = n
}

// most is how many messages the primary takes over one session.
func (h *host) most() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.limit == 0 {
		return math.MaxInt
	}
	return h.limit
}

// met notes what a session that was opened showed. It reports that TLS was lost that the host had before.
func (h *host) met(c *smtpc.Conn) (downgraded bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	what := "clear"
	switch {
	case c.TLS() != nil:
		what = "tls"
	case c.TLSError() != nil:
		what = "failed, in clear"
	}
	h.tls[what]++
	downgraded = c.TLS() == nil && (h.hadTLS || c.TLSError() != nil)
	h.hadTLS = c.TLS() != nil
	h.strangers = len(c.Caps().XCLIENT) == 0
	return downgraded
}

// tlsFailed counts a session that was not opened for want of TLS, in the words of RFC 8460.
func (h *host) tlsFailed(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tls[what]++
}

// alike reports that mail of different clients may share a session: the primary is not told of them anyway.
func (h *host) alike() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.strangers
}

// weigh passes an outcome to the breaker. It returns what can be settled now, and whether the breaker has just opened.
func (h *host) weigh(now time.Time, c *Config, x settled, answers []smtpc.Answer) (ready []settled, tripped bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, refusal := wait, false
	for i, r := range x.p.results {
		refusal = refusal || r.Outcome == mta.Quarantined
		if i < len(answers) && h.tripped.IsZero() && v != trip {
			v = max(v, h.breaker.observe(&c.Breaker, r.Outcome, answers[i].Step))
		}
	}
	if v == trip {
		h.tripped = now
	}
	if !h.tripped.IsZero() { // late results too
		ready, h.parked = append(h.parked, x), nil
		for i := range ready {
			ready[i].p = ready[i].p.defused(now.Add(c.RetryMin))
		}
		return ready, v == trip
	}
	if h.breaker.watching && refusal {
		h.parked = append(h.parked, x)
		return nil, false
	}
	if h.breaker.watching {
		return []settled{x}, false
	}
	ready, h.parked = append(h.parked, x), nil
	return ready, false
}

// unpark gives what is parked for a route that ends.
func (h *host) unpark(r *route) []settled {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out, rest []settled
	for _, x := range h.parked {
		if x.j.route == r {
			out = append(out, x)
			continue
		}
		rest = append(rest, x)
	}
	h.parked = rest
	return out
}

// defused is the plan with what was refused for good waiting instead: nobody is to pay for a broken server.
func (p plan) defused(next time.Time) plan {
	results := make([]mta.RcptResult, len(p.results))
	copy(results, p.results)
	for i := range results {
		if results[i].Outcome == mta.Quarantined {
			results[i].Outcome = mta.Deferred
			p.next = next
		}
	}
	p.results = results
	return p
}
