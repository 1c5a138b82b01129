package forwarder

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"understudy/internal/mta"
)

const (
	judges         = 16               // messages of one route that are judged again at the same time
	hindsightLimit = 2 * time.Minute  // for one; then it is sent as it is
	hindsightHolds = 10 * time.Minute // what a message that comes again so soon is not asked about a second time
	maxHindsight   = 4096             // verdicts remembered for that
)

// hindsight asks for a second judgement of what has waited.
type hindsight struct {
	judge func(context.Context, *mta.Envelope, mta.Content) (*mta.Verdict, error) // Deps.Hindsight
	after func() time.Duration                                                    // Deps.HindsightAfter

	mu    sync.Mutex
	known map[mta.ID]judged
}

// judged is what was made of a message a moment ago.
type judged struct {
	v  *mta.Verdict
	at time.Time
}

// wants reports whether a delivery is to be judged before it is sent.
func (h *hindsight) wants(l *mta.Lease, now time.Time) bool {
	if h.judge == nil || h.after == nil || l.Released || !l.Envelope.Peer.Addr.IsValid() { // the last is a report of our own
		return false
	}
	if v := l.Envelope.Verdict; v != nil && v.Action == mta.Quarantine { // it was held from the beginning: an operator gave it free
		return false
	}
	after := h.after()
	return after > 0 && now.Sub(l.ID.Time()) >= after // not since Envelope.Received: what an operator redirects has a new ID
}

// recall gives what was made of a message that came back untried.
func (h *hindsight) recall(id mta.ID, now time.Time) (*mta.Verdict, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	j, ok := h.known[id]
	return j.v, ok && now.Sub(j.at) < hindsightHolds
}

func (h *hindsight) remember(id mta.ID, v *mta.Verdict, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil || len(h.known) >= maxHindsight {
		h.known = make(map[mta.ID]judged)
	}
	h.known[id] = judged{v: v, at: now}
}

// reconsider has a job judged again. It reports whether the job is to be held; else it is to be sent.
func (r *route) reconsider(ctx context.Context, j *job) (hold bool) {
	h, id := &r.f.hindsight, j.lease.ID
	v, known := h.recall(id, time.Now())
	if !known {
		ctx, cancel := context.WithTimeout(ctx, hindsightLimit)
		defer cancel()
		var err error
		if v, err = h.judge(ctx, j.lease.Envelope, j.stored(ctx)); err != nil {
			r.f.log.LogAttrs(ctx, slog.LevelWarn, "not judged again", slog.String("id", id.String()), slog.Any("err", err))
			return false
		}
		h.remember(id, v, time.Now())
	}
	j.hindsight = v
	return v != nil && (v.Action == mta.Quarantine || v.Action == mta.Reject)
}

// stored is the job's content, from memory where it is there.
func (j *job) stored(ctx context.Context) mta.Content {
	c := mta.Content{Size: j.lease.Size, Open: j.msg.Open}
	if c.Open == nil {
		b := j.msg.Content
		c.Open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	}
	return c
}

// hold puts a job into quarantine with the reason of its hindsight.
func (r *route) hold(j *job) {
	if j.msg.Free != nil {
		j.msg.Free()
	}
	text := "refused by policy"
	if f := j.hindsight.Decider(); f != nil && f.Text != "" {
		text = f.Text
	}
	reply := *mta.NewReply(550, "5.7.1", "judged again before it was forwarded: %s", text)
	var p plan
	for i := range j.lease.Rcpts {
		p.results = append(p.results, mta.RcptResult{N: j.lease.Rcpts[i].N, Outcome: mta.Quarantined, Reply: reply})
	}
	if j.flush != nil {
		j.flush.done(j.lease.ID)
	}
	r.f.settler.put(settled{j: j, p: p})
}
