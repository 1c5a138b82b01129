package healthprobe

import (
	"slices"
	"time"

	"understudy/internal/mta"
)

// Up reports whether a primary of a configured domain takes mail now.
func (p *Prober) Up(domain string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.domains[domain]
	if d == nil {
		return false
	}
	for m := range primaries(d.route) {
		if p.open(m.String()) {
			return true
		}
	}
	return false
}

// Recovered is when the last outage of a primary of a configured domain ended, if that primary is up now; zero if none
// is known.
func (p *Prober) Recovered(domain string) time.Time {
	var last time.Time
	for _, m := range p.Primaries(domain) {
		if !p.Open(m.String()) {
			continue
		}
		for _, o := range p.Outages(OutageQuery{Primary: m.String(), Limit: 1}) {
			if o.End.After(last) {
				last = o.End
			}
		}
	}
	return last
}

// Primaries lists the primaries of a configured domain, the best first.
func (p *Prober) Primaries(domain string) []mta.Primary {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.domains[domain]
	if d == nil {
		return nil
	}
	return slices.Collect(primaries(d.route))
}
