package policy

import (
	"slices"
	"sync"
	"time"

	"understudy/internal/mta"
)

// How says where a reply about a recipient came from.
type How uint8

// The ways to learn.
const (
	ByRcpt     How = iota + 1 // the primary's reply to RCPT in a transaction of a sender, or of our own drain
	ByDelivery                // it took a message for the recipient
	ByCallout                 // it was asked, and nothing was sent
)

var howNames = [...]string{"", "rcpt", "delivery", "callout"}

func (h How) String() string { return howNames[h%4] }

// entry is what was learned of one address. It is small, for there are many.
type entry struct {
	at    int64 // when, in Unix seconds
	tried int64 // when it was last asked for in vain, or asked for and not believed
	good  bool  // it exists
	how   How
}

func (e entry) when() time.Time { return time.Unix(e.at, 0) }

// lives tells whether the entry is still believed.
func (e entry) lives(now time.Time, rules Learned) bool {
	ttl := rules.NegativeTTL
	if e.good {
		ttl = rules.PositiveTTL
	}
	return now.Sub(e.when()) < ttl
}

// aged tells whether somebody who asks for the entry should make us ask the primary again.
func (e entry) aged(now time.Time, rules Learned) bool {
	refresh := rules.NegativeRefresh
	if e.good {
		refresh = rules.PositiveRefresh
	}
	return now.Sub(e.when()) >= refresh && now.Sub(time.Unix(e.tried, 0)) >= rules.NegativeRefresh
}

// ending tells whether a good entry is so near its end that it is asked for though nobody wanted it.
func (e entry) ending(now time.Time, rules Learned) bool {
	return e.good && e.aged(now, rules) && now.Sub(e.when()) >= rules.PositiveTTL-rules.PositiveRefresh
}

// lesson is what a reply to RCPT says of the recipient.
type lesson uint8

const (
	nothing lesson = iota // of the moment, or of the sender: not of whether he exists
	exists
	missing
	maybeMissing // a refusal without a reason: believed only of a primary that is known to tell
)

// lessonOf reads a reply. Primaries refuse for many reasons; only the one that the recipient does not exist may be
// remembered.
func lessonOf(r mta.Reply) lesson {
	switch {
	case r.Code == 250 || r.Code == 251:
		return exists
	case !r.Permanent():
		return nothing // 252 too: it does not know itself
	case slices.Contains([]string{"5.1.1", "5.1.6", "5.1.10"}, r.Enhanced): // RFC 3463, 3.2; RFC 7505 and Exchange
		return missing
	case r.Enhanced == "" && (r.Code == 550 || r.Code == 551 || r.Code == 553):
		return maybeMissing
	}
	return nothing
}

// nature is what a primary does with addresses that can't exist.
type nature uint8

const (
	notTried   nature = iota
	tells             // it refuses them, and takes postmaster
	takesAll          // it takes them: its "yes" means nothing
	refusesAll        // it refuses postmaster too: its "no" is about us
)

// weigh says what to do with an entry when a reply came: the entry to keep, and whether it changed. A refusal never
// takes the place of a good entry that is alive: the primary may have lost its memory, and as long as some replies
// are good the address stays known (as in Postfix's verify(8)).
func weigh(old entry, known bool, l lesson, how How, n nature, now time.Time, rules Learned) (entry, bool) {
	if l == maybeMissing && how == ByCallout && n == tells {
		l = missing
	}
	switch {
	case l == exists && n != takesAll:
		return entry{at: now.Unix(), good: true, how: how}, !known || !old.good || now.Sub(old.when()) >= minRelearn
	case l == missing && (n == notTried || n == tells) && !(known && old.good && old.lives(now, rules)):
		return entry{at: now.Unix(), how: how}, !known || old.good || now.Sub(old.when()) >= minRelearn
	case how == ByCallout && known:
		old.tried = now.Unix()
		return old, true
	}
	return old, false
}

// minRelearn spares the tables from being written for each message to the same recipient.
const minRelearn = 10 * time.Minute

const (
	maxWanted       = 1000   // recipients of a domain that wait for a callout
	maxWantedInAll  = 20_000 // of all domains
	negativePortion = 4      // one part in so many of all entries may be unknown addresses
)

// learned is the table of what the primaries taught us.
type learned struct {
	wake func() // there is something to ask; nil: nobody can be asked

	mu      sync.Mutex // guards what follows
	rules   Learned
	domains map[string]*pupil
	good    int // entries of all domains
	bad     int
	wanted  int
	dirty   map[stateKey]bool // not yet kept
}

// pupil is what was learned of one domain.
type pupil struct {
	entries map[string]entry // by folded local part
	good    int
	bad     int
	wanted  map[string]bool // to be asked for
	nature  nature
	course  course
}

func newLearned(rules Learned, wake func()) *learned {
	return &learned{wake: wake, rules: rules, domains: map[string]*pupil{}, dirty: map[stateKey]bool{}}
}

// reload puts other rules in force, and forgets domains that are no longer ours. On disk their time to live ends them.
func (l *learned) reload(rules Learned, domains map[string]Domain) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rules = rules
	for name, d := range l.domains {
		if _, ours := domains[name]; !ours {
			l.good, l.bad, l.wanted = l.good-d.good, l.bad-d.bad, l.wanted-len(d.wanted)
			delete(l.domains, name)
		}
	}
}

// pupil gives that of a domain. mu is held.
func (l *learned) pupil(domain string) *pupil {
	d := l.domains[domain]
	if d == nil {
		d = &pupil{entries: map[string]entry{}, wanted: map[string]bool{}}
		l.domains[domain] = d
	}
	return d
}

// look gives what was learned of a recipient, and whether it is still believed. An extended address is known if the
// plain one exists; that the plain one does not exist says nothing of it. With ask, what is missing or old is wanted
// from the primary.
func (l *learned) look(domain, local, base string, ask bool, now time.Time) (entry, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rules.MaxEntries == 0 {
		return entry{}, false
	}
	d := l.domains[domain]
	if d != nil && d.nature == takesAll {
		return entry{}, false
	}
	e, known := d.entry(local)
	if b, ok := d.entry(base); ok && b.good && b.lives(now, l.rules) && !(known && e.good) {
		e, known = b, true
		local = base
	}
	alive := known && e.lives(now, l.rules) && (e.good || d.nature != refusesAll)
	if ask && (!alive || e.aged(now, l.rules)) {
		l.want(domain, local, now)
	}
	return e, alive
}

func (d *pupil) entry(local string) (entry, bool) {
	if d == nil || local == "" {
		return entry{}, false
	}
	e, ok := d.entries[local]
	return e, ok
}

// want notes that the primary should be asked, if there is room for another note. mu is held.
func (l *learned) want(domain, local string, now time.Time) {
	if l.wake == nil || l.rules.CalloutsPerMinute == 0 || l.wanted >= maxWantedInAll || local == "" {
		return
	}
	if !(mta.Path{Local: local}).IsASCII() { // a callout without SMTPUTF8 would be refused for that
		return
	}
	d := l.pupil(domain)
	if len(d.wanted) < maxWanted && !d.wanted[local] {
		d.wanted[local] = true
		l.wanted++
		if len(d.wanted) == 1 && !d.course.busy && !now.Before(d.course.rest) { // else Run knows when it may be asked
			l.wake()
		}
	}
}

// learn takes a lesson.
func (l *learned) learn(domain, local string, s lesson, how How, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s == nothing && how != ByCallout || l.rules.MaxEntries == 0 {
		return
	}
	d := l.pupil(domain)
	if d.wanted[local] {
		delete(d.wanted, local)
		l.wanted--
	}
	old, known := d.entries[local]
	if e, changed := weigh(old, known, s, how, d.nature, now, l.rules); changed {
		l.put(domain, d, local, e)
	}
}

// put sets an entry, after making room for it. mu is held.
func (l *learned) put(domain string, d *pupil, local string, e entry) {
	old, known := d.entries[local]
	if !known || old.good != e.good {
		l.makeRoom(e.good)
	}
	if known {
		l.count(d, old, -1)
	}
	d.entries[local] = e
	l.count(d, e, 1)
	l.dirty[stateKey{domain, local}] = true
}

func (l *learned) count(d *pupil, e entry, by int) {
	if e.good {
		l.good, d.good = l.good+by, d.good+by
		return
	}
	l.bad, d.bad = l.bad+by, d.bad+by
}

// makeRoom removes an old entry of the same kind if there are too many, from the domain that has the most: what a
// flood brought goes first. mu is held.
func (l *learned) makeRoom(good bool) {
	limit := max(l.rules.MaxEntries/negativePortion, 1)
	n := l.bad
	if good {
		limit, n = l.rules.MaxEntries-limit, l.good
	}
	for ; n >= limit && n > 0; n-- {
		domain, d := l.largest(good)
		l.drop(domain, d, oldestOfSome(d.entries, func(e entry) (int64, bool) { return e.at, e.good == good }))
	}
}

func (l *learned) largest(good bool) (string, *pupil) {
	var name string
	var most *pupil
	size := func(d *pupil) int {
		if good {
			return d.good
		}
		return d.bad
	}
	for n, d := range l.domains {
		if most == nil || size(d) > size(most) {
			name, most = n, d
		}
	}
	return name, most
}

// drop removes an entry. mu is held.
func (l *learned) drop(domain string, d *pupil, local string) {
	e, ok := d.entries[local]
	if !ok {
		return
	}
	delete(d.entries, local)
	l.count(d, e, -1)
	l.dirty[stateKey{domain, local}] = true
}

// judged notes the nature of a domain's primary. What was learned before is not looked at while the nature speaks
// against it, but kept: a server that takes everybody for a day is a mistake more often than a change.
func (l *learned) judged(domain string, n nature, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.pupil(domain)
	d.nature, d.course.judged = n, now
	l.dirty[stateKey{domain, ""}] = true
	if n == takesAll {
		l.wanted -= len(d.wanted)
		clear(d.wanted)
	}
}

// says is the table's own word on a recipient.
func (l *learned) says(domain, local, base string, now time.Time) Saying {
	l.mu.Lock()
	defer l.mu.Unlock()
	say := Saying{Source: byLearned, Says: "nothing"}
	d := l.domains[domain]
	if d != nil && d.nature == takesAll {
		say.Says = "nothing: the primary takes every address"
		return say
	}
	e, ok := d.entry(local)
	if b, has := d.entry(base); has && b.good && b.lives(now, l.rules) && !(ok && e.good) {
		e, ok = b, true
	}
	switch {
	case !ok:
		return say
	case !e.good && d.nature == refusesAll:
		say.Says = "nothing: the primary refuses even postmaster"
		return say
	}
	say.Says = "does not exist, by " + e.how.String()
	if e.good {
		say.Says = "exists, by " + e.how.String()
	}
	say.Fresh, say.Age = e.lives(now, l.rules), now.Sub(e.when())
	return say
}

// sizes are the numbers of entries.
func (l *learned) sizes() (good, bad int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.good, l.bad
}

// Learn takes what a primary said of a recipient. Nothing is learned of domains that are not ours, of recipients that
// a list has anyway, and of primaries that take or refuse everybody.
func (p *Policy) Learn(to mta.Path, reply mta.Reply, how How) {
	s := p.state.Load()
	if s == nil {
		return
	}
	q := s.place(to)
	if q.known == nil || q.known.acceptAll || q.local == "" || isRouted(q.local) {
		return
	}
	base := s.base(q.local)
	if s.always[q.local] || s.always[base] || slices.ContainsFunc(q.known.views, func(v *view) bool { return v.has(q.local, base) }) {
		return
	}
	now := time.Now()
	said := lessonOf(reply)
	if (said == missing || said == maybeMissing) && p.fragile(q.dest) {
		said = nothing // a server that lost its users would have us refuse real people for days
	}
	if said == exists && base != "" && p.learned.exists(q.dest, base, now) {
		return // mailing lists make an extended address for each message
	}
	p.learned.learn(q.dest, q.local, said, how, now)
}

func (l *learned) exists(domain, local string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.domains[domain].entry(local)
	return ok && e.good && e.lives(now, l.rules)
}
