package policy

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"understudy/internal/mta"
)

// Heard is told of the primary's reply to the RCPT of a recipient that goes inline, learns from it, and gives the reply
// that the sender is to hear: the primary's own, word for word. One exception: a refusal for good of a recipient that we
// know, by a primary that has just come back or whose breaker is open, is said as 451 and believed by nobody. It may
// have been restored with an empty table of users.
func (p *Policy) Heard(ctx context.Context, env *mta.Envelope, to mta.Recipient, r mta.Reply) mta.Reply {
	s := p.state.Load()
	if s == nil {
		return r
	}
	q, now := s.place(to.Addr), time.Now()
	if q.known == nil {
		return r
	}
	if r.Permanent() && p.doubted(ctx, s, q, r, now) {
		return *mta.NewReply(451, "4.3.0", "the mail server of %s may not know all its recipients yet, try again later", q.dest)
	}
	if r.Permanent() {
		if mta.FateOf(r, true) == mta.RefusedRcpt {
			p.limits.guessed(s.cfg.Limits, env, now)
		}
		p.refusedInline(ctx, s, q, env, r, now) // before we have learned better
	}
	p.Learn(to.Addr, r, ByRcpt)
	return r
}

// doubted tells whether a refusal is not to be believed, and raises the alarm if it looks as if the primary had
// forgotten its recipients. While the alarm is on, refusals that are believed by now keep it on.
func (p *Policy) doubted(ctx context.Context, s *state, q question, r mta.Reply, now time.Time) bool {
	fragile := p.fragile(q.dest)
	if !fragile && !p.doubts.on(q.dest) || !p.knows(ctx, s, q, now) {
		return false
	}
	first := false
	if forgets(r) {
		first = p.doubts.note(q.dest, now)
	}
	level := slog.LevelInfo
	if first {
		level = slog.LevelWarn
		p.tell([]mta.Event{{
			Kind: mta.EventBreaker, Subject: q.dest, Level: mta.Alarm, At: now,
			Text:    fmt.Sprintf("The primary of %s refuses recipients that exist, as one would that lost its users: %s", q.dest, r),
			Details: map[string]string{"recipient": q.to.String(), "reply": r.String()},
		}})
	}
	p.log.LogAttrs(ctx, level, "primary refuses a recipient that is known", slog.String("domain", q.dest), slog.String("to", q.to.String()),
		slog.String("reply", r.String()), slog.Bool("believed", !fragile))
	return fragile
}

// fragile tells whether the refusals of a domain's primary are to be doubted.
func (p *Policy) fragile(domain string) bool { return p.deps.Fragile != nil && p.deps.Fragile(domain) }

// knows tells whether a list, a database, the primary's own earlier word or the configuration names the recipient
// himself: not only his domain.
func (p *Policy) knows(ctx context.Context, s *state, q question, now time.Time) bool {
	base := s.base(q.local)
	for _, v := range q.known.views {
		if v.set == nil {
			continue
		}
		for _, local := range []string{q.local, base} {
			if local != "" && (v.set.names(local) || v.set.matches(local)) {
				return true
			}
		}
	}
	if h := p.hear(ctx, s, q.known, q.dest, q.local, now); h.always || h.asked != nil {
		return true
	}
	e, alive := p.learned.look(q.dest, q.local, base, false, now)
	return alive && e.good
}

// forgets tells whether a refusal is what a server says that lost its users, or its domains. Others, such as one for a
// listed client, are of another kind.
func forgets(r mta.Reply) bool {
	l := lessonOf(r)
	return l == missing || l == maybeMissing || strings.Contains(strings.ToLower(r.Text), "relay")
}

// calmAfter ends the alarm when no recipient that we know was refused for so long.
const calmAfter = 15 * time.Minute

// doubts are the domains whose primary refused recipients that we know.
type doubts struct {
	mu   sync.Mutex           // guards last
	last map[string]time.Time // by domain: the newest such refusal
}

func newDoubts() *doubts { return &doubts{last: map[string]time.Time{}} }

func (d *doubts) on(domain string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, on := d.last[domain]
	return on
}

// note tells whether this is the first.
func (d *doubts) note(domain string, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, on := d.last[domain]
	d.last[domain] = now
	return !on
}

// calm gives the ends of alarms.
func (p *Policy) calm(now time.Time) []mta.Event {
	s, d := p.state.Load(), p.doubts
	d.mu.Lock()
	defer d.mu.Unlock()
	var events []mta.Event
	for _, domain := range slices.Sorted(maps.Keys(d.last)) { // none before Load
		if s.domains[domain] != nil && now.Sub(d.last[domain]) < calmAfter {
			continue
		}
		delete(d.last, domain)
		events = append(events, mta.Event{
			Kind: mta.EventBreaker, Subject: domain, Level: mta.Over, At: now,
			Text: fmt.Sprintf("The primary of %s refused no recipient that exists for %v", domain, calmAfter),
		})
	}
	return events
}
