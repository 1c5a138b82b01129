package forwarder

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"understudy/internal/mta"
)

const (
	shelfMax   = 512   // jobs read ahead of the wire
	shelfKeyed = 8192  // the same where each client has sessions of its own: what is of one client should meet there
	outMax     = 12288 // jobs claimed and not settled
	quantum    = 128   // jobs that one destination claims before it is the next one's turn
	perSession = 4     // jobs waiting for each session that is being opened before one more is
)

// route is the way to one set of primaries while it has work. Its run ends when there is none, or no gate is open.
type route struct {
	road
	name   string
	wake   chan struct{} // something changed that run looks at; holds one
	judges chan struct{} // holds those who judge now

	mu       sync.Mutex
	cond     *sync.Cond      // the loader waits here
	ring     []string        // destinations to claim from, the next one first
	again    map[string]bool // those in the ring; true: something came while it had its turn
	added    bool            // a destination came since run looked
	shelf    shelf
	more     chan struct{} // closed when something is put on the shelf
	out      int           // jobs claimed and not settled
	open     bool          // a gate is open and we are not stopping
	done     bool          // run has ended
	loading  bool          // the loader is at work
	judging  int           // jobs that are judged again before they go on the shelf
	ramp     ramp
	live     map[*session]struct{}
	sessions int                 // of live, those that count
	feeding  int                 // of these, those that still get messages
	keyed    bool                // mail of different clients needs different sessions
	dialing  map[string]int      // of sessions, those being opened, by key
	busy     map[mta.Primary]int // sessions
	last     time.Time           // a message was taken
	opened   time.Time           // when the gate did
	messages pace
	bytes    pace
}

// newRoute makes the route of a destination; f.mu is held.
func newRoute(f *Forwarder, name string, to mta.Route, dom Domain, dest string) *route {
	r := &route{
		road: road{f: f, tiers: to.Tiers, dom: dom, domain: dest}, name: name, wake: make(chan struct{}, 1), judges: make(chan struct{}, judges),
		more: make(chan struct{}), again: make(map[string]bool),
		ramp: newRamp(f.cfg.Sessions), live: make(map[*session]struct{}), dialing: make(map[string]int), busy: make(map[mta.Primary]int),
		open: true, opened: time.Now(),
		messages: pace{rate: f.cfg.MessagesPerSecond}, bytes: pace{rate: float64(f.cfg.BytesPerSecond)},
	}
	r.cond = sync.NewCond(&r.mu)
	return r
}

// add puts a destination into the ring. f.mu is held, so that the route can't end meanwhile.
func (r *route) add(dest string) {
	r.mu.Lock()
	if _, there := r.again[dest]; !there {
		r.ring = append(r.ring, dest)
	}
	r.again[dest] = true // a claim that is under way may have missed what is new
	r.added = true
	r.mu.Unlock()
	r.cond.Broadcast()
	r.signal()
}

func (r *route) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run works until nothing is left to do. ctx ends new tries, work all.
func (r *route) run(ctx, work context.Context) {
	var started sync.WaitGroup
	defer started.Wait()
	var err error
	if r.tls, err = r.f.policy(&r.dom); err != nil {
		r.f.fault(ctx, "tls of "+r.name, err)
		r.end()
		return
	}
	started.Go(func() { r.load(work) })
	stopped := ctx.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		r.mu.Lock()
		r.added = false
		r.mu.Unlock()
		changed := r.f.health.Changed() // before looking, so that no change falls between
		r.gate(ctx.Err() == nil && r.f.anyUsable(r.tiers))
		if wait := r.spawn(ctx, work, &started); wait > 0 {
			timer.Reset(wait)
		}
		if r.over() {
			return
		}
		select {
		case <-r.wake:
		case <-changed:
		case <-timer.C:
		case <-stopped:
			stopped = nil
		}
	}
}

// gate opens or closes the route. When it closes, what waits on the shelf goes back; when it opens, one session goes first.
func (r *route) gate(open bool) {
	r.mu.Lock()
	was := r.open
	r.open = open
	if open && !was {
		r.ramp, r.opened = newRamp(r.f.config().Sessions), time.Now()
	}
	for s := range r.live {
		if !open || !r.f.health.Open(s.name) {
			r.writeOff(s)
		}
	}
	var back []*job
	if !open {
		back = r.shelf.clear()
		r.tellMore()
	}
	r.mu.Unlock()
	if was != open {
		r.cond.Broadcast()
	}
	r.giveBack(back)
}

// dismiss gives a session no more messages. It still counts until it has ended. r.mu is held.
func (r *route) dismiss(s *session) {
	if s.off {
		return
	}
	s.off = true
	r.feeding--
	r.connected(s)
}

// writeOff dismisses a session, and whatever it still waits for keeps no other from being opened. r.mu is held.
func (r *route) writeOff(s *session) {
	r.dismiss(s)
	if s.gone {
		return
	}
	s.gone = true
	r.sessions--
	if r.busy[s.primary]--; r.busy[s.primary] == 0 {
		delete(r.busy, s.primary)
	}
}

// ahead counts the jobs that are read ahead of the wire. r.mu is held.
func (r *route) ahead() int { return r.shelf.n + r.judging }

// shelfMax is how many jobs may be read ahead. r.mu is held.
func (r *route) shelfMax() int {
	if r.keyed {
		return shelfKeyed
	}
	return shelfMax
}

// connected notes that a session is no more being opened. r.mu is held.
func (r *route) connected(s *session) {
	if !s.dialing {
		return
	}
	s.dialing = false
	if r.dialing[s.key]--; r.dialing[s.key] == 0 {
		delete(r.dialing, s.key)
	}
}

// tellMore wakes the sessions that wait for the shelf; r.mu is held.
func (r *route) tellMore() {
	close(r.more)
	r.more = make(chan struct{})
}

// giveBack returns jobs that were not tried.
func (r *route) giveBack(jobs []*job) {
	for _, j := range jobs {
		if j.msg.Free != nil {
			j.msg.Free()
		}
		r.f.settler.put(settled{j: j, p: plan{release: true}})
	}
}

// over ends the route if it has nothing to do. What the breaker holds back is then taken at its word, if the primaries are
// still there: there were too few refusals to doubt them.
func (r *route) over() bool {
	r.f.mu.Lock()
	r.mu.Lock()
	idle := len(r.live) == 0 && !r.loading && r.ahead() == 0
	if r.added || !idle || r.open && len(r.ring) > 0 {
		r.mu.Unlock()
		r.f.mu.Unlock()
		return false
	}
	r.endLocked()
	open := r.open
	r.mu.Unlock()
	r.f.mu.Unlock()
	next := time.Now().Add(r.f.config().RetryMin)
	for _, tier := range r.tiers {
		for _, p := range tier {
			for _, x := range r.f.host(p.String()).unpark(r) {
				if !open {
					x.p = x.p.defused(next)
				}
				r.f.settler.put(x)
			}
		}
	}
	return true
}

// end takes the route off the list.
func (r *route) end() {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endLocked()
}

func (r *route) endLocked() {
	delete(r.f.active, r.name)
	r.done = true
	r.cond.Broadcast()
}

// spawn starts the sessions that are wanted and allowed. It returns how long the primaries want to be left alone, if that
// is what stands against another one.
func (r *route) spawn(ctx, work context.Context, started *sync.WaitGroup) time.Duration {
	for {
		r.mu.Lock()
		first, wanted := r.wanted()
		r.mu.Unlock()
		if !wanted {
			return 0
		}
		p, until := r.pick(time.Now())
		if p == nil {
			return max(time.Until(until), time.Millisecond)
		}
		s := r.enter(first, *p)
		started.Go(func() {
			s.run(ctx, work)
			r.leave(s)
		})
	}
}

// enter counts a new session.
func (r *route) enter(first *job, p mta.Primary) *session {
	s := newSession(r, first, p)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live[s] = struct{}{}
	r.sessions++
	r.feeding++
	r.dialing[s.key]++
	r.busy[p]++
	return s
}

func (r *route) leave(s *session) {
	r.mu.Lock()
	r.writeOff(s)
	delete(r.live, s)
	r.mu.Unlock()
	r.signal()
}

// wanted gives a job whose kind wants another session; r.mu is held.
func (r *route) wanted() (*job, bool) {
	if !r.open || r.sessions >= r.ramp.limit {
		return nil, false
	}
	for _, k := range r.shelf.keys {
		if g := r.shelf.groups[k]; len(g) > perSession*r.dialing[k] {
			return g[0], true
		}
	}
	return nil, false
}

// pick chooses a primary: of the best tier that has one whose gate is open and that is not to be left alone, the one with
// the fewest sessions, equals by lot (RFC 5321, 5.1). Without one it tells when to ask again.
func (r *route) pick(now time.Time) (*mta.Primary, time.Time) {
	var again time.Time
	for _, tier := range r.tiers {
		var best []mta.Primary
		for _, p := range tier {
			if !r.f.usable(p.String()) {
				continue
			}
			if until := r.f.host(p.String()).pausing(); until.After(now) {
				if again.IsZero() || until.Before(again) {
					again = until
				}
				continue
			}
			best = r.lessBusy(best, p)
		}
		if len(best) > 0 {
			return &best[rand.IntN(len(best))], time.Time{}
		}
	}
	if again.IsZero() {
		again = now.Add(time.Second) // a gate has just closed; the change wakes us
	}
	return nil, again
}

// lessBusy keeps the primaries with the fewest sessions.
func (r *route) lessBusy(best []mta.Primary, p mta.Primary) []mta.Primary {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case len(best) == 0 || r.busy[p] < r.busy[best[0]]:
		return []mta.Primary{p}
	case r.busy[p] == r.busy[best[0]]:
		return append(best, p)
	}
	return best
}

// settled is told when a job's outcome was stored, or is lost.
func (r *route) settled(j *job) {
	r.f.out.remove(j)
	r.mu.Lock()
	r.out--
	r.mu.Unlock()
	r.cond.Signal()
}
