package spool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"understudy/internal/mta"
)

// Damage is one thing that Verify found.
type Damage struct {
	ID   mta.ID `json:"id,omitzero"`   // the message; zero: a whole generation
	Dir  string `json:"dir,omitempty"` // the generation's folder
	Text string `json:"text"`
}

// Verification is what Verify found.
type Verification struct {
	Messages int64    `json:"messages"` // read whole
	Bytes    int64    `json:"bytes"`
	Damages  []Damage `json:"damages"`
}

// Damages lists what is known to be damaged, without reading anything: an alarm for as long as it is not empty. A
// message leaves the list when an operator deletes or unholds it, a generation only when its folder is taken away and
// the spool opened again; that the last commit before a crash may be missing is told until the next start.
func (s *Store) Damages() []Damage {
	list := s.foundAtStart()
	for _, g := range s.snapshot() {
		if g.damaged.Load() {
			list = append(list, Damage{Dir: g.dir, Text: "commit records are missing or can't be read"})
		}
	}
	return append(list, s.badNow()...)
}

// foundAtStart lists what recover found, and what does not change as long as the spool is open.
func (s *Store) foundAtStart() []Damage {
	list := slices.Clone(s.amiss)
	for _, dir := range s.broken {
		list = append(list, Damage{Dir: dir, Text: "generation can't be opened"})
	}
	return list
}

// Verify reads all that is stored, and holds it against its checksums. Mail goes on meanwhile; messages that end are
// passed over. progress, if not nil, is told of the messages that were read. Damaged messages are held.
func (s *Store) Verify(ctx context.Context, progress func(done, total int)) (*Verification, error) {
	v := &Verification{Damages: s.foundAtStart()}
	for _, g := range s.snapshot() {
		if err := s.verifyGeneration(ctx, g, v); err != nil {
			return v, fmt.Errorf("spool: verify: %w", err)
		}
	}
	ids, err := s.allIDs(ctx)
	if err != nil {
		return v, err
	}
	for i, id := range ids {
		if err := s.verifyMessage(ctx, id, v); err != nil {
			return v, fmt.Errorf("spool: verify: %w", err)
		}
		if progress != nil && (i%100 == 99 || i == len(ids)-1) {
			progress(i+1, len(ids))
		}
	}
	return v, nil
}

func (s *Store) allIDs(ctx context.Context) ([]mta.ID, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.leave()
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	return s.idx.ids(&Query{}, mta.ID{}, true, -1), nil
}

// verifyGeneration reads every block of a generation's tables, those of ended mail too.
func (s *Store) verifyGeneration(ctx context.Context, g *generation, v *Verification) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	d, err := g.use(s)
	if errors.Is(err, errMoved) {
		return nil // removed meanwhile
	}
	if err != nil {
		v.Damages = append(v.Damages, Damage{Dir: g.dir, Text: err.Error()})
		return nil
	}
	defer g.release()
	if err := verifyTables(d.db); err != nil {
		s.damagedGeneration(g, err)
		v.Damages = append(v.Damages, Damage{Dir: g.dir, Text: err.Error()})
	} else if g.damaged.Load() {
		v.Damages = append(v.Damages, Damage{Dir: g.dir, Text: "commit records are missing or can't be read"})
	}
	return nil
}

func (s *Store) verifyMessage(ctx context.Context, id mta.ID, v *Verification) error {
	n, err := s.readWhole(ctx, id)
	switch {
	case err == nil:
		v.Messages++
		v.Bytes += n
	case errors.Is(err, ErrNotFound):
	case ctx.Err() != nil || errors.Is(err, ErrClosed):
		return err
	default:
		v.Damages = append(v.Damages, Damage{ID: id, Text: err.Error()})
	}
	return nil
}

// readWhole reads a message's content for nothing but its checksum.
func (s *Store) readWhole(ctx context.Context, id mta.ID) (int64, error) {
	r, err := s.Body(ctx, id)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(io.Discard, readerCtx{ctx, r})
}
