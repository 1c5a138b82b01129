package dnsx

import (
	"sync"
	"time"
)

// cache keeps answers until they expire, never more than size of them, and lets callers with one question share one
// exchange.
type cache struct {
	size int

	mu      sync.Mutex
	answers map[question]cached
	asked   map[question]chan struct{} // closed when the exchange has ended
}

type cached struct {
	answer
	expires time.Time
}

func newCache(size int) *cache {
	return &cache{size: size, answers: make(map[question]cached), asked: make(map[question]chan struct{})}
}

// get returns a kept answer, or what to wait for before asking the cache again, or neither: then the caller is the
// one who asks, and must call done.
func (c *cache) get(q question, now time.Time) (a answer, ok bool, wait <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k, ok := c.answers[q]; ok && now.Before(k.expires) {
		a = k.answer
		a.ttl = k.expires.Sub(now)
		return a, true, nil
	}
	if ch, ok := c.asked[q]; ok {
		return answer{}, false, ch
	}
	c.asked[q] = make(chan struct{})
	return answer{}, false, nil
}

// done ends the exchange that get began. A nil answer is not kept: the next waiter asks anew.
func (c *cache) done(q question, a *answer, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch, ok := c.asked[q]; ok {
		close(ch)
		delete(c.asked, q)
	}
	if a == nil || a.ttl <= 0 {
		return
	}
	if _, ok := c.answers[q]; !ok && len(c.answers) >= c.size {
		c.evict(now)
	}
	c.answers[q] = cached{*a, now.Add(a.ttl)}
}

// evict makes room: of a sample what has expired, else one at random. A sample, because a full pass at each insertion
// would make a flood of names quadratic.
func (c *cache) evict(now time.Time) {
	const sample = 32
	var victim question
	n := 0
	for q, k := range c.answers {
		victim = q
		if !now.Before(k.expires) {
			delete(c.answers, q)
		}
		if n++; n == sample {
			break
		}
	}
	if len(c.answers) >= c.size {
		delete(c.answers, victim)
	}
}
