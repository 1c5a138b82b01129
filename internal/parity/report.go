package parity

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"understudy/internal/mta"
)

// Query asks for a report.
type Query struct {
	Domain string // in the form of mta.Domain; empty: all
	Days   int    // that end with today; 0: defaultDays
}

const (
	defaultDays = 7
	maxDays     = 3660
)

// Report is how our verdicts and the primary's agree.
type Report struct {
	From    string   `json:"from"` // days, both included, UTC
	To      string   `json:"to"`
	Domains []Domain `json:"domains"` // those of which anything was compared, by name
}

// Domain is the part of one domain.
type Domain struct {
	Domain string `json:"domain"`
	Kinds  []Kind `json:"kinds"`
}

// Kind is what was compared in one way.
type Kind struct {
	Kind      mta.PairKind `json:"kind"`
	Messages  int64        `json:"messages"`
	Matrix    Matrix       `json:"matrix"`
	Bypass    Rate         `json:"bypass"`     // refused by the primary for its content, of what we take
	OverBlock Rate         `json:"over_block"` // accepted by the primary, of what we refuse or hold
	// TheyRefuse says why the primary refused what we took, WeRefuse why we refused or held what it took.
	TheyRefuse []Reason `json:"they_refuse,omitempty"`
	WeRefuse   []Reason `json:"we_refuse,omitempty"`
	Days       []Day    `json:"days"`
}

// Day is one day's part.
type Day struct {
	Day    string `json:"day"`
	Matrix Matrix `json:"matrix"`
}

// Report puts together what was counted, down to this moment.
func (t *Tally) Report(ctx context.Context, q Query) (Report, error) {
	days := cmp.Or(q.Days, defaultDays)
	if days < 0 || days > maxDays {
		return Report{}, fmt.Errorf("parity: %d days: want 1 to %d", days, maxDays)
	}
	now := time.Now()
	r := Report{From: firstDay(now, days), To: dayOf(now), Domains: []Domain{}}
	all := map[place]*record{}
	wanted := func(at place) bool {
		return at.day >= r.From && at.day <= r.To && (q.Domain == "" || at.domain == q.Domain)
	}
	if t.deps.State != nil {
		t.scan(ctx, r.From, func(at place, rec *record) {
			if wanted(at) {
				all[at] = rec
			}
		})
	}
	if err := ctx.Err(); err != nil {
		return Report{}, fmt.Errorf("parity: report: %w", err)
	}
	t.mu.Lock()
	for at, rec := range t.records {
		if kept := all[at]; wanted(at) && (kept == nil || at.day == t.today || t.dirty[at]) {
			all[at] = rec.clone()
		}
	}
	t.mu.Unlock()
	r.Domains = domains(all)
	return r, nil
}

// domains orders records by domain, kind and day.
func domains(all map[place]*record) []Domain {
	byDomain := map[string]*[3]Kind{}
	for _, at := range slices.SortedFunc(maps.Keys(all), func(a, b place) int { return strings.Compare(a.String(), b.String()) }) {
		rec := all[at]
		of := byDomain[at.domain]
		if of == nil {
			of = &[3]Kind{}
			byDomain[at.domain] = of
		}
		k := &of[at.kind]
		k.Matrix.add(&rec.Matrix)
		k.TheyRefuse, k.WeRefuse = merge(k.TheyRefuse, rec.Theirs), merge(k.WeRefuse, rec.Ours)
		k.Days = append(k.Days, Day{at.day, rec.Matrix})
	}
	list := []Domain{}
	for _, name := range slices.Sorted(maps.Keys(byDomain)) {
		d := Domain{Domain: name}
		for _, kind := range kinds {
			if k := byDomain[name][kind]; len(k.Days) > 0 {
				d.Kinds = append(d.Kinds, k.whole(kind))
			}
		}
		list = append(list, d)
	}
	return list
}

func (k Kind) whole(kind mta.PairKind) Kind {
	k.Kind, k.Messages, k.Bypass, k.OverBlock = kind, k.Matrix.Messages(), k.Matrix.Bypass(), k.Matrix.OverBlock()
	k.TheyRefuse, k.WeRefuse = top(k.TheyRefuse), top(k.WeRefuse)
	return k
}
