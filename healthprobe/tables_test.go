package healthprobe

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"
)

// tables is a Tables in memory.
type tables struct {
	mu   sync.Mutex
	vals map[record][]byte
	fail bool
}

func (t *tables) Put(_ context.Context, ns, key string, val []byte, _ time.Duration, _ *uint64) (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail {
		return 0, errors.New("the disk is full")
	}
	if t.vals == nil {
		t.vals = make(map[record][]byte)
	}
	t.vals[record{ns, key}] = val
	return 1, nil
}

func (t *tables) Delete(_ context.Context, ns, key string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.vals, record{ns, key})
	return nil
}

func (t *tables) Scan(_ context.Context, ns, _, after string, limit int, f func(string, []byte, uint64) error) error {
	t.mu.Lock()
	vals := maps.Clone(t.vals)
	t.mu.Unlock()
	var keys []string
	for r := range vals {
		if r.ns == ns && r.key > after {
			keys = append(keys, r.key)
		}
	}
	slices.Sort(keys)
	for _, k := range keys[:min(limit, len(keys))] {
		if err := f(k, vals[record{ns, k}], 1); err != nil {
			return err
		}
	}
	return nil
}

func (t *tables) setFail(fail bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fail = fail
}

func (t *tables) len(ns string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for r := range t.vals {
		if r.ns == ns {
			n++
		}
	}
	return n
}
