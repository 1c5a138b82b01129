package parity

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"understudy/internal/mta"
)

// sums adds up the last alarmDays of each domain and kind. mu is held.
func (t *Tally) sums(now time.Time) map[string]*[3]Matrix {
	oldest := firstDay(now, alarmDays)
	all := map[string]*[3]Matrix{}
	for at, r := range t.records {
		if at.day < oldest {
			continue
		}
		if all[at.domain] == nil {
			all[at.domain] = &[3]Matrix{}
		}
		all[at.domain][at.kind].add(&r.Matrix)
	}
	return all
}

// look raises and ends alarms. Hindsight is no occasion of its own: its messages are those of the receipt.
func (t *Tally) look(now time.Time) {
	t.mu.Lock()
	sums, cfg := t.sums(now), t.cfg
	var events []mta.Event
	for domain := range t.alarms {
		if sums[domain] == nil {
			sums[domain] = &[3]Matrix{}
		}
	}
	for _, domain := range slices.Sorted(maps.Keys(sums)) {
		text, high := tooHigh(sums[domain], cfg)
		switch {
		case high && !t.alarms[domain]:
			t.alarms[domain] = true
			events = append(events, mta.Event{Kind: mta.EventBypass, Subject: domain, Level: mta.Alarm, At: now,
				Text: fmt.Sprintf("The primary of %s refuses mail that we take: %s (understudy parity --domain %s)", domain, text, domain)})
		case !high && t.alarms[domain]:
			delete(t.alarms, domain)
			events = append(events, mta.Event{Kind: mta.EventBypass, Subject: domain, Level: mta.Over, At: now,
				Text: fmt.Sprintf("The primary of %s no longer refuses too much of what we take", domain)})
		}
	}
	t.mu.Unlock()
	if t.deps.Events == nil {
		return
	}
	for _, e := range events {
		t.deps.Events(e)
	}
}

// tooHigh judges the bypass rates of a domain.
func tooHigh(of *[3]Matrix, cfg Config) (text string, high bool) {
	for _, kind := range []mta.PairKind{mta.PairShadow, mta.PairReceipt} {
		r := of[kind].Bypass()
		if r.Of < int64(cfg.AlarmMessages) || r.Rate <= cfg.AlarmBypass {
			continue
		}
		what := map[mta.PairKind]string{mta.PairShadow: "compared while it was up", mta.PairReceipt: "taken while it was away"}[kind]
		if high {
			text += "; "
		}
		text += fmt.Sprintf("%d of %d messages %s (%.1f %%) in %d days", r.N, r.Of, what, 100*r.Rate, alarmDays)
		high = true
	}
	return text, high
}
