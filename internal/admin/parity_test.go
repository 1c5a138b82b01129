package admin

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"understudy/internal/parity"
)

// counted answers with what it was asked.
type counted struct{}

func (counted) Report(_ context.Context, q parity.Query) (parity.Report, error) {
	if q.Days > 1000 {
		return parity.Report{}, errors.New("too many days")
	}
	r := parity.Report{From: fmt.Sprint(q.Days)}
	if q.Domain == "gone.example" {
		r.Domains = []parity.Domain{{Domain: q.Domain}}
	}
	return r, nil
}

func TestParityIsAskedForOneDomainAndSomeDays(t *testing.T) {
	f := serve(t, func(_ *Config, d *Deps) { d.Parity = counted{} })
	tests := []struct {
		domain string
		days   int
		want   string // From, or the error
	}{
		{"", 0, "0"},
		{"Example.ORG.", 30, "30"},
		{"gone.example", 1, "1"}, // no longer configured, and still of interest
		{"nowhere.example", 1, "domain nowhere.example is not configured"},
		{"a b", 1, `domain "a b": label "a b" has the character ' '`},
		{"", -1, `days: "-1" is not a number above 0`},
		{"", 1001, "too many days"},
	}
	for _, tt := range tests {
		r, err := f.client.Parity(t.Context(), tt.domain, tt.days)
		got := r.From
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s, %d days: got %q, want %q", tt.domain, tt.days, got, tt.want)
		}
	}
	f = serve(t, nil)
	if _, err := f.client.Parity(t.Context(), "", 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("without counts: got %v", err)
	}
}
