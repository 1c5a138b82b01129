package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"

	"understudy/internal/mta"
)

func (s *Server) flush(w http.ResponseWriter, r *http.Request) {
	var req FlushRequest
	if err := readJSON(r, &req); err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	done, err := s.flushNow(r.Context(), req)
	switch {
	case errors.Is(err, ErrNotFound):
		writeError(w, http.StatusNotFound, err)
	case err != nil:
		writeError(w, http.StatusBadRequest, err)
	default:
		writeJSON(w, done)
	}
}

// flushNow probes the primaries of what the request covers and has the mail tried as soon as they are up.
func (s *Server) flushNow(ctx context.Context, req FlushRequest) (Flushed, error) {
	var id mta.ID
	var covered []DomainStatus
	var err error
	if req.ID != "" {
		id, covered, err = s.coveredMessage(ctx, req.ID)
	} else {
		covered, err = s.coveredDomains(ctx, req.Domain)
	}
	if err != nil {
		return Flushed{}, err
	}
	done := Flushed{Domains: []string{}}
	for _, d := range covered {
		done.Messages += d.Messages
		done.Held += d.Held
		done.Domains = append(done.Domains, d.Domain)
		done.Closed = append(done.Closed, s.closed(ctx, d)...)
		s.deps.Health.Hint(d.Domain)
		s.deps.Forwarder.Flush(ctx, d.Domain, id)
	}
	slices.Sort(done.Closed)
	done.Closed = slices.Compact(done.Closed)
	s.deps.Log.LogAttrs(ctx, slog.LevelInfo, "flush", slog.String("domain", req.Domain), slog.String("id", req.ID),
		slog.Int64("messages", done.Messages))
	return done, nil
}

// coveredMessage counts one message's deliveries by domain.
func (s *Server) coveredMessage(ctx context.Context, text string) (mta.ID, []DomainStatus, error) {
	id, err := mta.ParseID(text)
	if err != nil {
		return id, nil, err
	}
	items, err := s.deliveries(ctx, id)
	if err != nil {
		return id, nil, err
	}
	var covered []DomainStatus
	for _, it := range items {
		d := DomainStatus{Domain: it.Dest}
		if it.Held {
			d.Held = 1
		} else {
			d.Messages = 1
		}
		covered = append(covered, d)
	}
	return id, covered, nil
}

// coveredDomains counts what waits for one domain, or for all.
func (s *Server) coveredDomains(ctx context.Context, domain string) ([]DomainStatus, error) {
	stats, err := s.deps.Spool.Stats(ctx)
	if err != nil {
		return nil, err
	}
	all := domainStatuses(s.deps.Domains(), stats)
	if domain == "" {
		return all, nil
	}
	dest, err := mta.Domain(domain)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(d DomainStatus) bool { return d.Domain == dest })
	if i < 0 {
		return nil, notFound(fmt.Sprintf("domain %s is not configured and has no mail here", dest))
	}
	return all[i : i+1], nil
}

// closed lists a domain's primaries when mail waits for it and none of them is up.
func (s *Server) closed(ctx context.Context, d DomainStatus) []string {
	if d.Messages == 0 {
		return nil
	}
	route, err := s.deps.Health.Route(ctx, d.Domain)
	if err != nil {
		return nil
	}
	var all []string
	for _, tier := range route.Tiers {
		for _, p := range tier {
			if s.deps.Health.Open(p.String()) {
				return nil
			}
			all = append(all, p.String())
		}
	}
	return all
}
