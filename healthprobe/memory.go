package healthprobe

import (
	"time"

	"understudy/internal/mta"
)

// traceRoom is what our Received field may add to a message, so that one of exactly the primary's limit still fits.
const traceRoom = 2 << 10

// memory is what we remember of a primary over restarts: it bounds what is taken for it while it is away.
type memory struct {
	Known        bool      `json:"known"` // it has said EHLO to us once
	Size         int64     `json:"size,omitempty"`
	EightBitMIME bool      `json:"8bitmime,omitempty"`
	SMTPUTF8     bool      `json:"smtputf8,omitempty"`
	RequireTLS   bool      `json:"requiretls,omitempty"`
	Postmaster   bool      `json:"postmaster,omitempty"` // it accepted a probe's recipient once
	At           time.Time `json:"at"`                   // when this was written
}

// learn is m with what a successful probe added.
func (m memory) learn(r Probe) memory {
	m.Postmaster = m.Postmaster || r.knows
	if !r.caps.ESMTP && r.caps.Name == "" { // the probe did not go so deep
		return m
	}
	m.Known = true
	m.Size = r.caps.SizeLimit
	m.EightBitMIME, m.SMTPUTF8 = r.caps.EightBitMIME, r.caps.SMTPUTF8
	m.RequireTLS = r.caps.RequireTLS && r.TLS != nil
	return m
}

// remember takes a successful probe into the memory of w, and has it written if it is news. p.mu is held.
func (p *Prober) remember(w *watch, r Probe, now time.Time) {
	m := w.memory.learn(r)
	if m == w.memory && now.Sub(m.At) < keepAgain {
		return
	}
	m.At = now
	w.memory = m
	p.keep.put(nsPrimary, w.key, m)
}

// Bounds are what the best primaries of a domain can take, by what they said last: mail that only a worse one could
// not take waits for a better one. A domain that is not configured has no bounds.
func (p *Prober) Bounds(name string) mta.Bounds {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.domains[name]
	if d == nil {
		return mta.Bounds{}
	}
	return p.bounds(d)
}

// bounds is Bounds. p.mu is held.
func (p *Prober) bounds(d *domain) mta.Bounds {
	for _, tier := range d.route.Tiers {
		if b := p.tierBounds(tier); b.Known {
			return b
		}
	}
	return mta.Bounds{}
}

// tierBounds is the least that the members of a tier can take: any of them may get the message. p.mu is held.
func (p *Prober) tierBounds(tier []mta.Primary) mta.Bounds {
	b := mta.Bounds{EightBitMIME: true, SMTPUTF8: true, RequireTLS: true}
	for _, m := range tier {
		w := p.watches[m.String()]
		if w == nil || !w.memory.Known {
			continue
		}
		b.Known = true
		if s := w.memory.Size; s > 0 && (b.Size == 0 || max(s-traceRoom, 1) < b.Size) {
			b.Size = max(s-traceRoom, 1)
		}
		b.EightBitMIME = b.EightBitMIME && w.memory.EightBitMIME
		b.SMTPUTF8 = b.SMTPUTF8 && w.memory.SMTPUTF8
		b.RequireTLS = b.RequireTLS && w.memory.RequireTLS
	}
	if !b.Known {
		return mta.Bounds{}
	}
	return b
}
