package healthprobe

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"time"
)

// Tables is the store of small things that must survive a restart; the spool has one.
type Tables interface {
	Put(ctx context.Context, ns, key string, val []byte, ttl time.Duration, ifRev *uint64) (rev uint64, err error)
	Delete(ctx context.Context, ns, key string) error
	Scan(ctx context.Context, ns, prefix, after string, limit int, f func(key string, val []byte, rev uint64) error) error
}

// The name spaces in it.
const (
	nsOutage   = "healthprobe.outage"   // begin|primary: Outage
	nsRoute    = "healthprobe.route"    // domain: keptRoute
	nsPrimary  = "healthprobe.primary"  // primary: memory
	nsOverride = "healthprobe.override" // kind|subject: Override
)

const (
	keepFor   = 366 * 24 * time.Hour // what is not written again for a year is not ours any more
	keepAgain = 30 * 24 * time.Hour  // so what holds is written again in time
	keepRetry = 5 * time.Second      // after the store refused
	keepLimit = 5 * time.Second      // for one round of writing; our stopping does not cut it short
)

// keeper writes behind: put never waits, and the newest value of a key is what is written. Nil Tables keep nothing.
type keeper struct {
	tables Tables
	log    *slog.Logger
	wake   chan struct{}

	mu      sync.Mutex
	pending map[record][]byte
}

type record struct{ ns, key string }

func newKeeper(t Tables, log *slog.Logger) *keeper {
	return &keeper{tables: t, log: log, wake: make(chan struct{}, 1), pending: make(map[record][]byte)}
}

// put has v written soon.
func (k *keeper) put(ns, key string, v any) {
	if k.tables == nil {
		return
	}
	val, err := json.Marshal(v)
	if err != nil { // v is a struct of ours without channels or funcs
		panic(err)
	}
	k.mu.Lock()
	k.pending[record{ns, key}] = val
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx is done, and then once more what is left.
func (k *keeper) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			k.flush(ctx)
			return
		case <-k.wake:
		}
		for !k.flush(ctx) && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(keepRetry):
			}
		}
	}
}

// flush writes all that is pending, and reports whether it could.
func (k *keeper) flush(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepLimit)
	defer cancel()
	k.mu.Lock()
	todo := k.pending
	k.pending = make(map[record][]byte)
	k.mu.Unlock()
	ok := true
	for r, val := range todo {
		if _, err := k.tables.Put(ctx, r.ns, r.key, val, keepFor, nil); err != nil {
			ok = false
			k.log.LogAttrs(ctx, slog.LevelError, "can't keep what the prober knows", slog.String("key", r.ns+" "+r.key), slog.Any("err", err))
			k.restore(r, val)
		}
	}
	return ok
}

// restore puts back what could not be written, unless something newer waits.
func (k *keeper) restore(r record, val []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.pending[r]; !ok {
		k.pending[r] = val
	}
}

// load reads a whole name space. What can't be read is logged and left out: the prober must not stand still for it.
func load[T any](ctx context.Context, k *keeper, ns string, f func(key string, v T)) {
	const page = 1000
	if k.tables == nil {
		return
	}
	for after, n := "", page; n == page; {
		n = 0
		err := k.tables.Scan(ctx, ns, "", after, page, func(key string, val []byte, _ uint64) error {
			n++
			after = key
			var v T
			if err := json.Unmarshal(val, &v); err != nil {
				k.log.LogAttrs(ctx, slog.LevelError, "can't read what the prober knew", slog.String("key", ns+" "+key), slog.Any("err", err))
				return nil
			}
			f(key, v)
			return nil
		})
		if err != nil {
			k.log.LogAttrs(ctx, slog.LevelError, "can't read what the prober knew", slog.String("key", ns), slog.Any("err", err))
			return
		}
	}
}
