package policy

import (
	"testing"

	"understudy/internal/mta"
)

// What placing a recipient costs, with all limits on.
func BenchmarkAdmit(b *testing.B) {
	cfg := DefaultConfig()
	cfg.Limits.ClientMessagesPerMinute, cfg.Limits.ClientRecipientsPerMinute, cfg.Limits.SenderRecipientsPerMinute = maxRate, maxRate, maxRate
	p, err := New(cfg, map[string]Domain{"example.org": {AcceptAll: true}}, Deps{Log: quiet.Log, Up: func(string) bool { return true }})
	if err != nil {
		b.Fatal(err)
	}
	if err := p.Load(b.Context()); err != nil {
		b.Fatal(err)
	}
	env, to := from(b, "192.0.2.1", "bob@example.net"), path(b, "alice@example.org")
	b.ReportAllocs()
	for b.Loop() {
		if _, road, err := p.Admit(b.Context(), env, to); err != nil || road != mta.Inline {
			b.Fatal(road, err)
		}
	}
}
