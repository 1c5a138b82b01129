package forwarder

import (
	"sync"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

// job is one delivery under lease, on its way from the spool to a primary and back as a settlement.
type job struct {
	lease mta.Lease
	msg   smtpc.Message
	route *route
	flush *flush
	key   string    // of the sessions that may carry it
	peer  *mta.Peer // whom the primary is told of; nil: nobody
	fresh bool      // it goes before the backlog
	// hindsight is what was made of it when it had waited; nil: it was not judged again.
	hindsight *mta.Verdict
	until     time.Time // end of the lease; guarded by leases.mu
}

// leases are the jobs that are out.
type leases struct {
	mu  sync.Mutex
	out map[*job]struct{}
}

func (l *leases) add(j *job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	j.until = j.lease.Until
	l.out[j] = struct{}{}
}

func (l *leases) remove(j *job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.out, j)
}

// ending lists the jobs whose lease ends before t.
func (l *leases) ending(t time.Time) []*job {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []*job
	for j := range l.out {
		if j.until.Before(t) {
			list = append(list, j)
		}
	}
	return list
}

func (l *leases) extended(j *job, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	j.until = until
}
