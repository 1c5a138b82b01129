package healthprobe

import (
	"fmt"
	"slices"
	"time"

	"understudy/internal/mta"
)

// certificateEnds is how long before its end a primary's certificate is reported.
const certificateEnds = 14 * 24 * time.Hour

// event tells the operator. It is called under p.mu, so Deps.Events must not call back.
func (p *Prober) event(e mta.Event) {
	if p.deps.Events != nil {
		p.deps.Events(e)
	}
}

// stateEvent tells of a primary that went away or came back. What an operator has put under maintenance may be away
// without an alarm. p.mu is held.
func (p *Prober) stateEvent(w *watch, now time.Time) {
	if w.belief.state == Up {
		text := fmt.Sprintf("%s takes mail again.", w.key)
		if w.outage != nil {
			text = fmt.Sprintf("%s takes mail again, after %v.", w.key, now.Sub(w.outage.Begin).Round(time.Second))
		}
		p.alarm(&w.awayAlarm, false, mta.Event{Kind: mta.EventPrimaryAway, Subject: w.key, At: now, Text: text, Details: map[string]string{"state": "up"}})
		return
	}
	if p.overrideOf(Maintenance, w.key, now) != nil {
		return
	}
	verb := "is down"
	if w.belief.state == Refusing {
		verb = "refuses mail"
	}
	w.awayAlarm = true // and said again when it changes its state
	p.event(mta.Event{
		Kind: mta.EventPrimaryAway, Subject: w.key, Level: mta.Alarm, At: now,
		Text:    fmt.Sprintf("%s %s since %s (at %s: %s).", w.key, verb, w.belief.gone.UTC().Format(time.RFC3339), w.last.Step, w.last.Why),
		Details: map[string]string{"state": w.belief.state.String(), "step": w.last.Step, "why": w.last.Why},
	})
}

// away reports a primary that is known not to take mail.
func (w *watch) away() bool { return w.belief.state == Down || w.belief.state == Refusing }

// alarm raises or ends an alarm of w, whose begin is remembered in on. p.mu is held.
func (p *Prober) alarm(on *bool, now bool, e mta.Event) {
	if *on == now {
		return
	}
	*on = now
	e.Level = mta.Alarm
	if !now {
		e.Level = mta.Over
	}
	p.event(e)
}

// clearWatchAlarms ends the alarms of a primary that is none any more. p.mu is held.
func (p *Prober) clearWatchAlarms(w *watch, now time.Time) {
	text := w.key + " is no primary any more."
	p.alarm(&w.awayAlarm, false, mta.Event{Kind: mta.EventPrimaryAway, Subject: w.key, At: now, Text: text})
	p.alarm(&w.flapAlarm, false, mta.Event{Kind: mta.EventFlapping, Subject: w.key, At: now, Text: text})
	p.alarm(&w.certAlarm, false, mta.Event{Kind: mta.EventCertificate, Subject: w.key, At: now, Text: text})
}

// clearDomainAlarms ends the alarms of a domain whose primaries are not looked up in the DNS any more. p.mu is held.
func (p *Prober) clearDomainAlarms(d *domain, now time.Time) {
	text := "The MX records of " + d.name + " are not looked at any more."
	p.alarm(&d.noneAlarm, false, mta.Event{Kind: mta.EventNoPrimary, Subject: d.name, At: now, Text: text})
	p.alarm(&d.roleAlarm, false, mta.Event{Kind: mta.EventRoleLost, Subject: d.name, At: now, Text: text})
}

// probeEvents tells of what a probe shows besides the state. p.mu is held.
func (p *Prober) probeEvents(w *watch, now time.Time) {
	flaps := w.belief.flapping(now, p.cfg.rules())
	text := fmt.Sprintf("%s keeps failing: %d times within %v. It must succeed longer before it gets mail.", w.key, len(w.belief.falls), p.cfg.FlapWindow)
	if !flaps {
		text = fmt.Sprintf("%s does not keep failing any more.", w.key)
	}
	p.alarm(&w.flapAlarm, flaps, mta.Event{Kind: mta.EventFlapping, Subject: w.key, At: now, Text: text})
	if t := w.last.TLS; t != nil && !t.NotAfter.IsZero() {
		left := t.NotAfter.Sub(now)
		p.alarm(&w.certAlarm, left < certificateEnds, mta.Event{
			Kind: mta.EventCertificate, Subject: w.key, At: now,
			Text: fmt.Sprintf("The certificate of %s ends at %s.", w.key, t.NotAfter.UTC().Format(time.RFC3339)),
		})
	}
}

// routeEvents tells of our role in the DNS: whether it names us, and anything better than us. p.mu is held.
func (p *Prober) routeEvents(d *domain, f finding, now time.Time) {
	text := fmt.Sprintf("%s names primaries again.", d.name)
	if f.none != "" {
		text = fmt.Sprintf("No primary for %s: %s. Its mail waits.", d.name, f.none)
		if f.gone && len(d.route.Tiers) > 0 {
			text = fmt.Sprintf("No primary for %s: %s. The last known are kept.", d.name, f.none)
		}
	}
	p.alarm(&d.noneAlarm, f.none != "", mta.Event{Kind: mta.EventNoPrimary, Subject: d.name, At: now, Text: text})
	lost := f.none == "" && !f.listed
	text = fmt.Sprintf("The MX records of %s name this host again.", d.name)
	if lost {
		text = fmt.Sprintf("The MX records of %s do not name this host: no mail will come to it.", d.name)
	}
	p.alarm(&d.roleAlarm, lost, mta.Event{Kind: mta.EventRoleLost, Subject: d.name, At: now, Text: text})
}

// keptRoute is a route over restarts.
type keptRoute struct {
	Tiers [][]string `json:"tiers"`
	At    time.Time  `json:"at"`
}

// keepRoute has the route of d written if it is news. p.mu is held.
func (p *Prober) keepRoute(d *domain, now time.Time) {
	if d.fromConf || len(d.route.Tiers) == 0 || d.route.Name == d.keptName && now.Sub(d.keptAt) < keepAgain {
		return
	}
	d.keptName, d.keptAt = d.route.Name, now
	p.keep.put(nsRoute, d.name, keptRoute{Tiers: names(d.route), At: now})
}

func names(r mta.Route) [][]string {
	tiers := [][]string{}
	for _, t := range r.Tiers {
		var ns []string
		for _, m := range t {
			ns = append(ns, m.String())
		}
		tiers = append(tiers, ns)
	}
	return tiers
}

// loadRoute takes the route of a former run for a domain that the DNS has not told of yet. p.mu is held.
func (p *Prober) loadRoute(name string, k keptRoute, now time.Time) {
	d := p.domains[name]
	if d == nil || d.known || d.fromConf {
		return
	}
	var tiers [][]mta.Primary
	for _, t := range k.Tiers {
		one, err := configured(t)
		if err != nil {
			return
		}
		tiers = append(tiers, slices.Concat(one...))
	}
	p.setRoute(d, mta.NewRoute(tiers), now)
	d.known, d.keptName, d.keptAt = true, d.route.Name, k.At
	d.notes = []string{"known from an earlier run; the DNS has not answered yet"}
}
