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
// pointers: a million messages cost about 100 MB and no work for the garbage collector. It does no I/O and takes no
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

	bytes  int64
	looked int // rows that were compared so far: tests hold it against a bound
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
	expires int64  // milliseconds; never if it does not; later for what could not be read
	first   uint32 // its first delivery
	rcpts   uint32 // recipients in the envelope
}

// loc is where a message is stored: a generation and a number in it.
type loc struct{ gen, seq uint32 }

// delRow is one delivery.
type delRow struct {
	due      int64 // milliseconds
	msg      uint32
	next     uint32 // next delivery of the message
	dest     uint32
	place    [orders]uint32 // in the heaps of its destination; none if it is not in one
	attempts uint16         // or more
	held     bool
	leased   bool
}

// destRow counts what waits for a destination and keeps what is claimable in two orders, each a heap.
type destRow struct {
	name                          string
	ready                         [orders][]uint32
	messages, bytes, leased, held int64
}

// order is one in which deliveries are claimed.
type order int

const (
	byDue    order = iota // then by ID
	byExpiry              // then by due; only what expires
	orders
)

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
		due: millis(d.due), msg: m, next: row.first, dest: x.dest(d.dest), place: [orders]uint32{none, none},
		attempts: saturate(d.attempts), held: held,
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

// saturate keeps a row at 32 octets.
func saturate(attempts uint32) uint16 { return uint16(min(attempts, math.MaxUint16)) }

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
	row.due, row.attempts = millis(d.due), saturate(d.attempts)
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
	if row.held || row.leased || row.claimable() {
		return
	}
	x.push(byDue, i)
	if x.msgs.at(row.msg).expires != never {
		x.push(byExpiry, i)
	}
}

func (x *index) dequeue(i uint32) {
	x.pull(byDue, i)
	x.pull(byExpiry, i)
}

func (row *delRow) claimable() bool { return row.place[byDue] != none }

func (x *index) push(o order, i uint32) {
	heap := &x.dests[x.dels.at(i).dest].ready[o]
	*heap = append(*heap, i)
	x.rise(o, *heap, len(*heap)-1, i)
}

// pull takes a delivery out of a heap, if it is in it.
func (x *index) pull(o order, i uint32) {
	row := x.dels.at(i)
	if row.place[o] == none {
		return
	}
	heap := &x.dests[row.dest].ready[o]
	last := len(*heap) - 1
	moved := (*heap)[last]
	*heap = (*heap)[:last]
	if moved != i {
		x.rise(o, *heap, x.sink(o, *heap, int(row.place[o])), moved)
	}
	row.place[o] = none
	if cap(*heap) > 1024 && len(*heap) < cap(*heap)/4 {
		*heap = slices.Clone(*heap)
	}
}

func (x *index) less(o order, a, b uint32) bool {
	x.looked++
	ra, rb := x.dels.at(a), x.dels.at(b)
	ma, mb := x.msgs.at(ra.msg), x.msgs.at(rb.msg)
	if o == byExpiry && ma.expires != mb.expires {
		return ma.expires < mb.expires
	}
	if ra.due != rb.due {
		return ra.due < rb.due
	}
	return bytes.Compare(ma.id[:], mb.id[:]) < 0
}

func (x *index) put(o order, heap []uint32, at int, i uint32) {
	heap[at] = i
	x.dels.at(i).place[o] = uint32(at)
}

// rise puts a delivery where it belongs on the way from at to the top.
func (x *index) rise(o order, heap []uint32, at int, i uint32) {
	for at > 0 {
		parent := (at - 1) / 2
		if !x.less(o, i, heap[parent]) {
			break
		}
		x.put(o, heap, at, heap[parent])
		at = parent
	}
	x.put(o, heap, at, i)
}

// sink fills at from below and gives the place that becomes free at the bottom. What is put there came from the bottom,
// and mostly stays: so it is not compared with each that rises.
func (x *index) sink(o order, heap []uint32, at int) int {
	for {
		least := 2*at + 1
		if least >= len(heap) {
			return at
		}
		if next := least + 1; next < len(heap) && x.less(o, heap[next], heap[least]) {
			least = next
		}
		x.put(o, heap, at, heap[least])
		at = least
	}
}

// first is the delivery of a destination that is claimed first.
func (d *destRow) first(o order) (uint32, bool) {
	if len(d.ready[o]) == 0 {
		return none, false
	}
	return d.ready[o][0], true
}

// claim picks up to r.Max deliveries and leases them until the given time.
func (x *index) claim(r mta.ClaimRequest, now, until time.Time) []mta.LeaseRef {
	x.lapse(now)
	var list []uint32
	ms := now.UnixMilli()
	switch {
	case !r.ID.IsZero():
		list = x.claimOf(r, ms)
	case r.Expired:
		list = x.expired(r, ms)
	default:
		list = x.head(r, ms)
	}
	refs := make([]mta.LeaseRef, len(list))
	for n, i := range list {
		row := x.dels.at(i)
		refs[n] = mta.LeaseRef{ID: x.msgs.at(row.msg).id, Dest: x.dests[row.dest].name}
		refs[n].Token = x.lease(i, until)
	}
	return refs
}

// head takes what is due first at a destination.
func (x *index) head(r mta.ClaimRequest, ms int64) (list []uint32) {
	n, ok := x.names[r.Dest]
	if !ok {
		return nil
	}
	for d := x.dests[n]; len(list) < r.Max; {
		i, ok := d.first(byDue)
		if !ok || !r.IgnoreDue && x.dels.at(i).due > ms {
			break
		}
		x.dequeue(i)
		list = append(list, i)
	}
	return list
}

// expired takes what expired first at a destination, or at one after the other until there are enough, due or not. It
// comes in the order of due.
func (x *index) expired(r mta.ClaimRequest, ms int64) (list []uint32) {
	dests := x.dests
	if r.Dest != "" {
		n, ok := x.names[r.Dest]
		if !ok {
			return nil
		}
		dests = dests[n : n+1]
	}
	for _, d := range dests {
		for d != nil && len(list) < r.Max {
			i, ok := d.first(byExpiry)
			if !ok || x.msgs.at(x.dels.at(i).msg).expires > ms {
				break
			}
			x.dequeue(i)
			list = append(list, i)
		}
	}
	x.sort(list)
	return list
}

// claimOf takes what fits of one message.
func (x *index) claimOf(r mta.ClaimRequest, ms int64) (list []uint32) {
	m, ok := x.find(r.ID)
	if !ok || r.Expired && x.msgs.at(m).expires > ms {
		return nil
	}
	for i := x.msgs.at(m).first; i != none; i = x.dels.at(i).next {
		row := x.dels.at(i)
		if row.claimable() && (r.Dest == "" || x.dests[row.dest].name == r.Dest) && (r.Expired || r.IgnoreDue || row.due <= ms) {
			list = append(list, i)
		}
	}
	x.sort(list)
	return list[:min(len(list), r.Max)]
}

// sort brings deliveries into the order of due.
func (x *index) sort(list []uint32) {
	slices.SortFunc(list, func(a, b uint32) int {
		if x.less(byDue, a, b) {
			return -1
		}
		return 1
	})
}

// due lists the destinations with something to claim.
func (x *index) due(now time.Time, ignoreDue bool) []string {
	x.lapse(now)
	var names []string
	for _, d := range x.dests {
		if d == nil {
			continue
		}
		if i, ok := d.first(byDue); ok && (ignoreDue || x.dels.at(i).due <= now.UnixMilli()) {
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
		if d == nil {
			continue
		}
		if i, ok := d.first(byDue); ok {
			next = min(next, x.dels.at(i).due)
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
		if i, ok := d.first(byDue); ok {
			s.NextDue = fromMillis(max(x.dels.at(i).due, oldest[n]))
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b DestStats) int { return cmp.Compare(a.Dest, b.Dest) })
	return list
}

// ids lists messages after a cursor in the order of ID: at most n that match what the index knows of q; n < 0 is all.
func (x *index) ids(q *Query, after mta.ID, inclusive bool, n int) []mta.ID {
	var list []mta.ID
	var last mta.ID // what comes after it is not among the first n; zero: none is known
	trim := func(limit int) {
		slices.SortFunc(list, func(a, b mta.ID) int { return bytes.Compare(a[:], b[:]) })
		list = list[:min(len(list), limit)]
	}
	x.each(func(m uint32, row *msgRow) bool {
		x.looked++
		if c := bytes.Compare(row.id[:], after[:]); c < 0 || c == 0 && !inclusive {
			return true
		}
		if !last.IsZero() && bytes.Compare(row.id[:], last[:]) > 0 || !x.matches(q, m) {
			return true
		}
		list = append(list, row.id)
		if n > 0 && len(list) >= 8*n+1024 {
			trim(n)
			last = list[n-1]
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

// shun is postpone for a delivery of a message that can't be read now. Its expiry waits until t too, in memory only: else
// it would be the first that expired each time, and others would never be claimed as such.
func (x *index) shun(i uint32, t time.Time) {
	row := x.msgs.at(x.dels.at(i).msg)
	for j := row.first; j != none; j = x.dels.at(j).next {
		x.pull(byExpiry, j)
	}
	row.expires = max(row.expires, millis(t))
	for j := row.first; j != none; j = x.dels.at(j).next {
		if x.dels.at(j).claimable() && row.expires != never {
			x.push(byExpiry, j)
		}
	}
	x.postpone(i, t)
}
