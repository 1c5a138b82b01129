package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"understudy/internal/mta"
	"understudy/spool"
)

// Limits of one page of the queue.
const (
	defaultPage = 100
	maxPage     = 1000
)

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	if err := s.deps.Spool.Ready(r.Context()); err != nil {
		http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	stats, err := s.deps.Spool.Stats(r.Context())
	if err != nil {
		writeError(w, http.StatusInternalServerError, err)
		return
	}
	st := Status{
		Hostname: s.deps.Hostname, Version: s.deps.Version, Started: s.started, Ready: true,
		Primaries: primaryStatuses(s.deps.Health.Status(), s.deps.Forwarder.Primaries()),
		Domains:   domainStatuses(s.deps.Domains(), stats),
		Overrides: s.deps.Health.Overrides(), Alarms: s.deps.Alarms(),
	}
	if s.deps.Helpers != nil {
		st.Helpers = s.deps.Helpers()
	}
	if err := s.deps.Spool.Ready(r.Context()); err != nil {
		st.Ready, st.Reason = false, err.Error()
	}
	writeJSON(w, st)
}

// domainStatuses joins the configured domains with what is in the queue: a domain that was removed from the
// configuration while mail waits for it still shows.
func domainStatuses(configured []string, stats []spool.DestStats) []DomainStatus {
	byDomain := map[string]DomainStatus{}
	for _, d := range configured {
		byDomain[d] = DomainStatus{Domain: d, Configured: true}
	}
	for _, st := range stats {
		d := byDomain[st.Dest]
		byDomain[st.Dest] = DomainStatus{
			Domain: st.Dest, Configured: d.Configured, Messages: st.Messages - st.Held, Held: st.Held,
			Bytes: st.Bytes, Leased: st.Leased, Oldest: st.Oldest, NextDue: st.NextDue,
		}
	}
	all := make([]DomainStatus, 0, len(byDomain))
	for _, d := range byDomain {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b DomainStatus) int { return strings.Compare(a.Domain, b.Domain) })
	return all
}

func (s *Server) queue(w http.ResponseWriter, r *http.Request) {
	q, err := queueQuery(r)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	items, next, err := s.deps.Spool.List(r.Context(), q)
	if err != nil {
		writeError(w, http.StatusInternalServerError, err)
		return
	}
	writeJSON(w, Queue{Messages: messages(items), Next: next})
}

func queueQuery(r *http.Request) (spool.Query, error) {
	v := r.URL.Query()
	q := spool.Query{From: v.Get("from"), Rcpt: v.Get("rcpt"), After: v.Get("after"), Limit: defaultPage}
	if d := v.Get("domain"); d != "" {
		dest, err := mta.Domain(d)
		if err != nil {
			return q, err
		}
		q.Dest = dest
	}
	if h := v.Get("held"); h != "" {
		held, err := strconv.ParseBool(h)
		if err != nil {
			return q, fmt.Errorf("held: %q is neither true nor false", h)
		}
		q.Held = &held
	}
	if l := v.Get("limit"); l != "" {
		n, err := strconv.Atoi(l)
		if err != nil || n < 1 || n > maxPage {
			return q, fmt.Errorf("limit: %q is not a number from 1 to %d", l, maxPage)
		}
		q.Limit = n
	}
	return q, nil
}

func (s *Server) message(w http.ResponseWriter, r *http.Request) {
	id, err := mta.ParseID(r.PathValue("id"))
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	items, err := s.deliveries(r.Context(), id)
	switch {
	case errors.Is(err, ErrNotFound):
		writeError(w, http.StatusNotFound, err)
	case err != nil:
		writeError(w, http.StatusInternalServerError, err)
	default:
		writeJSON(w, Queue{Messages: messages(items)})
	}
}

// deliveries finds a message.
func (s *Server) deliveries(ctx context.Context, id mta.ID) ([]spool.Item, error) {
	items, err := s.deps.Spool.Get(ctx, id)
	if errors.Is(err, spool.ErrNotFound) {
		return nil, notFound(fmt.Sprintf("message %s is not in the queue", id))
	}
	return items, err
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	done, err := s.deps.Reload(r.Context())
	if err != nil {
		writeError(w, http.StatusUnprocessableEntity, err)
		return
	}
	writeJSON(w, done)
}

// readJSON reads a small body; an empty one is the zero value, a key that we do not know is an error.
func readJSON(r *http.Request, v any) error {
	dec := json.NewDecoder(io.LimitReader(r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("request body: %w", err)
	}
	return nil
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // an error is the client's hang-up
}

func writeError(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(apiError{Error: err.Error()})
}
