package policy

import (
	"context"
	"crypto/rand"
	"log/slog"
	"strings"
	"time"

	"understudy/internal/mta"
)

const (
	judgeEvery  = 24 * time.Hour // how often a primary is tried with an address that can't exist
	sweepEvery  = time.Hour      // how often a domain's entries are looked through for those that end
	calloutTime = 2 * time.Minute
	maxCallouts = 4 // at the same time; one to a domain
	maxRest     = 10 * time.Minute
)

// course is how far the asking of one domain's primary has come.
type course struct {
	judged  time.Time // when its nature was found out
	rest    time.Time // it is left alone until then
	swept   time.Time
	trouble int // callouts in a row without a reply
	busy    bool
}

// callout is one question to a primary: about a recipient, or with an empty local part about its nature.
type callout struct {
	domain, local string
}

// next chooses what to ask a primary now, if anything. Its nature comes first, for it says what the replies are worth.
func (d *pupil) next(now time.Time) (local string, ok bool) {
	switch c := &d.course; {
	case c.busy || now.Before(c.rest):
		return "", false
	case c.judged.IsZero() || now.Sub(c.judged) >= judgeEvery:
		return "", true
	case d.nature == takesAll:
		return "", false
	}
	for local := range d.wanted {
		return local, true
	}
	return "", false
}

// ended notes how a callout went, and for how long the primary is left alone now.
func (c *course) ended(replied bool, now time.Time, perMinute int) {
	c.busy = false
	if replied {
		c.trouble = 0
		c.rest = now.Add(time.Minute / time.Duration(max(perMinute, 1)))
		return
	}
	c.rest = now.Add(min(time.Minute<<min(c.trouble, 16), maxRest))
	c.trouble++
}

// due is when there is something to do for the domain: to ask, or to look through its entries.
func (d *pupil) due(now time.Time) time.Time {
	c := &d.course
	sweep := c.swept.Add(sweepEvery)
	if c.busy {
		return sweep // its end wakes Run
	}
	ask := now
	if !c.judged.IsZero() && (d.nature == takesAll || len(d.wanted) == 0) {
		ask = c.judged.Add(judgeEvery)
	}
	if ask.Before(c.rest) {
		ask = c.rest
	}
	return earliest(ask, sweep)
}

// plan gives what to ask now, at most n questions, notes those domains as busy, and tells when there will be more to
// do. Of the domains in teach alone anything is to be learned.
func (l *learned) plan(teach []string, n int, now time.Time) (all []callout, next time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next = now.Add(calmRound)
	if l.rules.CalloutsPerMinute == 0 || l.rules.MaxEntries == 0 {
		return nil, next
	}
	for _, domain := range teach {
		d := l.pupil(domain)
		l.sweep(domain, d, now)
		if len(all) < n {
			if local, ok := d.next(now); ok {
				d.course.busy = true
				all = append(all, callout{domain, local})
			}
		}
		next = earliest(next, d.due(now))
	}
	if len(all) == n { // the end of one wakes Run
		next = now.Add(calmRound)
	}
	return all, next
}

// sweep removes what is dead and wants what ends soon, so that it is known when it is needed. mu is held.
func (l *learned) sweep(domain string, d *pupil, now time.Time) {
	if now.Sub(d.course.swept) < sweepEvery {
		return
	}
	d.course.swept = now
	for local, e := range d.entries {
		switch {
		case !e.lives(now, l.rules):
			l.drop(domain, d, local)
		case e.ending(now, l.rules):
			l.want(domain, local, now)
		}
	}
}

// ended notes how a callout went.
func (l *learned) ended(c callout, replied bool, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.pupil(c.domain)
	d.course.ended(replied, now, l.rules.CalloutsPerMinute)
	if d.wanted[c.local] && replied {
		delete(d.wanted, c.local)
		l.wanted--
	}
}

// callOut asks, and learns from the reply.
func (p *Policy) callOut(ctx context.Context, c callout) {
	ctx, cancel := context.WithTimeout(ctx, calloutTime)
	defer cancel()
	replied := false
	if c.local == "" {
		replied = p.judgeNature(ctx, c.domain)
	} else if to, err := mta.MakePath(c.local, c.domain); err == nil {
		var reply mta.Reply
		if reply, replied = p.ask(ctx, c.domain, to); replied {
			p.Learn(to, reply, ByCallout)
		}
	}
	p.learned.ended(c, replied, time.Now())
}

// ask calls out. A 421 is the host's trouble, not a word on the recipient.
func (p *Policy) ask(ctx context.Context, domain string, to mta.Path) (mta.Reply, bool) {
	reply, err := p.deps.Callout(ctx, domain, to)
	if err != nil || reply.Code == 421 || reply.Code == 0 {
		p.log.LogAttrs(ctx, slog.LevelDebug, "primary could not be asked about a recipient", slog.String("domain", domain), slog.Any("err", err))
		p.metrics.callout("failed")
		return mta.Reply{}, false
	}
	p.metrics.callout(lessonOf(reply).String())
	return reply, true
}

// judgeNature finds out what a primary's replies are worth: by an address that can't exist and one that must
// (RFC 5321, 4.5.1).
func (p *Policy) judgeNature(ctx context.Context, domain string) bool {
	reply, ok := p.ask(ctx, domain, mta.Path{Local: strings.ToLower(rand.Text()), Domain: domain})
	if !ok {
		return false
	}
	postmaster := mta.Reply{}
	if reply.Permanent() {
		if postmaster, ok = p.ask(ctx, domain, mta.Path{Local: "postmaster", Domain: domain}); !ok {
			return false
		}
	}
	n, ok := natureOf(reply, postmaster)
	if !ok { // greylisted, for example
		return false
	}
	p.learned.judged(domain, n, time.Now())
	p.log.LogAttrs(ctx, slog.LevelInfo, "primary tried with an invented recipient", slog.String("domain", domain), slog.String("nature", n.String()))
	return true
}

// natureOf weighs the replies to an invented recipient and, if that was refused for good, to postmaster.
func natureOf(invented, postmaster mta.Reply) (nature, bool) {
	switch {
	case lessonOf(invented) == exists:
		return takesAll, true
	case invented.Permanent() && postmaster.Positive():
		return tells, true
	case invented.Permanent() && postmaster.Permanent():
		return refusesAll, true
	}
	return notTried, false
}

func (n nature) String() string {
	return [...]string{"not tried", "tells", "takes all", "refuses all"}[n%4]
}

func (l lesson) String() string {
	return [...]string{"nothing", "exists", "missing", "maybe missing"}[l%4]
}
