package admin

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"time"

	"understudy/healthprobe"
	"understudy/internal/mta"
)

// primaries gives all that is known of each primary: the last probe with each step's time and reply.
func (s *Server) primaries(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, Primaries{Primaries: s.deps.Health.Status(), Domains: s.deps.Health.Domains()})
}

// probe has the primaries of a domain, or all, probed now.
func (s *Server) probe(w http.ResponseWriter, r *http.Request) {
	var req FlushRequest
	err := readJSON(r, &req)
	if err == nil && req.ID != "" {
		err = errors.New("a message can't be probed")
	}
	if err == nil && req.Domain != "" {
		req.Domain, err = mta.Domain(req.Domain)
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	if req.Domain != "" && !slices.Contains(s.deps.Domains(), req.Domain) {
		writeError(w, http.StatusNotFound, fmt.Errorf("domain %s is not configured", req.Domain))
		return
	}
	s.deps.Health.Hint(req.Domain)
	writeJSON(w, struct{}{})
}

// recovered takes the hint that a domain's primary is back, from a script on that. It brings a probe now, never belief.
func (s *Server) recovered(w http.ResponseWriter, r *http.Request) {
	domain, err := mta.Domain(r.PathValue("domain"))
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	if !slices.Contains(s.deps.Domains(), domain) {
		writeError(w, http.StatusNotFound, fmt.Errorf("domain %s is not configured", domain))
		return
	}
	s.deps.Log.LogAttrs(r.Context(), slog.LevelInfo, "recovery hint", slog.String("domain", domain), slog.String("by", by(r.Context())))
	s.deps.Health.Hint(domain)
	writeJSON(w, struct{}{})
}

func (s *Server) overrides(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, Overrides{Overrides: s.deps.Health.Overrides()})
}

// override orders a maintenance or holds a drain.
func (s *Server) override(w http.ResponseWriter, r *http.Request) {
	var o healthprobe.Override
	err := readJSON(r, &o)
	if err == nil {
		err = s.deps.Health.Override(r.Context(), o)
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	s.deps.Log.LogAttrs(r.Context(), slog.LevelInfo, "operator", slog.String("op", string(o.Kind)), slog.String("by", by(r.Context())),
		slog.Any("request", o))
	writeJSON(w, Overrides{Overrides: s.deps.Health.Overrides()})
}

func (s *Server) endOverride(w http.ResponseWriter, r *http.Request) {
	kind, subject := healthprobe.OverrideKind(r.URL.Query().Get("kind")), r.URL.Query().Get("subject")
	was, err := s.deps.Health.EndOverride(r.Context(), kind, subject)
	switch {
	case err != nil:
		writeError(w, http.StatusInternalServerError, err)
		return
	case !was:
		writeError(w, http.StatusNotFound, fmt.Errorf("no %s of %q is in force", kind, subject))
		return
	}
	s.deps.Log.LogAttrs(r.Context(), slog.LevelInfo, "operator", slog.String("op", "end "+string(kind)), slog.String("by", by(r.Context())),
		slog.String("subject", subject))
	writeJSON(w, Overrides{Overrides: s.deps.Health.Overrides()})
}

// outages gives the history, the newest first.
func (s *Server) outages(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	q := healthprobe.OutageQuery{Primary: v.Get("primary"), Domain: v.Get("domain"), Limit: defaultPage}
	if d := v.Get("days"); d != "" {
		n, err := strconv.Atoi(d)
		if err != nil || n < 1 {
			writeError(w, http.StatusBadRequest, fmt.Errorf("days: %q is not a number above 0", d))
			return
		}
		q.Since, q.Limit = time.Now().AddDate(0, 0, -n), 0
	}
	writeJSON(w, Outages{Outages: s.deps.Health.Outages(q)})
}

func (s *Server) alarms(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, Alarms{Alarms: s.deps.Alarms()})
}
