package forwarder

import (
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"understudy/internal/smtpc"
)

const (
	troubleMin = time.Second
	troubleMax = 30 * time.Second
	slowFor    = time.Hour // a primary that lost step is spoken to slowly for so long
	cutsToSlow = 3         // sessions in a row that were cut with content unanswered
)

// trouble is what the forwarder itself remembers of one primary, beside its health: the health may say that it is up while
// our sessions fail.
type trouble struct {
	mu     sync.Mutex
	open   bool // the gate, when it was last looked at
	fails  int  // sessions in a row that failed
	until  time.Time
	last   error
	slow   time.Time // no continuous sending before
	cuts   int
	window int // that the last session came to
	limit  int // messages over one session, 0 if not known
}

// look takes the gate's state; when it opens the past is forgiven.
func (t *trouble) look(open bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if open && !t.open {
		t.fails, t.until, t.last = 0, time.Time{}, nil
	}
	t.open = open
}

// pausing is until when no session is to be tried.
func (t *trouble) pausing() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.until
}

func (t *trouble) pause(until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.until = until
}

// worked is told of a message that the primary took, and of the window that the session had then.
func (t *trouble) worked(window int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if window > 0 {
		t.window = window
	}
	t.fails, t.until, t.last, t.cuts = 0, time.Time{}, nil, 0
}

// start is the window that a new session begins with: what the last one came to. 0 is not known.
func (t *trouble) start() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.window
}

// failed is told of a session that failed.
func (t *trouble) failed(now time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fails++
	t.last = err
	t.window = 0
	t.until = now.Add(backoff(t.fails, troubleMin, troubleMax, rand.Float64()))
}

// strayed is told of a session that lost step, or was cut with content unanswered.
func (t *trouble) strayed(now time.Time, lostStep bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cuts++
	if lostStep || t.cuts >= cutsToSlow {
		t.slow = now.Add(slowFor)
	}
}

// method is the fastest that is wise.
func (t *trouble) method(now time.Time) smtpc.Method {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Before(t.slow) {
		return smtpc.Grouped
	}
	return smtpc.Best
}

// learn notes that the primary ends sessions after n messages.
func (t *trouble) learn(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limit = n
}

// most is how many messages the primary takes over one session.
func (t *trouble) most() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.limit == 0 {
		return math.MaxInt
	}
	return t.limit
}
