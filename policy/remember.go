package policy

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"time"
)

// State is a small table that outlives the process; losing it is an inconvenience.
type State interface {
	// Put sets a value for ttl.
	Put(ctx context.Context, ns, key string, val []byte, ttl time.Duration, ifRev *uint64) (rev uint64, err error)
	// Delete removes an entry, if it is there.
	Delete(ctx context.Context, ns, key string) error
	// Scan calls f for entries in the order of their keys: those with the prefix, behind after, at most limit (0: all).
	Scan(ctx context.Context, ns, prefix, after string, limit int, f func(key string, val []byte, rev uint64) error) error
}

const (
	stateNamespace = "recipients"
	keepEvery      = 5 * time.Second
	natureTTL      = 7 * 24 * time.Hour
)

// stateKey names an entry; an empty local part stands for the nature of the domain's primary.
type stateKey struct{ domain, local string }

func (k stateKey) String() string { return k.domain + " " + k.local } // no domain holds a blank

func parseStateKey(s string) (stateKey, bool) {
	domain, local, ok := strings.Cut(s, " ")
	return stateKey{domain, local}, ok && domain != ""
}

// A value has a version, what it says, how that was learned, and two times in Unix seconds.
const stateVersion, stateSize = 1, 3 + 2*8

func encodeState(says, how byte, at, tried int64) []byte {
	b := []byte{stateVersion, says, how}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	return binary.BigEndian.AppendUint64(b, uint64(tried))
}

var errStateValue = errors.New("policy: a remembered recipient can't be read")

func decodeState(b []byte) (says, how byte, at, tried int64, err error) {
	if len(b) != stateSize || b[0] != stateVersion {
		return 0, 0, 0, 0, errStateValue
	}
	return b[1], b[2], int64(binary.BigEndian.Uint64(b[3:])), int64(binary.BigEndian.Uint64(b[11:])), nil
}

// restore puts back one remembered entry.
func (l *learned) restore(k stateKey, val []byte, now time.Time) error {
	says, how, at, tried, err := decodeState(val)
	if err != nil || at > now.Unix() {
		return errStateValue
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.pupil(k.domain)
	if k.local == "" {
		if says > byte(refusesAll) || how != 0 || tried != 0 {
			return errStateValue
		}
		d.nature, d.course.judged = nature(says), time.Unix(at, 0)
		return nil
	}
	e := entry{at: at, tried: tried, good: says == 1, how: How(how)}
	if says > 1 || how < byte(ByRcpt) || how > byte(ByCallout) {
		return errStateValue
	}
	if e.lives(now, l.rules) && l.rules.MaxEntries > 0 {
		l.put(k.domain, d, k.local, e)
		delete(l.dirty, k)
	}
	return nil
}

// recallLearned puts back what was remembered.
func (p *Policy) recallLearned(ctx context.Context) {
	if p.deps.State == nil {
		return
	}
	domains, now := p.state.Load().domains, time.Now()
	damaged := 0
	err := p.deps.State.Scan(ctx, stateNamespace, "", "", 0, func(key string, val []byte, _ uint64) error {
		k, ok := parseStateKey(key)
		if domains[k.domain] == nil {
			return nil // its time to live ends it
		}
		if !ok || p.learned.restore(k, val, now) != nil {
			damaged++
		}
		return nil
	})
	if err != nil || damaged > 0 {
		p.log.LogAttrs(ctx, slog.LevelError, "learned recipients could not all be read", slog.Int("damaged", damaged), slog.Any("err", err))
	}
}

// change is what is to be written of an entry; without a value it is to be removed.
type change struct {
	key stateKey
	val []byte
	ttl time.Duration
}

// changes takes all that was not written yet.
func (l *learned) changes(now time.Time) []change {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]change, 0, len(l.dirty))
	for k := range l.dirty {
		all = append(all, l.change(k, now))
	}
	clear(l.dirty)
	return all
}

func (l *learned) change(k stateKey, now time.Time) change {
	c := change{key: k}
	d := l.domains[k.domain]
	if d == nil {
		return c
	}
	if k.local == "" {
		c.val, c.ttl = encodeState(byte(d.nature), 0, d.course.judged.Unix(), 0), natureTTL
		return c
	}
	e, ok := d.entries[k.local]
	ttl := l.rules.NegativeTTL
	says := byte(0)
	if e.good {
		ttl, says = l.rules.PositiveTTL, 1
	}
	if left := ttl - now.Sub(e.when()); ok && left >= time.Second {
		c.val, c.ttl = encodeState(says, byte(e.how), e.at, e.tried), left
	}
	return c
}

// remember writes what was learned. What can't be written now is learned again some day.
func (p *Policy) remember(ctx context.Context) {
	changes := p.learned.changes(time.Now())
	if p.deps.State == nil {
		return
	}
	var failed error
	for _, c := range changes {
		var err error
		if c.val == nil {
			err = p.deps.State.Delete(ctx, stateNamespace, c.key.String())
		} else {
			_, err = p.deps.State.Put(ctx, stateNamespace, c.key.String(), c.val, c.ttl, nil)
		}
		if err != nil {
			failed = err
		}
	}
	if failed != nil {
		p.log.LogAttrs(ctx, slog.LevelWarn, "learned recipients can't be kept", slog.Int("entries", len(changes)), slog.Any("err", failed))
	}
}
