package admin

import (
	"fmt"
	"log/slog"
	"net/http"

	"understudy/internal/mta"
)

// recipient tells whether mail for an address would be taken now, and who says so.
func (s *Server) recipient(w http.ResponseWriter, r *http.Request) {
	to, err := mta.ParsePath(r.PathValue("address"))
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	answer, err := s.deps.Recipients.Lookup(r.Context(), to)
	if err != nil {
		writeError(w, http.StatusInternalServerError, err)
		return
	}
	writeJSON(w, answer)
}

// sources tells of each source of recipients how it is.
func (s *Server) sources(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, Sources{Sources: s.deps.Recipients.Sources()})
}

// operateSource reads a source now, or confirms that it lost recipients.
func (s *Server) operateSource(w http.ResponseWriter, r *http.Request) {
	var req SourceRequest
	err := readJSON(r, &req)
	op := r.PathValue("op")
	switch {
	case err != nil:
	case op == "refresh":
		err = s.deps.Recipients.Refresh(r.Context(), req.Name)
	case op == "confirm":
		err = s.deps.Recipients.Confirm(r.Context(), req.Name, req.Domain)
	default:
		err = fmt.Errorf("%q is not refresh or confirm", op)
	}
	s.deps.Log.LogAttrs(r.Context(), slog.LevelInfo, "operator", slog.String("op", op+" source"), slog.String("by", by(r.Context())),
		slog.Any("request", req), slog.Any("err", err))
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	s.sources(w, r)
}

// resume closes the breaker of a primary that was mended, or of all.
func (s *Server) resume(w http.ResponseWriter, r *http.Request) {
	var req ResumeRequest
	if err := readJSON(r, &req); err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	was := s.deps.Forwarder.Resume(req.Primary)
	s.deps.Log.LogAttrs(r.Context(), slog.LevelInfo, "operator", slog.String("op", "resume"), slog.String("by", by(r.Context())),
		slog.Any("request", req))
	writeJSON(w, Resumed{Was: was})
}
