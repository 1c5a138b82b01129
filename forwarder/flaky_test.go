package forwarder

import (
	"context"
	"errors"
	"sync"

	"understudy/internal/mta"
)

// flaky is a Queue whose first settlements fail.
type flaky struct {
	Queue
	mu   sync.Mutex
	fail int
}

func (q *flaky) Settle(ctx context.Context, s ...mta.Settlement) []error {
	q.mu.Lock()
	fail := q.fail > 0
	q.fail--
	q.mu.Unlock()
	if !fail {
		return q.Queue.Settle(ctx, s...)
	}
	errs := make([]error, len(s))
	for i := range errs {
		errs[i] = errors.New("disk on fire")
	}
	return errs
}
