package mailauth

import (
	"context"
	"fmt"

	"understudy/internal/header"
	"understudy/internal/mta"
)

// Verifier checks messages. Any number of goroutines may use it.
type Verifier struct {
	cfg      Config
	resolver Resolver
}

// New makes a Verifier.
func New(cfg Config, r Resolver) (*Verifier, error) {
	if f := cfg.Validate(); len(f) > 0 {
		return nil, fmt.Errorf("mailauth: %s: %s", f[0].Key, f[0].Text)
	}
	return &Verifier{cfg: cfg, resolver: r}, nil
}

// Content judges a whole message: its signatures, DMARC with what SPF found for the reverse-path, and its header. The
// results of SPF in known are part of what it returns. An error is our own: the content could not be read.
func (v *Verifier) Content(ctx context.Context, c mta.Content, known mta.Auth) (mta.Auth, []mta.Finding, error) {
	ctx, cancel := context.WithTimeout(ctx, v.cfg.ContentTimeout)
	defer cancel()
	var s survey
	h, err := header.Read(c, s.visit)
	if err != nil {
		return known, nil, fmt.Errorf("mailauth: %w", err)
	}
	auth := known
	if auth.DKIM, err = v.dkim(ctx, c, h, &s); err != nil {
		return known, nil, fmt.Errorf("mailauth: %w", err)
	}
	findings := s.findings(h)
	findings = append(findings, dkimFindings(auth.DKIM)...)
	auth.DMARC, auth.Aligned = v.authors(ctx, s.authors, auth)
	return auth, append(findings, dmarcFindings(auth.DMARC)...), nil
}
