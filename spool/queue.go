package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"understudy/internal/mta"
)

// backing keeps messages for a queue. What it says is stored is on stable storage, as far as the engine promises.
type backing interface {
	// put stores a new message, which without p is at its beginning, and tells arrived of it within the same step.
	put(ctx context.Context, env *mta.Envelope, p *progress, body io.Reader) error
	// load reads a message and how far it has come; errMoved if it is not there.
	load(at loc) (*message, *progress, error)
	// persist makes changes durable, each one whole or not at all, and sets where reports came to lie.
	persist(changes []*change)
	// content opens what load described.
	content(at loc, m *message) (io.ReadCloser, error)
	// room reports whether size octets more would fit.
	room(size int64) error
	// ready reports whether a put could succeed.
	ready() error
	// usage fills in what is known of the disk.
	usage(u *Usage)
}

// errMoved says that a message is not, or no longer, where it was looked for.
var errMoved = errors.New("message is not in this place")

// errInDoubt says that a message's end was begun and could not be stored: it is there again after a restart, unless who
// holds its lease says the end once more.
var errInDoubt = errors.New("the message's end could not be stored")

// change is a new state of one message, to be made durable.
type change struct {
	id       mta.ID
	at       loc
	msg      *message  // nil if it was not needed
	p        *progress // nil: nothing is left of the message
	reports  []mta.Report
	repAt    []loc  // set by persist, one for each report
	override uint32 // set by the backing: the generation that holds it too, if it is not the message's own
	err      error  // set by persist

	settled []int // the settlements that it comes from
	dests   []string
	changed int // deliveries that an operation changed
}

// queue is what engines share: who may have which delivery, on top of what the backing keeps.
type queue struct {
	cfg   Config
	log   *slog.Logger
	back  backing
	hints hints
	stats *metrics

	life   sync.RWMutex // held for reading by every step that touches the backing, for writing by Close
	closed bool         // guarded by life

	mu     sync.Mutex // guards idx, coming and bad; held for no I/O
	idx    index
	coming map[mta.ID]struct{} // being put now
	bad    map[mta.ID]string   // messages found damaged, and why; at most maxBad

	// locks are held, by message, from reading its progress until the change is durable and indexed.
	locks [256]sync.Mutex
}

func newQueue(cfg Config, log *slog.Logger, m *metrics, back backing) *queue {
	return &queue{cfg: cfg, log: log, stats: m, back: back, idx: newIndex(time.Now()), coming: make(map[mta.ID]struct{}), bad: make(map[mta.ID]string)}
}

// enter begins a step that Close waits for.
func (q *queue) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	q.life.RLock()
	if q.closed {
		q.life.RUnlock()
		return ErrClosed
	}
	return nil
}

func (q *queue) leave() { q.life.RUnlock() }

// shut ends the queue, once: no step is under way when it returns, and none begins.
func (q *queue) shut() bool {
	q.life.Lock()
	defer q.life.Unlock()
	was := q.closed
	q.closed = true
	return !was
}

// forget gives the index's memory back; nothing may ask it any more.
func (q *queue) forget() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.idx.clear()
	q.idx.dests, q.idx.names, q.idx.leases = nil, nil, nil
}

// lock takes the locks of messages, each once and in one order; the function gives them back.
func (q *queue) lock(ids ...mta.ID) func() {
	var stripes []int
	for i := range ids {
		stripes = append(stripes, int(ids[i][len(mta.ID{})-1]))
	}
	slices.Sort(stripes)
	stripes = slices.Compact(stripes)
	for _, s := range stripes {
		q.locks[s].Lock()
	}
	return func() {
		for _, s := range stripes {
			q.locks[s].Unlock()
		}
	}
}

// Put implements Spool.
func (q *queue) Put(ctx context.Context, env *mta.Envelope, body io.Reader) error {
	_, err := q.take(ctx, env, arrive(env, time.Now().UTC()), body)
	return err
}

// take stores a message and its progress, and reports whether it is new.
func (q *queue) take(ctx context.Context, env *mta.Envelope, p *progress, body io.Reader) (bool, error) {
	if err := checkEnvelope(env); err != nil {
		return false, fmt.Errorf("spool: put: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return false, fmt.Errorf("spool: put %s: %w", env.ID, err)
	}
	there, err := q.announce(env.ID)
	if err != nil || there {
		return false, err
	}
	defer q.unannounce(env.ID)
	if err := q.back.put(ctx, env, p, body); err != nil {
		return false, fmt.Errorf("spool: put %s: %w", env.ID, err)
	}
	if !env.Due.After(time.Now()) && (p == nil || !p.held(env)) {
		q.hints.tell(env.Dests()...)
	}
	return true, nil
}

// arrived takes a message that was stored into the index.
func (q *queue) arrived(env *mta.Envelope, p *progress, at loc, size int64) {
	if p == nil {
		p = begin(env)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.idx.add(env, at, size, p)
}

// checkEnvelope refuses what could not be found again.
func checkEnvelope(env *mta.Envelope) error {
	if env.ID.IsZero() {
		return errors.New("the envelope has no ID")
	}
	if len(env.Rcpts) == 0 {
		return fmt.Errorf("%s: the envelope has no recipients", env.ID)
	}
	for i := range env.Rcpts {
		if env.Rcpts[i].Dest == "" {
			return fmt.Errorf("%s: recipient %d has no destination", env.ID, i)
		}
	}
	return nil
}

// announce reports whether a message is there already; if not, this caller alone may put it.
func (q *queue) announce(id mta.ID) (there bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.idx.find(id); ok {
		return true, nil
	}
	if _, ok := q.coming[id]; ok {
		return false, fmt.Errorf("spool: put %s: the same message is being put", id)
	}
	q.coming[id] = struct{}{}
	return false, nil
}

func (q *queue) unannounce(id mta.ID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.coming, id)
}

// full is the reply to mail that there is no room for (RFC 5321, 4.2.3; RFC 3463, 3.4).
func full(format string, args ...any) error {
	return fmt.Errorf("%w: %s", mta.NewReply(452, "4.3.1", "Insufficient system storage, try again later"), fmt.Sprintf(format, args...))
}

// Room implements Spool.
func (q *queue) Room(ctx context.Context, dest string, size int64) error {
	if err := q.enter(ctx); err != nil {
		return err
	}
	defer q.leave()
	if err := q.quota(dest, size); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if err := q.back.room(size); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// quota reports whether size octets more for dest are within the configured limits.
func (q *queue) quota(dest string, size int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m := int64(q.cfg.MaxSize); m > 0 && q.idx.bytes+size > m {
		return full("%d octets spooled, max_size is %d", q.idx.bytes, m)
	}
	n, ok := q.idx.names[dest]
	if m := int64(q.cfg.MaxDomainSize); ok && m > 0 && q.idx.dests[n].bytes+size > m {
		return full("%d octets spooled for %s, max_domain_size is %d", q.idx.dests[n].bytes, dest, m)
	}
	return nil
}

// quotas asks for all destinations of an envelope.
func (q *queue) quotas(env *mta.Envelope, size int64) error {
	for _, d := range env.Dests() {
		if err := q.quota(d, size); err != nil {
			return err
		}
	}
	return nil
}

// Claim implements Spool.
func (q *queue) Claim(ctx context.Context, r mta.ClaimRequest) ([]mta.Lease, error) {
	if err := q.enter(ctx); err != nil {
		return nil, err
	}
	defer q.leave()
	if r.Dest == "" && !r.Expired && r.ID.IsZero() {
		return nil, errors.New("spool: claim: no destination")
	}
	if r.Max <= 0 || r.Lease <= 0 {
		return nil, fmt.Errorf("spool: claim %s: max %d and lease %s must be above 0", r.Dest, r.Max, r.Lease)
	}
	now := time.Now()
	until := now.Add(r.Lease)
	q.mu.Lock()
	refs := q.idx.claim(r, now, until)
	q.mu.Unlock()
	leases := make([]mta.Lease, 0, len(refs))
	for _, ref := range refs {
		l, err := q.fill(ref, until)
		if err != nil {
			q.unreadable(ref, err)
			continue
		}
		leases = append(leases, l)
	}
	return leases, nil
}

// fill reads what a lease holds.
func (q *queue) fill(ref mta.LeaseRef, until time.Time) (mta.Lease, error) {
	m, p, err := q.read(ref.ID)
	if err != nil {
		return mta.Lease{}, err
	}
	l := mta.Lease{LeaseRef: ref, Until: until, Size: m.size, Envelope: m.env, Rcpts: p.statuses(m.env, ref.Dest, true)}
	if d := p.dest(ref.Dest); d != nil {
		l.Attempts, l.Released = int(d.attempts), d.released
	}
	return l, nil
}

// read loads a message by its ID, wherever it is by now. Whoever holds the message's lock uses readLocked.
func (q *queue) read(id mta.ID) (*message, *progress, error) {
	m, p, err := q.readLocked(id)
	if !errors.Is(err, ErrDamaged) {
		return m, p, err
	}
	// It may have ended on the disk and not yet in the index: between the two its lock is held.
	defer q.lock(id)()
	return q.readLocked(id)
}

func (q *queue) readLocked(id mta.ID) (*message, *progress, error) {
	for {
		at, ok := q.where(id)
		if !ok {
			return nil, nil, ErrNotFound
		}
		m, p, err := q.back.load(at)
		if err == nil && m.env.ID != id {
			err = fmt.Errorf("%w: the record at %d/%d is of %s", ErrDamaged, at.gen, at.seq, m.env.ID)
		}
		if !errors.Is(err, errMoved) {
			return m, p, err
		}
		if now, ok := q.where(id); ok && now == at {
			return nil, nil, fmt.Errorf("%w: no record at %d/%d", ErrDamaged, at.gen, at.seq)
		}
	}
}

func (q *queue) where(id mta.ID) (loc, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m, ok := q.idx.find(id)
	if !ok {
		return loc{}, false
	}
	return q.idx.msgs.at(m).loc, true
}

// unreadable deals with a claimed delivery whose record can't be read: it is held until a restart, and never lost
// sight of.
func (q *queue) unreadable(ref mta.LeaseRef, err error) {
	if errors.Is(err, ErrNotFound) {
		return // ended while it was claimed
	}
	q.mu.Lock()
	if i, ok := q.idx.leased(ref); ok {
		q.idx.endLease(i)
		if errors.Is(err, ErrDamaged) {
			q.idx.hold(i)
		} else {
			q.idx.shun(i, time.Now().Add(retryRead))
		}
	}
	if errors.Is(err, ErrDamaged) {
		q.isBad(ref.ID, err.Error())
		q.stats.damaged.Inc()
	}
	q.mu.Unlock()
	q.log.LogAttrs(context.Background(), slog.LevelError, "spooled message can't be read",
		slog.String("id", ref.ID.String()), slog.String("domain", ref.Dest), slog.Any("err", err))
}

// retryRead keeps a storage that fails from being asked in a tight loop.
const retryRead = 10 * time.Second

// Extend implements Spool.
func (q *queue) Extend(ctx context.Context, r mta.LeaseRef, d time.Duration) (time.Time, error) {
	if err := q.enter(ctx); err != nil {
		return time.Time{}, err
	}
	defer q.leave()
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	q.idx.lapse(now)
	i, ok := q.idx.leased(r)
	if !ok {
		return time.Time{}, fmt.Errorf("spool: extend %s: %w", r.ID, ErrLeaseLost)
	}
	until := now.Add(d)
	q.idx.extend(i, until)
	return until, nil
}

// Release implements Spool.
func (q *queue) Release(ctx context.Context, notBefore time.Time, refs ...mta.LeaseRef) error {
	if err := q.enter(ctx); err != nil {
		return err
	}
	defer q.leave()
	var errs []error
	var back []string
	q.mu.Lock()
	for _, r := range refs {
		i, ok := q.idx.leased(r)
		if !ok {
			errs = append(errs, fmt.Errorf("spool: release %s: %w", r.ID, ErrLeaseLost))
			continue
		}
		q.idx.endLease(i)
		q.idx.postpone(i, notBefore)
		back = append(back, r.Dest)
	}
	q.mu.Unlock()
	if !notBefore.After(time.Now()) {
		q.hints.tell(back...)
	}
	return errors.Join(errs...)
}

// Settle implements Spool.
func (q *queue) Settle(ctx context.Context, s ...mta.Settlement) []error {
	errs := make([]error, len(s))
	if err := q.enter(ctx); err != nil {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	defer q.leave()
	ids := make([]mta.ID, len(s))
	for i := range s {
		ids[i] = s[i].Ref.ID
	}
	defer q.lock(ids...)()
	work := newWork(q)
	used := make(map[mta.LeaseRef]bool, len(s))
	for i := range s {
		if used[s[i].Ref] {
			errs[i] = ErrLeaseLost
			continue
		}
		errs[i] = work.settle(i, &s[i])
		used[s[i].Ref] = errs[i] == nil
	}
	q.store(work.changes)
	for _, c := range work.changes {
		for _, i := range c.settled {
			errs[i] = c.err
		}
	}
	q.indexSettled(work.changes, s)
	for i := range errs {
		if errs[i] != nil {
			errs[i] = fmt.Errorf("spool: settle %s: %w", s[i].Ref.ID, errs[i])
		}
	}
	return errs
}

// store makes changes durable; a message whose recipients have all ended goes.
func (q *queue) store(changes []*change) {
	for _, c := range changes {
		if c.p != nil && c.p.ended() {
			c.p = nil
		}
	}
	if len(changes) > 0 {
		q.back.persist(changes)
	}
}

// indexSettled brings the index to what was stored. A settlement that could not be stored keeps its lease: its holder
// may say it again.
func (q *queue) indexSettled(changes []*change, s []mta.Settlement) {
	var fresh []string
	q.mu.Lock()
	for _, c := range changes {
		if c.err != nil {
			continue
		}
		for _, i := range c.settled {
			if d, ok := q.idx.leased(s[i].Ref); ok {
				q.idx.endLease(d)
			}
		}
		q.indexChange(c)
		for i := range c.reports {
			r := &c.reports[i]
			q.idx.add(r.Envelope, c.repAt[i], int64(len(r.Content)), begin(r.Envelope))
			fresh = append(fresh, r.Envelope.Dests()...)
		}
	}
	q.mu.Unlock()
	q.hints.tell(fresh...)
}

// indexChange needs q.mu.
func (q *queue) indexChange(c *change) {
	m, ok := q.idx.find(c.id)
	switch {
	case !ok:
	case c.p == nil:
		q.idx.remove(m)
	default:
		q.idx.update(m, c.msg.env, c.p)
	}
}

// work collects changes, one a message, so that two deliveries of one message change it one after the other.
type work struct {
	q       *queue
	byID    map[mta.ID]*change
	changes []*change
}

func newWork(q *queue) *work { return &work{q: q, byID: make(map[mta.ID]*change)} }

// settle adds one settlement to the message's change.
func (w *work) settle(n int, s *mta.Settlement) error {
	w.q.mu.Lock()
	i, ok := w.q.idx.leased(s.Ref)
	var row msgRow
	if ok {
		row = *w.q.idx.msgs.at(w.q.idx.dels.at(i).msg)
	}
	w.q.mu.Unlock()
	if !ok {
		return ErrLeaseLost
	}
	for i := range s.Reports {
		if err := checkEnvelope(s.Reports[i].Envelope); err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	if c := w.simple(&row, s); c != nil {
		c.settled = append(c.settled, n)
		return nil
	}
	c, err := w.change(s.Ref.ID)
	if err != nil {
		return err
	}
	if err := c.p.settle(c.msg.env, s.Ref.Dest, s, time.Now()); err != nil {
		return err
	}
	c.reports = append(c.reports, s.Reports...)
	c.settled = append(c.settled, n)
	return nil
}

// simple is the common case, one recipient and its end: nothing need be read to know that the message is done.
func (w *work) simple(row *msgRow, s *mta.Settlement) *change {
	if row.rcpts != 1 || row.size > inlineMax || len(s.Reports) > 0 || len(s.Results) != 1 || s.Results[0].N != 0 || !s.Results[0].Outcome.Ended() {
		return nil
	}
	c := &change{id: row.id, at: row.loc}
	w.changes = append(w.changes, c)
	return c
}

// change gives the change of a message, loaded.
func (w *work) change(id mta.ID) (*change, error) {
	if c := w.byID[id]; c != nil {
		return c, nil
	}
	m, p, err := w.q.readLocked(id)
	if err != nil {
		return nil, err
	}
	at, _ := w.q.where(id) // the message's lock keeps it there
	c := &change{id: id, at: at, msg: m, p: p}
	w.byID[id] = c
	w.changes = append(w.changes, c)
	return c, nil
}

// Body implements Spool.
func (q *queue) Body(ctx context.Context, id mta.ID) (io.ReadCloser, error) {
	if err := q.enter(ctx); err != nil {
		return nil, err
	}
	r, err := q.body(id)
	q.leave()
	if errors.Is(err, ErrDamaged) {
		q.damage(id, err)
	}
	if err != nil {
		return nil, fmt.Errorf("spool: body of %s: %w", id, err)
	}
	return &alertReader{ReadCloser: r, q: q, id: id}, nil
}

// body opens the content, wherever it is by now; see read.
func (q *queue) body(id mta.ID) (io.ReadCloser, error) {
	r, err := q.bodyLocked(id)
	if !errors.Is(err, ErrDamaged) {
		return r, err
	}
	defer q.lock(id)()
	return q.bodyLocked(id)
}

func (q *queue) bodyLocked(id mta.ID) (io.ReadCloser, error) {
	for {
		at, ok := q.where(id)
		if !ok {
			return nil, ErrNotFound
		}
		m, _, err := q.back.load(at)
		if err == nil {
			var r io.ReadCloser
			if r, err = q.back.content(at, m); err == nil {
				return r, nil
			}
		}
		if !errors.Is(err, errMoved) {
			return nil, err
		}
		if !q.movedFrom(id, at) {
			return nil, fmt.Errorf("%w: nothing at %d/%d", ErrDamaged, at.gen, at.seq)
		}
	}
}

func (q *queue) movedFrom(id mta.ID, at loc) bool {
	now, ok := q.where(id)
	return !ok || now != at
}

// alertReader passes content on and holds the message once it proves damaged.
type alertReader struct {
	io.ReadCloser
	q    *queue
	id   mta.ID
	told bool
}

func (r *alertReader) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	if err != nil && errors.Is(err, ErrDamaged) && !r.told {
		r.told = true
		r.q.damage(r.id, err)
	}
	return n, err
}

// damage holds a message whose content is not what was stored, for good, and tells.
func (q *queue) damage(id mta.ID, cause error) {
	q.stats.damaged.Inc()
	q.log.LogAttrs(context.Background(), slog.LevelError, "spooled content is damaged, message held",
		slog.String("id", id.String()), slog.Any("err", cause))
	if q.enter(context.Background()) != nil {
		return
	}
	defer q.leave()
	defer q.lock(id)()
	w := newWork(q)
	c, err := w.change(id)
	if err == nil {
		c.p.damaged = true
		c.p.rev++
		q.store(w.changes)
		err = c.err
	}
	if err != nil {
		q.log.LogAttrs(context.Background(), slog.LevelError, "hold of a damaged message is not stored",
			slog.String("id", id.String()), slog.Any("err", err))
		return
	}
	q.mu.Lock()
	q.indexChange(c)
	q.isBad(id, cause.Error())
	q.mu.Unlock()
}

// maxBad bounds what is remembered for Damages.
const maxBad = 1000

// isBad needs q.mu.
func (q *queue) isBad(id mta.ID, text string) {
	if len(q.bad) < maxBad {
		q.bad[id] = text
	}
}

// badNow lists the damaged messages that are still held.
func (q *queue) badNow() []Damage {
	q.mu.Lock()
	defer q.mu.Unlock()
	var list []Damage
	for id, text := range q.bad {
		if m, ok := q.idx.find(id); !ok || !q.idx.holds(m) {
			delete(q.bad, id)
			continue
		}
		list = append(list, Damage{ID: id, Text: text})
	}
	slices.SortFunc(list, func(a, b Damage) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return list
}

// DueDests implements Spool.
func (q *queue) DueDests(ctx context.Context, ignoreDue bool) ([]string, error) {
	if err := q.enter(ctx); err != nil {
		return nil, err
	}
	defer q.leave()
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.idx.due(time.Now(), ignoreDue), nil
}

// NextDue implements Spool.
func (q *queue) NextDue(ctx context.Context) (time.Time, error) {
	if err := q.enter(ctx); err != nil {
		return time.Time{}, err
	}
	defer q.leave()
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.idx.nextDue(time.Now()), nil
}

// Watch implements Spool.
func (q *queue) Watch(ctx context.Context) (<-chan string, error) { return q.hints.watch(ctx) }

// Stats implements Spool.
func (q *queue) Stats(ctx context.Context) ([]DestStats, error) {
	if err := q.enter(ctx); err != nil {
		return nil, err
	}
	defer q.leave()
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.idx.stats(time.Now()), nil
}

// Usage implements Spool.
func (q *queue) Usage(ctx context.Context) (Usage, error) {
	if err := q.enter(ctx); err != nil {
		return Usage{}, err
	}
	defer q.leave()
	u := Usage{MaxBytes: int64(q.cfg.MaxSize), AsOf: time.Now()}
	q.mu.Lock()
	u.Messages, u.Bytes = int64(q.idx.byID.n), q.idx.bytes
	q.mu.Unlock()
	q.back.usage(&u)
	return u, nil
}

// Ready implements Spool.
func (q *queue) Ready(ctx context.Context) error {
	if err := q.enter(ctx); err != nil {
		return err
	}
	defer q.leave()
	return q.back.ready()
}
