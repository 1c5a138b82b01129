package healthprobe

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"understudy/internal/mta"
)

const (
	maxOutages = 10_000           // kept in memory; the newest
	maxPhases  = 20               // of one outage; the last is replaced beyond that
	takenEvery = 10 * time.Second // how often the count of an outage that goes on is written
	drainWatch = 24 * time.Hour   // for how long after an outage its drain is waited for
)

// Outage is one time in which a primary did not take mail.
type Outage struct {
	Primary string    `json:"primary"`
	Domains int       `json:"domains"` // that it served when it began
	Begin   time.Time `json:"begin"`   // of the first probe that failed
	End     time.Time `json:"end,omitzero"`
	Phases  []Phase   `json:"phases"`
	Taken   int64     `json:"taken"` // messages spooled meanwhile for its domains
	// When it took the first message after its end, and when nothing was left to be handed over. Zero if no message
	// waited, or not yet.
	First   time.Time `json:"first_delivery,omitzero"`
	Drained time.Time `json:"drained,omitzero"`
	Note    string    `json:"note,omitempty"`

	saved time.Time
}

// Phase is a part of an outage with one cause.
type Phase struct {
	State State     `json:"state"`
	Since time.Time `json:"since"`
	Step  string    `json:"step,omitempty"`
	Why   string    `json:"why,omitempty"`
}

// Cause is the first cause in words.
func (o *Outage) Cause() string {
	if len(o.Phases) == 0 {
		return ""
	}
	return o.Phases[0].Step + ": " + o.Phases[0].Why
}

func (o *Outage) clone() Outage {
	c := *o
	c.Phases = slices.Clone(o.Phases)
	return c
}

// key sorts by the begin.
func (o *Outage) key() string {
	return o.Begin.UTC().Format("20060102T150405.000000Z") + "|" + o.Primary
}

// outageGoesOn notes that w is away, and why. p.mu is held.
func (p *Prober) outageGoesOn(w *watch, now time.Time) {
	if w.outage == nil {
		w.outage = &Outage{Primary: w.key, Domains: len(w.domains), Begin: w.belief.gone}
		w.drain = nil
		p.addOutage(w.outage)
	}
	ph := Phase{State: w.belief.state, Since: now, Step: w.last.Step, Why: w.last.Why}
	if len(w.outage.Phases) == 0 {
		ph.Since = w.outage.Begin
	}
	if len(w.outage.Phases) == maxPhases {
		w.outage.Phases = w.outage.Phases[:maxPhases-1]
	}
	w.outage.Phases = append(w.outage.Phases, ph)
	p.saveOutage(w.outage, now)
}

// outageEnds notes that w is back. p.mu is held.
func (p *Prober) outageEnds(w *watch, now time.Time, note string) {
	o := w.outage
	if o == nil {
		return
	}
	w.outage = nil
	o.End, o.Note = now, note
	if o.Taken > 0 {
		w.drain = o
	}
	p.saveOutage(o, now)
}

func (p *Prober) addOutage(o *Outage) {
	if len(p.outages) >= maxOutages {
		p.outages = slices.Delete(p.outages, 0, maxOutages/10)
	}
	p.outages = append(p.outages, o)
}

func (p *Prober) saveOutage(o *Outage, now time.Time) {
	o.saved = now
	p.keep.put(nsOutage, o.key(), o)
}

// Taken counts a message that was spooled for a domain: an outage tells how many it made.
func (p *Prober) Taken(domain string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.domains[domain]
	if d == nil {
		return
	}
	now := time.Now()
	for m := range primaries(d.route) {
		w := p.watches[m.String()]
		if w == nil || w.outage == nil {
			continue
		}
		w.outage.Taken++
		if now.Sub(w.outage.saved) >= takenEvery {
			p.saveOutage(w.outage, now)
		}
	}
}

// firstDelivery notes that w took mail after an outage. p.mu is held.
func (p *Prober) firstDelivery(w *watch, now time.Time) {
	o := w.drain
	if o == nil || !o.First.IsZero() {
		return
	}
	o.First = now
	p.metrics.first.Observe(now.Sub(o.End).Seconds())
	p.saveOutage(o, now)
}

// watchDrains asks, while anyone is draining, what still waits, until ctx is done.
func (p *Prober) watchDrains(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !p.draining(time.Now()) {
			continue
		}
		waiting, err := p.deps.Backlog(ctx)
		if err != nil {
			if ctx.Err() == nil {
				p.deps.Log.LogAttrs(ctx, slog.LevelError, "backlog is not known", slog.Any("err", err))
			}
			continue
		}
		p.drained(ctx, waiting, time.Now())
	}
}

// draining reports whether anybody's drain is to be looked at: each second at first, and later with more patience.
func (p *Prober) draining(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.watches {
		if w.drain == nil {
			continue
		}
		if now.Sub(w.drain.End) > drainWatch {
			w.drain = nil
			continue
		}
		if now.Sub(w.drain.End) < time.Minute || now.Unix()%10 == 0 {
			return true
		}
	}
	return false
}

// drained ends the drains of the primaries for whom nothing waits.
func (p *Prober) drained(ctx context.Context, waiting map[string]int64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.watches {
		if w.drain == nil || w.waits(waiting) {
			continue
		}
		o := w.drain
		w.drain = nil
		o.Drained = now
		p.saveOutage(o, now)
		took := now.Sub(o.End).Round(time.Millisecond)
		p.metrics.drain.Observe(took.Seconds())
		p.deps.Log.LogAttrs(ctx, slog.LevelInfo, "primary is drained", slog.String("primary", w.key),
			slog.Int64("messages", o.Taken), slog.Duration("took", took))
		p.event(mta.Event{
			Kind: mta.EventDrained, Subject: w.key, Level: mta.Notice, At: now,
			Text:    fmt.Sprintf("All that waited for %s was handed over, %v after it was back.", w.key, took.Round(time.Second)),
			Details: map[string]string{"taken": strconv.FormatInt(o.Taken, 10), "took": took.String()},
		})
	}
}

// waits reports whether a domain of w is among those for whom something waits.
func (w *watch) waits(waiting map[string]int64) bool {
	for domain, n := range waiting {
		if n > 0 && w.domains[domain] {
			return true
		}
	}
	return false
}

// OutageQuery selects outages. The zero value selects all.
type OutageQuery struct {
	Primary string    // of this one
	Domain  string    // of a primary of this domain
	Since   time.Time // that had not ended by then
	Limit   int       // at most so many; 0: all that are kept
}

// Outages lists outages, the newest first.
func (p *Prober) Outages(q OutageQuery) []Outage {
	p.mu.Lock()
	defer p.mu.Unlock()
	var of map[string]bool
	if d := p.domains[q.Domain]; q.Domain != "" {
		of = make(map[string]bool)
		if d != nil {
			for m := range primaries(d.route) {
				of[m.String()] = true
			}
		}
	}
	list := []Outage{}
	for _, o := range slices.Backward(p.outages) {
		switch {
		case q.Primary != "" && o.Primary != q.Primary, of != nil && !of[o.Primary]:
			continue
		case !o.End.IsZero() && o.End.Before(q.Since):
			continue
		}
		list = append(list, o.clone())
		if len(list) == q.Limit {
			break
		}
	}
	return list
}

// loadOutages takes the history of former runs. An outage that had not ended goes on with the first probe. p.mu is held.
func (p *Prober) loadOutages(all []Outage, now time.Time) {
	slices.SortFunc(all, func(a, b Outage) int { return a.Begin.Compare(b.Begin) })
	if n := len(all) - maxOutages; n > 0 {
		all = all[n:]
	}
	for i := range all {
		o := &all[i]
		p.outages = append(p.outages, o)
		w := p.watches[o.Primary]
		switch {
		case w == nil && o.End.IsZero():
			o.End, o.Note = now, "it was no primary any more"
			p.saveOutage(o, now)
		case w == nil:
		case o.End.IsZero():
			p.outageEnds(w, o.Begin, "its end was not noted")
			w.outage, w.awayAlarm = o, true
		case o.Taken > 0 && o.Drained.IsZero() && now.Sub(o.End) < drainWatch:
			w.drain = o
		}
	}
}
