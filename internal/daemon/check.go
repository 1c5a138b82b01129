package daemon

import (
	"context"
	"log/slog"

	"understudy/internal/config"
	"understudy/policy"
)

// Check reads every list on this host that the configuration names, and returns what would keep it from starting or
// from knowing its recipients. No server is asked.
func Check(ctx context.Context, cfg *config.Config) error {
	p, err := policy.New(cfg.Policy, cfg.PolicyDomains(), policy.Deps{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	return p.Check(ctx)
}
