package spooltest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"understudy/spool"
)

// StateEngine is a way to the tables that should survive.
type StateEngine struct {
	Open   func(t testing.TB) spool.State
	Reopen func(t testing.TB, s spool.State) spool.State // nil: nothing survives
}

// RunState holds tables to the contract.
func RunState(t *testing.T, e StateEngine) {
	for _, c := range []struct {
		name string
		test func(w *stateWorld)
	}{
		{"what is put is there, in its own namespace", statePut},
		{"a revision decides who may change", stateRevisions},
		{"counts add up, at once too", stateAdd},
		{"an entry goes after its time", stateTTL},
		{"a scan is in order, by prefix, in pages", stateScan},
		{"a closed state says so", stateClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &stateWorld{T: t, engine: e, State: e.Open(t)}
			defer func() {
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			}()
			c.test(w)
		})
	}
}

type stateWorld struct {
	*testing.T
	spool.State
	engine StateEngine
}

func (w *stateWorld) step() {
	w.Helper()
	if w.engine.Reopen != nil {
		w.State = w.engine.Reopen(w.T, w.State)
	}
}

func (w *stateWorld) put(ns, key, val string, ifRev *uint64) uint64 {
	w.Helper()
	rev, err := w.Put(w.Context(), ns, key, []byte(val), 0, ifRev)
	if err != nil || rev == 0 {
		w.Fatalf("put: revision %d, %v", rev, err)
	}
	return rev
}

func (w *stateWorld) want(ns, key, val string) {
	w.Helper()
	got, rev, err := w.Get(w.Context(), ns, key)
	if err != nil || string(got) != val || rev == 0 {
		w.Errorf("%s/%s: %q at %d, %v; want %q", ns, key, got, rev, err, val)
	}
}

func (w *stateWorld) none(ns, key string) {
	w.Helper()
	if _, _, err := w.Get(w.Context(), ns, key); !errors.Is(err, spool.ErrNotFound) {
		w.Errorf("%s/%s: %v, want ErrNotFound", ns, key, err)
	}
}

func statePut(w *stateWorld) {
	w.none("a", "k")
	w.put("a", "k", "one", nil)
	w.put("ab", "k", "two", nil)
	w.put("a", "", "", nil)
	w.step()
	w.want("a", "k", "one")
	w.want("ab", "k", "two")
	w.want("a", "", "")
	w.put("a", "k", "three", nil)
	w.step()
	w.want("a", "k", "three")
	for range 2 {
		if err := w.Delete(w.Context(), "a", "k"); err != nil {
			w.Error(err)
		}
		w.step()
		w.none("a", "k")
	}
	w.want("ab", "k", "two")
	for _, ns := range []string{"", "a\x00b"} {
		if _, err := w.Put(w.Context(), ns, "k", nil, 0, nil); err == nil {
			w.Errorf("namespace %q was taken", ns)
		}
	}
}

func stateRevisions(w *stateWorld) {
	zero := uint64(0)
	first := w.put("a", "k", "one", &zero)
	if _, err := w.Put(w.Context(), "a", "k", nil, 0, &zero); !errors.Is(err, spool.ErrConflict) {
		w.Errorf("put of what must not exist: %v, want ErrConflict", err)
	}
	w.step()
	second := w.put("a", "k", "two", &first)
	if second == first {
		w.Error("the revision did not change")
	}
	if _, err := w.Put(w.Context(), "a", "k", []byte("three"), 0, &first); !errors.Is(err, spool.ErrConflict) {
		w.Errorf("put at an old revision: %v, want ErrConflict", err)
	}
	w.want("a", "k", "two")
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 8 {
		wg.Go(func() {
			if _, err := w.Put(w.Context(), "a", "k", []byte("x"), 0, &second); err == nil {
				mu.Lock()
				won++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if won != 1 {
		w.Errorf("%d changed one revision, want 1", won)
	}
}

func stateAdd(w *stateWorld) {
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 20 {
				if _, err := w.Add(w.Context(), "a", "n", 1, 0); err != nil {
					w.Error(err)
				}
			}
		})
	}
	wg.Wait()
	w.step()
	if sum, err := w.Add(w.Context(), "a", "n", -50, 0); err != nil || sum != 150 {
		w.Errorf("%d %v, want 150", sum, err)
	}
	w.put("a", "text", "x", nil)
	if _, err := w.Add(w.Context(), "a", "text", 1, 0); err == nil {
		w.Error("a text was counted")
	}
}

func stateTTL(w *stateWorld) {
	if _, err := w.Put(w.Context(), "a", "short", []byte("x"), time.Second, nil); err != nil {
		w.Fatal(err)
	}
	if _, err := w.Put(w.Context(), "a", "long", []byte("x"), time.Hour, nil); err != nil {
		w.Fatal(err)
	}
	w.step()
	for limit := time.Now().Add(20 * time.Second); ; <-time.After(20 * time.Millisecond) {
		if _, _, err := w.Get(w.Context(), "a", "short"); errors.Is(err, spool.ErrNotFound) {
			break
		}
		if time.Now().After(limit) {
			w.Fatal("an entry outlived its time")
		}
	}
	w.want("a", "long", "x")
	if sum, err := w.Add(w.Context(), "a", "short", 1, 0); err != nil || sum != 1 {
		w.Errorf("%d %v, want a count from the beginning", sum, err)
	}
}

func stateScan(w *stateWorld) {
	for i := range 20 {
		w.put("a", fmt.Sprintf("k%02d", i), "x", nil)
	}
	w.put("a", "other", "x", nil)
	w.put("b", "k99", "x", nil)
	w.step()
	scan := func(prefix, after string, limit int) []string {
		var keys []string
		err := w.Scan(w.Context(), "a", prefix, after, limit, func(key string, val []byte, rev uint64) error {
			if string(val) != "x" || rev == 0 {
				w.Errorf("%s: %q at %d", key, val, rev)
			}
			keys = append(keys, key)
			return nil
		})
		if err != nil {
			w.Error(err)
		}
		return keys
	}
	if got := scan("", "", 0); len(got) != 21 || !slices.IsSorted(got) {
		w.Errorf("all: %v", got)
	}
	if got := scan("k", "", 0); len(got) != 20 {
		w.Errorf("prefix: %v", got)
	}
	if got := scan("k", "k16", 2); !slices.Equal(got, []string{"k17", "k18"}) {
		w.Errorf("page: %v", got)
	}
	stop := errors.New("enough")
	if err := w.Scan(w.Context(), "a", "", "", 0, func(string, []byte, uint64) error { return stop }); !errors.Is(err, stop) {
		w.Errorf("%v, want the function's error", err)
	}
}

func stateClosed(w *stateWorld) {
	if err := w.Close(); err != nil {
		w.Fatal(err)
	}
	_, _, err1 := w.Get(w.Context(), "a", "k")
	_, err2 := w.Put(w.Context(), "a", "k", nil, 0, nil)
	_, err3 := w.Add(w.Context(), "a", "k", 1, 0)
	for i, err := range []error{err1, err2, err3, w.Delete(w.Context(), "a", "k"), w.Scan(w.Context(), "a", "", "", 0, nil)} {
		if !errors.Is(err, spool.ErrClosed) {
			w.Errorf("call %d: %v, want ErrClosed", i, err)
		}
	}
}
