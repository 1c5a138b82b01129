package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"
)

// errNoStore answers what only an engine with files of its own can do.
var errNoStore = errors.New("this spool has no files of its own")

func (s *Server) usage(w http.ResponseWriter, r *http.Request) {
	u, err := s.deps.Spool.Usage(r.Context())
	if err != nil {
		writeError(w, http.StatusInternalServerError, err)
		return
	}
	writeJSON(w, u)
}

// lines sends JSON values one a line while something long goes on, at most one of progress a second.
type lines struct {
	w    http.ResponseWriter
	enc  *json.Encoder
	last time.Time
}

func newLines(w http.ResponseWriter) *lines {
	w.Header().Set("Content-Type", "application/x-ndjson")
	return &lines{w: w, enc: json.NewEncoder(w)}
}

func (l *lines) progress(done, total int) {
	if now := time.Now(); now.Sub(l.last) >= time.Second || done == total {
		l.last = now
		l.send(Progress{Done: done, Total: total})
	}
}

func (l *lines) send(v any) {
	l.enc.Encode(v) // an error is the client's hang-up, which ends the context
	http.NewResponseController(l.w).Flush()
}

// end sends the last line: the result, or the error.
func (l *lines) end(result any, err error) {
	last := ended{Result: result}
	if err != nil {
		last.Error = err.Error()
	}
	l.send(last)
}

// ended is the last line.
type ended struct {
	Result any    `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

// verify reads all that is stored.
func (s *Server) verify(w http.ResponseWriter, r *http.Request) {
	if s.deps.Store == nil {
		writeError(w, http.StatusNotImplemented, errNoStore)
		return
	}
	l := newLines(w)
	v, err := s.deps.Store.Verify(r.Context(), l.progress)
	l.end(v, err)
}

// transferTrailer tells how a backup ended: it is not known before the tar file was sent.
const transferTrailer = "X-Understudy-Transfer"

// backup sends all messages as a tar file.
func (s *Server) backup(w http.ResponseWriter, r *http.Request) {
	if s.deps.Store == nil {
		writeError(w, http.StatusNotImplemented, errNoStore)
		return
	}
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Trailer", transferTrailer)
	t, err := s.deps.Store.Backup(r.Context(), w, nil)
	s.deps.Log.LogAttrs(r.Context(), slog.LevelInfo, "backup", slog.String("by", by(r.Context())), slog.Int("messages", t.Messages), slog.Any("err", err))
	if err != nil {
		panic(http.ErrAbortHandler) // the client must not take a part for the whole
	}
	b, err := json.Marshal(t)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set(transferTrailer, string(b))
}

// restore takes a backup's messages in. What is there already is passed over.
func (s *Server) restore(w http.ResponseWriter, r *http.Request) {
	if s.deps.Store == nil {
		writeError(w, http.StatusNotImplemented, errNoStore)
		return
	}
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		writeError(w, http.StatusInternalServerError, fmt.Errorf("restore: %w", err))
		return
	}
	l := newLines(w)
	t, err := s.deps.Store.Restore(r.Context(), r.Body, func(done int) { l.progress(done, 0) })
	s.deps.Log.LogAttrs(r.Context(), slog.LevelInfo, "restore", slog.String("by", by(r.Context())), slog.Int("messages", t.Messages), slog.Any("err", err))
	l.end(t, err)
}
