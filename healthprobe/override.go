package healthprobe

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"understudy/internal/mta"
)

// Override is an operator's word against what the probes say.
type Override struct {
	Kind    OverrideKind `json:"kind"`
	Subject string       `json:"subject"` // a primary, a domain or the name of a route
	Since   time.Time    `json:"since"`
	Until   time.Time    `json:"until,omitzero"` // zero: until it is taken back
	Why     string       `json:"why,omitempty"`
}

// OverrideKind is what an operator can order.
type OverrideKind string

const (
	Maintenance OverrideKind = "maintenance" // the primary counts as down
	Hold        OverrideKind = "hold"        // the drain of a domain or a route is held; inline mail goes on
)

func (o Override) key() string { return string(o.Kind) + "|" + o.Subject }

func (o Override) holds(now time.Time) bool { return o.Until.IsZero() || now.Before(o.Until) }

// Override orders what o says, from now on and over restarts. A maintenance must name its end.
func (p *Prober) Override(ctx context.Context, o Override) error {
	o.Since = time.Now()
	if err := p.checkOverride(o); err != nil {
		return fmt.Errorf("healthprobe: %w", err)
	}
	if p.deps.Tables != nil {
		val, err := json.Marshal(o)
		if err != nil {
			return fmt.Errorf("healthprobe: %w", err)
		}
		if _, err := p.deps.Tables.Put(ctx, nsOverride, o.key(), val, keepFor, nil); err != nil {
			return fmt.Errorf("healthprobe: keep override: %w", err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.overrides[o.key()] = o
	until := "until it is taken back"
	if !o.Until.IsZero() {
		until = "until " + o.Until.Format(time.RFC3339)
	}
	p.overrideEvent(ctx, o, "override is in force", fmt.Sprintf("%s of %s was ordered %s.", o.Kind, o.Subject, until))
	return nil
}

func (p *Prober) checkOverride(o Override) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !o.Until.IsZero() && !o.Until.After(o.Since) {
		return fmt.Errorf("the end, %s, is past", o.Until.Format(time.RFC3339))
	}
	switch o.Kind {
	case Maintenance:
		if o.Until.IsZero() {
			return fmt.Errorf("a maintenance needs an end")
		}
		if p.watches[o.Subject] == nil {
			return fmt.Errorf("%q is no primary of any domain", o.Subject)
		}
	case Hold:
		if p.domains[o.Subject] == nil && !p.isRoute(o.Subject) {
			return fmt.Errorf("%q is neither a domain nor a route", o.Subject)
		}
	default:
		return fmt.Errorf("kind %q is not maintenance or hold", o.Kind)
	}
	return nil
}

// isRoute reports whether a route has that name. p.mu is held.
func (p *Prober) isRoute(name string) bool {
	for _, d := range p.domains {
		if d.known && d.route.Name == name {
			return true
		}
	}
	return false
}

// EndOverride takes back what was ordered. It reports whether there was anything.
func (p *Prober) EndOverride(ctx context.Context, kind OverrideKind, subject string) (bool, error) {
	o := Override{Kind: kind, Subject: subject}
	if p.deps.Tables != nil {
		if err := p.deps.Tables.Delete(ctx, nsOverride, o.key()); err != nil {
			return false, fmt.Errorf("healthprobe: end override: %w", err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.overrides[o.key()]
	if ok {
		delete(p.overrides, o.key())
		p.overrideEvent(ctx, o, "override has ended", fmt.Sprintf("%s of %s was taken back.", o.Kind, o.Subject))
	}
	return ok, nil
}

// Overrides lists what is in force.
func (p *Prober) Overrides() []Override {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := []Override{}
	for _, o := range p.overrides {
		if o.holds(time.Now()) {
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b Override) int { return strings.Compare(a.key(), b.key()) })
	return list
}

// overrideOf returns the override of that kind that is in force for a subject. p.mu is held.
func (p *Prober) overrideOf(kind OverrideKind, subject string, now time.Time) *Override {
	if len(p.overrides) == 0 { // the usual, and asked for each message
		return nil
	}
	o, ok := p.overrides[Override{Kind: kind, Subject: subject}.key()]
	if !ok || !o.holds(now) {
		return nil
	}
	return &o
}

// held returns the hold of a domain or its route. p.mu is held.
func (p *Prober) held(d *domain, now time.Time) *Override {
	if o := p.overrideOf(Hold, d.name, now); o != nil {
		return o
	}
	return p.overrideOf(Hold, d.route.Name, now)
}

// endOverrides drops what has run out, and returns when the next will. p.mu is held.
func (p *Prober) endOverrides(ctx context.Context, now time.Time) (next time.Duration) {
	next = idle
	for key, o := range p.overrides {
		if o.holds(now) {
			if !o.Until.IsZero() {
				next = min(next, o.Until.Sub(now))
			}
			continue
		}
		delete(p.overrides, key)
		p.overrideEvent(ctx, o, "override has ended", fmt.Sprintf("%s of %s has run out.", o.Kind, o.Subject))
	}
	return next
}

func (p *Prober) overrideEvent(ctx context.Context, o Override, msg, text string) {
	p.deps.Log.LogAttrs(ctx, slog.LevelWarn, msg, slog.String("kind", string(o.Kind)), slog.String("subject", o.Subject),
		slog.Time("until", o.Until), slog.String("why", o.Why))
	p.event(mta.Event{
		Kind: mta.EventMaintenance, Subject: o.Subject, Level: mta.Notice, At: time.Now(),
		Text: strings.ToUpper(text[:1]) + text[1:], Details: map[string]string{"kind": string(o.Kind), "why": o.Why},
	})
	if w := p.watches[o.Subject]; w != nil && w.away() && !w.awayAlarm { // the maintenance is over, and it is not back
		p.stateEvent(w, time.Now())
	}
	p.tell()
}
