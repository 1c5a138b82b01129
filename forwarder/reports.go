package forwarder

import (
	"context"
	"strings"
	"time"

	"understudy/internal/dsn"
	"understudy/internal/mta"
)

// Proof is what was found out about a message when it came. The zero Proof is none: no report is ever sent for it.
type Proof struct {
	Authentic bool // SPF passed or an aligned DKIM signature is valid, and DMARC did not fail
	Clean     bool // our own verdict was clean
}

// reportable tells whether the sender may be told of a recipient's end. A report to a sender who was forged is spam of our
// own making (RFC 5321, 6.2), so anything but certainty means quarantine.
func reportable(env *mta.Envelope, to *mta.Recipient, r *mta.RcptResult, p Proof) bool {
	if env.From.IsNull() || env.From.DomainKey() == "" || !p.Authentic || !p.Clean {
		return false
	}
	switch r.Outcome {
	case mta.Delivered:
		return to.Notify&mta.NotifySuccess != 0
	case mta.Quarantined:
		asked := to.Notify == 0 || to.Notify&mta.NotifyFailure != 0
		return asked && to.Notify&mta.NotifyNever == 0 && !strings.HasPrefix(r.Reply.Enhanced, "5.7.") // what looks like a word on spam
	}
	return false
}

// returns turns refusals that the sender may be told of into reports, which are stored with the settlement or not at all.
// What can't be reported stays in quarantine.
func (f *Forwarder) returns(ctx context.Context, x *settled) []mta.Report {
	if f.proof == nil {
		return nil
	}
	env := x.j.lease.Envelope
	proof := f.proof(env)
	if v := x.j.hindsight; v != nil && v.Action != mta.Accept {
		proof.Clean = false
	}
	var told []int
	for i := range x.p.results {
		r := &x.p.results[i]
		if r.Outcome == mta.Delivered && !x.silent {
			continue // the primary will tell
		}
		if reportable(env, &x.j.msg.Rcpts[i], r, proof) {
			told = append(told, i)
		}
	}
	if len(told) == 0 || !f.mayReport() {
		return nil
	}
	header, err := f.header(ctx, env.ID)
	if err != nil {
		f.fault(ctx, "spool: header of "+env.ID.String(), err)
		return nil
	}
	report := f.compose(env, x, told, header)
	for _, i := range told {
		if r := &x.p.results[i]; r.Outcome == mta.Quarantined {
			r.Outcome = mta.Returned
		}
	}
	return []mta.Report{report}
}

// mayReport keeps to the rate of reports.
func (f *Forwarder) mayReport() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.reports.rate = f.cfg.ReportsPerHour / 3600
	if f.reports.rate <= 0 || f.reports.wait(now) > 0 {
		return false
	}
	f.reports.spend(now, 1)
	return true
}

func (f *Forwarder) header(ctx context.Context, id mta.ID) ([]byte, error) {
	body, err := f.q.Body(ctx, id)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return dsn.ReadHeader(body)
}

// compose writes the report on some recipients.
func (f *Forwarder) compose(env *mta.Envelope, x *settled, told []int, header []byte) mta.Report {
	now := time.Now()
	r := dsn.Report{
		Hostname: f.dialer.Hostname, ID: mta.NewID(now), To: env.From, Now: now, Original: env.ID, Arrived: env.Received, EnvID: env.Params.EnvID,
		Header: header, UTF8: env.Params.SMTPUTF8,
	}
	for _, i := range told {
		res, to := &x.p.results[i], &x.j.msg.Rcpts[i]
		action := dsn.Failed
		if res.Outcome == mta.Delivered {
			action = dsn.Relayed
		}
		r.Rcpts = append(r.Rcpts, dsn.Recipient{Addr: to.Addr, ORcpt: to.ORcpt, Action: action, Reply: res.Reply, Remote: res.Primary, At: now})
	}
	dest := env.From.DomainKey()
	return mta.Report{
		Envelope: &mta.Envelope{
			ID: r.ID, Received: now, Node: env.Node, Expires: now.Add(f.expiry(dest)),
			Params: mta.Params{SMTPUTF8: env.Params.SMTPUTF8},
			Rcpts:  []mta.Recipient{{Addr: env.From, Dest: dest, Notify: mta.NotifyNever}},
		},
		Content: r.Write(),
	}
}
