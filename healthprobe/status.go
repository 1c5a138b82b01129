package healthprobe

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"understudy/internal/mta"
)

// PrimaryStatus is what we know of a primary, for people.
type PrimaryStatus struct {
	Primary  string       `json:"primary"`
	State    State        `json:"state"`
	Since    time.Time    `json:"since,omitzero"`
	Why      string       `json:"why,omitempty"`  // why it is not up
	Step     string       `json:"step,omitempty"` // the step of a session at which it fails
	Flapping bool         `json:"flapping,omitempty"`
	Override *Override    `json:"override,omitempty"` // maintenance, if it is in force
	Open     bool         `json:"open"`               // mail may be sent to it
	Domains  int          `json:"domains"`
	Addrs    []netip.Addr `json:"addrs,omitempty"`
	Last     *Probe       `json:"last_probe,omitempty"`
	Next     time.Time    `json:"next_probe,omitzero"`
	Took     time.Time    `json:"last_delivery,omitzero"` // when it last took mail from us
}

// DomainStatus is what we know of a domain's route, for people.
type DomainStatus struct {
	Domain  string     `json:"domain"`
	State   State      `json:"state"` // of its best primary that is up; else of the best
	Source  string     `json:"source"`
	Route   string     `json:"route,omitempty"`
	Tiers   [][]string `json:"tiers"`
	Notes   []string   `json:"notes,omitempty"`
	Found   time.Time  `json:"found,omitzero"`
	Next    time.Time  `json:"next_lookup,omitzero"`
	Trouble string     `json:"trouble,omitempty"` // why the last lookup brought nothing
	Hold    *Override  `json:"hold,omitempty"`    // the drain is held
	Bounds  mta.Bounds `json:"bounds"`            // what its primaries can take
}

// Status lists all primaries, by name.
func (p *Prober) Status() []PrimaryStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	list := make([]PrimaryStatus, 0, len(p.watches))
	for _, w := range p.watches {
		list = append(list, p.status(w, now))
	}
	slices.SortFunc(list, func(a, b PrimaryStatus) int { return strings.Compare(a.Primary, b.Primary) })
	return list
}

// status is the status of one primary. p.mu is held.
func (p *Prober) status(w *watch, now time.Time) PrimaryStatus {
	s := PrimaryStatus{
		Primary: w.key, State: w.belief.state, Since: w.belief.since, Domains: len(w.domains), Took: w.proved,
		Flapping: w.belief.flapping(now, p.cfg.rules()), Addrs: slices.Clone(p.books[w.primary.Host].addrs),
	}
	if !w.last.At.IsZero() {
		last := w.last
		s.Last = &last
	}
	if w.slot.index >= 0 {
		s.Next = w.slot.at
	}
	s.Override = p.overrideOf(Maintenance, w.key, now)
	s.Open = s.State == Up && s.Override == nil
	if s.State != Up {
		s.Step, s.Why = w.last.Step, w.last.Why
	}
	return s
}

// Domains lists all configured domains, by name.
func (p *Prober) Domains() []DomainStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]DomainStatus, 0, len(p.domains))
	for _, d := range p.domains {
		list = append(list, p.domainStatus(d))
	}
	slices.SortFunc(list, func(a, b DomainStatus) int { return strings.Compare(a.Domain, b.Domain) })
	return list
}

// Domain is the status of one configured domain.
func (p *Prober) Domain(name string) (DomainStatus, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.domains[name]
	if d == nil {
		return DomainStatus{}, false
	}
	return p.domainStatus(d), true
}

func (p *Prober) domainStatus(d *domain) DomainStatus {
	s := DomainStatus{
		Domain: d.name, State: p.routeState(d.route), Source: "dns", Route: d.route.Name, Tiers: names(d.route),
		Notes: slices.Clone(d.notes), Found: d.found,
	}
	if d.fromConf {
		s.Source = "config"
	}
	if d.slot.index >= 0 {
		s.Next = d.slot.at
	}
	if d.err != nil {
		s.Trouble = words(d.err)
	}
	s.Hold = p.held(d, time.Now())
	s.Bounds = p.bounds(d)
	return s
}

// routeState is up while any primary of the route is: mail moves. Else it is what the best one is in. p.mu is held.
func (p *Prober) routeState(r mta.Route) State {
	best, first := Unknown, true
	for m := range primaries(r) {
		w := p.watches[m.String()]
		switch {
		case w == nil:
		case w.belief.state == Up:
			return Up
		case first:
			best = w.belief.state
		}
		first = false
	}
	return best
}
