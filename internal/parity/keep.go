package parity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"understudy/internal/mta"
)

// State is a small table that outlives the process.
type State interface {
	// Put sets a value for ttl.
	Put(ctx context.Context, ns, key string, val []byte, ttl time.Duration, ifRev *uint64) (rev uint64, err error)
	// Scan calls f for entries in the order of their keys: those with the prefix, behind after, at most limit (0: all).
	// f must not call the State.
	Scan(ctx context.Context, ns, prefix, after string, limit int, f func(key string, val []byte, rev uint64) error) error
}

const (
	namespace  = "parity"
	flushEvery = 15 * time.Second
	alarmEvery = time.Minute
)

// String is the place's key in the State; keys are in the order of days.
func (p place) String() string { return p.day + " " + p.domain + " " + p.kind.String() }

func parsePlace(s string) (place, error) {
	var p place
	parts := strings.Split(s, " ")
	if len(parts) != 3 || parts[1] == "" {
		return p, errPlace
	}
	if _, err := time.Parse(time.DateOnly, parts[0]); err != nil {
		return p, errPlace
	}
	p.day, p.domain = parts[0], parts[1]
	if p.kind.UnmarshalText([]byte(parts[2])) != nil || p.String() != s {
		return p, errPlace
	}
	return p, nil
}

var errPlace = errors.New("parity: a place in the table can't be read")

// stored is a record as it is kept.
type stored struct {
	Version int `json:"v"`
	record
}

const version = 1

func encode(r *record) ([]byte, error) { return json.Marshal(stored{version, *r}) }

func decode(b []byte) (*record, error) {
	var s stored
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("parity: a record can't be read: %w", err)
	}
	if s.Version != version || len(s.Theirs) > maxReasons || len(s.Ours) > maxReasons {
		return nil, errors.New("parity: a record is of another version")
	}
	return &s.record, nil
}

// Load takes over what was counted before. Call it before the first Add. What can't be read is logged and left out.
func (t *Tally) Load(ctx context.Context) {
	if t.deps.State == nil {
		return
	}
	now := time.Now()
	today := dayOf(now)
	found := map[place]*record{}
	t.scan(ctx, firstDay(now, alarmDays), func(at place, r *record) {
		if at.day != today {
			r = &record{Matrix: r.Matrix}
		}
		found[at] = r
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	t.today, t.records = max(t.today, today), found
}

// scan reads what is kept from a day on.
func (t *Tally) scan(ctx context.Context, from string, f func(place, *record)) {
	damaged := 0
	err := t.deps.State.Scan(ctx, namespace, "", from, 0, func(key string, val []byte, _ uint64) error {
		at, err := parsePlace(key)
		if err != nil {
			damaged++
			return nil
		}
		r, err := decode(val)
		if err != nil {
			damaged++
			return nil
		}
		f(at, r)
		return nil
	})
	if err != nil || damaged > 0 {
		t.log.LogAttrs(ctx, slog.LevelError, "parity counts could not all be read", slog.Int("damaged", damaged), slog.Any("err", err))
	}
}

// Run keeps what is counted and raises alarms, until ctx is done; then it writes once more.
func (t *Tally) Run(ctx context.Context) error {
	flush, look := time.NewTicker(flushEvery), time.NewTicker(alarmEvery)
	defer flush.Stop()
	defer look.Stop()
	for {
		select {
		case <-flush.C:
			t.flush(ctx)
		case <-look.C:
			t.look(time.Now())
		case <-ctx.Done():
			t.flush(context.WithoutCancel(ctx))
			return nil
		}
	}
}

// flush writes what changed, and forgets what is no longer needed here. What can't be written is written the next time.
func (t *Tally) flush(ctx context.Context) {
	if t.deps.State != nil {
		t.write(ctx)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.today = max(t.today, dayOf(now))
	oldest := firstDay(now, alarmDays)
	for at, r := range t.records {
		switch {
		case t.dirty[at] && t.deps.State != nil || at.day == t.today:
		case at.day < oldest:
			delete(t.records, at)
			delete(t.dirty, at)
		case t.deps.State != nil:
			r.Theirs, r.Ours = nil, nil
		}
	}
}

func (t *Tally) write(ctx context.Context) {
	changed, keep := t.changes()
	var failed error
	for at, r := range changed {
		val, err := encode(r)
		if err == nil {
			_, err = t.deps.State.Put(ctx, namespace, at.String(), val, keep, nil)
		}
		if err != nil {
			failed = err
			t.mu.Lock()
			t.dirty[at] = true
			t.mu.Unlock()
		}
	}
	if failed != nil {
		t.log.LogAttrs(ctx, slog.LevelWarn, "parity counts can't be kept", slog.Any("err", failed))
	}
}

// changes takes copies of all that was not written yet.
func (t *Tally) changes() (map[place]*record, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed := make(map[place]*record, len(t.dirty))
	for at := range t.dirty {
		if r := t.records[at]; r != nil {
			changed[at] = r.clone()
		}
	}
	clear(t.dirty)
	return changed, t.cfg.Keep
}

// kinds are all, in the order in which they are shown.
var kinds = []mta.PairKind{mta.PairShadow, mta.PairReceipt, mta.PairHindsight}
