package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"

	"understudy/internal/admin"
	"understudy/internal/config"
	"understudy/policy"
	"understudy/spool"
)

// Check reads what the configuration names, as a start would, and returns all that would keep it from starting: lists,
// certificates, tokens, keys.
func Check(ctx context.Context, cfg *config.Config) error {
	var errs []error
	p, err := policy.New(cfg.Policy, cfg.PolicyDomains(), policy.Deps{Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		err = p.Check(ctx)
	}
	errs = append(errs, err, spool.CheckKeys(cfg.Spool))
	for i, c := range cfg.Inbound.TLS.Certificates {
		if _, err := tls.LoadX509KeyPair(c.Cert, c.Key); err != nil {
			errs = append(errs, fmt.Errorf("inbound.tls.certificates[%d]: %w", i, err))
		}
	}
	for _, file := range []string{cfg.Admin.TokenFile, cfg.Admin.HintTokenFile} {
		if file == "" {
			continue
		}
		_, err := admin.ReadToken(file)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
