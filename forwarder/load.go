package forwarder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

const (
	inMemory = 256 << 10 // octets of content; what is larger is read while it is sent
	readers  = 4         // contents read at the same time for one route

	judgedTogether = 5 * time.Millisecond // jobs that were judged again within so long go on the shelf together
)

// load claims mail for the route and puts it on the shelf, destinations by turns, until the route ends.
func (r *route) load(ctx context.Context) {
	var judging sync.WaitGroup
	defer judging.Wait()
	for {
		dest, n, ok := r.turn()
		if !ok {
			return
		}
		leases, fresh, err := r.claim(ctx, dest, n)
		if err != nil {
			r.f.fault(ctx, "spool: claim", err)
		}
		if len(leases) > 0 {
			r.stock(ctx, &judging, leases, fresh)
		}
		r.turned(dest, len(leases) == 0)
	}
}

// turn waits until there is room on the shelf and a destination whose turn it is.
func (r *route) turn() (dest string, n int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.done && (!r.open || len(r.ring) == 0 || r.ahead() >= r.shelfMax() || r.out >= outMax) {
		r.cond.Wait()
	}
	if r.done {
		return "", 0, false
	}
	r.loading = true
	dest = r.ring[0]
	r.again[dest] = false
	return dest, min(quantum, r.shelfMax()-r.ahead(), outMax-r.out), true
}

// turned ends a turn. A destination that had nothing leaves the ring, unless something came for it meanwhile.
func (r *route) turned(dest string, empty bool) {
	r.mu.Lock()
	r.loading = false
	r.ring = r.ring[1:] // only the loader takes from the front
	if empty && !r.again[dest] {
		delete(r.again, dest)
	} else {
		r.ring = append(r.ring, dest)
	}
	r.mu.Unlock()
	r.signal()
}

// claim leases what a flush wants, or else what is fresh and then the oldest that is due; fresh counts the former.
func (r *route) claim(ctx context.Context, dest string, n int) (leases []mta.Lease, fresh int, err error) {
	if r.f.isHeld(dest) {
		return nil, 0, nil
	}
	if fl := r.f.flushing(dest); fl != nil {
		leases, err = fl.claim(ctx, r.f.q, dest, n)
		if len(leases) > 0 || err != nil {
			return leases, 0, err
		}
	}
	for _, id := range r.takeFresh(dest) {
		l, err := r.f.q.Claim(ctx, mta.ClaimRequest{Dest: dest, ID: id, Max: 1, Lease: leaseTime})
		if err != nil {
			return leases, len(leases), err
		}
		leases = append(leases, l...)
	}
	fresh = len(leases)
	due, err := r.f.q.Claim(ctx, mta.ClaimRequest{Dest: dest, Max: n, Lease: leaseTime})
	return append(leases, due...), fresh, err
}

// stock makes jobs of leases, reads their contents, and puts them on the shelf in their order: at once, or what is to be
// judged again when that was done.
func (r *route) stock(ctx context.Context, judging *sync.WaitGroup, leases []mta.Lease, fresh int) {
	jobs := make([]*job, len(leases))
	for i := range leases {
		jobs[i] = r.newJob(leases[i])
		jobs[i].fresh = i < fresh
		r.f.out.add(jobs[i])
	}
	r.mu.Lock()
	r.out += len(jobs)
	r.mu.Unlock()
	var wg sync.WaitGroup
	for k := range min(readers, len(jobs)) {
		wg.Go(func() {
			for i := k; i < len(jobs); i += readers {
				if err := r.read(ctx, jobs[i]); err != nil {
					r.unread(ctx, jobs[i], err)
					jobs[i] = nil
				}
			}
		})
	}
	wg.Wait()
	var ready, doubtful []*job
	now := time.Now()
	for _, j := range jobs {
		switch {
		case j == nil:
		case r.f.hindsight.wants(&j.lease, now):
			doubtful = append(doubtful, j)
		default:
			ready = append(ready, j)
		}
	}
	r.mu.Lock()
	r.judging += len(doubtful)
	r.mu.Unlock()
	r.shelve(ready)
	for k := range min(judges, len(doubtful)) {
		judging.Go(func() { r.judge(ctx, doubtful, k) })
	}
}

// judge has every so many-th job from the k-th on judged again, one after the other, and puts each where it belongs then:
// those that are judged in no time together, so that the sessions are not woken for each.
func (r *route) judge(ctx context.Context, jobs []*job, k int) {
	var ready []*job
	done, since := 0, time.Now()
	put := func() {
		r.shelve(ready)
		r.mu.Lock()
		r.judging -= done
		r.mu.Unlock()
		r.cond.Signal()
		r.signal()
		ready, done, since = nil, 0, time.Now()
	}
	for i := k; i < len(jobs); i += judges {
		if r.doomed(ctx, jobs[i]) {
			r.hold(jobs[i])
		} else {
			ready = append(ready, jobs[i])
		}
		if done++; time.Since(since) > judgedTogether {
			put()
		}
	}
	put()
}

// doomed has a job judged again when it is its turn, and reports whether it is to be held. A route that has closed asks
// nobody any more.
func (r *route) doomed(ctx context.Context, j *job) bool {
	r.judges <- struct{}{}
	defer func() { <-r.judges }()
	r.mu.Lock()
	open := r.open
	r.mu.Unlock()
	return open && r.reconsider(ctx, j)
}

// shelve puts jobs on the shelf, or gives them back if the route has closed meanwhile.
func (r *route) shelve(jobs []*job) {
	r.mu.Lock()
	open := r.open
	for _, j := range jobs {
		if j.key != "" {
			r.keyed = true
		}
		if open {
			r.shelf.put(j, j.fresh)
		}
	}
	if open && len(jobs) > 0 {
		r.tellMore()
	}
	r.mu.Unlock()
	if !open {
		r.giveBack(jobs)
	}
	r.signal()
}

func (r *route) newJob(l mta.Lease) *job {
	j := &job{lease: l, route: r, flush: r.f.flushing(l.Dest)}
	j.msg = smtpc.Message{From: l.Envelope.From, Params: l.Envelope.Params, Size: l.Size, Tag: j}
	j.key, j.peer = r.identity(l.Envelope)
	j.msg.Rcpts = make([]mta.Recipient, len(l.Rcpts))
	for i := range l.Rcpts {
		j.msg.Rcpts[i] = l.Rcpts[i].Recipient
	}
	return j
}

// read gets the content into memory, or where it is large or memory is short, ready to be streamed.
func (r *route) read(ctx context.Context, j *job) error {
	if j.lease.Size > inMemory || !r.f.memory.TryAcquire(j.lease.Size) {
		j.msg.Open = func() (io.ReadCloser, error) { return r.f.q.Body(ctx, j.lease.ID) }
		return nil
	}
	content, err := r.content(ctx, j)
	if err != nil {
		r.f.memory.Release(j.lease.Size)
		return err
	}
	j.msg.Content = content
	j.msg.Free = func() { r.f.memory.Release(j.lease.Size) }
	return nil
}

func (r *route) content(ctx context.Context, j *job) ([]byte, error) {
	body, err := r.f.q.Body(ctx, j.lease.ID)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b := make([]byte, j.lease.Size)
	if _, err := io.ReadFull(body, b); err != nil {
		return nil, err
	}
	// Damage is told at the end, which must be seen.
	if n, err := io.Copy(io.Discard, body); err != nil || n > 0 {
		return nil, errors.Join(err, fmt.Errorf("%d octets too many", n))
	}
	return b, nil
}

// unread keeps a message whose content can't be read. What is damaged the spool holds; what was a fault of the moment
// comes back.
func (r *route) unread(ctx context.Context, j *job, err error) {
	r.f.fault(ctx, "spool: content of "+j.lease.ID.String(), err)
	r.f.settler.put(settled{j: j, p: plan{release: true, next: time.Now().Add(r.f.config().RetryMin)}})
}
