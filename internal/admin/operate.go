package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"understudy/internal/mta"
	"understudy/spool"
)

// ops are what an operator can do to messages. redirect is made of the others.
var ops = map[string]spool.Op{"hold": spool.Hold, "release": spool.Unhold, "retry": spool.Reschedule, "drop": spool.Delete}

// errNothing keeps a forgotten filter from meaning everything.
var errNothing = errors.New(`name what is meant: "ids", a filter, or "all": true`)

// operate holds, releases, retries, drops or redirects messages. Each is an event in the log, with who did it.
func (s *Server) operate(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("op")
	op, known := ops[name]
	if !known && name != "redirect" {
		writeError(w, http.StatusNotFound, fmt.Errorf("%q is not hold, release, retry, drop or redirect", name))
		return
	}
	var req Operation
	err := readJSON(r, &req)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	var n int
	if name == "redirect" {
		n, err = s.redirect(r.Context(), req)
	} else {
		n, err = s.apply(r.Context(), op, req)
	}
	s.deps.Log.LogAttrs(r.Context(), slog.LevelInfo, "operator", slog.String("op", name), slog.String("by", by(r.Context())),
		slog.Any("request", req), slog.Int("messages", n), slog.Any("err", err))
	switch {
	case errors.Is(err, ErrNotFound):
		writeError(w, http.StatusNotFound, err)
	case err != nil:
		writeError(w, http.StatusBadRequest, err)
	default:
		writeJSON(w, Operated{Messages: n})
	}
}

// apply does op to the messages that are named, or to all that the filter matches.
func (s *Server) apply(ctx context.Context, op spool.Op, req Operation) (int, error) {
	q, err := req.query()
	if err != nil {
		return 0, err
	}
	if len(req.IDs) == 0 {
		return s.deps.Spool.ApplyWhere(ctx, q, op, time.Time{}, nil)
	}
	keys := make([]spool.Key, len(req.IDs))
	for i, id := range req.IDs {
		keys[i] = spool.Key{ID: id, Dest: q.Dest}
	}
	n, err := s.deps.Spool.Apply(ctx, op, time.Time{}, keys...)
	if err == nil && n == 0 {
		err = notFound("no such message is in the queue")
	}
	return n, err
}

// query is the filter, checked.
func (o *Operation) query() (spool.Query, error) {
	q := spool.Query{From: o.From, Rcpt: o.Rcpt, Held: o.Held}
	if o.Domain != "" {
		dest, err := mta.Domain(o.Domain)
		if err != nil {
			return q, err
		}
		q.Dest = dest
	}
	if o.OlderThan > 0 {
		q.Before = time.Now().Add(-o.OlderThan)
	}
	if len(o.IDs) == 0 && !o.All && q.Dest == "" && q.From == "" && q.Rcpt == "" && q.Held == nil && q.Before.IsZero() {
		return q, errNothing
	}
	return q, nil
}

// redirect gives messages to another address: a copy is spooled first and the original dropped after, so that a crash
// between the two leaves one too many and never one too few.
func (s *Server) redirect(ctx context.Context, req Operation) (int, error) {
	if req.To.IsNull() {
		return 0, errors.New(`redirect needs "to": an address`)
	}
	dest := req.To.DomainKey()
	if dest == "" {
		return 0, fmt.Errorf("%q is no address that mail can be sent to", req.To)
	}
	to := mta.Recipient{Addr: req.To, Dest: dest, Notify: mta.NotifyNever}
	q, err := req.query()
	if err != nil {
		return 0, err
	}
	if len(req.IDs) > 0 {
		return s.redirectIDs(ctx, req.IDs, to)
	}
	n := 0
	for {
		items, next, err := s.deps.Spool.List(ctx, q)
		if err != nil {
			return n, err
		}
		for i := range items {
			done, err := s.redirectItem(ctx, &items[i], to)
			if err != nil {
				return n, err
			}
			n += done
		}
		if next == "" {
			return n, nil
		}
		q.After = next
	}
}

func (s *Server) redirectIDs(ctx context.Context, ids []mta.ID, to mta.Recipient) (int, error) {
	n := 0
	for _, id := range ids {
		items, err := s.deliveries(ctx, id)
		if err != nil {
			return n, err
		}
		for i := range items {
			done, err := s.redirectItem(ctx, &items[i], to)
			if err != nil {
				return n, err
			}
			n += done
		}
	}
	return n, nil
}

// redirectItem moves one delivery. One that is already for that address, or that is being delivered now, stays.
func (s *Server) redirectItem(ctx context.Context, it *spool.Item, to mta.Recipient) (int, error) {
	if it.Leased || len(it.Rcpts) == 1 && it.Rcpts[0].Addr == to.Addr {
		return 0, nil
	}
	body, err := s.deps.Spool.Body(ctx, it.ID)
	if err != nil {
		return 0, fmt.Errorf("message %s: %w", it.ID, err)
	}
	defer body.Close()
	env := *it.Envelope
	env.ID, env.Due, env.Rcpts = mta.NewID(time.Now()), time.Time{}, []mta.Recipient{to}
	if v := env.Verdict; v != nil && v.Action == mta.Quarantine { // somebody decided: the copy is to go
		released := *v
		released.Action = mta.Mark
		env.Verdict = &released
	}
	if err := s.deps.Spool.Put(ctx, &env, body); err != nil {
		return 0, fmt.Errorf("message %s: %w", it.ID, err)
	}
	if _, err := s.deps.Spool.Apply(ctx, spool.Delete, time.Time{}, spool.Key{ID: it.ID, Dest: it.Dest}); err != nil {
		return 0, fmt.Errorf("message %s: %w", it.ID, err)
	}
	s.deps.Log.LogAttrs(ctx, slog.LevelInfo, "redirected", slog.String("id", it.ID.String()), slog.String("to", to.Addr.String()),
		slog.String("as", env.ID.String()))
	return 1, nil
}

// content gives a message as it would go to the primary, to be read or kept as an .eml file.
func (s *Server) content(w http.ResponseWriter, r *http.Request) {
	id, err := mta.ParseID(r.PathValue("id"))
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	if _, err := s.deliveries(r.Context(), id); err != nil {
		code := http.StatusInternalServerError
		if errors.Is(err, ErrNotFound) {
			code = http.StatusNotFound
		}
		writeError(w, code, err)
		return
	}
	body, err := s.deps.Spool.Body(r.Context(), id)
	if err != nil {
		writeError(w, http.StatusInternalServerError, err)
		return
	}
	defer body.Close()
	s.deps.Log.LogAttrs(r.Context(), slog.LevelInfo, "content read", slog.String("id", id.String()), slog.String("by", by(r.Context())))
	w.Header().Set("Content-Type", "message/rfc822")
	if _, err := io.Copy(w, body); err != nil {
		panic(http.ErrAbortHandler) // the client must not take a part for the whole
	}
}
