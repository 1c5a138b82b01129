package forwarder

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

const (
	ownFor     = 5 * time.Second  // a session that speaks for a client is kept so long for that client
	downFor    = 2 * time.Second  // a primary that could not be reached is not dialled again so long
	abortLimit = 10 * time.Second // for the RSET that makes a session usable again
	tellCrowd  = time.Minute      // how often the log hears that all sessions are taken
	tlsFor     = time.Minute      // how long certificates are taken for granted
)

// crowded is what a transaction gets for which no session came free. It is not sent to the spool: the primary is up, and
// who fills its sessions must not get around it.
var crowded = mta.NewReply(451, "4.3.2", "the recipient's server is busy, please try again")

// line is one session for inline transactions. It belongs to who took it from the pool; while it waits there, a goroutine
// of its own listens for the primary hanging up.
type line struct {
	conn    *smtpc.Conn
	primary string
	host    *host
	key     string // of the client that it was told of: no other may ever use it; empty: none
	used    int    // transactions
	rested  bool   // it waited in the pool, so that the primary may have left it meanwhile

	since time.Time     // it waits
	wake  func()        // ends the waiting
	woken chan struct{} // closed when that has ended
	err   error         // why the session ended meanwhile
}

// pool has the inline sessions of one road.
type pool struct {
	road // tls is not used: tlsPolicy has it
	all  *pools
	name string

	mu       sync.Mutex
	busy     map[*Inline]string   // transactions, each with its place, and their primaries once they have one
	queue    []chan struct{}      // of those that wait for a place, the first first
	taken    int                  // places
	idle     []*line              // the one that has waited longest first
	making   int                  // sessions that are being made ready
	last     time.Time            // a transaction began
	down     map[string]time.Time // primaries that could not be reached, until when they are left alone
	answered map[string]time.Time // when primaries last answered a recipient
	told     time.Time            // that all places are taken
	policy   smtpc.TLSPolicy
	read     time.Time // when policy was made
}

// enter takes a place, and waits for one if need be.
func (p *pool) enter(ctx context.Context, c *InlineConfig) error {
	p.mu.Lock()
	p.last = time.Now()
	if p.taken < c.Sessions && len(p.queue) == 0 {
		p.taken++
		p.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	p.queue = append(p.queue, turn)
	p.mu.Unlock()
	patience := time.NewTimer(c.Wait)
	defer patience.Stop()
	select {
	case <-turn:
		return nil
	case <-patience.C:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.queue, turn)
	if i < 0 { // its turn came at the same time
		return nil
	}
	p.queue = slices.Delete(p.queue, i, i+1)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if now := time.Now(); now.Sub(p.told) >= tellCrowd {
		p.told = now
		p.f.log.LogAttrs(ctx, slog.LevelWarn, "inline sessions exhausted", slog.String("route", p.name), slog.Int("sessions", c.Sessions), slog.Duration("waited", c.Wait))
	}
	return crowded
}

// leave gives a place back.
func (p *pool) leave(c *InlineConfig) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	for p.taken < c.Sessions && len(p.queue) > 0 {
		p.taken++
		close(p.queue[0])
		p.queue = p.queue[1:]
	}
}

// candidates are the primaries of a tier that take mail now as far as we know, in the order in which they are to be tried:
// where a session waits first, equals by lot (RFC 5321, 5.1). all tells that none was left out.
func (p *pool) candidates(tier []mta.Primary, key string) (list []mta.Primary, all bool) {
	now := time.Now()
	rank := make(map[string]int)
	p.mu.Lock()
	for _, l := range p.idle {
		if p.serves(l, key) {
			rank[l.primary] = min(rank[l.primary], -1)
		}
		if l.key == key {
			rank[l.primary] = -2
		}
	}
	for _, x := range tier {
		if name := x.String(); p.f.health.Open(name) && !p.down[name].After(now) {
			list = append(list, x)
		}
	}
	p.mu.Unlock()
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(a, b mta.Primary) int { return rank[a.String()] - rank[b.String()] })
	return list, len(list) == len(tier)
}

// serves reports that a waiting session may be used for a client: it is the client's own, or was told of nobody. A PROXY
// header comes first of all, so such a session is what it is.
func (p *pool) serves(l *line, key string) bool {
	return l.key == key || l.key == "" && !p.proxies()
}

// take gives a session with the primary that waits and is alive; nil if there is none. The client's own comes first, then
// the one that waited least.
func (p *pool) take(primary, key string) *line {
	for {
		p.mu.Lock()
		best := -1
		for i, l := range p.idle {
			if l.primary == primary && p.serves(l, key) && (best < 0 || l.key == key || p.idle[best].key != key) {
				best = i
			}
		}
		if best < 0 {
			p.mu.Unlock()
			return nil
		}
		l := p.idle[best]
		p.idle = slices.Delete(p.idle, best, best+1)
		p.mu.Unlock()
		if l.rouse() {
			return l
		}
	}
}

// rouse ends the waiting of a session and reports that it is alive.
func (l *line) rouse() bool {
	l.wake()
	<-l.woken
	l.rested = true
	return l.err == nil
}

// dial opens a session. The client is told of by a PROXY header here, where the route wants one; XCLIENT comes when the
// session is taken.
func (p *pool) dial(ctx context.Context, to mta.Primary, client *mta.Peer, key string) (*line, error) {
	f := p.f
	r, err := p.current()
	if err != nil {
		return nil, err
	}
	o := smtpc.Options{LMTP: p.dom.LMTP, Proxy: p.proxies(), ClientOnly: true}
	if o.TLS, err = r.tlsTo(ctx, to.Host); err != nil {
		return nil, err
	}
	l := &line{primary: to.String(), host: f.host(to.String())}
	if o.Proxy && client != nil {
		o.Client, l.key = client, key
	}
	if l.conn, err = p.all.dialer.DialWith(ctx, to, o); err != nil {
		return nil, err
	}
	if l.host.met(l.conn) {
		f.log.LogAttrs(ctx, slog.LevelWarn, "tls downgrade", slog.String("primary", l.primary), slog.Any("err", l.conn.TLSError()))
	}
	f.m.inline.opened.Inc()
	return l, nil
}

// current is the road with its TLS policy, whose files are read again now and then.
func (p *pool) current() (road, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.road
	if now := time.Now(); now.Sub(p.read) > tlsFor {
		policy, err := p.f.policy(&p.dom)
		if err != nil {
			return r, err
		}
		p.policy, p.read = policy, now
	}
	r.tls = p.policy
	return r, nil
}

// serving reports that another transaction has a session with the primary, which is there then.
func (p *pool) serving(primary string, but *Inline) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, with := range p.busy {
		if with == primary && i != but {
			return true
		}
	}
	return false
}

// hears notes that a primary answered a recipient.
func (p *pool) hears(primary string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answered[primary] = time.Now()
}

// unreachable notes that no session could be opened since then: the health hears of it. The primary is left alone for a
// while, unless it knew the client and answered others meanwhile: a client for whom it stalls must not keep it from them.
func (p *pool) unreachable(primary string, err error, knew bool, since time.Time) {
	if what := smtpc.TLSFailure(err); what != "" {
		p.f.host(primary).tlsFailed(what)
	}
	p.mu.Lock()
	if !knew || !p.answered[primary].After(since) {
		p.down[primary] = time.Now().Add(downFor)
	}
	p.mu.Unlock()
	p.f.health.Observe(primary, err)
}

// rest puts a session back to wait for its next transaction, or ends it.
func (p *pool) rest(l *line, c *Config) {
	if l.conn.Closed() {
		return
	}
	ctx, wake := context.WithCancel(context.Background())
	l.wake, l.woken, l.since = wake, make(chan struct{}), time.Now()
	p.mu.Lock()
	full := l.used >= min(c.SessionMessages, l.host.most())
	var instead *line
	if !full {
		instead = p.yield(l, c)
		full = p.taken+len(p.idle) > c.Inline.Sessions
	}
	if !full {
		p.idle = append(p.idle, l)
	}
	p.mu.Unlock()
	if instead != nil && instead.rouse() {
		p.all.quit(instead)
	}
	if !full && p.all.waits(func() { p.listen(ctx, l) }) {
		return
	}
	close(l.woken)
	if full || p.forget(l) { // else someone has taken it
		wake()
		p.all.quit(l)
	}
}

// yield takes a session off those that wait, to make room for l: the longest waiting of those that only one client can
// use. Of many clients most do not come back so soon, and theirs must not keep out the sessions that anybody can use.
// p.mu is held.
func (p *pool) yield(l *line, c *Config) *line {
	own, oldest := 0, -1
	for i, x := range p.idle {
		if x.key == "" {
			continue
		}
		if own++; oldest < 0 {
			oldest = i
		}
	}
	crowded := p.taken+len(p.idle) > c.Inline.Sessions || l.key != "" && own >= max(1, c.Inline.Sessions/4)
	if oldest < 0 || !crowded {
		return nil
	}
	x := p.idle[oldest]
	p.idle = slices.Delete(p.idle, oldest, oldest+1)
	return x
}

// forget takes a session off the list of those that wait, and reports whether it was there.
func (p *pool) forget(l *line) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.idle, l)
	if i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
	}
	return i >= 0
}

// listen waits with a session. When the primary ends it, nobody is to find it.
func (p *pool) listen(ctx context.Context, l *line) {
	err := l.conn.Wait(ctx)
	l.err = err
	close(l.woken) // if it lives it is someone else's from here on
	if err != nil {
		l.wake()
		p.forget(l)
	}
}

// tend ends sessions that waited too long and sees to it that enough are ready. It reports whether the pool will need it
// again soon.
func (p *pool) tend(now time.Time, c *Config) bool {
	p.mu.Lock()
	var old []*line
	p.idle = slices.DeleteFunc(p.idle, func(l *line) bool {
		limit := c.Inline.Idle
		if l.key != "" {
			limit = min(limit, ownFor)
		}
		if now.Sub(l.since) < limit {
			return false
		}
		old = append(old, l)
		return true
	})
	for name, until := range p.down {
		if !until.After(now) {
			delete(p.down, name)
		}
	}
	traffic := now.Sub(p.last) < c.Inline.Idle
	alive := traffic || p.taken+len(p.idle)+p.making > 0
	p.mu.Unlock()
	for _, l := range old {
		if l.rouse() {
			p.all.quit(l)
		}
	}
	if traffic {
		p.fill(c)
	}
	return alive
}

// fill makes sessions ready, as many as are missing.
func (p *pool) fill(c *Config) {
	if p.proxies() { // the header comes first, so nothing can be made ready without the client
		return
	}
	p.mu.Lock()
	ready := 0
	for _, l := range p.idle {
		if l.key == "" {
			ready++
		}
	}
	n := min(c.Inline.Warm-ready-p.making, c.Inline.Sessions-p.taken-ready-p.making)
	p.making += max(n, 0)
	p.mu.Unlock()
	for range n {
		if !p.all.runs(func(ctx context.Context) { p.prepare(ctx, c) }) {
			p.made()
		}
	}
}

func (p *pool) made() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.making--
}

// prepare opens a session with the best primary that is open. What goes wrong leaves it to the next transaction to find out.
func (p *pool) prepare(ctx context.Context, c *Config) {
	defer p.made()
	for _, tier := range p.tiers {
		list, _ := p.candidates(tier, "")
		if len(list) == 0 {
			continue
		}
		to := list[rand.IntN(len(list))]
		l, err := p.dial(ctx, to, nil, "")
		if err == nil {
			p.rest(l, c)
			return
		}
		if _, hosts := errors.AsType[*smtpc.Error](err); hosts && ctx.Err() == nil {
			p.unreachable(to.String(), err, false, time.Time{})
		}
		return
	}
}

// close ends all sessions that wait.
func (p *pool) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, l := range idle {
		if l.rouse() {
			p.all.quit(l)
		}
	}
}

// cut ends all sessions that are used.
func (p *pool) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.busy {
		i.cut.Store(true)
		if c := i.conn.Load(); c != nil {
			c.Close()
		}
	}
}
