package policy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"understudy/internal/mta"
)

// A tuple earns its way in `defer` mode by coming back: at least minTries times over at least minPersistence. These are
// milter-ahead's and greylisting's kind of numbers: a real queue does so by itself, and nobody is put off for hours.
const (
	minTries       = 3
	minPersistence = 30 * time.Minute
	tryApart       = time.Minute         // tries that are closer are one: nobody earns it by hammering
	tryFor         = 2 * 24 * time.Hour  // a tuple that did not come back for so long begins anew; queues wait up to a day
	earnedFor      = 14 * 24 * time.Hour // after its last use
	maxTuples      = 100_000
)

// tupleKey stands for a client network, a sender and a recipient: a part of their hash, since strangers choose how long
// they are.
type tupleKey [16]byte

// tuple is how often one came. Times are Unix seconds.
type tuple struct {
	first, last int64
	tries       uint8
	earned      bool
}

// came notes a try.
func (t tuple) came(now int64) tuple {
	if t.tries == 0 || !t.lives(now) {
		return tuple{first: now, last: now, tries: 1}
	}
	if now-t.last >= int64(tryApart/time.Second) {
		t.tries = min(t.tries+1, 100)
		t.last = now
	}
	t.earned = t.earned || t.tries >= minTries && now-t.first >= int64(minPersistence/time.Second)
	return t
}

func (t tuple) lives(now int64) bool { return t.left(now) > 0 }

// left is how long it is still remembered without another try.
func (t tuple) left(now int64) time.Duration {
	ttl := tryFor
	if t.earned {
		ttl = earnedFor
	}
	return ttl - time.Duration(now-t.last)*time.Second
}

// worth ranks what to keep when there is no room: who is almost there before who came once.
func (t tuple) worth() int64 {
	switch {
	case t.earned:
		return 2 << 40
	case t.tries > 1:
		return 1 << 40
	}
	return 0
}

// tuples is the table of those who came while the primary took mail.
type tuples struct {
	mu    sync.Mutex // guards what follows
	m     map[tupleKey]tuple
	dirty map[tupleKey]bool // not yet kept
}

func newTuples() *tuples { return &tuples{m: map[tupleKey]tuple{}, dirty: map[tupleKey]bool{}} }

// tupleOf is that of a recipient of a transaction.
func tupleOf(env *mta.Envelope, q question) tupleKey {
	var b strings.Builder
	if client := clientOf(env); client.IsValid() {
		b.WriteString(networkOf(client).String())
	}
	b.WriteByte(0)
	if env != nil {
		b.WriteString(strings.ToLower(env.From.String()))
	}
	b.WriteByte(0)
	b.WriteString(q.local + "@" + q.dest)
	sum := sha256.Sum256([]byte(b.String()))
	return tupleKey(sum[:16])
}

// earned notes a try, and tells whether the tuple is let through.
func (ts *tuples) earned(k tupleKey, now time.Time) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	old := ts.m[k]
	t := old.came(now.Unix())
	if t == old {
		return t.earned
	}
	ts.put(k, t)
	if t.tries > 1 { // most come once; what is lost of them in a restart is one try
		ts.dirty[k] = true
	}
	return t.earned
}

// put sets an entry, after making room for it: of a few that the map happens to give first, the least worthy and oldest
// goes. mu is held.
func (ts *tuples) put(k tupleKey, t tuple) {
	if _, known := ts.m[k]; !known && len(ts.m) >= maxTuples {
		delete(ts.m, oldestOfSome(ts.m, func(t tuple) (int64, bool) { return t.last + t.worth(), true }))
	}
	ts.m[k] = t
}

const (
	tupleNamespace             = "tuples"
	tupleVersion, tupleEncoded = 1, 3 + 2*8
)

func (t tuple) encode() []byte {
	earned := byte(0)
	if t.earned {
		earned = 1
	}
	b := binary.BigEndian.AppendUint64([]byte{tupleVersion, t.tries, earned}, uint64(t.first))
	return binary.BigEndian.AppendUint64(b, uint64(t.last))
}

var errTuple = errors.New("policy: a remembered tuple can't be read")

func decodeTuple(key string, b []byte) (k tupleKey, t tuple, err error) {
	sum, err := hex.DecodeString(key)
	if err != nil || len(sum) != len(k) || len(b) != tupleEncoded || b[0] != tupleVersion || b[2] > 1 {
		return k, t, errTuple
	}
	t = tuple{tries: b[1], earned: b[2] == 1, first: int64(binary.BigEndian.Uint64(b[3:])), last: int64(binary.BigEndian.Uint64(b[11:]))}
	return tupleKey(sum), t, nil
}

// recallTuples puts back what was remembered.
func (p *Policy) recallTuples(ctx context.Context) {
	if p.deps.State == nil {
		return
	}
	now, damaged := time.Now().Unix(), 0
	p.tuples.mu.Lock()
	defer p.tuples.mu.Unlock()
	err := p.deps.State.Scan(ctx, tupleNamespace, "", "", 0, func(key string, val []byte, _ uint64) error {
		k, t, err := decodeTuple(key, val)
		switch {
		case err != nil || t.last > now || t.first > t.last:
			damaged++
		case t.lives(now):
			p.tuples.put(k, t)
		}
		return nil
	})
	if err != nil || damaged > 0 {
		p.log.LogAttrs(ctx, slog.LevelWarn, "senders that keep coming back could not all be read", slog.Int("damaged", damaged), slog.Any("err", err))
	}
}

// rememberTuples writes what changed. What can't be written costs a sender some more tries after a restart.
func (p *Policy) rememberTuples(ctx context.Context) {
	now := time.Now().Unix()
	var failed error
	for k, t := range p.tuples.changes() {
		left := t.left(now)
		if p.deps.State == nil || left < time.Second {
			continue
		}
		if _, err := p.deps.State.Put(ctx, tupleNamespace, hex.EncodeToString(k[:]), t.encode(), left, nil); err != nil {
			failed = err
		}
	}
	if failed != nil {
		p.log.LogAttrs(ctx, slog.LevelWarn, "senders that keep coming back can't be kept", slog.Any("err", failed))
	}
}

// changes takes all that was not written yet.
func (ts *tuples) changes() map[tupleKey]tuple {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	all := make(map[tupleKey]tuple, len(ts.dirty))
	for k := range ts.dirty {
		if t, ok := ts.m[k]; ok {
			all[k] = t
		}
	}
	clear(ts.dirty)
	return all
}
