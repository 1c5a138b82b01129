package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"understudy/internal/mta"
	"understudy/internal/parity"
)

// Parity is what the API needs of the counts of verdicts.
type Parity interface {
	Report(ctx context.Context, q parity.Query) (parity.Report, error)
}

// ParityReport is the answer to GET /v1/parity; the others are its parts.
type (
	ParityReport = parity.Report
	ParityDomain = parity.Domain
	ParityKind   = parity.Kind
	ParityRate   = parity.Rate
	ParityReason = parity.Reason
)

// parity tells how our verdicts and the primaries' agree.
func (s *Server) parity(w http.ResponseWriter, r *http.Request) {
	if s.deps.Parity == nil {
		writeError(w, http.StatusNotFound, errors.New("nothing is compared here"))
		return
	}
	q, err := parityQuery(r.URL.Query())
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	report, err := s.deps.Parity.Report(r.Context(), q)
	switch {
	case err != nil:
		writeError(w, http.StatusBadRequest, err)
	case q.Domain != "" && len(report.Domains) == 0 && !slices.Contains(s.deps.Domains(), q.Domain):
		writeError(w, http.StatusNotFound, fmt.Errorf("domain %s is not configured", q.Domain))
	default:
		writeJSON(w, report)
	}
}

func parityQuery(v url.Values) (parity.Query, error) {
	var q parity.Query
	if d := v.Get("domain"); d != "" {
		domain, err := mta.Domain(d)
		if err != nil {
			return q, err
		}
		q.Domain = domain
	}
	if d := v.Get("days"); d != "" {
		n, err := strconv.Atoi(d)
		if err != nil || n < 1 {
			return q, fmt.Errorf("days: %q is not a number above 0", d)
		}
		q.Days = n
	}
	return q, nil
}

// Parity asks how our verdicts and the primaries' agree, of one domain or all (""), over the last days; 0 is a week.
func (c *Client) Parity(ctx context.Context, domain string, days int) (ParityReport, error) {
	v := url.Values{}
	if domain != "" {
		v.Set("domain", domain)
	}
	if days != 0 {
		v.Set("days", strconv.Itoa(days))
	}
	return call[ParityReport](ctx, c, http.MethodGet, "/v1/parity?"+v.Encode(), nil)
}
