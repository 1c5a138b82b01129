package spool

import (
	"context"
	"sync"
	"time"
)

// hints tells watchers which destinations have something new to do.
type hints struct {
	mu       sync.Mutex
	watchers map[*watcher]struct{}
	closed   bool
	wg       sync.WaitGroup // the watchers' goroutines
}

// watcher coalesces: however many messages come, a name waits at most once.
type watcher struct {
	mu      sync.Mutex
	pending map[string]struct{}
	wake    chan struct{} // capacity 1
	end     chan struct{}
}

// watch starts a goroutine that ends with ctx or close.
func (h *hints) watch(ctx context.Context) (<-chan string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, ErrClosed
	}
	if h.watchers == nil {
		h.watchers = make(map[*watcher]struct{})
	}
	w := &watcher{pending: make(map[string]struct{}), wake: make(chan struct{}, 1), end: make(chan struct{})}
	h.watchers[w] = struct{}{}
	out := make(chan string)
	h.wg.Go(func() {
		defer close(out)
		defer h.leave(w)
		w.run(ctx, out)
	})
	return out, nil
}

// hintPause is between two wake-ups of a watcher: while mail pours in it need not hear of each message.
const hintPause = 5 * time.Millisecond

func (w *watcher) run(ctx context.Context, out chan<- string) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.end:
			return
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-w.end:
			return
		case <-w.wake:
		}
		pause.Reset(hintPause)
		for _, name := range w.take() {
			select {
			case out <- name:
			case <-ctx.Done():
				return
			case <-w.end:
				return
			}
		}
	}
}

func (w *watcher) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	names := make([]string, 0, len(w.pending))
	for name := range w.pending {
		names = append(names, name)
	}
	clear(w.pending)
	return names
}

func (h *hints) leave(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

// tell passes names on to all watchers and never waits.
func (h *hints) tell(names ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		w.mu.Lock()
		for _, name := range names {
			w.pending[name] = struct{}{}
		}
		w.mu.Unlock()
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// close ends all watchers and waits for them.
func (h *hints) close() {
	h.mu.Lock()
	h.closed = true
	for w := range h.watchers {
		close(w.end)
	}
	h.mu.Unlock()
	h.wg.Wait()
}
