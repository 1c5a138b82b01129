package spool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/internal/mta"
)

// Get implements Spool.
func (q *queue) Get(ctx context.Context, id mta.ID) ([]Item, error) {
	if err := q.enter(ctx); err != nil {
		return nil, err
	}
	defer q.leave()
	items, err := q.items(id, &Query{})
	if err != nil {
		return nil, fmt.Errorf("spool: get %s: %w", id, err)
	}
	if len(items) == 0 {
		return nil, fmt.Errorf("spool: get %s: %w", id, ErrNotFound)
	}
	return items, nil
}

// items makes the rows of one message that match, in the order of destination.
func (q *queue) items(id mta.ID, sel *Query) ([]Item, error) {
	m, p, err := q.read(id)
	if err != nil {
		return nil, err
	}
	if !sel.matches(m.env) {
		return nil, nil
	}
	var list []Item
	q.mu.Lock()
	defer q.mu.Unlock()
	row, ok := q.idx.find(id)
	if !ok {
		return nil, ErrNotFound
	}
	q.idx.lapse(time.Now())
	for i := q.idx.msgs.at(row).first; i != none; i = q.idx.dels.at(i).next {
		if !q.idx.deliveryMatches(sel, i) {
			continue
		}
		d := q.idx.dels.at(i)
		dest := q.idx.dests[d.dest].name
		item := Item{
			ID: id, Dest: dest, Due: fromMillis(d.due), Expires: m.env.Expires, Held: d.held, Leased: d.leased,
			Size: m.size, Envelope: m.env, Rcpts: p.statuses(m.env, dest, false),
		}
		if dp := p.dest(dest); dp != nil {
			item.Attempts, item.Reason = int(dp.attempts), p.standing(m.env, dp).reason
		}
		list = append(list, item)
	}
	slices.SortFunc(list, func(a, b Item) int { return strings.Compare(a.Dest, b.Dest) })
	return list, nil
}

// matches asks what only the envelope knows.
func (sel *Query) matches(env *mta.Envelope) bool {
	if sel.From != "" && !contains(env.From, sel.From) {
		return false
	}
	if sel.Rcpt == "" {
		return true
	}
	return slices.ContainsFunc(env.Rcpts, func(r mta.Recipient) bool { return contains(r.Addr, sel.Rcpt) })
}

func contains(p mta.Path, part string) bool {
	return strings.Contains(strings.ToLower(p.String()), strings.ToLower(part))
}

// cursor is where a page ended: the ID and destination of its last row.
type cursor struct {
	id   mta.ID
	dest string
}

func parseCursor(s string) (cursor, error) {
	if s == "" {
		return cursor{}, nil
	}
	text, dest, _ := strings.Cut(s, "/")
	id, err := mta.ParseID(text)
	if err != nil {
		return cursor{}, fmt.Errorf("cursor %q: %w", s, err)
	}
	return cursor{id: id, dest: dest}, nil
}

func (c cursor) String() string { return c.id.String() + "/" + c.dest }

// maxStep is how many messages a search asks the index for at once: each time it looks through all that it knows.
const maxStep = 8192

// List implements Spool.
func (q *queue) List(ctx context.Context, sel Query) (items []Item, next string, err error) {
	if err := q.enter(ctx); err != nil {
		return nil, "", err
	}
	defer q.leave()
	at, err := parseCursor(sel.After)
	if err != nil {
		return nil, "", fmt.Errorf("spool: list: %w", err)
	}
	limit := sel.Limit
	if limit <= 0 {
		limit = DefaultLimit
	}
	limit = min(limit, MaxLimit)
	for inclusive, n := true, limit+1; ; inclusive, n = false, min(8*n, maxStep) {
		if err := ctx.Err(); err != nil {
			return nil, "", fmt.Errorf("spool: list: %w", err)
		}
		q.mu.Lock()
		ids := q.idx.ids(&sel, at.id, inclusive, n)
		q.mu.Unlock()
		for _, id := range ids {
			rows, err := q.rows(id, &sel, at)
			if err != nil {
				return nil, "", fmt.Errorf("spool: list: %w", err)
			}
			items = append(items, rows...)
			if len(items) > limit {
				items = items[:limit]
				last := &items[limit-1]
				return items, cursor{last.ID, last.Dest}.String(), nil
			}
			at = cursor{id: id, dest: "\xff"}
		}
		if len(ids) == 0 {
			return items, "", nil
		}
	}
}

// rows makes a message's rows after the cursor. A record that can't be read is shown by what the index knows.
func (q *queue) rows(id mta.ID, sel *Query, after cursor) ([]Item, error) {
	rows, err := q.items(id, sel)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, nil // went meanwhile
	case errors.Is(err, ErrDamaged):
		rows = q.bareItems(id, sel)
	case err != nil:
		return nil, err
	}
	if id == after.id {
		rows = slices.DeleteFunc(rows, func(i Item) bool { return i.Dest <= after.dest })
	}
	return rows, nil
}

func (q *queue) bareItems(id mta.ID, sel *Query) []Item {
	if sel.From != "" || sel.Rcpt != "" {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	row, ok := q.idx.find(id)
	if !ok {
		return nil
	}
	var list []Item
	for i := q.idx.msgs.at(row).first; i != none; i = q.idx.dels.at(i).next {
		if !q.idx.deliveryMatches(sel, i) {
			continue
		}
		d := q.idx.dels.at(i)
		list = append(list, Item{
			ID: id, Dest: q.idx.dests[d.dest].name, Due: fromMillis(d.due), Held: d.held, Leased: d.leased, Attempts: int(d.attempts),
			Size: q.idx.msgs.at(row).size, Reason: unreadableReason, Envelope: &mta.Envelope{ID: id, Received: id.Time()},
		})
	}
	slices.SortFunc(list, func(a, b Item) int { return strings.Compare(a.Dest, b.Dest) })
	return list
}

var unreadableReason = mta.Reply{Code: 451, Enhanced: "4.3.0", Text: "the stored record is damaged"}

// Apply implements Spool.
func (q *queue) Apply(ctx context.Context, op Op, due time.Time, keys ...Key) (int, error) {
	if err := q.enter(ctx); err != nil {
		return 0, err
	}
	defer q.leave()
	n, err := q.apply(op, due, keys)
	if err != nil {
		return n, fmt.Errorf("spool: %s: %w", op, err)
	}
	return n, nil
}

func (q *queue) apply(op Op, due time.Time, keys []Key) (int, error) {
	if op.String() == "unknown operation" {
		return 0, fmt.Errorf("operation %d is unknown", op)
	}
	ids := make([]mta.ID, len(keys))
	for i := range keys {
		ids[i] = keys[i].ID
	}
	defer q.lock(ids...)()
	w := newWork(q)
	var errs []error
	for _, k := range keys {
		if err := w.apply(op, due, k); err != nil && !errors.Is(err, ErrNotFound) {
			errs = append(errs, fmt.Errorf("%s: %w", k.ID, err))
		}
	}
	w.changes = slices.DeleteFunc(w.changes, func(c *change) bool { return c.changed == 0 })
	q.store(w.changes)
	n := 0
	var moved []string
	q.mu.Lock()
	for _, c := range w.changes {
		if c.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.id, c.err))
			continue
		}
		q.indexChange(c)
		n += c.changed
		moved = append(moved, c.dests...)
	}
	q.mu.Unlock()
	if op == Unhold || op == Reschedule {
		q.hints.tell(moved...)
	}
	return n, errors.Join(errs...)
}

func (w *work) apply(op Op, due time.Time, k Key) error {
	c, err := w.change(k.ID)
	if err != nil {
		return err
	}
	for _, dest := range c.msg.env.Dests() {
		if k.Dest != "" && k.Dest != dest || !c.p.apply(c.msg.env, dest, op, due, time.Now()) {
			continue
		}
		c.changed++
		c.dests = append(c.dests, dest)
	}
	return nil
}

// applyStep is how many deliveries one step of ApplyWhere changes, so that mail does not wait behind it.
const applyStep = 500

// ApplyWhere implements Spool.
func (q *queue) ApplyWhere(ctx context.Context, sel Query, op Op, due time.Time, progress func(done int)) (int, error) {
	if err := q.enter(ctx); err != nil {
		return 0, err
	}
	q.mu.Lock()
	ids := q.idx.ids(&sel, mta.ID{}, true, -1)
	q.mu.Unlock()
	q.leave()
	total := 0
	for step := range slices.Chunk(ids, applyStep) {
		n, err := q.applyStep(ctx, step, &sel, op, due)
		total += n
		if err != nil {
			return total, fmt.Errorf("spool: %s: %w", op, err)
		}
		if progress != nil {
			progress(total)
		}
	}
	return total, nil
}

func (q *queue) applyStep(ctx context.Context, ids []mta.ID, sel *Query, op Op, due time.Time) (int, error) {
	if err := q.enter(ctx); err != nil {
		return 0, err
	}
	defer q.leave()
	var keys []Key
	for _, id := range ids {
		rows, err := q.items(id, sel)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return 0, err
		}
		for i := range rows {
			keys = append(keys, Key{ID: id, Dest: rows[i].Dest})
		}
	}
	return q.apply(op, due, keys)
}
