package daemon

import (
	"context"
	"log/slog"

	"understudy/internal/config"
	"understudy/policy"
)

// Check reads every list that the configuration names, as a start would, and returns what would keep it from starting.
func Check(ctx context.Context, cfg *config.Config) error {
	p, err := policy.New(cfg.Policy, cfg.PolicyDomains(), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return p.Load(ctx)
}
