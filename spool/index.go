package spool

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"time"

	"understudy/internal/mta"
)

// index knows what waits. It is all that stays in memory of a spooled message, so its rows are small and hold no
// pointers: a million messages cost about 90 MB and no work for the garbage collector. It does no I/O and takes no
// lock; it is told the time.
type index struct {
	byID  idTable
	msgs  rows[msgRow]
	dels  rows[delRow]
	dests []*destRow // nil where a number is free
	names map[string]uint32
	free  []uint32 // numbers of dests

	leases    map[uint32]lease // by row in dels
	token     uint64
	nextLapse int64 // no lease lapses before; milliseconds
	minExpiry int64 // no claimable delivery expires before

	bytes int64
}

const (
	none  = math.MaxUint32
	never = math.MaxInt64
)

// msgRow is one message.
type msgRow struct {
	id      mta.ID
	loc     loc
	size    int64
	expires int64  // milliseconds; never if it does not
	first   uint32 // its first delivery
	rcpts   uint32 // recipients in the envelope
}

// loc is where a message is stored: a generation and a number in it.
type loc struct{ gen, seq uint32 }

// delRow is one delivery. heap is its place among the claimable ones of its destination, or none.
type delRow struct {
	due      int64 // milliseconds
	msg      uint32
	next     uint32 // next delivery of the message
	dest     uint32
	heap     uint32
	attempts uint32
	held     bool
	leased   bool
}

// destRow counts what waits for a destination and orders what is claimable: a heap by due, then ID.
type destRow struct {
	name                          string
	ready                         []uint32
	messages, bytes, leased, held int64
}

// lease is one that is out, or one that lapsed and was not taken again: what its holder has to say is still true.
type lease struct {
	token  uint64
	until  int64
	lapsed bool
}

func newIndex(now time.Time) index {
	return index{
		names:     make(map[string]uint32),
		leases:    make(map[uint32]lease),
		token:     uint64(max(now.UnixNano(), 0)), // rises over restarts too
		nextLapse: never,
		minExpiry: never,
	}
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	// Rounded up: a delivery is not due before its time.
	return t.Add(time.Millisecond - 1).UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// add takes a message in.
func (x *index) add(env *mta.Envelope, at loc, size int64, p *progress) {
	m := x.msgs.add()
	row := x.msgs.at(m)
	*row = msgRow{id: env.ID, loc: at, size: size, expires: never, first: none, rcpts: uint32(len(env.Rcpts))}
	if !env.Expires.IsZero() {
		row.expires = millis(env.Expires)
	}
	x.byID.add(m, &x.msgs)
	x.bytes += size
	for i := range p.dests {
		if s := p.standing(env, &p.dests[i]); s.open > 0 {
			x.addDelivery(m, &p.dests[i], s.held)
		}
	}
}

func (x *index) addDelivery(m uint32, d *destProgress, held bool) {
	i := x.dels.add()
	row := x.msgs.at(m)
	*x.dels.at(i) = delRow{
		due: millis(d.due), msg: m, next: row.first, dest: x.dest(d.dest), heap: none, attempts: d.attempts, held: held,
	}
	row.first = i
	dest := x.dests[x.dels.at(i).dest]
	dest.messages++
	dest.bytes += row.size
	if held {
		dest.held++
	}
	x.enqueue(i)
}

// dest gives the number of a destination's name.
func (x *index) dest(name string) uint32 {
	if n, ok := x.names[name]; ok {
		return n
	}
	n := uint32(len(x.dests))
	if f := len(x.free); f > 0 {
		n, x.free = x.free[f-1], x.free[:f-1]
	} else {
		x.dests = append(x.dests, nil)
	}
	x.dests[n] = &destRow{name: name}
	x.names[name] = n
	return n
}

// find gives a message's row.
func (x *index) find(id mta.ID) (uint32, bool) {
	slot, ok := x.byID.find(&id, &x.msgs)
	if !ok {
		return none, false
	}
	return x.byID.slots[slot] - 1, true
}

// delivery gives the row of a message's delivery to a destination.
func (x *index) delivery(m uint32, dest string) (uint32, bool) {
	for i := x.msgs.at(m).first; i != none; i = x.dels.at(i).next {
		if x.dests[x.dels.at(i).dest].name == dest {
			return i, true
		}
	}
	return none, false
}

// update brings a message to p: deliveries that ended go, the others get their due and standing. It reports whether
// the message is gone.
func (x *index) update(m uint32, env *mta.Envelope, p *progress) (gone bool) {
	row := x.msgs.at(m)
	for i := row.first; i != none; {
		next := x.dels.at(i).next
		d := p.dest(x.dests[x.dels.at(i).dest].name)
		if s := p.standing(env, d); s.open > 0 {
			x.change(i, d, s.held)
		} else {
			x.removeDelivery(i)
		}
		i = next
	}
	if row.first == none {
		x.removeMessage(m)
		return true
	}
	return false
}

func (x *index) change(i uint32, d *destProgress, held bool) {
	row := x.dels.at(i)
	if row.held != held {
		row.held = held
		if held {
			x.dests[row.dest].held++
		} else {
			x.dests[row.dest].held--
		}
	}
	x.dequeue(i)
	row.due, row.attempts = millis(d.due), d.attempts
	x.enqueue(i)
}

// remove takes a whole message out.
func (x *index) remove(m uint32) {
	for i := x.msgs.at(m).first; i != none; {
		next := x.dels.at(i).next
		x.removeDelivery(i)
		i = next
	}
	x.removeMessage(m)
}

func (x *index) removeMessage(m uint32) {
	row := x.msgs.at(m)
	x.bytes -= row.size
	x.byID.remove(&row.id, &x.msgs)
	x.msgs.remove(m)
	if x.byID.n == 0 {
		x.clear()
	}
}

// clear gives the memory back.
func (x *index) clear() {
	x.byID = idTable{}
	x.msgs.clear()
	x.dels.clear()
}

// each calls f for every message until it returns false.
func (x *index) each(f func(m uint32, row *msgRow) bool) {
	for m := range x.msgs.used {
		if row := x.msgs.at(m); !row.id.IsZero() && !f(m, row) {
			return
		}
	}
}

func (x *index) removeDelivery(i uint32) {
	x.endLease(i)
	x.dequeue(i)
	row := *x.dels.at(i)
	m := x.msgs.at(row.msg)
	if m.first == i {
		m.first = row.next
	}
	for j := m.first; j != none; j = x.dels.at(j).next {
		if x.dels.at(j).next == i {
			x.dels.at(j).next = row.next
		}
	}
	d := x.dests[row.dest]
	d.messages--
	d.bytes -= m.size
	if row.held {
		d.held--
	}
	if d.messages == 0 {
		delete(x.names, d.name)
		x.dests[row.dest] = nil
		x.free = append(x.free, row.dest)
	}
	x.dels.remove(i)
	x.dels.at(i).dest = none
}

// lease hands a claimable delivery out.
func (x *index) lease(i uint32, until time.Time) uint64 {
	x.dequeue(i)
	x.setLeased(i, true)
	x.token++
	x.leases[i] = lease{token: x.token, until: millis(until)}
	x.nextLapse = min(x.nextLapse, millis(until))
	return x.token
}

// leased gives the delivery of a lease that no one else was given since.
func (x *index) leased(r mta.LeaseRef) (uint32, bool) {
	m, ok := x.find(r.ID)
	if !ok {
		return none, false
	}
	i, ok := x.delivery(m, r.Dest)
	if !ok {
		return none, false
	}
	l, ok := x.leases[i]
	return i, ok && l.token == r.Token
}

func (x *index) extend(i uint32, until time.Time) {
	x.dequeue(i)
	x.setLeased(i, true)
	x.leases[i] = lease{token: x.leases[i].token, until: millis(until)}
	x.nextLapse = min(x.nextLapse, millis(until))
}

// endLease takes a lease back; the delivery is not claimable until enqueue.
func (x *index) endLease(i uint32) {
	x.setLeased(i, false)
	delete(x.leases, i)
}

func (x *index) setLeased(i uint32, leased bool) {
	row := x.dels.at(i)
	switch {
	case leased && !row.leased:
		x.dests[row.dest].leased++
	case !leased && row.leased:
		x.dests[row.dest].leased--
	}
	row.leased = leased
}

// lapse gives back what was leased for too long.
func (x *index) lapse(now time.Time) {
	ms := now.UnixMilli()
	if ms < x.nextLapse {
		return
	}
	x.nextLapse = never
	for i, l := range x.leases {
		switch {
		case l.lapsed:
		case l.until > ms:
			x.nextLapse = min(x.nextLapse, l.until)
		default:
			l.lapsed = true
			x.leases[i] = l
			x.setLeased(i, false)
			x.enqueue(i)
		}
	}
}

// enqueue makes a delivery claimable, unless it is held or leased.
func (x *index) enqueue(i uint32) {
	row := x.dels.at(i)
	if row.held || row.leased || row.heap != none {
		return
	}
	x.minExpiry = min(x.minExpiry, x.msgs.at(row.msg).expires)
	d := x.dests[row.dest]
	row.heap = uint32(len(d.ready))
	d.ready = append(d.ready, i)
	x.up(d, len(d.ready)-1)
}

func (x *index) dequeue(i uint32) {
	row := x.dels.at(i)
	if row.heap == none {
		return
	}
	d := x.dests[row.dest]
	at, last := int(row.heap), len(d.ready)-1
	x.swap(d, at, last)
	d.ready = d.ready[:last]
	row.heap = none
	if at < last {
		x.up(d, at)
		x.down(d, at)
	}
	if cap(d.ready) > 1024 && len(d.ready) < cap(d.ready)/4 {
		d.ready = slices.Clone(d.ready)
	}
}

func (x *index) less(a, b uint32) bool {
	ra, rb := x.dels.at(a), x.dels.at(b)
	if ra.due != rb.due {
		return ra.due < rb.due
	}
	return bytes.Compare(x.msgs.at(ra.msg).id[:], x.msgs.at(rb.msg).id[:]) < 0
}

func (x *index) swap(d *destRow, a, b int) {
	d.ready[a], d.ready[b] = d.ready[b], d.ready[a]
	x.dels.at(d.ready[a]).heap = uint32(a)
	x.dels.at(d.ready[b]).heap = uint32(b)
}

func (x *index) up(d *destRow, i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !x.less(d.ready[i], d.ready[parent]) {
			return
		}
		x.swap(d, i, parent)
		i = parent
	}
}

func (x *index) down(d *destRow, i int) {
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(d.ready); c++ {
			if x.less(d.ready[c], d.ready[least]) {
				least = c
			}
		}
		if least == i {
			return
		}
		x.swap(d, i, least)
		i = least
	}
}

// claim picks up to r.Max deliveries and leases them until the given time.
func (x *index) claim(r mta.ClaimRequest, now, until time.Time) []mta.LeaseRef {
	x.lapse(now)
	var refs []mta.LeaseRef
	take := func(i uint32) {
		ref := mta.LeaseRef{ID: x.msgs.at(x.dels.at(i).msg).id, Dest: x.dests[x.dels.at(i).dest].name}
		ref.Token = x.lease(i, until)
		refs = append(refs, ref)
	}
	for _, i := range x.candidates(r, now) {
		take(i)
	}
	if r.Expired || !r.ID.IsZero() {
		return refs
	}
	n, ok := x.names[r.Dest]
	if !ok {
		return refs
	}
	d, ms := x.dests[n], now.UnixMilli()
	for len(refs) < r.Max && len(d.ready) > 0 {
		i := d.ready[0]
		if !r.IgnoreDue && x.dels.at(i).due > ms {
			break
		}
		take(i)
	}
	return refs
}

// candidates finds what a claim asks for that is not simply the head of a destination: one message, or the expired.
func (x *index) candidates(r mta.ClaimRequest, now time.Time) []uint32 {
	ms := now.UnixMilli()
	fits := func(i uint32) bool {
		row := x.dels.at(i)
		return row.heap != none && (r.Dest == "" || x.dests[row.dest].name == r.Dest) &&
			(!r.Expired || x.msgs.at(row.msg).expires <= ms) &&
			(r.Expired || r.IgnoreDue || row.due <= ms)
	}
	var list []uint32
	switch {
	case !r.ID.IsZero():
		m, ok := x.find(r.ID)
		if !ok {
			return nil
		}
		for i := x.msgs.at(m).first; i != none; i = x.dels.at(i).next {
			if fits(i) {
				list = append(list, i)
			}
		}
	case r.Expired && ms >= x.minExpiry:
		list = x.expired(fits)
	}
	slices.SortFunc(list, func(a, b uint32) int {
		if x.less(a, b) {
			return -1
		}
		return 1
	})
	return list[:min(len(list), r.Max)]
}

// expired looks through everything; minExpiry keeps that rare.
func (x *index) expired(fits func(i uint32) bool) []uint32 {
	var list []uint32
	x.minExpiry = never
	for _, d := range x.dests {
		if d == nil {
			continue
		}
		for _, i := range d.ready {
			x.minExpiry = min(x.minExpiry, x.msgs.at(x.dels.at(i).msg).expires)
			if fits(i) {
				list = append(list, i)
			}
		}
	}
	return list
}

// due lists the destinations with something to claim.
func (x *index) due(now time.Time, ignoreDue bool) []string {
	x.lapse(now)
	var names []string
	for _, d := range x.dests {
		if d != nil && len(d.ready) > 0 && (ignoreDue || x.dels.at(d.ready[0]).due <= now.UnixMilli()) {
			names = append(names, d.name)
		}
	}
	slices.Sort(names)
	return names
}

// nextDue is when something becomes claimable next.
func (x *index) nextDue(now time.Time) time.Time {
	x.lapse(now)
	next := int64(never)
	for _, l := range x.leases {
		if !l.lapsed {
			next = min(next, l.until)
		}
	}
	for _, d := range x.dests {
		if d != nil && len(d.ready) > 0 {
			next = min(next, x.dels.at(d.ready[0]).due)
		}
	}
	switch next {
	case never:
		return time.Time{}
	case 0: // due since receipt
		return now
	}
	return fromMillis(next)
}

// stats makes a row per destination.
func (x *index) stats(now time.Time) []DestStats {
	x.lapse(now)
	oldest := make([]int64, len(x.dests))
	for p := range x.dels.used {
		row := x.dels.at(p)
		if row.dest >= uint32(len(x.dests)) || x.dests[row.dest] == nil {
			continue // a free row
		}
		m := x.msgs.at(row.msg)
		if t := m.id.Time().UnixMilli(); !m.id.IsZero() && (oldest[row.dest] == 0 || t < oldest[row.dest]) {
			oldest[row.dest] = t
		}
	}
	var list []DestStats
	for n, d := range x.dests {
		if d == nil {
			continue
		}
		s := DestStats{
			Dest: d.name, Messages: d.messages, Bytes: d.bytes, Leased: d.leased, Held: d.held, Oldest: fromMillis(oldest[n]),
		}
		if len(d.ready) > 0 {
			s.NextDue = fromMillis(max(x.dels.at(d.ready[0]).due, oldest[n]))
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b DestStats) int { return cmp.Compare(a.Dest, b.Dest) })
	return list
}

// ids lists messages after a cursor in the order of ID: at most n that match what the index knows of q; n < 0 is all.
func (x *index) ids(q *Query, after mta.ID, inclusive bool, n int) []mta.ID {
	var list []mta.ID
	trim := func(limit int) {
		slices.SortFunc(list, func(a, b mta.ID) int { return bytes.Compare(a[:], b[:]) })
		list = list[:min(len(list), limit)]
	}
	x.each(func(m uint32, row *msgRow) bool {
		if c := bytes.Compare(row.id[:], after[:]); c < 0 || c == 0 && !inclusive || !x.matches(q, m) {
			return true
		}
		list = append(list, row.id)
		if n >= 0 && len(list) >= 8*n+1024 {
			trim(n)
		}
		return true
	})
	if n < 0 {
		n = len(list)
	}
	trim(n)
	return list
}

func (x *index) matches(q *Query, m uint32) bool {
	if !q.Before.IsZero() && !x.msgs.at(m).id.Time().Before(q.Before) {
		return false
	}
	for i := x.msgs.at(m).first; i != none; i = x.dels.at(i).next {
		if x.deliveryMatches(q, i) {
			return true
		}
	}
	return false
}

func (x *index) deliveryMatches(q *Query, i uint32) bool {
	row := x.dels.at(i)
	return (q.Dest == "" || x.dests[row.dest].name == q.Dest) && (q.Held == nil || *q.Held == row.held)
}

// hold keeps a delivery from being claimed, in memory only.
func (x *index) hold(i uint32) {
	x.dequeue(i)
	if row := x.dels.at(i); !row.held {
		row.held = true
		x.dests[row.dest].held++
	}
}

// holds reports whether any delivery of a message is held.
func (x *index) holds(m uint32) bool {
	for i := x.msgs.at(m).first; i != none; i = x.dels.at(i).next {
		if x.dels.at(i).held {
			return true
		}
	}
	return false
}

// postpone puts a delivery back, due at t or when it was due, whichever is later.
func (x *index) postpone(i uint32, t time.Time) {
	x.dequeue(i)
	row := x.dels.at(i)
	row.due = max(row.due, millis(t))
	x.enqueue(i)
}
