package forwarder

import "understudy/internal/mta"

const (
	freshMax  = 4096 // messages remembered as fresh
	freshTurn = 16   // of them that one turn takes beside the backlog
)

// Arrived tells of a message that was just spooled, so that it need not wait behind a backlog. It never blocks; what it
// is not told of, or forgets, goes in its turn.
func (f *Forwarder) Arrived(id mta.ID, dests ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.freshN >= freshMax {
		clear(f.fresh)
		f.freshN = 0
	}
	for _, d := range dests {
		f.fresh[d] = append(f.fresh[d], id)
		f.freshN++
	}
}

// takeFresh gives the fresh messages of a destination that came after the route opened: what came before is backlog.
func (r *route) takeFresh(dest string) []mta.ID {
	r.mu.Lock()
	since := r.opened
	r.mu.Unlock()
	f := r.f
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.fresh[dest]
	if len(all) == 0 {
		return nil
	}
	n := min(len(all), freshTurn)
	var ids []mta.ID
	for _, id := range all[:n] {
		if id.Time().After(since) {
			ids = append(ids, id)
		}
	}
	f.freshN -= n
	if n == len(all) {
		delete(f.fresh, dest)
		return ids
	}
	f.fresh[dest] = all[n:]
	return ids
}
