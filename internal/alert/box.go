package alert

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"understudy/internal/mta"
)

// maxWaiting bounds what one webhook has waiting; beyond it the oldest subject is forgotten, and counted.
const maxWaiting = 10_000

// subject is what alerts are compared by: newer words replace older ones.
type subject struct{ kind, of string }

func subjectOf(e mta.Event) subject { return subject{e.Kind, e.Subject} }

// meaning is what makes two events about a subject the same news: not their time, nor their wording.
func meaning(e mta.Event) string { return e.Level.String() + " " + e.Details["state"] }

// said is the last message about a subject that was taken by the webhook.
type said struct {
	event mta.Event
	at    time.Time
}

// waiting is an event that is to be sent.
type waiting struct {
	event mta.Event
	first time.Time // since when it, or what it replaced, has been waiting
	due   time.Time
	tries int
}

// box decides what one webhook is told, and when. It is not safe for concurrent use.
type box struct {
	settle, repeat, giveUp time.Duration
	collapse               int

	said    map[subject]said
	waiting map[subject]waiting
	notices []waiting
	lost    int // given up or pushed out
}

func newBox(c *Config) *box {
	return &box{
		settle: c.Settle, repeat: c.Repeat, giveUp: c.GiveUp, collapse: c.Collapse,
		said: make(map[subject]said), waiting: make(map[subject]waiting),
	}
}

// put takes an event.
func (b *box) put(e mta.Event, now time.Time) {
	if e.Level == mta.Notice { // each is news of its own
		if len(b.notices) >= maxWaiting {
			b.notices = b.notices[1:]
			b.lost++
		}
		b.notices = append(b.notices, waiting{event: e, first: now, due: now})
		return
	}
	s := subjectOf(e)
	last, told := b.said[s]
	if w, ok := b.waiting[s]; ok {
		w.event = e
		b.waiting[s] = w
		b.undone(s, last, told)
		return
	}
	if told && meaning(last.event) == meaning(e) {
		return
	}
	if len(b.waiting) >= maxWaiting {
		b.pushOut()
	}
	due := now
	if told && now.Sub(last.at) < b.settle {
		due = last.at.Add(b.settle)
	}
	b.waiting[s] = waiting{event: e, first: now, due: due}
}

// undone drops what waits if it says nothing new after all: the alarm was over before anyone heard of it, or the state
// is again the one that was told last.
func (b *box) undone(s subject, last said, told bool) {
	e := b.waiting[s].event
	if !told && e.Level == mta.Over || told && meaning(last.event) == meaning(e) {
		delete(b.waiting, s)
	}
}

func (b *box) pushOut() {
	oldest := slices.MinFunc(slices.Collect(maps.Keys(b.waiting)), func(x, y subject) int {
		return b.waiting[x].first.Compare(b.waiting[y].first)
	})
	delete(b.waiting, oldest)
	b.lost++
}

// batch is one message: one event, or many of one kind and level.
type batch struct {
	events []mta.Event
}

// take removes what is due, as messages in the order of time. Each must be given back to sent or failed.
func (b *box) take(now time.Time) []batch {
	for s, l := range b.said { // an alarm that stays on is said again
		if _, ok := b.waiting[s]; !ok && l.event.Level == mta.Alarm && b.repeat > 0 && now.Sub(l.at) >= b.repeat {
			b.waiting[s] = waiting{event: l.event, first: now, due: now}
		}
	}
	var due []mta.Event
	for _, w := range b.waiting {
		if !w.due.After(now) {
			due = append(due, w.event)
		}
	}
	for _, w := range b.notices {
		if !w.due.After(now) {
			due = append(due, w.event)
		}
	}
	return b.group(due)
}

func (b *box) group(due []mta.Event) []batch {
	slices.SortFunc(due, func(x, y mta.Event) int {
		return cmp.Or(x.At.Compare(y.At), strings.Compare(x.Kind, y.Kind), strings.Compare(x.Subject, y.Subject))
	})
	type sort struct {
		kind  string
		level mta.Level
	}
	many := make(map[sort][]mta.Event)
	for _, e := range due {
		k := sort{e.Kind, e.Level}
		many[k] = append(many[k], e)
	}
	var batches []batch
	for _, e := range due {
		k := sort{e.Kind, e.Level}
		switch all := many[k]; {
		case all == nil: // already in a batch
		case len(all) > b.collapse:
			batches = append(batches, batch{events: all})
			many[k] = nil
		default:
			batches = append(batches, batch{events: []mta.Event{e}})
		}
	}
	return batches
}

// sent notes that a message was taken.
func (b *box) sent(m batch, now time.Time) {
	for _, e := range m.events {
		if e.Level == mta.Notice {
			b.dropNotice(e)
			continue
		}
		s := subjectOf(e)
		b.said[s] = said{event: e, at: now}
		w, ok := b.waiting[s]
		switch {
		case !ok:
		case meaning(w.event) == meaning(e):
			delete(b.waiting, s)
		default: // newer words came while we spoke
			w.first, w.tries, w.due = now, 0, now.Add(b.settle)
			b.waiting[s] = w
		}
	}
}

// failed has a message tried again, unless it is too old.
func (b *box) failed(m batch, now time.Time) {
	for _, e := range m.events {
		if e.Level == mta.Notice {
			for i := range b.notices {
				if same(b.notices[i].event, e) {
					b.notices[i] = b.later(b.notices[i], now)
				}
			}
			continue
		}
		s := subjectOf(e)
		if w, ok := b.waiting[s]; ok {
			b.waiting[s] = b.later(w, now)
		}
	}
	b.forget(now)
}

// later is w after one more failure: the waits double from a second to five minutes.
func (b *box) later(w waiting, now time.Time) waiting {
	w.due = now.Add(min(time.Second<<min(w.tries, 20), 5*time.Minute))
	w.tries++
	return w
}

// forget gives up what has waited too long.
func (b *box) forget(now time.Time) {
	for s, w := range b.waiting {
		if w.tries > 0 && now.Sub(w.first) >= b.giveUp {
			delete(b.waiting, s)
			b.lost++
		}
	}
	n := len(b.notices)
	b.notices = slices.DeleteFunc(b.notices, func(w waiting) bool { return w.tries > 0 && now.Sub(w.first) >= b.giveUp })
	b.lost += n - len(b.notices)
}

func (b *box) dropNotice(e mta.Event) {
	b.notices = slices.DeleteFunc(b.notices, func(w waiting) bool { return same(w.event, e) })
}

func same(a, b mta.Event) bool {
	return a.Kind == b.Kind && a.Subject == b.Subject && a.At.Equal(b.At) && a.Text == b.Text
}

// next is when something is due; false if nothing is.
func (b *box) next() (at time.Time, ok bool) {
	sooner := func(t time.Time) {
		if !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	for _, w := range b.waiting {
		sooner(w.due)
	}
	for _, w := range b.notices {
		sooner(w.due)
	}
	for s, l := range b.said {
		if _, queued := b.waiting[s]; !queued && l.event.Level == mta.Alarm && b.repeat > 0 {
			sooner(l.at.Add(b.repeat))
		}
	}
	return at, ok
}

// tidy forgets ends of alarms that have settled: the next alarm is news again.
func (b *box) tidy(now time.Time) {
	for s, l := range b.said {
		if _, queued := b.waiting[s]; !queued && l.event.Level == mta.Over && now.Sub(l.at) >= b.settle {
			delete(b.said, s)
		}
	}
}

// summary is the one event that a message shows where it can show only one.
func (m batch) summary() mta.Event {
	if len(m.events) == 1 {
		return m.events[0]
	}
	const shown = 5
	e := m.events[len(m.events)-1]
	var of []string
	for _, x := range m.events[:min(shown, len(m.events))] {
		of = append(of, x.Subject)
	}
	more := ""
	if n := len(m.events) - len(of); n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	e.Text = fmt.Sprintf("%d × %s (%s): %s%s. The last: %s", len(m.events), e.Kind, e.Level, strings.Join(of, ", "), more, e.Text)
	e.Subject = ""
	return e
}
